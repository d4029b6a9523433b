//! A pooler as a participant of a cutover: what it is, where it is to lead, and everything that can be found out before
//! anybody is paused.

use crate::console::Console;
use crate::entry::{self, PROBE, Target, Written};
use crate::hold::{Hold, Role, admin_key};
use crate::look;
use crate::options::PgBouncer;
use crate::who;
use futures_util::future::join_all;
use handover_actions::file;
use handover_core::error::{Error, Result};
use handover_core::failpoint;
use handover_core::value::Secret;
use handover_port::Port;
use handover_postgres::identity::identify;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A pooler of one step. `name` is the participant's.
pub struct Pooler<'a> {
    pub(crate) name: &'a str,
    pub(crate) options: &'a PgBouncer,
    pub(crate) port: &'a Port,
}

impl<'a> Pooler<'a> {
    /// For the step behind `port`.
    #[must_use]
    pub fn new(name: &'a str, options: &'a PgBouncer, port: &'a Port) -> Self {
        Pooler { name, options, port }
    }

    pub(crate) fn entry(&self) -> &str {
        &self.options.database
    }

    /// Where the entry is to lead.
    ///
    /// # Errors
    /// A variable that is not set, or text that says no place.
    pub fn target(&self) -> Result<Target> {
        if let Some(connect) = &self.options.connect {
            return Target::parse(connect.resolve()?.expose(), self.entry()).map_err(|why| {
                Error::usage(format!("`connect` of participant {} says no place: {why}", self.name))
                    .hint("write `host=… port=… dbname=…`")
            });
        }
        let to = self.options.to.as_deref().unwrap_or_default();
        who::target_of(self.port.databases.url(to)?, to)
    }

    /// The file of an instance.
    pub(crate) fn config(&self, instance: usize) -> PathBuf {
        let path = self.options.instances.get(instance).map(|i| i.config.as_path());
        file::target(&self.port.base, path.unwrap_or(Path::new("")))
    }

    pub(crate) fn configs(&self) -> BTreeSet<PathBuf> {
        (0..self.options.instances.len()).map(|i| self.config(i)).collect()
    }

    pub(crate) fn through(&self, instance: usize) -> Result<Option<(Secret, String)>> {
        let url = self.options.instances.get(instance).and_then(|i| i.through.as_ref());
        url.map(|url| Ok((url.address()?, format!("pgbouncer.instances[{instance}].through")))).transpose()
    }

    /// What a dry run finds at each instance: what it is, and what is in the way. Only looks.
    pub async fn describe(&self, from: Option<&str>) -> Vec<Result<String>> {
        let mut out = Vec::new();
        for i in 0..self.options.instances.len() {
            let looked = async {
                let console = self.console(i, Role::Look).await?;
                let (version, state) =
                    (look::version(&console).await?, look::state(&console, self.entry()).await?);
                let text =
                    format!("{version} at {}: {} leads to {}", console.place, self.entry(), state.target);
                Ok((text, self.assert_ready(i, &console, from).await))
            };
            match looked.await {
                Ok((text, ready)) => {
                    out.push(Ok(text));
                    out.extend(ready.err().map(Err));
                }
                Err(error) => out.push(Err(error)),
            }
        }
        out
    }

    /// Proves that it is able to flip: that each instance can be paused and reloaded, reads the file, and reaches the
    /// server it is to lead to. For the last two, an entry stands in the file for a moment.
    ///
    /// # Errors
    /// What is in the way. Nothing is paused.
    pub async fn check(&self, hold: &Hold, from: Option<&str>) -> Result<()> {
        self.port.proceed()?;
        for i in 0..self.options.instances.len() {
            let Some(console) = hold.console(i) else { continue };
            self.assert_ready(i, console, from).await?;
            if let (Some((url, key)), Some(from)) = (self.through(i)?, from) {
                let there = identify(&self.port.reader(from).await?).await?;
                who::assert_leads(&url, &key, self.entry(), &there, from).await?;
            }
        }
        let probed = self.probe(hold).await;
        let removed = self.remove_probe(hold).await;
        probed?;
        removed?;
        for place in hold.introduce(self.entry()).await? {
            self.port.warn(format!(
                "nobody guards PgBouncer at {place}: should this process end while it is paused, its clients wait for \
                 `handover resume`; run `handover guard` beside it"
            ));
        }
        Ok(())
    }

    /// What is wrong with an instance, by looking only.
    async fn assert_ready(&self, instance: usize, console: &Console, from: Option<&str>) -> Result<()> {
        let (entry, place) = (self.entry(), &console.place);
        let state = look::state(console, entry).await?;
        let target = self.target()?;
        if state.paused {
            return Err(Error::external(format!("`{entry}` of PgBouncer at {place} is paused already"))
                .hint(format!(
                    "somebody else holds it: when they are done, `RESUME {entry}` on its console"
                )));
        }
        if state.disabled {
            return Err(Error::external(format!("`{entry}` of PgBouncer at {place} is disabled"))
                .hint(format!("`ENABLE {entry}` on its console")));
        }
        if !self.options.disconnect
            && let Some(why) = look::session_pooling(console, &state).await?
        {
            return Err(Error::usage(format!(
                "`{entry}` of PgBouncer at {place} cannot be paused without disconnecting its clients: {why}"
            ))
            .hint("say `disconnect: true`, which ends what is still at work after `pause`; or pool transactions"));
        }
        if state.target == target {
            return Err(Error::external(format!(
                "`{entry}` of PgBouncer at {place} leads to {target} already"
            ))
            .hint(
                "somebody has turned it before: let it lead to the old side, or take the participant out",
            ));
        }
        let config = self.config(instance);
        let bytes = read(&config)?;
        let found = entry::find(&bytes, entry).map_err(|e| e.context(config.display()))?;
        let written = found.written.target(entry);
        if written != state.target {
            return Err(Error::usage(format!(
                "`{entry}` leads to {} by PgBouncer at {place}, and to {written} by {}",
                state.target,
                config.display()
            ))
            .hint("name the file that this instance reads; or RELOAD it, if the file was changed"));
        }
        if let Some(from) = from
            && self.through(instance)?.is_none()
            && !who::is_same_place(&state.target, self.port.databases.url(from)?).await?
        {
            return Err(Error::usage(format!(
                "`{entry}` of PgBouncer at {place} leads to {}, which is not where the plan's {from} is",
                state.target
            ))
            .hint("if that is the same server by another name, give `through:`, a URL through the pooler: the server is asked then"));
        }
        Ok(())
    }

    /// Puts an entry that leads to the new side into the file, and asks each instance for it.
    async fn probe(&self, hold: &Hold) -> Result<()> {
        let target = self.target()?;
        for path in self.configs() {
            self.port.proceed()?;
            let clean = entry::without_probe(&read(&path)?);
            let probing = entry::find(&clean, self.entry())?.probing(&target.written());
            write(&path, &probing)?;
        }
        failpoint::at(failpoint::POOLER_PROBED)?;
        let there = match self.options.to.as_deref() {
            Some(to) => Some((identify(&self.port.reader(to).await?).await?, to)),
            None => None,
        };
        for i in 0..self.options.instances.len() {
            let Some(console) = hold.console(i) else { continue };
            self.port.proceed()?;
            console.ask("RELOAD").await?;
            match look::entry(console, PROBE).await? {
                Some(state) if state.target == target => {}
                _ => {
                    return Err(Error::usage(format!(
                        "PgBouncer at {} does not take up what is written to {}",
                        console.place,
                        self.config(i).display()
                    ))
                    .hint("it reads another file (`SHOW CONFIG` on its console: conffile), or found a mistake in its configuration: see its log"));
                }
            }
            if let (Some((url, key)), Some((there, to))) = (self.through(i)?, &there) {
                who::assert_leads(&url, &key, PROBE, there, to).await?;
            }
        }
        Ok(())
    }

    async fn remove_probe(&self, hold: &Hold) -> Result<()> {
        for path in self.configs() {
            let bytes = read(&path)?;
            let clean = entry::without_probe(&bytes);
            if clean != bytes {
                write(&path, &clean)?;
            }
        }
        let reload = async |console: &Console| console.ask("RELOAD").await.map(drop);
        let consoles = (0..self.options.instances.len()).filter_map(|i| hold.console(i));
        join_all(consoles.map(reload)).await.into_iter().collect()
    }

    /// Takes out what [`Pooler::check`] had in the file for a moment, should a runner have died then.
    ///
    /// # Errors
    /// A file that cannot be replaced; an instance that cannot be told.
    pub async fn tidy(&self) -> Result<()> {
        let mut left = false;
        for path in self.configs() {
            left |= entry::without_probe(&read(&path)?) != read(&path)?;
        }
        match left {
            true => self.remove_probe(&Hold::open(self.options).await?).await,
            false => Ok(()),
        }
    }

    /// Requires that the entry leads to the new side everywhere, in force and in the file, and that nobody is held.
    ///
    /// # Errors
    /// It does not.
    pub async fn verify(&self) -> Result<()> {
        let target = self.target()?;
        for i in 0..self.options.instances.len() {
            let console = self.console(i, Role::Look).await?;
            let state = look::state(&console, self.entry()).await?;
            let config = self.config(i);
            let written = entry::find(&read(&config)?, self.entry())?.written.target(self.entry());
            if state.target != target || written != target || state.paused {
                let paused = if state.paused { " and is paused" } else { "" };
                return Err(Error::external(format!(
                    "`{}` leads to {} by PgBouncer at {}{paused}, and to {written} by {}; it should lead to {target}",
                    self.entry(),
                    state.target,
                    console.place,
                    config.display()
                ))
                .hint("see who else turns it, then `handover resume`"));
            }
        }
        self.assert_there().await
    }

    /// Where it can be asked, requires that the server behind the entry is the new side.
    pub(crate) async fn assert_there(&self) -> Result<()> {
        let Some(to) = &self.options.to else { return Ok(()) };
        for i in 0..self.options.instances.len() {
            if let Some((url, key)) = self.through(i)? {
                let there = identify(&self.port.reader(to).await?).await?;
                who::assert_leads(&url, &key, self.entry(), &there, to).await?;
            }
        }
        Ok(())
    }

    pub(crate) async fn console(&self, instance: usize, role: Role) -> Result<Console> {
        match self.options.instances.get(instance) {
            Some(there) => Console::open(&there.admin, &admin_key(instance), &role.name(self.entry())).await,
            None => Err(Error::internal("there is no such instance")),
        }
    }

    /// Lets the entry of each file lead elsewhere. Safe to repeat.
    pub(crate) fn lead(&self, path: &Path, to: &Written) -> Result<()> {
        self.port.proceed()?;
        let bytes = read(path)?;
        let clean = entry::without_probe(&bytes);
        let wanted = entry::find(&clean, self.entry())?.leading(to);
        if wanted != bytes { write(path, &wanted) } else { Ok(()) }
    }
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| {
        Error::external(format!("cannot read {} ({e})", path.display())).hint(
            "`config` is PgBouncer's file as seen from here: Handover runs where it can read and replace it, as a user that may",
        )
    })
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let like = std::fs::metadata(path).ok();
    file::replace(path, bytes, like.as_ref(), 0o600).map_err(|e| {
        Error::external(format!("cannot replace {} ({e})", path.display()))
            .hint("see that this user may write in its folder and give files to its owner")
    })
}
