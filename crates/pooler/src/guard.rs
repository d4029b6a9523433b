//! The guard: beside a pooler, it lets clients go on when Handover holds them and is gone.
//!
//! It knows Handover's pause by the beat: a connection to the console named `handover-hold/…`, which asks something twice a
//! second from well before the pause until after it. A process that was killed loses that connection; one that was stopped
//! or cut off keeps it and asks nothing. A pause that began without a beat is somebody else's, and is left alone.

use crate::console::{Console, named};
use crate::hold::Role;
use crate::look;
use handover_core::error::{Error, Result};
use handover_core::value::EnvString;
use std::time::{Duration, Instant};

/// How often it looks. Twice within the time for which a beat is there before a pause.
const EVERY: Duration = Duration::from_millis(400);
/// A beat is seen to the second, so it may look this old and be new.
const FRESH: Duration = Duration::from_secs(2);

/// What one look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    paused: bool,
    /// For how long the beat has been silent; none when there is none.
    beat: Option<Duration>,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Nothing is paused.
    Open,
    /// Handover holds it, and beats.
    Held,
    /// Handover holds it, and has not beaten for this long.
    Silent(Duration),
    /// Let clients go on.
    Resume(Duration),
    /// Somebody else holds it.
    Foreign,
}

/// What is known from earlier looks. Pure.
#[derive(Debug, Default)]
struct Watch {
    /// When the beat was last there. Forgotten when nothing is paused and nobody beats.
    beaten: Option<Instant>,
    /// Whether the pause was there before any beat.
    foreign: bool,
}

impl Watch {
    fn judge(&mut self, seen: Seen, now: Instant, after: Duration) -> Verdict {
        if let Some(silent) = seen.beat.filter(|silent| *silent <= FRESH) {
            let at = now.checked_sub(silent).unwrap_or(now);
            if seen.paused && self.beaten.is_none() {
                self.foreign = true;
            }
            self.beaten = Some(self.beaten.map_or(at, |known| known.max(at)));
        }
        if !seen.paused {
            self.foreign = false;
            if seen.beat.is_none_or(|silent| silent > FRESH) {
                self.beaten = None;
            }
            return Verdict::Open;
        }
        match self.beaten {
            _ if self.foreign => Verdict::Foreign,
            None => {
                self.foreign = true;
                Verdict::Foreign
            }
            Some(at) => {
                let silent = now.saturating_duration_since(at);
                match seen.beat {
                    _ if silent > after => Verdict::Resume(silent),
                    Some(age) if age <= FRESH => Verdict::Held,
                    _ => Verdict::Silent(silent),
                }
            }
        }
    }
}

/// What a guard tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// It watches.
    Watching {
        /// The pooler.
        place: String,
    },
    /// Handover has paused the entry.
    Held,
    /// The entry goes on, by whomever.
    Open,
    /// Somebody else has paused the entry.
    Foreign,
    /// Handover has stopped beating while the entry is paused.
    Silent,
    /// It has let clients go on, after this long without a beat.
    Resumed(Duration),
    /// The console cannot be asked; it tries again.
    Lost(String),
}

/// Watches one entry of one pooler without end, and tells what happens.
///
/// # Errors
/// What no waiting mends: a URL that cannot be read, a login that is refused, an entry that is not there.
pub async fn watch(
    admin: &EnvString,
    database: &str,
    after: Duration,
    mut tell: impl FnMut(Told),
) -> Result<()> {
    // What was known of a pooler is kept while it cannot be asked: it may be paused all the same.
    let mut watch = Watch::default();
    let mut last = None;
    loop {
        let error = match Console::open(admin, "--admin", &Role::Guard.name(database)).await {
            Ok(console) => {
                tell(Told::Watching { place: console.place.clone() });
                match follow(&console, database, after, &mut watch, &mut last, &mut tell).await {
                    Ok(()) => continue,
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        if !error.class().is_transient() {
            return Err(error);
        }
        let lost = Told::Lost(error.to_string());
        if last.as_ref() != Some(&lost) {
            tell(lost.clone());
        }
        last = Some(lost);
        tokio::time::sleep(EVERY).await;
    }
}

async fn follow(
    console: &Console,
    database: &str,
    after: Duration,
    watch: &mut Watch,
    last: &mut Option<Told>,
    tell: &mut impl FnMut(Told),
) -> Result<()> {
    loop {
        // In this order: a beat begins before a pause.
        let paused = look::state(console, database).await?.paused;
        let consoles = look::consoles(console).await?;
        let beats = consoles.iter().filter(|named| Role::Hold.is(named, database));
        let seen = Seen { paused, beat: beats.map(|named| named.silent).min() };
        let told = match watch.judge(seen, Instant::now(), after) {
            Verdict::Open => Told::Open,
            Verdict::Held => Told::Held,
            Verdict::Silent(_) => Told::Silent,
            Verdict::Foreign => Told::Foreign,
            Verdict::Resume(silent) => {
                resume(console, database).await?;
                *watch = Watch::default();
                Told::Resumed(silent)
            }
        };
        // Nothing is to be said of an entry that was open from the beginning.
        if last.as_ref() != Some(&told) && !(last.is_none() && told == Told::Open) {
            tell(told.clone());
        }
        *last = Some(told);
        tokio::time::sleep(EVERY).await;
    }
}

async fn resume(console: &Console, database: &str) -> Result<()> {
    match console.ask(&format!("RESUME {}", named(database))).await {
        Ok(_) => Ok(()),
        Err(error) if look::state(console, database).await?.paused => Err(error),
        Err(_) => Ok(()),
    }
}

/// What is wrong with a guard's time.
///
/// # Errors
/// A time in which a living process may well be silent.
pub fn check_after(after: Duration) -> Result<()> {
    if after < Duration::from_secs(3) {
        return Err(Error::usage("`--after` is too short: a busy machine may be silent for so long")
            .hint("three seconds is the least; ten is usual"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(10);

    fn seen(paused: bool, beat: Option<u64>) -> Seen {
        Seen { paused, beat: beat.map(Duration::from_secs) }
    }

    /// Looks at these seconds; what each leads to.
    fn looks(looks: &[(u64, Seen)]) -> Vec<Verdict> {
        let (mut watch, begun) = (Watch::default(), Instant::now() + Duration::from_secs(100));
        looks.iter().map(|(at, seen)| watch.judge(*seen, begun + Duration::from_secs(*at), AFTER)).collect()
    }

    #[test]
    fn a_pause_with_a_beat_before_it_ends_when_the_beat_does() {
        for silent in [None, Some(7)] {
            let found = looks(&[
                (0, seen(false, Some(0))),
                (1, seen(true, Some(0))),
                (6, seen(true, silent)),
                (12, seen(true, silent)),
            ]);
            let secs = Duration::from_secs;
            assert_eq!(
                found,
                [Verdict::Open, Verdict::Held, Verdict::Silent(secs(5)), Verdict::Resume(secs(11))]
            );
        }
    }

    #[test]
    fn who_died_at_once_was_seen_before() {
        let found = looks(&[(0, seen(false, Some(0))), (1, seen(true, None)), (20, seen(true, None))]);
        assert!(matches!(found[2], Verdict::Resume(_)), "{found:?}");
    }

    #[test]
    fn an_operators_pause_is_left_alone() {
        let found = looks(&[(0, seen(true, None)), (30, seen(true, None))]);
        assert_eq!(found, [Verdict::Foreign, Verdict::Foreign]);
        // Also when Handover comes along later, and goes.
        let found = looks(&[(0, seen(true, None)), (1, seen(true, Some(0))), (30, seen(true, None))]);
        assert_eq!(found[2], Verdict::Foreign);
        // And when it had gone, with nothing paused, before.
        let found = looks(&[(0, seen(false, Some(0))), (5, seen(false, None)), (30, seen(true, None))]);
        assert_eq!(found[2], Verdict::Foreign);
    }

    #[test]
    fn a_beat_that_comes_back_holds_on() {
        let found = looks(&[
            (0, seen(false, Some(0))),
            (8, seen(true, Some(8))),
            (9, seen(true, Some(0))),
            (18, seen(true, Some(1))),
        ]);
        assert_eq!(found[2..], [Verdict::Held, Verdict::Held]);
    }
}
