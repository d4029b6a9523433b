//! `migrate`: applies folders of SQL migrations through refinery, a vendor's as it is.
//!
//! Each file is one fenced transaction in which its effect and refinery's history row commit together, so the
//! history is the checkpoint. Files that cannot run in a transaction go statement by statement, with a record
//! before and after each, and a look at the database where the record does not tell.

use super::{Access, CheckContext, Context, Description, StepKind, Undo};
use crate::error::{Error, Result};
use crate::postgres::ours::OURS;
use crate::postgres::profile::SearchPath;
use crate::problem::{Problems, count};
use crate::value::Duration;
use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

mod apply;
mod culprit;
mod describe;
mod execute;
mod folder;
mod history;
mod lex;
mod lint;
mod locks;
mod names;
mod overrides;
mod place;
mod probe;
pub mod role;
mod script;
mod sections;
mod settle;
mod star;
mod undo;
mod vendor;
mod watch;

use execute::Worker;
use folder::Loaded;
pub use names::Names;
use settle::Settled;
pub use vendor::History;

/// Applies SQL migrations.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Migrate {
    /// The database.
    pub on: String,
    /// The folder with the migrations, relative to the plan's.
    pub dir: Option<PathBuf>,
    /// Several folders instead, in the order in which they run.
    #[serde(default)]
    pub dirs: Vec<PathBuf>,
    /// Whose file names the folders use; found out from the names unless given.
    #[serde(default)]
    pub names: Names,
    /// A folder whose files replace those of the same name, or add a down file that is missing.
    #[serde(rename = "override")]
    pub replace: Option<PathBuf>,
    /// Names of `.sql` files that are no migrations; `*` stands for any text.
    #[serde(default)]
    pub ignore: Vec<String>,
    /// How long a file waits for its locks before everything is rolled back and tried again. Kept short, because
    /// all traffic on a table queues behind a waiting ALTER TABLE; never more than four fifths of the server's
    /// `deadlock_timeout`, so that no statement of the application's is chosen as the victim of a deadlock.
    #[serde(default = "default_lock_timeout")]
    pub lock_timeout: Duration,
    /// How often a file is tried for its locks, with growing pauses.
    #[serde(default = "default_lock_attempts")]
    #[schemars(range(min = 1))]
    pub lock_attempts: u32,
    /// How long one statement may run; without limit unless given.
    pub statement_timeout: Option<Duration>,
    /// The role that the files run as, so that what they create belongs to the application.
    #[schemars(length(min = 1, max = 63))]
    pub role: Option<String>,
    /// The schemas in which names without one are looked up; those of the database in the plan unless given.
    pub search_path: Option<SearchPath>,
    /// What was applied before Handover, and is recorded without being run: a list of numbers (in quotes) or
    /// names, or a file with one a line. A single number or name stands for all up to it. Where the vendor's own
    /// table tells, leave it out.
    pub baseline: Option<Baseline>,
    /// Whose history counts, and is written with what is applied.
    #[serde(default)]
    pub history: History,
    /// The vendor's table, if the service was told another name for it than its tool's usual one.
    #[schemars(length(min = 1))]
    pub history_table: Option<String>,
    /// How the step is taken back.
    #[serde(default)]
    pub undo: UndoBy,
}

/// What was applied before Handover.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Baseline {
    /// All up to this one.
    UpTo(String),
    /// These.
    Set(Vec<String>),
    /// Those that a file names.
    File(BaselineFile),
}

/// A file with the numbers or names of the migrations that were applied.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BaselineFile {
    /// The file, relative to the plan's folder: a number or name on each line; `#` begins a comment.
    pub file: PathBuf,
}

/// How applied migrations are taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UndoBy {
    /// By the down files, newest first; each migration must have one. They are trusted to lose nothing.
    #[default]
    Down,
    /// By the down files, which lose what was written to the columns and tables that they drop: a rollback
    /// asks first.
    DownWithLoss,
    /// Not at all.
    None,
    /// Only the history forgets: the database is filled by this plan, and emptied by an earlier step's undo.
    Throwaway,
}

fn default_lock_timeout() -> Duration {
    Duration::secs(2)
}

fn default_lock_attempts() -> u32 {
    20
}

#[async_trait]
impl StepKind for Migrate {
    fn check(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        cx.database(problems, "on", &self.on);
        match (&self.dir, self.dirs.is_empty()) {
            (Some(_), false) => {
                problems
                    .error(["dirs"], "both `dir` and `dirs` are given")
                    .hint("write all folders under `dirs`, in order");
                return;
            }
            (None, true) => {
                problems.error::<&str>([], "no folder is given").hint("write `dir: migrations`");
                return;
            }
            _ => {}
        }
        if self.lock_timeout.0.is_zero() {
            problems
                .error(
                    ["lock_timeout"],
                    "a lock_timeout of zero waits without limit, and all traffic behind it",
                )
                .hint("write e.g. `2s`; it is tried again `lock_attempts` times");
        }
        let loaded = self.load(cx.base);
        for (field, error) in &loaded.problems {
            let field = if *field == "dirs" && self.dir.is_some() { "dir" } else { field };
            let problem = problems.error([field], error.to_string());
            if let Some(hint) = error.next_step() {
                problem.hint(hint);
            }
        }
        if !loaded.problems.is_empty() {
            return;
        }
        if self.history == History::Own && self.history_table.is_some() {
            problems
                .error(["history_table"], "`history: own` writes no vendor's table")
                .hint("leave one of the two out");
        }
        let baseline = match self.baseline_of(cx.base, &loaded.migrations) {
            Ok(baseline) => baseline,
            Err(error) => {
                let problem = problems.error(["baseline"], error.to_string());
                if let Some(hint) = error.next_step() {
                    problem.hint(hint);
                }
                BTreeSet::new()
            }
        };
        if let (Some(Baseline::UpTo(last)), false) = (&self.baseline, baseline.is_empty()) {
            let left_out: Vec<&folder::Migration> =
                loaded.migrations.iter().filter(|m| baseline.contains(&m.key())).collect();
            problems
                .warning(
                    ["baseline"],
                    format!(
                        "{} up to `{last}` will be recorded as applied and not run: {}",
                        count(left_out.len(), "file"),
                        settle::few(&left_out)
                    ),
                )
                .hint("a later release may bring files with lower numbers that never ran: name what was applied as a list, or let the vendor's own table tell (`history: vendor`)");
        }
        let all: Vec<&folder::Migration> =
            loaded.migrations.iter().filter(|m| !baseline.contains(&m.key())).collect();
        if let Some(error) = self.without_way_back(&all) {
            // What the vendor's table says was applied needs none, and only the database knows.
            let problem = match self.history {
                History::Vendor => problems.warning(["undo"], error.message()),
                History::Auto | History::Own => problems.error(["undo"], error.message()),
            };
            if let Some(hint) = error.next_step() {
                problem.hint(hint);
            }
        }
    }

    fn databases(&self) -> Vec<(&str, Access)> {
        vec![(&self.on, Access::Write)]
    }

    fn files(&self) -> Vec<PathBuf> {
        let baseline = match &self.baseline {
            Some(Baseline::File(named)) => Some(named.file.clone()),
            _ => None,
        };
        self.folders()
            .into_iter()
            .map(Path::to_path_buf)
            .chain(self.replace.clone())
            .chain(baseline)
            .collect()
    }

    fn reversibility(&self) -> Undo {
        match self.undo {
            UndoBy::Down => Undo::Exact { how: "runs the down files, newest first".into() },
            UndoBy::DownWithLoss => Undo::Lossy {
                how: "runs the down files, newest first".into(),
                loses: "what was written since to columns and tables that they drop".into(),
            },
            UndoBy::None => {
                Undo::Impossible { why: "the plan says `undo: none` for these migrations".into() }
            }
            UndoBy::Throwaway => {
                Undo::Exact { how: "forgets the history; an earlier step's undo empties the database".into() }
            }
        }
    }

    fn leaves(&self) -> Option<&str> {
        (self.undo == UndoBy::Throwaway).then_some(self.on.as_str())
    }

    async fn describe(&self, cx: &Context) -> Result<Description> {
        describe::describe(self, cx, self.load(&cx.base).into_result()?).await
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        let loaded = self.load(&cx.base).into_result()?;
        let mut worker = Worker::open(cx, self).await?;
        let tx = worker.session.transaction().await?;
        tx.execute(
            &format!("delete from {OURS}.checkpoint where run = $1 and step = $2 and unit = $3"),
            &[&cx.run.0, &thrown(&cx.step).as_str(), &THROWN_AWAY],
        )
        .await?;
        tx.commit().await?;
        worker.create_history().await?;
        let settled = worker.settle(loaded.migrations).await?;
        let standing = history::compare(&settled.rows, &settled.migrations)?;
        let pending = standing.pending.iter().map(|(_, file)| *file);
        let pending: Vec<&folder::Migration> = pending.filter(|file| !settled.is_baseline(file)).collect();
        if let Some(error) = self.without_way_back(&pending) {
            return Err(error);
        }
        let unknown = settled.unknown_to_vendor();
        if !unknown.is_empty() {
            cx.warn(format!(
                "{} of Handover's history are not in the vendor's table, and its tool would run them again: {}",
                count(unknown.len(), "file"),
                settle::few(&unknown)
            ));
        }
        worker.apply_all(&standing, |file| settled.is_baseline(file)).await?;
        // Counted from the history, so that a run that was interrupted reports all it did.
        let rows = history::read(&worker.session, &worker.table).await?;
        let ours = |baseline: bool| rows.iter().filter(|r| r.run == cx.run && r.baseline == baseline).count();
        Ok(
            json!({ "applied": ours(false), "baseline": ours(true), "before": rows.len() - ours(false) - ours(true) }),
        )
    }

    async fn verify(&self, cx: &Context) -> Result<()> {
        let loaded = self.load(&cx.base).into_result()?;
        let session = cx.operator_reader(&self.on).await?;
        session.set("search_path", &self.path(cx)?.sql()).await?;
        let table = history::table_name(&cx.plan, cx.step.as_str());
        // The reader may not see the vendor's table; what was written there committed with ours.
        let own = Migrate { history: History::Own, ..self.clone() };
        let settled = Settled::read(&session, None, &own, &cx.base, &table, loaded.migrations).await?;
        let standing = history::compare(&settled.rows, &settled.migrations)?;
        if let Some((_, file)) = standing.pending.iter().chain(&standing.again).next() {
            return Err(Error::data(format!(
                "{} of {} migrations are not in the history, first {}",
                standing.pending.len() + standing.again.len(),
                settled.migrations.len(),
                file.key()
            ))
            .on_database(&self.on)
            .hint("see who changed the history table, then `handover resume`"));
        }
        // Recorded is not enough for what no transaction vouches for.
        for file in settled.migrations.iter().filter(|f| f.up.stepwise.is_some()) {
            for statement in file.up.statements() {
                probe::before(&session, statement)
                    .await
                    .map_err(|e| e.in_file(&file.up.path, Some(statement.line)))?;
            }
        }
        Ok(())
    }

    async fn undo(&self, cx: &Context) -> Result<Value> {
        let run_files = match self.undo {
            UndoBy::None => {
                return Err(Error::usage("the plan says `undo: none` for these migrations")
                    .hint("roll back to a step after this one, or restore the database"));
            }
            UndoBy::Down | UndoBy::DownWithLoss => true,
            UndoBy::Throwaway => false,
        };
        let loaded = self.load(&cx.base).into_result()?;
        let mut worker = Worker::open(cx, self).await?;
        if !run_files {
            let rows = history::read(&worker.session, &worker.table).await?;
            if rows.iter().any(|row| row.run == cx.run) {
                let tx = worker.session.transaction().await?;
                tx.save_checkpoint(cx.run, &thrown(&cx.step), THROWN_AWAY, &Value::Bool(true)).await?;
                tx.commit().await?;
            }
        }
        worker.undo_all(&loaded.migrations, run_files).await
    }
}

/// Under whose name [`THROWN_AWAY`] is kept: the step's own checkpoints go with its undo.
fn thrown(step: &crate::event::StepId) -> crate::event::StepId {
    format!("{step}/{THROWN_AWAY}").as_str().into()
}

/// Forgets that a database was given up, as the last act of the undo that emptied it.
///
/// # Errors
/// What the server says.
pub(in crate::steps) async fn forget_thrown_away(cx: &Context, tx: &crate::postgres::Tx<'_>) -> Result<()> {
    tx.execute(
        &format!("delete from {OURS}.checkpoint where run = $1 and unit = $2"),
        &[&cx.run.0, &THROWN_AWAY],
    )
    .await
    .map(drop)
}

/// Checkpoint of a database that was migrated, and is to be emptied rather than migrated back.
const THROWN_AWAY: &str = "thrown-away";

/// The step that gave this database's content up in this rollback (`undo: throwaway`): the tables that earlier
/// steps worked on may have another shape now, or be gone, so those have nothing to take back.
///
/// # Errors
/// What the server says.
pub(in crate::steps) async fn thrown_away<'a>(
    cx: &'a Context,
    session: &crate::postgres::Session,
) -> Result<Option<&'a crate::event::StepId>> {
    let later = cx.steps.iter().skip_while(|step| step.id != cx.step).skip(1);
    for step in later {
        let Some(migrate) = step.kind.downcast::<Migrate>() else { continue };
        if migrate.on != session.database() || migrate.undo != UndoBy::Throwaway {
            continue;
        }
        let there = session
            .query_opt(
                &format!("select 1 from {OURS}.checkpoint where run = $1 and step = $2 and unit = $3"),
                &[&cx.run.0, &thrown(&step.id).as_str(), &THROWN_AWAY],
            )
            .await?;
        if there.is_some() {
            return Ok(Some(&step.id));
        }
    }
    Ok(None)
}

impl Migrate {
    /// For the doctor: who reads whole rows of tables whose columns change here, and would fail once.
    ///
    /// # Errors
    /// What the server says, or a folder that cannot be read.
    pub async fn whole_rows(
        &self,
        session: &crate::postgres::Session,
        path: &SearchPath,
        base: &Path,
        plan: &str,
        id: &str,
    ) -> Result<star::Readers> {
        let table = history::table_name(plan, id);
        let loaded = self.load(base).into_result()?;
        session.set("search_path", &self.search_path.as_ref().unwrap_or(path).sql()).await?;
        let settled = Settled::read(session, None, self, base, &table, loaded.migrations).await?;
        let standing = history::compare(&settled.rows, &settled.migrations)?;
        star::readers(session, self.statements(&settled.to_run(&standing))).await
    }

    /// What these files execute, now and in a rollback.
    fn statements<'f>(&self, files: &'f [&folder::Migration]) -> impl Iterator<Item = &'f lex::Words> {
        let back = matches!(self.undo, UndoBy::Down | UndoBy::DownWithLoss);
        files
            .iter()
            .flat_map(move |file| [Some(&file.up), file.down.as_ref().filter(|_| back)])
            .flatten()
            .flat_map(|script| script.statements().map(|statement| &statement.words))
    }

    /// Whether the application uses the database while the step runs: not if a copy fills it before, or a cutover
    /// is yet to leave another for it.
    #[must_use]
    pub fn serves(&self, steps: &[super::Step]) -> bool {
        !super::of_kind::<super::copy::Copy>(steps).any(|(_, copy)| copy.to == self.on)
            && !super::of_kind::<super::cutover::Cutover>(steps)
                .any(|(_, cutover)| cutover.freeze.as_ref().is_some_and(|frozen| *frozen != self.on))
    }

    fn folders(&self) -> Vec<&Path> {
        self.dir.iter().chain(&self.dirs).map(PathBuf::as_path).collect()
    }

    fn load(&self, base: &Path) -> Loaded {
        folder::load(base, &self.folders(), self.names, self.replace.as_deref(), &self.ignore)
    }

    /// What is wrong if not all of these can be taken back.
    fn without_way_back(&self, files: &[&folder::Migration]) -> Option<Error> {
        if !matches!(self.undo, UndoBy::Down | UndoBy::DownWithLoss) {
            return None;
        }
        let mut without = files.iter().filter(|m| m.down.is_none());
        let (first, rest) = (without.next()?, without.count());
        let more = if rest == 0 { String::new() } else { format!(" and {rest} more") };
        Some(Error::usage(format!("{}{more}: no down file, so the step cannot be taken back", first.file)).hint(
            "add down files (a blank one if there is nothing to take back; they may stand in `override:`), or say `undo: none`, or `undo: throwaway` for a database that this plan fills; what the vendor's own table says was applied needs none with `history: vendor`",
        ))
    }

    /// Where the files' names are looked up.
    fn path<'a>(&'a self, cx: &'a Context) -> Result<&'a SearchPath> {
        match &self.search_path {
            Some(path) => Ok(path),
            None => cx.databases.search_path(&self.on),
        }
    }
}
