//! What is to be done about one index, from what the catalog says of its name. The dry run shows it, and the run does it.

use super::index::Index;
use crate::postgres::index::Found;

/// How the index that is there compares with the plan's. The dry run asks by SELECTs alone ([`super::wanted`]); the run
/// builds the plan's on an empty table, which tells more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fit {
    /// The server understands the plan's, and where an index is there, it is the same.
    Fits,
    /// The server refuses the plan's; what it says.
    Refused(String),
    /// The one that is there has this other definition.
    Differs(String),
    /// It cannot be told; why.
    Unknown(String),
}

/// One act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// It stays as it is.
    Keep,
    /// Away with what is in its place.
    Drop {
        /// The statement.
        sql: String,
        /// What goes, in words.
        what: String,
    },
    /// It is built.
    Build {
        /// The statement.
        sql: String,
    },
}

impl Act {
    /// The statement that it executes.
    pub fn sql(&self) -> Option<&str> {
        match self {
            Act::Keep => None,
            Act::Drop { sql, .. } | Act::Build { sql } => Some(sql),
        }
    }
}

/// Why nothing is done, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What is in the way.
    pub text: String,
    /// What clears it.
    pub hint: String,
}

/// Decides. `ours`: whether the journal says that this run builds it. What is there and not ours is never touched. Where
/// it cannot be told whether it fits, it stays.
///
/// # Errors
/// What is in the way.
pub fn decide(index: &Index, found: &Found, fit: &Fit, ours: bool) -> Result<Vec<Act>, Refusal> {
    let name = &index.name;
    let refuse = |text: String, hint: String| Err(Refusal { text, hint });
    let build = || Act::Build { sql: index.statement() };
    let anew = |what: String| Ok(vec![Act::Drop { sql: index.drop_statement(), what }, build()]);
    match (found, fit) {
        (Found::Absent | Found::Valid, Fit::Refused(why)) => {
            refuse(format!("the server refuses index {name}: {why}"), "correct its definition".into())
        }
        (Found::Absent, _) => Ok(vec![build()]),
        (Found::Valid, Fit::Fits | Fit::Unknown(_)) => Ok(vec![Act::Keep]),
        (Found::Valid, Fit::Differs(_)) if ours => {
            anew(format!("index {name} was built to another definition before; building it anew"))
        }
        (Found::Valid, Fit::Differs(there)) => refuse(
            format!("an index {name} exists with another definition: {there}"),
            "choose another name for the index, or drop or rename the one that is there".into(),
        ),
        (Found::Invalid, _) if ours => {
            anew(format!("dropping what an interrupted build left of index {name}"))
        }
        (Found::Invalid, _) => refuse(
            format!("an INVALID index {name} exists that this run did not make"),
            format!(
                "nobody reads it and every write pays for it; `drop index concurrently {}`",
                index.qualified()
            ),
        ),
        (Found::Other(what), _) => refuse(
            format!("the name {name} belongs to {what}"),
            "choose another name for the index, or rename what has it now".into(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILD: &str = r#"create index concurrently "i" on "public"."t" (a)"#;
    const DROP: &str = r#"drop index concurrently if exists "public"."i""#;

    fn decided(found: &Found, fit: &Fit, ours: bool) -> String {
        let index = serde_json::json!({ "name": "i", "table": "t", "columns": ["a"] });
        let index: Index = serde_json::from_value(index).unwrap();
        match decide(&index, found, fit, ours) {
            Ok(acts) if acts == [Act::Keep] => "keep".into(),
            Ok(acts) => acts.iter().filter_map(Act::sql).collect::<Vec<_>>().join("; "),
            Err(Refusal { text, hint }) => {
                assert!(!hint.is_empty());
                format!("refused: {text}")
            }
        }
    }

    #[test]
    fn what_is_there_and_how_it_fits_decide() {
        let other = Found::Other("a table, view or sequence".into());
        let (fits, differs) = (Fit::Fits, Fit::Differs("create index i on t (b)".into()));
        let (unknown, refused) = (Fit::Unknown("no right".into()), Fit::Refused("no column a".into()));
        let anew = format!("{DROP}; {BUILD}");
        let is_refused = "refused: the server refuses index i: no column a";
        let differing = "refused: an index i exists with another definition: create index i on t (b)";
        let invalid = "refused: an INVALID index i exists that this run did not make";
        let taken = "refused: the name i belongs to a table, view or sequence";
        // What is found, how it fits, what is done about ours and about somebody else's.
        let table: &[(&Found, &Fit, &str, &str)] = &[
            (&Found::Absent, &fits, BUILD, BUILD),
            (&Found::Absent, &differs, BUILD, BUILD),
            (&Found::Absent, &unknown, BUILD, BUILD),
            (&Found::Absent, &refused, is_refused, is_refused),
            (&Found::Valid, &fits, "keep", "keep"),
            (&Found::Valid, &differs, &anew, differing),
            (&Found::Valid, &unknown, "keep", "keep"),
            (&Found::Valid, &refused, is_refused, is_refused),
            (&Found::Invalid, &fits, &anew, invalid),
            (&Found::Invalid, &differs, &anew, invalid),
            (&Found::Invalid, &unknown, &anew, invalid),
            (&Found::Invalid, &refused, &anew, invalid),
            (&other, &fits, taken, taken),
            (&other, &differs, taken, taken),
            (&other, &unknown, taken, taken),
            (&other, &refused, taken, taken),
        ];
        for (found, fit, ours, foreign) in table {
            assert_eq!(decided(found, fit, true), *ours, "ours: {found:?}, {fit:?}");
            assert_eq!(decided(found, fit, false), *foreign, "another's: {found:?}, {fit:?}");
        }
    }
}
