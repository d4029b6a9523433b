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
}

impl World {
    fn new() -> Self {
        World { systems: [Real::Old; 3], decided: false, told_to_commit: [false; 3] }
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

/// All places that one move of a runner can lead to, each of which a crash may leave. The runner knows the journal
/// and asks the old side; acts happen one at a time, in any order, and each may be repeated.
fn moves((flip, world): &Place, forward: bool) -> Vec<Place> {
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
        Way::Commit if forward => {
            for name in flip.those(Stand::Committing) {
                let i = NAMES.iter().position(|n| *n == name).unwrap();
                let after = act(World::commit, i);
                go(flip.clone(), after.clone());
                go(step(flip, Event::Committed(name)), after);
            }
        }
        Way::Commit | Way::Done | Way::Lost if !forward => go(step(flip, Event::TurnBack), world.clone()),
        Way::Back => {
            go(flip.clone(), World { decided: false, ..world.clone() });
            if !world.decided {
                for i in 0..3 {
                    match flip.participants[named(i)] {
                        Stand::Committing | Stand::Committed => {
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

fn reached(from: &[Place], forward: bool) -> Vec<Place> {
    let key = |place: &Place| (format!("{:?}", place.0), place.1.clone());
    let mut seen: BTreeSet<_> = from.iter().map(key).collect();
    let mut queue: VecDeque<Place> = from.to_vec().into();
    let mut all = from.to_vec();
    while let Some(place) = queue.pop_front() {
        for next in moves(&place, forward) {
            if seen.insert(key(&next)) {
                queue.push_back(next.clone());
                all.push(next);
            }
        }
    }
    all
}

fn ends(place: &Place, forward: bool) -> bool {
    moves(place, forward).iter().all(|next| next == place)
}

#[test]
fn a_crash_anywhere_leaves_a_place_from_which_both_ways_end_well() {
    let places = reached(&[start()], true);
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
    for place in places.iter().filter(|place| ends(place, true)) {
        assert_eq!(place.0.stage, Stage::Committed, "{place:?}");
    }
    // Back, from every place, with crashes on the way: the old side is open and everybody is on it.
    let back = reached(&places, false);
    let last: Vec<_> = back.iter().filter(|place| ends(place, false)).collect();
    assert!(!last.is_empty());
    for (flip, world) in last {
        assert!(matches!(flip.stage, Stage::Idle | Stage::TurnedBack), "{flip:?} {world:?}");
        assert_eq!((world.systems, world.decided), ([Real::Old; 3], false), "{flip:?}");
    }
}

#[test]
fn every_pair_of_state_and_event_is_in_the_table() {
    use Stage::*;
    // By hand: which events each stage allows, given participants that stand as that stage leaves them.
    let table: [(Stage, Stand, &[&str]); 8] = [
        (Idle, Stand::Untouched, &["prepare", "decided"]),
        (Preparing, Stand::Preparing, &["prepared", "not_decided", "decided"]),
        (Deciding, Stand::Prepared, &["not_decided", "decided"]),
        (CallingOff, Stand::Aborting, &["not_decided", "aborted", "decided"]),
        (Decided, Stand::Committing, &["committed", "turn_back"]),
        (Committed, Stand::Committed, &["turn_back"]),
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
    for stage in [Idle, Preparing, Deciding, CallingOff, Decided, Committed, TurningBack, TurnedBack] {
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
