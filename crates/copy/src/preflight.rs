//! What can be known to go wrong before anything is done.

use crate::dump::{Entry, Program};
use crate::options::{Copy, LargeObjects, Owners, SplitBy};
use crate::{created, definitions, dependents, privileges, split};
use handover_core::error::{Class, Error, Result};
use handover_core::problem::few;
use handover_port::Description;
use handover_postgres::catalog::{self, application};
use handover_postgres::locks::Room;
use handover_postgres::{Session, TableName};
use std::collections::BTreeSet;

/// Looks at both sides. What makes the copy impossible is among the blockers of the result.
///
/// # Errors
/// What a server says.
pub async fn look(
    copy: &Copy,
    blue: &Session,
    green: &Session,
    out: &mut Description,
) -> Result<Option<Program>> {
    if identity(blue).await? == identity(green).await? {
        out.blocker(format!("{} and {} are one and the same database", copy.from, copy.to));
        return Ok(None);
    }
    let (from, to) = (blue.major().await?, green.major().await?);
    if to < from {
        out.blocker(format!("{} is Postgres {to}, older than {} with {from}", copy.to, copy.from));
    }
    if from < 13 {
        out.blocker(format!("{} is Postgres {from}; 13 is the oldest that can be copied", copy.from));
    }
    if copy.split_by == SplitBy::Tid && from < split::TID_RANGES {
        out.blocker(format!(
            "Postgres {from} of {} reads a whole table for each range of blocks: leave out `split_by`, or say `key`",
            copy.from
        ));
    }
    let program = match Program::find(copy.programs.as_deref(), from, to).await {
        Ok(program) => Some(program),
        Err(e) => {
            out.blocker(with_hint(&e));
            None
        }
    };
    source(copy, blue, out).await?;
    locks(copy, blue, out).await?;
    dependents::look(copy, blue, out).await?;
    privileges::look(copy, blue, green, out).await?;
    extensions(copy, blue, green, out).await?;
    definitions::keywords(&copy.selection(), blue, green, out).await?;
    locale(copy, blue, green, out).await?;
    Ok(program)
}

fn with_hint(error: &Error) -> String {
    match error.next_step() {
        Some(hint) => format!("{}; {hint}", error.message()),
        None => error.message().to_owned(),
    }
}

/// The first blocker as an error.
///
/// # Errors
/// That one.
pub fn refuse(found: &Description, database: &str) -> Result<()> {
    if found.blockers.is_empty() {
        return Ok(());
    }
    Err(Error::data(found.blockers.join("; "))
        .on_database(database)
        .hint("nothing was changed; mend it, then `handover resume`"))
}

async fn identity(session: &Session) -> Result<(i64, u32)> {
    let row = session
        .query_one(
            "select system_identifier, (select oid from pg_database where datname = current_database())
             from pg_control_system()",
            &[],
        )
        .await?;
    // A promoted physical copy of blue looks the same, and is no empty target either.
    Ok((row.get(0), row.get(1)))
}

async fn source(copy: &Copy, blue: &Session, out: &mut Description) -> Result<()> {
    let selection = copy.selection();
    let rows = blue
        .query(
            &format!(
                "select n.nspname::text, c.relname::text, c.relkind::text,
                        has_table_privilege(c.oid, 'select') and has_schema_privilege(n.oid, 'usage'),
                        row_security_active(c.oid)
                 from {}",
                application("'r', 'p', 'f', 'S'")
            ),
            &[],
        )
        .await?;
    let (mut unreadable, mut hidden, mut foreign) = (Vec::new(), Vec::new(), Vec::new());
    for row in &rows {
        let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        if !selection.table(&table) {
            continue;
        }
        if row.get::<_, String>(2) == "f" {
            foreign.push(table.to_string());
        } else if !row.get::<_, bool>(3) {
            unreadable.push(table.to_string());
        } else if row.get::<_, bool>(4) {
            hidden.push(table.to_string());
        }
    }
    if !unreadable.is_empty() {
        out.blocker(format!(
            "no right to read {}: grant pg_read_all_data (scripts/grants.sql)",
            few(&unreadable)
        ));
    }
    if !hidden.is_empty() {
        out.blocker(format!(
            "row security would hide rows of {}: the role must be a member of their owner, or have BYPASSRLS",
            few(&hidden)
        ));
    }
    if !foreign.is_empty() {
        out.warning(format!(
            "foreign tables are created without rows, which stay where they are: {}",
            few(&foreign)
        ));
    }
    large_objects(copy, blue, out).await
}

/// What is locked on the source at once: each table by the snapshot's holder and by pg_dump, and each sequence by
/// pg_dump and by us.
async fn locks(copy: &Copy, blue: &Session, out: &mut Description) -> Result<()> {
    let selection = copy.selection();
    let tables = catalog::tables(blue).await?.iter().filter(|table| selection.table(table)).count();
    let sequences = catalog::sequences(blue).await?.iter().filter(|s| selection.schema(&s.schema)).count();
    let need = 2 * (tables + sequences) as u64;
    out.blockers.extend(Room::of(blue).await?.lacks(need, "the copy", &copy.from));
    Ok(())
}

/// Large objects are not among what pg_read_all_data opens, unless somebody set lo_compat_privileges.
async fn large_objects(copy: &Copy, blue: &Session, out: &mut Description) -> Result<()> {
    let row = blue
        .query_one(
            "select count(*), count(*) filter (where not (
                 pg_has_role(o.lomowner, 'usage') and o.lomacl is null
                 or exists (select from aclexplode(o.lomacl) x where x.privilege_type = 'SELECT'
                            and (x.grantee = 0 or pg_has_role(x.grantee, 'usage')))
                 or current_setting('lo_compat_privileges')::bool
                 or (select rolsuper from pg_roles where rolname = current_user)))
             from pg_largeobject_metadata o",
            &[],
        )
        .await?;
    let (objects, closed): (i64, i64) = (row.get(0), row.get(1));
    if objects > 0 && copy.large_objects == LargeObjects::Skip {
        out.warning(format!("{objects} large objects are left behind, as the plan says"));
    } else if closed > 0 {
        out.blocker(format!(
            "no right to read {closed} of {objects} large objects: make the role a member of their owners, or grant SELECT on them (pg_read_all_data does not cover them), or say `large_objects: skip`"
        ));
    }
    Ok(())
}

async fn extensions(copy: &Copy, blue: &Session, green: &Session, out: &mut Description) -> Result<()> {
    let installed = blue.query("select extname::text from pg_extension", &[]).await?;
    let names: Vec<String> = installed.iter().map(|row| row.get(0)).collect();
    let rows = green
        .query(
            "select x from unnest($1::text[]) x where not exists (select from pg_available_extensions a where a.name = x)",
            &[&names],
        )
        .await?;
    let missing: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    if !missing.is_empty() {
        out.blocker(format!("{} has not installed the extensions {}", copy.to, few(&missing)));
    }
    // Only trusted extensions can be created by a role that is no superuser.
    let rows = green
        .query(
            "select x from unnest($1::text[]) x
             where not exists (select from pg_extension e where e.extname = x)
               and exists (select from pg_available_extensions a where a.name = x)
               and not exists (select from pg_available_extension_versions v where v.name = x and (v.trusted or not v.superuser))
               and not (select rolsuper from pg_roles where rolname = current_user)",
            &[&names],
        )
        .await?;
    let untrusted: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    if !untrusted.is_empty() {
        out.blocker(format!(
            "only a superuser can create the extensions {} on {}: create them there first",
            few(&untrusted),
            copy.to
        ));
    }
    Ok(())
}

async fn locale(copy: &Copy, blue: &Session, green: &Session, out: &mut Description) -> Result<()> {
    let sql = "select pg_encoding_to_char(encoding)::text, datcollate::text, datctype::text,
                      coalesce(to_jsonb(d)->>'datlocprovider', 'c'), to_jsonb(d)->>'datcollversion'
               from pg_database d where datname = current_database()";
    let (a, b) = (blue.query_one(sql, &[]).await?, green.query_one(sql, &[]).await?);
    for (i, what) in
        ["encoding", "collation", "character classification", "collation provider"].iter().enumerate()
    {
        let (left, right): (String, String) = (a.get(i), b.get(i));
        if left != right {
            out.warning(format!(
                "{what} differs: {left} on {}, {right} on {}; order and case may change",
                copy.from, copy.to
            ));
        }
    }
    let (left, right): (Option<String>, Option<String>) = (a.get(4), b.get(4));
    if let (Some(left), Some(right)) = (left, right)
        && left != right
    {
        out.warning(format!(
            "the collation's version is {left} on {} and {right} on {}: text may sort differently",
            copy.from, copy.to
        ));
    }
    Ok(())
}

/// Refuses entries that name roles which green does not have, or whose objects we cannot give away.
///
/// # Errors
/// All such roles at once.
pub async fn roles(copy: &Copy, green: &Session, entries: &[&Entry]) -> Result<()> {
    if copy.owners == Owners::Skip {
        return Ok(());
    }
    let (mut owners, mut grantees) = (BTreeSet::new(), BTreeSet::new());
    for line in entries.iter().flat_map(|e| e.sql.lines()) {
        let line = line.trim_end().trim_end_matches(';');
        if let Some((head, role)) = line.rsplit_once(" OWNER TO ")
            && (head.starts_with("ALTER ") || !head.contains(' ') || head.contains('"'))
        {
            owners.insert(role.to_owned());
        } else if line.starts_with("GRANT ")
            && let Some((_, role)) = line.rsplit_once(" TO ")
        {
            grantees.insert(role.trim_end_matches(" WITH GRANT OPTION").to_owned());
        }
    }
    grantees.remove("PUBLIC");
    let (mut missing, mut foreign) = (BTreeSet::new(), BTreeSet::new());
    for role in owners.union(&grantees) {
        let row = green
            .query_one(
                "select r is null, coalesce(pg_has_role(current_user, r, 'member'), false) from to_regrole($1) r",
                &[role],
            )
            .await?;
        if row.get(0) {
            missing.insert(role.clone());
        } else if owners.contains(role) && !row.get::<_, bool>(1) {
            foreign.insert(role.clone());
        }
    }
    let list = |set: &BTreeSet<String>| few(&set.iter().cloned().collect::<Vec<_>>());
    if !missing.is_empty() {
        return Err(Error::new(
            Class::Privilege,
            format!("roles are missing on the target: {}", list(&missing)),
        )
        .on_database(&copy.to)
        .hint(
            "create them there, or say `owners: skip` to leave owners and grants behind; nothing was changed",
        ));
    }
    if !foreign.is_empty() {
        return Err(Error::new(Class::Privilege, format!("objects cannot be given to their owners {}", list(&foreign)))
            .on_database(&copy.to)
            .hint("make the role of the plan a member of them (scripts/grants.sql), or say `owners: skip`; nothing was changed"));
    }
    Ok(())
}

/// What describes green before the copy, for a dry run.
pub async fn emptiness(copy: &Copy, green: &Session, resumable: bool, out: &mut Description) -> Result<()> {
    let found = created::strangers(green).await?;
    if !found.is_empty() && !resumable {
        out.blocker(format!("{} is not empty: it has {}", copy.to, few(&found)));
    }
    Ok(())
}
