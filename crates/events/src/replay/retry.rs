//! Trying again what was set aside: somebody mended the cause, and set `retry` in `handover.event_quarantine`.
//!
//! All events of a key are tried in their order, each under a savepoint, up to the first that still does not apply.
//! Effects, rows and counters commit together, under the partition's mark, so that no later event of the key comes in
//! between: those are set aside too as long as one is.

use super::apply::Applier;
use super::event::Event;
use crate::offsets::{self, Tally};
use crate::quarantine;
use handover_core::error::Result;
use handover_core::failpoint;
use handover_postgres::Session;

impl Applier<'_> {
    /// Tries the keys again that somebody asked for. Returns how many events took effect.
    pub async fn retry(&mut self, green: &mut Session) -> Result<i64> {
        let mut released = 0;
        for key in quarantine::asked(green, self.stream, self.partition).await? {
            let tx = green.transaction().await?;
            offsets::lock(&tx, self.stream, self.partition).await?;
            let mut tally = Tally::default();
            let mut after = i64::MIN;
            let still = loop {
                let next = quarantine::next_aside(&tx, self.stream, self.partition, &key, after).await?;
                let Some((number, payload)) = next else { break None };
                let event = Event::parse(number, payload.into_bytes().into())?;
                if let Some(cause) = self.one(&tx, &event, &mut tally).await? {
                    break Some((number, cause.to_string()));
                }
                quarantine::back(&tx, self.stream, self.partition, number).await?;
                after = number;
            };
            if let Some((number, reason)) = &still {
                quarantine::refused_again(&tx, self.stream, self.partition, &key, *number, reason).await?;
            }
            offsets::count_retried(&tx, self.stream, self.partition, &tally).await?;
            failpoint::at(failpoint::QUARANTINE_UNCOMMITTED)?;
            tx.commit().await?;
            failpoint::at(failpoint::QUARANTINE_RETRIED)?;
            if still.is_none() {
                self.blocked.remove(&key);
            }
            released += tally.total();
        }
        Ok(released)
    }
}
