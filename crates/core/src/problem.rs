//! Problems of a plan: collected all at once, each with the path of the place it speaks of.

use std::fmt;

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing; the plan may run.
    Warning,
    /// The plan is refused.
    Error,
}

/// One step on the way from a document's root to a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Segment {
    /// A mapping's key.
    Key(String),
    /// A sequence's index, from 0.
    Index(usize),
}

impl From<&str> for Segment {
    fn from(key: &str) -> Self {
        Segment::Key(key.to_owned())
    }
}

impl From<String> for Segment {
    fn from(key: String) -> Self {
        Segment::Key(key)
    }
}

impl From<usize> for Segment {
    fn from(index: usize) -> Self {
        Segment::Index(index)
    }
}

/// The path of a node in a plan, e.g. `steps[2].copy.jobs`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Path(pub Vec<Segment>);

impl Path {
    /// The path one deeper.
    #[must_use]
    pub fn join(&self, segment: impl Into<Segment>) -> Path {
        let mut path = self.clone();
        path.0.push(segment.into());
        path
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Key(key) if i == 0 => write!(f, "{key}")?,
                Segment::Key(key) => write!(f, ".{key}")?,
                Segment::Index(n) => write!(f, "[{n}]")?,
            }
        }
        Ok(())
    }
}

/// A problem, where it is and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// How bad.
    pub severity: Severity,
    /// Which node.
    pub path: Path,
    /// Whether the key of that node is meant rather than its value.
    pub at_key: bool,
    /// What is wrong, in one sentence without a full stop.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Problem {
    /// Adds what to do about it.
    pub fn hint(&mut self, hint: impl Into<String>) -> &mut Self {
        self.hint = Some(hint.into());
        self
    }

    /// Points at the key instead of the value.
    pub fn at_key(&mut self) -> &mut Self {
        self.at_key = true;
        self
    }
}

/// Collects problems below one node. A step kind gets one that stands at its own mapping.
#[derive(Debug, Default)]
pub struct Problems {
    base: Path,
    list: Vec<Problem>,
}

impl Problems {
    /// An empty list at the document's root.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `f` with the base moved to `path`.
    pub fn within<T>(&mut self, path: Path, f: impl FnOnce(&mut Self) -> T) -> T {
        let outer = std::mem::replace(&mut self.base, path);
        let result = f(self);
        self.base = outer;
        result
    }

    /// Where this list stands now.
    #[must_use]
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// An error at `path`, which is relative to the base.
    pub fn error<S: Into<Segment>>(
        &mut self,
        path: impl IntoIterator<Item = S>,
        message: impl Into<String>,
    ) -> &mut Problem {
        self.push(Severity::Error, path, message)
    }

    /// A warning at `path`, which is relative to the base.
    pub fn warning<S: Into<Segment>>(
        &mut self,
        path: impl IntoIterator<Item = S>,
        message: impl Into<String>,
    ) -> &mut Problem {
        self.push(Severity::Warning, path, message)
    }

    fn push<S: Into<Segment>>(
        &mut self,
        severity: Severity,
        path: impl IntoIterator<Item = S>,
        message: impl Into<String>,
    ) -> &mut Problem {
        let mut full = self.base.clone();
        full.0.extend(path.into_iter().map(Into::into));
        self.list.push(Problem { severity, path: full, at_key: false, message: message.into(), hint: None });
        let last = self.list.len() - 1;
        &mut self.list[last]
    }

    /// Whether any of them refuses the plan.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.list.iter().any(|p| p.severity == Severity::Error)
    }

    /// All of them, in the order found.
    #[must_use]
    pub fn into_vec(self) -> Vec<Problem> {
        self.list
    }

    /// All of them, in the order found.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.list.iter()
    }
}

/// The candidate that a misspelt word most likely meant.
#[must_use]
pub fn suggest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// A count with its noun.
#[must_use]
pub fn count(n: usize, one: &str) -> String {
    format!("{n} {one}{}", if n == 1 { "" } else { "s" })
}

/// The first few of a list in words, and how many more there are.
#[must_use]
pub fn few<T: std::fmt::Display>(list: &[T]) -> String {
    let shown: Vec<String> = list.iter().take(5).map(ToString::to_string).collect();
    match list.len() {
        0..=5 => shown.join(", "),
        n => format!("{} and {} more", shown.join(", "), n - 5),
    }
}
