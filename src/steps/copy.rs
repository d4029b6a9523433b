//! `copy`: fills an empty database with everything another one holds at one point in time.
//!
//! The schema is pg_dump's, the rows travel by parallel COPY from one snapshot, and what hangs on a table follows
//! as soon as its rows are there. Each piece commits on the target together with its checkpoint, and the
//! source itself keeps the snapshot open for a while without us ([`holder`]): an attempt that was interrupted
//! goes on from where it was. Only when the snapshot is gone is it taken back and begun again, so that rows of
//! two points in time are never mixed.

pub mod board;
mod builds;
pub mod catalog;
mod compare;
pub mod created;
mod cut;
pub mod data;
pub mod definitions;
mod dependents;
mod describe;
pub mod dump;
mod estimate;
mod extensions;
mod graph;
pub mod holder;
pub mod jobs;
pub mod large_objects;
mod options;
mod pool;
pub mod preflight;
pub mod privileges;
pub mod rights;
mod sample;
pub mod schema;
pub mod source;
pub mod state;
mod tune;
pub mod violation;

use super::{Access, CheckContext, Context, Description, StepKind, Undo, replicate};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::postgres::ours::OURS;
use crate::postgres::{Session, TableName, fence, ours, quote_ident};
use crate::problem::{Problems, Segment};
use async_trait::async_trait;
pub use options::{Copy, Dependents, LargeObjects, Names, OnViolation, Owners, Selection, SplitBy};
use serde_json::{Value, json};
use source::Source;
use state::State;
use std::sync::Arc;

/// Tables larger than this are cut, unless the plan says otherwise.
const CHUNK: u64 = 1 << 30;
/// How long a snapshot outlives the engine, unless the plan says otherwise.
const HOLD: std::time::Duration = std::time::Duration::from_secs(30 * 60);

#[async_trait]
impl StepKind for Copy {
    fn check(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        cx.database(problems, "from", &self.from);
        cx.database(problems, "to", &self.to);
        if self.from == self.to {
            problems
                .error(["to"], format!("`{}` cannot be copied into itself", self.to))
                .hint("name the new, empty database");
        }
        if self.jobs == Some(0) {
            problems
                .error(["jobs"], "a copy needs at least one connection")
                .hint("leave it out, or write 1 or more");
        }
        if self.chunk_mb == Some(0) {
            problems.error(["chunk_mb"], "a piece cannot be empty").hint("leave it out, or write 1 or more");
        }
        tune::check(self, problems);
        for (i, table) in self.include.tables.iter().enumerate() {
            if self.exclude.tables.contains(table) {
                problems
                    .error(
                        [Segment::from("include"), "tables".into(), i.into()],
                        format!("`{table}` is both included and excluded"),
                    )
                    .hint("remove it from one of the two");
            }
        }
        for schema in ours::both(cx.ours) {
            if self.include.schemas.contains(&schema) {
                problems
                    .error(["include"], format!("schema `{schema}` is Handover's own and is never copied"))
                    .hint("remove it");
            }
        }
    }

    fn databases(&self) -> Vec<(&str, Access)> {
        vec![(&self.from, Access::Read), (&self.to, Access::Write)]
    }

    fn reversibility(&self) -> Undo {
        Undo::Exact {
            how: format!("drops everything that it created on {}, which was empty before", self.to),
        }
    }

    async fn describe(&self, cx: &Context) -> Result<Description> {
        describe::describe(self, cx).await
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        let result = tokio::select! {
            result = self.attempt(cx) => result,
            // A slot that a replication after this copy needs must not fill the source's disk meanwhile.
            error = replicate::guard(cx) => Err(error),
        };
        let restored = tune::restore(cx, self).await;
        let summary = result?;
        restored.map(|()| summary)
    }

    async fn verify(&self, cx: &Context) -> Result<()> {
        let mut green = cx.writer(&self.to).await?;
        let Some(state) = state::load(&mut green, cx.run, &cx.step).await? else {
            return Err(Error::internal("a copy without its record on the target").on_database(&self.to));
        };
        let done = state::units(&green, cx.run, &cx.step).await?;
        if !done.contains(state::DONE) {
            return Err(Error::data("the copy's last step is not recorded on the target")
                .on_database(&self.to)
                .hint("`handover resume` completes it"));
        }
        self.compare_catalogs(&green, &state).await?;
        self.compare_rows(cx, &state).await?;
        extensions::verify(cx, &green).await?;
        large_objects::verify(cx, self).await
    }

    async fn undo(&self, cx: &Context) -> Result<Value> {
        replicate::origin::discard_after_copy(cx).await?;
        tune::restore(cx, self).await?;
        let mut green = cx.writer(&self.to).await?;
        holder::release(&cx.databases.labelled(cx.step.as_str()), &self.from, cx.run, &cx.step).await?;
        let state = state::load(&mut green, cx.run, &cx.step).await?;
        let all = super::migrate::gave_up(cx, &green).await?.is_some();
        let dropped = created::discard(cx, &mut green, all).await?;
        let mut out = json!({ "objects_dropped": dropped });
        let left = self.left_behind(cx, state.as_ref()).await?;
        if !left.is_empty() {
            cx.warn(format!(
                "{} is not as it was before the copy: {}; look at it, and take it back by hand if nobody needs it",
                self.to,
                crate::problem::few(&left)
            ));
            out["left_behind"] = json!(left);
        }
        Ok(out)
    }

    fn fills(&self) -> Option<&str> {
        Some(&self.to)
    }

    async fn finish(&self, cx: &Context) -> Result<()> {
        replicate::origin::discard_after_copy(cx).await
    }
}

/// Whether this run and step has begun a copy there.
async fn own_checkpoints(green: &Session, cx: &Context) -> Result<bool> {
    let table = green.query_one(&format!("select to_regclass('{OURS}.checkpoint') is not null"), &[]).await?;
    Ok(table.get(0) && !state::units(green, cx.run, &cx.step).await?.is_empty())
}

/// A read-only session on the target as the role that executes the plan.
async fn target_reader(cx: &Context, copy: &Copy) -> Result<Session> {
    cx.databases.labelled(cx.step.as_str()).read_only(&copy.to).await
}

impl Copy {
    /// One attempt, from wherever an earlier one left it.
    async fn attempt(&self, cx: &Context) -> Result<Value> {
        let databases = cx.databases.labelled(cx.step.as_str());
        let mut green = cx.writer(&self.to).await?;
        let state = state::load(&mut green, cx.run, &cx.step).await?;
        if state.is_some() {
            // What an earlier attempt of this process left running would be in our way.
            let blue = databases.read_only(&self.from).await?;
            for session in [&green, &blue] {
                fence::end_step(session, cx.databases.lease()?, cx.step.as_str()).await?;
            }
        }
        let done = state::units(&green, cx.run, &cx.step).await?;
        let (state, source) = match state {
            Some(state) if done.contains(state::DATA) => {
                // Killed between the mark and letting go.
                holder::release(&databases, &self.from, cx.run, &cx.step).await?;
                (state, None)
            }
            Some(state) => self.go_on(cx, &mut green, state, &done).await?,
            None => self.begin(cx, &mut green).await?,
        };
        let state = Arc::new(state);
        tune::apply(cx, self, &green).await?;
        schema::create(cx, self, &state).await?;
        extensions::carry(cx, self, source.as_ref(), &mut green).await?;
        let jobs = jobs::choose(self, &databases.read_only(&self.from).await?, &green).await?;
        pool::work(cx, self, jobs.number, source, &state).await?;
        self.rest(cx, &mut green, &state, jobs.number).await?;
        let loaded = data::loaded(&green, cx).await?;
        Ok(json!({
            "tables": state.tables.len(),
            "rows": loaded.iter().map(|l| l.rows).sum::<u64>(),
            "bytes": loaded.iter().map(|l| l.bytes).sum::<u64>(),
            "bytes_on_source": state.tables.iter().map(|t| t.bytes).sum::<u64>(),
            "large_objects": large_objects::total(&green, cx).await?.objects,
            "objects_after_rows": state.after.len(),
            "sequences": state.sequences.len(),
            "left_out": state.left_out,
            "set_aside": violation::summary(&green, cx).await?,
            "snapshot": state.snapshot,
        }))
    }

    /// Whether the rows of a table are copied, as far as names say.
    #[must_use]
    pub fn takes_rows(&self, table: &TableName) -> bool {
        self.selection().table(table) && !self.without_data.contains(table)
    }

    /// Whether a table is made on the target, with or without its rows.
    #[must_use]
    pub fn takes(&self, table: &TableName) -> bool {
        self.selection().table(table)
    }

    fn chunk_bytes(&self) -> u64 {
        self.chunk_mb.map_or(CHUNK, |mb| mb.max(1) << 20)
    }

    pub(super) fn selection(&self) -> Selection<'_> {
        Selection { include: &self.include, exclude: &self.exclude }
    }

    fn hold(&self) -> std::time::Duration {
        self.hold.map_or(HOLD, |hold| hold.0)
    }

    /// Goes on from an earlier attempt's snapshot, or begins again.
    async fn go_on(
        &self,
        cx: &Context,
        green: &mut Session,
        state: State,
        done: &std::collections::BTreeSet<String>,
    ) -> Result<(State, Option<Source>)> {
        let chunks: usize = state.tables.iter().map(|t| t.chunks.len()).sum();
        let loaded = done.iter().filter(|unit| unit.starts_with("rows:")).count();
        // A replication goes on only from its slot's own snapshot.
        let replicable = replicate::origin::is_there(cx).await?;
        if replicable && let Some(source) = Source::rejoin(cx, self, &state).await? {
            cx.note(format!(
                "goes on from the snapshot of {}: {loaded} of {chunks} pieces are there",
                state.snapshot.taken_at
            ));
            return Ok((state, Some(source)));
        }
        if replicable && self.source_is_quiet {
            let source = Source::open(cx, self).await?;
            cx.warn(format!(
                "the snapshot of {} is gone; {} is declared quiet, so the copy goes on from one of {}: {loaded} of {chunks} pieces are there",
                state.snapshot.taken_at, self.from, source.snapshot.taken_at
            ));
            let state = State { held: source.held().clone(), ..state };
            let tx = green.transaction().await?;
            tx.save_checkpoint(cx.run, &cx.step, state::STATE, &state).await?;
            tx.commit().await?;
            return Ok((state, Some(source)));
        }
        cx.warn(format!(
            "an earlier attempt ended before all rows were there, and its snapshot of {} is gone (the server restarted, or nobody came back within `hold`): what it made is dropped, and the copy begins again",
            state.snapshot.taken_at
        ));
        created::discard(cx, green, false).await?;
        *green = cx.writer(&self.to).await?;
        self.begin(cx, green).await
    }

    /// Takes the snapshot, and writes down what will be done.
    async fn begin(&self, cx: &Context, green: &mut Session) -> Result<(State, Option<Source>)> {
        created::assert_empty(green).await?;
        let blue = cx.databases.labelled(cx.step.as_str()).read_only(&self.from).await?;
        let mut found = Description::default();
        let program = preflight::look(self, &blue, green, &mut found).await?;
        extensions::look(self, &blue, green, &mut found).await?;
        replicate::origin::look(cx, self, &blue, green, &mut found).await?;
        preflight::refuse(&found, &self.to)?;
        drop(blue);
        let Some(program) = program else {
            return Err(Error::internal("no pg_dump, and no reason"));
        };
        for warning in &found.warnings {
            cx.warn(warning);
        }
        let source = Source::open(cx, self).await?;
        cx.note(format!(
            "the copy shows {} as of {} (log position {})",
            self.from, source.snapshot.taken_at, source.snapshot.lsn
        ));
        match self.plan(cx, &program, &source, green).await {
            Ok(state) => {
                failpoint::at(failpoint::COPY_PLANNED)?;
                Ok((state, Some(source)))
            }
            Err(error) => {
                // Nothing refers to it: it need not wait for its time to run out.
                let _ = source.release().await;
                Err(error)
            }
        }
    }

    /// What a dump of the target shows, entry by entry as a fingerprint; none where no pg_dump here can read it.
    async fn shown(&self, cx: &Context) -> Result<Option<std::collections::BTreeMap<String, String>>> {
        let green = target_reader(cx, self).await?;
        let version = source::major(&green).await?;
        let Ok(program) = dump::Program::find(self.programs.as_deref(), version, version).await else {
            return Ok(None);
        };
        let mut options: Vec<String> =
            ours::schemas().iter().map(|s| format!("--exclude-schema={s}")).collect();
        options.push("--no-blobs".into());
        let dumped = match program
            .dump(cx.databases.url(&self.to)?, (&self.to, version), None, &options)
            .await
        {
            Ok(dumped) => dumped,
            // The copy does not hang on it.
            Err(e) => {
                cx.note(format!("whether an undo leaves nothing behind cannot be compared: {}", e.message()));
                return Ok(None);
            }
        };
        let shown = dumped.entries.into_iter().map(|e| {
            // Comments tell numbers and the time, and settings stand behind what precedes a table.
            let said = |line: &&str| !line.starts_with("--") && !line.starts_with("SET ");
            let sql: Vec<&str> = e.sql.lines().filter(said).collect();
            (format!("{} {}", e.kind, e.name), crate::value::fingerprint(sql.join("\n").trim(), 16))
        });
        Ok(Some(shown.collect()))
    }

    /// What is other on the target than before the copy, by its dump of then.
    async fn left_behind(&self, cx: &Context, state: Option<&State>) -> Result<Vec<String>> {
        let Some(before) = state.and_then(|state| state.shown.as_ref()) else { return Ok(Vec::new()) };
        let Some(now) = self.shown(cx).await? else { return Ok(Vec::new()) };
        let other = |(name, sql): &(&String, &String)| before.get(*name) != Some(*sql);
        let gone = before.keys().filter(|name| !now.contains_key(*name));
        let left = now.iter().filter(other).map(|(name, _)| name.clone());
        Ok(left.chain(gone.map(|name| format!("{name} is gone"))).collect())
    }

    /// Dumps the schema and writes the copy's plan to the target.
    async fn plan(
        &self,
        cx: &Context,
        program: &dump::Program,
        source: &Source,
        green: &mut Session,
    ) -> Result<State> {
        let selection = self.selection();
        let options = self.dump_options(source.session()).await?;
        let major = source::major(source.session()).await?;
        let dumped = program
            .dump(cx.databases.url(&self.from)?, (&self.from, major), Some(&source.held().exported), &options)
            .await?;
        let (settings, mut before, mut after) = schema::split(dumped);
        // Triggers that capture, backfill or a cutover made belong to blue.
        let sql = format!(
            "select t.oid from pg_trigger t join pg_proc p on p.oid = t.tgfoid where not ({})",
            catalog::not_our_trigger()
        );
        let rows = source.session().query(&sql, &[]).await?;
        let triggers: Vec<u32> = rows.iter().map(|row| row.get(0)).collect();
        schema::without(&mut after, |e| e.kind == "TRIGGER" && triggers.contains(&e.oid));
        // So does what a replication publishes.
        schema::without(&mut after, |e| e.kind.starts_with("PUBLICATION") && e.name.starts_with("handover_"));
        // An extension that is there already belongs to whoever made it; so does its comment.
        let rows = green.query("select extname::text from pg_extension", &[]).await?;
        let extensions: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        schema::without(&mut before, |e| e.kind == "EXTENSION" && extensions.contains(&e.name));
        schema::public_stays(source.session(), green, &mut before).await?;
        let left = dependents::left_out(self, source.session()).await?;
        schema::leave_out(&mut before, &mut after, &left);
        preflight::roles(self, green, &before.iter().chain(&after).collect::<Vec<_>>()).await?;
        schema::rehearse(cx, self, &settings, &before.iter().chain(&after).collect::<Vec<_>>()).await?;
        let tables = source.tables(self).await?;
        let sequences = source.sequences(&selection).await?;
        let mut inventory = source::inventory(source.session(), &selection).await?;
        inventory.retain(|fact| !left.covers(fact));
        let definitions = definitions::read(source.session(), &selection).await?;
        let shown = self.shown(cx).await?;
        let tx = green.transaction().await?;
        let state = State {
            shown,
            existing: created::existing(&tx).await?,
            snapshot: source.snapshot.clone(),
            held: source.held().clone(),
            tables,
            sequences,
            settings,
            before,
            after: source.places(after).await?,
            analyze: source.analyzed(&selection).await?,
            inventory,
            definitions,
            left_out: left.words(),
            writes: source.writes.clone(),
            operations: source.operations.clone(),
            server_started: source.server_started.clone(),
        };
        rights::remember(&tx, cx).await?;
        super::watched::keep_for_copy(cx, source.session(), &tx).await?;
        tx.save_checkpoint(cx.run, &cx.step, state::STATE, &state).await?;
        tx.commit().await?;
        Ok(state)
    }

    /// Options that make pg_dump leave out what the plan leaves out.
    async fn dump_options(&self, session: &Session) -> Result<Vec<String>> {
        let selection = self.selection();
        let mut options: Vec<String> =
            ours::schemas().iter().map(|s| format!("--exclude-schema={s}")).collect();
        let sql = format!("select n.nspname::text from pg_namespace n where {}", catalog::USER_SCHEMAS);
        for row in session.query(&sql, &[]).await? {
            let schema: String = row.get(0);
            if !selection.schema(&schema) {
                options.push(format!("--exclude-schema={}", quote_ident(&schema)));
            }
        }
        for row in session.query(&catalog::relations("'r', 'p', 'v', 'm', 'f'"), &[]).await? {
            let name = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
            if selection.schema(&name.schema) && !selection.relation(&name) {
                options.push(format!("--exclude-table={}", name.sql()));
            }
        }
        if self.owners == Owners::Skip {
            options.extend(["--no-owner".to_owned(), "--no-privileges".to_owned()]);
        }
        if !self.publications {
            options.push("--no-publications".into());
        }
        // The old name of --no-large-objects, known to every version.
        options.push("--no-blobs".into());
        Ok(options)
    }

    /// Everything after the last foreign key; each piece is skipped when its checkpoint is there.
    async fn rest(&self, cx: &Context, green: &mut Session, state: &State, jobs: usize) -> Result<()> {
        self.set_sequences(cx, green, state).await?;
        schema::complete(cx, self, state, jobs.saturating_sub(1)).await?;
        let tx = green.transaction().await?;
        let views = tx.query(&catalog::relations("'m'"), &[]).await?;
        for row in &views {
            let name = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
            tx.batch(&format!("analyze {}", name.sql())).await?;
        }
        state::mark(&tx, cx.run, &cx.step, state::DONE).await?;
        tx.commit().await
    }

    async fn set_sequences(&self, cx: &Context, green: &mut Session, state: &State) -> Result<()> {
        let done = state::units(green, cx.run, &cx.step).await?;
        if done.contains(state::SEQUENCES) {
            return Ok(());
        }
        cx.proceed()?;
        let tx = green.transaction().await?;
        for sequence in &state.sequences {
            tx.query(
                "select setval(to_regclass($1), $2, $3)",
                &[&sequence.name.sql(), &sequence.value, &sequence.called],
            )
            .await
            .map_err(|e| e.context(format!("setting sequence {}", sequence.name)))?;
        }
        state::mark(&tx, cx.run, &cx.step, state::SEQUENCES).await?;
        tx.commit().await?;
        failpoint::at(failpoint::COPY_SEQUENCES_SET)?;
        Ok(())
    }
}
