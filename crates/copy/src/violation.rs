//! Rows that break a key which the source believes in: orphans under a valid foreign key, twins under a unique index.
//! They come from triggers that were disabled, broken indexes, changed collations. The source never looks again; the
//! target does, once all rows are there.

use crate::options::{Copy, OnViolation};
use crate::state::{Object, Rule};
use handover_core::error::{Error, Result};
use handover_core::failpoint;
use handover_core::problem::few;
use handover_port::Port;
use handover_postgres::ours::OURS;
use handover_postgres::{Session, TableName, Tx, quote_ident};
use handover_rows::aside::{self, Place};
use std::collections::BTreeMap;

/// Rows that are set aside in one transaction.
const BATCH: i64 = 10_000;

/// Whether a server refused a key because of the rows that are there.
#[must_use]
pub fn is(error: &Error) -> bool {
    ["[SQLSTATE 23503]", "[SQLSTATE 23505]"].iter().any(|state| error.message().contains(state))
}

/// Finds the rows that are to blame, and sets them aside if the plan says so: then the key is to be built again. False
/// when there are none (any more): another key of the same table may just have had them taken away.
///
/// # Errors
/// The rows; or what the server says of setting them aside.
pub async fn handle(port: &Port, copy: &Copy, session: &mut Session, object: &Object) -> Result<bool> {
    let Some(sql) = object.key.as_ref().and_then(|key| search(object, key)) else { return Ok(false) };
    let mut total = 0;
    loop {
        port.proceed()?;
        let tx = session.transaction().await?;
        // Other keys of these tables are built before or after this.
        let tables: Vec<String> = object.table.iter().chain(&object.references).map(TableName::sql).collect();
        tx.batch(&format!("lock table {} in share row exclusive mode", tables.join(", "))).await?;
        let found: i64 = tx.query_one(&format!("select count(*) from ({sql}) s"), &[]).await?.get(0);
        if found == 0 {
            return Ok(total > 0);
        }
        if copy.on_violation == OnViolation::Halt {
            let places = places(&tx, &sql, 20).await?;
            let rows = aside::words(&tx, &places).await?;
            return Err(Error::data(format!(
                "{found} rows on {} do not fit {} {}: {}",
                copy.to,
                object.entry.kind.to_lowercase(),
                object.entry.name,
                few(&rows)
            ))
            .on_database(&copy.to)
            .hint(format!(
                "{} has them too: mend them there, then `handover rollback` and run again; or say `on_violation: quarantine` in this step, which sets them aside on {} ({OURS}.archive), then `handover resume --accept-changes`",
                copy.from, copy.to
            )));
        }
        let before = archived(&tx, port).await?;
        let places = places(&tx, &sql, BATCH).await?;
        aside::set_aside(port, &tx, &places).await?;
        let after = archived(&tx, port).await?;
        tx.commit().await?;
        failpoint::hit(failpoint::COPY_SET_ASIDE);
        for (table, n) in &after {
            let n = n - before.get(table).copied().unwrap_or(0);
            if n > 0 {
                port.warn(format!(
                    "{n} rows of {table} were set aside in {OURS}.archive on {}: they, or rows that they refer to, do not fit {}",
                    copy.to, object.entry.name
                ));
            }
        }
        total += places.len();
        if found < BATCH {
            return Ok(true);
        }
    }
}

async fn places(tx: &Tx<'_>, sql: &str, limit: i64) -> Result<Vec<Place>> {
    let rows =
        tx.query(&format!("select o::oid::text, t::text from ({sql}) s (o, t) limit {limit}"), &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// A query for the places of rows that do not fit; none where that is not known.
fn search(object: &Object, key: &Rule) -> Option<String> {
    let table = object.table.as_ref()?.sql();
    match key {
        Rule::Foreign { columns, others, equal, full } => {
            let child = |c: &String| format!("c.{}", quote_ident(c));
            let matches: Vec<String> = columns
                .iter()
                .zip(others)
                .zip(equal)
                .map(|((c, o), equal)| format!("p.{} {equal} {}", quote_ident(o), child(c)))
                .collect();
            let null = |word: &str| {
                let each: Vec<String> = columns.iter().map(|c| format!("{} is null", child(c))).collect();
                format!("({})", each.join(word))
            };
            let exists = format!(
                "exists (select from {} p where {})",
                object.references.as_ref()?.sql(),
                matches.join(" and ")
            );
            let wrong = if *full {
                format!("not {} and ({} or not {exists})", null(" and "), null(" or "))
            } else {
                format!("not {} and not {exists}", null(" or "))
            };
            Some(format!("select c.tableoid, c.ctid from {table} c where {wrong}"))
        }
        Rule::Unique { keys, condition, nulls } => {
            let mut conditions: Vec<String> = condition.iter().map(|c| format!("({c})")).collect();
            if !nulls {
                conditions.extend(keys.iter().map(|key| format!("({key}) is not null")));
            }
            let condition = if conditions.is_empty() { "true".into() } else { conditions.join(" and ") };
            let keys: Vec<String> = keys.iter().map(|key| format!("({key})")).collect();
            Some(format!(
                "select o, t from (select tableoid, ctid, row_number() over (partition by {} order by tableoid, ctid)
                                   from only {table} where {condition}) r (o, t, n) where n > 1",
                keys.join(", ")
            ))
        }
    }
}

async fn archived(tx: &Tx<'_>, port: &Port) -> Result<BTreeMap<String, i64>> {
    let sql = format!(
        "select table_name, count(*) from {OURS}.archive
         where run = $1 and step = $2 and action = 'quarantine' group by 1"
    );
    let rows = tx.query(&sql, &[&port.run.0, &port.step.as_str()]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// What is needed to find such rows, by catalog and row of a constraint or index.
pub async fn keys(session: &Session) -> Result<BTreeMap<(u32, u32), Rule>> {
    let mut out = BTreeMap::new();
    session.set("quote_all_identifiers", "on").await?;
    let foreign = session
        .query(
            "select 'pg_constraint'::regclass::oid, k.oid,
                    array(select a.attname::text from unnest(k.conkey) with ordinality x (n, i)
                          join pg_attribute a on a.attrelid = k.conrelid and a.attnum = x.n order by x.i),
                    array(select a.attname::text from unnest(k.confkey) with ordinality x (n, i)
                          join pg_attribute a on a.attrelid = k.confrelid and a.attnum = x.n order by x.i),
                    array(select format('operator(%I.%s)', n.nspname, o.oprname) from unnest(k.conpfeqop) with ordinality x (op, i)
                          join pg_operator o on o.oid = x.op join pg_namespace n on n.oid = o.oprnamespace order by x.i),
                    k.confmatchtype = 'f'
             from pg_constraint k
             where k.contype = 'f' and k.convalidated and coalesce(to_jsonb(k) ->> 'conperiod', 'false') = 'false'",
            &[],
        )
        .await?;
    for row in &foreign {
        let key =
            Rule::Foreign { columns: row.get(2), others: row.get(3), equal: row.get(4), full: row.get(5) };
        out.insert((row.get(0), row.get(1)), key);
    }
    let unique = session
        .query(
            "select o.class, o.oid, array(select pg_get_indexdef(i.indexrelid, n, false) from generate_series(1, i.indnkeyatts) n),
                    pg_get_expr(i.indpred, i.indrelid), coalesce(to_jsonb(i) ->> 'indnullsnotdistinct', 'false') = 'true'
             from pg_index i left join pg_constraint k on k.conindid = i.indexrelid and k.contype in ('p', 'u')
             cross join lateral (select case when k.oid is null then 'pg_class'::regclass::oid else 'pg_constraint'::regclass::oid end,
                                        coalesce(k.oid, i.indexrelid)) o (class, oid)
             where i.indisunique and i.indisvalid and i.indrelid >= 16384 and coalesce(to_jsonb(k) ->> 'conperiod', 'false') = 'false'",
            &[],
        )
        .await?;
    for row in &unique {
        let key = Rule::Unique { keys: row.get(2), condition: row.get(3), nulls: row.get(4) };
        out.insert((row.get(0), row.get(1)), key);
    }
    session.set("quote_all_identifiers", "off").await?;
    Ok(out)
}

/// Rows that were set aside, for a summary.
pub async fn summary(green: &Session, port: &Port) -> Result<BTreeMap<String, u64>> {
    let aside = aside::counts(green, port.run, &port.step).await?;
    Ok(aside.into_iter().map(|(table, n)| (table.to_string(), n)).collect())
}
