//! What a dry run says of checksums: how each table would be split, and how long it may take by a sample.

use crate::given::Carried;
use crate::hash::Hasher;
use crate::options::{Before, Checksums, Verify};
use crate::shape;
use crate::split::Table;
use handover_core::error::Result;
use handover_core::event::StepId;
use handover_port::{Description, Port};
use handover_postgres::Session;
use handover_postgres::binding::assert_bound;
use std::time::{Duration, Instant};

/// Tables that are named; the others are counted.
const NAMED: usize = 10;
/// Blocks of the largest table that are summed to see how fast each server is: 16 MB.
const SAMPLE: u64 = 2_048;

impl Verify {
    /// Says what would be compared, and how. `replicates`: the step that carries changes over meanwhile.
    ///
    /// # Errors
    /// No connection, or what either server says.
    pub async fn dry_run(
        &self,
        cx: &Port,
        carried: Option<Carried<'_>>,
        replicates: Option<&StepId>,
    ) -> Result<Description> {
        let mut out = Description::default();
        let verb = if self.record { "record" } else { "compare" };
        if self.counts_tables() {
            out.action(format!(
                "{verb} the exact number of rows of tables, which reads each of them or an index of it"
            ));
        }
        if self.checksums.is_some() {
            out.action("compare checksums of tables, computed by both servers, which reads each table once");
        }
        if let (Some(sums), Before::Database(before), Some(after)) =
            (&self.checksums, &self.before, &self.after)
        {
            out.action(match (replicates, self.retries) {
                (Some(step), _) => format!(
                    "while step `{}` replicates, look at rows that differ again behind marks in its stream, until they agree or are certain to differ",
                    step
                ),
                (None, Some(_)) => "look at rows that differ again, as long as `retries` says".to_owned(),
                (None, None) => "hold one point in time of each side until all is read: every difference is one".to_owned(),
            });
            let (before, after) = tokio::try_join!(cx.reader(before), cx.reader(after))?;
            sums_of(sums, carried, (&before, &after), self.jobs(), &mut out).await?;
        }
        for invariant in &self.invariants {
            out.action(format!("{verb} {}", invariant.name));
        }
        for (database, before) in self.sides() {
            let session = cx.operator_reader(database).await?;
            for invariant in &self.invariants {
                let wrapped = if before { invariant.before_sql() } else { invariant.after_sql() };
                let Some(wrapped) = wrapped else { continue };
                // Preparing only looks the names up; an earlier step may be what creates them.
                if let Err(e) = session.prepare(&wrapped).await {
                    out.warning(format!(
                        "`{}` cannot run on {database} as it is now: {}",
                        invariant.name,
                        e.message()
                    ));
                } else if let Err(e) = assert_bound(&session, &wrapped, &invariant.name).await {
                    out.refusal(&e);
                }
            }
        }
        Ok(out)
    }
}

/// Adds what would be summed.
async fn sums_of(
    sums: &Checksums,
    copy: Option<Carried<'_>>,
    (before, after): (&Session, &Session),
    jobs: usize,
    out: &mut Description,
) -> Result<()> {
    let (there, now) = tokio::try_join!(shape::shapes(before), shape::shapes(after))?;
    let hasher = Hasher::agree(before, after).await?;
    let mut tables = Vec::new();
    let chosen = match shape::chosen(&there, &sums.tables, &sums.exclude, copy, before.database()) {
        Ok(chosen) => chosen,
        // An earlier step may be what makes them.
        Err(e) => {
            out.blocker(e.message());
            return Ok(());
        }
    };
    for name in chosen {
        match (there.get(&name).cloned(), now.get(&name).cloned()) {
            (Some(one), Some(two)) => tables.push(Table::new(name, one, two, sums.chunk_rows())),
            _ => drop(out.warning(format!("there is no table {name} on {} as it is now", after.database()))),
        }
    }
    tables.sort_by_key(|table| std::cmp::Reverse(table.shapes.0.bytes));
    for table in tables.iter().take(NAMED) {
        out.action(format!(
            "sum table {} on both sides, {}: {} MB, about {:.0} rows",
            table.name,
            table.words(),
            table.shapes.0.bytes.div_ceil(1_000_000),
            table.shapes.0.estimate
        ));
        if table.key.is_empty() {
            out.warning(format!(
                "table {} has no key that both sides have: a row that differs is shown by its place, and while it is written, each look at such a row reads all of the table",
                table.name
            ));
        }
        let lost = table.lost();
        if !lost.is_empty() {
            out.warning(format!(
                "table {} has no columns {} on {} as it is now",
                table.name,
                lost.join(", "),
                after.database()
            ));
        }
    }
    if tables.len() > NAMED {
        let bytes: u64 = tables.iter().skip(NAMED).map(|table| table.shapes.0.bytes).sum();
        let more = tables.len() - NAMED;
        out.action(format!("sum {more} smaller tables: {} MB", bytes.div_ceil(1_000_000)));
    }
    let Some(largest) = tables.first().filter(|table| table.shapes.0.bytes > 0) else { return Ok(()) };
    let (one, two) =
        tokio::try_join!(speed(before, largest, &hasher, true), speed(after, largest, &hasher, false))?;
    let Some((rate, database)) = [(one, before.database()), (two, after.database())]
        .into_iter()
        .filter_map(|(rate, database)| Some((rate?, database)))
        .min_by(|a, b| a.0.total_cmp(&b.0))
    else {
        return Ok(());
    };
    #[allow(clippy::cast_precision_loss)]
    let (total, jobs) =
        (tables.iter().map(|t| t.shapes.0.bytes.max(t.shapes.1.bytes)).sum::<u64>() as f64, jobs as f64);
    let words = |seconds: f64| match seconds {
        s if s < 1.0 => "less than a second".to_owned(),
        s => handover_core::value::Duration(Duration::from_secs(s.ceil() as u64)).to_string(),
    };
    out.estimate = Some(format!(
        "{} with {jobs} cores free on each server, {} with one: {:.0} MB at {:.0} MB/s, which is what {database} needed for the first blocks of {}",
        words(total / rate / jobs),
        words(total / rate),
        total / 1e6,
        rate / 1e6,
        largest.name
    ));
    Ok(())
}

/// Bytes of a table that a server sums in a second, by the first blocks of one heap; None where they are no
/// sample.
async fn speed(session: &Session, table: &Table, hasher: &Hasher, before: bool) -> Result<Option<f64>> {
    let shape = if before { &table.shapes.0 } else { &table.shapes.1 };
    let Some(heap) = shape.heaps.iter().max_by_key(|heap| heap.blocks).filter(|heap| heap.blocks > 0) else {
        return Ok(None);
    };
    let blocks = if heap.divisible { heap.blocks.min(SAMPLE) } else { heap.blocks };
    if blocks > SAMPLE {
        return Ok(None);
    }
    let sql = format!(
        "select count(*), sum({})::text from only {} t where t.ctid < '({blocks},0)'::tid",
        hasher.row(&table.columns),
        heap.name.sql()
    );
    let begun = Instant::now();
    if session.query_one(&sql, &[]).await.is_err() {
        // A reader that may not read this table; the role that executes the plan may.
        return Ok(None);
    }
    #[allow(clippy::cast_precision_loss)]
    let (share, seconds) = (
        blocks as f64 / shape.heaps.iter().map(|heap| heap.blocks).sum::<u64>().max(1) as f64,
        begun.elapsed().as_secs_f64().max(0.0001),
    );
    #[allow(clippy::cast_precision_loss)]
    Ok(Some(shape.bytes as f64 * share / seconds))
}
