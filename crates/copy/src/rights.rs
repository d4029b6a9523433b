//! What a dump changes of things that were there before it: grants, owner and comment of schemas such as
//! `public`, default privileges, and grants on what belongs to the server or to an extension. Remembered before the copy, put back by its undo.

use crate::state::states;
use handover_core::error::Result;
use handover_core::event::StepId;
use handover_port::Port;
use handover_postgres::catalog::USER_SCHEMAS;
use handover_postgres::{Session, Tx, quote_literal};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use tokio_postgres::types::Json;

/// The unit that remembers.
const UNIT: &str = "rights";

/// Who holds what, as SQL quotes it: grantee, privilege, and whether they may pass it on.
type Grant = (String, String, bool);

/// Something that grants speak of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Holding {
    /// `schema` and its name, or the words of ALTER DEFAULT PRIVILEGES up to the verb.
    of: String,
    /// What grants are ON: `SCHEMA "public"`, `TABLES`.
    on: String,
    /// Owner of a schema.
    owner: Option<String>,
    /// Comment of a schema.
    comment: Option<String>,
    grants: BTreeSet<Grant>,
    /// What there is when nothing is recorded.
    usual: BTreeSet<Grant>,
}

async fn look(tx: &Tx<'_>) -> Result<Vec<Holding>> {
    let grants = |acl: &str| {
        format!(
            "coalesce((select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(
                case when x.grantee = 0 then 'public' else x.grantee::pg_catalog.regrole::text end,
                x.privilege_type, x.is_grantable)) from pg_catalog.aclexplode({acl}) x), '[]')"
        )
    };
    // Of a column, the privilege names it.
    let parts = |acl: &str| {
        grants(acl).replace("x.privilege_type,", "x.privilege_type || coalesce(' (' || o.part || ')', ''),")
    };
    let sql = format!(
        "select '', pg_catalog.format('schema %I', n.nspname), n.nspowner::pg_catalog.regrole::text,
                pg_catalog.obj_description(n.oid, 'pg_namespace'),
                {}, '[]'::jsonb
         from pg_catalog.pg_namespace n where {USER_SCHEMAS}
         union all
         select pg_catalog.format('alter default privileges for role %s%s ', d.defaclrole::pg_catalog.regrole,
                    case when d.defaclnamespace <> 0 then pg_catalog.format(' in schema %s', d.defaclnamespace::pg_catalog.regnamespace) else '' end),
                case d.defaclobjtype when 'r' then 'tables' when 'S' then 'sequences' when 'f' then 'functions'
                    when 'T' then 'types' when 'n' then 'schemas' else 'large objects' end,
                null, null, {}, case when d.defaclnamespace <> 0 then '[]' else {} end
         from pg_catalog.pg_default_acl d
         union all
         select '', o.named, null, null, {}, {} from (
             select 'routine ' || p.oid::pg_catalog.regprocedure, p.proacl, 'f', p.proowner, 'pg_catalog.pg_proc'::pg_catalog.regclass, p.oid, null
             from pg_catalog.pg_proc p
             union all
             select case when c.relkind = 'S' then 'sequence ' else 'table ' end || c.oid::pg_catalog.regclass, c.relacl,
                    case when c.relkind = 'S' then 's' else 'r' end, c.relowner, 'pg_catalog.pg_class'::pg_catalog.regclass, c.oid, null
             from pg_catalog.pg_class c
             union all
             select 'table ' || c.oid::pg_catalog.regclass, a.attacl, 'c', c.relowner, 'pg_catalog.pg_class'::pg_catalog.regclass, c.oid, pg_catalog.quote_ident(a.attname)
             from pg_catalog.pg_attribute a join pg_catalog.pg_class c on c.oid = a.attrelid where a.attacl <> '{{}}'
             union all
             select pg_catalog.format('type %I.%I', n.nspname, t.typname), t.typacl, 'T', t.typowner, 'pg_catalog.pg_type'::pg_catalog.regclass, t.oid, null
             from pg_catalog.pg_type t join pg_catalog.pg_namespace n on n.oid = t.typnamespace
             union all
             select pg_catalog.format('language %I', l.lanname), l.lanacl, 'l', l.lanowner, 'pg_catalog.pg_language'::pg_catalog.regclass, l.oid, null
             from pg_catalog.pg_language l
             union all
             select pg_catalog.format('foreign data wrapper %I', f.fdwname), f.fdwacl, 'F', f.fdwowner, 'pg_catalog.pg_foreign_data_wrapper'::pg_catalog.regclass, f.oid, null
             from pg_catalog.pg_foreign_data_wrapper f
             union all
             select pg_catalog.format('schema %I', n.nspname), n.nspacl, 'n', n.nspowner, 'pg_catalog.pg_namespace'::pg_catalog.regclass, n.oid, null
             from pg_catalog.pg_namespace n where n.nspname in ('pg_catalog', 'information_schema')
         ) o (named, acl, kind, owner, class, id, part)
         where o.acl is not null and (o.id < 16384 or exists (
             select from pg_catalog.pg_depend e where e.classid = o.class and e.objid = o.id and e.deptype = 'e'))",
        grants("coalesce(n.nspacl, pg_catalog.acldefault('n', n.nspowner))"),
        grants("d.defaclacl"),
        grants(
            "pg_catalog.acldefault(case when d.defaclobjtype = 'S' then 's' else d.defaclobjtype end, d.defaclrole)"
        ),
        parts("o.acl"),
        parts("pg_catalog.acldefault(o.kind::pg_catalog.\"char\", o.owner)"),
    );
    let rows = tx.query(&sql, &[]).await?;
    let set = |Json(grants): Json<Vec<Grant>>| grants.into_iter().collect();
    Ok(rows
        .iter()
        .map(|row| Holding {
            of: row.get(0),
            on: row.get(1),
            owner: row.get(2),
            comment: row.get(3),
            grants: set(row.get(4)),
            usual: set(row.get(5)),
        })
        .collect())
}

/// Writes down how things are.
pub async fn remember(tx: &Tx<'_>, port: &Port) -> Result<()> {
    let now = look(tx).await?;
    tx.save_checkpoint(port.run, &port.step, UNIT, &now).await
}

/// Puts back what differs from what was remembered.
pub async fn restore(port: &Port, session: &mut Session) -> Result<()> {
    let step: &StepId = &port.step;
    let Some(before) = states::<Vec<Holding>>(session, port.run, step, UNIT).await?.pop() else {
        return Ok(());
    };
    let before: BTreeMap<_, &Holding> = before.iter().map(|b| ((&b.of, &b.on, b.columns()), b)).collect();
    let tx = session.transaction().await?;
    // Twice: taking a right back also takes what was passed on with it.
    for _ in 0..2 {
        let mut sql = String::new();
        for now in look(&tx).await? {
            match before.get(&(&now.of, &now.on, now.columns())) {
                Some(was) => back(&mut sql, &now, was),
                // What had no list of grants goes back to what holds without; new schemas are dropped elsewhere.
                None if !now.of.is_empty() || now.owner.is_none() => {
                    back(&mut sql, &now, &Holding { grants: now.usual.clone(), ..now.clone() });
                }
                None => {}
            }
        }
        if sql.is_empty() {
            break;
        }
        tx.batch(&sql).await?;
    }
    tx.commit().await
}

impl Holding {
    /// Whether it is of columns: a table has another list for itself.
    fn columns(&self) -> Option<&str> {
        self.grants.first().and_then(|(_, privilege, _)| privilege.split_once(' ').map(|(_, part)| part))
    }
}

/// Statements that lead from one to the other.
fn back(sql: &mut String, now: &Holding, was: &Holding) {
    if let (Some(there), Some(owner)) = (&now.owner, &was.owner)
        && there != owner
    {
        sql.push_str(&format!("alter {} owner to {owner};\n", now.on));
    }
    if now.comment != was.comment {
        let text = was.comment.as_ref().map_or("null".to_owned(), |c| quote_literal(c));
        sql.push_str(&format!("comment on {} is {text};\n", now.on));
    }
    for (grantee, privilege, _) in now.grants.difference(&was.grants) {
        sql.push_str(&format!("{}revoke {privilege} on {} from {grantee} cascade;\n", now.of, now.on));
    }
    for (grantee, privilege, option) in was.grants.difference(&now.grants) {
        let option = if *option { " with grant option" } else { "" };
        sql.push_str(&format!("{}grant {privilege} on {} to {grantee}{option};\n", now.of, now.on));
    }
}
