//! How many rows a step may touch: what the plan says, or, where it says nothing, not nearly all of a table.

use crate::batch::{Work, more_than_expected, read_progress};
use crate::count::{Count, SAMPLE_LIMIT, bounded, count};
use crate::table::Table;
use handover_core::error::{Class, Error, Result};
use handover_core::problem::Problems;
use handover_port::Port;
use handover_postgres::Session;
use handover_postgres::binding::has_subselect;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// By how much, in percent, `rows` may be missed unless the plan says otherwise.
pub(crate) const TOLERANCE: u32 = 10;
/// Of a table with more rows than these …
const LARGE: u64 = 1000;
/// … a condition that takes more than this share takes "nearly all".
const NEARLY_ALL: f64 = 0.9;

/// How many rows are expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// No more than these.
    pub at_most: Option<u64>,
    /// No fewer than these.
    pub at_least: Option<u64>,
    /// About these, as a dry run counted them.
    pub rows: Option<u64>,
    /// By how many percent `rows` may be missed: 10 unless given, 0 for exactly as many.
    #[schemars(range(max = 100))]
    pub within_percent: Option<u32>,
}

impl Expect {
    /// The fewest and the most rows that are allowed.
    #[must_use]
    pub fn range(&self) -> (u64, Option<u64>) {
        let Some(rows) = self.rows else { return (self.at_least.unwrap_or(0), self.at_most) };
        let percent = self.within_percent.unwrap_or(TOLERANCE);
        let off = u64::try_from(u128::from(rows) * u128::from(percent) / 100).unwrap_or(u64::MAX);
        (rows.saturating_sub(off), Some(rows.saturating_add(off)))
    }

    /// Sees that the bounds go together.
    pub fn check(&self, problems: &mut Problems) {
        let Expect { at_most, at_least, rows, within_percent } = self;
        let wrong = if rows.is_some() && (at_most.is_some() || at_least.is_some()) {
            "`rows` goes with `within_percent`, and not with `at_most` or `at_least`"
        } else if rows.is_none() && within_percent.is_some() {
            "`within_percent` needs `rows`"
        } else if rows.is_none() && at_most.is_none() && at_least.is_none() {
            "`expect` says nothing"
        } else if at_least.zip(*at_most).is_some_and(|(low, high)| low > high) {
            "`at_least` is more than `at_most`"
        } else if within_percent.is_some_and(|percent| percent > 100) {
            "`within_percent` is more than 100"
        } else {
            return;
        };
        problems
            .error(["expect"], wrong)
            .hint("e.g. expect: { rows: 500, within_percent: 10 }, or expect: { at_least: 1, at_most: 600 }");
    }
}

/// What a step says of the rows that it means.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meant<'a> {
    /// Its condition.
    pub condition: Option<&'a str>,
    /// How many it expects.
    pub expect: Option<&'a Expect>,
    /// Whether it takes them away.
    pub removes: bool,
}

/// Refuses before the first change when another number of rows matches than expected.
pub(crate) async fn assert(
    meant: Meant<'_>,
    cx: &Port,
    session: &mut Session,
    work: &Work<'_>,
) -> Result<()> {
    if read_progress(cx, session, work.unit).await?.last.is_some() {
        return Ok(());
    }
    let Some(expect) = meant.expect else {
        if !may_surprise(meant) {
            return Ok(());
        }
        let base = format!("from {} where ({}\n)", work.table.name.sql(), work.matching);
        let count = count(session, work.table, &base, &work.matching).await?;
        return match nearly_all(meant, session, work.table, &count).await? {
            Some(objection) => Err(objection),
            None => Ok(()),
        };
    };
    let (low, high) = expect.range();
    let enough = high.map_or(low, |high| high.saturating_add(1));
    if enough == 0 {
        return Ok(());
    }
    let limit = enough.min(i64::MAX.unsigned_abs());
    let n: i64 = session.query_one(&work.remaining_sql(limit), &[]).await?.get(0);
    let n = n.unsigned_abs();
    if let Some(high) = high.filter(|high| n > *high) {
        return Err(more_than_expected(high, &work.table.name.to_string()).on_database(session.database()));
    }
    if n < low {
        return Err(Error::new(
            Class::Invariant,
            format!("{n} rows of {} match, and no fewer than {low} were expected", work.table.name),
        )
        .on_database(session.database())
        .hint(
            "look at them with the query that `handover dry-run` shows; then correct `where` or `expect`",
        ));
    }
    Ok(())
}

/// Whether the rows may be others than who wrote the step thinks, with nothing in the plan that would show it.
///
/// A condition over a table's own columns alone is what it looks like, and to fill a new column of every row is common;
/// so for what only sets columns it takes a sub-select.
pub(crate) fn may_surprise(meant: Meant<'_>) -> bool {
    let Some(condition) = meant.condition else { return false };
    meant.expect.is_none()
        && !condition.trim().eq_ignore_ascii_case("true")
        && (meant.removes || has_subselect(condition))
}

/// What is to be said against a condition that takes nearly all rows of a table, where the plan does not say so.
pub(crate) async fn nearly_all(
    meant: Meant<'_>,
    session: &Session,
    table: &Table,
    count: &Count,
) -> Result<Option<Error>> {
    let (found, about) = match *count {
        Count::Exact(n) => (n, ""),
        Count::Sample { rows, .. } => (rows, "about "),
        Count::Estimate(_) => return Ok(None),
    };
    let nearly = |of: u64| of > LARGE && found as f64 > of as f64 * NEARLY_ALL;
    if !may_surprise(meant) || found as f64 <= LARGE as f64 * NEARLY_ALL {
        return Ok(None);
    }
    // What ANALYZE once found is only good for saying no.
    if table.estimated_rows.is_some_and(|n| !nearly(n) && n > found) {
        return Ok(None);
    }
    let sql = format!("select count(*), 0::float8 from {}", table.name.sql());
    let all = match bounded(session, SAMPLE_LIMIT, &sql).await? {
        Some((n, _)) => n,
        None => table.estimated_rows.unwrap_or(0),
    };
    Ok(nearly(all).then(|| {
        Error::new(
            Class::Invariant,
            format!(
                "`where` takes {about}{found} of the {all} rows of {}, nearly all, and nothing in the plan says that so many are meant",
                table.name
            ),
        )
        .on_database(session.database())
        .hint(format!(
            "look at them with the query that `handover dry-run` shows, and correct `where`; if they are meant, say so in the step: expect: {{ rows: {found} }}"
        ))
    }))
}

#[cfg(test)]
mod tests {
    use super::Expect;

    #[test]
    fn a_number_of_rows_is_a_range() {
        let range = |yaml: &str| serde_yaml::from_str::<Expect>(yaml).unwrap().range();
        assert_eq!(range("{ at_most: 5 }"), (0, Some(5)));
        assert_eq!(range("{ at_least: 5 }"), (5, None));
        assert_eq!(range("{ rows: 492 }"), (443, Some(541)));
        assert_eq!(range("{ rows: 492, within_percent: 0 }"), (492, Some(492)));
        assert_eq!(range("{ rows: 0 }"), (0, Some(0)));
    }
}
