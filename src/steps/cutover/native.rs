//! The way back by the servers' own replication, for two sides of one schema.
//!
//! It is made before the pause, so that not even the new side's first write is missed, and nothing that came from the
//! old side goes back to it ([`handover_replication::ahead`]). It flows when the stream forward is gone: two streams at
//! once would send each other's changes round.

use super::carrier::{Arrivals, Carrier, Carrying};
use super::differences::{differences, firing};
use super::forecast::Measured;
use super::options::Cutover;
use super::stream::Stream;
use super::{arrivals, feeds};
use crate::error::{Class, Result};
use crate::postgres::{Session, catalog};
use crate::problem::few;
use crate::steps::{Context, Description};
use async_trait::async_trait;
use handover_replication::{ENDED, Gauge, ahead};
use std::time::Duration;

/// The stream back of a cutover.
pub struct Native<'a> {
    cutover: &'a Cutover,
    stream: Stream,
}

impl<'a> Native<'a> {
    /// The one that a plan asks for.
    pub fn new(cutover: &'a Cutover, stream: Stream) -> Self {
        Native { cutover, stream }
    }
}

#[async_trait]
impl Carrier for Native<'_> {
    fn from(&self) -> &str {
        &self.stream.link.from
    }

    fn to(&self) -> &str {
        &self.stream.link.to
    }

    async fn describe(
        &self,
        cx: &Context,
        blue: &Session,
        green: &Session,
        out: &mut Description,
    ) -> Result<()> {
        let Stream { replicate, copy, link } = &self.stream;
        out.action(format!(
            "before the pause: publish the tables of {0}, make a slot there and a subscription on {1} that is disabled; from the decision on, what is written on {0} goes back to {1}{2}",
            replicate.from,
            replicate.to,
            self.cutover.but_for()
        ));
        self.look(cx, blue, green, out).await?;
        if !catalog::tables(green).await?.is_empty() {
            ahead::describe(cx, copy, link, green, out).await?;
        }
        Ok(())
    }

    async fn look(&self, cx: &Context, blue: &Session, green: &Session, out: &mut Description) -> Result<()> {
        let Stream { replicate, copy, link } = &self.stream;
        for session in [blue, green] {
            let version = session.major().await?;
            if version < ahead::TELLS_ORIGIN {
                out.blocker(format!(
                    "the stream back needs Postgres {} on both sides, which tell where a change came from, and {} is {version}: leave `reverse:` out",
                    ahead::TELLS_ORIGIN,
                    session.database()
                ));
            }
        }
        // What is there already counts as taken.
        if !ahead::is_there(cx, link).await? {
            let mut said = Description::default();
            handover_replication::look(replicate, copy, &cx.databases, green, blue, &mut said).await?;
            out.blockers.extend(said.blockers.into_iter().map(|text| format!("the stream back: {text}")));
        }
        let firing = firing(blue).await?;
        if !firing.is_empty() {
            out.warning(format!(
                "triggers that are enabled ALWAYS or REPLICA fire on {} for each row that comes back to {}: what they write arrives twice",
                replicate.to,
                few(&firing)
            ));
        }
        for text in differences(self.cutover, &self.stream, blue, green).await? {
            out.blocker(text);
        }
        Ok(())
    }

    async fn make(&self, cx: &Context) -> Result<()> {
        let Stream { replicate, copy, link } = &self.stream;
        ahead::make(cx, replicate, copy, link).await
    }

    async fn freshen(&self, cx: &Context) -> Result<()> {
        ahead::freshen(cx, &self.stream.link).await
    }

    async fn trouble(&self, cx: &Context) -> Result<Option<String>> {
        ahead::trouble(cx, &self.stream.link).await
    }

    async fn unfit(&self, cx: &Context, _blue: &Session, _green: &Session) -> Result<Option<String>> {
        self.trouble(cx).await
    }

    async fn enable(&self, cx: &Context) -> Result<()> {
        ahead::enable(cx, &self.stream.link).await
    }

    async fn stand(&self, cx: &Context) -> Result<()> {
        let Stream { replicate, link, .. } = &self.stream;
        let result = handover_replication::stand(replicate, cx, link).await;
        // One that is over stays so.
        if let Err(error) = &result
            && error.class() == Class::Resources
            && ahead::ended(cx, link)?.is_none()
        {
            cx.remember(ENDED, &error.message()).await?;
        }
        result
    }

    async fn discard(&self, cx: &Context) -> Result<()> {
        handover_replication::discard(cx, &self.stream.link).await
    }

    async fn differences(&self, _cx: &Context, blue: &Session, green: &Session) -> Result<Vec<String>> {
        differences(self.cutover, &self.stream, blue, green).await
    }

    fn carry(&self, _cx: &Context) -> Carrying {
        Carrying::default()
    }

    async fn arrivals<'s>(&'s self, cx: &Context) -> Result<Box<dyn Arrivals + 's>> {
        Ok(Box::new(Marks(Gauge::open(cx, &self.stream.link).await?)))
    }

    async fn left_behind(&self, _cx: &Context) -> Result<Option<String>> {
        Ok(None)
    }
}

/// Marks in the stream back.
struct Marks(Gauge);

#[async_trait]
impl Arrivals for Marks {
    async fn late(&mut self, cx: &Context, measured: &mut Measured) -> Result<Option<String>> {
        arrivals::late(cx, Some(&mut self.0), measured).await
    }

    async fn all(&mut self) -> Result<Option<i64>> {
        let mark = self.0.write(feeds::MARK).await?;
        while !self.0.passed(&mark).await? {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(None)
    }
}
