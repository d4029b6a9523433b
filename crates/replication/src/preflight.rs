//! What can be known to go wrong before the copy, all of it at once.
//! (<https://www.postgresql.org/docs/current/logical-replication-config.html>,
//! <https://www.postgresql.org/docs/current/logical-replication-restrictions.html>)

use crate::options::Replicate;
use crate::tables::tables;
use crate::{emptied, identity, lag};
use handover_copy::large_objects::sync;
use handover_copy::{Copy, LargeObjects};
use handover_core::error::Result;
use handover_core::problem::few;
use handover_core::value::Secret;
use handover_port::Description;
use handover_postgres::address::Address;
use handover_postgres::catalog::{application, is_ours};
use handover_postgres::connect::open_as;
use handover_postgres::profile::Profile;
use handover_postgres::{Databases, Session, TableName, programs};
use std::collections::BTreeSet;

/// Looks at both sides; what makes the replication impossible is among the blockers. Returns the tables that
/// would be published. Rights are those of the role that executes the plan, whoever looks.
///
/// # Errors
/// What a server says.
pub async fn look(
    replicate: &Replicate,
    copy: &Copy,
    databases: &Databases,
    blue: &Session,
    green: &Session,
    out: &mut Description,
) -> Result<Vec<TableName>> {
    let folder = replicate.programs.as_deref().or(copy.programs.as_deref());
    if let Err(error) = programs::psql(folder).await {
        out.blocker(format!("{}; {}", error.message(), error.next_step().unwrap_or_default()));
    }
    publisher(replicate, databases, blue, out).await?;
    subscriber(replicate, databases, blue, green, out).await?;
    let tables = tables(blue, copy).await?;
    let roots: BTreeSet<TableName> = handover_copy::roots(blue, copy).await?.into_values().collect();
    if !roots.is_empty() {
        let roots: Vec<&TableName> = roots.iter().collect();
        out.warning(format!(
            "partitions of {} hold other rows on each server, by a hash of a type that was made by a user: their changes go to the whole table; TRUNCATE of one partition is not replicated",
            few(&roots)
        ));
    }
    let identified: Vec<TableName> = tables.iter().cloned().chain(roots).collect();
    let role = databases.worker(&replicate.from)?.role(blue).await?;
    identity::look(replicate, role.as_deref(), blue, &identified, out).await?;
    emptied::look(replicate, copy, blue, out).await?;
    left_behind(replicate, copy, blue, out).await?;
    large_objects(replicate, copy, databases, blue, green, out).await?;
    Ok(tables)
}

fn user(url: &Secret, database: &str) -> Result<String> {
    let config = Address::parse(url).map_err(|e| e.on_database(database))?.config;
    Ok(config.get_user().unwrap_or_default().to_owned())
}

async fn publisher(
    replicate: &Replicate,
    databases: &Databases,
    blue: &Session,
    out: &mut Description,
) -> Result<()> {
    let from = &replicate.from;
    let role = databases.worker(from)?.role(blue).await?;
    let row = blue
        .query_one(
            "select current_setting('wal_level'), pg_is_in_recovery(),
                    current_setting('max_replication_slots')::int8 - (select count(*) from pg_replication_slots),
                    current_setting('max_wal_senders')::int8 - (select count(*) from pg_stat_replication),
                    (select setting::int8 from pg_settings where name = 'max_slot_wal_keep_size'),
                    (select setting from pg_settings where name = 'idle_replication_slot_timeout'),
                    coalesce((select rolreplication or rolsuper from pg_roles where rolname = $1), false),
                    coalesce((select has_database_privilege(oid, current_database(), 'create') from pg_roles where rolname = $1), false)",
            &[&role],
        )
        .await?;
    let level: String = row.get(0);
    if level != "logical" {
        out.blocker(format!("wal_level on {from} is {level}: set it to logical and restart that server"));
    }
    if row.get(1) {
        out.blocker(format!("{from} is a standby; replicate from its primary"));
    }
    if row.get::<_, i64>(2) < 1 {
        out.blocker(format!(
            "no replication slot is free on {from}: drop one that nobody uses, or raise max_replication_slots there"
        ));
    }
    // One for the subscription, and one while the slot is made.
    if row.get::<_, i64>(3) < 2 {
        out.blocker(format!("fewer than 2 WAL senders are free on {from}: raise max_wal_senders there"));
    }
    let limit: i64 = row.get(4);
    if limit < 0 && !replicate.waive_slot_limit {
        out.blocker(format!(
            "max_slot_wal_keep_size on {from} is without limit, so that a slot nobody reads fills the disk: set it to what the disk can spare (alter system, and reload), or say `waive_slot_limit: true` with `wal_budget_mb:`"
        ));
    }
    if let (Some(mb), Ok(limit)) = (replicate.wal_budget_mb, u64::try_from(limit))
        && mb >= limit
    {
        out.warning(format!(
            "`wal_budget_mb` is {mb}, and {from} breaks the slot off at {limit} MB (max_slot_wal_keep_size) already"
        ));
    }
    let idle: Option<String> = row.get(5);
    if idle.as_deref().is_some_and(|idle| idle != "0") {
        out.warning(format!(
            "idle_replication_slot_timeout on {from} breaks the slot off when nobody reads it for long, as while the copy runs"
        ));
    }
    if let (Some(role), false) = (&role, row.get(6)) {
        out.blocker(format!(
            "the role {role} on {from} has not the attribute REPLICATION: alter role {role} replication (scripts/grants.sql with handover.grant_replicate = on)"
        ));
    }
    if let (Some(role), false) = (&role, row.get(7)) {
        out.blocker(format!(
            "the role {role} may not create a publication on {from}: grant create on the database"
        ));
    }
    if let Some(connection) = &replicate.connection
        && let Ok(url) = connection.resolve()
    {
        elsewhere(replicate, &url, blue, out).await?;
        let other = user(&url, from)?;
        let row = blue
            .query_one(
                "select coalesce((select rolreplication or rolsuper from pg_roles where rolname = $1), false)",
                &[&other],
            )
            .await?;
        if role.as_ref() != Some(&other) && !row.get::<_, bool>(0) {
            out.blocker(format!(
                "the role of `connection:` has not the attribute REPLICATION on {from}: alter role {other} replication"
            ));
        }
    }
    Ok(())
}

/// Whether `connection:` leads to the database that is copied. It may be an address that only the subscriber can
/// use: then this machine cannot tell.
async fn elsewhere(replicate: &Replicate, url: &Secret, blue: &Session, out: &mut Description) -> Result<()> {
    let client = match open_as(url, &replicate.from, "handover/look", &Profile::Catalog, true).await {
        Ok(client) => client,
        // A password that is wrong is so from everywhere.
        Err(e) if e.sqlstate() == Some("28P01") => {
            out.blocker(format!("the server refuses the password in `connection:`: {}", e.message()));
            return Ok(());
        }
        Err(_) => return Ok(()),
    };
    let sql = "select system_identifier, current_database()::text from pg_control_system()";
    let Ok(there) = client.query_one(sql, &[]).await else { return Ok(()) };
    let here = blue.query_one(sql, &[]).await?;
    let name = |row: &tokio_postgres::Row| (row.get::<_, i64>(0), row.get::<_, String>(1));
    if name(&there) != name(&here) {
        out.blocker(format!(
            "`connection:` leads to another database than {}: correct its environment variable",
            replicate.from
        ));
    }
    Ok(())
}

async fn subscriber(
    replicate: &Replicate,
    databases: &Databases,
    blue: &Session,
    green: &Session,
    out: &mut Description,
) -> Result<()> {
    let to = &replicate.to;
    let role = databases.worker(to)?.role(green).await?;
    let version = green.major().await?;
    let row = green
        .query_one(
            "select current_setting('max_logical_replication_workers')::int8
                      - (select count(*) from pg_stat_subscription where pid is not null),
                    (select setting::int8 from pg_settings
                     where name in ('max_active_replication_origins', 'max_replication_slots') order by name limit 1)
                      - (select count(*) from pg_replication_origin),
                    current_setting('max_worker_processes')::int8
                      - (select count(*) from pg_stat_activity where backend_type not in
                         ('client backend', 'checkpointer', 'background writer', 'walwriter', 'autovacuum launcher',
                          'autovacuum worker', 'walsender', 'walreceiver', 'archiver', 'startup', 'io worker',
                          'walsummarizer', 'slotsync worker')),
                    coalesce((select rolsuper from pg_roles where rolname = $1), false),
                    coalesce((select has_database_privilege(oid, current_database(), 'create') from pg_roles where rolname = $1), false),
                    exists (select from pg_roles r, pg_roles m where r.rolname = $1 and m.rolname = 'pg_create_subscription'
                            and pg_has_role(r.oid, m.oid, 'usage'))",
            &[&role],
        )
        .await?;
    if row.get::<_, i64>(0) < 1 {
        out.blocker(format!(
            "no worker for a subscription is free on {to}: raise max_logical_replication_workers there"
        ));
    }
    if row.get::<_, i64>(1) < 1 {
        let setting = if version >= 18 { "max_active_replication_origins" } else { "max_replication_slots" };
        out.blocker(format!("no replication origin is free on {to}: raise {setting} there"));
    }
    if row.get::<_, i64>(2) < 1 {
        out.blocker(format!("no background worker is free on {to}: raise max_worker_processes there"));
    }
    // What follows is about the rights of one whose name is known.
    let Some(role) = role else { return Ok(()) };
    let (superuser, creates, subscribes): (bool, bool, bool) = (row.get(3), row.get(4), row.get(5));
    if superuser {
        return Ok(());
    }
    if version < 16 {
        out.blocker(format!(
            "{to} is Postgres {version}, where only a superuser can subscribe: give the plan a superuser's URL for {to}, or take Postgres 16 or later"
        ));
        return Ok(());
    }
    if !subscribes || !creates {
        out.blocker(format!(
            "the role {role} may not subscribe on {to}: grant it pg_create_subscription, and create on the database (scripts/grants.sql with handover.grant_replicate = on)"
        ));
    }
    if let Some(url) = publishers_url(replicate, databases)? {
        password(replicate, &url, databases, out).await?;
    }
    // Rows are applied as the table's owner, whose role the subscription's owner must be able to take.
    let owners = blue
        .query(&format!("select distinct pg_get_userbyid(c.relowner)::text from {}", application("'r'")), &[])
        .await?;
    let owners: Vec<String> = owners.iter().map(|row| row.get(0)).collect();
    let rows = green
        .query(
            "select o.rolname::text from pg_roles o, pg_roles r
             where o.rolname = any($1) and r.rolname = $2 and not pg_has_role(r.oid, o.oid, 'SET')",
            &[&owners, &role],
        )
        .await?;
    let missing: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    if !missing.is_empty() {
        out.blocker(format!(
            "the role {role} on {to} cannot act as the owners {}: grant each of them to it with set true (scripts/grants.sql)",
            missing.join(", ")
        ));
    }
    Ok(())
}

/// The URL by which the subscriber reaches the publisher; none where that is the working role's, which is not known.
fn publishers_url(replicate: &Replicate, databases: &Databases) -> Result<Option<Secret>> {
    match &replicate.connection {
        Some(connection) => Ok(Some(connection.resolve()?)),
        None if databases.has_only_reader(&replicate.from) => Ok(None),
        None => Ok(Some(databases.url(&replicate.from)?.clone())),
    }
}

/// Whether that URL has the password that a subscriber without the rights of a superuser needs, and the publisher asks for it.
async fn password(
    replicate: &Replicate,
    url: &Secret,
    databases: &Databases,
    out: &mut Description,
) -> Result<()> {
    let to = &replicate.to;
    let publisher = Address::parse(url).map_err(|e| e.on_database(&replicate.from))?;
    if publisher.config.get_password().is_none() {
        out.blocker(format!(
            "a role that is no superuser subscribes with a password only, and the URL by which {to} reaches {} has none",
            replicate.from
        ));
    } else if publisher.trusts().await {
        // The server's word for it is "password is required", and it comes when the run is at the copy.
        let text = format!(
            "a role that is no superuser subscribes only where the publisher asks for its password, and {} lets it in without asking: let its pg_hba.conf say scram-sha-256 for {to}'s server and this role",
            replicate.from
        );
        let subscriber = Address::parse(databases.url(to)?).map_err(|e| e.on_database(to))?;
        if subscriber.config.get_hosts() == publisher.config.get_hosts() {
            out.blocker(text);
        } else {
            out.warning(format!("{text} (seen from here; from there it may be so already)"));
        }
    }
    Ok(())
}

/// What a stream does not carry.
async fn left_behind(
    replicate: &Replicate,
    copy: &Copy,
    blue: &Session,
    out: &mut Description,
) -> Result<()> {
    let rows = blue
        .query(
            &format!(
                "select n.nspname::text, c.relname::text, c.relkind::text from {}
                 and (c.relkind = 'm' or c.relpersistence = 'u') order by 1, 2",
                application("'r', 'm'")
            ),
            &[],
        )
        .await?;
    let named = |kind: &str| -> Vec<TableName> {
        let of = rows.iter().filter(|row| row.get::<_, String>(2) == kind);
        of.map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)))
            .filter(|name| copy.takes_rows(name))
            .collect()
    };
    let (unlogged, views) = (named("r"), named("m"));
    if !unlogged.is_empty() {
        out.warning(format!(
            "unlogged tables are copied and not replicated: {}; a cutover refuses if they were written to since",
            few(&unlogged)
        ));
    }
    if !views.is_empty() {
        out.warning(format!(
            "materialized views are not replicated: refresh {} on {} before the cutover",
            few(&views),
            replicate.to
        ));
    }
    // Rows are applied with session_replication_role = replica: ordinary triggers stay silent, these do not.
    let rows = blue
        .query(
            &format!(
                "select distinct n.nspname::text, c.relname::text from pg_trigger t join pg_class c on c.oid = t.tgrelid
                 join pg_namespace n on n.oid = c.relnamespace join pg_proc p on p.oid = t.tgfoid
                 join pg_namespace pn on pn.oid = p.pronamespace
                 where t.tgenabled in ('A', 'R') and not t.tgisinternal and not ({}) order by 1, 2",
                is_ours("pn")
            ),
            &[],
        )
        .await?;
    let named = rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)));
    let firing: Vec<TableName> = named.filter(|name| copy.takes_rows(name)).collect();
    if !firing.is_empty() {
        out.warning(format!(
            "triggers that are enabled ALWAYS or REPLICA fire on {} too, for each replicated row of {}: what they write arrives twice",
            replicate.to,
            few(&firing)
        ));
    }
    out.warning(format!(
        "schema changes are not replicated: alter no table of {} until the cutover",
        replicate.from
    ));
    let limit: i64 = blue
        .query_one("select setting::int8 from pg_settings where name = 'max_slot_wal_keep_size'", &[])
        .await?
        .get(0);
    let budget = replicate.budget(u64::try_from(limit).ok().map(|mb| mb << 20));
    if budget < u64::MAX {
        out.action(format!(
            "while it lasts, keep at most {} of log on {}; more ends the replication before the disk is at risk",
            lag::bytes(budget),
            replicate.from
        ));
    }
    Ok(())
}

/// Large objects are carried by the cutover, which asks their pages what changed.
async fn large_objects(
    replicate: &Replicate,
    copy: &Copy,
    databases: &Databases,
    blue: &Session,
    green: &Session,
    out: &mut Description,
) -> Result<()> {
    let objects: i64 = blue.query_one("select count(*) from pg_largeobject_metadata", &[]).await?.get(0);
    if objects == 0 || copy.large_objects == LargeObjects::Skip {
        return Ok(());
    }
    out.action(format!(
        "leave {objects} large objects to the cutover, which carries over what was made, changed or removed since the copy"
    ));
    for (session, name) in [(blue, &replicate.from), (green, &replicate.to)] {
        let Some(role) = databases.worker(name)?.role(session).await? else { continue };
        if !sync::readable(session, Some(&role)).await? {
            out.blocker(format!(
                "the role {role} may not look at the pages of large objects on {name}, which tells a cutover what changed in them: {}; or say `large_objects: skip` in the copy",
                sync::FIX
            ));
        }
    }
    Ok(())
}
