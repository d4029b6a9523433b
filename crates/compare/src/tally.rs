//! What a comparison has still to do, and what it knows of a table so far.

use crate::agreed::Bucket;
use crate::found::TableFound;
use crate::narrow::Candidate;
use handover_core::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

/// What is left to do.
#[derive(Debug)]
pub(crate) enum Unit {
    /// Find a table's boundaries.
    Plan(usize),
    /// Sum one range of a table.
    Range(usize, Range),
    /// Sum some blocks of a table: the pieces from this one to before that one.
    Blocks(usize, usize, usize),
}

/// A range of a table.
#[derive(Debug)]
pub(crate) struct Range {
    /// Its number, if the journal has the boundaries.
    pub number: Option<usize>,
    pub columns: Vec<String>,
    pub lower: Option<Vec<String>>,
    pub upper: Option<Vec<String>>,
    pub bytes: u64,
}

/// Rows and the sum of their hashes, by bucket.
pub(crate) type Buckets = BTreeMap<i64, (i64, i128)>;

/// What is known of a table so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub found: TableFound,
    pub candidates: Vec<Candidate>,
    pub buckets: (Buckets, Buckets),
    /// Pieces whose blocks are in the buckets.
    pub blocks_done: BTreeSet<usize>,
    pub blocks_left: usize,
    pub bytes: u64,
    pub units_left: usize,
}

/// Buckets as the journal has them.
pub(crate) fn buckets(kept: &[Bucket]) -> Result<Buckets> {
    let one = |(bucket, rows, sum): &Bucket| {
        let sum = sum.parse().map_err(|_| Error::internal("a sum in the journal is no whole number"))?;
        Ok((*bucket, (*rows, sum)))
    };
    kept.iter().map(one).collect()
}

pub(crate) fn merge(into: &mut Buckets, sums: Vec<(i64, i64, i128)>) {
    for (bucket, rows, sum) in sums {
        let entry = into.entry(bucket).or_insert((0, 0));
        entry.0 += rows;
        entry.1 += sum;
    }
}
