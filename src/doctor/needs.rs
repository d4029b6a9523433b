//! What the steps of a database ask of the role that executes them.

use crate::steps::{Access, Need, StepKind};

/// What these kinds need, without repetition.
#[must_use]
pub fn of(kinds: &[(&dyn StepKind, Access)]) -> Vec<Need> {
    let mut out: Vec<Need> =
        kinds.iter().flat_map(|(kind, access)| kind.needs(*access).iter().copied()).collect();
    if kinds.iter().any(|(_, access)| *access == Access::Write) {
        out.push(Need::CreateInDatabase);
    }
    out.sort_unstable();
    out.dedup();
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steps::kinds;
    use serde_json::{Value, json};

    fn needs(name: &str, options: Value, access: Access) -> Vec<Need> {
        let kind = kinds().iter().find(|kind| kind.name == name).unwrap();
        of(&[(&*(kind.parse)(options).unwrap(), access)])
    }

    #[test]
    fn who_only_reads_needs_no_owner() {
        let verify = json!({ "before": "blue", "after": "green", "row_counts": true });
        assert_eq!(needs("verify", verify, Access::Read), [Need::ReadEverything, Need::Monitor]);
        let index = json!({ "on": "blue", "indexes": [{ "name": "i", "table": "t", "columns": ["c"] }] });
        assert!(needs("create_index", index, Access::Write).contains(&Need::CreateInDatabase));
        let approve = json!({ "message": "flip?" });
        assert_eq!(needs("approve", approve, Access::Read), []);
    }
}
