//! The name of our own schema, in the one place that knows it. A plan may choose it (`schema:`), because an application
//! may have a schema `handover` of its own; the queue in Postgres follows it as `NAME_queue`.
//!
//! A process works on one plan, so the name is chosen once, before anything is connected, and stands in SQL as
//! `format!("select … from {OURS}.fence …")`. It is unquoted everywhere: only names that need no quotes are let in.
//! Settings (`handover.batch`), roles, application names, triggers, slots and publications are no schema and do not
//! follow it.

use handover_core::error::{Error, Result};
use std::fmt;
use std::sync::OnceLock;

/// The name unless a plan chooses one.
pub const DEFAULT: &str = "handover";

/// So that the names of the queue's schema and of our functions' files stay far below the server's 63.
const LONGEST: usize = 40;

static CHOSEN: OnceLock<String> = OnceLock::new();

/// Our schema, written as SQL and people write it: `{OURS}.fence`, `{OURS}_queue.message`.
#[derive(Debug, Clone, Copy)]
pub struct Ours;

/// Our schema; see [`Ours`].
pub const OURS: Ours = Ours;

impl Ours {
    /// The name. Asking for it settles it: it cannot be chosen later.
    #[must_use]
    pub fn name(self) -> &'static str {
        CHOSEN.get_or_init(|| DEFAULT.to_owned())
    }
}

impl fmt::Display for Ours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Both schemas that are ours: of the tables, and of the queue.
#[must_use]
pub fn schemas() -> [String; 2] {
    both(OURS.name())
}

/// Both schemas that are ours under a name.
#[must_use]
pub fn both(name: &str) -> [String; 2] {
    [name.to_owned(), format!("{name}_queue")]
}

/// Whether a schema of this name is ours.
#[must_use]
pub fn is_ours(schema: &str) -> bool {
    schemas().iter().any(|ours| ours == schema)
}

/// What of `--schema` a command needs that is to be pasted: nothing where the name is not chosen.
#[must_use]
pub fn option(name: &str) -> String {
    if name == DEFAULT { String::new() } else { format!(" --schema {name}") }
}

/// What is wrong with a name, if anything; whether it is a word of the server's SQL, only a server can tell
/// ([`crate::plain::assert_plain`]).
#[must_use]
pub fn problem(name: &str) -> Option<String> {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !plain || name.len() > LONGEST {
        return Some(format!(
            "`{name}` cannot name Handover's own schema: it is written without quotes, in small letters, digits and `_`, \
             beginning with a letter or `_`, at most {LONGEST}"
        ));
    }
    if name.starts_with("pg_") || name == "information_schema" {
        return Some(format!("schema `{name}` is the server's own, and cannot be Handover's"));
    }
    (name == "public").then(|| "schema `public` is everybody's, and cannot be Handover's own".to_owned())
}

/// Chooses the name for this process. To choose the same one again is fine.
///
/// # Errors
/// A name that cannot be one; another one that is in use already.
pub fn choose(name: &str) -> Result<()> {
    if let Some(problem) = problem(name) {
        return Err(Error::usage(problem).hint("choose another `schema:`, such as `handover`"));
    }
    let chosen = CHOSEN.get_or_init(|| name.to_owned());
    if chosen == name {
        return Ok(());
    }
    Err(Error::internal(format!("this process works in schema {chosen}, and cannot turn to schema {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_holds_without_a_choice_and_is_settled_by_being_used() {
        assert_eq!(format!("select 1 from {OURS}.fence"), "select 1 from handover.fence");
        assert_eq!(schemas(), ["handover", "handover_queue"]);
        assert!(is_ours("handover_queue") && !is_ours("handover_queues"));
        choose(DEFAULT).unwrap();
        assert!(choose("upkeep").unwrap_err().to_string().contains("works in schema handover"));
        assert_eq!((option(DEFAULT), option("upkeep")), (String::new(), " --schema upkeep".into()));
    }

    #[test]
    fn names_that_need_quotes_or_are_taken_are_refused() {
        for good in ["handover", "upkeep", "_h1", "a"] {
            assert_eq!(problem(good), None);
        }
        let long = "a".repeat(41);
        for bad in [
            "",
            "Upkeep",
            "up-keep",
            "up keep",
            "1up",
            "ü",
            "a\"b",
            "a.b",
            &long,
            "pg_own",
            "public",
            "information_schema",
        ] {
            assert!(problem(bad).is_some(), "{bad}");
        }
    }
}
