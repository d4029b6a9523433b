//! One database: who answers, in which version, with which settings and rights, and what of ours lies in it.

use super::findings::Notes;
use super::needs;
use crate::engine::status::words;
use crate::error::Result;
use crate::event::StepId;
use crate::postgres::catalog::{self, OUR_SCHEMAS};
use crate::postgres::install::assert_no_strangers;
use crate::postgres::leftovers::{self, LeftoverKind};
use crate::postgres::locks::Room;
use crate::postgres::ours::OURS;
use crate::postgres::{Databases, Session, Worker, creators};
use crate::steps::{Access, Locks, Need, StepKind};
use handover_migrations::role::{self, Becomes};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

const GRANTS: &str = "run scripts/grants.sql in this database (docs/grants.md says what each grant is for)";

/// The oldest and the newest major version this was tried on.
const SUPPORTED: std::ops::RangeInclusive<i32> = 13..=18;

/// A clock further away than this from ours makes logs hard to read side by side.
const SKEW: f64 = 5.0;

/// Connections that a run opens beside its steps' own: heartbeat, journal, watchers.
const CONNECTIONS: i64 = 10;

/// Looks at a database of the plan as the working role, and returns its major version.
pub(super) async fn examine(
    databases: &Databases,
    name: &str,
    kinds: &[(&dyn StepKind, Access)],
    acting: bool,
    notes: &mut Notes,
) -> Result<u32> {
    let mut session = databases.read_only(name).await?;
    let major = server(&session, notes).await?;
    if let Err(e) = assert_no_strangers(&mut session, &Worker::Own).await {
        notes.failure(&e);
    }
    triggers(&session, notes).await?;
    settings(&session, notes).await?;
    for need in needs::of(kinds) {
        privilege(&session, need, major, notes).await?;
    }
    for found in creators::look(&session, databases.search_path(name)?, &Worker::Own).await? {
        if found.is_open() {
            notes.error(found.text(), found.cure());
        } else {
            notes.warning(found.text(), found.cure());
        }
    }
    locks(&session, name, kinds, notes).await?;
    left(&session, acting, notes).await?;
    Ok(major.unsigned_abs())
}

/// Looks at a database as the reader.
pub(super) async fn examine_reader(databases: &Databases, name: &str, notes: &mut Notes) -> Result<()> {
    let session = databases.reader(name).await?;
    let row = session
        .query_one(
            &format!("select current_user::text, rolsuper or has_database_privilege(current_database(), 'create')
                    or exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
                               where c.relkind in ('r', 'p') and n.nspname not in ('pg_catalog', 'information_schema')
                                 and has_table_privilege(c.oid, 'insert, update, delete, truncate')),
                    -- Postgres 13 has no such role: it is enough there to read everything there is.
                    coalesce((select pg_has_role(oid, 'usage') from pg_roles where rolname = 'pg_read_all_data'),
                             not exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
                                         where (c.relkind in ('r', 'p') and {OUR_SCHEMAS} or {application})
                                           and not has_table_privilege(c.oid, 'select')))
             from pg_roles where rolname = current_user", application = catalog::is_application("'r', 'p'")),
            &[],
        )
        .await?;
    let role: String = row.get(0);
    if row.get(1) {
        notes.warning(
            format!("the reader {role} may write"),
            "name a role that holds no right to, such as handover_reader of scripts/grants.sql",
        );
    } else {
        notes.ok(format!("the reader {role} may only read"));
    }
    if !row.get::<_, bool>(2) {
        notes.warning(format!("the reader {role} may not read every table"), GRANTS);
    }
    Ok(())
}

/// Looks at the control database.
pub(super) async fn examine_control(databases: &Databases, notes: &mut Notes) -> Result<()> {
    let mut session = databases.labelled("doctor").reader("control").await?;
    let major = server(&session, notes).await?;
    if let Err(e) = assert_no_strangers(&mut session, &Worker::Own).await {
        notes.failure(&e);
    }
    triggers(&session, notes).await?;
    privilege(&session, Need::CreateInDatabase, major, notes).await?;
    for setting in ["fsync", "full_page_writes"] {
        let value: String = session.query_one("select current_setting($1)", &[&setting]).await?.get(0);
        if value == "off" {
            notes.warning(
                format!("{setting} is off: a crash of the machine may lose the journal"),
                format!("turn {setting} on, unless this is a test"),
            );
        }
    }
    Ok(())
}

/// A run refuses sessions under which triggers and foreign keys do not act; who only looks is let in.
async fn triggers(session: &Session, notes: &mut Notes) -> Result<()> {
    let role: String =
        session.query_one("select current_setting('session_replication_role')", &[]).await?.get(0);
    if role != "origin" {
        notes.error(
            format!("sessions of this role begin with session_replication_role = {role}, under which triggers and foreign keys do not act"),
            "as a superuser: `alter role … reset session_replication_role` (and `alter role … in database … reset`, `alter database … reset`)",
        );
    }
    Ok(())
}

/// Whether the role that works may become the one that a step's files run as.
pub(super) async fn becomes(
    databases: &Databases,
    name: &str,
    id: &StepId,
    to: &str,
    notes: &mut Notes,
) -> Result<()> {
    let session = databases.read_only(name).await?;
    let acts: String = session.query_one("select session_user::text", &[]).await?.get(0);
    match role::becomes(&session, &acts, to).await? {
        Becomes::Yes => notes.ok(format!("step `{id}`: may become {to}")),
        Becomes::Nobody => notes.error(
            format!("step `{id}`: there is no role {to}"),
            "create it, or correct `role:` of the step",
        ),
        Becomes::No => {
            let (what, next) = role::refusal(&acts, to);
            notes.error(format!("step `{id}`: {what}"), next);
        }
    }
    Ok(())
}

async fn server(session: &Session, notes: &mut Notes) -> Result<i32> {
    let asked = Instant::now();
    let row = session
        .query_one(
            "select current_setting('server_version_num')::int / 10000, current_setting('server_version'),
                    current_user::text, extract(epoch from clock_timestamp())::float8, pg_is_in_recovery(),
                    current_database()::text",
            &[],
        )
        .await?;
    let (major, version, role): (i32, String, String) = (row.get(0), row.get(1), row.get(2));
    let database: String = row.get(5);
    let version = version.split(' ').next().unwrap_or_default();
    if SUPPORTED.contains(&major) {
        notes.ok(format!("Postgres {version}, database {database}, as {role}"));
    } else if major > *SUPPORTED.end() {
        notes.warning(
            format!("Postgres {version} is newer than what this version of Handover was tried on"),
            "rehearse the plan on a copy first, or use a newer Handover",
        );
    } else {
        notes.error(format!("Postgres {version} is not supported"), "13 is the oldest that works");
    }
    if row.get(4) {
        notes.error("this server is a standby and takes no writes", "let the URL lead to the primary");
    }
    let ours = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
    // The answer is at most this old.
    let slack = asked.elapsed().as_secs_f64();
    let skew = row.get::<_, f64>(3) - ours;
    if skew.abs() > SKEW + slack {
        notes.warning(
            format!("its clock is {skew:+.0} s from ours"),
            "let both follow NTP: nothing depends on it, but logs are hard to read side by side",
        );
    }
    Ok(major)
}

async fn settings(session: &Session, notes: &mut Notes) -> Result<()> {
    let row = session
        .query_one(
            "select current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint
                      - (select count(*) from pg_stat_activity where backend_type = 'client backend'),
                    (select rolconnlimit::bigint from pg_roles where rolname = current_user)",
            &[],
        )
        .await?;
    let free: i64 = row.get(0);
    if free < CONNECTIONS {
        notes.warning(
            format!("{free} connections are free"),
            "raise max_connections, or lower `jobs` in the plan",
        );
    } else {
        notes.ok(format!("{free} connections are free"));
    }
    let limit: i64 = row.get(1);
    if (0..CONNECTIONS).contains(&limit) {
        notes.warning(format!("the role may open {limit} connections"), "alter role … connection limit -1");
    }
    Ok(())
}

/// Whether all tables can be locked at once, as a copy and a cutover do.
async fn locks(
    session: &Session,
    name: &str,
    kinds: &[(&dyn StepKind, Access)],
    notes: &mut Notes,
) -> Result<()> {
    let tables = catalog::tables(session).await?.len() as u64;
    let sequences = catalog::sequences(session).await?.len() as u64;
    let most = kinds.iter().filter_map(|(kind, _)| kind.locks_every_table()).max_by_key(|locks| locks.each);
    let Some(Locks { what, each }) = most else { return Ok(()) };
    let need = each * (tables + sequences);
    let room = Room::of(session).await?;
    match room.lacks(need, what, name) {
        Some(text) => {
            notes.error(
                text,
                "the setting takes effect when the server starts again; plan that before the run",
            );
        }
        None => notes.ok(format!("room for {} locks, of which {what} needs {need}", room.capacity)),
    }
    Ok(())
}

async fn privilege(session: &Session, need: Need, major: i32, notes: &mut Notes) -> Result<()> {
    let list = |select: &str| format!("select {select} from {}", catalog::application("'r', 'p'"));
    let (what, sql) = match need {
        Need::CreateInDatabase => (
            &*format!("may create the schema `{OURS}`"),
            format!("select 'CREATE on database ' || current_database()
             where not has_database_privilege(current_database(), 'create')
               and not exists (select from pg_namespace where nspname = '{OURS}' and has_schema_privilege(oid, 'create'))"),
        ),
        Need::ActAsOwners => (
            "has the rights of every table's owner",
            list("distinct 'membership in ' || pg_get_userbyid(c.relowner)") + " and not pg_has_role(c.relowner, 'usage')",
        ),
        Need::BecomeOwners => (
            "may SET ROLE to every table's owner",
            list("distinct 'membership in ' || pg_get_userbyid(c.relowner) || ' WITH SET TRUE'")
                + if major >= 16 { " and not pg_has_role(c.relowner, 'set')" } else { " and not pg_has_role(c.relowner, 'member')" },
        ),
        Need::CreateInSchemas => (
            "may create in the tables' schemas",
            list("distinct 'CREATE on schema ' || n.nspname") + " and not has_schema_privilege(n.oid, 'create')",
        ),
        Need::ReadEverything => (
            "may read every table",
            list("'SELECT on ' || c.oid::regclass") + " and not has_table_privilege(c.oid, 'select')",
        ),
        Need::Monitor => (
            "sees the statistics and sessions of others",
            "select 'membership in pg_monitor' where not pg_has_role('pg_monitor', 'usage')".into(),
        ),
        Need::ReplicationRole if major >= 15 => (
            "may set session_replication_role",
            "select 'SET on parameter session_replication_role'
             where not has_parameter_privilege('session_replication_role', 'set')"
                .into(),
        ),
        Need::SignalAutovacuum if major >= 18 => (
            "may cancel an autovacuum",
            "select 'membership in pg_signal_autovacuum_worker'
             where not pg_has_role('pg_signal_autovacuum_worker', 'usage')"
                .into(),
        ),
        // Only a superuser may, and the steps do without.
        Need::ReplicationRole | Need::SignalAutovacuum => return Ok(()),
    };
    let missing: Vec<String> = session.query(sql.as_str(), &[]).await?.iter().map(|row| row.get(0)).collect();
    let shown = missing.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    let more = if missing.len() > 5 { format!(" and {} more", missing.len() - 5) } else { String::new() };
    match need {
        _ if missing.is_empty() => notes.ok(what),
        // Slower or blinder without them, not impossible.
        Need::Monitor | Need::SignalAutovacuum | Need::ReplicationRole => {
            notes.warning(format!("lacks {shown}{more}"), GRANTS);
        }
        _ => notes.error(format!("lacks {shown}{more}"), GRANTS),
    }
    Ok(())
}

async fn left(session: &Session, acting: bool, notes: &mut Notes) -> Result<()> {
    if acting {
        return Ok(());
    }
    let found = leftovers::find(session).await?;
    for leftover in &found {
        let next = match leftover.kind {
            LeftoverKind::Session => "a runner died or was stopped: `handover resume` ends what it left",
            LeftoverKind::Snapshot => {
                "vacuum keeps dead rows until it goes, by itself a while after its engine (`hold`): `handover resume` goes on from it, `handover rollback` ends it"
            }
            LeftoverKind::Slot => {
                "it keeps WAL until it goes: `handover resume`, `handover rollback` or `handover finish` drops it"
            }
            _ => {
                "`handover status` shows whose it is; `handover rollback` or `handover finish` takes it away"
            }
        };
        notes.warning(format!("of an earlier run: {}", words(leftover)), next);
    }
    Ok(())
}
