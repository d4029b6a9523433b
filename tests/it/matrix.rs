//! Who is struck, where, and which way: the matrix of a flip. One world flips there and back under load all the time, and at each
//! named point of the protocol somebody is killed or stopped. Never do two sides take writes, never is a write lost, and always
//! it goes on.
//!
//! A change tries some cells; `scripts/soak matrix` tries all, and writes them into `docs/matrix.md`.

mod ledger;
mod referee;
mod stage;

use stage::{Outcome, Stage, Victim, Way};
use std::collections::BTreeMap;
use std::fmt::Write;

/// The points of the protocol, in the order in which a flip comes to them.
const THERE: &[&str] = &[
    "gate.passed",
    "carry.captured",
    "carry.counts",
    "reverse.ready",
    "pooler.probed",
    "pooler.paused",
    "cutover.prepared",
    "cutover.frozen",
    "cutover.drained",
    "cutover.decided",
    "pooler.written",
    "pooler.reloaded",
    "pooler.resumed",
    "cutover.participant-answered",
    "cutover.committed",
    "reverse.flowing",
];
const BACK: &[&str] = &[
    "engine.undo-started",
    "pooler.paused",
    "reverse.undo-prepared",
    "reverse.undo-frozen",
    "reverse.undo-drained",
    "reverse.undo-decided",
    "pooler.undo-written",
    "pooler.undo-reloaded",
    "cutover.undo-reverted",
    "carry.undo-dropped",
    "reverse.undo-turned-back",
    "engine.undo-unrecorded",
];

type Cell = (Way, &'static str, Victim);

/// Tries cells in one world, as long as none of them fails; a new one is made after each that does.
async fn tried(mut there: Vec<Cell>, mut back: Vec<Cell>) -> BTreeMap<Cell, Result<Outcome, String>> {
    let mut outcomes = BTreeMap::new();
    let mut stage = Stage::set().await;
    while !(there.is_empty() && back.is_empty()) {
        for (way, cells) in [(Way::There, &mut there), (Way::Back, &mut back)] {
            let cell = cells.pop();
            let outcome = stage.flip(way, cell.map(|(_, point, victim)| (point, victim))).await;
            let failed = outcome.is_err();
            if let Some(cell) = cell {
                outcomes.insert(cell, outcome);
            } else if let Err(error) = outcome {
                panic!("a flip that nobody disturbs fails: {error}");
            }
            if failed {
                stage = Stage::set().await;
                break;
            }
        }
    }
    outcomes
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_dies_in_a_flip_nothing_is_lost() {
    let cells =
        |way: Way, all: [(&'static str, Victim); 3]| all.map(|(point, victim)| (way, point, victim)).to_vec();
    let there = cells(
        Way::There,
        [
            ("carry.counts", Victim::Broker),
            ("cutover.decided", Victim::Green),
            ("pooler.reloaded", Victim::Pooler),
        ],
    );
    let back = cells(
        Way::Back,
        [
            ("reverse.undo-drained", Victim::StoppedEngine),
            ("reverse.undo-decided", Victim::Blue),
            ("pooler.undo-written", Victim::Engine),
        ],
    );
    for (cell, outcome) in tried(there, back).await {
        assert!(outcome.is_ok(), "{cell:?}: {outcome:?}");
    }
}

/// All of them, where that is asked for; `HANDOVER_MATRIX` names the file that the outcomes are written to.
#[tokio::test(flavor = "multi_thread")]
async fn every_cell() {
    let Some(file) = std::env::var_os("HANDOVER_MATRIX") else { return };
    let only = std::env::var("HANDOVER_MATRIX_ONLY").unwrap_or_default();
    let cells = |way: Way, points: &[&'static str]| -> Vec<Cell> {
        let all = points.iter().flat_map(|point| Victim::ALL.map(|victim| (way, *point, victim)));
        all.rev().filter(|cell| format!("{cell:?}").contains(&only)).collect()
    };
    let outcomes = tried(cells(Way::There, THERE), cells(Way::Back, BACK)).await;
    std::fs::write(file, document(&outcomes)).unwrap();
    let failed: Vec<_> = outcomes.iter().filter(|(_, outcome)| outcome.is_err()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

fn document(outcomes: &BTreeMap<Cell, Result<Outcome, String>>) -> String {
    let held = outcomes.values().filter(|outcome| outcome.is_ok()).count();
    let mut text = format!(
        "# The matrix of a flip\n\n\
         Written by a run of `scripts/soak matrix`: {} cells, {held} held.\n\n\
         A pooler, a broker and two servers of different schemas flip there and back while three clients write through the pooler. \
         At each named point of the protocol somebody is struck: a process gets SIGKILL and is started again 0.3 s later, or the \
         engine gets SIGSTOP, and SIGCONT 3 s later. A cell holds when the flip comes to its end, every entry that was acknowledged \
         is there once and whole on the side that serves, and at no time both sides took a write.\n\n\
         A cell says whether the engine went on by itself, or how often `handover resume` had to be said (an engine that was \
         killed takes at least one), and for how long no client got an answer, which includes the time in which what was killed \
         was down.\n",
        outcomes.len(),
    );
    for (way, title, points) in [(Way::There, "There", THERE), (Way::Back, "Back", BACK)] {
        text.push_str(&format!(
            "\n## {title}\n\n| Point | engine killed | engine stopped | pooler killed | blue killed | green killed | broker killed |\n\
             |---|---|---|---|---|---|---|\n"
        ));
        for point in points {
            let _ = write!(text, "| `{point}` |");
            for victim in Victim::ALL {
                let _ = match outcomes.get(&(way, *point, victim)) {
                    None => write!(text, " |"),
                    Some(Err(_)) => write!(text, " **failed** |"),
                    Some(Ok(Outcome { resumed: 0, silence })) => {
                        write!(text, " by itself, {:.1} s |", silence.as_secs_f64())
                    }
                    Some(Ok(Outcome { resumed, silence })) => {
                        write!(text, " resumed {resumed}×, {:.1} s |", silence.as_secs_f64())
                    }
                };
            }
            text.push('\n');
        }
    }
    text
}
