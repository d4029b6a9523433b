//! Carries the positions of sequences over: they are in no captured row.

use crate::error::Result;
use crate::postgres::{Session, TableName};

/// Sets each sequence of the new side that the old side has too, never backwards. Called while writers are held
/// off, so that no value can be drawn between the look and the decision. Returns how many were moved.
pub async fn carry(blue: &Session, green: &mut Session) -> Result<usize> {
    let rows = blue
        .query(
            "select schemaname::text, sequencename::text, last_value, increment_by > 0 from pg_sequences
             where schemaname not in ('handover', 'handover_queue') and last_value is not null
             order by 1, 2",
            &[],
        )
        .await?;
    let mut moved = 0;
    let tx = green.transaction().await?;
    for row in rows {
        let name = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)).sql();
        let (last, rising): (i64, bool) = (row.get(2), row.get(3));
        let further = if rising { "greatest" } else { "least" };
        // One that a migration of the new side dropped or renamed is none of ours.
        let set = tx
            .query_opt(
                &format!(
                    "select setval(c.oid::regclass, {further}(coalesce(s.last_value, $2), $2))
                     from pg_class c join pg_namespace n on n.oid = c.relnamespace
                     join pg_sequences s on s.schemaname = n.nspname and s.sequencename = c.relname
                     where c.relkind = 'S' and c.oid = to_regclass($1)"
                ),
                &[&name, &last],
            )
            .await?;
        moved += usize::from(set.is_some());
    }
    tx.commit().await?;
    Ok(moved)
}
