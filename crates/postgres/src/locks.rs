//! How many locks a server has room for. The table of locks has a fixed size; who needs one more is told `out of
//! shared memory`, and so is everybody else on that server. So it is counted and never tried.
//! (<https://www.postgresql.org/docs/current/runtime-config-locks.html#GUC-MAX-LOCKS-PER-TRANSACTION>)

use super::Session;
use handover_core::error::Result;

/// The part of the room that is left to everybody else, as a divisor.
const OTHERS: u64 = 10;

/// The room for locks of one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// How many locks it can hold.
    pub capacity: u64,
    /// How many it holds now, for others than us.
    pub used: u64,
    /// Its `max_locks_per_transaction`.
    pub setting: u64,
    /// How many processes and prepared transactions that is multiplied with.
    pub slots: u64,
}

impl Room {
    /// Asks a server.
    pub async fn of(session: &Session) -> Result<Self> {
        // Backends of every sort have a share; `autovacuum_worker_slots` is new in 18.
        let row = session
            .query_one(
                "select (select sum(setting::int8)::int8 from pg_settings
                         where name in ('max_connections', 'max_prepared_transactions', 'max_worker_processes', 'max_wal_senders')
                            or name = (select max(name) from pg_settings where name in ('autovacuum_max_workers', 'autovacuum_worker_slots'))),
                        current_setting('max_locks_per_transaction')::int8,
                        (select count(*) from pg_locks l where not l.fastpath and not exists (
                             select from pg_stat_activity a where a.pid = l.pid and starts_with(a.application_name, 'handover')))",
                &[],
            )
            .await?;
        let number = |at: usize| row.get::<_, i64>(at).unsigned_abs();
        let (slots, setting) = (number(0).max(1), number(1));
        Ok(Room { capacity: slots * setting, used: number(2), setting, slots })
    }

    /// What stands in the way of taking so many locks at once, with the setting that is needed; none when there is
    /// room for them and for everybody else.
    #[must_use]
    pub fn lacks(&self, need: u64, what: &str, database: &str) -> Option<String> {
        let all = need + self.used + self.capacity / OTHERS;
        if all <= self.capacity {
            return None;
        }
        Some(format!(
            "{what} needs {need} locks on {database} at once, whose table of locks has room for about {} ({} are in use): set max_locks_per_transaction there to {} or more (it is {}) and restart that server",
            self.capacity,
            self.used,
            self.enough(need),
            self.setting
        ))
    }

    /// The setting with which so many locks find room.
    #[must_use]
    pub fn enough(&self, need: u64) -> u64 {
        let wanted = (need + self.used) * (OTHERS + 1) / (OTHERS - 1);
        wanted.div_ceil(self.slots).next_multiple_of(64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_that_is_advised_is_enough_and_not_much_more() {
        for (slots, setting, used) in [(122, 64, 30), (20, 10, 5), (1000, 64, 4000)] {
            let room = Room { capacity: slots * setting, used, setting, slots };
            for need in [0, 100, 5000, 100_000] {
                let advised = room.enough(need);
                let then = Room { capacity: slots * advised, setting: advised, ..room };
                assert_eq!(then.lacks(need, "it", "blue"), None, "{room:?} {need} {advised}");
                if room.lacks(need, "it", "blue").is_some() {
                    assert!(advised > setting, "{room:?} {need} {advised}");
                    assert!(slots * advised < 2 * (need + used) + slots * 64, "{room:?} {need} {advised}");
                }
            }
        }
    }
}
