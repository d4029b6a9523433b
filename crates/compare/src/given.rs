//! What earlier steps of a plan say of both sides.

use handover_core::event::{RunId, StepId};
use handover_postgres::TableName;

/// What earlier steps say.
#[derive(Debug, Clone, Copy, Default)]
pub struct Given<'a> {
    /// The copy that made "after" from "before", if an earlier step did: what it leaves out is nothing to compare.
    pub carried: Option<Carried<'a>>,
    /// The run and step of that copy, if it may have set rows aside.
    pub aside: Option<(RunId, &'a StepId)>,
    /// The database in which the baseline is that is compared with.
    pub baseline_on: Option<&'a str>,
}

/// What an earlier copy carried from one side to the other.
#[derive(Clone, Copy)]
pub struct Carried<'a>(&'a (dyn Fn(&TableName) -> bool + Send + Sync));

impl<'a> Carried<'a> {
    /// A copy that carried the rows of the tables of which this is true, as far as names say.
    #[must_use]
    pub fn new(takes_rows: &'a (dyn Fn(&TableName) -> bool + Send + Sync)) -> Self {
        Carried(takes_rows)
    }

    /// Whether it carried the rows of a table.
    #[must_use]
    pub fn takes_rows(&self, table: &TableName) -> bool {
        (self.0)(table)
    }
}

impl std::fmt::Debug for Carried<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Carried")
    }
}
