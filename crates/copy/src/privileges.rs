//! Who may create what on green, and what no copy carries: known from the catalogs before anything is done, so that
//! everything that is in the way is told at once.

use crate::catalog;
use crate::options::{Copy, LargeObjects, Owners, Selection};
use handover_core::error::Result;
use handover_core::problem::few;
use handover_port::Description;
use handover_postgres::{Session, TableName, ours};
use std::collections::BTreeSet;

/// Looks for all of it.
///
/// # Errors
/// What a server says.
pub async fn look(copy: &Copy, blue: &Session, green: &Session, out: &mut Description) -> Result<()> {
    let row = green
        .query_one(
            "select rolsuper, has_database_privilege(current_database(), 'create'),
                    coalesce(has_schema_privilege(to_regnamespace('public'), 'create'), true),
                    current_setting('transaction_read_only')::bool
             from pg_roles where rolname = current_user",
            &[],
        )
        .await?;
    let (superuser, database, public, reads): (bool, bool, bool, bool) =
        (row.get(0), row.get(1), row.get(2), row.get(3));
    // The role of a dry run may be another: what it may not do says nothing about the one that executes.
    let executes = database || !reads;
    if executes && !(database && public) {
        out.blocker(format!(
            "no right to create in {}: grant CREATE on the database and on schema public (scripts/grants.sql)",
            copy.to
        ));
    }
    if copy.owners == Owners::Keep {
        roles(copy, blue, green, executes, out).await?;
    }
    if executes && !superuser {
        superusers(copy, blue, out).await?;
    }
    left_behind(blue, out).await
}

/// Whether an object of this schema, and of this relation if it is one or belongs to one, is copied.
fn selected(selection: &Selection<'_>, schema: Option<String>, relation: Option<String>) -> bool {
    match (schema, relation) {
        (Some(schema), _) if ours::is_ours(&schema) => false,
        (Some(schema), Some(relation)) => selection.relation(&TableName::new(schema, relation)),
        (Some(schema), None) => selection.schema(&schema),
        (None, _) => true,
    }
}

/// Owners and grantees that green does not have, and owners that it would not let us give anything to.
async fn roles(
    copy: &Copy,
    blue: &Session,
    green: &Session,
    executes: bool,
    out: &mut Description,
) -> Result<()> {
    // What belongs to the first superuser is in no list of dependencies.
    // (https://www.postgresql.org/docs/current/catalog-pg-shdepend.html)
    let rows = blue
        .query(
            &format!(
                "select distinct s.deptype = 'o', r.rolname::text,
                        case when s.classid = 'pg_namespace'::regclass then i.name else i.schema end, c.relname::text
                 from pg_shdepend s join pg_roles r on r.oid = s.refobjid
                 left join pg_class c on s.classid = 'pg_class'::regclass and c.oid = s.objid
                 cross join lateral pg_identify_object(s.classid, s.objid, 0) i
                 where s.dbid = (select oid from pg_database where datname = current_database())
                   and s.refclassid = 'pg_authid'::regclass and s.deptype in ('o', 'a', 'r')
                   and s.classid not in ('pg_largeobject'::regclass, 'pg_extension'::regclass)
                   and not exists (select from pg_depend e where e.classid = s.classid and e.objid = s.objid and e.deptype = 'e')
                 union
                 select true, c.relowner::regrole::text, n.nspname, c.relname
                 from pg_class c join pg_namespace n on n.oid = c.relnamespace
                 where c.relowner < 16384 and c.relkind in ('r', 'p', 'v', 'm', 'S', 'f') and {schemas} and {class}
                 union
                 select true, p.proowner::regrole::text, n.nspname, null
                 from pg_proc p join pg_namespace n on n.oid = p.pronamespace
                 where p.proowner < 16384 and {schemas} and {proc}
                   -- A range type's constructors, which nobody gives away.
                   and not exists (select from pg_depend i where i.classid = 'pg_proc'::regclass and i.objid = p.oid and i.deptype = 'i')",
                schemas = catalog::USER_SCHEMAS,
                class = catalog::no_member("pg_class", "c.oid"),
                proc = catalog::no_member("pg_proc", "p.oid"),
            ),
            &[],
        )
        .await?;
    let (mut owners, mut all) = (BTreeSet::new(), BTreeSet::new());
    let selection = copy.selection();
    for row in &rows {
        let name: String = row.get(1);
        if selected(&selection, row.get(2), row.get(3)) {
            if row.get(0) {
                owners.insert(name.clone());
            }
            all.insert(name);
        }
    }
    if copy.large_objects == LargeObjects::Copy {
        let sql = "select distinct lomowner::regrole::text from pg_largeobject_metadata";
        owners.extend(blue.query(sql, &[]).await?.iter().map(|row| row.get::<_, String>(0)));
        all.extend(owners.iter().cloned());
    }
    let names: Vec<&String> = all.iter().collect();
    let rows = green
        .query(
            // Since Postgres 16 a membership may lack the right to SET ROLE.
            "select n, r.oid is null,
                    case when r.oid is null then false
                         when current_setting('server_version_num')::int >= 160000 then pg_has_role(current_user, r.oid, 'set')
                         else pg_has_role(current_user, r.oid, 'member') end
             from unnest($1::text[]) n left join pg_roles r on r.rolname = n or quote_ident(r.rolname) = n",
            &[&names],
        )
        .await?;
    let (mut missing, mut closed) = (Vec::new(), Vec::new());
    for row in &rows {
        let name: String = row.get(0);
        if row.get(1) {
            missing.push(name);
        } else if executes && owners.contains(&name) && !row.get::<_, bool>(2) {
            closed.push(name);
        }
    }
    if !missing.is_empty() {
        out.blocker(format!(
            "roles are missing on the target: {}: create them there, or say `owners: skip` to leave owners and grants behind",
            few(&missing)
        ));
    }
    if !closed.is_empty() {
        out.blocker(format!(
            "objects cannot be given to their owners {}: make the role of the plan a member of them on {} (scripts/grants.sql), or say `owners: skip`",
            few(&closed), copy.to
        ));
    }
    Ok(())
}

/// What only a superuser can create.
async fn superusers(copy: &Copy, blue: &Session, out: &mut Description) -> Result<()> {
    let publications = if copy.publications {
        // Those of whole schemas (15 and later) depend on them through a catalog that older servers lack.
        "union all select 'pg_publication'::regclass, oid from pg_publication where puballtables
         union all select distinct 'pg_publication'::regclass, d.refobjid
             from pg_depend d join pg_class k on k.oid = d.classid
             where k.relname = 'pg_publication_namespace' and d.refclassid = 'pg_publication'::regclass"
    } else {
        ""
    };
    let rows = blue
        .query(
            &format!(
                "select i.type || ' ' || i.identity,
                        case when o.class = 'pg_namespace'::regclass then i.name else i.schema end
                 from (select 'pg_event_trigger'::regclass, oid from pg_event_trigger
                       union all select 'pg_foreign_data_wrapper'::regclass, oid from pg_foreign_data_wrapper
                       union all select 'pg_opclass'::regclass, oid from pg_opclass
                       union all select 'pg_opfamily'::regclass, oid from pg_opfamily
                       union all select 'pg_am'::regclass, oid from pg_am
                       union all select 'pg_ts_parser'::regclass, oid from pg_ts_parser
                       union all select 'pg_ts_template'::regclass, oid from pg_ts_template
                       union all select 'pg_type'::regclass, oid from pg_type
                           where typtype in ('b', 'p') and not exists (select from pg_type a where a.typarray = pg_type.oid)
                       union all select 'pg_cast'::regclass, oid from pg_cast where castmethod = 'b'
                       union all select 'pg_language'::regclass, oid from pg_language
                       union all select 'pg_proc'::regclass, p.oid from pg_proc p join pg_language l on l.oid = p.prolang
                           where (not l.lanpltrusted and p.prokind <> 'a' or p.proleakproof)
                       {publications}
                 ) o (class, oid)
                 cross join lateral pg_identify_object(o.class, o.oid, 0) i
                 where o.oid >= 16384 and not exists (
                     select from pg_depend d where d.classid = o.class and d.objid = o.oid and d.deptype in ('e', 'i'))
                 order by 1"
            ),
            &[],
        )
        .await?;
    let selection = copy.selection();
    let found: Vec<String> =
        rows.iter().filter(|row| selected(&selection, row.get(1), None)).map(|row| row.get(0)).collect();
    if !found.is_empty() {
        out.blocker(format!(
            "only a superuser can create on {}: {}: let a superuser's URL execute the copy, exclude their schemas, or drop them",
            copy.to,
            few(&found)
        ));
    }
    Ok(())
}

/// Warns of what is no part of a copy.
async fn left_behind(blue: &Session, out: &mut Description) -> Result<()> {
    for (sql, text) in [
        (
            format!(
                "select c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
                 where c.reltablespace <> 0 and {} order by 1",
                catalog::USER_SCHEMAS
            ),
            "tablespaces are not kept; what lies in one goes to the target's default",
        ),
        (
            "select subname::text from pg_subscription where subdbid = (select oid from pg_database where datname = current_database())".into(),
            "subscriptions are not copied",
        ),
        (
            "select coalesce(r.rolname::text, 'all roles') from pg_db_role_setting s left join pg_roles r on r.oid = s.setrole
             where s.setdatabase = (select oid from pg_database where datname = current_database()) order by 1"
                .into(),
            "settings of the database (ALTER DATABASE … SET) are not copied, as are its comment and grants; set for",
        ),
        (
            "select distinct provider from pg_seclabels where objtype not in ('database', 'role', 'tablespace')".into(),
            "security labels are copied, which works only where the target loads their providers",
        ),
        (
            "select srvname || ' for ' || usename from pg_user_mappings where umoptions is null and srvid >= 16384".into(),
            "user mappings may lose options that this role may not see",
        ),
    ] {
        let rows = blue.query(&sql, &[]).await?;
        let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        if !names.is_empty() {
            out.warning(format!("{text}: {}", few(&names)));
        }
    }
    Ok(())
}
