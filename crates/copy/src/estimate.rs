//! How long a copy may take: what was measured of its parts, put together.

use crate::sample::{Index, Measured};
use crate::state::Table;
use handover_core::value::Duration;
use handover_port::Precedent;
use serde::Serialize;

/// A load costs so many times what reading the same rows does: it forms tuples, and writes them and the log.
const LOAD: f64 = 1.5;
/// Keys are sorted, and read and written besides.
const BUILD: f64 = 1.5;
/// Bytes per second of one job where nothing could be measured: reading tables, and building indexes.
const READ_RATE: f64 = 60e6;
const BUILD_RATE: f64 = 15e6;
/// Seconds for the snapshot, pg_dump and the comparison at the end; and for each object.
const BASE: f64 = 1.0;
const OBJECT: f64 = 0.004;
/// For foreign keys, statistics and the count of rows at the end, as a part of all the rest.
const REST: f64 = 0.15;

/// A length of time, with how sure it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// Most likely.
    pub seconds: f64,
    /// Hardly less, hardly more.
    pub between: (f64, f64),
    /// How it was made, in words.
    pub made: String,
}

/// What there is to do.
pub struct Work<'a> {
    /// Tables with rows, in the order of their measurements.
    pub tables: &'a [Table],
    /// Indexes in the order of theirs.
    pub indexes: &'a [Index],
    /// Objects without rows.
    pub objects: usize,
    /// Bytes of large objects.
    pub large_objects: u64,
    /// Pieces at once.
    pub jobs: usize,
    /// Names of both sides.
    pub names: (&'a str, &'a str),
}

#[allow(clippy::cast_precision_loss)]
fn float(n: u64) -> f64 {
    n as f64
}

/// From measurements of the moment.
#[must_use]
pub fn measured(work: &Work<'_>, found: &Measured) -> Estimate {
    let (known, seconds) =
        (found.reads.keys().map(|i| work.tables[*i].bytes).sum::<u64>(), found.reads.values().sum::<f64>());
    let read_rate = if seconds > 0.0 { float(known) / seconds } else { READ_RATE };
    let bytes = work.tables.iter().map(|t| t.bytes).sum::<u64>() + work.large_objects;
    let read = seconds + float(bytes - known) / read_rate;

    let slowness = found.slowness.unwrap_or(1.0);
    let sorted = found.sorts.keys().map(|i| work.indexes[*i].bytes).sum::<u64>();
    let sorting = found.sorts.values().sum::<f64>();
    let build_rate = if sorting > 0.0 { float(sorted) / (sorting * BUILD) } else { BUILD_RATE };
    let build = |(i, index): (usize, &Index)| match found.sorts.get(&i) {
        Some(seconds) => seconds * BUILD,
        None => float(index.bytes) / build_rate * effort(&index.method),
    };
    let builds: Vec<f64> = work.indexes.iter().enumerate().map(|i| build(i) * slowness).collect();
    let (load, building) = (read * LOAD * slowness, builds.iter().sum::<f64>());

    // One index is built by one job, after its table's rows are there.
    let longest = builds.iter().copied().fold(0.0, f64::max);
    #[allow(clippy::cast_precision_loss)]
    let (jobs, objects) = (work.jobs.max(1) as f64, work.objects as f64);
    let fixed = BASE + OBJECT * objects;
    let wall = |seconds: f64| (seconds / jobs).max(longest) * (1.0 + REST) + fixed;
    let (apart, shared) = (wall(read.max(load + building)), wall(read + load + building));
    // On one machine reading and writing are each other's cost.
    let likely = if found.together { shared } else { apart };
    let mb = |bytes: u64| bytes.div_ceil(1_000_000);
    let mut made = if known > 0 {
        format!(
            "{} gives out {:.0} MB/s to each job, as a sample of {} MB showed just now",
            work.names.0,
            read_rate / 1e6,
            mb(found.bytes)
        )
    } else {
        format!(
            "reading taken to give {:.0} MB/s to each job, for nothing could be measured",
            read_rate / 1e6
        )
    };
    made += &format!(", and loading is taken to cost {LOAD} times that");
    if !work.indexes.is_empty() {
        made += &if sorting > 0.0 {
            format!(
                "; indexes are built at {:.0} MB/s, by how long their keys took to sort in the sample",
                build_rate / slowness / 1e6
            )
        } else {
            format!("; indexes are taken to be built at {:.0} MB/s", build_rate / slowness / 1e6)
        };
    }
    if let Some(slowness) = found.slowness
        && !(0.8..=1.25).contains(&slowness)
    {
        made +=
            &format!("; {} computes {:.1} times as fast as {}", work.names.1, 1.0 / slowness, work.names.0);
    }
    made += &format!(
        "; disks of {} were not measured, as a dry run writes nothing{}",
        work.names.1,
        if found.together { ", and both servers seem to share a machine" } else { "" }
    );
    Estimate { seconds: likely, between: (apart.min(likely) / 2.0, shared.max(likely) * 2.0), made }
}

/// From an earlier run of the same step.
#[must_use]
pub fn precedent(bytes: u64, earlier: &Precedent) -> Option<Estimate> {
    let then = earlier.summary.get("bytes_on_source")?.as_u64().filter(|bytes| *bytes > 0)?;
    let seconds = earlier.took.as_secs_f64() * float(bytes) / float(then);
    Some(Estimate {
        seconds,
        between: (seconds / 1.5, seconds * 1.5),
        made: format!(
            "the run of {} copied {} MB in {}, and this is {} MB",
            earlier.at.strftime("%Y-%m-%d %H:%M UTC"),
            then.div_ceil(1_000_000),
            words(earlier.took.as_secs_f64()),
            bytes.div_ceil(1_000_000)
        ),
    })
}

/// How many times the work of a B-tree a byte of another index is.
fn effort(method: &str) -> f64 {
    match method {
        "gin" => 3.0,
        "gist" | "spgist" => 4.0,
        "brin" => 20.0,
        _ => 1.0,
    }
}

impl Estimate {
    /// For people.
    #[must_use]
    pub fn words(&self) -> String {
        let (low, high) = self.between;
        format!(
            "about {}, likely between {} and {}: {}",
            words(self.seconds),
            words(low),
            words(high),
            self.made
        )
    }
}

/// Seconds as people say them: no more exact than they are.
fn words(seconds: f64) -> String {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let seconds = seconds.ceil().max(1.0) as u64;
    let rounded = match seconds {
        0..=99 => seconds,
        100..=7_199 => seconds.div_ceil(60) * 60,
        _ => seconds.div_ceil(600) * 600,
    };
    Duration::secs(rounded).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Chunk;
    use handover_postgres::TableName;
    use serde_json::json;

    fn table(name: &str, bytes: u64) -> Table {
        let (name, chunks) = (TableName::new("s", name), vec![Chunk::WHOLE]);
        Table { name, columns: vec![], binary: true, root: None, bytes, chunks, key: None }
    }

    fn index(method: &str, bytes: u64) -> Index {
        let table = TableName::new("s", "a");
        Index { table, name: "i".into(), method: method.into(), bytes, key: None }
    }

    #[test]
    fn what_was_not_measured_goes_at_the_rate_of_what_was() {
        let tables = [table("a", 1_000_000_000), table("b", 1_000_000_000)];
        let indexes = [index("btree", 300_000_000), index("gin", 100_000_000)];
        let work = |jobs| Work {
            tables: &tables,
            indexes: &indexes,
            objects: 0,
            large_objects: 0,
            jobs,
            names: ("blue", "green"),
        };
        let found = Measured {
            reads: [(0, 10.0)].into(),
            bytes: 16_000_000,
            sorts: [(0, 20.0)].into(),
            slowness: Some(1.0),
            together: true,
        };
        let one = measured(&work(1), &found);
        // 20 s of reading, 30 s of loading, 30 s for either index; and what comes with it.
        assert!((one.seconds - (110.0 * 1.15 + 1.0)).abs() < 1e-6, "{one:?}");
        let apart = measured(&work(2), &Measured { together: false, ..found.clone() });
        assert!((apart.seconds - (45.0 * 1.15 + 1.0)).abs() < 1e-6, "{apart:?}");
        let many = measured(&work(64), &found);
        assert!(many.seconds > 30.0, "no index is built by more than one job: {many:?}");
        let slow = measured(&work(1), &Measured { slowness: Some(3.0), ..found.clone() });
        assert!(slow.seconds > 2.0 * one.seconds && slow.made.contains("0.3 times as fast"), "{slow:?}");
        for estimate in [one, apart, many, slow] {
            assert!(estimate.between.0 < estimate.seconds && estimate.seconds < estimate.between.1);
        }
        let blind = measured(&work(1), &Measured::default());
        assert!(blind.made.contains("nothing could be measured"), "{blind:?}");
    }

    #[test]
    fn an_earlier_run_knows_best() {
        let earlier = Precedent {
            at: "2026-01-02T03:04:05Z".parse().unwrap(),
            took: std::time::Duration::from_secs(600),
            summary: json!({ "bytes_on_source": 1_000_000_000_u64 }),
        };
        let found = precedent(2_000_000_000, &earlier).unwrap();
        assert_eq!(
            found.words(),
            "about 20m, likely between 14m and 30m: the run of 2026-01-02 03:04 UTC copied 1000 MB in 10m, and this is 2000 MB"
        );
        assert_eq!(precedent(1, &Precedent { summary: json!({}), ..earlier }), None);
    }
}
