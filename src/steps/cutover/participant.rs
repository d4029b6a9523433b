//! A system that flips: what prepares it, what commits it, what calls it off and what turns it back.

use super::book::Book;
use super::options::Participant;
use super::switch::Flipping;
use crate::error::{Class, Error, Result};
use crate::problem::{Problems, Segment};
use crate::steps::{CheckContext, Context};
use handover_actions::{Action, Actions};
use std::collections::BTreeSet;
use std::time::Duration;

/// Finds what is wrong with the list.
pub fn check(participants: &[Participant], cx: &CheckContext<'_>, problems: &mut Problems) {
    let mut names = BTreeSet::new();
    for (i, participant) in participants.iter().enumerate() {
        let at = |key: &str| vec![Segment::from("participants"), i.into(), key.into()];
        if !names.insert(&participant.name) {
            problems
                .error(at("name"), format!("the participant `{}` is named twice", participant.name))
                .hint("names tell participants apart in the journal");
        }
        for (key, action) in participant.actions() {
            action.check(&at(key), problems);
            if let Some(database) = action.database()
                && !cx.databases.contains(database)
            {
                let known: Vec<&str> = cx.databases.iter().map(String::as_str).collect();
                problems
                    .error(
                        [at(key), vec!["sql".into(), "on".into()]].concat(),
                        format!("there is no database `{database}` in this plan"),
                    )
                    .hint(format!("the plan has: {}", known.join(", ")));
            }
        }
        let whole = vec![Segment::from("participants"), i.into()];
        match (&participant.commit, &participant.file) {
            (Some(_), Some(_)) => {
                problems
                    .error(at("file"), "`file` is a commit of its own")
                    .at_key()
                    .hint("keep either `file` or `commit`");
            }
            (None, None) if participant.pgbouncer.is_none() => {
                problems
                    .error(whole, "a participant needs `commit`, `file` or `pgbouncer`")
                    .hint("say what flips it");
            }
            (Some(_), None) if participant.revert.is_none() && participant.pgbouncer.is_none() => {
                problems
                    .warning(
                        whole,
                        format!(
                            "participant `{}` has no `revert`: the cutover cannot be undone",
                            participant.name
                        ),
                    )
                    .hint("say what turns it back");
            }
            _ => {}
        }
        if let Some(file) = &participant.file {
            file.check(&at("file"), problems);
        }
        if let Some(pooler) = &participant.pgbouncer {
            pooler.check(&at("pgbouncer"), cx.databases, problems);
            let acts = [
                ("prepare", participant.prepare.is_some()),
                ("commit", participant.commit.is_some()),
                ("abort", participant.abort.is_some()),
                ("revert", participant.revert.is_some()),
                ("file", participant.file.is_some()),
            ];
            for (key, _) in acts.into_iter().filter(|(_, given)| *given) {
                problems
                    .error(at(key), format!("`pgbouncer` brings its own `{key}`"))
                    .at_key()
                    .hint(format!("leave `{key}` out, or make it another participant"));
            }
        }
        if participant.prepare.is_some() && participant.abort.is_none() {
            problems
                .error(at("prepare"), "`prepare` needs `abort`")
                .at_key()
                .hint("say what lets it go on with the old side when the cutover is called off");
        }
    }
}

impl Participant {
    fn actions(&self) -> impl Iterator<Item = (&'static str, &Action)> {
        [
            ("check", &self.check),
            ("prepare", &self.prepare),
            ("commit", &self.commit),
            ("abort", &self.abort),
            ("revert", &self.revert),
            ("verify", &self.verify),
        ]
        .into_iter()
        .filter_map(|(key, action)| Some((key, action.as_ref()?)))
    }

    /// The databases that its actions write to.
    pub fn databases(&self) -> impl Iterator<Item = &str> {
        self.actions().filter_map(|(_, action)| action.database())
    }

    /// Whether it can be turned back.
    pub fn can_revert(&self) -> bool {
        self.revert.is_some() || self.file.is_some() || self.pgbouncer.is_some()
    }

    /// What it would do, in lines.
    pub fn shown(&self) -> String {
        let mut parts: Vec<String> =
            self.actions().map(|(key, action)| format!("{key}: {}", action.shown())).collect();
        if let Some(file) = &self.file {
            parts.push(format!("commit: replace {}", file.path.display()));
        }
        if let Some(pooler) = &self.pgbouncer {
            parts.push(pooler.shown());
        }
        format!("participant {}: {}", self.name, parts.join("; "))
    }

    /// What it executes in databases when nothing goes wrong: each with its database's name.
    pub fn statements(&self) -> Result<Vec<(&str, &str)>> {
        let forward = self.actions().filter(|(key, _)| !matches!(*key, "abort" | "revert"));
        let sql = forward.filter_map(|(_, action)| action.sql.as_ref());
        sql.map(|sql| Ok((sql.on.as_str(), sql.statement()?))).collect()
    }

    fn unit(&self, what: &str) -> String {
        format!("{} {what}", self.name)
    }

    /// Performs one of its actions, when every command that an interrupted runner may have left of any of them has
    /// ended: a late commit must not overtake what turns it back.
    async fn perform(&self, actions: &Actions<'_>, what: &str, action: Option<&Action>) -> Result<()> {
        self.await_orphans(actions).await?;
        let Some(action) = action else { return Ok(()) };
        actions
            .perform(&self.unit(what), action)
            .await
            .map(drop)
            .map_err(|e| e.context(format!("participant {} cannot {what}", self.name)))
    }

    async fn await_orphans(&self, actions: &Actions<'_>) -> Result<()> {
        for what in ["prepare", "commit", "abort", "revert"] {
            actions.await_orphan(&self.unit(what)).await?;
        }
        Ok(())
    }

    /// Proves that it is able to flip; `from` is the plan's old side.
    pub async fn check(
        &self,
        cx: &Context,
        book: &Book<'_>,
        actions: &Actions<'_>,
        from: Option<&str>,
    ) -> Result<()> {
        Flipping::of(self, cx).check(book, from).await?;
        self.perform(actions, "check", self.check.as_ref()).await
    }

    /// How long its requests may take at most. What can be ended instead of being waited for, a command or a statement,
    /// is none.
    fn limit(&self) -> Option<Duration> {
        self.actions().filter_map(|(_, action)| Some(action.http.as_ref()?.limit())).max()
    }

    /// As `perform`, with an account of requests that are not answered.
    async fn ask(
        &self,
        book: &Book<'_>,
        actions: &Actions<'_>,
        what: &str,
        action: Option<&Action>,
    ) -> Result<()> {
        book.asks(&self.name);
        let result = self.perform(actions, what, action).await;
        let unanswered = result.as_ref().is_err_and(Error::is_unanswered);
        book.heard(&self.name, self.limit().filter(|_| unanswered)).await?;
        result
    }

    /// Where an earlier request may still be on its way, waits that out and performs the action that takes it back once more.
    async fn outlast(
        &self,
        cx: &Context,
        book: &Book<'_>,
        actions: &Actions<'_>,
        what: &str,
        action: Option<&Action>,
    ) -> Result<()> {
        let Some(late) = book.late(&self.name).await.filter(|_| action.is_some()) else { return Ok(()) };
        cx.note(format!(
            "participant {} did not answer a request; should that arrive late, it is told again to {what} in {late:.0?}",
            self.name
        ));
        tokio::time::sleep(late).await;
        self.ask(book, actions, what, action).await
    }

    /// Readies it.
    pub async fn prepare(&self, cx: &Context, book: &Book<'_>, actions: &Actions<'_>) -> Result<()> {
        let _section = cx.critical(format!("participant {} prepares", self.name));
        Flipping::of(self, cx).prepare(book).await?;
        self.ask(book, actions, "prepare", self.prepare.as_ref()).await
    }

    /// Requires that it still holds its clients, where it can be asked.
    pub async fn still_held(&self, cx: &Context, book: &Book<'_>) -> Result<()> {
        Flipping::of(self, cx).still_held(book).await
    }

    /// Lets it go on with the old side. Tried a few times: a system left holding its clients is an outage.
    pub async fn abort(&self, cx: &Context, book: &Book<'_>, actions: &Actions<'_>) -> Result<()> {
        let _section = cx.critical(format!("participant {} is being released", self.name));
        book.breaks_off(&self.name, self.limit()).await?;
        let mut last = Ok(());
        for wait in [0, 200, 1000] {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            last = async {
                Flipping::of(self, cx).abort(book).await?;
                self.ask(book, actions, "abort", self.abort.as_ref()).await
            }
            .await;
            if last.is_ok() || is_over(&last) {
                break;
            }
        }
        if is_over(&last) {
            return last;
        }
        if last.is_ok() {
            last = self.outlast(cx, book, actions, "abort", self.abort.as_ref()).await;
        }
        last.map_err(|e| {
            e.with_class(Class::External).hint(format!(
                "{} may still be holding its clients: release it by hand, then `handover resume`",
                self.name
            ))
        })
    }

    /// Flips it.
    pub async fn commit(&self, cx: &Context, book: &Book<'_>, actions: &Actions<'_>) -> Result<()> {
        self.await_orphans(actions).await?;
        Flipping::of(self, cx).commit(book, actions).await?;
        self.ask(book, actions, "commit", self.commit.as_ref()).await
    }

    /// Lets it go on with the new side when the way back is called off: it is told to commit once more. What it was asked
    /// before may still arrive.
    pub async fn stay(&self, cx: &Context, book: &Book<'_>, actions: &Actions<'_>) -> Result<()> {
        book.breaks_off(&self.name, self.limit()).await?;
        self.commit(cx, book, actions).await?;
        self.outlast(cx, book, actions, "commit", self.commit.as_ref()).await
    }

    /// Proves that it flipped.
    pub async fn verify(&self, cx: &Context, actions: &Actions<'_>) -> Result<()> {
        Flipping::of(self, cx).verify(actions).await?;
        self.perform(actions, "verify", self.verify.as_ref()).await
    }

    /// Turns it back. What the file was is kept until that is written down; see [`Participant::forget`].
    pub async fn revert(&self, cx: &Context, book: &Book<'_>, actions: &Actions<'_>) -> Result<()> {
        self.await_orphans(actions).await?;
        Flipping::of(self, cx).revert(book, actions).await?;
        book.breaks_off(&self.name, self.limit()).await?;
        self.ask(book, actions, "revert", self.revert.as_ref()).await?;
        self.outlast(cx, book, actions, "revert", self.revert.as_ref()).await
    }

    /// Drops what was kept for turning it back.
    pub fn forget(&self, cx: &Context, actions: &Actions<'_>) -> Result<()> {
        Flipping::of(self, cx).forget(actions)
    }
}

/// Whether nothing more may be done.
fn is_over(result: &Result<()>) -> bool {
    matches!(result, Err(e) if matches!(e.class(), Class::LeaseLost | Class::Journal))
}
