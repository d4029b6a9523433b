//! Named places where a test may kill, stop or fail the engine, to prove that it goes on from there.
//!
//! `HANDOVER_FAILPOINT=name` kills this process with SIGKILL the first time that place is reached, `name:3` the
//! third time. A third part says what happens instead:
//!
//! - `name:3:stop` sends SIGSTOP;
//! - `name:3:error:40001` fails there as if a server had answered with that SQLSTATE;
//! - `name:3:cut` fails there as a broken connection does. Where the place comes after a commit, that is a commit
//!   whose answer was lost.
//!
//! `name:3+:…` fails the third time and each time after it. Several places are armed at once with commas between them.
//! A last part, as in `name:3:kill:STEP`, counts only from when
//! that step begins, so that the same place in an earlier step of the same kind does not count. Without the
//! variable a failpoint costs one load. Names start with the step kind (`copy.…`), or with `engine.…`, `journal.…`, `checkpoint.…`; the crash tests
//! kill and fail at every one of [`ALL`], and fail when one is never reached: `HANDOVER_FAILPOINT_MARK` names a file
//! that gets a line with the name of each armed one that is.

use crate::error::{Class, Error, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::OpenOptions;
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The variable that arms failpoints.
pub const VARIABLE: &str = "HANDOVER_FAILPOINT";
/// The variable that names the file to write to when one is reached.
pub const MARK: &str = "HANDOVER_FAILPOINT_MARK";

macro_rules! failpoints {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = $text;)*
        /// Every failpoint, in the order of this file.
        pub const ALL: &[&str] = &[$($text),*];
    };
}

failpoints! {
    /// The intention to run a step is in the journal; nothing was done yet.
    STEP_STARTED = "engine.step-started";
    /// A step's effect is complete and verified, but the journal does not say so yet.
    STEP_UNRECORDED = "engine.step-unrecorded";
    /// A record is in the journal; whoever appended it does not know yet.
    JOURNAL_APPENDED = "journal.appended";
    /// A transaction with a checkpoint is committed; the step does not know yet.
    CHECKPOINT_COMMITTED = "checkpoint.committed";
    /// The intention to undo a step is in the journal.
    UNDO_STARTED = "engine.undo-started";
    /// A step is undone, but the journal does not say so yet.
    UNDO_UNRECORDED = "engine.undo-unrecorded";
    /// The intention to finish a run is in the journal; nothing was dropped yet.
    FINISH_STARTED = "engine.finish-started";
    /// An index is about to be built.
    INDEX_BEFORE = "create_index.before-build";
    /// An index was built; the next one not yet begun.
    INDEX_BUILT = "create_index.built";
    /// A copy's intention and what was on the target before it are recorded; nothing is created yet.
    COPY_PLANNED = "copy.planned";
    /// Types, tables and functions are on the target; no rows yet.
    COPY_SCHEMA_CREATED = "copy.schema-created";
    /// A chunk of rows was committed with its checkpoint.
    COPY_CHUNK_COMMITTED = "copy.chunk-committed";
    /// A batch of large objects was committed with its checkpoint.
    COPY_LARGE_OBJECTS = "copy.large-objects-committed";
    /// A stretch of one large object was committed with its checkpoint.
    COPY_LARGE_OBJECT_STRETCH = "copy.large-object-stretch-committed";
    /// All rows are on the target, and that is recorded.
    COPY_DATA_COMPLETE = "copy.data-complete";
    /// An index, key or other object that comes after the rows was built.
    COPY_OBJECT_BUILT = "copy.object-built";
    /// Rows that do not fit a key were set aside.
    COPY_SET_ASIDE = "copy.set-aside";
    /// Sequences stand where the source's stood.
    COPY_SEQUENCES_SET = "copy.sequences-set";
    /// The copied tables were analyzed.
    COPY_ANALYZED = "copy.analyzed";
    /// An object that the copy had created was dropped by its undo.
    COPY_UNDO_DROPPED = "copy.undo-dropped";
    /// Large objects that the copy had made were unlinked by its undo.
    COPY_UNDO_UNLINKED = "copy.undo-unlinked";
    /// A batch of a cleanup is committed; the next one not yet begun.
    CLEANUP_BATCH = "cleanup.batch";
    /// A batch of a cleanup has its effect and its archive, but is not committed.
    CLEANUP_UNCOMMITTED = "cleanup.uncommitted";
    /// The triggers of a backfill are in place, no batch has run.
    CLEANUP_SYNCED = "cleanup.synced";
    /// A batch of archived rows was put back.
    CLEANUP_UNDO_BATCH = "cleanup.undo-batch";
    /// A batch of restored rows is committed.
    RESTORE_BATCH = "restore.batch";
    /// A command of the operator's runs, and the journal does not know its process id yet.
    COMMAND_STARTED = "lever.command-started";
    /// The intention to raise a lever is in the journal.
    LEVER_BEFORE = "lever.before-apply";
    /// A lever is raised, but the journal does not say so yet.
    LEVER_APPLIED = "lever.applied";
    /// A step restored another's lever, but the journal does not say so yet.
    LEVER_REVERTED = "lever.reverted";
    /// A rollback restored a lever, but the journal does not say so yet.
    LEVER_UNDO_REVERTED = "lever.undo-reverted";
    /// A rollback raised a lever again that a step had restored, but the journal does not say so yet.
    LEVER_UNDO_RAISED = "lever.undo-raised";
    /// All probes were asked once.
    MONITOR_SAMPLED = "monitor.sampled";
    /// How far a soak came is in the journal.
    MONITOR_KEPT = "monitor.kept";
    /// The step is about to wait for an approval.
    APPROVE_ASKED = "approve.asked";
    /// An approval was found, but the journal does not say so yet.
    APPROVE_FOUND = "approve.found";
    /// A baseline was recorded.
    VERIFY_RECORDED = "verify.recorded";
    /// A piece of a table was summed on both sides.
    VERIFY_CHUNK = "verify.chunk";
    /// All tables that are being written were summed; rows that differed were not looked at again yet.
    VERIFY_SUMMED = "verify.summed";
    /// One check of a verification held; the next one not yet begun.
    VERIFY_COMPARED = "verify.compared";
    /// A migration's effect and its history row are written, not yet committed.
    MIGRATE_BEFORE_COMMIT = "migrate.before-commit";
    /// A migration and its history row are committed.
    MIGRATE_COMMITTED = "migrate.committed";
    /// A part of a migration that runs step by step is written, not yet committed.
    MIGRATE_UNIT_BEFORE_COMMIT = "migrate.unit-before-commit";
    /// A part of a migration that runs step by step is committed with its record.
    MIGRATE_UNIT_COMMITTED = "migrate.unit-committed";
    /// The intention to run a statement outside a transaction is recorded.
    MIGRATE_BEFORE_STATEMENT = "migrate.before-statement";
    /// A statement outside a transaction took effect; no record says so yet.
    MIGRATE_STATEMENT_DONE = "migrate.statement-done";
    /// All parts of a migration are done; its history row is not written yet.
    MIGRATE_BEFORE_RECORD = "migrate.before-record";
    /// A migration is taken back, not yet committed.
    MIGRATE_UNDO_BEFORE_COMMIT = "migrate.undo-before-commit";
    /// A migration is taken back and forgotten; the one before it not yet begun.
    MIGRATE_UNDO_COMMITTED = "migrate.undo-committed";
    /// A table's capture triggers are committed; the next table's are not made yet.
    CAPTURE_TRIGGER = "capture.trigger-created";
    /// A capture's triggers are dropped; its queue and outbox rows are still there.
    CAPTURE_DROPPED = "capture.undo-dropped";
    /// The relay has numbered events that the queue does not have.
    RELAY_NUMBERED = "relay.numbered-not-published";
    /// The queue has confirmed events that the outbox does not know to be published.
    RELAY_PUBLISHED = "relay.published-not-marked";
    /// Replay has executed a batch and not committed it.
    REPLAY_BEFORE_COMMIT = "replay.before-commit";
    /// Replay has committed a batch and not acknowledged it.
    REPLAY_APPLIED = "replay.applied-not-acked";
    /// Applied events were trimmed from the outbox.
    REPLAY_TRIMMED = "replay.trimmed";
    /// Replay has caught up; its step is not recorded as done.
    REPLAY_CAUGHT_UP = "replay.caught-up";
    /// Events that were set aside are applied, not yet committed.
    QUARANTINE_UNCOMMITTED = "quarantine.retry-uncommitted";
    /// Events that were set aside are applied and committed.
    QUARANTINE_RETRIED = "quarantine.retried";
    /// A publication is there; no slot yet.
    REPLICATE_PUBLISHED = "replicate.published";
    /// A replication slot is there; nothing was copied from its snapshot yet.
    REPLICATE_SLOT_CREATED = "replicate.slot-created";
    /// The new side is subscribed; it has not caught up.
    REPLICATE_SUBSCRIBED = "replicate.subscribed";
    /// The new side has caught up; the step is not recorded as done.
    REPLICATE_CAUGHT_UP = "replicate.caught-up";
    /// Large objects that changed since the copy were committed on the new side, or that none did.
    REPLICATE_LARGE_OBJECTS = "replicate.large-objects-carried";
    /// After the decision of a cutover, nothing is left of a replication; the step is not recorded as done.
    REPLICATE_ENDED = "replicate.ended";
    /// A subscription is dropped; its slot is still there.
    REPLICATE_UNDO_UNSUBSCRIBED = "replicate.undo-unsubscribed";
    /// A replication slot is dropped; its publication is still there.
    REPLICATE_UNDO_SLOT_DROPPED = "replicate.undo-slot-dropped";
    /// A session in the way of a cutover was told to end.
    GATE_SESSION_ENDED = "gate.session-ended";
    /// The invariants of a cutover that are asked before its pause hold.
    GATE_INVARIANTS_HELD = "gate.invariants-held";
    /// Those that are asked within it hold; nothing is decided.
    GATE_QUICK_HELD = "gate.quick-held";
    /// A cutover is about to wait for an approval.
    GATE_APPROVAL_ASKED = "gate.approval-asked";
    /// The approval of a cutover is in the journal; what was proven before it is not proven again yet.
    GATE_APPROVED = "gate.approved";
    /// All gates before a cutover's pause are open; no participant was asked anything.
    GATE_PASSED = "gate.passed";
    /// All participants are prepared; nothing is frozen.
    CUTOVER_PREPARED = "cutover.prepared";
    /// Writers on the old side are held off.
    CUTOVER_FROZEN = "cutover.frozen";
    /// Everything captured has reached the new side; nothing is decided.
    CUTOVER_DRAINED = "cutover.drained";
    /// The decision has fallen; no participant was told.
    CUTOVER_DECIDED = "cutover.decided";
    /// A participant has answered that it committed; the journal does not know yet.
    CUTOVER_PARTICIPANT_ANSWERED = "cutover.participant-answered";
    /// A participant is committed, others may not be.
    CUTOVER_COMMITTED = "cutover.committed";
    /// An entry that tries a pooler out is in its file; the pooler was not told.
    POOLER_PROBED = "pooler.probed";
    /// A pooler holds its clients; nobody was told.
    POOLER_PAUSED = "pooler.paused";
    /// A pooler's file says where it is to lead; the pooler was not told.
    POOLER_WRITTEN = "pooler.written";
    /// An instance of a pooler leads to the new side, and still holds its clients.
    POOLER_RELOADED = "pooler.reloaded";
    /// A pooler's clients go on with the new side; nobody was told.
    POOLER_RESUMED = "pooler.resumed";
    /// A pooler's file says where it led before; the pooler was not told.
    POOLER_UNDO_WRITTEN = "pooler.undo-written";
    /// An instance of a pooler leads to the old side again, and still holds its clients.
    POOLER_UNDO_RELOADED = "pooler.undo-reloaded";
    /// The old side is open again; no participant was turned back.
    CUTOVER_UNDO_OPENED = "cutover.undo-opened";
    /// A participant is turned back; the journal does not know yet.
    CUTOVER_UNDO_REVERTED = "cutover.undo-reverted";
    /// What a rollback loses was counted, and is in the journal; nothing was undone.
    LOST_UNDO_COUNTED = "lost.undo-counted";
    /// The rows of a table that a rollback loses are in a file that has not its name yet.
    LOST_UNDO_WRITTEN = "lost.undo-written";
    /// All rows that a rollback loses are in their files; nothing was undone.
    LOST_UNDO_EXPORTED = "lost.undo-exported";
    /// The slot of a stream back is there; its subscription is not.
    REVERSE_SLOT_CREATED = "reverse.slot-created";
    /// The stream back is ready and carries nothing yet; nothing is frozen.
    REVERSE_READY = "reverse.ready";
    /// The stream back flows; the step is not recorded as done.
    REVERSE_FLOWING = "reverse.flowing";
    /// The triggers of a way back by events are there; the journal does not know what they rely on.
    CARRY_CAPTURED = "carry.captured";
    /// The journal says from when on the new side's writes count; nothing is frozen.
    CARRY_COUNTS = "carry.counts";
    /// The triggers of a way back by events are gone; how far it was replayed is still there.
    CARRY_UNDO_DROPPED = "carry.undo-dropped";
    /// All participants are prepared to go back; nothing is frozen.
    REVERSE_UNDO_PREPARED = "reverse.undo-prepared";
    /// Writers on the new side are held off.
    REVERSE_UNDO_FROZEN = "reverse.undo-frozen";
    /// The old side has all that was written on the new one; nothing is decided.
    REVERSE_UNDO_DRAINED = "reverse.undo-drained";
    /// The decision to go back has fallen; the journal does not know.
    REVERSE_UNDO_DECIDED = "reverse.undo-decided";
    /// All participants are turned back; the stream forward does not flow yet.
    REVERSE_UNDO_TURNED_BACK = "reverse.undo-turned-back";
}

/// What happens at the armed place.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mode {
    Signal(Signal),
    Error(String),
    Cut,
}

#[derive(Debug)]
struct Armed {
    name: String,
    /// The visit that counts, from 1.
    nth: u64,
    /// Whether each later visit counts too.
    and_after: bool,
    visits: AtomicU64,
    mode: Mode,
    /// Counts only while this step is the last that began.
    step: Option<String>,
    inside: AtomicBool,
}

impl Armed {
    /// Reads one part of the variable. What it does not understand kills, as the shortest form does.
    fn parse(value: &str) -> Option<Self> {
        let mut parts = value.split(':');
        let name = parts.next().filter(|name| !name.is_empty())?.to_owned();
        let nth = parts.next().unwrap_or("1");
        let (nth, and_after) = nth.strip_suffix('+').map_or((nth, false), |nth| (nth, true));
        let mode = match parts.next() {
            Some("stop") => Mode::Signal(Signal::SIGSTOP),
            Some("cut") => Mode::Cut,
            Some("error") => Mode::Error(parts.next().unwrap_or("XX000").to_owned()),
            _ => Mode::Signal(Signal::SIGKILL),
        };
        let step = parts.next().map(str::to_owned);
        Some(Armed {
            name,
            nth: nth.parse().unwrap_or(1),
            and_after,
            visits: AtomicU64::new(0),
            mode,
            inside: AtomicBool::new(step.is_none()),
            step,
        })
    }

    /// Counts a visit of `name`; whether it is the one.
    fn visit(&self, name: &str) -> bool {
        if self.name != name || !self.inside.load(Ordering::SeqCst) {
            return false;
        }
        let visit = self.visits.fetch_add(1, Ordering::SeqCst) + 1;
        visit == self.nth || (self.and_after && visit > self.nth)
    }
}

fn armed() -> &'static [Armed] {
    static ARMED: OnceLock<Vec<Armed>> = OnceLock::new();
    let read = || std::env::var(VARIABLE).unwrap_or_default().split(',').filter_map(Armed::parse).collect();
    ARMED.get_or_init(read)
}

/// Tells that a step begins; the engine calls it before the step's own failpoints can be reached.
pub fn begin(step: &str) {
    for armed in armed() {
        if let Some(wanted) = &armed.step {
            armed.inside.store(wanted == step, Ordering::SeqCst);
        }
    }
}

/// Marks a place where a crash, and a failure, must be survivable.
///
/// # Errors
/// The one that a test has asked for.
pub fn at(name: &'static str) -> Result<()> {
    armed().iter().filter(|armed| armed.visit(name)).try_for_each(|armed| act(name, &armed.mode))
}

/// The same where no failure can be told: there only the signals act.
pub fn hit(name: &'static str) {
    let _ = at(name);
}

fn act(name: &str, mode: &Mode) -> Result<()> {
    if let Ok(file) = std::env::var(MARK) {
        // A mark that cannot be made makes the test fail that looks for it, which is right.
        let _ = OpenOptions::new()
            .create(true)
            .append(true)
            .open(file)
            .and_then(|mut file| writeln!(file, "{name}"));
    }
    match mode {
        Mode::Signal(signal) => {
            // A failure to signal ourselves would only make the test that armed this fail, which is right.
            let _ = kill(Pid::this(), *signal);
            Ok(())
        }
        Mode::Error(code) => {
            Err(Error::new(Class::of_sqlstate(code), format!("failpoint {name} [SQLSTATE {code}]"))
                .with_sqlstate(code))
        }
        Mode::Cut => Err(Error::new(Class::Connection, format!("failpoint {name}: no connection"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_variable_is_understood() {
        let read = |value: &str| {
            let armed = Armed::parse(value).unwrap();
            (armed.name, armed.nth, armed.and_after, armed.mode, armed.step)
        };
        let kill = Mode::Signal(Signal::SIGKILL);
        let stop = Mode::Signal(Signal::SIGSTOP);
        for (value, wanted) in [
            ("a.b", ("a.b", 1, false, kill.clone(), None)),
            ("a.b:3", ("a.b", 3, false, kill.clone(), None)),
            ("a.b:3:stop", ("a.b", 3, false, stop, None)),
            ("a.b:3:kill:flip", ("a.b", 3, false, kill, Some("flip"))),
            ("a.b:2:cut", ("a.b", 2, false, Mode::Cut, None)),
            ("a.b:2+:error:40001", ("a.b", 2, true, Mode::Error("40001".into()), None)),
            ("a.b:1:error:53100:flip", ("a.b", 1, false, Mode::Error("53100".into()), Some("flip"))),
        ] {
            let (name, nth, and_after, mode, step) = wanted;
            assert_eq!(
                read(value),
                (name.to_owned(), nth, and_after, mode, step.map(str::to_owned)),
                "{value}"
            );
        }
        assert!(Armed::parse("").is_none());
    }

    #[test]
    fn visits_are_counted_by_name_and_within_the_step() {
        let armed = Armed::parse("a:2").unwrap();
        assert_eq!(["a", "b", "a", "a"].map(|name| armed.visit(name)), [false, false, true, false]);
        let armed = Armed::parse("a:2+").unwrap();
        assert_eq!(["a", "a", "a"].map(|name| armed.visit(name)), [false, true, true]);
        let armed = Armed::parse("a:1:cut:flip").unwrap();
        assert!(!armed.visit("a"), "its step has not begun");
        armed.inside.store(true, Ordering::SeqCst);
        assert!(armed.visit("a"));
    }

    #[test]
    fn a_failure_is_of_the_class_that_its_code_has() {
        let class = |mode| act("a", &mode).unwrap_err().class();
        assert_eq!(class(Mode::Error("40001".into())), Class::Contention);
        assert_eq!(class(Mode::Error("53100".into())), Class::Resources);
        assert_eq!(class(Mode::Cut), Class::Connection);
    }
}
