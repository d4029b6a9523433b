//! How large a batch is: its row locks are to be held for no longer than a second.
//!
//! A batch costs something for each of its rows, and something that is the same for any number of them: a condition
//! with `not in (select …)` reads the whole list for each statement. Where the second part is what takes long, smaller
//! batches do not hold locks for less, they only multiply it. So sizes are halved only as long as that helps, and grow
//! again when the database has time.

use std::time::Duration;

/// A batch that takes longer is too large.
const SLOW: Duration = Duration::from_secs(1);
/// A batch that takes less is too small.
const FAST: Duration = Duration::from_millis(250);
/// Rows looked at in one transaction, at first and at most.
const WINDOW: u64 = 20_000;
const WINDOW_MAX: u64 = 500_000;
/// After so many batches that were neither slow nor fast, a larger one is tried.
const CALM: u32 = 4;
/// So many slow batches are borne where smaller ones did not help, before they are tried again.
const BORNE: u32 = 8;

/// Sizes that follow the database's speed; not kept, because no outcome depends on them.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Rows changed in one transaction, at most.
    pub batch: u64,
    /// Rows looked at in one transaction.
    pub window: u64,
    /// What the plan allows.
    most: u64,
    /// The sizes before the last halving, and how long they took.
    halved: Option<(u64, u64, Duration)>,
    calm: u32,
    borne: u32,
}

impl Pace {
    /// For batches of at most so many rows.
    pub fn new(batch: u64) -> Self {
        Pace { batch, window: WINDOW.max(batch), most: batch, halved: None, calm: 0, borne: 0 }
    }

    /// Learns from how long a batch took.
    pub fn after(&mut self, took: Duration) {
        if took > SLOW {
            self.calm = 0;
            self.shrink(took);
            return;
        }
        self.halved = None;
        self.calm += 1;
        if took < FAST || self.calm >= CALM {
            self.calm = 0;
            self.batch = (self.batch * 2).min(self.most);
            self.window = (self.window * 2).min(WINDOW_MAX.max(self.most));
        }
    }

    fn shrink(&mut self, took: Duration) {
        if let Some((batch, window, before)) = self.halved.take()
            && took > before * 3 / 4
        {
            (self.batch, self.window, self.borne) = (batch, window, BORNE);
            return;
        }
        if self.borne > 0 {
            self.borne -= 1;
            return;
        }
        self.halved = Some((self.batch, self.window, took));
        self.batch = (self.batch / 2).max(1.max(self.most / 64));
        self.window = (self.window / 2).max(self.batch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks over `rows`, of which none matches; how long that takes, by what a batch and a row of it cost. The
    /// first `busy` batches take three seconds more.
    fn walk(rows: u64, each_batch: f64, each_row: f64, busy: u32) -> (f64, f64) {
        let (mut pace, mut left, mut all, mut last, mut n) = (Pace::new(5000), rows, 0.0, 0.0, 0);
        while left > 0 {
            let looked = pace.window.min(left);
            #[allow(clippy::cast_precision_loss)]
            let took = each_batch + each_row * looked as f64 + if n < busy { 3.0 } else { 0.0 };
            pace.after(Duration::from_secs_f64(took));
            (left, all, last, n) = (left - looked, all + took, took, n + 1);
        }
        (all, last)
    }

    #[test]
    fn what_a_statement_costs_by_itself_is_not_multiplied() {
        // With sizes that only grow again below a quarter of a second, the first took more than two minutes.
        let (took, _) = walk(300_000, 0.3, 0.0, 5);
        assert!(took < 30.0, "{took}");
        let (took, _) = walk(300_000, 1.5, 0.000_01, 0);
        assert!(took < 40.0, "{took}");
    }

    #[test]
    fn batches_of_slow_rows_become_small() {
        let mut pace = Pace::new(5000);
        for _ in 0..30 {
            #[allow(clippy::cast_precision_loss)]
            pace.after(Duration::from_secs_f64(0.000_5 * pace.window as f64));
        }
        assert!(pace.window <= 4000, "{pace:?}");
    }
}
