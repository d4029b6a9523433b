//! What waits for what: from a copy's plan to the board its workers share.

use crate::board::{Board, Task, Unit};
use crate::state::{Object, State, Table};
use handover_postgres::TableName;
use std::collections::{BTreeMap, BTreeSet};

/// Added to the weight of everything but foreign keys.
const BEFORE_FOREIGN_KEYS: u64 = 1 << 62;

/// Entries that the workers execute; the rest follows in the dump's own order.
#[must_use]
pub fn parallel(object: &Object) -> bool {
    matches!(
        object.entry.kind.as_str(),
        "INDEX" | "CONSTRAINT" | "STATISTICS" | "INDEX ATTACH" | "FK CONSTRAINT"
    )
}

/// The board of everything that is not finished.
#[must_use]
pub fn board(state: &State, finished: &BTreeSet<String>, workers: usize) -> Board {
    let mut graph = Graph { board: Board::new(workers), ..Graph::default() };
    graph.loads(state, finished);
    graph.keys(state, finished);
    graph.attachments(state, finished);
    graph.analyzes(state, finished);
    graph.foreign_keys(state, finished);
    graph.board
}

#[derive(Default)]
struct Graph<'a> {
    board: Board,
    bytes: BTreeMap<&'a TableName, u64>,
    /// Tasks by what they make.
    loads: BTreeMap<&'a TableName, Vec<usize>>,
    keys: BTreeMap<&'a TableName, Vec<usize>>,
    attachments: Vec<usize>,
    analyzes: BTreeMap<&'a TableName, usize>,
}

impl<'a> Graph<'a> {
    fn loads(&mut self, state: &'a State, finished: &BTreeSet<String>) {
        for (i, table) in state.tables.iter().enumerate() {
            let Table { name, bytes, chunks, .. } = table;
            self.bytes.insert(name, *bytes);
            for chunk in (0..chunks.len()).filter(|chunk| !finished.contains(&table.unit(*chunk))) {
                let task = Task {
                    unit: Unit::Load(i, chunk),
                    weight: self.weight(Some(name)),
                    // Each transaction of a table in pieces goes with its others.
                    locks: vec![(name.clone(), chunks.len() == 1)],
                };
                let number = self.board.add(task, []);
                // What is given to a root may land in any table with that root.
                let reaches = |t: &&Table| t.name == *name || table.root.is_some() && t.root == table.root;
                for reached in state.tables.iter().filter(reaches) {
                    self.loads.entry(&reached.name).or_default().push(number);
                }
            }
        }
    }

    fn weight(&self, table: Option<&TableName>) -> u64 {
        BEFORE_FOREIGN_KEYS + table.and_then(|t| self.bytes.get(t)).copied().unwrap_or_default()
    }

    fn objects(
        state: &'a State,
        finished: &'a BTreeSet<String>,
        kinds: &'a [&str],
    ) -> impl Iterator<Item = (usize, &'a Object)> {
        state
            .after
            .iter()
            .enumerate()
            .filter(|(_, o)| kinds.contains(&o.entry.kind.as_str()) && !finished.contains(&o.unit()))
    }

    fn keys(&mut self, state: &'a State, finished: &'a BTreeSet<String>) {
        for (i, object) in Self::objects(state, finished, &["INDEX", "CONSTRAINT", "STATISTICS"]) {
            let table = object.table.as_ref();
            let after = table.and_then(|t| self.loads.get(t)).cloned().unwrap_or_default();
            let task = Task {
                unit: Unit::Build(i),
                weight: self.weight(table),
                // CREATE INDEX takes SHARE, which goes with its like; a key takes the table for itself.
                locks: table.map(|t| (t.clone(), object.entry.kind != "INDEX")).into_iter().collect(),
            };
            let number = self.board.add(task, after);
            if let Some(table) = table {
                self.keys.entry(table).or_default().push(number);
            }
        }
    }

    /// Partitions' indexes become parts of their parents', level by level as the dump has them.
    fn attachments(&mut self, state: &'a State, finished: &'a BTreeSet<String>) {
        let keys: Vec<usize> = self.keys.values().flatten().copied().collect();
        for (i, _) in Self::objects(state, finished, &["INDEX ATTACH"]) {
            let after: Vec<usize> = match self.attachments.last() {
                Some(last) => vec![*last],
                None => keys.clone(),
            };
            let task = Task { unit: Unit::Build(i), weight: u64::MAX, locks: Vec::new() };
            self.attachments.push(self.board.add(task, after));
        }
    }

    fn analyzes(&mut self, state: &'a State, finished: &BTreeSet<String>) {
        for (i, analyze) in state.analyze.iter().enumerate() {
            if finished.contains(&analyze.unit()) {
                continue;
            }
            let members = || analyze.below.iter().chain([&analyze.table]);
            let after: Vec<usize> = members()
                .flat_map(|t| self.loads.get(t).into_iter().chain(self.keys.get(t)))
                .flatten()
                .copied()
                .collect();
            let weight = members().map(|t| self.weight(Some(t))).max().unwrap_or_default();
            let locks = members().map(|t| (t.clone(), true)).collect();
            let number = self.board.add(Task { unit: Unit::Analyze(i), weight, locks }, after);
            for table in members() {
                self.analyzes.insert(table, number);
            }
        }
    }

    fn foreign_keys(&mut self, state: &'a State, finished: &'a BTreeSet<String>) {
        let trees: BTreeSet<&TableName> = state
            .analyze
            .iter()
            .filter(|a| !a.below.is_empty())
            .flat_map(|a| a.below.iter().chain([&a.table]))
            .collect();
        for (i, object) in Self::objects(state, finished, &["FK CONSTRAINT"]) {
            let tables: Vec<&TableName> = object.table.iter().chain(&object.references).collect();
            let mut after: Vec<usize> = tables
                .iter()
                .flat_map(|t| self.keys.get(*t).into_iter().flatten().chain(self.analyzes.get(*t)))
                .copied()
                .collect();
            if tables.len() < 2 || tables.iter().any(|t| trees.contains(*t)) {
                after.extend(
                    self.keys.values().flatten().chain(&self.attachments).chain(self.analyzes.values()),
                );
            }
            let weight = object.table.as_ref().and_then(|t| self.bytes.get(t)).copied().unwrap_or_default();
            let locks = tables.into_iter().map(|t| (t.clone(), true)).collect();
            self.board.add(Task { unit: Unit::Build(i), weight, locks }, after);
        }
    }
}
