//! What a copy made on green, and taking exactly that away again.

use crate::state::{Created, State};
use crate::{catalog, extensions, large_objects, rights, state};
use handover_core::error::{Error, Result};
use handover_core::failpoint;
use handover_port::Port;
use handover_port::Turns;
use handover_postgres::ours::OURS;
use handover_postgres::{Session, Tx};
use std::collections::BTreeSet;
use std::time::Duration;

/// How long an attempt to drop an object waits for who uses it.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Objects on green now, before the copy makes any.
pub async fn existing(tx: &Tx<'_>) -> Result<Vec<(u32, u32)>> {
    let rows = tx.query(&catalog::objects("true"), &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Writes down, in the transaction that made them, the objects it made: catalog rows written by it that were
/// not there before (an ALTER rewrites a row too).
pub async fn record(tx: &Tx<'_>, port: &Port, before: &[(u32, u32)], unit: &str) -> Result<()> {
    let rows = tx.query(&catalog::objects("o.xmin = pg_current_xact_id()::xid"), &[]).await?;
    let objects: Vec<(u32, u32)> =
        rows.iter().map(|row| (row.get(0), row.get(1))).filter(|o| !before.contains(o)).collect();
    tx.save_checkpoint(port.run, &port.step, &format!("created:{unit}"), &Created { objects }).await
}

/// Drops everything that the copy made, then forgets its checkpoints. Can be interrupted and called again.
/// `given_up`: whatever else came after it too, because a later step left the database to be emptied, and wrote that down
/// under this unit, which is forgotten last.
///
/// # Errors
/// What the server says; a schema of ours in which others have made something.
pub async fn discard(port: &Port, session: &mut Session, given_up: Option<&str>) -> Result<u64> {
    let state = state::load(session, port.run, &port.step).await?;
    let begun = state.is_some();
    let before: BTreeSet<(u32, u32)> =
        state.map(|s: State| s.existing.into_iter().collect()).unwrap_or_default();
    let mut ours = BTreeSet::new();
    for created in state::states::<Created>(session, port.run, &port.step, "created:").await? {
        ours.extend(created.objects);
    }
    let all = given_up.is_some();
    if all && begun {
        ours.extend(others(session).await?);
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
            port.proceed()?;
            let object: (u32, u32) = (row.get(0), row.get(1));
            if before.contains(&object) {
                continue;
            }
            let mut turns = Turns::new("dropping what the copy made");
            let gone = loop {
                match drop_object(session, object, schemas && !all).await {
                    Ok(gone) => break gone,
                    Err(error) => turns.again(port, error).await?,
                }
            };
            if gone {
                dropped += 1;
                failpoint::at(failpoint::COPY_UNDO_DROPPED)?;
            }
        }
    }
    extensions::discard(port, session).await?;
    dropped += large_objects::discard(port, session).await?;
    rights::restore(port, session).await?;
    let tx = session.transaction().await?;
    // What was set aside is still on the source.
    let sql = &format!("delete from {OURS}.archive where run = $1 and step = $2");
    tx.execute(sql, &[&port.run.0, &port.step.as_str()]).await?;
    tx.forget_checkpoints(port.run, &port.step).await?;
    if let Some(unit) = given_up {
        let sql = format!("delete from {OURS}.checkpoint where run = $1 and unit = $2");
        tx.execute(&sql, &[&port.run.0, &unit]).await?;
    }
    tx.commit().await?;
    Ok(dropped)
}

/// Everything that is not Handover's own.
async fn others(session: &Session) -> Result<Vec<(u32, u32)>> {
    let sql = format!(
        "select o.class, o.id from ({}) as o (class, id)
         cross join lateral pg_catalog.pg_identify_object(o.class, o.id, 0) i
         where case when o.class = 'pg_catalog.pg_namespace'::regclass then i.name else coalesce(i.schema, '') end
               not in ('{OURS}', '{OURS}_queue')",
        catalog::objects("true")
    );
    Ok(session.query(&sql, &[]).await?.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Drops one object, with what hangs on it unless it is `alone`, if it is still there.
async fn drop_object(session: &mut Session, object: (u32, u32), alone: bool) -> Result<bool> {
    let tx = session.transaction().await?;
    // pg_identify_object gives nulls, or on old servers an error, for what is gone.
    let there = tx
        .query_opt(
            &format!(
                "select i.type, i.identity,
                        -- An aggregate over everything is named by a star, what is overloaded by what it gives
                        -- back by that too, and a transform otherwise than it is described. IF EXISTS stands
                        -- after the first word.
                        (select pg_catalog.format('%s %I.%I(%s)',
                                case p.prokind when 'a' then 'aggregate' when 'p' then 'procedure' else 'function' end,
                                n.nspname, p.proname,
                                case when p.prokind = 'a' and p.pronargs = 0 then '*'
                                     else pg_catalog.pg_get_function_identity_arguments(p.oid) end)
                         from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
                         where o.class = 'pg_catalog.pg_proc'::regclass and p.oid = o.id
                         union all
                         select pg_catalog.format('transform for %s language %I', t.trftype::pg_catalog.regtype, l.lanname)
                         from pg_catalog.pg_transform t join pg_catalog.pg_language l on l.oid = t.trflang
                         where o.class = 'pg_catalog.pg_transform'::regclass and t.oid = o.id)
                 from ({}) as o (class, id)
                 cross join lateral pg_catalog.pg_identify_object(o.class, o.id, 0) i
                 where o.class = $1 and o.id = $2",
                catalog::objects("true")
            ),
            &[&object.0, &object.1],
        )
        .await?;
    let Some(row) = there else { return tx.rollback().await.map(|()| false) };
    let (kind, identity): (String, String) = (row.get(0), row.get(1));
    let words = match row.get::<_, Option<String>>(2) {
        Some(words) => match words.split_once(' ') {
            Some((kind, name)) => format!("drop {kind} if exists {name}"),
            None => return Err(Error::internal(format!("an object without a name: {words}"))),
        },
        None if kind == "composite type" => format!("drop type if exists {identity}"),
        None => format!("drop {} if exists {identity}", kind.replace('-', " ")),
    };
    let cascade = if alone { "" } else { " cascade" };
    tx.wait_for_locks(LOCK_TIMEOUT).await?;
    let result = tx.batch(&format!("{words}{cascade}")).await;
    if let Err(e) = result {
        let e = e.context(words);
        return Err(if alone {
            e.or_hint(
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
pub async fn strangers(session: &Session) -> Result<Vec<String>> {
    let rows = session.query(&catalog::relations("'r', 'p', 'v', 'm', 'S', 'f'"), &[]).await?;
    let objects: i64 = session.query_one("select count(*) from pg_largeobject_metadata", &[]).await?.get(0);
    let objects = (objects > 0).then(|| format!("{objects} large objects"));
    Ok(rows
        .iter()
        .map(|row| {
            handover_postgres::TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)).to_string()
        })
        .chain(objects)
        .collect())
}
