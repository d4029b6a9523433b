//! Rows that users keep in tables of extensions, as far as an extension says that a dump has to carry them
//! (`pg_extension_config_dump`), each with the extension's own condition.
//! (<https://www.postgresql.org/docs/current/extend-extensions.html#EXTEND-EXTENSIONS-CONFIG-TABLES>)

use crate::options::Copy;
use crate::source::Source;
use crate::state;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use handover_core::error::{Error, Result};
use handover_core::problem::few;
use handover_port::{Description, Port};
use handover_postgres::{Session, TableName, quote_ident, quote_literal};
use serde::{Deserialize, Serialize};
use std::pin::pin;

/// Unit of what was carried.
const CARRIED: &str = "extensions";

/// A table or sequence that an extension says is the user's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Config {
    extension: String,
    name: TableName,
    sequence: bool,
    /// `WHERE …`, or nothing.
    condition: String,
    /// Columns that are stored and not generated.
    columns: Vec<String>,
}

/// What was carried of one: its rows and a sum over them; of a sequence its position.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Carried {
    config: Config,
    rows: u64,
    sum: String,
}

impl Config {
    /// The rows that are the user's, as the FROM clause of a query and what follows it.
    fn from(&self) -> String {
        if self.sequence { self.name.sql() } else { format!("only {} {}", self.name.sql(), self.condition) }
    }

    fn list(&self) -> String {
        let columns: Vec<String> = self.columns.iter().map(|c| quote_ident(c)).collect();
        columns.join(", ")
    }

    /// How many rows there are, and a sum that no order of them changes.
    async fn sum(&self, session: &Session) -> Result<(u64, String)> {
        let sql = if self.sequence {
            // One that nobody has touched is none.
            format!(
                "select (is_called or last_value <> (select seqstart from pg_sequence where seqrelid = {}::regclass))::int::bigint,
                        last_value || ' ' || is_called
                 from {}",
                quote_literal(&self.name.sql()),
                self.name.sql()
            )
        } else {
            format!(
                "select count(*), coalesce(sum(('x' || substr(md5(convert_to(r::text, 'UTF8')), 1, 15))::bit(60)::bigint::numeric), 0)::text
                 from (select {} from {}) r",
                self.list(),
                self.from()
            )
        };
        let row = session.query_one(&sql, &[]).await?;
        Ok((row.get::<_, i64>(0).unsigned_abs(), row.get(1)))
    }
}

/// What extensions say of a database, those that are referred to first.
async fn configs(copy: &Copy, session: &Session) -> Result<Vec<Config>> {
    let rows = session
        .query(
            "with recursive config as (
                 select e.extname, c.oid, n.nspname, c.relname, c.relkind, coalesce(x.condition, '') as condition
                 from pg_extension e
                 cross join unnest(e.extconfig, e.extcondition) x (relation, condition)
                 join pg_class c on c.oid = x.relation join pg_namespace n on n.oid = c.relnamespace
                 where c.relkind in ('r', 'S')
             ), depth (oid, level) as (
                 select oid, 0 from config
                 union
                 select k.conrelid, d.level + 1 from depth d
                 join pg_constraint k on k.contype = 'f' and k.confrelid = d.oid and k.conrelid <> d.oid
                 join config c on c.oid = k.conrelid
                 where d.level < 20
             )
             select g.extname::text, g.nspname::text, g.relname::text, g.relkind = 'S', g.condition,
                    coalesce((select array_agg(a.attname::text order by a.attnum) from pg_attribute a
                              where a.attrelid = g.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''), '{}')
             from config g order by (select max(d.level) from depth d where d.oid = g.oid), 1, 2, 3",
            &[],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| Config {
            extension: row.get(0),
            name: TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
            sequence: row.get(3),
            condition: row.get(4),
            columns: row.get(5),
        })
        .filter(|config| copy.takes_rows(&config.name) && (config.sequence || !config.columns.is_empty()))
        .collect())
}

/// Whether a role of ours may do something to a relation, its schema included.
async fn may(session: &Session, name: &TableName, what: &str) -> Result<bool> {
    let row = session
        .query_one(
            "select has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, $3)
             from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = $1 and c.relname = $2",
            &[&name.schema, &name.name, &what],
        )
        .await?;
    Ok(row.get(0))
}

/// What stands in the way of carrying them.
///
/// # Errors
/// What a server says.
pub async fn look(copy: &Copy, blue: &Session, green: &Session, out: &mut Description) -> Result<()> {
    let (mut closed, mut carried, mut taken, mut unwritable) = (vec![], vec![], vec![], vec![]);
    let there = configs(copy, green).await?;
    let reads: bool =
        green.query_one("select current_setting('transaction_read_only')::bool", &[]).await?.get(0);
    for config in configs(copy, blue).await? {
        let words = format!("{} ({})", config.name, config.extension);
        if !may(blue, &config.name, "select").await? {
            closed.push(words);
            continue;
        }
        let (rows, _) = config.sum(blue).await?;
        if rows == 0 {
            continue;
        }
        // The role of a dry run may be another: what it may not do says nothing about the one that executes.
        if let Some(other) = there.iter().find(|other| other.name == config.name) {
            if !config.sequence && may(green, &other.name, "select").await? && other.sum(green).await?.0 > 0 {
                taken.push(words.clone());
            } else if !reads
                && !may(green, &other.name, if config.sequence { "update" } else { "insert, delete" }).await?
            {
                unwritable.push(words.clone());
            }
        } else if !reads && makes_it_a_superusers(green, &config.extension).await? {
            unwritable.push(words.clone());
        }
        carried.push(words);
    }
    if !closed.is_empty() {
        out.blocker(format!(
            "no right to read what users keep in tables of extensions on {}: {}; grant SELECT on them, or name them under `without_data`",
            copy.from,
            few(&closed)
        ));
    }
    if !taken.is_empty() {
        out.blocker(format!(
            "tables of extensions that are on {} already hold rows of users: {}; delete them there, or name them under `without_data`",
            copy.to,
            few(&taken)
        ));
    }
    if !unwritable.is_empty() {
        out.blocker(format!(
            "no right to write into tables of extensions on {}: {}; create the extension there and `grant select, insert, delete` on them (`select, update` on sequences), or name them under `without_data`",
            copy.to,
            few(&unwritable)
        ));
    }
    if !carried.is_empty() {
        out.action(format!("carry the rows that users keep in tables of extensions: {}", few(&carried)));
    }
    Ok(())
}

/// Whether what this extension makes will belong to the server's first superuser, with us being none.
/// (<https://www.postgresql.org/docs/current/extend-extensions.html#EXTEND-EXTENSIONS-FILES-TRUSTED>)
async fn makes_it_a_superusers(green: &Session, extension: &str) -> Result<bool> {
    let row = green
        .query_one(
            "select not (select rolsuper from pg_roles where rolname = current_user)
                    and not exists (select from pg_roles w where w.rolname = 'pg_write_all_data' and pg_has_role(w.oid, 'usage'))
                    and exists (select from pg_available_extensions a
                                join pg_available_extension_versions v on v.name = a.name and v.version = a.default_version
                                where a.name = $1 and v.superuser)",
            &[&extension],
        )
        .await?;
    Ok(row.get(0))
}

/// Carries them, all in one transaction, once the extensions are there.
///
/// # Errors
/// What either server says; then none of them is there.
pub async fn carry(port: &Port, copy: &Copy, source: Option<&Source>, green: &mut Session) -> Result<()> {
    if state::units(green, port.run, &port.step).await?.contains(CARRIED) {
        return Ok(());
    }
    // An older version's copy, whose rows are all there: it said that it leaves these behind.
    let Some(source) = source else { return Ok(()) };
    port.proceed()?;
    let blue = source.session();
    let mut done = Vec::new();
    let configs = configs(copy, blue).await?;
    let tx = green.transaction().await?;
    for config in configs {
        let (rows, sum) = config.sum(blue).await?;
        if rows == 0 {
            continue;
        }
        let carrying = |e: Error| {
            e.context(format!("carrying rows of {}, a table of the extension {}", config.name, config.extension))
            .or_hint(format!(
                "make room for them on {} (a newer version of an extension may bring rows or columns of its own), then `handover resume`; or `handover rollback`, name the table under `without_data`, and run again",
                copy.to
            ))
        };
        if config.sequence {
            let row = blue
                .query_one(&format!("select last_value, is_called from {}", config.name.sql()), &[])
                .await?;
            let (value, called): (i64, bool) = (row.get(0), row.get(1));
            tx.query("select setval(to_regclass($1), $2, $3)", &[&config.name.sql(), &value, &called])
                .await
                .map_err(carrying)?;
        } else {
            let read = format!("copy (select {} from {}) to stdout", config.list(), config.from());
            let write = format!("copy {} ({}) from stdin", config.name.sql(), config.list());
            let mut stream = pin!(blue.copy_out(&read).await?);
            let mut sink = pin!(tx.copy_in(&write).await.map_err(carrying)?);
            while let Some(piece) = stream.next().await {
                let piece: Bytes = piece.map_err(|e| blue.error(&e))?;
                sink.feed(piece).await.map_err(|e| carrying(tx.error(&e)))?;
            }
            sink.as_mut().finish().await.map_err(|e| carrying(tx.error(&e)))?;
        }
        done.push(Carried { config, rows, sum });
    }
    tx.save_checkpoint(port.run, &port.step, CARRIED, &done).await?;
    tx.commit().await
}

async fn carried(port: &Port, green: &Session) -> Result<Vec<Carried>> {
    let all = state::states::<Vec<Carried>>(green, port.run, &port.step, CARRIED).await?;
    Ok(all.into_iter().flatten().collect())
}

/// Proves that they are on green.
///
/// # Errors
/// A table whose rows are other ones.
pub async fn verify(port: &Port, green: &Session) -> Result<()> {
    for Carried { config, rows, sum } in carried(port, green).await? {
        let (there, other) = config.sum(green).await?;
        if (there, &other) != (rows, &sum) {
            let what = if config.sequence {
                format!("stands at {other}, and {sum} was carried")
            } else {
                format!("has {there} rows of users, and {rows} others were carried")
            };
            return Err(Error::data(format!("{} of the extension {} {what}", config.name, config.extension))
                .on_database(green.database())
                .hint("somebody writes to the target already: stop that, `handover rollback` to before the copy, and run again"));
        }
    }
    Ok(())
}

/// Takes them out of what was on green before the copy; what the copy made goes as a whole.
pub async fn discard(port: &Port, green: &mut Session) -> Result<()> {
    let mut left = carried(port, green).await?;
    left.reverse();
    let tx = green.transaction().await?;
    for Carried { config, .. } in left {
        let there = tx.query_one("select to_regclass($1) is not null", &[&config.name.sql()]).await?;
        if there.get::<_, bool>(0) && !config.sequence {
            tx.execute(&format!("delete from {}", config.from()), &[]).await?;
        }
    }
    tx.commit().await
}
