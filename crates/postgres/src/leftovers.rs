//! What of ours is in a database: read from the catalogs, so that it is found whatever the journal says.

use super::ident::quote_ident;
use super::ours::OURS;
use super::session::Session;
use handover_core::error::Result;
use serde::Serialize;

/// How sessions that hold a copy's snapshot name themselves.
pub const SNAPSHOT_PREFIX: &str = "handover-snapshot/";

/// Something of Handover's that a database holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leftover {
    /// What sort of thing.
    pub kind: LeftoverKind,
    /// Its name.
    pub name: String,
    /// What is to be known of it: rows, size, the table it is on.
    pub detail: String,
}

/// A sort of thing that we leave in databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftoverKind {
    /// A connection.
    Session,
    /// A connection that holds a copy's snapshot, and ends by itself.
    Snapshot,
    /// A trigger on a table of the application's.
    Trigger,
    /// A table of ours that holds rows: outbox, archive, quarantine.
    Table,
    /// A replication slot; it keeps WAL until it is dropped or advanced.
    Slot,
    /// A publication.
    Publication,
    /// A subscription.
    Subscription,
}

/// Tables that only say how far work reached; they are kept with the run and hold nothing of the application's.
const BOOKS: &[&str] = &[
    "run",
    "record",
    "lease",
    "request",
    "fence",
    "checkpoint",
    "control_history",
    "database_history",
    "replication_marker",
];

/// Counting stops here: a large archive is not worth reading through for a number.
const COUNTED: i64 = 100_000;

/// Everything of ours in a database. `other_sessions` are connections that name themselves `handover/…`.
pub async fn find(session: &Session) -> Result<Vec<Leftover>> {
    let mut out = Vec::new();
    let rows = session
        .query(
            &format!("select 'session', application_name, format('pid %s, %s, since %s', pid, coalesce(state, '?'),
                    to_char(backend_start at time zone 'utc', 'YYYY-MM-DD HH24:MI:SS \"UTC\"'))
             from pg_stat_activity
             where starts_with(application_name, 'handover/') and datname = current_database()
               and pid <> pg_backend_pid() and split_part(application_name, '/', 3) <> ''
             union all
             select 'snapshot', application_name, format('pid %s, %s transactions old, since %s', pid, age(backend_xmin),
                    to_char(backend_start at time zone 'utc', 'YYYY-MM-DD HH24:MI:SS \"UTC\"'))
             from pg_stat_activity where starts_with(application_name, $1) and datname = current_database()
             union all
             select 'trigger', t.tgname::text, case count(*) when 1 then 'on ' || min(t.tgrelid::regclass::text) else format('on %s tables', count(*)) end
             from pg_trigger t join pg_proc p on p.oid = t.tgfoid join pg_namespace n on n.oid = p.pronamespace
             join pg_class c on c.oid = t.tgrelid
             where n.nspname = '{OURS}' and not t.tgisinternal and c.relnamespace <> n.oid
             -- What a cutover refuses with is on every table.
             group by t.tgname, case when not starts_with(t.tgname::text, '00_handover_refuse') then t.tgrelid end
             union all
             select 'slot', slot_name, case when active then 'active' else 'inactive' end
             from pg_replication_slots where starts_with(slot_name, 'handover') and database = current_database()
             union all
             select 'publication', pubname, '' from pg_publication where starts_with(pubname, 'handover')
             order by 1, 2, 3"),
            &[&SNAPSHOT_PREFIX],
        )
        .await?;
    for row in rows {
        let kind = match row.get::<_, &str>(0) {
            "session" => LeftoverKind::Session,
            "snapshot" => LeftoverKind::Snapshot,
            "trigger" => LeftoverKind::Trigger,
            "slot" => LeftoverKind::Slot,
            _ => LeftoverKind::Publication,
        };
        out.push(Leftover { kind, name: row.get(1), detail: row.get(2) });
    }
    out.extend(subscriptions(session).await?);
    out.extend(tables(session).await?);
    Ok(out)
}

/// Only some columns of `pg_subscription` are open to all
/// (<https://www.postgresql.org/docs/current/catalog-pg-subscription.html>); these are.
async fn subscriptions(session: &Session) -> Result<Vec<Leftover>> {
    let rows = session
        .query(
            "select s.subname::text, case when s.subenabled then 'enabled' else 'disabled' end
             from pg_subscription s join pg_database d on d.oid = s.subdbid
             where starts_with(s.subname, 'handover') and d.datname = current_database() order by 1",
            &[],
        )
        .await?;
    let leftover = |row: &tokio_postgres::Row| Leftover {
        kind: LeftoverKind::Subscription,
        name: row.get(0),
        detail: row.get(1),
    };
    Ok(rows.iter().map(leftover).collect())
}

async fn tables(session: &Session) -> Result<Vec<Leftover>> {
    let tables = session
        .query(
            &format!("select c.relname::text, pg_size_pretty(pg_total_relation_size(c.oid)), has_table_privilege(c.oid, 'select')
             from pg_class c join pg_namespace n on n.oid = c.relnamespace
             where n.nspname = '{OURS}' and c.relkind = 'r' and not c.relname = any($1) order by 1"),
            &[&BOOKS],
        )
        .await?;
    let mut out = Vec::new();
    for table in tables {
        let (name, size, readable): (String, String, bool) = (table.get(0), table.get(1), table.get(2));
        if !readable {
            out.push(Leftover { kind: LeftoverKind::Table, name, detail: size });
            continue;
        }
        let sql = format!(
            "select count(*) from (select from {OURS}.{} limit {}) t",
            quote_ident(&name),
            COUNTED + 1
        );
        let rows: i64 = session.query_one(&sql, &[]).await?.get(0);
        if rows > 0 {
            let count = if rows > COUNTED {
                format!("more than {COUNTED} rows")
            } else {
                handover_core::problem::count(usize::try_from(rows).unwrap_or_default(), "row")
            };
            out.push(Leftover { kind: LeftoverKind::Table, name, detail: format!("{count}, {size}") });
        }
    }
    Ok(out)
}
