//! The publications of the side that is replicated.
//! (<https://www.postgresql.org/docs/current/sql-createpublication.html>)

use crate::emptied;
use crate::link::Link;
use crate::tables::tables;
use handover_copy::{Copy, roots};
use handover_core::error::{Class, Result};
use handover_port::Port;
use handover_postgres::ours::OURS;
use handover_postgres::{Session, TableName, quote_ident, quote_literal};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How long the locks for a publication may be waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// Tables that are published: for all their changes, and for their TRUNCATE alone.
struct Published {
    tables: BTreeSet<TableName>,
    emptied: BTreeSet<TableName>,
}

impl Published {
    async fn find(blue: &Session, copy: &Copy) -> Result<Self> {
        let roots = roots(blue, copy).await?;
        let tables = tables(blue, copy).await?.into_iter();
        let tables = tables.map(|table| roots.get(&table).cloned().unwrap_or(table)).collect();
        Ok(Published { tables, emptied: emptied::find(blue, copy).await?.tables })
    }

    /// What makes publications without tables.
    fn announcement(&self, port: &Port, link: &Link) -> Vec<String> {
        let about = format!("Handover: plan {}, step {}, run {}", port.plan, link.step, port.run);
        // Each table is published as itself, unless one above it is published.
        let kinds = ["publish_via_partition_root = true", "publish = 'truncate'"];
        let names = names(link, !self.emptied.is_empty());
        let each = |(name, kind): (String, &str)| {
            [
                format!("create publication {name} with ({kind})"),
                format!("comment on publication {name} is {}", quote_literal(&about)),
            ]
        };
        names.into_iter().zip(kinds).flat_map(each).collect()
    }

    /// What adds the tables to them, in one batch.
    fn addition(&self, link: &Link) -> String {
        let only = |tables: &BTreeSet<TableName>| -> Vec<String> {
            tables.iter().map(|table| format!("only {}", table.sql())).collect()
        };
        let mut lists = [only(&self.tables), only(&self.emptied)];
        lists[0].push(format!("{OURS}.replication_marker"));
        let named = names(link, !self.emptied.is_empty()).into_iter().zip(lists);
        let add = |(name, list): (String, Vec<String>)| {
            format!("alter publication {name} add table {}", list.join(", "))
        };
        named.map(add).collect::<Vec<_>>().join(";")
    }
}

/// What a link's publications are called, quoted for a statement; the second one where a TRUNCATE is published alone.
pub fn names(link: &Link, emptied: bool) -> Vec<String> {
    let second = emptied.then(|| emptied::publication(link));
    [link.name.clone()].into_iter().chain(second).map(|name| quote_ident(&name)).collect()
}

/// What takes a link's publications away.
pub fn removal(link: &Link) -> Vec<String> {
    names(link, true).into_iter().map(|name| format!("drop publication if exists {name}")).collect()
}

/// What is executed for the publications of a link, as things are now; and whether there is one for TRUNCATE alone.
pub async fn statements(
    port: &Port,
    blue: &Session,
    copy: &Copy,
    link: &Link,
) -> Result<(Vec<String>, bool)> {
    let published = Published::find(blue, copy).await?;
    let mut out = published.announcement(port, link);
    out.push(published.addition(link));
    Ok((out, !published.emptied.is_empty()))
}

/// Makes publications without tables.
pub async fn announce(port: &Port, copy: &Copy, link: &Link) -> Result<()> {
    let mut blue = port.writer(&link.from).await?;
    let published = Published::find(&blue, copy).await?;
    let tx = blue.transaction().await?;
    for sql in published.announcement(port, link) {
        tx.execute(&sql, &[]).await.map_err(|e| e.context("creating the publication"))?;
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
        let sql = Published::find(&blue, copy).await?.addition(link);
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
