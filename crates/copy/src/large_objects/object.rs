//! Large objects without their content: whose they are, who may use them, and what is said about them.
//! (<https://www.postgresql.org/docs/current/catalog-pg-largeobject-metadata.html>)

use crate::options::{Copy, Owners};
use handover_core::error::{Error, Result};
use handover_postgres::{Tx, quote_literal};
use serde::Deserialize;
use tokio_postgres::Row;
use tokio_postgres::types::Json;

/// All there are for large objects.
const PRIVILEGES: [&str; 2] = ["SELECT", "UPDATE"];

/// One right on an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Right {
    grantor: String,
    /// None for everybody.
    grantee: Option<String>,
    privilege: String,
    grantable: bool,
}

/// An object without its content.
#[derive(Debug, Clone)]
pub struct Object {
    /// Its number.
    pub oid: u32,
    /// As SQL quotes it.
    pub owner: String,
    /// None for those that an owner has by default.
    pub rights: Option<Vec<Right>>,
    /// What is said about it.
    pub comment: Option<String>,
}

impl Object {
    /// Whether the owner may read and write it, which writing asks for.
    pub fn is_open_to_owner(&self) -> bool {
        self.rights.as_ref().is_none_or(|rights| {
            PRIVILEGES.iter().all(|privilege| {
                rights.iter().any(|r| r.privilege == *privilege && r.grantee.as_ref() == Some(&self.owner))
            })
        })
    }

    /// Its rights in an order of their own, those by default spelled out.
    fn sorted(&self) -> Vec<Right> {
        let by_default = |privilege: &&str| Right {
            grantor: self.owner.clone(),
            grantee: Some(self.owner.clone()),
            privilege: (*privilege).to_owned(),
            grantable: false,
        };
        let mut rights = match &self.rights {
            Some(rights) => rights.clone(),
            None => PRIVILEGES.iter().map(by_default).collect(),
        };
        rights.sort();
        rights
    }
}

/// Asks for the objects that a condition on `m.oid` chooses, in the order of their numbers.
pub fn query(condition: &str) -> String {
    format!(
        "select m.oid, m.lomowner::regrole::text,
                case when m.lomacl is not null then
                    coalesce((select jsonb_agg(jsonb_build_object(
                            'grantor', x.grantor::regrole::text,
                            'grantee', case when x.grantee <> 0 then x.grantee::regrole::text end,
                            'privilege', x.privilege_type, 'grantable', x.is_grantable) order by x.n)
                        from aclexplode(m.lomacl) with ordinality x (grantor, grantee, privilege_type, is_grantable, n)),
                    '[]') end,
                d.description
         from pg_largeobject_metadata m
         left join pg_description d
            on d.classoid = 'pg_largeobject'::regclass and d.objoid = m.oid and d.objsubid = 0
         where {condition} order by m.oid"
    )
}

/// What [`query`] found.
pub fn read(rows: &[Row]) -> Result<Vec<Object>> {
    rows.iter()
        .map(|row| {
            let rights: Option<Json<Vec<Right>>> = row
                .try_get(2)
                .map_err(|e| Error::internal(format!("a large object's rights cannot be read ({e})")))?;
            Ok(Object {
                oid: row.get(0),
                owner: row.get(1),
                rights: rights.map(|Json(rights)| rights),
                comment: row.get(3),
            })
        })
        .collect()
}

/// Acts as an object's owner until [`as_ourselves`], so that what is made is theirs.
pub async fn as_owner(tx: &Tx<'_>, copy: &Copy, owner: &str) -> Result<()> {
    if copy.owners == Owners::Skip {
        return Ok(());
    }
    tx.batch(&format!("set local role {owner}")).await
}

/// Ends [`as_owner`].
pub async fn as_ourselves(tx: &Tx<'_>) -> Result<()> {
    tx.batch("set local role none").await
}

/// Grants, revokes and comments, as the owner or whoever granted.
pub async fn decorate<'a>(tx: &Tx<'_>, copy: &Copy, objects: impl Iterator<Item = &'a Object>) -> Result<()> {
    let mut sql = String::new();
    for object in objects {
        if copy.owners == Owners::Skip {
            sql.extend(object.comment.iter().map(|text| comment(object.oid, Some(text))));
        } else if object.comment.is_some() || object.rights.is_some() {
            sql.push_str(&format!("set local role {};\n", object.owner));
            sql.extend(object.comment.iter().map(|text| comment(object.oid, Some(text))));
            sql.extend(object.rights.iter().map(|rights| acl(object, rights)));
        }
    }
    if !sql.is_empty() {
        tx.batch(&sql).await?;
    }
    as_ourselves(tx).await
}

/// Statements that give an object on the target the owner, rights and comment it has on the source. To be executed
/// by ourselves, who are a member of both owners' roles; nothing when there is no difference.
pub fn align(copy: &Copy, wanted: &Object, there: &Object) -> String {
    let mut sql = String::new();
    let oid = wanted.oid;
    let mut now = there.clone();
    if copy.owners == Owners::Keep && wanted.owner != there.owner {
        sql.push_str(&format!("alter large object {oid} owner to {};\n", wanted.owner));
        // The server puts the new owner in the old one's place everywhere.
        now.owner.clone_from(&wanted.owner);
        for right in now.rights.iter_mut().flatten() {
            for role in [Some(&mut right.grantor), right.grantee.as_mut()].into_iter().flatten() {
                if *role == there.owner {
                    role.clone_from(&wanted.owner);
                }
            }
        }
    }
    if wanted.comment != there.comment {
        sql.push_str(&comment(oid, wanted.comment.as_deref()));
    }
    if copy.owners == Owners::Keep && wanted.sorted() != now.sorted() {
        sql.push_str(&format!("set local role {};\n", wanted.owner));
        // What others passed on hangs on what the owner gave.
        for right in now.rights.iter().flatten().filter(|r| r.grantor == now.owner) {
            let grantee = right.grantee.as_deref().unwrap_or("public");
            if grantee != now.owner {
                sql.push_str(&format!("revoke all on large object {oid} from {grantee} cascade;\n"));
            }
        }
        sql.push_str(&format!("grant all on large object {oid} to {};\n", wanted.owner));
        sql.push_str(&acl(wanted, wanted.rights.as_deref().unwrap_or(&wanted.sorted())));
        sql.push_str("set local role none;\n");
    }
    sql
}

fn comment(oid: u32, text: Option<&str>) -> String {
    let text = text.map_or_else(|| "null".to_owned(), quote_literal);
    format!("comment on large object {oid} is {text};\n")
}

/// Statements that turn the rights a new object has (its owner's) into these.
fn acl(object: &Object, rights: &[Right]) -> String {
    let mut sql = String::new();
    let mut role = object.owner.as_str();
    // What the owner gave comes first: others may have passed it on.
    for first in [true, false] {
        for right in rights.iter().filter(|r| (r.grantor == object.owner) == first) {
            let grantee = right.grantee.as_deref().unwrap_or("public");
            if grantee == object.owner {
                continue;
            }
            if right.grantor != role {
                role = &right.grantor;
                sql.push_str(&format!("set local role {role};\n"));
            }
            let option = if right.grantable { " with grant option" } else { "" };
            sql.push_str(&format!(
                "grant {} on large object {} to {grantee}{option};\n",
                right.privilege, object.oid
            ));
        }
    }
    for privilege in PRIVILEGES {
        let has = |r: &Right| r.privilege == privilege && r.grantee.as_ref() == Some(&object.owner);
        if !rights.iter().any(has) {
            sql.push_str(&format!(
                "set local role {0};\nrevoke {privilege} on large object {1} from {0};\n",
                object.owner, object.oid
            ));
        }
    }
    sql
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right(grantor: &str, grantee: Option<&str>, privilege: &str, grantable: bool) -> Right {
        Right {
            grantor: grantor.into(),
            grantee: grantee.map(str::to_owned),
            privilege: privilege.into(),
            grantable,
        }
    }

    #[test]
    fn rights_are_granted_by_whoever_granted_them() {
        let object = Object { oid: 7, owner: "app".into(), rights: None, comment: None };
        let rights = [
            right("\"B\"", None, "SELECT", false),
            right("app", Some("app"), "SELECT", false),
            right("app", Some("\"B\""), "SELECT", true),
        ];
        assert_eq!(
            acl(&object, &rights),
            "grant SELECT on large object 7 to \"B\" with grant option;\n\
             set local role \"B\";\n\
             grant SELECT on large object 7 to public;\n\
             set local role app;\n\
             revoke UPDATE on large object 7 from app;\n"
        );
    }
}
