//! The publications of the side that is replicated.
//! (<https://www.postgresql.org/docs/current/sql-createpublication.html>)

use crate::emptied;
use crate::link::Link;
use crate::tables::tables;
use handover_copy::{Copy, roots};
use handover_core::error::{Class, Error, Result};
use handover_port::Port;
use handover_postgres::ours::OURS;
use handover_postgres::{TableName, quote_ident, quote_literal};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How long the locks for a publication may be waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// Makes publications without tables.
pub async fn announce(port: &Port, copy: &Copy, link: &Link) -> Result<()> {
    let mut blue = port.writer(&link.from).await?;
    let emptied = emptied::find(&blue, copy).await?;
    let name = quote_ident(&link.name);
    let about = format!("Handover: plan {}, step {}, run {}", port.plan, link.step, port.run);
    let tx = blue.transaction().await?;
    let failed = |e: Error| e.context("creating the publication");
    // Each table is published as itself, unless one above it is published.
    let sql = format!("create publication {name} with (publish_via_partition_root = true)");
    tx.execute(&sql, &[]).await.map_err(failed)?;
    tx.execute(&format!("comment on publication {name} is {}", quote_literal(&about)), &[]).await?;
    if !emptied.tables.is_empty() {
        let name = quote_ident(&emptied::publication(link));
        let sql = format!("create publication {name} with (publish = 'truncate')");
        tx.execute(&sql, &[]).await.map_err(failed)?;
        tx.execute(&format!("comment on publication {name} is {}", quote_literal(&about)), &[]).await?;
    }
    tx.commit().await
}

/// Adds the tables to it.
pub async fn publish(port: &Port, copy: &Copy, link: &Link) -> Result<()> {
    let mut blue = port.writer(&link.from).await?;
    blue.wait_for_locks(Duration::from_secs(2)).await?;
    let begun = Instant::now();
    loop {
        port.proceed()?;
        let roots = roots(&blue, copy).await?;
        let tables = tables(&blue, copy).await?;
        let tables: BTreeSet<&TableName> = tables.iter().map(|t| roots.get(t).unwrap_or(t)).collect();
        let mut list: Vec<String> = tables.iter().map(|t| format!("only {}", t.sql())).collect();
        list.push(format!("{OURS}.replication_marker"));
        let mut sql = format!("alter publication {} add table {};", quote_ident(&link.name), list.join(", "));
        let emptied = emptied::find(&blue, copy).await?.tables;
        if !emptied.is_empty() {
            let list: Vec<String> = emptied.iter().map(|t| format!("only {}", t.sql())).collect();
            let name = quote_ident(&emptied::publication(link));
            sql.push_str(&format!("alter publication {name} add table {}", list.join(", ")));
        }
        let tx = blue.transaction().await?;
        match tx.batch(&sql).await {
            Ok(()) => return tx.commit().await,
            // A table that is altered, vacuumed or gone since we looked.
            Err(e)
                if (e.class() == Class::Contention || e.message().contains("42P01"))
                    && begun.elapsed() < PATIENCE =>
            {
                tx.rollback().await?;
                port.sleep(Duration::from_millis(500)).await?;
            }
            Err(e) => return Err(e.context("publishing the tables")),
        }
    }
}

/// The publications of a link that are there, quoted for a statement.
pub async fn publications(port: &Port, link: &Link) -> Result<Vec<String>> {
    let blue = port.databases.labelled(port.step.as_str()).read_only(&link.from).await?;
    let sql = "select pubname::text from pg_publication where pubname in ($1, $2) order by pubname";
    let rows = blue.query(sql, &[&link.name, &emptied::publication(link)]).await?;
    Ok(rows.iter().map(|row| quote_ident(&row.get::<_, String>(0))).collect())
}
