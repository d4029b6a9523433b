//! TRUNCATE of a table takes those that refer to it along, and a subscriber cannot do the one without the others. Those
//! that are not followed, because their rows are not copied, are published for their TRUNCATE alone.
//! (<https://www.postgresql.org/docs/current/sql-createpublication.html#SQL-CREATEPUBLICATION-PARAMS-WITH-PUBLISH>)

use crate::link::Link;
use crate::options::Replicate;
use crate::tables::tables;
use handover_copy::Copy;
use handover_core::error::Result;
use handover_core::problem::few;
use handover_port::Description;
use handover_postgres::{Session, TableName};
use std::collections::BTreeSet;

/// The publication of a link that carries nothing but TRUNCATE.
#[must_use]
pub fn publication(link: &Link) -> String {
    format!("{}_truncate", link.name)
}

/// Tables without rows on the target that refer to tables which are followed.
#[derive(Debug, Default)]
pub struct Found {
    /// Those whose TRUNCATE can be published.
    pub tables: BTreeSet<TableName>,
    /// Those that are unlogged, with what they refer to.
    pub unlogged: BTreeSet<String>,
}

/// Looks for them.
pub async fn find(blue: &Session, copy: &Copy) -> Result<Found> {
    let rows = blue
        .query(
            "select n.nspname::text, c.relname::text, c.relpersistence = 'p' and c.relkind = 'r', c.relpersistence = 'u',
                    fn.nspname::text, f.relname::text
             from pg_constraint k join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace
             join pg_class f on f.oid = k.confrelid join pg_namespace fn on fn.oid = f.relnamespace
             where k.contype = 'f' and k.conrelid <> k.confrelid",
            &[],
        )
        .await?;
    let mut out = Found::default();
    let followed: BTreeSet<TableName> = tables(blue, copy).await?.into_iter().collect();
    let roots = handover_copy::roots(blue, copy).await?;
    let mut reached: BTreeSet<TableName> = followed.iter().cloned().chain(roots.into_values()).collect();
    // What refers to what refers to them: until nothing more is found.
    loop {
        let before = reached.len();
        for row in &rows {
            let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
            let other = TableName::new(row.get::<_, String>(4), row.get::<_, String>(5));
            if !reached.contains(&other) || followed.contains(&table) || !copy.takes(&table) {
                continue;
            }
            if row.get(2) {
                out.tables.insert(table.clone());
            } else if row.get(3) {
                out.unlogged.insert(format!("{table} to {other}"));
            }
            reached.insert(table);
        }
        if reached.len() == before {
            return Ok(out);
        }
    }
}

/// Says what is done about them.
pub async fn look(replicate: &Replicate, copy: &Copy, blue: &Session, out: &mut Description) -> Result<()> {
    let found = find(blue, copy).await?;
    if !found.tables.is_empty() {
        let tables: Vec<&TableName> = found.tables.iter().collect();
        out.action(format!(
            "publish TRUNCATE, and nothing else, of {}: they refer to tables that are followed",
            few(&tables)
        ));
    }
    if !found.unlogged.is_empty() {
        let unlogged: Vec<&String> = found.unlogged.iter().collect();
        out.warning(format!(
            "unlogged tables cannot be followed, and while they refer to others, a TRUNCATE of those cannot be applied on {} and stops the replication: {}; truncate nothing there until the cutover, or leave the unlogged tables out of the copy",
            replicate.to,
            few(&unlogged)
        ));
    }
    Ok(())
}
