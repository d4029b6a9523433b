//! `copy`: fills an empty database with everything another one holds at one point in time.
//!
//! The schema is pg_dump's, the rows travel by parallel COPY from one snapshot, indexes and constraints follow.
//! Each piece commits on the target together with its checkpoint. A snapshot dies with the session that holds
//! it: an attempt that ended before all rows were there is taken back and begun again, so that rows of two
//! points in time are never mixed; after that, the rest goes on piece by piece.
//! (<https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-SNAPSHOT-SYNCHRONIZATION>)

pub mod catalog;
pub mod created;
pub mod data;
pub mod dump;
pub mod large_objects;
pub mod preflight;
pub mod privileges;
pub mod rights;
pub mod schema;
pub mod source;
pub mod state;

use super::{Access, CheckContext, Context, Description, StepKind, Undo, replicate};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::postgres::{Session, TableName, quote_ident, quote_literal};
use crate::problem::{Problems, Segment};
use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use source::Source;
use state::State;
use std::path::PathBuf;

/// Tables larger than this are cut, unless the plan says otherwise.
const CHUNK: u64 = 1 << 30;
/// For estimates: bytes per second and job, of tables with a few indexes on ordinary disks.
const SPEED: u64 = 15 << 20;

/// Copies a database.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Copy {
    /// The database that is read.
    pub from: String,
    /// The empty database that is filled.
    pub to: String,
    /// Connections to each side; the cores of this machine (2 to 8) unless given.
    #[schemars(range(min = 1, max = 64))]
    pub jobs: Option<usize>,
    /// Copies only these.
    #[serde(default)]
    pub include: Names,
    /// Leaves these out.
    #[serde(default)]
    pub exclude: Names,
    /// Creates these tables without their rows.
    #[serde(default)]
    pub without_data: Vec<TableName>,
    /// Whether owners and grants are kept.
    #[serde(default)]
    pub owners: Owners,
    /// What to do when the source has large objects.
    #[serde(default)]
    pub large_objects: LargeObjects,
    /// Whether publications are created too: `false` unless given.
    #[serde(default)]
    pub publications: bool,
    /// Tables larger than this many megabytes are copied in pieces of that size, in parallel; 1024 unless given.
    #[schemars(range(min = 1))]
    pub chunk_mb: Option<u64>,
    /// `maintenance_work_mem` for index builds, e.g. `1GB`; each job uses that much.
    pub maintenance_work_mem: Option<String>,
    /// Folder with pg_dump; searched for unless given.
    pub programs: Option<PathBuf>,
}

/// Schemas and tables by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Names {
    /// Whole schemas.
    pub schemas: Vec<String>,
    /// Single tables, views or foreign tables.
    pub tables: Vec<TableName>,
}

impl Names {
    fn is_empty(&self) -> bool {
        self.schemas.is_empty() && self.tables.is_empty()
    }
}

/// Whether owners and grants are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Owners {
    /// Objects belong to the roles of the same names; those must exist on the target.
    #[default]
    Keep,
    /// Everything belongs to the role that executes the plan, and nothing is granted.
    Skip,
}

/// What to do when the source has large objects (`pg_largeobject`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LargeObjects {
    /// Copy them, with the numbers they have.
    #[default]
    Copy,
    /// Leave them behind.
    Skip,
}

/// What is copied, by name.
#[derive(Debug, Clone, Copy)]
pub struct Selection<'a> {
    include: &'a Names,
    exclude: &'a Names,
}

impl Selection<'_> {
    /// Whether objects of a schema are copied.
    #[must_use]
    pub fn schema(&self, schema: &str) -> bool {
        let named = |names: &Names| names.schemas.iter().any(|s| s == schema);
        !named(self.exclude)
            && (self.include.is_empty()
                || named(self.include)
                || self.include.tables.iter().any(|t| t.schema == schema))
    }

    /// Whether a table, view or foreign table is copied.
    #[must_use]
    pub fn relation(&self, name: &TableName) -> bool {
        self.schema(&name.schema)
            && !self.exclude.tables.contains(name)
            && (self.include.is_empty()
                || self.include.schemas.contains(&name.schema)
                || self.include.tables.contains(name))
    }

    /// The same for a table.
    #[must_use]
    pub fn table(&self, name: &TableName) -> bool {
        self.relation(name)
    }
}

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
        for schema in ["handover", "handover_queue"] {
            if self.include.schemas.iter().any(|s| s == schema) {
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
        let (blue, green) = (cx.reader(&self.from).await?, cx.reader(&self.to).await?);
        let mut out = Description::default();
        let program = preflight::look(self, &blue, &green, &mut out).await?;
        let resumable = own_checkpoints(&green, cx).await?;
        preflight::emptiness(self, &green, resumable, &mut out).await?;
        let tables = source::tables(&blue, self, source::major(&blue).await?).await?;
        let bytes: u64 = tables.iter().map(|t| t.bytes).sum();
        let pieces: usize = tables.iter().map(|t| t.chunks.len()).sum();
        let facts = source::inventory(&blue, &self.selection()).await?;
        let indexes = facts.iter().filter(|f| f.text.starts_with("index ")).count();
        let keys = facts
            .iter()
            .filter(|f| f.text.starts_with("constraint ") && f.text.contains("of kind f"))
            .count();
        if let Some(program) = program {
            out.action(format!(
                "create the schema of {} on {} with pg_dump {}",
                self.from, self.to, program.major
            ));
        }
        out.action(format!(
            "copy {} tables, {} MB in {pieces} pieces, over {} connections to each side, from one snapshot",
            tables.len(),
            bytes >> 20,
            self.jobs()
        ));
        for table in tables.iter().take(5) {
            out.action(format!(
                "  {}: {} MB in {} pieces, as {}",
                table.name,
                table.bytes >> 20,
                table.chunks.len(),
                if table.binary { "binary" } else { "text" }
            ));
        }
        out.action(format!(
            "build {indexes} indexes, add {keys} foreign keys, set sequences, analyze every table"
        ));
        out.warning(format!(
            "while rows are copied, vacuum on {} keeps every row version that dies, and tables cannot be altered or truncated",
            self.from
        ));
        out.estimate = Some(format!(
            "about {} min: {} MB at {} MB/s for each of {} connections (a guess for ordinary disks, index builds included)",
            (bytes / (SPEED * self.jobs() as u64)).div_ceil(60).max(1),
            bytes >> 20,
            SPEED >> 20,
            self.jobs()
        ));
        Ok(out)
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        tokio::select! {
            result = self.attempt(cx) => result,
            // A slot that a replication after this copy needs must not fill the source's disk meanwhile.
            error = replicate::guard(cx) => Err(error),
        }
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
        large_objects::verify(cx, self).await
    }

    async fn undo(&self, cx: &Context) -> Result<Value> {
        replicate::origin::discard_after_copy(cx).await?;
        let mut green = cx.writer(&self.to).await?;
        let dropped = created::discard(cx, &mut green).await?;
        Ok(json!({ "objects_dropped": dropped }))
    }

    async fn finish(&self, cx: &Context) -> Result<()> {
        replicate::origin::discard_after_copy(cx).await
    }
}

/// Whether this run and step has begun a copy there.
async fn own_checkpoints(green: &Session, cx: &Context) -> Result<bool> {
    let table = green.query_one("select to_regclass('handover.checkpoint') is not null", &[]).await?;
    Ok(table.get(0) && !state::units(green, cx.run, &cx.step).await?.is_empty())
}

/// A read-only session on the target as the role that executes the plan.
async fn target_reader(cx: &Context, copy: &Copy) -> Result<Session> {
    cx.databases.labelled(cx.step.as_str()).read_only(&copy.to).await
}

impl Copy {
    async fn attempt(&self, cx: &Context) -> Result<Value> {
        let mut green = cx.writer(&self.to).await?;
        let mut state = state::load(&mut green, cx.run, &cx.step).await?;
        let done = state::units(&green, cx.run, &cx.step).await?;
        if state.is_some() && !done.contains(state::DATA) {
            cx.note("an earlier attempt ended before all rows were there, and its snapshot is gone: what it made is dropped, and the copy begins again");
            created::discard(cx, &mut green).await?;
            green = cx.writer(&self.to).await?;
            state = None;
        }
        let state = match state {
            Some(state) => state,
            None => self.rows(cx, &mut green).await?,
        };
        self.rest(cx, &mut green, &state).await?;
        let loaded = data::loaded(&green, cx).await?;
        Ok(json!({
            "tables": state.tables.len(),
            "rows": loaded.iter().map(|l| l.rows).sum::<u64>(),
            "bytes": loaded.iter().map(|l| l.bytes).sum::<u64>(),
            "large_objects": large_objects::total(&green, cx).await?.objects,
            "objects_after_rows": state.after.len(),
            "sequences": state.sequences.len(),
            "snapshot": state.snapshot,
        }))
    }

    fn jobs(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
        self.jobs.unwrap_or_else(cores).max(1)
    }

    /// Whether the rows of a table are copied, as far as names say.
    #[must_use]
    pub fn takes_rows(&self, table: &TableName) -> bool {
        self.selection().table(table) && !self.without_data.contains(table)
    }

    fn chunk_bytes(&self) -> u64 {
        self.chunk_mb.map_or(CHUNK, |mb| mb.max(1) << 20)
    }

    fn selection(&self) -> Selection<'_> {
        Selection { include: &self.include, exclude: &self.exclude }
    }

    /// Everything up to the last row.
    async fn rows(&self, cx: &Context, green: &mut Session) -> Result<State> {
        created::assert_empty(green).await?;
        let blue = cx.databases.labelled(cx.step.as_str()).read_only(&self.from).await?;
        let mut found = Description::default();
        let program = preflight::look(self, &blue, green, &mut found).await?;
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
        let (state, before) = self.plan(cx, &program, &source, green).await?;
        failpoint::hit(failpoint::COPY_PLANNED);
        schema::create(cx, self, &state, &before).await?;
        data::copy_rows(cx, self, &source, &state).await?;
        large_objects::copy(cx, self, &source.exported).await?;
        // Only now is it certain that nobody could rewrite a table while it was read.
        source.assert_held().await?;
        let tx = green.transaction().await?;
        state::mark(&tx, cx.run, &cx.step, state::DATA).await?;
        tx.commit().await?;
        failpoint::hit(failpoint::COPY_DATA_COMPLETE);
        Ok(state)
    }

    /// Dumps the schema and writes the copy's plan to the target.
    async fn plan(
        &self,
        cx: &Context,
        program: &dump::Program,
        source: &Source,
        green: &mut Session,
    ) -> Result<(State, Vec<dump::Entry>)> {
        let selection = self.selection();
        let options = self.dump_options(source.session()).await?;
        let dumped =
            program.dump(cx.databases.url(&self.from)?, &self.from, &source.exported, &options).await?;
        let (settings, mut before, mut after) = schema::split(dumped);
        // Capture's triggers belong to blue.
        let rows = source
            .session()
            .query(
                "select t.oid from pg_trigger t join pg_proc p on p.oid = t.tgfoid
                 join pg_namespace n on n.oid = p.pronamespace where n.nspname in ('handover', 'handover_queue')",
                &[],
            )
            .await?;
        let triggers: Vec<u32> = rows.iter().map(|row| row.get(0)).collect();
        schema::without(&mut after, |e| e.kind == "TRIGGER" && triggers.contains(&e.oid));
        // So does what a replication publishes.
        schema::without(&mut after, |e| e.kind.starts_with("PUBLICATION") && e.name.starts_with("handover_"));
        // An extension that is there already belongs to whoever made it; so does its comment.
        let rows = green.query("select extname::text from pg_extension", &[]).await?;
        let extensions: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        schema::without(&mut before, |e| e.kind == "EXTENSION" && extensions.contains(&e.name));
        preflight::roles(self, green, &before.iter().chain(&after).collect::<Vec<_>>()).await?;
        let tables = source.tables(self).await?;
        let sequences = source.sequences(&selection).await?;
        let inventory = source::inventory(source.session(), &selection).await?;
        let tx = green.transaction().await?;
        let state = State {
            before: created::existing(&tx).await?,
            snapshot: source.snapshot.clone(),
            tables,
            sequences,
            settings,
            after,
            inventory,
            writes: source.writes.clone(),
            server_started: source.server_started.clone(),
        };
        rights::remember(&tx, cx).await?;
        tx.save_checkpoint(cx.run, &cx.step, state::STATE, &state).await?;
        tx.commit().await?;
        Ok((state, before))
    }

    /// Options that make pg_dump leave out what the plan leaves out.
    async fn dump_options(&self, session: &Session) -> Result<Vec<String>> {
        let selection = self.selection();
        let mut options: Vec<String> =
            ["handover", "handover_queue"].iter().map(|s| format!("--exclude-schema={s}")).collect();
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

    /// Everything after the last row; each piece is skipped when its checkpoint is there.
    async fn rest(&self, cx: &Context, green: &mut Session, state: &State) -> Result<()> {
        schema::build_keys(cx, self, state).await?;
        self.analyze(cx, green, state).await?;
        self.set_sequences(cx, green, state).await?;
        schema::complete(cx, self, state).await?;
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
        failpoint::hit(failpoint::COPY_SEQUENCES_SET);
        Ok(())
    }

    async fn analyze(&self, cx: &Context, green: &mut Session, _state: &State) -> Result<()> {
        let done = state::units(green, cx.run, &cx.step).await?;
        if done.contains(state::ANALYZED) {
            return Ok(());
        }
        green.set("statement_timeout", "0").await?;
        // A partitioned table's ANALYZE includes its partitions.
        let rows = green
            .query(
                &format!(
                    "select n.nspname::text, c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
                     where {} and {} order by 1, 2",
                    catalog::analyzable(),
                    catalog::USER_SCHEMAS
                ),
                &[],
            )
            .await?;
        for (i, row) in rows.iter().enumerate() {
            cx.proceed()?;
            cx.progress("analyze", i as u64, Some(rows.len() as u64), crate::event::Measure::Items);
            let name = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
            let tx = green.transaction().await?;
            tx.batch(&format!("analyze {}", name.sql())).await?;
            tx.commit().await?;
        }
        let tx = green.transaction().await?;
        state::mark(&tx, cx.run, &cx.step, state::ANALYZED).await?;
        tx.commit().await?;
        cx.unit_done("analyze");
        failpoint::hit(failpoint::COPY_ANALYZED);
        Ok(())
    }

    async fn compare_catalogs(&self, green: &Session, state: &State) -> Result<()> {
        let there = source::inventory(green, &self.selection()).await?;
        let describe = |f: &state::Fact| {
            let name = TableName::new(&f.schema, if f.relation.is_empty() { "*" } else { &f.relation });
            format!("{name}: {}", f.text)
        };
        let missing: Vec<String> = state.inventory.difference(&there).map(describe).collect();
        let extra: Vec<String> = there.difference(&state.inventory).map(describe).collect();
        if !missing.is_empty() || !extra.is_empty() {
            let few = |list: &[String]| list.iter().take(5).cloned().collect::<Vec<_>>().join("; ");
            return Err(Error::data(format!(
                "the target's catalog differs from the source's: {} missing ({}), {} unexpected ({})",
                missing.len(),
                few(&missing),
                extra.len(),
                few(&extra)
            ))
            .on_database(&self.to)
            .hint("if somebody changed the target meanwhile, undo that; else `handover rollback` and report this"));
        }
        for sequence in &state.sequences {
            let exists =
                green.query_one("select to_regclass($1) is not null", &[&sequence.name.sql()]).await?;
            if !exists.get::<_, bool>(0) {
                continue;
            }
            let sql = format!(
                "select last_value, s.seqincrement > 0 from {}, pg_sequence s where s.seqrelid = {}::regclass",
                sequence.name.sql(),
                quote_literal(&sequence.name.sql())
            );
            let row = green.query_one(&sql, &[]).await?;
            let (value, ascending): (i64, bool) = (row.get(0), row.get(1));
            if (ascending && value < sequence.value) || (!ascending && value > sequence.value) {
                return Err(Error::data(format!(
                    "sequence {} stands at {value}, behind the source's {}",
                    sequence.name, sequence.value
                ))
                .on_database(&self.to)
                .hint("somebody set it back; set it again, then `handover resume`"));
            }
        }
        Ok(())
    }

    /// Rows that are there against rows that were sent. (That the source sent all it has is the protocol's
    /// promise: a COPY that breaks off ends in an error.)
    async fn compare_rows(&self, cx: &Context, state: &State) -> Result<()> {
        let green = target_reader(cx, self).await?;
        for (name, value) in [("statement_timeout", "0"), ("row_security", "off")] {
            green.set(name, value).await?;
        }
        let loaded = data::loaded(&green, cx).await?;
        for (i, table) in state.tables.iter().enumerate() {
            cx.proceed()?;
            cx.progress("count", i as u64, Some(state.tables.len() as u64), crate::event::Measure::Items);
            // Rows that were given to a root may be in any of its partitions.
            let same = |t: &state::Table| t.name == table.name || t.root.is_some() && t.root == table.root;
            let tables: Vec<_> = state.tables.iter().filter(|t| same(t)).map(|t| &t.name).collect();
            let sent = loaded.iter().filter(|l| tables.contains(&&l.table)).map(|l| l.rows).sum::<u64>();
            let only = format!("only {}", table.name.sql());
            let sql = format!("select count(*) from {}", table.root.as_ref().map_or(only, TableName::sql));
            let there = green.query_one(&sql, &[]).await?.get::<_, i64>(0).unsigned_abs();
            if there != sent {
                return Err(Error::data(format!("table {} has {there} rows, and {sent} were copied", table.name))
                    .on_database(&self.to)
                    .hint("somebody writes to the target already: stop that, `handover rollback` to before the copy, and run again"));
            }
        }
        cx.unit_done("count");
        Ok(())
    }
}
