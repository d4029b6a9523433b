//! `decide` and the fold under thousands of random histories: whatever fails and wherever the engine dies, a
//! run reaches done, rolled back, or a stated halt; no step twice, none skipped.

use handover::Class;
use handover::engine::decide::{Next, Outline, decide, losses, plan_fits, rollback_fits};
use handover::event::{Entry, Failure, Holder, Record, StepId};
use handover::journal::{Phase, RunState, Status};
use handover::steps::{OnFailure, Retry, Tells, Undo};
use handover::value::Duration;
use proptest::prelude::*;

/// What happens to one action of the engine.
#[derive(Debug, Clone)]
enum Fate {
    Succeeds,
    Fails(Class),
    /// The process dies after the intent is recorded; the effect happened or not.
    DiesAfterIntent,
    /// It comes to where its undo may lose something, and the process dies there.
    DiesFlipped,
    /// The process dies after the effect, before the outcome is recorded.
    DiesBeforeOutcome,
    /// The operator stops it.
    Stopped,
    /// The operator rolls back, to a step or wholly, after a halt or stop.
    RollsBack(Option<usize>),
}

fn class() -> impl Strategy<Value = Class> {
    prop_oneof![
        4 => Just(Class::Connection), 2 => Just(Class::Contention), 2 => Just(Class::External),
        1 => Just(Class::Data), 1 => Just(Class::Invariant), 1 => Just(Class::Timeout), 1 => Just(Class::Internal),
    ]
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        8 => Just(Fate::Succeeds), 3 => class().prop_map(Fate::Fails), 2 => Just(Fate::DiesAfterIntent),
        2 => Just(Fate::DiesBeforeOutcome), 1 => Just(Fate::DiesFlipped), 1 => Just(Fate::Stopped),
        1 => prop::option::of(0_usize..6).prop_map(Fate::RollsBack),
    ]
}

/// The fact of a step whose undo may lose something from now on.
const FLIPPED: &str = "flipped";
const MAY_LOSE: Tells = |facts| facts.contains_key(FLIPPED);

fn outline() -> impl Strategy<Value = Vec<Outline>> {
    let undo = prop_oneof![
        6 => Just(Undo::Exact { how: "x".into() }), 2 => Just(Undo::Nothing),
        1 => Just(Undo::Lossy { how: "x".into(), loses: "y".into() }),
        1 => Just(Undo::Impossible { why: "z".into() }),
    ];
    let step = (undo, 1_u32..4, any::<bool>(), any::<bool>());
    prop::collection::vec(step, 0..6).prop_map(|steps| {
        steps
            .into_iter()
            .enumerate()
            .map(|(i, (undo, attempts, rollback, tells))| Outline {
                may_lose: tells.then_some(MAY_LOSE),
                is_whole: None,
                fills: None,
                leaves: None,
                id: StepId(format!("s{i}")),
                retry: Retry { attempts, backoff: Duration::millis(1) },
                on_failure: if rollback { OnFailure::Rollback } else { OnFailure::Halt },
                undo,
            })
            .collect()
    })
}

/// The world: which effects are there, and the journal.
struct Simulation<'a> {
    plan: &'a [Outline],
    journal: Vec<Entry>,
    state: RunState,
    effects: Vec<StepId>,
    /// Steps whose undo would lose something now.
    may_lose: Vec<StepId>,
}

impl Simulation<'_> {
    fn record(&mut self, record: Record) {
        let entry = Entry { seq: self.state.seq + 1, at: jiff::Timestamp::UNIX_EPOCH, record };
        self.state.apply(&entry).unwrap();
        self.journal.push(entry);
        // What a crash leaves is exactly what a new process folds.
        assert_eq!(RunState::fold(&self.journal).unwrap(), self.state);
    }

    fn attach(&mut self) {
        let holder =
            Holder { host: "h".into(), user: "u".into(), pid: 1, incarnation: String::new(), started: 0 };
        self.record(Record::Attached { token: 1, holder, accepted_digest: None, accepted: None });
    }

    fn position(&self, step: &StepId) -> usize {
        self.plan.iter().position(|o| o.id == *step).unwrap()
    }

    fn apply(&mut self, step: &StepId) {
        // Never skipped: everything before it has its effect.
        for earlier in &self.plan[..self.position(step)] {
            assert!(self.effects.contains(&earlier.id), "{step} ran before {}", earlier.id);
        }
        // A second attempt finds its own effect (steps probe the world); a done step is never run again.
        assert_ne!(*self.state.status(step), Status::Done, "{step} ran twice");
        if !self.effects.contains(step) {
            self.effects.push(step.clone());
        }
        self.flip(step);
    }

    /// What a step that tells of it does just before its undo may lose something.
    fn flip(&mut self, step: &StepId) {
        let tells = self.plan[self.position(step)].may_lose.is_some();
        if tells && !self.may_lose.contains(step) {
            self.may_lose.push(step.clone());
            self.record(Record::StepFact { step: step.clone(), key: FLIPPED.into(), value: true.into() });
        }
    }

    /// Whether an undo of the step loses something, as the world is.
    fn loses(&self, step: &StepId) -> bool {
        let outline = &self.plan[self.position(step)];
        matches!(outline.undo, Undo::Lossy { .. })
            && (outline.may_lose.is_none() || self.may_lose.contains(step))
    }

    /// The step that is next, told from the records alone: forward the first that is not done, back the last that was
    /// begun behind the one that stays. None where everything asked for is there.
    fn next_step(&self) -> Option<&StepId> {
        let mut done = vec![false; self.plan.len()];
        let mut begun = done.clone();
        let mut back = None;
        for entry in &self.journal {
            match &entry.record {
                Record::StepStarted { step, .. } => begun[self.position(step)] = true,
                Record::StepDone { step, .. } => done[self.position(step)] = true,
                Record::UndoStarted { step, .. } => done[self.position(step)] = false,
                Record::UndoDone { step, .. } => begun[self.position(step)] = false,
                Record::RollbackStarted { to, .. } => {
                    back = Some(to.as_ref().map_or(0, |to| self.position(to) + 1));
                }
                Record::RunRolledBack { .. } => back = None,
                _ => {}
            }
        }
        let place = match back {
            None => done.iter().position(|done| !done),
            Some(first) => (first..self.plan.len()).rev().find(|place| begun[*place]),
        };
        place.map(|place| &self.plan[place].id)
    }

    fn revert(&mut self, step: &StepId) {
        // From the last to the first.
        assert_eq!(*self.state.status(step), Status::Undoing);
        for later in &self.plan[self.position(step) + 1..] {
            assert!(!self.effects.contains(&later.id), "{step} was undone before {}", later.id);
        }
        self.effects.retain(|s| s != step);
        self.may_lose.retain(|s| s != step);
        self.record(Record::StepFact {
            step: step.clone(),
            key: FLIPPED.into(),
            value: serde_json::Value::Null,
        });
    }
}

fn failure(class: Class) -> Failure {
    Failure { class, message: "m".into(), hint: None, exhausted: false }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_history_ends_well(plan in outline(), fates in prop::collection::vec(fate(), 0..40)) {
        let mut sim = Simulation { plan: &plan, journal: Vec::new(), state: RunState::new(), effects: Vec::new(), may_lose: Vec::new() };
        sim.record(Record::RunStarted { plan: "p".into(), digest: "d".into(), version: "v".into(), reviewed: None });
        sim.attach();
        // When the random fates run out everything succeeds, so a run that can end must end.
        let mut fates = fates.into_iter();
        for turn in 0.. {
            prop_assert!(turn < 400, "the run does not end: {:?}", sim.state);
            let next = decide(&plan, &sim.state);
            match &next {
                Next::Run { step, .. } | Next::Undo { step, .. } | Next::StartRollback { step, .. } => {
                    prop_assert_eq!(Some(step), sim.next_step());
                }
                Next::Complete | Next::RolledBack { .. } => prop_assert_eq!(None, sim.next_step()),
                Next::Halt(_) => prop_assert!(sim.next_step().is_some()),
                Next::Over => {}
            }
            match next {
                Next::Run { step, attempt, .. } => {
                    sim.record(Record::StepStarted { step: step.clone(), attempt });
                    match fates.next().unwrap_or(Fate::Succeeds) {
                        Fate::Succeeds => {
                            sim.apply(&step);
                            sim.record(Record::StepDone { step, summary: serde_json::Value::Null });
                        }
                        Fate::Fails(class) => sim.record(Record::StepFailed { step, failure: failure(class) }),
                        Fate::DiesAfterIntent => sim.attach(),
                        Fate::DiesBeforeOutcome => {
                            sim.apply(&step);
                            sim.attach();
                        }
                        Fate::DiesFlipped => {
                            sim.flip(&step);
                            sim.attach();
                        }
                        Fate::Stopped => {
                            sim.record(Record::Halted { reason: "stopped".into(), class: Class::Cancelled });
                            sim.attach();
                        }
                        Fate::RollsBack(to) => {
                            sim.attach();
                            let to = to.and_then(|i| plan.get(i)).map(|o| o.id.clone());
                            let accept_loss = turn % 2 == 0;
                            // The engine refuses what cannot be, and what would lose something unless accepted.
                            if rollback_fits(&plan, &sim.state, to.as_ref()).is_err() {
                                continue;
                            }
                            if accept_loss || losses(&plan, &sim.state, to.as_ref()).is_empty() {
                                sim.record(Record::RollbackStarted { to, reason: "r".into(), accept_loss, export: None });
                            }
                        }
                    }
                }
                Next::Undo { step, attempt, .. } => {
                    let Phase::Back { to, accept_loss } = sim.state.phase.clone() else {
                        panic!("an undo while going forward")
                    };
                    prop_assert!(
                        to.is_none_or(|to| sim.position(&step) > sim.position(&to)),
                        "{} was to stay",
                        step
                    );
                    match &plan[sim.position(&step)].undo {
                        Undo::Impossible { .. } => prop_assert!(false, "{} has no undo", step),
                        _ => prop_assert!(accept_loss || !sim.loses(&step), "{} lost something unasked", step),
                    }
                    sim.record(Record::UndoStarted { step: step.clone(), attempt });
                    match fates.next().unwrap_or(Fate::Succeeds) {
                        Fate::Fails(class) => sim.record(Record::UndoFailed { step, failure: failure(class) }),
                        Fate::DiesAfterIntent => sim.attach(),
                        Fate::DiesBeforeOutcome => {
                            sim.revert(&step);
                            sim.attach();
                        }
                        _ => {
                            sim.revert(&step);
                            sim.record(Record::UndoDone { step, summary: serde_json::Value::Null });
                        }
                    }
                }
                Next::StartRollback { failure, .. } => {
                    let begun = plan.iter().filter(|o| {
                        !matches!(sim.state.status(&o.id), Status::Pending | Status::Undone)
                    });
                    prop_assert!(!begun.clone().any(|o| sim.loses(&o.id)), "an automatic rollback loses something");
                    prop_assert!(losses(&plan, &sim.state, None).is_empty(), "an automatic rollback lost something");
                    sim.record(Record::RollbackStarted { to: None, reason: failure.message, accept_loss: false, export: None });
                }
                Next::Complete => {
                    let all: Vec<StepId> = plan.iter().map(|o| o.id.clone()).collect();
                    prop_assert_eq!(&sim.effects, &all, "done, but not everything was done exactly once in order");
                    sim.record(Record::RunDone);
                }
                Next::RolledBack { to } => {
                    // What is done in the journal is there, and what was to stay stays.
                    for outline in &plan {
                        let stays = to.as_ref().is_some_and(|to| sim.position(&outline.id) <= sim.position(to));
                        let done = *sim.state.status(&outline.id) == Status::Done;
                        prop_assert!(!done || (stays && sim.effects.contains(&outline.id)), "{:?}", outline.id);
                    }
                    let kept = to.as_ref().map_or(0, |to| sim.position(to) + 1);
                    prop_assert!(sim.effects.iter().all(|s| sim.position(s) < kept), "rolled back, but something is left");
                    let partly = to.is_some();
                    sim.record(Record::RunRolledBack { to });
                    if partly {
                        sim.attach(); // and the operator goes forward again
                    }
                }
                Next::Halt(failure) => {
                    prop_assert!(!failure.message.is_empty());
                    // There is a reason: one that no retry mends, or retries used up since the runner attached.
                    let stuck = sim.state.steps.iter().any(|(id, s)| {
                        let may_pass = failure.class.is_transient() || failure.class == Class::External;
                        let used_up = s.failures >= plan[sim.position(id)].retry.attempts;
                        matches!(s.status, Status::Failed { .. } | Status::UndoFailed { .. }) && (!may_pass || used_up)
                    });
                    prop_assert!(stuck || failure.class == Class::Usage, "halted for nothing: {:?}", failure);
                    sim.record(Record::Halted { reason: failure.message.clone(), class: failure.class });
                    if matches!(failure.class, Class::Usage) {
                        let step = sim.next_step().unwrap();
                        let hard = matches!(plan[sim.position(step)].undo, Undo::Impossible { .. });
                        prop_assert!(hard || sim.loses(step), "refused for nothing: {}", failure.message);
                        break; // a rollback that cannot go on says so
                    }
                    sim.attach(); // the operator resumes
                }
                Next::Over => {
                    let over = !matches!(sim.state.phase, Phase::Forward | Phase::Back { .. });
                    prop_assert!(over, "nothing to do, but not at an end");
                    break;
                }
            }
        }
    }
}

#[test]
fn damaged_journals_are_refused() {
    let entry = |seq, record| Entry { seq, at: jiff::Timestamp::UNIX_EPOCH, record };
    let start =
        || Record::RunStarted { plan: "p".into(), digest: "d".into(), version: "v".into(), reviewed: None };
    let done = || Record::StepDone { step: "a".into(), summary: serde_json::Value::Null };
    assert!(RunState::fold(&[entry(1, done())]).is_err(), "no beginning");
    assert!(RunState::fold(&[entry(1, start()), entry(3, done())]).is_err(), "a gap");
    assert!(RunState::fold(&[entry(1, start()), entry(2, start())]).is_err(), "two beginnings");
    assert!(RunState::fold(&[entry(1, start()), entry(2, done())]).is_err(), "done without a start");
    assert!(
        RunState::fold(&[entry(1, start()), entry(2, Record::Finished), entry(3, done())]).is_err(),
        "after the end"
    );
}

fn outlined(ids: &[&str]) -> Vec<Outline> {
    ids.iter()
        .map(|id| Outline {
            id: (*id).into(),
            retry: Retry::default(),
            on_failure: OnFailure::Halt,
            undo: if *id == "hard" { Undo::Impossible { why: "w".into() } } else { Undo::Nothing },
            may_lose: None,
            is_whole: None,
            fills: None,
            leaves: None,
        })
        .collect()
}

fn folded(records: Vec<Record>) -> RunState {
    let start =
        Record::RunStarted { plan: "p".into(), digest: "d".into(), version: "v".into(), reviewed: None };
    let entries: Vec<Entry> = std::iter::once(start)
        .chain(records)
        .zip(1..)
        .map(|(record, seq)| Entry { seq, at: jiff::Timestamp::from_second(seq).unwrap(), record })
        .collect();
    RunState::fold(&entries).unwrap()
}

fn done(ids: &[&str]) -> Vec<Record> {
    let one = |id: &&str| {
        let step = StepId::from(*id);
        [
            Record::StepStarted { step: step.clone(), attempt: 1 },
            Record::StepDone { step, summary: serde_json::Value::Null },
        ]
    };
    ids.iter().flat_map(one).collect()
}

#[test]
fn a_rollback_that_cannot_end_is_not_begun() {
    let plan = outlined(&["a", "hard", "b", "c"]);
    let state = folded(done(&["a", "hard", "b"]));
    let fits = |state: &RunState, to: Option<&str>| {
        rollback_fits(&plan, state, to.map(StepId::from).as_ref()).map_err(|e| e.to_string())
    };
    assert!(fits(&state, None).unwrap_err().contains("`hard` cannot be undone"));
    assert!(fits(&state, Some("c")).unwrap_err().contains("not done"));
    assert!(fits(&state, Some("x")).unwrap_err().contains("no step"));
    fits(&state, Some("hard")).unwrap();
    // Half undone, it can be neither kept nor built upon.
    let mut records = done(&["a", "hard", "b"]);
    records.push(Record::RollbackStarted {
        to: Some("hard".into()),
        reason: "r".into(),
        accept_loss: false,
        export: None,
    });
    records.push(Record::UndoStarted { step: "b".into(), attempt: 1 });
    assert!(fits(&folded(records), Some("b")).unwrap_err().contains("being undone already"));
}

#[test]
fn a_changed_plan_keeps_what_has_begun_in_its_place() {
    let state = folded(done(&["a", "b"]));
    for (plan, fits) in [
        (&["a", "b"][..], true),
        (&["a", "b", "new"], true),
        (&["a", "new", "b"], false),
        (&["b", "a"], false),
        (&["a"], false),
        (&["a", "c"], false),
    ] {
        assert_eq!(plan_fits(&outlined(plan), &state).is_ok(), fits, "{plan:?}");
    }
}

#[test]
fn a_standing_task_stands_again_when_what_ended_it_is_undone() {
    let mut records = done(&["relay"]);
    records.push(Record::StepStarted { step: "replay".into(), attempt: 1 });
    records.push(Record::StandingEnded { step: "relay".into(), by: Some("replay".into()) });
    records.push(Record::StepDone { step: "replay".into(), summary: serde_json::Value::Null });
    assert!(folded(records.clone()).standing_ended.contains_key(&StepId::from("relay")));
    records.push(Record::RollbackStarted {
        to: Some("relay".into()),
        reason: "r".into(),
        accept_loss: false,
        export: None,
    });
    records.push(Record::UndoStarted { step: "replay".into(), attempt: 1 });
    records.push(Record::UndoDone { step: "replay".into(), summary: serde_json::Value::Null });
    assert!(folded(records).standing_ended.is_empty());
}

#[test]
fn a_record_that_cannot_follow_is_refused_before_it_is_written() {
    let mut records = done(&["a"]);
    records.push(Record::StepStarted { step: "b".into(), attempt: 1 });
    let state = folded(records);
    let start = |step: &str| Record::StepStarted { step: step.into(), attempt: 1 };
    assert!(state.objection(&start("c")).is_some(), "while another is not complete");
    assert!(state.objection(&start("a")).is_some(), "twice");
    assert!(state.objection(&Record::RunDone).is_some(), "with a step open");
    assert!(state.objection(&Record::FinishStarted).is_some(), "in the middle");
    assert!(state.objection(&start("b")).is_none());
}

#[test]
fn a_database_that_is_to_be_emptied_goes_with_the_step_that_filled_it() {
    let mut plan = outlined(&["before", "copy", "between", "migrate", "after"]);
    plan[1].fills = Some("green".into());
    plan[3].leaves = Some("green".into());
    let state = folded(done(&["before", "copy", "between", "migrate", "after"]));
    for (to, fits) in [
        (None, true),
        (Some("before"), true),
        (Some("copy"), false),
        (Some("between"), false),
        (Some("migrate"), true),
        (Some("after"), true),
    ] {
        let to = to.map(StepId::from);
        let result = rollback_fits(&plan, &state, to.as_ref());
        assert_eq!(result.is_ok(), fits, "{to:?} {result:?}");
        if let Err(error) = result {
            assert!(error.message().contains("only together with `copy`"), "{error}");
            assert!(error.next_step().unwrap().contains("--to before"), "{error:?}");
        }
    }
}
