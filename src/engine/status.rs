//! Where a run stands, who acts on it, what it still holds, and what to do next.

use super::advice;
use super::decide::{Loss, Outline, losses};
use super::decided;
use super::held::{self, Whose};
use crate::error::{Class, Result};
use crate::event::{Entry, Failure, Level, Record, RunId, StepId};
use crate::journal::state::Halt;
use crate::journal::{Journal, LeaseRow, Phase, RunState, Status, StepState};
use crate::plan::Plan;
use crate::postgres::Databases;
use crate::postgres::leftovers::{self, Leftover};
use crate::postgres::ours::{self, OURS};
use crate::steps::cutover::Side;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

/// The answer of `handover status`: one object, which `docs/cli.md` documents.
#[derive(Debug, Clone, Serialize)]
pub struct RunStatus {
    /// The plan's name.
    pub plan: String,
    /// The run; none when the plan was never run.
    pub run: Option<RunId>,
    /// Where it stands.
    #[serde(flatten)]
    pub phase: Option<Phase>,
    /// When it began.
    pub started: Option<Timestamp>,
    /// When its last record was written.
    pub updated: Option<Timestamp>,
    /// The digest it carries.
    pub digest: Option<String>,
    /// Why it stopped, while it is stopped.
    pub halted: Option<Halt>,
    /// The step that passed the point of no return.
    pub no_return: Option<StepId>,
    /// Who may act.
    pub lease: LeaseLook,
    /// The plan's steps, in order.
    pub steps: Vec<StepLine>,
    /// What the run still holds, in and outside the databases.
    pub held: Vec<Held>,
    /// What could not be looked at.
    pub unknown: Vec<String>,
    /// What rolling the whole run back would lose now.
    pub rollback_loses: Vec<Loss>,
    /// Set while a cutover is decided and its participants have not all committed: the old side refuses writes,
    /// and the new side may not be reached yet.
    pub refusing: Option<Refusing>,
    /// What differs between the plan with its files and what the run began with, while that matters.
    pub changed: Vec<String>,
    /// What to do next.
    pub next: String,
}

/// A cutover that has been decided and is not complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusing {
    /// The cutover's step.
    pub step: StepId,
    /// The side that refuses writes; none where only participants flip.
    pub database: Option<String>,
    /// Since when.
    pub since: Timestamp,
    /// What was last said to be in the way.
    pub why: Option<String>,
    /// Whether the decision is to go back.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub back: bool,
}

/// Whether anybody acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseStatus {
    /// Nobody does.
    Free,
    /// Somebody does.
    Held,
    /// Its time has run out: the holder is dead, stopped or cut off.
    Expired,
    /// The holder was a process of this host, and it is gone.
    HolderDead,
}

/// The lease as it stands.
#[derive(Debug, Clone, Serialize)]
pub struct LeaseLook {
    /// Whether anybody acts.
    pub status: LeaseStatus,
    /// The row, if the plan ever had a lease.
    #[serde(flatten)]
    pub row: Option<LeaseRow>,
}

impl LeaseLook {
    /// Judges a lease's row.
    #[must_use]
    pub fn new(row: Option<LeaseRow>) -> Self {
        let status = match &row {
            None => LeaseStatus::Free,
            Some(row) if row.holder.is_none() => LeaseStatus::Free,
            Some(row) if row.holder_is_dead() => LeaseStatus::HolderDead,
            Some(row) if row.expired => LeaseStatus::Expired,
            Some(_) => LeaseStatus::Held,
        };
        LeaseLook { status, row }
    }

    /// Whether somebody acts on this run.
    #[must_use]
    pub fn acts_on(&self, run: Option<RunId>) -> bool {
        self.status == LeaseStatus::Held && self.row.as_ref().and_then(|row| row.run) == run
    }
}

/// A step's line.
#[derive(Debug, Clone, Serialize)]
pub struct StepLine {
    /// Its id.
    pub id: StepId,
    /// A few words of the plan's.
    pub title: Option<String>,
    /// Its kind.
    pub kind: &'static str,
    /// Where it stands, attempts, times and summary.
    #[serde(flatten)]
    pub state: StepState,
    /// How long it took, or has been taking.
    pub seconds: Option<f64>,
    /// Its standing task, if it leaves one.
    pub standing: Option<StandingStatus>,
}

/// Where a standing task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StandingStatus {
    /// Begins when its step is done.
    NotYet,
    /// The lease's holder runs it.
    Running,
    /// Nobody runs it; resume starts it again.
    Stopped,
    /// A later step ended it, or the run is over.
    Ended,
}

/// Something that is still held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Held {
    /// The database's name in the plan, or `outside`.
    pub place: String,
    /// What.
    pub what: String,
}

/// Looks at a run of the plan: its newest unless one is named.
///
/// # Errors
/// The control database failing. A database of the plan that cannot be reached is part of the answer.
pub async fn status(plan: &Plan, run: Option<RunId>) -> Result<RunStatus> {
    ours::choose(&plan.schema)?;
    let control = plan.control.address()?;
    let journal = Journal::look(control, std::time::Duration::from_secs(5)).await?;
    let (run, entries, lease) = match &journal {
        None => (None, Vec::new(), None),
        Some(journal) => {
            let run = match run {
                Some(run) => Some(run),
                None => journal.runs(Some(&plan.name)).await?.first().map(|row| row.run),
            };
            let entries = match run {
                Some(run) => journal.entries(run).await?,
                None => Vec::new(),
            };
            (run, entries, journal.lease(&plan.name).await?)
        }
    };
    let state = RunState::fold(&entries)?;
    let lease = LeaseLook::new(lease);
    let acts = lease.acts_on(run);
    let steps = plan.steps.iter().map(|step| line(step, &state, acts)).collect();
    let outline: Vec<Outline> = plan.steps.iter().map(Outline::from).collect();
    let rollback_loses = losses(&outline, &state, None);
    let refusing = refusing(plan, &state, &entries);
    let mut out = RunStatus {
        plan: plan.name.clone(),
        run,
        phase: run.map(|_| state.phase.clone()),
        started: state.started,
        updated: state.updated,
        digest: run.map(|_| state.digest.clone()),
        halted: state.halted.clone(),
        no_return: state.no_return.clone(),
        next: next(plan, run, &state, &lease, acts, &rollback_loses, refusing.as_ref()),
        changed: changed(plan, &state),
        rollback_loses,
        refusing,
        lease,
        steps,
        held: levers(plan, &state),
        unknown: Vec::new(),
    };
    if !out.changed.is_empty() && !acts && out.next.contains("handover resume") {
        out.next
            .push_str("; as the plan changed: put it back first, or review it and add `--accept-changes`");
    }
    let databases = Databases::new(plan.targets_to_look()?).labelled("status");
    let runs: Vec<RunId> = match &journal {
        Some(journal) => journal.runs(Some(&plan.name)).await?.into_iter().map(|row| row.run).collect(),
        None => Vec::new(),
    };
    let triggers: Vec<String> =
        plan.steps.iter().flat_map(|step| step.kind.triggers(&plan.name, &step.id, &runs)).collect();
    let whose = Whose { plan: &plan.name, runs: &runs, triggers: &triggers };
    for name in plan.databases.keys() {
        let found = async {
            let session = databases.reader(name).await?;
            held::only(&session, &whose, leftovers::find(&session).await?).await
        };
        match found.await {
            Ok(found) => out.held.extend(found.iter().map(|l| Held { place: name.clone(), what: words(l) })),
            Err(e) => out.unknown.push(format!("{e}")),
        }
    }
    Ok(out)
}

fn line(step: &crate::steps::Step, state: &RunState, acts: bool) -> StepLine {
    let known = state.steps.get(&step.id).cloned().unwrap_or_default();
    let until = match known.status {
        Status::Done | Status::Undone => known.ended,
        _ if acts => Some(Timestamp::now()),
        _ => state.updated,
    };
    // Of one that was interrupted, nobody knows how long it worked after its last record.
    let until = until.filter(|_| !is_interrupted(&known.status, acts));
    let seconds = known.started.zip(until).map(|(from, to)| to.duration_since(from).as_secs_f64().max(0.0));
    let standing = step.kind.stands().then(|| match known.status {
        Status::Pending | Status::Running | Status::Failed { .. } => StandingStatus::NotYet,
        Status::Done if state.standing_ended.contains_key(&step.id) => StandingStatus::Ended,
        Status::Done if acts => StandingStatus::Running,
        Status::Done if state.phase == Phase::Forward => StandingStatus::Stopped,
        _ => StandingStatus::Ended,
    });
    StepLine {
        id: step.id.clone(),
        title: step.title.clone(),
        kind: step.kind_name,
        state: known,
        seconds,
        standing,
    }
}

/// Whether a step was begun and nobody works on it: its runner died, or was asked to stop. `acts` says whether somebody
/// acts on its run.
#[must_use]
pub fn is_interrupted(status: &Status, acts: bool) -> bool {
    matches!(status, Status::Running | Status::Undoing) && !acts
}

/// How the plan and its files differ from what the run began with, while it can go on. Databases are not compared.
fn changed(plan: &Plan, state: &RunState) -> Vec<String> {
    if state.seq == 0 || state.phase.is_over() {
        return Vec::new();
    }
    match (&state.reviewed, plan.reviewed_files()) {
        (Some(then), Ok(now)) => {
            let mut then = (**then).clone();
            then.parts.retain(|name, _| !name.starts_with("database "));
            crate::plan::differences(&then, &now)
        }
        // A journal of an older version does not say, and a file that is gone is named by whoever needs it.
        (None, _) | (_, Err(_)) => Vec::new(),
    }
}

/// Levers that the journal says are up: what they moved is outside every catalog we could ask.
fn levers(plan: &Plan, state: &RunState) -> Vec<Held> {
    let all = || plan.links.levers.all();
    all()
        .filter(|(id, _)| {
            let phase = state.fact(id, "lever").and_then(|fact| fact.get("phase")).and_then(Value::as_str);
            matches!(phase, Some("applying" | "held" | "reverting"))
        })
        .filter(|(id, _)| {
            !all().any(|(other, lever)| {
                lever.releases() == Some(id.as_str()) && *state.status(other) == Status::Done
            })
        })
        .map(|(id, lever)| {
            let stays = if state.phase == Phase::Finished { ", and stays so" } else { "" };
            let what =
                format!("the lever of step `{id}` is up{stays}; restored by: {}", lever.revert_words());
            Held { place: "outside".into(), what }
        })
        .collect()
}

/// A leftover in words.
#[must_use]
pub fn words(leftover: &Leftover) -> String {
    use crate::postgres::leftovers::LeftoverKind as Kind;
    let kind = match leftover.kind {
        Kind::Session => "connection",
        Kind::Snapshot => "snapshot held by",
        Kind::Trigger => "trigger",
        Kind::Table => &*format!("table {OURS}."),
        Kind::Slot => "replication slot",
        Kind::Publication => "publication",
        Kind::Subscription => "subscription",
    };
    let space = if leftover.kind == Kind::Table { "" } else { " " };
    match leftover.detail.as_str() {
        "" => format!("{kind}{space}{}", leftover.name),
        detail => format!("{kind}{space}{} ({detail})", leftover.name),
    }
}

/// A cutover whose decision is in the journal while its step is not done.
fn refusing(plan: &Plan, state: &RunState, entries: &[Entry]) -> Option<Refusing> {
    let (step, side, by_fact) = decided::refusing(plan, state)?;
    let recorded = entries.iter().rev().find_map(|entry| match &entry.record {
        Record::PointOfNoReturn { step: decided } if decided == step => Some(entry.at),
        _ => None,
    });
    let since = recorded.filter(|_| side == Side::Old).or(by_fact)?;
    let cutover = plan.links.cutovers.get(step)?;
    let why =
        entries.iter().rev().take_while(|entry| entry.at >= since).find_map(|entry| match &entry.record {
            Record::Note { step: Some(of), level: Level::Warning, text } if of == step => Some(text.clone()),
            Record::StepFailed { step: of, failure } | Record::UndoFailed { step: of, failure }
                if of == step =>
            {
                Some(failure.message.clone())
            }
            _ => None,
        });
    let database = if side == Side::Old { &cutover.freeze } else { &cutover.to };
    Some(Refusing { step: step.clone(), database: database.clone(), since, why, back: side == Side::New })
}

fn next(
    plan: &Plan,
    run: Option<RunId>,
    state: &RunState,
    lease: &LeaseLook,
    acts: bool,
    losses: &[Loss],
    refusing: Option<&Refusing>,
) -> String {
    let (called, file) = (plan.called(), plan.file.display().to_string());
    if acts {
        let waits = state.steps.iter().find(|(id, s)| {
            s.status == Status::Running
                && plan.step(id).is_some_and(|step| step.kind.asks_now(state.facts.get(id)))
        });
        return match (waits, refusing) {
            (Some((id, _)), _) => format!("it waits for an approval: `handover approve {file} {id}`"),
            (None, Some(refusing)) if refusing.back => format!(
                "it was decided to go back, and participants are turned back again and again by themselves; see what \
                 fails with `handover events {called} --follow` and mend it"
            ),
            (None, Some(_)) => format!(
                "only forward is safe: the participants are tried again by themselves; see what fails with \
                 `handover events {called} --follow` and mend it"
            ),
            (None, None) => {
                format!("it is being worked on; follow it with `handover events {called} --follow`")
            }
        };
    }
    if run.is_none() {
        return format!("it was never run; `handover dry-run {file}`, then `handover run {file}`");
    }
    let wait = match (lease.status, &lease.row) {
        (LeaseStatus::Held, Some(row)) => {
            format!(" (the lease is held by another run until {})", row.expires.strftime("%H:%M:%S UTC"))
        }
        _ => String::new(),
    };
    let asks = plan.steps.iter().find(|step| {
        let waits =
            matches!(state.status(&step.id), Status::Failed { failure } if failure.class == Class::Waiting);
        step.kind.asks_now(state.facts.get(&step.id)) && waits
    });
    let way_back = |what: &str| advice::way_back(&called, what, losses);
    let text = match (&state.phase, asks) {
        (Phase::Forward, Some(step)) => {
            format!("`handover approve {file} {}`, then `handover resume {called}`", step.id)
        }
        (Phase::Forward, None) if refusing.is_some() => {
            format!(
                "only forward is safe: `handover resume {called}` lets the participants commit; {}",
                way_back("it")
            )
        }
        (Phase::Forward | Phase::Back { .. }, _) => {
            let hint = failure(plan, state).and_then(|failure| failure.hint.as_deref());
            // What the failure's own hint says of either way is not said again.
            let mut parts: Vec<String> = hint
                .map(|hint| advice::named(&advice::honest(hint, losses), &called, Some(&file)))
                .into_iter()
                .collect();
            if !hint.is_some_and(|hint| hint.contains("`handover resume`")) {
                parts.push(format!("`handover resume {called}` goes on"));
            }
            if !hint.is_some_and(advice::speaks_of_rollback) {
                parts.push(way_back("it"));
            }
            parts.join("; ")
        }
        (Phase::Done, _) => format!(
            "nothing has to be done; {}; `handover finish {called}` later drops what is kept for that and ends every \
             way back",
            way_back("the run")
        ),
        (Phase::RolledBack { to: Some(_) }, _) => {
            format!("`handover resume {called}` goes forward again; {}", way_back("the rest"))
        }
        (Phase::Aborted, _) => format!("{}; `handover finish {called}` leaves it as it is", way_back("it")),
        (Phase::RolledBack { to: None } | Phase::Finished, _) => {
            format!("nothing is left to do; `handover run {file}` begins anew")
        }
    };
    text + &wait
}

/// The failure that a run stands at.
fn failure<'a>(plan: &Plan, state: &'a RunState) -> Option<&'a Failure> {
    plan.steps.iter().find_map(|step| match state.status(&step.id) {
        Status::Failed { failure } | Status::UndoFailed { failure } => Some(failure),
        _ => None,
    })
}
