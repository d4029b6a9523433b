//! The right to act, as this process knows it.

use crate::clock::Moment;
use handover_core::error::{Class, Error, Result};
use handover_core::value::fingerprint;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The right to act, as this process knows it: a fencing token, and until when it is known to be ours.
///
/// `valid_until` is on a clock that only runs forward, also through a suspend, and is moved by each successful
/// heartbeat; a process that was stopped or cut off finds it in the past and refuses to act, even before any
/// database refuses it.
#[derive(Debug, Clone)]
pub struct Lease(Arc<LeaseInner>);

#[derive(Debug)]
struct LeaseInner {
    plan: String,
    token: i64,
    valid_until: Mutex<Moment>,
    lost: CancellationToken,
}

impl Lease {
    /// A lease on `plan` that was just granted for `ttl`, counted from `asked_at` (before the question was sent).
    #[must_use]
    pub fn granted(plan: &str, token: i64, asked_at: impl Into<Moment>, ttl: Duration) -> Self {
        Lease(Arc::new(LeaseInner {
            plan: plan.to_owned(),
            token,
            valid_until: Mutex::new(asked_at.into().after(ttl)),
            lost: CancellationToken::new(),
        }))
    }

    /// The plan it is for.
    #[must_use]
    pub fn plan(&self) -> &str {
        &self.0.plan
    }

    /// The fencing token: it only grows from holder to holder.
    #[must_use]
    pub fn token(&self) -> i64 {
        self.0.token
    }

    /// A heartbeat succeeded that was sent at `asked_at`.
    pub fn renewed(&self, asked_at: impl Into<Moment>, ttl: Duration) {
        let until = asked_at.into().after(ttl);
        *self.0.valid_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// The lease is gone; everything that acts must stop.
    pub fn lose(&self) {
        self.0.lost.cancel();
    }

    /// Fires when the lease is lost.
    #[must_use]
    pub fn lost(&self) -> &CancellationToken {
        &self.0.lost
    }

    /// Refuses when the lease is not known to be ours right now. Called before every act, also those outside
    /// databases (commands, HTTP).
    ///
    /// # Errors
    /// [`Class::LeaseLost`].
    pub fn assert_held(&self) -> Result<()> {
        let valid = *self.0.valid_until.lock().unwrap_or_else(PoisonError::into_inner);
        if self.0.lost.is_cancelled() || Moment::now() >= valid {
            self.lose();
            return Err(lost());
        }
        Ok(())
    }

    /// The prefix of the `application_name` of every connection made for this plan, whoever holds the lease.
    #[must_use]
    pub fn application_prefix(plan: &str) -> String {
        format!("handover/{}/", fingerprint(plan, 4))
    }

    /// `application_name` for a connection of ours: found by a successor that must end what we left running.
    /// The server keeps 63 bytes of it, and printable ASCII only.
    #[must_use]
    pub fn application_name(&self, step: &str) -> String {
        let head = format!("{}{}/", Self::application_prefix(self.plan()), self.token());
        let room = 63_usize.saturating_sub(head.len());
        if step.len() <= room {
            return head + step;
        }
        // Cut off, two long ids with one beginning would be taken for each other; and one must not be ended
        // for the other's sake.
        let digest = fingerprint(step, 6);
        let kept: String =
            step.chars().filter(char::is_ascii).take(room.saturating_sub(digest.len() + 1)).collect();
        format!("{head}{kept}~{digest}")
    }
}

/// The error of a runner that is no longer the one to act.
#[must_use]
pub fn lost() -> Error {
    Error::new(Class::LeaseLost, "this runner's lease was lost or taken over; it changes nothing more")
        .hint("see `handover status` for who acts now")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_step_ids_stay_apart() {
        let lease = Lease::granted("p", i64::MAX, Moment::now(), Duration::from_secs(1));
        let (a, b) = (format!("{}a", "x".repeat(62)), format!("{}b", "x".repeat(62)));
        let (first, second) = (lease.application_name(&a), lease.application_name(&b));
        assert!(first != second && first.len() <= 63 && second.len() <= 63, "{first} {second}");
        assert!(lease.application_name("copy").ends_with("/copy"));
    }
}
