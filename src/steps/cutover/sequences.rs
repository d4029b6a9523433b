//! Carries the positions of sequences over: they are in no captured row.
//!
//! A statement for all sequences that gave out a value, whatever their number; `pg_sequences` would evaluate all of them for
//! each look. One that is to give out its position itself (`setval(…, false)`, `alter sequence … restart`) has no
//! position in any catalog: those are read from the sequences themselves, some hundred in one statement.

use crate::error::{Class, Error, Result};
use crate::postgres::{Session, TableName, catalog};
use crate::problem::few;

/// The part of what a sequence has left that the margin may take at most: a `smallint` that is nearly used up must not
/// run out because of us.
const SHARE: &str = "100";

/// Sequences that one statement reads. Each is locked until it ends.
const PIECE: usize = 500;

/// Where one side's sequences stand.
#[derive(Default)]
struct Positions {
    schemas: Vec<String>,
    names: Vec<String>,
    last: Vec<i64>,
    /// Whether `last` was given out; it is the next one otherwise.
    called: Vec<bool>,
    /// Whether nothing was given out since it was made.
    untouched: Vec<bool>,
}

impl Positions {
    fn add(&mut self, name: TableName, last: i64, called: bool, untouched: bool) {
        self.schemas.push(name.schema);
        self.names.push(name.name);
        self.last.push(last);
        self.called.push(called);
        self.untouched.push(untouched);
    }
}

/// Those that `role` may not read look in the catalogs like those without a position, and are an error here.
async fn positions(session: &Session, role: Option<&str>) -> Result<Positions> {
    let sql = format!(
        "select n.nspname::text, c.relname::text,
                case when has_sequence_privilege(c.oid, 'usage, select') then pg_sequence_last_value(c.oid) end,
                {}, {}, has_sequence_privilege(c.oid, 'select'),
                (select s.seqstart from pg_sequence s where s.seqrelid = c.oid)
         from {}",
        may("'usage, select'", "$1"),
        may("'select'", "$1"),
        catalog::application("'S'")
    );
    let (mut out, mut closed) = (Positions::default(), Vec::new());
    let (mut idle, mut starts) = (Vec::new(), Vec::new());
    for row in session.query(&sql, &[&role]).await? {
        let name = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let (last, may_use, may_read, we_read): (Option<i64>, bool, bool, bool) =
            (row.get(2), row.get(3), row.get(4), row.get(5));
        match last {
            _ if !may_use => closed.push(name),
            Some(last) => out.add(name, last, true, false),
            None if !may_read => closed.push(name),
            None if we_read => {
                idle.push(name);
                starts.push(row.get::<_, i64>(6));
            }
            // Who only looks need not see it.
            None => {}
        }
    }
    if !closed.is_empty() {
        return Err(unreadable(session.database(), &closed));
    }
    let read = themselves(session, &idle).await?;
    for ((name, start), (last, called)) in idle.into_iter().zip(starts).zip(read) {
        out.add(name, last, called, !called && last == start);
    }
    Ok(out)
}

/// `last_value` and `is_called` of sequences, in their order.
async fn themselves(session: &Session, names: &[TableName]) -> Result<Vec<(i64, bool)>> {
    let mut out = Vec::with_capacity(names.len());
    for piece in names.chunks(PIECE) {
        let parts: Vec<String> = piece
            .iter()
            .enumerate()
            .map(|(i, name)| format!("select {i} as i, last_value, is_called from {}", name.sql()))
            .collect();
        let rows = session.query(&(parts.join(" union all ") + " order by 1"), &[]).await?;
        if rows.len() != piece.len() {
            return Err(Error::new(
                Class::Contention,
                format!("{} of {} sequences could be read", rows.len(), piece.len()),
            )
            .on_database(session.database())
            .hint("stop schema changes there; the next attempt reads them again"));
        }
        out.extend(rows.iter().map(|row| (row.get::<_, i64>(1), row.get::<_, bool>(2))));
    }
    Ok(out)
}

/// What the other side's sequences of these names give out next where they gave out nothing yet; none where their
/// catalog knows better, or both sides are as they were made.
async fn idle(session: &Session, from: &Positions) -> Result<Vec<Option<i64>>> {
    let rows = session
        .query(
            "select b.place, n.nspname::text, c.relname::text
             from unnest($1::text[], $2::text[], $3::int8[], $4::bool[]) with ordinality b (schema, name, last, untouched, place)
             join pg_namespace n on n.nspname = b.schema
             join pg_class c on c.relnamespace = n.oid and c.relname = b.name and c.relkind = 'S'
             join pg_sequence p on p.seqrelid = c.oid
             where not (b.untouched and b.last = p.seqstart)
               and case when has_sequence_privilege(c.oid, 'select') then pg_sequence_last_value(c.oid) is null else false end",
            &[&from.schemas, &from.names, &from.last, &from.untouched],
        )
        .await?;
    let names: Vec<TableName> =
        rows.iter().map(|row| TableName::new(row.get::<_, String>(1), row.get::<_, String>(2))).collect();
    let mut out = vec![None; from.names.len()];
    for (row, (last, called)) in rows.iter().zip(themselves(session, &names).await?) {
        let place = usize::try_from(row.get::<_, i64>(0)).unwrap_or_default().wrapping_sub(1);
        if let (Some(slot), false) = (out.get_mut(place), called) {
            *slot = Some(last);
        }
    }
    Ok(out)
}

/// Whether a role has a right to the sequence `c`. One that only a pooler knows is the pooler's to judge, and of none it is
/// taken for granted.
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
/// and a margin, never behind where it is, and never further than a share of what is left. One that was not used since it
/// was made needs no margin. One that a migration of the new side dropped or renamed is none of ours.
///
/// Parameters: schemas, names, positions, whether they were given out, whether they are as they were made, what the
/// new side's give out next where no catalog knows, margin in steps of the increment, the role that sets them.
fn targets() -> String {
    format!(
        "select c.oid, q.target, r.open, b.last, b.called, b.untouched, p.seqmin, p.seqmax, n.nspname, c.relname,
                case when p.seqincrement > 0 then r.next < q.target + q.step else r.next > q.target + q.step end as behind
         from unnest($1::text[], $2::text[], $3::int8[], $4::bool[], $5::bool[], $6::int8[]) b (schema, name, last, called, untouched, idle)
         join pg_namespace n on n.nspname = b.schema
         join pg_class c on c.relnamespace = n.oid and c.relname = b.name and c.relkind = 'S'
         join pg_sequence p on p.seqrelid = c.oid
         cross join lateral (select
             {} and {} as open,
             coalesce(case when has_sequence_privilege(c.oid, 'usage, select') then pg_sequence_last_value(c.oid)::numeric + p.seqincrement end,
                      b.idle, p.seqstart) as next) r
         cross join lateral (select
             case when b.called then p.seqincrement else 0 end as step,
             b.last + p.seqincrement * case when b.untouched then 0 else greatest(0, least($7::int8::numeric, trunc(
                  (case when p.seqincrement > 0 then p.seqmax else p.seqmin end - b.last::numeric)
                  / p.seqincrement / {SHARE}))) end as target) q",
        may("'usage, select'", "$8"),
        may("'update'", "$8")
    )
}

/// What sets the new side's sequences. Parameters: as those of [`targets`].
pub fn setting() -> String {
    format!(
        "select count(*) filter (where t.behind or not t.untouched), count(*) filter (where not t.open),
                count(case when t.open and t.behind then setval(t.oid::regclass, t.target::int8, t.called) end)
         from ({}) t",
        targets()
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
    let from = positions(blue, Some(&role)).await?;
    let idle = idle(green, &from).await?;
    let tx = green.transaction().await?;
    let role: String = tx.query_one("select current_user::text", &[]).await?.get(0);
    let Positions { schemas, names, last, called, untouched } = &from;
    let row = tx
        .query_one(&setting(), &[schemas, names, last, called, untouched, &idle, &i64::from(margin), &role])
        .await?;
    if row.get::<_, i64>(1) > 0 {
        return Err(Error::new(Class::Privilege, "no right to read and set every sequence")
            .on_database(tx.database())
            .hint("run scripts/grants.sql there; `handover resume` names them"));
    }
    tx.commit().await?;
    Ok(usize::try_from(row.get::<_, i64>(0)).unwrap_or_default())
}

/// What can be known to go wrong before the pause, in words; empty when nothing will. The rights are those of the roles
/// that execute the plan, whoever looks; where one is not known, they are not asked.
///
/// # Errors
/// What a server says.
pub async fn look(blue: (&Session, Option<&str>), green: (&Session, Option<&str>)) -> Result<Vec<String>> {
    let mut out = Vec::new();
    let from = match positions(blue.0, blue.1).await {
        Ok(from) => from,
        Err(error) if error.class() == Class::Privilege => {
            return Ok(vec![format!("{}; {}", error.message(), error.next_step().unwrap_or_default())]);
        }
        Err(error) => return Err(error),
    };
    let sql = format!(
        "select t.nspname::text, t.relname::text, t.open,
                (t.behind or not t.untouched) and t.last not between t.seqmin and t.seqmax
         from ({}) t order by 1, 2",
        targets()
    );
    let Positions { schemas, names, last, called, untouched } = &from;
    let idle: Vec<Option<i64>> = Vec::new();
    let rows =
        green.0.query(&sql, &[schemas, names, last, called, untouched, &idle, &0_i64, &green.1]).await?;
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
