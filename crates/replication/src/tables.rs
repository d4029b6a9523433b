//! Which tables are replicated.

use crate::link::Link;
use handover_copy::Copy;
use handover_core::error::Result;
use handover_postgres::catalog::application;
use handover_postgres::{Session, TableName};
use std::collections::BTreeSet;

/// Tables of the copy that can be published: those with rows of their own that are logged.
pub async fn tables(blue: &Session, copy: &Copy) -> Result<Vec<TableName>> {
    let rows = blue
        .query(
            &format!(
                "select n.nspname::text, c.relname::text from {} and c.relpersistence = 'p' order by 1, 2",
                application("'r'")
            ),
            &[],
        )
        .await?;
    let all = rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)));
    Ok(all.filter(|table| copy.takes_rows(table)).collect())
}

/// The tables that a link carries, as the publisher's catalog says; none before there is a publication.
pub async fn published(blue: &Session, link: &Link) -> Result<Option<BTreeSet<TableName>>> {
    let rows = blue
        .query(
            // With a table that is published for its partitions, these.
            "select distinct n.nspname::text, c.relname::text from pg_publication p
             join pg_publication_rel r on r.prpubid = p.oid
             cross join lateral (select r.prrelid union select relid from pg_partition_tree(r.prrelid)) t (oid)
             join pg_class c on c.oid = t.oid join pg_namespace n on n.oid = c.relnamespace where p.pubname = $1",
            &[&link.name],
        )
        .await?;
    if !rows.is_empty() {
        let names = rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)));
        return Ok(Some(names.collect()));
    }
    Ok(None)
}
