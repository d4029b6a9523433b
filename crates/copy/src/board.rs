//! Who does what next: tasks that wait for each other, and tables that some of them need for themselves.
//!
//! Pure: nothing here does anything. The heaviest task that is ready goes first, and one that would only wait
//! for a lock of a task that runs is passed over.

use handover_postgres::TableName;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// A piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Loads a chunk (second) of a table (first).
    Load(usize, usize),
    /// Executes an object of the copy's plan.
    Build(usize),
    /// Analyzes a table.
    Analyze(usize),
}

/// A piece of work on the board.
#[derive(Debug, Clone)]
pub struct Task {
    /// What is done.
    pub unit: Unit,
    /// What it is worth to begin it early: bytes of its table; foreign keys come last whatever their size.
    pub weight: u64,
    /// Tables that it locks, and whether nobody else's lock goes with its own.
    pub locks: Vec<(TableName, bool)>,
}

/// What a worker is told.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Do this; that many jobs are free to help.
    Task(usize, Unit, usize),
    /// Ask again when another task is complete.
    Wait,
    /// All is done or being done, and nothing will come of it for this worker.
    Finished,
}

/// All tasks of a copy.
#[derive(Debug, Default)]
pub struct Board {
    tasks: Vec<Task>,
    /// How many tasks each one waits for, and which wait for it.
    waits: Vec<usize>,
    wakes: Vec<Vec<usize>>,
    ready: BTreeSet<(Reverse<u64>, usize)>,
    running: BTreeSet<usize>,
    complete: usize,
    loads: usize,
    jobs: usize,
}

impl Board {
    /// An empty board that gives out `jobs` loads at once, and as many other tasks beside them. While there are
    /// only loads, or only others, half as many more: each waits for disks at times.
    #[must_use]
    pub fn new(jobs: usize) -> Self {
        Board { jobs, ..Board::default() }
    }

    /// Adds a task that waits for others, which were added before. Returns its number.
    pub fn add(&mut self, task: Task, after: impl IntoIterator<Item = usize>) -> usize {
        let number = self.tasks.len();
        let after: BTreeSet<usize> = after.into_iter().collect();
        if matches!(task.unit, Unit::Load(..)) {
            self.loads += 1;
        }
        self.waits.push(after.len());
        self.wakes.push(Vec::new());
        for earlier in &after {
            self.wakes[*earlier].push(number);
        }
        if after.is_empty() {
            self.ready.insert((Reverse(task.weight), number));
        }
        self.tasks.push(task);
        number
    }

    /// How many tasks there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Loads that are not complete.
    #[must_use]
    pub fn loads_left(&self) -> usize {
        self.loads
    }

    /// What an idle worker does next.
    pub fn take(&mut self) -> Next {
        if self.complete + self.running.len() == self.tasks.len() {
            return Next::Finished;
        }
        let mut held: BTreeMap<&TableName, bool> = BTreeMap::new();
        for (table, alone) in self.running.iter().flat_map(|n| &self.tasks[*n].locks) {
            *held.entry(table).or_default() |= *alone;
        }
        let free = |task: &Task| {
            task.locks.iter().all(|(table, alone)| match held.get(table) {
                None => true,
                Some(taken_alone) => !*taken_alone && !*alone,
            })
        };
        let is_load = |n: usize| matches!(self.tasks[n].unit, Unit::Load(..));
        let loads = self.running.iter().filter(|n| is_load(**n)).count();
        let others = self.running.len() - loads;
        let is_ready = |load: bool| self.ready.iter().any(|(_, n)| is_load(*n) == load);
        let room = |n: usize| {
            let load = is_load(n);
            let (same, other) = if load { (loads, others) } else { (others, loads) };
            let more = if other == 0 && !is_ready(!load) { self.jobs.div_ceil(2) } else { 0 };
            same < self.jobs + more
        };
        let may = |(_, n): &&(Reverse<u64>, usize)| room(*n) && free(&self.tasks[*n]);
        let Some(found) = self.ready.iter().find(may).copied() else {
            return Next::Wait;
        };
        self.ready.remove(&found);
        self.running.insert(found.1);
        let idle = self.jobs.saturating_sub(self.running.len() + self.ready.len());
        Next::Task(found.1, self.tasks[found.1].unit, idle)
    }

    /// A task is complete.
    pub fn done(&mut self, number: usize) {
        if !self.running.remove(&number) {
            return;
        }
        self.complete += 1;
        if matches!(self.tasks[number].unit, Unit::Load(..)) {
            self.loads -= 1;
        }
        for later in std::mem::take(&mut self.wakes[number]) {
            self.waits[later] -= 1;
            if self.waits[later] == 0 {
                self.ready.insert((Reverse(self.tasks[later].weight), later));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(unit: Unit, weight: u64, locks: &[(&str, bool)]) -> Task {
        let locks = locks.iter().map(|(t, alone)| (TableName::new("s", *t), *alone)).collect();
        Task { unit, weight, locks }
    }

    #[test]
    fn heavy_first_in_order_and_nobody_waits_for_a_lock() {
        let mut board = Board::new(2);
        let small = board.add(task(Unit::Load(1, 0), 10, &[("small", false)]), []);
        let big = board.add(task(Unit::Load(0, 0), 99, &[("big", false)]), []);
        let key = board.add(task(Unit::Build(0), 99, &[("big", true)]), [big]);
        let index = board.add(task(Unit::Build(1), 99, &[("big", false)]), [big]);
        let fk = board.add(task(Unit::Build(2), 0, &[("big", true), ("small", true)]), [key, index, small]);
        assert_eq!((board.len(), board.loads_left()), (5, 2));
        assert_eq!(board.take(), Next::Task(big, Unit::Load(0, 0), 0));
        board.done(big);
        assert_eq!(board.take(), Next::Task(key, Unit::Build(0), 0));
        // The index would wait for the key's lock.
        assert_eq!(board.take(), Next::Task(small, Unit::Load(1, 0), 0));
        assert_eq!(board.take(), Next::Wait);
        board.done(key);
        board.done(small);
        assert_eq!(board.loads_left(), 0);
        assert_eq!(board.take(), Next::Task(index, Unit::Build(1), 1));
        assert_eq!(board.take(), Next::Wait);
        board.done(index);
        assert_eq!(board.take(), Next::Task(fk, Unit::Build(2), 1));
        assert_eq!(board.take(), Next::Finished);
        board.done(fk);
        assert_eq!(board.take(), Next::Finished);
    }

    #[test]
    fn one_kind_alone_takes_places_of_the_other() {
        let mut board = Board::new(2);
        let loads: Vec<usize> = (0..4).map(|i| board.add(task(Unit::Load(i, 0), 9, &[]), [])).collect();
        let builds: Vec<usize> =
            (0..4).map(|i| board.add(task(Unit::Build(i), 5, &[]), [loads[0]])).collect();
        for load in &loads[..3] {
            assert!(matches!(board.take(), Next::Task(n, ..) if n == *load));
        }
        assert_eq!(board.take(), Next::Wait);
        board.done(loads[0]);
        // Two loads run, so the rest of the places is for what hangs on the first.
        assert!(matches!(board.take(), Next::Task(n, ..) if n == builds[0]));
        assert!(matches!(board.take(), Next::Task(n, ..) if n == builds[1]));
        assert_eq!(board.take(), Next::Wait);
        for load in &loads[1..3] {
            board.done(*load);
        }
        assert!(matches!(board.take(), Next::Task(n, ..) if n == loads[3]));
        assert_eq!(board.take(), Next::Wait);
        board.done(loads[3]);
        assert!(matches!(board.take(), Next::Task(n, ..) if n == builds[2]));
        assert_eq!(board.take(), Next::Wait);
    }

    #[test]
    fn every_task_runs_once_after_what_it_waits_for() {
        let mut board = Board::new(3);
        for i in 0..200 {
            let after: Vec<usize> = (1..=3).map(|k| i * k / 4).filter(|n| *n < i).collect();
            board.add(task(Unit::Build(i), (i * 37 % 11) as u64, &[("t", i % 7 == 0)]), after);
        }
        let (mut complete, mut running) = (BTreeSet::new(), Vec::new());
        loop {
            match board.take() {
                Next::Task(number, _, _) => running.push(number),
                Next::Wait => {
                    let number = running.remove(0);
                    assert!(
                        (1..=3)
                            .map(|k| number * k / 4)
                            .filter(|n| *n < number)
                            .all(|n| complete.contains(&n))
                    );
                    assert!(complete.insert(number));
                    board.done(number);
                }
                Next::Finished => break,
            }
        }
        complete.extend(running);
        assert_eq!(complete.len(), 200);
    }
}
