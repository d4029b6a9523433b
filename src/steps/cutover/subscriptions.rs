//! A side that itself subscribes to somebody: what its apply worker writes meets no statement trigger, so it would go on writing
//! after the decision to leave it, and the other side would lack it.

use super::freeze;
use super::options::Cutover;
use crate::error::Result;
use crate::postgres::{Session, TableName, quote_ident};
use crate::problem::few;
use std::collections::BTreeSet;

/// Enabled subscriptions of the side that is left, which write to tables that are frozen then, in words; with what to do.
pub async fn writing(session: &Session, cutover: &Cutover) -> Result<Option<String>> {
    // These columns of the catalog are open to everybody.
    let rows = session
        .query(
            "select s.subname::text, n.nspname::text, c.relname::text
             from pg_subscription s join pg_database d on d.oid = s.subdbid
             -- Before Postgres 14 only the view tells the number of a subscription.
             join (select distinct subid, subname from pg_stat_subscription) v on v.subname = s.subname
             join pg_subscription_rel r on r.srsubid = v.subid
             join pg_class c on c.oid = r.srrelid join pg_namespace n on n.oid = c.relnamespace
             where s.subenabled and d.datname = current_database() order by 1, 2, 3",
            &[],
        )
        .await?;
    if rows.is_empty() {
        return Ok(None);
    }
    let frozen: BTreeSet<TableName> = freeze::tables(session, cutover).await?.into_iter().collect();
    let (mut names, mut tables) = (BTreeSet::new(), Vec::new());
    for row in &rows {
        let table = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
        if frozen.contains(&table) {
            names.insert(row.get::<_, String>(0));
            tables.push(table);
        }
    }
    let Some(first) = names.iter().next() else { return Ok(None) };
    let named: Vec<&String> = names.iter().collect();
    let on = session.database();
    Ok(Some(format!(
        "{on} itself subscribes to another database ({}), whose changes of {} would go on being written to {on} behind the cutover, and be lost: let the other side subscribe in its place, then `alter subscription {} disable` on {on} (or list these tables under `except:`)",
        few(&named),
        few(&tables),
        quote_ident(first)
    )))
}
