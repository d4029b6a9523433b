//! Every state that can be reached, with a crash at every place, against a world that knows nothing of the table.

use super::*;
use std::collections::{BTreeSet, VecDeque};

const NAMES: [&str; 3] = ["a", "b", "c"];

/// Where a system really is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Real {
    Old,
    Held,
    New,
}

/// The systems and the old side's word, which the journal must never contradict.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct World {
    systems: [Real; 3],
    decided: bool,
    /// Whether clients may have been sent to the new side since blue was last opened.
    told_to_commit: [bool; 3],
    /// Whether the new side refuses writes, by a decision to go back.
    shut: bool,
}

impl World {
    fn new() -> Self {
        World { systems: [Real::Old; 3], decided: false, told_to_commit: [false; 3], shut: false }
    }

    fn hold(&mut self, i: usize) {
        assert!(self.decided, "asked to prepare to go back while the old side serves");
        self.systems[i] = Real::Held;
    }

    fn decide_to_return(&mut self) {
        assert!(self.systems.iter().all(|real| *real == Real::Held), "decided while somebody writes");
        self.shut = true;
    }

    /// What was written on the new side is on the old one, which is opened.
    fn open(&mut self, without_loss: bool) {
        assert!(!without_loss || self.shut, "both sides take writes");
        self.decided = false;
    }

    fn prepare(&mut self, i: usize) {
        assert!(!self.told_to_commit[i], "asked to prepare after it was told to commit");
        self.systems[i] = Real::Held;
    }

    fn abort(&mut self, i: usize) {
        assert!(!self.decided, "told to abort although the decision stands");
        assert!(!self.told_to_commit[i], "told to abort after it was told to commit");
        self.systems[i] = Real::Old;
    }

    fn commit(&mut self, i: usize) {
        assert!(self.decided, "told to commit without a decision");
        assert!(!self.shut, "sent to a side that refuses writes");
        self.told_to_commit[i] = true;
        self.systems[i] = Real::New;
    }

    fn revert(&mut self, i: usize) {
        assert!(!self.decided, "turned back while the old side refuses");
        self.told_to_commit[i] = false;
        self.systems[i] = Real::Old;
    }
}

type Place = (Flip, World);

fn named(i: usize) -> &'static str {
    NAMES[i]
}

fn step(flip: &Flip, event: Event<'_>) -> Flip {
    flip.after(event).unwrap_or_else(|| panic!("{event:?} refused in {flip:?}"))
}

/// Where a runner is going.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Toward {
    New,
    /// Whatever is lost.
    Old,
    /// With a stream that carries everything back.
    OldWithoutLoss,
}

/// All places that one move of a runner can lead to, each of which a crash may leave. The runner knows the journal
/// and asks both sides; acts happen one at a time, in any order, and each may be repeated.
fn moves((flip, world): &Place, toward: Toward) -> Vec<Place> {
    let forward = toward == Toward::New;
    let mut out = Vec::new();
    let mut go = |flip: Flip, world: World| out.push((flip, world));
    let act = |act: fn(&mut World, usize), i: usize| {
        let mut world = world.clone();
        act(&mut world, i);
        world
    };
    // A move of the whole that only the journal sees.
    match flip.way(Some(world.decided)) {
        Way::Attempt if forward => go(step(flip, Event::Prepare), world.clone()),
        Way::CallOff => {
            // Within an attempt.
            if forward && flip.stage == Stage::Preparing {
                for i in 0..3 {
                    go(flip.clone(), act(World::prepare, i));
                }
                if world.systems.iter().all(|real| *real == Real::Held) {
                    go(step(flip, Event::Prepared), world.clone());
                }
            }
            if forward && flip.stage == Stage::Deciding {
                go(flip.clone(), World { decided: true, ..world.clone() });
            }
            if flip.stage == Stage::CallingOff {
                for name in flip.those(Stand::Aborting) {
                    let i = NAMES.iter().position(|n| *n == name).unwrap();
                    let after = act(World::abort, i);
                    go(flip.clone(), after.clone());
                    go(step(flip, Event::Aborted(name)), after);
                }
            } else {
                go(step(flip, Event::NotDecided), world.clone());
            }
        }
        Way::Decide => go(step(flip, Event::Decided), world.clone()),
        // An earlier way back shut the new side: it is opened first.
        Way::Commit if forward && world.shut => go(flip.clone(), World { shut: false, ..world.clone() }),
        Way::Commit if forward => {
            for name in flip.those(Stand::Committing) {
                let i = NAMES.iter().position(|n| *n == name).unwrap();
                let after = act(World::commit, i);
                go(flip.clone(), after.clone());
                go(step(flip, Event::Committed(name)), after);
            }
        }
        Way::Commit | Way::Done if toward == Toward::OldWithoutLoss => {
            go(step(flip, Event::PrepareReturn), world.clone());
        }
        Way::Return if toward == Toward::Old => go(step(flip, Event::TurnBack), world.clone()),
        // Who goes forward is told that it was decided to go back.
        Way::Return if world.shut && forward => {}
        Way::Return if world.shut => go(step(flip, Event::Returned), world.clone()),
        Way::Return => {
            let within = toward == Toward::OldWithoutLoss;
            if within && flip.stage == Stage::PreparingReturn {
                for i in 0..3 {
                    go(flip.clone(), act(World::hold, i));
                }
                if world.systems.iter().all(|real| *real == Real::Held) {
                    go(step(flip, Event::PreparedReturn), world.clone());
                }
            }
            if within && flip.stage == Stage::DecidingReturn {
                go(flip.clone(), act(|world, _| world.decide_to_return(), 0));
            }
            if flip.stage == Stage::CallingOffReturn {
                for name in flip.those(Stand::Committing) {
                    let i = NAMES.iter().position(|n| *n == name).unwrap();
                    let after = act(World::commit, i);
                    go(flip.clone(), after.clone());
                    go(step(flip, Event::Committed(name)), after);
                }
            } else {
                go(step(flip, Event::NotReturned), world.clone());
            }
        }
        Way::Commit | Way::Done | Way::Lost if !forward => go(step(flip, Event::TurnBack), world.clone()),
        Way::Back => {
            let mut opened = world.clone();
            opened.open(flip.returned);
            go(flip.clone(), opened);
            if !world.decided {
                for i in 0..3 {
                    match flip.participants[named(i)] {
                        Stand::Committing | Stand::Committed | Stand::Preparing | Stand::Prepared => {
                            go(step(flip, Event::Revert(named(i))), world.clone());
                        }
                        Stand::Reverting => {
                            let after = act(World::revert, i);
                            go(flip.clone(), after.clone());
                            go(step(flip, Event::Reverted(named(i))), after);
                        }
                        _ => {}
                    }
                }
            }
        }
        _ => {}
    }
    out
}

fn start() -> Place {
    (Flip::read(&NAMES, |_| None).unwrap(), World::new())
}

fn reached(from: &[Place], toward: Toward) -> Vec<Place> {
    let key = |place: &Place| (format!("{:?}", place.0), place.1.clone());
    let mut seen: BTreeSet<_> = from.iter().map(key).collect();
    let mut queue: VecDeque<Place> = from.to_vec().into();
    let mut all = from.to_vec();
    while let Some(place) = queue.pop_front() {
        for next in moves(&place, toward) {
            if seen.insert(key(&next)) {
                queue.push_back(next.clone());
                all.push(next);
            }
        }
    }
    all
}

fn ends(place: &Place, toward: Toward) -> bool {
    moves(place, toward).iter().all(|next| next == place)
}

#[test]
fn a_crash_anywhere_leaves_a_place_from_which_both_ways_end_well() {
    let places = reached(&[start()], Toward::New);
    // Counted by hand: two idle ones, 8 while preparing, 2 while deciding, 3³ - 1 while calling off, 3³ behind the decision.
    assert_eq!(places.len(), 65);
    for place in &places {
        let (flip, world) = place;
        if world.decided {
            assert!(flip.may_lose(), "{place:?}");
        }
        if flip.stage == Stage::Committed {
            assert!(world.decided && world.systems == [Real::New; 3], "{place:?}");
        }
        for (i, name) in NAMES.iter().enumerate() {
            let stand = flip.participants[*name];
            match stand {
                Stand::Untouched | Stand::Aborted | Stand::Reverted => {
                    assert_eq!(world.systems[i], Real::Old, "{place:?}")
                }
                Stand::Committed => assert_eq!(world.systems[i], Real::New, "{place:?}"),
                Stand::Preparing | Stand::Prepared | Stand::Aborting => {
                    assert_ne!(world.systems[i], Real::New, "{place:?}");
                }
                Stand::Committing | Stand::Reverting => {}
            }
        }
    }
    // Forward: whatever was left, it goes on to all committed.
    for place in places.iter().filter(|place| ends(place, Toward::New)) {
        assert_eq!(place.0.stage, Stage::Committed, "{place:?}");
    }
    // Back, from every place, with crashes on the way: the old side is open and everybody is on it.
    let back = reached(&places, Toward::Old);
    let last: Vec<_> = back.iter().filter(|place| ends(place, Toward::Old)).collect();
    assert!(!last.is_empty());
    for (flip, world) in last {
        assert!(matches!(flip.stage, Stage::Idle | Stage::TurnedBack), "{flip:?} {world:?}");
        assert_eq!((world.systems, world.decided), ([Real::Old; 3], false), "{flip:?}");
    }
}

#[test]
fn a_crash_on_the_way_back_leaves_a_place_from_which_every_way_ends_well() {
    let forward = reached(&[start()], Toward::New);
    let decided: Vec<Place> = forward
        .into_iter()
        .filter(|(flip, _)| matches!(flip.stage, Stage::Decided | Stage::Committed))
        .collect();
    let back = reached(&decided, Toward::OldWithoutLoss);
    for (flip, world) in &back {
        // The old side takes writes only when the new one does not.
        assert!(world.decided || world.shut, "{flip:?} {world:?}");
        if matches!(flip.stage, Stage::PreparingReturn | Stage::CallingOffReturn) {
            assert!(!world.shut, "{flip:?} {world:?}");
        }
    }
    let ended: Vec<Place> =
        back.iter().filter(|place| ends(place, Toward::OldWithoutLoss)).cloned().collect();
    assert!(!ended.is_empty());
    for (flip, world) in &ended {
        assert_eq!((flip.stage, flip.returned, flip.may_lose()), (Stage::TurnedBack, true, false));
        assert_eq!((world.systems, world.decided, world.shut), ([Real::Old; 3], false, true));
    }
    // Who goes on with the new side after all comes there, unless it was decided to go back.
    for (flip, world) in reached(&back, Toward::New).iter().filter(|place| ends(place, Toward::New)) {
        let turned = matches!(flip.stage, Stage::TurningBack | Stage::TurnedBack);
        assert!(flip.stage == Stage::Committed || world.shut || turned, "{flip:?} {world:?}");
        assert!(turned || world.shut || world.systems == [Real::New; 3], "{flip:?} {world:?}");
    }
    // With loss, from everywhere.
    for (flip, world) in reached(&back, Toward::Old).iter().filter(|place| ends(place, Toward::Old)) {
        assert_eq!((flip.stage, world.systems, world.decided), (Stage::TurnedBack, [Real::Old; 3], false));
    }
    // And there again, with what the way back left: the new side is opened before anybody is sent there.
    let again = Place::from((start().0, ended[0].1.clone()));
    let again = reached(&[again], Toward::New);
    assert!(again.iter().any(|(flip, _)| flip.stage == Stage::Committed));
    for (flip, world) in again.iter().filter(|place| ends(place, Toward::New)) {
        assert_eq!((flip.stage, world.systems, world.shut), (Stage::Committed, [Real::New; 3], false));
    }
}

#[test]
fn every_pair_of_state_and_event_is_in_the_table() {
    use Stage::*;
    // By hand: which events each stage allows, given participants that stand as that stage leaves them.
    let table: [(Stage, Stand, &[&str]); 11] = [
        (Idle, Stand::Untouched, &["prepare", "decided"]),
        (Preparing, Stand::Preparing, &["prepared", "not_decided", "decided"]),
        (Deciding, Stand::Prepared, &["not_decided", "decided"]),
        (CallingOff, Stand::Aborting, &["not_decided", "aborted", "decided"]),
        (Decided, Stand::Committing, &["committed", "turn_back", "prepare_return"]),
        (Committed, Stand::Committed, &["turn_back", "prepare_return"]),
        (PreparingReturn, Stand::Preparing, &["prepared_return", "not_returned", "returned", "turn_back"]),
        (DecidingReturn, Stand::Prepared, &["not_returned", "returned", "turn_back"]),
        (CallingOffReturn, Stand::Committing, &["not_returned", "returned", "committed", "turn_back"]),
        (TurningBack, Stand::Committed, &["revert"]),
        (TurnedBack, Stand::Reverted, &[]),
    ];
    let events = [
        ("prepare", Event::Prepare),
        ("prepared", Event::Prepared),
        ("not_decided", Event::NotDecided),
        ("aborted", Event::Aborted("a")),
        ("decided", Event::Decided),
        ("committed", Event::Committed("a")),
        ("prepare_return", Event::PrepareReturn),
        ("prepared_return", Event::PreparedReturn),
        ("not_returned", Event::NotReturned),
        ("returned", Event::Returned),
        ("turn_back", Event::TurnBack),
        ("revert", Event::Revert("a")),
        ("reverted", Event::Reverted("a")),
    ];
    for (stage, stand, allowed) in table {
        let participants = NAMES.iter().map(|name| ((*name).to_owned(), stand)).collect();
        let flip = Flip { stage, participants, ..Flip::default() };
        for (name, event) in events {
            assert_eq!(flip.after(event).is_some(), allowed.contains(&name), "{stage:?} {name}");
        }
    }
    // No stage lets a participant abort or be forgotten that may have committed.
    for stage in table.map(|(stage, ..)| stage) {
        for stand in [Stand::Committing, Stand::Committed] {
            let participants = [("a".to_owned(), stand)].into();
            let flip = Flip { stage, participants, ..Flip::default() };
            assert!(flip.after(Event::Aborted("a")).is_none());
        }
    }
}

#[test]
fn what_to_do_follows_from_the_stage_and_the_old_sides_word() {
    use Stage::*;
    for (stage, no, yes, journal) in [
        (Idle, Way::Attempt, Way::Decide, Way::Attempt),
        (Preparing, Way::CallOff, Way::Decide, Way::CallOff),
        (Deciding, Way::CallOff, Way::Decide, Way::CallOff),
        (CallingOff, Way::CallOff, Way::Decide, Way::CallOff),
        (Decided, Way::Lost, Way::Commit, Way::Commit),
        (Committed, Way::Lost, Way::Done, Way::Done),
        (PreparingReturn, Way::Lost, Way::Return, Way::Return),
        (DecidingReturn, Way::Lost, Way::Return, Way::Return),
        (CallingOffReturn, Way::Lost, Way::Return, Way::Return),
        (TurningBack, Way::Back, Way::Back, Way::Back),
        (TurnedBack, Way::Back, Way::Back, Way::Back),
    ] {
        let flip = Flip { stage, ..Flip::default() };
        assert_eq!(
            [flip.way(Some(false)), flip.way(Some(true)), flip.way(None)],
            [no, yes, journal],
            "{stage:?}"
        );
    }
}

#[test]
fn facts_of_older_journals_are_understood_as_what_they_leave_possible() {
    let read = |facts: &[&str]| {
        let flip = Flip::read(&["a", "b"], |key| facts.contains(&key).then_some(Value::Bool(true))).unwrap();
        (flip.stage, flip.participants["a"], flip.participants["b"])
    };
    assert_eq!(read(&[]), (Stage::Idle, Stand::Untouched, Stand::Untouched));
    assert_eq!(read(&["preparing"]), (Stage::Preparing, Stand::Preparing, Stand::Preparing));
    assert_eq!(read(&["preparing", "at_stake"]), (Stage::Deciding, Stand::Prepared, Stand::Prepared));
    assert_eq!(
        read(&["preparing", "at_stake", "a.committed"]),
        (Stage::Decided, Stand::Committed, Stand::Committing)
    );
    assert_eq!(read(&["preparing", "decided"]), (Stage::Decided, Stand::Committing, Stand::Committing));
    assert_eq!(read(&["a.committed", "b.committed"]), (Stage::Committed, Stand::Committed, Stand::Committed));
    assert_eq!(
        read(&["turning_back", "a.committed"]),
        (Stage::TurningBack, Stand::Committed, Stand::Committing)
    );
    let loses = |key: &str| may_lose(&BTreeMap::from([(key.to_owned(), Value::Bool(true))]));
    assert_eq!([loses("at_stake"), loses("preparing")], [true, false]);
}

#[test]
fn a_participant_that_left_the_plan_is_missed_unless_it_is_at_rest() {
    let fact = |stand: &str| {
        let value =
            serde_json::json!({ "stage": "decided", "participants": { "a": "committed", "gone": stand } });
        Flip::read(&["a"], move |key| (key == FACT).then(|| value.clone()))
    };
    assert_eq!(fact("committed").unwrap_err().class(), Class::Changed);
    assert!(fact("aborted").is_ok());
    // One that is new in the plan is on the old side, and has to follow.
    let value = serde_json::json!({ "stage": "committed", "participants": { "a": "committed" } });
    let flip = Flip::read(&["a", "b"], move |key| (key == FACT).then(|| value.clone())).unwrap();
    assert_eq!((flip.stage, flip.participants["b"]), (Stage::Decided, Stand::Committing));
}
