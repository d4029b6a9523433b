//! Carries the positions of sequences over: they are in no captured row.
//!
//! Two statements, whatever the number of sequences: `pg_sequences` evaluates all of them for each look.

use crate::error::{Class, Error, Result};
use crate::postgres::{Session, TableName, catalog};
use crate::problem::few;

/// The part of what a sequence has left that the margin may take at most: a `smallint` that is nearly used up must not
/// run out because of us.
const SHARE: &str = "100";

/// Where one side's sequences stand.
struct Positions {
    schemas: Vec<String>,
    names: Vec<String>,
    last: Vec<i64>,
}

/// Sequences that were never called have no position, and are left alone; those that `role` may not read look the same
/// in `pg_sequences`, and are an error here.
async fn positions(session: &Session, role: &str) -> Result<Positions> {
    let sql = format!(
        "select n.nspname::text, c.relname::text,
                case when has_sequence_privilege(c.oid, 'usage, select') then pg_sequence_last_value(c.oid) end,
                {}
         from {}",
        may("'usage, select'", "$1"),
        catalog::application("'S'")
    );
    let (mut out, mut closed) = (Positions { schemas: vec![], names: vec![], last: vec![] }, Vec::new());
    for row in session.query(&sql, &[&role]).await? {
        let (schema, name): (String, String) = (row.get(0), row.get(1));
        if !row.get::<_, bool>(3) {
            closed.push(TableName::new(schema, name));
        } else if let Some(last) = row.get(2) {
            out.schemas.push(schema);
            out.names.push(name);
            out.last.push(last);
        }
    }
    if closed.is_empty() { Ok(out) } else { Err(unreadable(session.database(), &closed)) }
}

/// Whether a role has a right to the sequence `c`. One that only a pooler knows is the pooler's to judge.
fn may(right: &str, role: &str) -> String {
    format!(
        "coalesce(has_sequence_privilege((select rolname from pg_roles where rolname = {role}), c.oid, {right}), true)"
    )
}

fn unreadable(database: &str, closed: &[TableName]) -> Error {
    let first = closed.first().map(TableName::sql).unwrap_or_default();
    Error::new(Class::Privilege, unreadable_text(closed)).on_database(database).hint(format!(
        "run scripts/grants.sql there, or `grant select on sequence {first} to …`, and so on, to the role of the plan; values they gave out would be given out again by the new side"
    ))
}

fn unreadable_text(closed: &[TableName]) -> String {
    format!("no right to read the sequences {}", few(closed))
}

/// The new side's sequences that the old side's positions are for, with where each is to stand: the old side's position
/// and a margin, never behind where it is, and never further than a share of what is left. One that a migration of
/// the new side dropped or renamed is none of ours.
///
/// Parameters: schemas, names, positions, margin in steps of the increment, the role that sets them.
fn targets() -> String {
    format!(
        "select c.oid, q.target, q.here, q.open, b.last, p.seqmin, p.seqmax, p.seqincrement > 0 as rising, n.nspname, c.relname
         from unnest($1::text[], $2::text[], $3::int8[]) b (schema, name, last)
         join pg_namespace n on n.nspname = b.schema
         join pg_class c on c.relnamespace = n.oid and c.relname = b.name and c.relkind = 'S'
         join pg_sequence p on p.seqrelid = c.oid
         cross join lateral (select
             {} and {} as open,
             case when has_sequence_privilege(c.oid, 'usage, select') then pg_sequence_last_value(c.oid) end as here,
             (b.last + p.seqincrement * greatest(0, least($4::int8::numeric, trunc(
                  (case when p.seqincrement > 0 then p.seqmax else p.seqmin end - b.last::numeric)
                  / p.seqincrement / {SHARE}))))::int8 as target) q",
        may("'usage, select'", "$5"),
        may("'update'", "$5")
    )
}

/// Sets each sequence of the new side that the old side has too, never backwards. Called while writers are held
/// off: a value that is drawn without a write to a table can still be given out between the look and the flip, which
/// the margin is for. Returns how many there are.
///
/// # Errors
/// Sequences that cannot be read or set.
pub async fn carry(blue: &Session, green: &mut Session, margin: u32) -> Result<usize> {
    let role: String = blue.query_one("select current_user::text", &[]).await?.get(0);
    let from = positions(blue, &role).await?;
    let tx = green.transaction().await?;
    let sql = format!(
        "select count(*), count(*) filter (where not t.open),
                count(case when t.open and (t.here is null or case when t.rising then t.here < t.target else t.here > t.target end)
                      then setval(t.oid::regclass, t.target) end)
         from ({}) t",
        targets()
    );
    let role: String = tx.query_one("select current_user::text", &[]).await?.get(0);
    let row =
        tx.query_one(&sql, &[&from.schemas, &from.names, &from.last, &i64::from(margin), &role]).await?;
    if row.get::<_, i64>(1) > 0 {
        return Err(Error::new(Class::Privilege, "no right to read and set every sequence")
            .on_database(tx.database())
            .hint("run scripts/grants.sql there; `handover resume` names them"));
    }
    tx.commit().await?;
    Ok(usize::try_from(row.get::<_, i64>(0)).unwrap_or_default())
}

/// What can be known to go wrong before the pause, in words; empty when nothing will. The rights are those of the roles
/// that execute the plan, whoever looks.
///
/// # Errors
/// What a server says.
pub async fn look(blue: (&Session, &str), green: (&Session, &str)) -> Result<Vec<String>> {
    let mut out = Vec::new();
    let from = match positions(blue.0, blue.1).await {
        Ok(from) => from,
        Err(error) if error.class() == Class::Privilege => {
            return Ok(vec![format!("{}; {}", error.message(), error.next_step().unwrap_or_default())]);
        }
        Err(error) => return Err(error),
    };
    let sql = format!(
        "select t.nspname::text, t.relname::text, t.open, t.last not between t.seqmin and t.seqmax
         from ({}) t order by 1, 2",
        targets()
    );
    let rows = green.0.query(&sql, &[&from.schemas, &from.names, &from.last, &0_i64, &green.1]).await?;
    let to = green.0.database();
    let (mut closed, mut beyond) = (Vec::new(), Vec::new());
    for row in &rows {
        let name = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        if !row.get::<_, bool>(2) {
            closed.push(name.clone());
        }
        if row.get(3) {
            beyond.push(name);
        }
    }
    if !closed.is_empty() {
        out.push(format!(
            "no right to read and set the sequences {} of {to}: run scripts/grants.sql there",
            few(&closed)
        ));
    }
    if !beyond.is_empty() {
        out.push(format!(
            "the positions of the sequences {} are beyond what those of {to} can hold: alter them there (`alter sequence … as bigint no maxvalue`)",
            few(&beyond)
        ));
    }
    Ok(out)
}
