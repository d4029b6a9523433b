//! What of the new side would not come back to the old one: tables and columns that differ, other streams, large objects.
//! Asked before the flip, and again before the way back is taken.

use super::options::Cutover;
use super::stream::Stream;
use crate::error::Result;
use crate::postgres::{Session, TableName, catalog};
use crate::problem::few;
use handover_copy::{Copy, LargeObjects};
use std::collections::{BTreeMap, BTreeSet};

/// What of the new side would not come back as things are, in words: tables and columns, other streams, large objects.
/// Asked before the flip, and again before the way back is taken.
///
/// # Errors
/// What a server says.
pub async fn differences(
    cutover: &Cutover,
    stream: &Stream,
    blue: &Session,
    green: &Session,
) -> Result<Vec<String>> {
    let Stream { replicate, copy, link } = stream;
    let mut out = Vec::new();
    let named = |table: &TableName| {
        cutover.reverse.as_ref().is_some_and(|reverse| reverse.loses.contains(table))
            || cutover.except.contains(table)
    };
    let published = handover_replication::published(green, link).await?;
    let (there, here) = (columns(green).await?, columns(blue).await?);
    let carried = |table: &TableName, columns: &Columns| {
        columns.logged
            && match &published {
                Some(published) => published.contains(table),
                None => copy.takes_rows(table),
            }
    };
    let (carries, rest): (Vec<_>, Vec<_>) =
        there.iter().partition(|(table, columns)| carried(table, columns));
    let uncarried: Vec<&TableName> = rest.into_iter().map(|(table, _)| table).filter(|t| !named(t)).collect();
    if !uncarried.is_empty() {
        out.push(format!(
            "the stream back does not carry {}: name them under `reverse:` `loses:` if a rollback may lose what is written to them",
            few(&uncarried)
        ));
    }
    let mut lacking = Vec::new();
    for (table, columns) in carries {
        match here.get(table) {
            None => lacking.push(format!("{} lacks table {table}", replicate.to)),
            Some(known) => {
                lacking.extend(
                    columns
                        .all
                        .difference(&known.all)
                        .map(|c| format!("{} lacks column {table}.{c}", replicate.to)),
                );
                lacking.extend(known.required.difference(&columns.all).map(|c| {
                    format!("{} lacks column {table}.{c}, which {} needs", replicate.from, replicate.to)
                }));
            }
        }
    }
    if !lacking.is_empty() {
        out.push(format!(
            "the stream back could not apply rows of another schema: {}; leave `reverse:` out, or name the tables under its `loses:`",
            few(&lacking.iter().collect::<Vec<_>>())
        ));
    }
    // What comes to the new side from elsewhere is not its own, and goes nowhere.
    let rows = green
        .query(
            "select s.subname::text from pg_subscription s join pg_database d on d.oid = s.subdbid
             where d.datname = current_database() and s.subenabled and not starts_with(s.subname::text, 'handover_')
             order by 1",
            &[],
        )
        .await?;
    let others: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    if !others.is_empty() {
        out.push(format!(
            "{} subscribes to another database ({}), and what comes from there would not go back to {}: disable it, or leave `reverse:` out",
            replicate.from,
            few(&others.iter().collect::<Vec<_>>()),
            replicate.to
        ));
    }
    out.extend(large_objects(copy, [blue, green]).await?);
    Ok(out)
}

/// Large objects of either side, which nothing carries back, in words.
///
/// # Errors
/// What a server says.
pub async fn large_objects(copy: &Copy, sides: [&Session; 2]) -> Result<Option<String>> {
    if copy.large_objects == LargeObjects::Skip {
        return Ok(None);
    }
    for session in sides {
        let row = session.query_one("select count(*) from pg_largeobject_metadata", &[]).await?;
        if row.get::<_, i64>(0) > 0 {
            return Ok(Some(format!(
                "{} has large objects, which nothing carries back: leave `reverse:` out, or say `large_objects: skip` in the copy",
                session.database()
            )));
        }
    }
    Ok(None)
}

/// Tables with triggers of the application's that fire for what a subscription applies.
pub async fn firing(session: &Session) -> Result<Vec<TableName>> {
    let sql = format!(
        "select distinct n.nspname::text, c.relname::text from {}
         and exists (select from pg_trigger t join pg_proc p on p.oid = t.tgfoid
                     join pg_namespace pn on pn.oid = p.pronamespace
                     where t.tgrelid = c.oid and t.tgenabled in ('A', 'R') and not t.tgisinternal and not ({}))
         order by 1, 2",
        catalog::application("'r', 'p'"),
        catalog::is_ours("pn")
    );
    let rows = session.query(&sql, &[]).await?;
    Ok(rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect())
}

/// A table's columns that a stream carries.
struct Columns {
    all: BTreeSet<String>,
    /// Those that a row must have a value for.
    required: BTreeSet<String>,
    /// Whether changes of its rows are in the log.
    logged: bool,
}

/// The application's tables with their columns.
async fn columns(session: &Session) -> Result<BTreeMap<TableName, Columns>> {
    let sql = format!(
        "select n.nspname::text, c.relname::text, c.relpersistence = 'p',
                array(select a.attname::text from pg_attribute a
                      where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''),
                array(select a.attname::text from pg_attribute a
                      where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
                        and a.attnotnull and not a.atthasdef and a.attidentity = '')
         from {}",
        catalog::application("'r'")
    );
    let rows = session.query(&sql, &[]).await?;
    let named = rows.iter().map(|row| {
        let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let set = |at: usize| row.get::<_, Vec<String>>(at).into_iter().collect();
        (table, Columns { logged: row.get(2), all: set(3), required: set(4) })
    });
    Ok(named.collect())
}
