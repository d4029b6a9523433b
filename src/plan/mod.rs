//! Plans: a first reader; the checker replaces it.

use crate::error::{Error, Result};
use crate::postgres::Databases;
use crate::postgres::connect::Target;
use crate::steps::{KINDS, Step};
use crate::ui::Format;
use crate::value::EnvString;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A plan.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// Its folder.
    pub base: PathBuf,
    /// Its databases.
    pub databases: BTreeMap<String, EnvString>,
    /// Where the journal is.
    pub control: EnvString,
    /// The queue.
    pub queue: Option<EnvString>,
    /// Its steps.
    pub steps: Arc<[Step]>,
    text: String,
}

/// Problems.
#[derive(Debug)]
pub struct PlanErrors(Error);

impl PlanErrors {
    /// Shows them.
    pub fn show(&self, format: Format) {
        crate::ui::error(format, &self.0);
    }
}

impl Plan {
    /// Reads one.
    pub fn load(path: &Path) -> Result<Plan, PlanErrors> {
        Self::read(path).map_err(PlanErrors)
    }

    fn read(path: &Path) -> Result<Plan> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::usage(e.to_string()))?;
        let bad = |e: String| Error::usage(e);
        let value: Value = serde_yaml::from_str(&text).map_err(|e| bad(e.to_string()))?;
        let get = |k: &str| value.get(k).cloned().unwrap_or(Value::Null);
        let mut steps = Vec::new();
        for step in get("steps").as_array().into_iter().flatten() {
            let kind =
                KINDS.iter().find(|k| step.get(k.name).is_some()).ok_or_else(|| bad("no kind".into()))?;
            let field = |k: &str| step.get(k).cloned().unwrap_or(Value::Null);
            steps.push(Step {
                id: serde_json::from_value(field("id")).map_err(|e| bad(e.to_string()))?,
                title: None,
                timeout: serde_json::from_value(field("timeout")).map_err(|e| bad(e.to_string()))?,
                retry: serde_json::from_value::<Option<_>>(field("retry"))
                    .map_err(|e| bad(e.to_string()))?
                    .unwrap_or_default(),
                on_failure: serde_json::from_value::<Option<_>>(field("on_failure"))
                    .map_err(|e| bad(e.to_string()))?
                    .unwrap_or_default(),
                kind_name: kind.name,
                kind: (kind.parse)(field(kind.name)).map_err(|e| bad(e.to_string()))?,
            });
        }
        Ok(Plan {
            name: serde_json::from_value(get("name")).map_err(|e| bad(e.to_string()))?,
            base: path.parent().unwrap_or(Path::new(".")).to_path_buf(),
            databases: serde_json::from_value(get("databases")).map_err(|e| bad(e.to_string()))?,
            control: serde_json::from_value(get("control")).map_err(|e| bad(e.to_string()))?,
            queue: serde_json::from_value(get("queue")).map_err(|e| bad(e.to_string()))?,
            steps: steps.into(),
            text,
        })
    }

    /// Resolved databases.
    pub fn targets(&self) -> Result<BTreeMap<String, Target>> {
        self.databases
            .iter()
            .map(|(name, url)| Ok((name.clone(), Target { url: url.resolve()?, reader: None })))
            .collect()
    }

    /// Warnings.
    pub fn show_warnings(&self, _format: Format) {}

    /// The digest.
    pub async fn digest(&self, _databases: &Databases) -> Result<String> {
        use sha2::{Digest, Sha256};
        Ok(Sha256::digest(self.text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect())
    }
}
