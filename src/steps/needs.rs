//! What a step asks of the role that executes it; `docs/grants.md` says why, `scripts/grants.sql` gives it.

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

/// Locks on every table and sequence at once, which the server must have room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Locks {
    /// What takes them, in words.
    pub what: &'static str,
    /// How many on each.
    pub each: u64,
}
