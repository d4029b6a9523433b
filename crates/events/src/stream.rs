//! One capture's stream of events: its identity, the fence marker, and the arithmetic of completion.

use crate::trigger;
use handover_core::error::{Error, Result};
use handover_core::event::{RunId, StepId};
use handover_postgres::ours::OURS;
use handover_postgres::{Session, TableName, Tx, quote_ident};
use serde::{Deserialize, Serialize};

/// The lowest id that is free in our table of captures.
const FREE: &str = "coalesce(max(id), 0) + 1";

/// One capture's stream of events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Its row in `handover.capture` on the old side.
    pub id: i64,
    /// Its name in the queue and on the new side: unique to one run, so that what an earlier run left is never
    /// taken for its own.
    pub name: String,
    /// In how many partitions its keys fall.
    pub partitions: u32,
}

impl Stream {
    /// The stream that a capture step of this run made on the old side, if it did.
    pub async fn find(blue: &Session, run: RunId, step: &StepId) -> Result<Option<Stream>> {
        let row = blue
            .query_opt(
                &format!("select id, stream, partitions from {OURS}.capture where run = $1 and step = $2"),
                &[&run.0, &step.as_str()],
            )
            .await?;
        Ok(row.map(|row| Stream {
            id: row.get(0),
            name: row.get(1),
            partitions: row.get::<_, i32>(2).unsigned_abs(),
        }))
    }

    /// The stream of a capture step that must have run.
    ///
    /// # Errors
    /// What the server says, or that there is none.
    pub async fn get(blue: &Session, run: RunId, step: &StepId) -> Result<Stream> {
        Self::find(blue, run, step).await?.ok_or_else(|| {
            Error::data(format!("nothing is captured by step `{step}` in this run"))
                .on_database(blue.database())
                .hint("the capture step must be done before this one; see `handover status`")
        })
    }

    /// The stream that [`Stream::register`] would give now, for who only looks.
    pub async fn upcoming(
        blue: &Session,
        run: RunId,
        step: &StepId,
        name: &str,
        partitions: u32,
    ) -> Result<Stream> {
        let readable: bool = blue
            .query_one(
                &format!(
                    "select coalesce(has_table_privilege(to_regclass('{OURS}.capture'), 'select'), false)"
                ),
                &[],
            )
            .await?
            .get(0);
        let mut out = Stream { id: 1, name: name.to_owned(), partitions };
        if readable {
            if let Some(there) = Self::find(blue, run, step).await? {
                return Ok(there);
            }
            out.id = blue.query_one(&format!("select {FREE} from {OURS}.capture"), &[]).await?.get(0);
        }
        Ok(out)
    }

    /// Records a stream and its partitions; one that is there already is returned as it is.
    pub async fn register(
        tx: &Tx<'_>,
        run: RunId,
        step: &StepId,
        name: &str,
        partitions: u32,
    ) -> Result<Stream> {
        let count = i32::try_from(partitions).unwrap_or(i32::MAX);
        // The lowest id that is free rather than one from a sequence: triggers are named by it, and a run that
        // was rolled back leaves no trace in the names of the next.
        tx.execute(&format!("lock table {OURS}.capture in share row exclusive mode"), &[]).await?;
        tx.execute(
            &format!(
                "insert into {OURS}.capture (id, run, step, stream, partitions)
             select {FREE}, $1, $2, $3, $4 from {OURS}.capture
             on conflict (run, step) do nothing"
            ),
            &[&run.0, &step.as_str(), &name, &count],
        )
        .await?;
        let row = tx
            .query_one(
                &format!("select id, stream, partitions from {OURS}.capture where run = $1 and step = $2"),
                &[&run.0, &step.as_str()],
            )
            .await?;
        let stream =
            Stream { id: row.get(0), name: row.get(1), partitions: row.get::<_, i32>(2).unsigned_abs() };
        tx.execute(
            &format!(
                "insert into {OURS}.outbox_partition (capture, partition)
             select $1, p from generate_series(0, $2::int - 1) p on conflict do nothing"
            ),
            &[&stream.id, &row.get::<_, i32>(2)],
        )
        .await?;
        Ok(stream)
    }
}

/// The identity of a fence marker; later ones of a stream are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Marker(pub i64);

/// The operation under which a marker travels.
pub const MARKER: &str = "marker";

/// Writes and commits a fence marker: one event in every partition of the stream.
///
/// When every writer of the captured tables is held off and none is in flight, whatever was captured goes before
/// the marker. Proof: a captured row takes its id in the trigger, inside its writer's transaction; those have all
/// ended, so each row is committed, and has a lower id than the marker, which takes its ids now from the same
/// sequence. A pass of the relay takes visible rows in the order of their ids. The statement of a pass that sees
/// the marker began after the marker's commit, so it sees all those rows too, unless an earlier pass has moved
/// them; and it cannot take the marker (its batch being cut off by id) without having taken the rows below it.
/// Numbers only rise from pass to pass, so within each partition the marker's is above all of theirs.
///
/// Call it on a session other than the one that holds the freeze: it must be committed to be seen.
///
/// # Errors
/// Lease lost, or what the server says.
pub async fn write_fence_marker(blue: &mut Session, stream: &Stream) -> Result<Marker> {
    let tx = blue.transaction().await?;
    let marker: i64 = tx.query_one(&format!("select nextval('{OURS}.outbox_id')"), &[]).await?.get(0);
    tx.execute(
        &format!(
            "insert into {OURS}.outbox (capture, partition, tbl, op, key)
         select $1, partition, '', $2, json_build_object('marker', $3::bigint)
         from {OURS}.outbox_partition where capture = $1"
        ),
        &[&stream.id, &MARKER, &marker],
    )
    .await?;
    tx.commit().await?;
    Ok(Marker(marker))
}

/// Whether replay has passed the marker in every partition.
pub async fn marker_passed(green: &Session, stream: &Stream, marker: Marker) -> Result<bool> {
    let passed: i64 = green
        .query_one(
            &format!("select count(*) from {OURS}.replay where stream = $1 and marker >= $2"),
            &[&stream.name, &marker.0],
        )
        .await?
        .get(0);
    Ok(passed == i64::from(stream.partitions))
}

/// What became of a stream's events. Fence markers are not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Captured and committed on the old side, as far as replay is concerned with them.
    pub captured: i64,
    /// Confirmed by the queue at least once, or not needed there any more.
    pub published: i64,
    /// Took effect on the new side.
    pub applied: i64,
    /// Were so already, by their declared query.
    pub already: i64,
    /// Of tables or operations that the plan says to ignore.
    pub ignored: i64,
    /// Set aside on the new side.
    pub quarantined: i64,
    /// Partitions that stand at an event which neither applies nor is so already.
    pub missing: i64,
    /// Captured and without an outcome yet.
    pub waiting: i64,
}

impl Counts {
    /// Whether everything captured has an outcome.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.waiting == 0 && self.missing == 0 && self.captured == self.outcomes()
    }

    fn outcomes(&self) -> i64 {
        self.applied + self.already + self.ignored + self.quarantined
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "captured {} = applied {} + already so {} + ignored {} + quarantined {} + waiting {}",
            self.captured, self.applied, self.already, self.ignored, self.quarantined, self.waiting
        )
    }
}

/// How the two sides of a stream stand. The new side is read first: what is counted there was captured before,
/// so `waiting` errs upwards only.
///
/// # Errors
/// What either server says.
pub async fn backlog(blue: &Session, green: &Session, stream: &Stream) -> Result<Counts> {
    let there = green
        .query_one(
            &format!("select coalesce(sum(base), 0)::bigint, coalesce(sum(applied), 0)::bigint, coalesce(sum(already), 0)::bigint,
                    coalesce(sum(ignored), 0)::bigint, coalesce(sum(quarantined), 0)::bigint,
                    coalesce(sum(base_markers), 0)::bigint, count(problem)
             from {OURS}.replay where stream = $1"),
            &[&stream.name],
        )
        .await?;
    // One statement, one snapshot: a row is either not numbered or numbered, never both or neither.
    let here = blue
        .query_one(
            &format!(
                "select coalesce(sum(last_number), 0)::bigint, coalesce(sum(markers), 0)::bigint,
                    coalesce(sum(greatest(published, trimmed)), 0)::bigint,
                    (select count(*) from {OURS}.outbox where capture = $1 and op <> $2)
             from {OURS}.outbox_partition where capture = $1"
            ),
            &[&stream.id, &MARKER],
        )
        .await?;
    let (base, base_markers): (i64, i64) = (there.get(0), there.get(5));
    let (numbered, markers, published): (i64, i64, i64) = (here.get(0), here.get(1), here.get(2));
    let mut counts = Counts {
        captured: numbered - base - (markers - base_markers) + here.get::<_, i64>(3),
        published: published - base,
        applied: there.get(1),
        already: there.get(2),
        ignored: there.get(3),
        quarantined: there.get(4),
        missing: there.get(6),
        waiting: 0,
    };
    counts.waiting = counts.captured - counts.outcomes();
    Ok(counts)
}

/// Stops the triggers from capturing, in the caller's transaction: what is written from now on (such as changes
/// that flow back from the new side) stays out of the stream. Takes SHARE ROW EXCLUSIVE on the tables, which a
/// freeze of writers holds already; readers go on.
///
/// # Errors
/// What the server says, a lock timeout among it.
pub async fn close(tx: &Tx<'_>, stream: &Stream) -> Result<()> {
    switch(tx, stream, "disable").await
}

/// Has the triggers capture again, in the caller's transaction.
///
/// # Errors
/// What the server says, a lock timeout among it.
pub async fn reopen(tx: &Tx<'_>, stream: &Stream) -> Result<()> {
    switch(tx, stream, "enable always").await
}

async fn switch(tx: &Tx<'_>, stream: &Stream, verb: &str) -> Result<()> {
    for found in tx.query(&trigger::find(), &[&trigger::function_pattern(stream.id)]).await? {
        let table = TableName::new(found.get::<_, String>(0), found.get::<_, String>(1));
        let name = quote_ident(found.get(2));
        tx.execute(&format!("alter table {} {verb} trigger {name}", table.sql()), &[]).await?;
    }
    Ok(())
}
