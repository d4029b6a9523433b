//! Whether tables can be published without harm to the application: the server is asked, by publishing them in a
//! transaction that is rolled back. What a role that only reads may ask is asked of the catalogs.
//! (<https://www.postgresql.org/docs/current/logical-replication-publication.html>)

use crate::link::Link;
use crate::options::Replicate;
use handover_core::error::{Class, Result};
use handover_core::problem::few;
use handover_port::{Description, Port};
use handover_postgres::{Session, TableName, quote_ident};
use std::time::Duration;

/// Tables that are published by one trial: locks are held that long.
const BATCH: usize = 50;
/// Attempts at a trial that finds a table locked.
const ATTEMPTS: u32 = 5;

/// Tables whose updates and deletes would fail on the publisher itself, or on the subscriber, once they are published,
/// and how to mend them. (<https://www.postgresql.org/docs/current/sql-altertable.html#SQL-ALTERTABLE-REPLICA-IDENTITY>)
pub async fn look(
    replicate: &Replicate,
    role: Option<&str>,
    blue: &Session,
    tables: &[TableName],
    out: &mut Description,
) -> Result<()> {
    let names: Vec<String> = tables.iter().map(TableName::sql).collect();
    let rows = blue
        .query(
            "with t as (
                 select c.oid, c.relreplident, c.relforcerowsecurity, c.relowner, n.nspname, c.relname
                 from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = any(
                     select to_regclass(x) from unnest($1::text[]) x)
             )
             select t.nspname::text, t.relname::text, t.relreplident = 'f',
                    case t.relreplident
                        when 'f' then true
                        when 'd' then exists (select from pg_index i where i.indrelid = t.oid and i.indisprimary and i.indimmediate and i.indisvalid)
                        when 'i' then exists (select from pg_index i where i.indrelid = t.oid and i.indisreplident and i.indimmediate and i.indisvalid)
                        else false
                    end,
                    (select c.relname::text from pg_index i join pg_class c on c.oid = i.indexrelid
                     where i.indrelid = t.oid and i.indisunique and i.indimmediate and i.indisvalid
                       and i.indpred is null and i.indexprs is null
                       and not exists (select from unnest(i.indkey::int2[]) k left join pg_attribute a on a.attrelid = t.oid and a.attnum = k
                                       where not coalesce(a.attnotnull and a.attgenerated = '', false))
                     order by i.indnatts, c.relname limit 1),
                    exists (select from pg_index i join pg_attribute a on a.attrelid = t.oid and a.attnum = any (i.indkey::int2[])
                            where i.indrelid = t.oid and a.attgenerated <> ''
                              and case t.relreplident when 'd' then i.indisprimary when 'i' then i.indisreplident end),
                    exists (select from pg_attribute a where a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated <> ''),
                    array(select a.attname::text from pg_attribute a
                          where a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = '' order by a.attnum),
                    t.relforcerowsecurity,
                    $2::text is null or coalesce((select pg_has_role(r.oid, t.relowner, 'usage') from pg_roles r where r.rolname = $2), false)
             from t order by 1, 2",
            &[&names, &role],
        )
        .await?;
    // From 18 on a publisher refuses changes to a table whose identity is not published as a whole.
    let strict = blue.major().await? >= 18;
    let (mut fixes, mut bad, mut forced, mut foreign) = (vec![], vec![], vec![], vec![]);
    for row in &rows {
        let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let (full, identified, generated_key): (bool, bool, bool) = (row.get(2), row.get(3), row.get(5));
        let columns: Vec<String> = row.get(7);
        let needs_all = full || !identified;
        let in_the_way = match needs_all || generated_key {
            true if strict && row.get(6) => {
                Some("`replica identity full` takes in a generated column, which is not published".to_owned())
            }
            true => incomparable(blue, &table, &columns).await?,
            false => None,
        };
        let reason = match (full, &in_the_way) {
            _ if generated_key => Some("its key holds a generated column, which is not published".to_owned()),
            _ if !identified => Some("it has no replica identity".to_owned()),
            (true, Some(reason)) => Some(reason.clone()),
            _ => None,
        };
        if let Some(reason) = reason {
            bad.push(format!("{table} ({reason})"));
            fixes.push(match (row.get::<_, Option<String>>(4), in_the_way) {
                (Some(index), _) => {
                    format!("alter table {} replica identity using index {};", table.sql(), quote_ident(&index))
                }
                (None, None) => format!("alter table {} replica identity full;", table.sql()),
                (None, Some(why)) => format!(
                    "give {table} a unique index of columns that are not null and not generated, and name it as its replica identity (not `full`: {why}), or leave it out of the copy;"
                ),
            });
        }
        if row.get(8) {
            forced.push(table.clone());
        }
        if !row.get::<_, bool>(9) {
            foreign.push(table);
        }
    }
    let from = &replicate.from;
    if !bad.is_empty() {
        out.blocker(format!(
            "updates and deletes of tables of {from} would fail once they are published: {}: {}",
            bad.join(", "),
            fixes.join(" ")
        ));
    }
    if !forced.is_empty() {
        out.warning(format!(
            "row security is forced on {}: applying there fails unless their owner bypasses it on {}",
            few(&forced),
            replicate.to
        ));
    }
    if let (Some(role), false) = (role, foreign.is_empty()) {
        out.blocker(format!(
            "only their owner can publish {}: make the role {role} a member of it on {from} (scripts/grants.sql)",
            few(&foreign)
        ));
    }
    Ok(())
}

/// Why rows of a table cannot be found by all their values: a type without equality, also within arrays, rows and
/// domains. DISTINCT asks for the same operators as the subscriber.
async fn incomparable(blue: &Session, table: &TableName, columns: &[String]) -> Result<Option<String>> {
    let distinct = async |columns: &[String]| {
        let list: Vec<String> = columns.iter().map(|c| quote_ident(c)).collect();
        let sql = format!("select distinct {} from only {} where false", list.join(", "), table.sql());
        match blue.prepare(&sql).await {
            Ok(_) => Ok(true),
            Err(e) if e.message().contains("42883") => Ok(false),
            Err(e) => Err(e),
        }
    };
    if columns.is_empty() || distinct(columns).await? {
        return Ok(None);
    }
    for column in columns {
        if !distinct(std::slice::from_ref(column)).await? {
            return Ok(Some(format!("the type of its column {column} knows no equality")));
        }
    }
    Ok(Some("types of its columns know no equality".to_owned()))
}

/// Publishes tables in transactions that are rolled back, and asks whether the server would still let the application
/// change them: what it refuses is a blocker. EXPLAIN begins a statement and executes none of it, so no trigger fires.
///
/// # Errors
/// What the server says about anything else.
pub async fn rehearse(port: &Port, link: &Link, tables: &[TableName], out: &mut Description) -> Result<()> {
    let mut blue = port.writer(&link.from).await?;
    blue.set("lock_timeout", "500ms").await?;
    let mut refused = Vec::new();
    for some in tables.chunks(BATCH) {
        let mut attempt = 1;
        loop {
            port.proceed()?;
            match trial(&mut blue, link, some).await {
                Ok(found) => {
                    refused.extend(found);
                    break;
                }
                // A table that is altered, vacuumed or gone since we looked.
                Err(e)
                    if (e.class() == Class::Contention || e.message().contains("42P01"))
                        && attempt < ATTEMPTS =>
                {
                    attempt += 1;
                    port.sleep(Duration::from_millis(500)).await?;
                }
                Err(e) if e.class() == Class::Contention => {
                    out.warning(format!(
                        "whether {} can be published could not be tried: {}",
                        few(some),
                        e.message()
                    ));
                    break;
                }
                Err(e) => return Err(e.context("publishing tables in a transaction that is rolled back")),
            }
        }
    }
    if !refused.is_empty() {
        out.blocker(format!(
            "once they are published, {} itself refuses changes to its tables: {}: give each a replica identity that is published as a whole (a unique index of columns that are not null and not generated), or leave it out of the copy",
            link.from,
            few(&refused)
        ));
    }
    Ok(())
}

async fn trial(blue: &mut Session, link: &Link, tables: &[TableName]) -> Result<Vec<String>> {
    let tx = blue.transaction().await?;
    let name = quote_ident(&format!("{}_trial", link.name));
    let list: Vec<String> = tables.iter().map(|t| format!("only {}", t.sql())).collect();
    tx.batch(&format!(
        "create publication {name} for table {} with (publish_via_partition_root = true)",
        list.join(", ")
    ))
    .await?;
    let mut refused = Vec::new();
    for table in tables {
        tx.batch("savepoint trial").await?;
        if let Err(e) = tx.batch(&format!("explain delete from only {}", table.sql())).await {
            // Object not in prerequisite state, or columns that the publication leaves out.
            if e.message().contains("55000") || e.message().contains("42P10") {
                refused.push(format!("{table} ({})", e.message()));
            }
            tx.batch("rollback to savepoint trial").await?;
        }
    }
    tx.rollback().await?;
    Ok(refused)
}
