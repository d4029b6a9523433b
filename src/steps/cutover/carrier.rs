//! How what is written on the new side comes back to the old one: by the servers ([`super::native`]), or by capture and replay
//! ([`super::replayed`]). The protocol asks these traits, and does not know which of them it is.

use super::forecast::Measured;
use crate::error::Result;
use crate::postgres::Session;
use crate::steps::{Context, Description};
use async_trait::async_trait;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// One way back.
#[async_trait]
pub trait Carrier: Send + Sync {
    /// The new side, from which it carries.
    fn from(&self) -> &str;

    /// The old side, to which it carries.
    fn to(&self) -> &str;

    /// Says what would be done for it; what makes it impossible is among the blockers.
    async fn describe(
        &self,
        cx: &Context,
        blue: &Session,
        green: &Session,
        out: &mut Description,
    ) -> Result<()>;

    /// What makes it impossible, among the blockers, and what is to be known of it.
    async fn look(&self, cx: &Context, blue: &Session, green: &Session, out: &mut Description) -> Result<()>;

    /// Makes it, before the pause, unless it is there. It carries nothing yet.
    async fn make(&self, cx: &Context) -> Result<()>;

    /// What was written until now is not carried: nobody has written on the new side itself so far.
    async fn freshen(&self, cx: &Context) -> Result<()>;

    /// What is wrong with it; none when all of it is there.
    async fn trouble(&self, cx: &Context) -> Result<Option<String>>;

    /// Why it would not carry everything as things are, asked for the last time before the pause.
    async fn unfit(&self, cx: &Context, blue: &Session, green: &Session) -> Result<Option<String>>;

    /// Lets it flow.
    async fn enable(&self, cx: &Context) -> Result<()>;

    /// Watches it, and carries where the servers do not, until it is stopped.
    async fn stand(&self, cx: &Context) -> Result<()>;

    /// Takes it away, wherever it stands.
    async fn discard(&self, cx: &Context) -> Result<()>;

    /// What of the new side would not come back as things are, in words.
    async fn differences(&self, cx: &Context, blue: &Session, green: &Session) -> Result<Vec<String>>;

    /// Carries while the way back is taken, when no standing task does.
    fn carry(&self, cx: &Context) -> Carrying;

    /// Looks at what is on its way.
    async fn arrivals<'s>(&'s self, cx: &Context) -> Result<Box<dyn Arrivals + 's>>;

    /// What it left behind although everything has come, in words; asked when the decision to go back stands.
    async fn left_behind(&self, cx: &Context) -> Result<Option<String>>;
}

/// What is on its way to the old side.
#[async_trait]
pub trait Arrivals: Send {
    /// Why a pause would be long, in words; none when what is written arrives soon.
    ///
    /// # Errors
    /// What no waiting mends, or what a server says.
    async fn late(&mut self, cx: &Context, measured: &mut Measured) -> Result<Option<String>>;

    /// With writers held off: waits until everything has arrived, and proves it. Gives how many events that were, where
    /// somebody counts them.
    ///
    /// # Errors
    /// What has not, or what a server says.
    async fn all(&mut self) -> Result<Option<i64>>;
}

/// What carries in this process, until it is dropped. It may be cut short anywhere: what it had not finished is done again.
#[derive(Default)]
pub struct Carrying {
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Carrying {
    /// A task that ends when `stop` says so.
    pub fn new(stop: CancellationToken, task: JoinHandle<()>) -> Self {
        Carrying { stop, task: Some(task) }
    }
}

impl Drop for Carrying {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}
