//! Rows whose writer a snapshot does not show.
//!
//! A row tells who wrote its present version (`xmin`), by the lower half of a number of 64 bits. No writer is of the future,
//! which gives the upper half.
//! (<https://www.postgresql.org/docs/current/ddl-system-columns.html>)

/// The condition that a row of `t` was inserted or updated by a transaction that a snapshot, an expression, does not show as
/// visible. Where the next transaction stands is asked once for a statement, and not for each row.
#[must_use]
pub fn than(snapshot: &str) -> String {
    let xid = "t.xmin::text::bigint";
    let next = "(select pg_snapshot_xmax(pg_current_snapshot())::text::bigint)";
    format!(
        "({xid} >= 3 and not pg_visible_in_snapshot(
             (case when {xid} > ({next} & 4294967295) then ({next} >> 32) - 1 else {next} >> 32 end << 32 | {xid})::text::xid8,
             {snapshot}))"
    )
}
