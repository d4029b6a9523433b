//! Who may put functions where SQL of the plan finds names. In a call, a function whose parameters fit exactly is
//! preferred to the server's own of that name, whatever stands first in the path: `public.lower(varchar)` is called where
//! the plan says `lower(name)`, with the rights of whoever executes the plan. Up to Postgres 14, everybody may create in
//! `public` unless that was taken back.
//! (<https://www.postgresql.org/docs/current/typeconv-func.html>)

use super::profile::SearchPath;
use super::{Session, quote_ident};
use crate::error::Result;

/// Somebody who may create in a schema of the plan's path, and is not trusted with everything there anyhow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Creator {
    /// The schema.
    pub schema: String,
    /// The role; none is everybody.
    pub role: Option<String>,
}

impl Creator {
    /// What is wrong, in words.
    #[must_use]
    pub fn text(&self) -> String {
        let who =
            self.role.as_ref().map_or_else(|| "everybody".to_owned(), |role| format!("the role {role}"));
        format!(
            "{who} may create functions in schema {}, where SQL of the plan finds its names: one that fits better than the server's own would run with Handover's rights",
            self.schema
        )
    }

    /// What mends it.
    #[must_use]
    pub fn cure(&self) -> String {
        let role = self.role.as_ref().map_or_else(|| "public".to_owned(), |role| quote_ident(role));
        format!(
            "`revoke create on schema {} from {role};` in this database, after `grant create on schema …` to the roles that make tables there",
            quote_ident(&self.schema)
        )
    }
}

/// Who may create in the schemas of a path, other than their owners, the database's, superusers, and the roles that
/// `working` is a member of: those own what the plan works on. `working` is the session's own role unless given.
///
/// # Errors
/// What the server says.
pub async fn look(session: &Session, path: &SearchPath, working: Option<&str>) -> Result<Vec<Creator>> {
    let rows = session
        .query(
            "select n.nspname::text, r.rolname::text
             from pg_catalog.pg_namespace n
             cross join lateral pg_catalog.aclexplode(coalesce(n.nspacl, pg_catalog.acldefault('n', n.nspowner))) a
             left join pg_catalog.pg_roles r on r.oid = a.grantee
             where n.nspname = any ($1::text[]) and a.privilege_type = 'CREATE' and a.grantee <> n.nspowner
               and a.grantee <> (select d.datdba from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
               and case when a.grantee = 0 then true else
                   not coalesce(r.rolsuper, false) and r.rolname is distinct from 'pg_database_owner'
                   and not exists (select from pg_catalog.pg_roles w where w.rolname = coalesce($2, current_user::text)
                                   and pg_catalog.pg_has_role(w.oid, a.grantee, 'member')) end
             group by 1, 2 order by 1, 2 nulls first",
            &[&path.0, &working],
        )
        .await?;
    Ok(rows.iter().map(|row| Creator { schema: row.get(0), role: row.get(1) }).collect())
}
