//! What could be read of a plan.

use super::file::DatabaseSpec;
use crate::problem::Path;
use crate::steps::{Links, Step};
use crate::value::EnvString;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A plan's content, as far as it could be read.
#[derive(Debug, Default)]
pub struct Checked {
    /// Its name.
    pub name: String,
    /// Names of the databases that are mappings with a `url`.
    pub spelled_out: BTreeSet<String>,
    /// Its databases.
    pub databases: BTreeMap<String, DatabaseSpec>,
    /// Its control database.
    pub control: Option<EnvString>,
    /// Its queue.
    pub queue: Option<EnvString>,
    /// The name of our own schema.
    pub schema: String,
    /// Its steps.
    pub steps: Arc<[Step]>,
    /// Which of them builds on which.
    pub links: Arc<Links>,
    /// Where the steps stand in the document, in the same order.
    pub places: Vec<StepPlace>,
}

/// Where a step stands.
#[derive(Debug, Clone)]
pub struct StepPlace {
    /// Its path.
    pub path: Path,
    /// The kind's key as written.
    pub key: String,
    /// What is under that key.
    pub body: Value,
}

impl StepPlace {
    /// The path of the kind's own mapping.
    #[must_use]
    pub fn kind(&self) -> Path {
        self.path.join(self.key.as_str())
    }
}

/// Whether a text can name something: letters and digits, and a few marks inside.
pub fn is_name(text: &str, marks: &str) -> bool {
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || marks.contains(c))
}
