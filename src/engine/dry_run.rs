//! What a run would do, read from the databases without touching them.
//!
//! READ ONLY transactions alone would still let through slot creation, `pg_terminate_backend` and
//! `COPY … TO PROGRAM`, so a plan can name a role for each database that holds no right to any of that; without
//! one, the dry run says so. There is no lease here, and without a lease no connection that writes is opened.

use super::decide::{Loss, Outline, losses_ahead};
use super::frozen::Frozen;
use crate::error::{Error, Result};
use crate::event::{Emitter, Entry, Event, Measure, Record, RunId, StepId};
use crate::journal::{Journal, Phase, RunState, Status};
use crate::plan::{Plan, compare_looked_at};
use crate::postgres::install::{assert_no_strangers, assert_one_name};
use crate::postgres::{Databases, Worker, creators, ours};
use crate::steps::{Context, Description, Port, Precedent, Step, Undo};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Runs of the plan whose steps' times are looked at.
const REMEMBERED: usize = 3;

/// The answer of a dry run: one object, which `docs/cli.md` documents.
#[derive(Debug, Clone, Serialize)]
pub struct DryRun {
    /// The plan's name.
    pub plan: String,
    /// Whether nothing stands in the way.
    pub ok: bool,
    /// The digest a run would carry; none when a database could not be asked.
    pub digest: Option<String>,
    /// The run that `resume` would go on with, when there is one.
    pub unfinished: Option<Unfinished>,
    /// The databases as they were found.
    pub databases: Vec<DatabaseLook>,
    /// What stands in the way of the whole plan.
    pub blockers: Vec<String>,
    /// What to look at that concerns no single step.
    pub warnings: Vec<String>,
    /// The steps, in order.
    pub steps: Vec<StepLook>,
    /// The first step after which a rollback loses something or stops.
    pub point_of_no_return: Option<Loss>,
}

/// A run that is not over.
#[derive(Debug, Clone, Serialize)]
pub struct Unfinished {
    /// Which.
    pub run: RunId,
    /// Where it stands.
    #[serde(flatten)]
    pub phase: Phase,
}

/// A database as the dry run found it.
#[derive(Debug, Clone, Serialize)]
pub struct DatabaseLook {
    /// Its name in the plan.
    pub name: String,
    /// The server's version, e.g. `18.1`.
    pub version: Option<String>,
    /// The role that looked.
    pub role: Option<String>,
    /// Whether the plan names a role that may only read.
    pub reader: bool,
    /// Whether it is not known which role works there, so that its rights were not asked about.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub worker_unknown: bool,
}

/// Whether a step could be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outlook {
    /// It would run as described.
    Described,
    /// An earlier step has to make what it works on; nothing can be said before.
    Later,
    /// The unfinished run has done it already.
    Done,
    /// It cannot run as things stand.
    Blocked,
}

/// What a step needs of an earlier one that has not run.
#[derive(Debug, Clone, Serialize)]
pub struct Depends {
    /// The earlier step.
    pub step: StepId,
    /// The database that was asked instead, where the earlier step copies it.
    pub asked_of: Option<String>,
    /// What could not be looked at.
    pub unseen: Vec<String>,
}

/// A step as the dry run sees it.
#[derive(Debug, Clone, Serialize)]
pub struct StepLook {
    /// Its id.
    pub id: StepId,
    /// A few words of the plan's.
    pub title: Option<String>,
    /// Its kind.
    pub kind: &'static str,
    /// Whether it could be looked at.
    pub outlook: Outlook,
    /// Why not, for [`Outlook::Later`].
    pub why: Option<String>,
    /// The earlier step that is to make what is not there yet, and the database that was asked in its place.
    pub depends: Option<Depends>,
    /// Actions, warnings, blockers and the estimate.
    #[serde(flatten)]
    pub description: Description,
    /// Whether it leaves a standing task.
    pub stands: bool,
    /// How it is taken back.
    #[serde(flatten)]
    pub undo: Undo,
    /// What a rollback of the whole run would lose or could not do once this step is done.
    pub rollback_loses: Vec<Loss>,
}

/// Looks.
///
/// # Errors
/// An environment variable that is not set. What the databases say is part of the answer.
pub async fn dry_run(plan: &Plan, emitter: &Emitter) -> Result<DryRun> {
    ours::choose(&plan.schema)?;
    let databases = Databases::new(plan.targets_to_look()?);
    let control = plan.control.address()?;
    let mut out = DryRun {
        plan: plan.name.clone(),
        ok: false,
        digest: None,
        unfinished: None,
        databases: Vec::new(),
        blockers: Vec::new(),
        warnings: Vec::new(),
        steps: Vec::new(),
        point_of_no_return: None,
    };
    let (state, precedents) = match known(plan, control).await {
        Ok(Known { unfinished: Some((run, state)), precedents }) => {
            out.unfinished = Some(Unfinished { run, phase: state.phase.clone() });
            (state, precedents)
        }
        Ok(Known { unfinished: None, precedents }) => (RunState::new(), precedents),
        Err(e) => {
            out.blockers.push(with_hint(&e));
            (RunState::new(), BTreeMap::new())
        }
    };
    let mut unreachable = Vec::new();
    for (name, spec) in &plan.databases {
        let (look, warnings) = match look_at(&databases, name, spec.reader.is_some()).await {
            Ok(found) => found,
            Err(e) => {
                out.blockers.push(with_hint(&e));
                unreachable.push(name.as_str());
                let look = DatabaseLook {
                    name: name.clone(),
                    version: None,
                    role: None,
                    reader: spec.reader.is_some(),
                    worker_unknown: false,
                };
                (look, Vec::new())
            }
        };
        out.databases.push(look);
        out.warnings.extend(warnings);
        if unreachable.last() != Some(&name.as_str()) {
            match compare_looked_at(&databases, name).await {
                Ok(note) => out.warnings.extend(note),
                Err(e) => out.blockers.push(with_hint(&e)),
            }
        }
    }
    if unreachable.is_empty() {
        match plan.digest(&databases).await {
            Ok(digest) => out.digest = Some(digest),
            Err(e) => out.blockers.push(with_hint(&e)),
        }
    }
    if let (Some(digest), true) = (&out.digest, out.unfinished.is_some())
        && *digest != state.digest
    {
        let changed = match (&state.reviewed, plan.reviewed(&databases).await) {
            (Some(then), Ok(now)) => format!(" ({})", crate::plan::differences(then, &now).join("; ")),
            _ => String::new(),
        };
        out.warnings.push(format!(
            "the plan, a file it names, or a database is not what the unfinished run began with{changed}; it goes on \
             only with `--accept-changes`"
        ));
    }
    let ledger = Arc::new(Frozen {
        // Names and comments that carry a run's id stand in statements: those of a run that is to come are all zeros.
        run: out.unfinished.as_ref().map_or(RunId(uuid::Uuid::nil()), |unfinished| unfinished.run),
        state,
        precedents,
    });
    for (place, step) in plan.steps.iter().enumerate() {
        let (done, total) = (place as u64 + 1, Some(plan.steps.len() as u64));
        let unit = "dry run".to_owned();
        emitter.emit(Event::Progress { step: step.id.clone(), unit, done, total, measure: Measure::Items });
        let look = look_at_step(plan, place, step, &databases, &unreachable, &ledger).await;
        out.steps.push(look);
    }
    out.point_of_no_return = out.steps.iter().find_map(|step| step.rollback_loses.first().cloned());
    out.ok = out.blockers.is_empty() && out.steps.iter().all(|step| step.outlook != Outlook::Blocked);
    Ok(out)
}

/// What the journal knows of a plan.
#[derive(Default)]
struct Known {
    /// The run that is not over, with its state.
    unfinished: Option<(RunId, RunState)>,
    /// How steps went in earlier runs.
    precedents: BTreeMap<StepId, Precedent>,
}

async fn known(plan: &Plan, control: crate::value::Secret) -> Result<Known> {
    let mut out = Known::default();
    let Some(journal) = Journal::look(control, Duration::from_secs(5)).await? else { return Ok(out) };
    for (i, row) in journal.runs(Some(&plan.name)).await?.into_iter().take(REMEMBERED).enumerate() {
        let entries = journal.entries(row.run).await?;
        precedents(&entries, &mut out.precedents);
        if i == 0 {
            let state = RunState::fold(&entries)?;
            if state.seq > 0 && !state.phase.is_over() {
                out.unfinished = Some((row.run, state));
            }
        }
    }
    Ok(out)
}

/// Steps that were done at their first attempt, unless a later run's are known.
fn precedents(entries: &[Entry], out: &mut BTreeMap<StepId, Precedent>) {
    let mut begun = BTreeMap::new();
    let mut here = BTreeMap::new();
    for Entry { at, record, .. } in entries {
        match record {
            Record::StepStarted { step, attempt: 1 } => drop(begun.insert(step, *at)),
            Record::StepStarted { step, .. } => drop(begun.remove(step)),
            Record::StepDone { step, summary } => {
                let took =
                    begun.remove(step).and_then(|begun| Duration::try_from(at.duration_since(begun)).ok());
                if let Some(took) = took {
                    here.insert(step.clone(), Precedent { at: *at, took, summary: summary.clone() });
                }
            }
            _ => {}
        }
    }
    for (step, precedent) in here {
        out.entry(step).or_insert(precedent);
    }
}

async fn look_at(databases: &Databases, name: &str, reader: bool) -> Result<(DatabaseLook, Vec<String>)> {
    let mut session = databases.labelled("dry-run").reader(name).await?;
    // Who looks is no measure for what the one that works may do.
    let worker = databases.worker(name)?;
    assert_no_strangers(&mut session, &worker).await?;
    assert_one_name(&mut session).await?;
    let row = session
        .query_one(
            "select split_part(current_setting('server_version'), ' ', 1), current_user::text,
                    rolsuper, has_database_privilege(current_database(), 'create')
             from pg_roles where rolname = current_user",
            &[],
        )
        .await?;
    let (version, role): (String, String) = (row.get(0), row.get(1));
    let mut warnings = Vec::new();
    if !reader {
        warnings.push(format!(
            "the plan names no `reader:` for {name}: the working role {role} looks, in read-only transactions; \
             docs/grants.md has a role that may only read"
        ));
    } else if row.get::<_, bool>(2) || row.get::<_, bool>(3) {
        warnings.push(format!(
            "the reader {role} of {name} may write; docs/grants.md has a role that may only read"
        ));
    }
    for found in creators::look(&session, databases.search_path(name)?, &worker).await? {
        warnings.push(format!("{name}: {} ({})", found.text(), found.cure()));
    }
    let look = DatabaseLook {
        name: name.to_owned(),
        version: Some(version),
        role: Some(role),
        reader,
        worker_unknown: worker == Worker::Unknown,
    };
    Ok((look, warnings))
}

async fn look_at_step(
    plan: &Plan,
    place: usize,
    step: &Step,
    databases: &Databases,
    unreachable: &[&str],
    ledger: &Arc<Frozen>,
) -> StepLook {
    let undo = step.kind.reversibility();
    let mut look = StepLook {
        id: step.id.clone(),
        title: step.title.clone(),
        kind: step.kind_name,
        outlook: Outlook::Described,
        why: None,
        depends: None,
        description: Description::default(),
        stands: step.kind.stands(),
        undo,
        rollback_loses: losses_after(plan, place),
    };
    if *ledger.state.status(&step.id) == Status::Done {
        look.outlook = Outlook::Done;
        return look;
    }
    let missing: Vec<&str> =
        step.kind.databases().into_iter().map(|(name, _)| name).filter(|n| unreachable.contains(n)).collect();
    if !missing.is_empty() {
        look.outlook = Outlook::Blocked;
        look.description.blocker(format!("{} cannot be reached", missing.join(" and ")));
        return look;
    }
    let cx = context(plan, step, databases, ledger);
    match step.kind.describe(&cx).await {
        Ok(description) => look.description = description,
        Err(e) => drop(look.description.blocker(with_hint(&e))),
    }
    let maker = maker(plan, place, ledger);
    let only_absence = |description: &Description| {
        !description.blockers.is_empty() && description.blockers.iter().all(|text| speaks_of_absence(text))
    };
    if let Some(maker) = maker {
        let (unseen, rest): (Vec<_>, Vec<_>) = look
            .description
            .warnings
            .drain(..)
            .partition(|text| speaks_of_absence(text) || speaks_of_now(text));
        look.description.warnings = rest;
        if !unseen.is_empty() || only_absence(&look.description) {
            look.depends = Some(Depends { step: maker.clone(), asked_of: None, unseen });
        }
    }
    // What a copy is yet to bring is there now on the side that it copies.
    if look.depends.is_some()
        && let Some((copy, from, moved)) = origin(plan, place, databases, ledger)
    {
        let cx = context(plan, step, &moved, ledger);
        if let Ok(mut description) = step.kind.describe(&cx).await
            && description.blockers.iter().all(|text| !speaks_of_absence(text))
        {
            description.warnings.retain(|text| !speaks_of_absence(text) && !speaks_of_now(text));
            look.description = description;
            look.depends = Some(Depends { step: copy.clone(), asked_of: Some(from), unseen: Vec::new() });
        }
    }
    if let Some(maker) = maker
        && only_absence(&look.description)
    {
        look.outlook = Outlook::Later;
        look.why = Some(format!(
            "cannot be looked at before step `{maker}` has run: {}",
            look.description.blockers.join("; ")
        ));
        look.description = Description::default();
    } else if !look.description.blockers.is_empty() {
        look.outlook = Outlook::Blocked;
    }
    look
}

/// The earlier step, not done yet, that is most likely to make what this step does not find: the last that makes
/// tables in a database it uses, else the last that changes one.
fn maker<'a>(plan: &'a Plan, place: usize, ledger: &Frozen) -> Option<&'a StepId> {
    let step = plan.steps.get(place)?;
    let used: Vec<&str> = step.kind.databases().into_iter().map(|(name, _)| name).collect();
    let earlier: Vec<&Step> = plan
        .steps
        .iter()
        .take(place)
        .filter(|earlier| *ledger.state.status(&earlier.id) != Status::Done)
        .filter(|earlier| earlier.kind.written().iter().any(|name| used.contains(name)))
        .collect();
    let makes = earlier.iter().rev().find(|step| step.kind.makes_tables());
    makes.or(earlier.last()).map(|step| &step.id)
}

/// For a step that only uses the target of an earlier copy which has not run: that copy's id, its source's name, and
/// the databases with the source in the target's place.
fn origin<'a>(
    plan: &'a Plan,
    place: usize,
    databases: &Databases,
    ledger: &Frozen,
) -> Option<(&'a StepId, String, Databases)> {
    let step = plan.steps.get(place)?;
    if !step.kind.can_ask_the_source() {
        return None;
    }
    let used: BTreeSet<&str> = step.kind.databases().into_iter().map(|(name, _)| name).collect();
    let (id, copy) = plan
        .links
        .copies
        .before(place)
        .find(|(id, copy)| used.contains(copy.to.as_str()) && *ledger.state.status(id) != Status::Done)?;
    Some((id, copy.from.clone(), databases.with_in_place_of(&copy.from, &copy.to)?))
}

/// Whether a warning says that something cannot be looked at as things are now.
fn speaks_of_now(text: &str) -> bool {
    [" as it is now", "cannot be asked now", "cannot be checked on"].iter().any(|words| text.contains(words))
}

/// Whether a blocker only says that something is not there: what an earlier step is yet to make.
fn speaks_of_absence(text: &str) -> bool {
    // Undefined table, column, function, object, schema.
    const STATES: &[&str] = &["42P01", "42703", "42883", "42704", "3F000"];
    STATES.iter().any(|state| text.contains(&format!("[SQLSTATE {state}]")))
        || ["does not exist", "there is no ", "is not there", "has no table", "has no column"]
            .iter()
            .any(|words| text.contains(words))
}

/// What rolling everything back would lose once the steps up to `place` are done.
fn losses_after(plan: &Plan, place: usize) -> Vec<Loss> {
    let outline: Vec<Outline> = plan.steps.iter().map(Outline::from).collect();
    let Some(step) = plan.steps.get(place) else { return Vec::new() };
    losses_ahead(&outline, &step.id)
}

fn with_hint(error: &Error) -> String {
    match error.next_step() {
        Some(next) => format!("{error}; {}", super::advice::look_again(next)),
        None => error.to_string(),
    }
}

/// What a step is given that may only look.
pub(super) fn context(plan: &Plan, step: &Step, databases: &Databases, ledger: &Arc<Frozen>) -> Context {
    Context {
        port: Port {
            run: ledger.run,
            step: step.id.clone(),
            plan: plan.name.as_str().into(),
            base: Arc::new(plan.base.clone()),
            databases: databases.labelled(step.id.as_str()),
            queue: plan.queue.clone(),
            emitter: Emitter::silent(),
            stop: CancellationToken::new(),
            memory: ledger.clone(),
        },
        links: plan.links.clone(),
        ledger: ledger.clone(),
        accept_loss: false,
        export: None,
        may_wait: false,
        critical: Default::default(),
    }
}
