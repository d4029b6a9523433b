//! What a cutover asks of a pooler: hold clients, let them go on where they were, or turn them.

use crate::console::{Console, named};
use crate::entry::{self, Target, Written};
use crate::hold::{Hold, Role};
use crate::look;
use crate::pooler::{Pooler, read};
use futures_util::future::join_all;
use handover_core::error::{Class, Error, Result};
use handover_core::failpoint;
use handover_core::problem::{count, few};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a console of an earlier attempt, which may still say PAUSE, is waited for.
const SETTLE: Duration = Duration::from_secs(2);

/// How a pause went.
enum Paused {
    /// Nothing is at work any more.
    Quiet,
    /// It ran out of its time; the server's process ids of what is still at work.
    Busy(Vec<String>),
}

impl Pooler<'_> {
    fn fact(&self, what: &str) -> String {
        format!("{}.{what}", self.name)
    }

    /// Pauses the entry on every instance, at once; none stays paused when one cannot be.
    ///
    /// # Errors
    /// Transactions that do not end in time, unless those are disconnected; an instance that somebody else holds.
    pub async fn prepare(&self, hold: &Hold) -> Result<()> {
        self.port.proceed()?;
        let instances = 0..self.options.instances.len();
        for console in instances.clone().filter_map(|i| hold.console(i)) {
            if look::state(console, self.entry()).await?.paused {
                return Err(Error::external(format!(
                    "`{}` of PgBouncer at {} is paused already",
                    self.entry(),
                    console.place
                ))
                .hint(format!(
                    "somebody else holds it: when they are done, `RESUME {}` on its console",
                    self.entry()
                )));
            }
        }
        hold.introduce(self.entry()).await?;
        self.keep().await?;
        // Before it is done: who releases must know that the pause may be ours.
        self.port.remember(&self.fact("paused"), &true).await?;
        let all = join_all(instances.map(async |i| match self.pause(i).await? {
            Paused::Quiet => Ok(()),
            Paused::Busy(pids) => Err(self.busy(&pids)),
        }));
        if let Some(error) = all.await.into_iter().find_map(Result::err) {
            // At once, whatever else is asked to let go: clients are waiting.
            if let Err(also) = self.release().await {
                self.port.warn(format!("participant {} could not be released at once: {also}", self.name));
            }
            return Err(error);
        }
        failpoint::at(failpoint::POOLER_PAUSED)
    }

    fn busy(&self, pids: &[String]) -> Error {
        let what = if pids.is_empty() {
            "transactions".to_owned()
        } else {
            format!("{} (in the server, {})", count(pids.len(), "transaction"), few(pids))
        };
        Error::new(
            Class::Timeout,
            format!("{what} of `{}` did not end within {}; clients go on", self.entry(), self.options.pause),
        )
        .hint("see `pg_stat_activity` for who they are; raise `pause`, or say `disconnect: true`")
    }

    /// Pauses one instance.
    async fn pause(&self, instance: usize) -> Result<Paused> {
        self.port.proceed()?;
        let entry = named(self.entry());
        let pausing = self.console(instance, Role::Pause).await?;
        if pausing.ask_within(&format!("PAUSE {entry}"), self.options.pause.0).await?.is_some() {
            return Ok(Paused::Quiet);
        }
        // The console answers this one no more before everything has ended.
        drop(pausing);
        let console = self.console(instance, Role::Look).await?;
        if !self.options.disconnect {
            return Ok(Paused::Busy(look::at_work(&console, self.entry()).await?));
        }
        let (at_work, clients) = (
            look::at_work(&console, self.entry()).await?.len(),
            look::clients(&console, self.entry()).await?,
        );
        console.ask(&format!("KILL {entry}")).await?;
        self.port.warn(format!(
            "participant {}: PgBouncer at {} disconnected {} of `{}`, {at_work} of them with a server that they did not \
             give back within {}",
            self.name,
            console.place,
            count(clients, "client"),
            self.entry(),
            self.options.pause
        ));
        Ok(Paused::Quiet)
    }

    /// Lets clients go on, wherever the entry leads. Only where the pause may be ours.
    ///
    /// # Errors
    /// An instance that cannot be reached: it may be holding clients. The others go on.
    pub async fn abort(&self) -> Result<()> {
        if self.port.recall::<bool>(&self.fact("paused"))? != Some(true) {
            return Ok(());
        }
        self.release().await?;
        self.port.remember(&self.fact("paused"), &false).await
    }

    async fn release(&self) -> Result<()> {
        let all = join_all((0..self.options.instances.len()).map(async |i| {
            self.port.proceed()?;
            let console = self.console(i, Role::Look).await?;
            self.settle(&console).await?;
            self.resume(&console).await
        }));
        all.await.into_iter().collect()
    }

    async fn resume(&self, console: &Console) -> Result<()> {
        if !look::state(console, self.entry()).await?.paused {
            return Ok(());
        }
        match console.ask(&format!("RESUME {}", named(self.entry()))).await {
            Ok(_) => Ok(()),
            // A guard, or an operator, was quicker.
            Err(error) => match look::state(console, self.entry()).await?.paused {
                true => Err(error),
                false => Ok(()),
            },
        }
    }

    /// Waits until no console that was to pause is connected: what it has sent must not be read after what follows.
    async fn settle(&self, console: &Console) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < SETTLE
            && look::consoles(console).await?.iter().any(|named| Role::Pause.is(named, self.entry()))
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Keeps what the entry of each file is before it is turned: here, because clients wait when it is turned. What an
    /// operator changed since an attempt that was called off counts; an entry that leads to the new side is ours.
    async fn keep(&self) -> Result<()> {
        let target = self.target()?;
        let kept = self.kept()?;
        let mut next = kept.clone();
        for path in self.configs() {
            let was = self.now(&path)?;
            if was.target(self.entry()) != target {
                next.insert(path, was);
            }
        }
        if next == kept { Ok(()) } else { self.port.remember(&self.fact("entries"), &next).await }
    }

    /// Writes the entry of every file anew, where it leads to the new side; what it was is kept first.
    ///
    /// # Errors
    /// A file that cannot be read or replaced.
    pub async fn write(&self) -> Result<()> {
        let target = self.target()?.written();
        let mut kept = self.kept()?;
        for path in self.configs() {
            if !kept.contains_key(&path) {
                kept.insert(path.clone(), self.now(&path)?);
                self.port.remember(&self.fact("entries"), &kept).await?;
            }
            self.lead(&path, &target)?;
        }
        failpoint::at(failpoint::POOLER_WRITTEN)
    }

    /// The entry of a file as it is.
    fn now(&self, path: &Path) -> Result<Written> {
        Ok(entry::find(&entry::without_probe(&read(path)?), self.entry())?.written)
    }

    fn kept(&self) -> Result<BTreeMap<PathBuf, Written>> {
        Ok(self.port.recall(&self.fact("entries"))?.unwrap_or_default())
    }

    /// Brings what [`Pooler::write`] wrote into force everywhere, and lets clients go on there.
    ///
    /// # Errors
    /// An instance that cannot be reached, or does not take the file up. The others go on.
    pub async fn commit(&self, hold: &Hold) -> Result<()> {
        let target = self.target()?;
        let all = (0..self.options.instances.len())
            .map(async |i| self.turn(hold, i, &target, failpoint::POOLER_RELOADED).await);
        join_all(all).await.into_iter().collect::<Result<()>>()?;
        failpoint::at(failpoint::POOLER_RESUMED)?;
        self.assert_there().await
    }

    /// Lets the entry lead where it led before, in the files and in force, and lets clients go on there.
    ///
    /// # Errors
    /// As [`Pooler::commit`] and [`Pooler::write`].
    pub async fn revert(&self, hold: &Hold) -> Result<()> {
        let kept = self.kept()?;
        let ours = self.target()?;
        for (path, was) in &kept {
            let now = entry::find(&read(path)?, self.entry())?.written.target(self.entry());
            if now != ours && now != was.target(self.entry()) {
                self.port.warn(format!(
                    "`{}` of {} led to {now}: somebody else had changed it; it leads to {} again",
                    self.entry(),
                    path.display(),
                    was.target(self.entry())
                ));
            }
            self.lead(path, was)?;
        }
        failpoint::at(failpoint::POOLER_UNDO_WRITTEN)?;
        let all = (0..self.options.instances.len()).map(async |i| match kept.get(&self.config(i)) {
            Some(was) => self.turn(hold, i, &was.target(self.entry()), failpoint::POOLER_UNDO_RELOADED).await,
            // It was never turned.
            None => Ok(()),
        });
        join_all(all).await.into_iter().collect::<Result<()>>()?;
        self.abort().await
    }

    /// Lets one instance lead to `target`, which its file says, with nobody left behind where it led.
    async fn turn(
        &self,
        hold: &Hold,
        instance: usize,
        target: &Target,
        reloaded: &'static str,
    ) -> Result<()> {
        self.port.proceed()?;
        let console = self.console(instance, Role::Look).await?;
        self.settle(&console).await?;
        let state = look::state(&console, self.entry()).await?;
        if state.target == *target && !state.paused {
            return Ok(());
        }
        if !state.paused {
            hold.introduce(self.entry()).await?;
            // Not waited for without end: new transactions begin there only, and those that are left behind end by
            // themselves; then their servers are closed.
            if let Paused::Busy(pids) = self.pause(instance).await? {
                self.port.warn(format!(
                    "participant {}: {} did not end within {} and stayed where they were",
                    self.name,
                    count(pids.len(), "transaction"),
                    self.options.pause
                ));
                self.settle(&console).await?;
            }
        }
        console.ask("RELOAD").await?;
        let state = look::state(&console, self.entry()).await?;
        if state.target != *target {
            return Err(Error::external(format!(
                "`{}` of PgBouncer at {} leads to {} after RELOAD, and {} says {target}",
                self.entry(),
                console.place,
                state.target,
                self.config(instance).display()
            ))
            .hint("see its log: it refuses its configuration, or reads another file"));
        }
        failpoint::at(reloaded)?;
        self.port.proceed()?;
        self.resume(&console).await
    }
}
