//! Tables that a captured table's foreign keys write to.
//!
//! A delete or a changed key of a row goes on into the rows that refer to it, as the foreign key says. Those are
//! writes to another table: nobody captures them unless it is captured too.

use super::options::Capture;
use crate::trigger::Operation;
use handover_core::error::Result;
use handover_postgres::{Session, TableName};
use std::collections::{BTreeMap, BTreeSet};

/// Tables into which writes cascade that the capture does not see there, each with what is missing, in words.
pub async fn unseen(session: &Session, capture: &Capture) -> Result<Vec<String>> {
    let mut missing: BTreeMap<TableName, (BTreeSet<Operation>, BTreeSet<String>)> = BTreeMap::new();
    let mut known: BTreeSet<TableName> = capture.tables.keys().cloned().collect();
    let mut open: Vec<TableName> = known.iter().cloned().collect();
    while let Some(parent) = open.pop() {
        let rows = session
            .query(
                "select cn.nspname::text, c.relname::text, k.confdeltype::text, k.confupdtype::text
                 from pg_constraint k join pg_class c on c.oid = k.conrelid join pg_namespace cn on cn.oid = c.relnamespace
                 join pg_class p on p.oid = k.confrelid join pg_namespace pn on pn.oid = p.relnamespace
                 where k.contype = 'f' and k.conparentid = 0 and pn.nspname = $1 and p.relname = $2
                 order by 1, 2",
                &[&parent.schema, &parent.name],
            )
            .await?;
        for row in rows {
            let child = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
            let (deleted, updated): (&str, &str) = (row.get(2), row.get(3));
            for operation in cascade(deleted, updated) {
                if capture.tables.get(&child).is_none_or(|table| !table.on.contains(&operation)) {
                    let entry = missing.entry(child.clone()).or_default();
                    entry.0.insert(operation);
                    entry.1.insert(parent.to_string());
                }
            }
            if deleted == "c" && known.insert(child.clone()) {
                open.push(child);
            }
        }
    }
    Ok(missing
        .into_iter()
        .map(|(child, (operations, parents))| {
            let list: Vec<&str> = operations.iter().map(|operation| operation.as_str()).collect();
            let parents: Vec<String> = parents.into_iter().collect();
            format!(
                "foreign keys to {} write to {child} ({} there), and this step does not capture that: add `{child}: {{ on: \
                 [insert, update, delete] }}`, unless the same foreign key does it again where events are applied",
                parents.join(" and "),
                list.join(" and ")
            )
        })
        .collect())
}

/// What a foreign key's actions (`confdeltype`, `confupdtype`) do to the rows that refer.
fn cascade(deleted: &str, updated: &str) -> BTreeSet<Operation> {
    let mut out = BTreeSet::new();
    match deleted {
        "c" => drop(out.insert(Operation::Delete)),
        "n" | "d" => drop(out.insert(Operation::Update)),
        _ => {}
    }
    if matches!(updated, "c" | "n" | "d") {
        out.insert(Operation::Update);
    }
    out
}
