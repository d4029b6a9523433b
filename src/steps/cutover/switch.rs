//! What flips a participant beside its actions: a file, or a pooler. Each knows how it is prepared, committed, called off
//! and turned back, and every act of it may be repeated.

use super::book::Book;
use super::options::Participant;
use crate::error::{Error, Result};
use crate::steps::{Context, Description};
use handover_actions::{Actions, FileWrite, Original};
use handover_pooler::{PgBouncer, Pooler};

/// The switch of one participant.
pub enum Switch<'a> {
    /// Only its actions flip it.
    Actions,
    /// A file is replaced.
    File(&'a FileWrite),
    /// A pooler's entry is turned.
    PgBouncer(&'a PgBouncer),
}

/// A switch with what it needs to act.
pub struct Flipping<'a> {
    switch: Switch<'a>,
    name: &'a str,
    cx: &'a Context,
}

impl<'a> Flipping<'a> {
    /// The switch of a participant.
    pub fn of(participant: &'a Participant, cx: &'a Context) -> Self {
        let switch = match (&participant.file, &participant.pgbouncer) {
            (Some(file), _) => Switch::File(file),
            (None, Some(pooler)) => Switch::PgBouncer(pooler),
            (None, None) => Switch::Actions,
        };
        Flipping { switch, name: &participant.name, cx }
    }

    fn pooler<'b>(&'b self, options: &'b PgBouncer) -> Pooler<'b> {
        Pooler::new(self.name, options, &self.cx.port)
    }

    fn unit(&self, what: &str) -> String {
        format!("{} {what}", self.name)
    }

    /// The journal's fact of what a file was.
    fn original(&self) -> String {
        format!("{}.original", self.name)
    }

    fn cannot<T>(&self, what: &str, result: Result<T>) -> Result<T> {
        result.map_err(|e| e.context(format!("participant {} cannot {what}", self.name)))
    }

    /// What a dry run finds of it by looking; `from` is the plan's old side.
    pub async fn describe(&self, from: Option<&str>, out: &mut Description) {
        let Switch::PgBouncer(options) = self.switch else { return };
        for found in self.pooler(options).describe(from).await {
            match self.cannot("flip", found) {
                Ok(text) => drop(out.action(text)),
                Err(error) => drop(out.blocker(error.to_string())),
            }
        }
    }

    /// Proves that it is able to flip.
    pub async fn check(&self, book: &Book<'_>, from: Option<&str>) -> Result<()> {
        let Switch::PgBouncer(options) = self.switch else { return Ok(()) };
        let checked = async {
            let hold = book.hold(self.name, options).await?;
            self.pooler(options).check(&hold, from).await
        };
        self.cannot("flip", checked.await)
    }

    /// Readies it; it may hold its clients from here.
    pub async fn prepare(&self, book: &Book<'_>) -> Result<()> {
        let Switch::PgBouncer(options) = self.switch else { return Ok(()) };
        let prepared = async {
            let hold = book.hold(self.name, options).await?;
            self.pooler(options).prepare(&hold).await
        };
        self.cannot("prepare", prepared.await)
    }

    /// Requires that it still holds its clients.
    pub async fn still_held(&self, book: &Book<'_>) -> Result<()> {
        let Switch::PgBouncer(options) = self.switch else { return Ok(()) };
        match book.held(self.name) {
            Some(hold) => self.cannot("go on", hold.still_held(&options.database).await),
            None => Err(Error::internal(format!("participant {} is not held", self.name))),
        }
    }

    /// Flips it.
    pub async fn commit(&self, book: &Book<'_>, actions: &Actions<'_>) -> Result<()> {
        match self.switch {
            Switch::Actions => Ok(()),
            Switch::File(file) => {
                if self.cx.recall::<Original>(&self.original())?.is_none() {
                    let tag = format!("{}-{}", self.cx.run, self.cx.step);
                    self.cx.remember(&self.original(), &actions.file_keep(file, &tag)?).await?;
                }
                actions.file_write(&self.unit("commit"), file).await
            }
            Switch::PgBouncer(options) => {
                let committed = async {
                    let pooler = self.pooler(options);
                    // First of all: an instance that is down comes up with it.
                    pooler.write().await?;
                    let hold = book.hold(self.name, options).await?;
                    pooler.commit(&hold).await
                };
                self.cannot("commit", committed.await)?;
                book.let_go(self.name);
                Ok(())
            }
        }
    }

    /// Lets it go on with the old side.
    pub async fn abort(&self, book: &Book<'_>) -> Result<()> {
        let Switch::PgBouncer(options) = self.switch else { return Ok(()) };
        self.cannot("abort", self.pooler(options).abort().await)?;
        book.let_go(self.name);
        Ok(())
    }

    /// Turns it back. What a file was is kept until that is written down; see [`Flipping::forget`].
    pub async fn revert(&self, book: &Book<'_>, actions: &Actions<'_>) -> Result<()> {
        match self.switch {
            Switch::Actions => Ok(()),
            Switch::File(file) => match self.cx.recall::<Original>(&self.original())? {
                Some(original) => actions.file_restore(&self.unit("revert"), file, &original).await,
                None => Ok(()),
            },
            Switch::PgBouncer(options) => {
                let reverted = async {
                    let hold = book.hold(self.name, options).await?;
                    self.pooler(options).revert(&hold).await
                };
                self.cannot("revert", reverted.await)?;
                book.let_go(self.name);
                Ok(())
            }
        }
    }

    /// Proves that it flipped.
    pub async fn verify(&self, actions: &Actions<'_>) -> Result<()> {
        match self.switch {
            Switch::Actions => Ok(()),
            Switch::File(file) if actions.file_is(file)? => Ok(()),
            Switch::File(file) => Err(Error::external(format!(
                "participant {}: {} is not what was written",
                self.name,
                file.path.display()
            ))
            .hint("see who else writes it, then `handover resume`")),
            Switch::PgBouncer(options) => self.cannot("be verified", self.pooler(options).verify().await),
        }
    }

    /// Takes out what a runner that died may have left of [`Flipping::check`].
    pub async fn tidy(&self) {
        let Switch::PgBouncer(options) = self.switch else { return };
        if let Err(error) = self.pooler(options).tidy().await {
            self.cx.warn(format!("participant {}: a trial entry may be left: {error}", self.name));
        }
    }

    /// Drops what was kept for turning it back.
    pub fn forget(&self, actions: &Actions<'_>) -> Result<()> {
        match self.cx.recall::<Original>(&self.original())? {
            Some(original) => actions.file_forget(&original),
            None => Ok(()),
        }
    }
}
