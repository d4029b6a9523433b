//! What each step kind asks of the role that executes it; `docs/grants.md` says why, `scripts/grants.sql` gives it.

use crate::steps::Access;

/// Something a role must be able to do in a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// `CREATE` on the database: our own schema, and schemas of the application's.
    CreateInDatabase,
    /// The rights of the owner of every table: DDL, locks, triggers, changing rows.
    ActAsOwners,
    /// `SET ROLE` to the owners, so that new objects belong to the application.
    BecomeOwners,
    /// `CREATE` on the schemas of the tables.
    CreateInSchemas,
    /// Reading every table.
    ReadEverything,
    /// Statistics and sessions of others.
    Monitor,
    /// Loading without firing triggers.
    ReplicationRole,
    /// Cancelling an autovacuum that is in the way.
    SignalAutovacuum,
}

/// What the kinds of a database's steps need, without repetition.
#[must_use]
pub fn of(kinds: &[(&str, Access)]) -> Vec<Need> {
    let mut out: Vec<Need> =
        kinds.iter().flat_map(|(kind, access)| one(kind, *access).iter().copied()).collect();
    if kinds.iter().any(|(_, access)| *access == Access::Write) {
        out.push(Need::CreateInDatabase);
    }
    out.sort_unstable();
    out.dedup();
    out
}

fn one(kind: &str, access: Access) -> &'static [Need] {
    use Need::{
        ActAsOwners, BecomeOwners, CreateInSchemas, Monitor, ReadEverything, ReplicationRole,
        SignalAutovacuum,
    };
    match (kind, access) {
        ("lever" | "approve", _) => &[],
        ("copy", Access::Write) => {
            &[ActAsOwners, BecomeOwners, CreateInSchemas, ReplicationRole, ReadEverything]
        }
        (_, Access::Read) => &[ReadEverything, Monitor],
        ("create_index", _) => &[ActAsOwners, CreateInSchemas, Monitor],
        ("migrate", _) => &[ActAsOwners, BecomeOwners, CreateInSchemas],
        ("cutover", _) => &[ActAsOwners, Monitor, SignalAutovacuum, ReadEverything],
        // capture, cleanup, replay, replicate, restore and what is yet to come: they change the application's rows.
        _ => &[ActAsOwners, ReadEverything, Monitor],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_only_reads_needs_no_owner() {
        assert_eq!(of(&[("verify", Access::Read)]), [Need::ReadEverything, Need::Monitor]);
        assert!(of(&[("create_index", Access::Write)]).contains(&Need::CreateInDatabase));
    }
}
