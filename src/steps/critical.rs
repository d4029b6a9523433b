//! Sections that end by themselves only: no stop, timeout or failing task cuts in.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The sections that are going on in this process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Critical(Arc<Mutex<Open>>);

#[derive(Debug, Default)]
struct Open {
    next: u64,
    sections: Vec<(u64, String, Instant)>,
}

impl Critical {
    /// Opens a section; it ends when the guard is dropped.
    #[must_use]
    pub fn enter(&self, what: impl Into<String>) -> Guard {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let id = open.next;
        open.next += 1;
        open.sections.push((id, what.into(), Instant::now()));
        Guard { critical: self.clone(), id }
    }

    /// Whether one is open.
    #[must_use]
    pub fn is_active(&self) -> bool {
        !self.0.lock().unwrap_or_else(PoisonError::into_inner).sections.is_empty()
    }

    /// What is going on and for how long, the outermost first.
    #[must_use]
    pub fn going_on(&self) -> Vec<(String, Duration)> {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.sections.iter().map(|(_, what, since)| (what.clone(), since.elapsed())).collect()
    }

    /// The same in a line; none when nothing is.
    #[must_use]
    pub fn words(&self) -> Option<String> {
        let parts: Vec<String> =
            self.going_on().iter().map(|(what, time)| format!("{what} (for {} s)", time.as_secs())).collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// Ends a section when it is dropped.
#[derive(Debug)]
pub struct Guard {
    critical: Critical,
    id: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut open = self.critical.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.sections.retain(|(id, ..)| *id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_open_until_its_guard_is_gone() {
        let critical = Critical::default();
        assert!(!critical.is_active() && critical.words().is_none());
        let outer = critical.enter("the flip");
        {
            let _inner = critical.enter("participant a commits");
            assert_eq!(critical.words().unwrap(), "the flip (for 0 s); participant a commits (for 0 s)");
        }
        assert_eq!(critical.going_on().len(), 1);
        drop(outer);
        assert!(!critical.is_active());
    }
}
