//! When a row that differed, while it is written on one side and replicated to the other, is equal after all, and
//! when it is not. No I/O: what was seen goes in, a verdict comes out.
//!
//! A round reads the row before, passes a fence, reads it after, and reads it before again.
//!
//! - **Before stood still** over the round: whatever it holds had arrived. Equal is equal. Different, in three
//!   rounds in a row with the same contents, is a real difference: nothing on its way could explain it.
//! - **Before was written meanwhile**: one round proves nothing. A row that does not follow any more could happen
//!   to hold what the other held a while ago. So after must be seen with *two different* contents that before was
//!   seen to have, the second read there only after the first was seen here, with all its columns.
//!   A row that stands still by mistake never shows two.

use crate::narrow::{Content, Now};
use std::collections::BTreeSet;

/// Rounds in a row that must find the same difference.
const ROUNDS: u32 = 3;
/// Contents of a row that are remembered.
const REMEMBERED: usize = 1_000;

/// What is known by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet.
    Open,
    /// The same.
    Equal,
    /// Not the same, for certain.
    Different,
}

/// One row.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    /// Contents that before was seen to have, since after was first seen to have one of them.
    seen: BTreeSet<Content>,
    /// The first of them that after was seen to have.
    met: Option<Content>,
    /// Whether after was seen to have another one since.
    followed: bool,
    /// The difference that was found last, and how often in a row.
    stuck: Option<(Now, Content)>,
    proven: u32,
    unproven: u32,
}

impl Watched {
    /// A reading of before.
    pub fn before(&mut self, content: Content) {
        if self.seen.len() < REMEMBERED {
            self.seen.insert(content);
        }
    }

    /// A reading of after, of a time later than the readings of before so far.
    pub fn after(&mut self, content: Content) {
        if !self.seen.contains(&content) {
            return;
        }
        match self.met {
            None => {
                self.met = Some(content);
                self.seen.clear();
            }
            Some(first) => self.followed |= first != content,
        }
    }

    /// The end of a round: before (which [`Watched::before`] was told when it was read), after (behind the fence
    /// if `proven`), and before again.
    pub fn round(&mut self, first: &Now, after: Content, last: &Now, proven: bool) -> Verdict {
        self.after(after);
        self.before(last.content);
        if first.content != last.content || first.version != last.version {
            (self.stuck, self.proven, self.unproven) = (None, 0, 0);
            return if self.followed { Verdict::Equal } else { Verdict::Open };
        }
        if after == first.content {
            return Verdict::Equal;
        }
        let found = Some((first.clone(), after));
        if self.stuck != found {
            (self.stuck, self.proven, self.unproven) = (found, 0, 0);
        }
        self.proven += u32::from(proven);
        self.unproven += u32::from(!proven);
        if self.proven >= ROUNDS { Verdict::Different } else { Verdict::Open }
    }

    /// Whether before was written in the last round, so that looking often is what helps.
    #[must_use]
    pub fn hot(&self) -> bool {
        self.stuck.is_none()
    }

    /// When time is up: whether it stood still and differed as far as anybody can tell without a fence: in as
    /// many rounds in a row, because one may have been written right before.
    #[must_use]
    pub fn differs(&self) -> bool {
        self.unproven >= ROUNDS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(row: &mut Watched, first: &Now, after: Content, last: &Now, proven: bool) -> Verdict {
        row.before(first.content);
        row.round(first, after, last, proven)
    }

    fn now(content: i64, version: u32) -> Now {
        Now { content: Some(content), version: Some(version.to_string()), columns: Vec::new() }
    }

    #[test]
    fn a_row_that_stands_still_is_judged_behind_the_fence() {
        let mut row = Watched::default();
        assert_eq!(round(&mut row, &now(1, 1), Some(1), &now(1, 1), true), Verdict::Equal);
        let mut row = Watched::default();
        let mut again = |after, proven| round(&mut row, &now(1, 1), after, &now(1, 1), proven);
        assert_eq!(again(Some(2), true), Verdict::Open);
        assert_eq!(again(Some(2), true), Verdict::Open);
        assert_eq!(again(None, true), Verdict::Open, "it moved after all");
        assert_eq!(again(None, false), Verdict::Open, "which proves nothing");
        assert_eq!(again(None, true), Verdict::Open);
        assert_eq!(again(None, true), Verdict::Different);
        // Without a fence it takes as long, and only when time is up.
        let mut row = Watched::default();
        for n in 1..=3 {
            assert_eq!(round(&mut row, &now(1, 1), Some(2), &now(1, 1), false), Verdict::Open);
            assert_eq!(row.differs(), n == 3);
        }
        // Written and written back: the contents are the same, the version is not.
        let mut row = Watched::default();
        for n in 0..9 {
            assert_eq!(round(&mut row, &now(1, n), Some(2), &now(1, n + 1), true), Verdict::Open);
        }
        assert!(row.hot() && !row.differs());
        // A row that is gone on both sides.
        let gone = Now::default();
        assert_eq!(round(&mut Watched::default(), &gone, None, &gone, true), Verdict::Equal);
    }

    #[test]
    fn a_row_that_is_always_written_must_be_seen_to_follow() {
        let mut row = Watched::default();
        assert_eq!(round(&mut row, &now(1, 1), Some(0), &now(3, 3), true), Verdict::Open);
        assert_eq!(round(&mut row, &now(4, 4), Some(3), &now(5, 5), true), Verdict::Open, "met once");
        assert_eq!(
            round(&mut row, &now(6, 6), Some(5), &now(7, 7), true),
            Verdict::Equal,
            "and again, later"
        );
    }

    #[test]
    fn a_row_that_stopped_following_is_never_excused() {
        // Before flips between two values, after stands at one of them.
        let mut row = Watched::default();
        for n in 0..50 {
            let (one, two) = (now(i64::from(n % 2), n), now(i64::from((n + 1) % 2), n + 1));
            row.before(Some(0));
            row.after(Some(1));
            assert_eq!(round(&mut row, &one, Some(1), &two, true), Verdict::Open);
        }
        // Contents that before had only until it was first met do not count.
        let mut row = Watched::default();
        row.before(Some(1));
        row.before(Some(2));
        row.after(Some(1));
        assert_eq!(round(&mut row, &now(3, 3), Some(2), &now(4, 4), true), Verdict::Open);
    }
}
