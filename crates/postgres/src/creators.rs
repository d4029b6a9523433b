//! Whose code runs when we execute SQL. In a call, a function whose parameters fit exactly is preferred to the server's own
//! of that name, whatever stands first in the path: `public.lower(varchar)` is called where the plan says `lower(name)`,
//! with the rights of whoever executes the plan. Up to Postgres 14, everybody may create in `public` unless that was
//! taken back; and what was made by then stays. The owner of a type decides what it is cast to json by, wherever a row
//! of it is read. So all of these must be roles that are trusted with the application's tables anyhow.
//! (<https://www.postgresql.org/docs/current/typeconv-func.html>, <https://www.postgresql.org/docs/current/sql-createcast.html>)

use super::catalog::is_application;
use super::profile::SearchPath;
use super::{Session, Worker, quote_ident};
use handover_core::error::Result;

/// What somebody can do, or did, who is not trusted with everything there anyhow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Creator {
    /// May create in a schema of the plan's path; none is everybody.
    May(String, Option<String>),
    /// Owns a routine or an operator in one.
    Made(String, String),
    /// Owns a type of the application's columns.
    Type(String, String),
}

impl Creator {
    /// Whether the right is there for whoever comes, rather than used already.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self, Creator::May(..))
    }

    /// What is wrong, in words.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Creator::May(schema, role) => {
                let who =
                    role.as_ref().map_or_else(|| "everybody".to_owned(), |role| format!("the role {role}"));
                format!(
                    "{who} may create functions in schema {schema}, where SQL of the plan finds its names: one that fits better than the server's own would run with Handover's rights"
                )
            }
            Creator::Made(what, role) => format!(
                "{what} is where SQL of the plan finds its names, and belongs to {role}, who owns nothing else that Handover works on: a call that it fits would run it with Handover's rights"
            ),
            Creator::Type(what, role) => format!(
                "the type {what} of the application's columns belongs to {role}, who may make functions by which it is cast: they would run with Handover's rights"
            ),
        }
    }

    /// What mends it.
    #[must_use]
    pub fn cure(&self) -> String {
        match self {
            Creator::May(schema, role) => {
                let role = role.as_ref().map_or_else(|| "public".to_owned(), |role| quote_ident(role));
                format!(
                    "`revoke create on schema {} from {role};` in this database, after `grant create on schema …` to the roles that make tables there",
                    quote_ident(schema)
                )
            }
            Creator::Made(what, role) => format!(
                "drop {what}, or give it to the owner of the tables (`alter … owner to …`); `grant {} to …` says that Handover's role trusts its owner",
                quote_ident(role)
            ),
            Creator::Type(what, role) => format!(
                "`alter type {what} owner to …` gives it to the owner of the tables; `grant {} to …` says that Handover's role trusts its owner",
                quote_ident(role)
            ),
        }
    }
}

/// Who may create in the schemas of a path, or did, or owns types of the application's columns, other than the schemas'
/// owners, the database's, superusers, and the roles that `worker` is a member of: those own what the plan works on.
/// Where nobody knows who works, all that can be told is what is open to everybody.
pub async fn look(session: &Session, path: &SearchPath, worker: &Worker) -> Result<Vec<Creator>> {
    let stranger = "not coalesce(r.rolsuper, false) and r.rolname is distinct from 'pg_database_owner'
        and r.oid <> (select d.datdba from pg_database d where d.datname = current_database())
        and not exists (select from pg_roles w where w.rolname = coalesce($2, current_user::text)
                        and pg_has_role(w.oid, r.oid, 'member'))";
    let sql = format!(
        "with may as (
             select n.nspname::text as what, r.rolname::text as role
             from pg_namespace n cross join lateral aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
             left join pg_roles r on r.oid = a.grantee
             where n.nspname = any ($1::text[]) and a.privilege_type = 'CREATE' and a.grantee <> n.nspowner
               and case when a.grantee = 0 then true else {stranger} end),
         made as (
             select p.oid::regprocedure::text as what, r.rolname::text as role
             from pg_proc p join pg_namespace n on n.oid = p.pronamespace join pg_roles r on r.oid = p.proowner
             where n.nspname = any ($1::text[]) and {stranger}
             union all
             select o.oid::regoperator::text, r.rolname::text
             from pg_operator o join pg_namespace n on n.oid = o.oprnamespace join pg_roles r on r.oid = o.oprowner
             where n.nspname = any ($1::text[]) and {stranger}),
         used as (
             select distinct coalesce(nullif(t.typelem, 0), t.oid) as oid
             from pg_class c join pg_namespace n on n.oid = c.relnamespace join pg_attribute a on a.attrelid = c.oid
             join pg_type t on t.oid = a.atttypid
             where {tables} and a.attnum > 0 and not a.attisdropped and t.oid >= 16384),
         type as (
             select t.oid::regtype::text as what, r.rolname::text as role
             from used u join pg_type t on t.oid = u.oid join pg_roles r on r.oid = t.typowner
             where t.oid >= 16384 and {stranger})
         select distinct kind, what, role from (
             select 1 as kind, * from may union all select 2, * from made union all select 3, * from type) f
         order by 1, 2, 3 nulls first",
        tables = is_application("'r', 'p'")
    );
    let rows = session.query(&sql, &[&path.0, &worker.named()]).await?;
    Ok(rows
        .iter()
        .map(|row| {
            let (what, role): (String, Option<String>) = (row.get(1), row.get(2));
            match row.get::<_, i32>(0) {
                1 => Creator::May(what, role),
                2 => Creator::Made(what, role.unwrap_or_default()),
                _ => Creator::Type(what, role.unwrap_or_default()),
            }
        })
        .filter(|found| *worker != Worker::Unknown || matches!(found, Creator::May(_, None)))
        .collect())
}
