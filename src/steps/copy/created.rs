//! What a copy made on green, and taking exactly that away again.

use super::state::{Created, State};
use super::{catalog, large_objects, rights, state};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::postgres::{Session, Tx};
use crate::steps::Context;
use std::collections::BTreeSet;

/// Objects on green now, before the copy makes any.
///
/// # Errors
/// What the server says.
pub async fn existing(tx: &Tx<'_>) -> Result<Vec<(u32, u32)>> {
    let rows = tx.query(&catalog::objects("true"), &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Writes down, in the transaction that made them, the objects it made: catalog rows written by it that were
/// not there before (an ALTER rewrites a row too).
///
/// # Errors
/// What the server says.
pub async fn record(tx: &Tx<'_>, cx: &Context, before: &[(u32, u32)], unit: &str) -> Result<()> {
    let rows = tx.query(&catalog::objects("o.xmin = pg_current_xact_id()::xid"), &[]).await?;
    let objects: Vec<(u32, u32)> =
        rows.iter().map(|row| (row.get(0), row.get(1))).filter(|o| !before.contains(o)).collect();
    tx.save_checkpoint(cx.run, &cx.step, &format!("created:{unit}"), &Created { objects }).await
}

/// Drops everything that the copy made, then forgets its checkpoints. Can be interrupted and called again.
///
/// # Errors
/// What the server says; a schema of ours in which others have made something.
pub async fn discard(cx: &Context, session: &mut Session) -> Result<u64> {
    session.set("statement_timeout", "0").await?;
    session.set("lock_timeout", "30s").await?;
    // Names in full, whatever the search path.
    session.set("search_path", "").await?;
    let before: BTreeSet<(u32, u32)> = state::load(session, cx.run, &cx.step)
        .await?
        .map(|s: State| s.existing.into_iter().collect())
        .unwrap_or_default();
    let mut ours = BTreeSet::new();
    for created in state::states::<Created>(session, cx.run, &cx.step, "created:").await? {
        ours.extend(created.objects);
    }
    let mut dropped = 0;
    // Schemas last and without CASCADE: what others put there is not ours to drop.
    for schemas in [false, true] {
        let rows = session
            .query(
                "select o.class, o.oid from unnest($1::oid[], $2::oid[]) as o (class, oid)
                 where (o.class = 'pg_catalog.pg_namespace'::regclass) = $3
                 order by o.class = 'pg_catalog.pg_event_trigger'::regclass desc, o.class = 'pg_catalog.pg_class'::regclass desc, o.oid desc",
                &[
                    &ours.iter().map(|o| o.0).collect::<Vec<u32>>(),
                    &ours.iter().map(|o| o.1).collect::<Vec<u32>>(),
                    &schemas,
                ],
            )
            .await?;
        for row in rows {
            cx.proceed()?;
            let object: (u32, u32) = (row.get(0), row.get(1));
            if before.contains(&object) {
                continue;
            }
            if drop_object(session, object, schemas).await? {
                dropped += 1;
                failpoint::at(failpoint::COPY_UNDO_DROPPED)?;
            }
        }
    }
    dropped += large_objects::discard(cx, session).await?;
    rights::restore(cx, session).await?;
    let tx = session.transaction().await?;
    tx.forget_checkpoints(cx.run, &cx.step).await?;
    tx.commit().await?;
    Ok(dropped)
}

/// Drops one object with what hangs on it, if it is still there.
async fn drop_object(session: &mut Session, object: (u32, u32), schema: bool) -> Result<bool> {
    let tx = session.transaction().await?;
    // pg_identify_object gives nulls, or on old servers an error, for what is gone.
    let there = tx
        .query_opt(
            &format!(
                "select i.type, i.identity from ({}) as o (class, id)
                 cross join lateral pg_catalog.pg_identify_object(o.class, o.id, 0) i
                 where o.class = $1 and o.id = $2",
                catalog::objects("true")
            ),
            &[&object.0, &object.1],
        )
        .await?;
    let Some(row) = there else { return tx.rollback().await.map(|()| false) };
    let (kind, identity): (String, String) = (row.get(0), row.get(1));
    let kind = match kind.as_str() {
        "composite type" => "type".to_owned(),
        other => other.replace('-', " "),
    };
    let cascade = if schema { "" } else { " cascade" };
    let result = tx.batch(&format!("drop {kind} if exists {identity}{cascade}")).await;
    if let Err(e) = result {
        let e = e.context(format!("dropping {kind} {identity}"));
        return Err(if schema {
            e.hint(
                "something that the copy did not make lives in that schema: move or drop it, then try again",
            )
        } else {
            e
        });
    }
    tx.commit().await?;
    Ok(true)
}

/// Refuses unless green holds no tables, views or sequences of anybody's.
///
/// # Errors
/// The first few that are there.
pub async fn assert_empty(session: &Session) -> Result<()> {
    let found = strangers(session).await?;
    if found.is_empty() {
        return Ok(());
    }
    let shown: Vec<&str> = found.iter().take(5).map(String::as_str).collect();
    Err(Error::data(format!(
        "the target is not empty: it has {} tables, views, sequences or large objects, such as {}",
        found.len(),
        shown.join(", ")
    ))
    .on_database(session.database())
    .hint("copy into a new database (see that the URLs are not swapped); nothing was changed"))
}

/// Names of user relations on green.
///
/// # Errors
/// What the server says.
pub async fn strangers(session: &Session) -> Result<Vec<String>> {
    let rows = session.query(&catalog::relations("'r', 'p', 'v', 'm', 'S', 'f'"), &[]).await?;
    let objects: i64 = session.query_one("select count(*) from pg_largeobject_metadata", &[]).await?.get(0);
    let objects = (objects > 0).then(|| format!("{objects} large objects"));
    Ok(rows
        .iter()
        .map(|row| {
            crate::postgres::TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)).to_string()
        })
        .chain(objects)
        .collect())
}
