//! Small values that plans are made of: durations, strings with environment references, secrets.

use crate::error::{Error, Result};
use crate::redact::{self, Redactor};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::borrow::Cow;
use std::fmt;

pub use crate::connection_string::{keywords, percent_decoded};
pub use crate::secret::Secret;

/// The first bytes of a text's SHA-256 in hexadecimal digits, for names that must not meet by chance.
#[must_use]
pub fn fingerprint(text: &str, bytes: usize) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(text.as_bytes()).iter().take(bytes).map(|b| format!("{b:02x}")).collect()
}

/// A length of time as people write it: `300ms`, `2s`, `10m`, `2h 30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(pub std::time::Duration);

impl Duration {
    /// That many seconds.
    #[must_use]
    pub const fn secs(n: u64) -> Self {
        Duration(std::time::Duration::from_secs(n))
    }

    /// That many milliseconds.
    #[must_use]
    pub const fn millis(n: u64) -> Self {
        Duration(std::time::Duration::from_millis(n))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", humantime::format_duration(self.0))
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map(Duration).map_err(|e| {
            de::Error::custom(format!("`{text}` is not a duration ({e}); write e.g. `500ms`, `30s`, `2h`"))
        })
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A length of time such as `500ms`, `30s`, `10m` or `2h 30m`.",
            "pattern": r"^\s*\d+\s*[a-z]+(\s*\d+\s*[a-z]+)*\s*$"
        })
    }
}

/// Text in which `${NAME}` stands for an environment variable (`$${` for a literal `${`).
///
/// It is shown and kept unresolved, so that what the environment supplies never reaches a log or the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct EnvString(pub String);

impl EnvString {
    /// The text with its references filled in. What the environment supplied is known as a secret from here on
    /// ([`redact`]).
    ///
    /// # Errors
    /// A variable that is not set, or a reference that is not closed.
    pub fn resolve(&self) -> Result<Secret> {
        let mut out = String::with_capacity(self.0.len());
        let mut supplied = Vec::new();
        for piece in pieces(&self.0)? {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Variable(name) => {
                    let value = std::env::var(name).map_err(|e| match e {
                        std::env::VarError::NotPresent => unusable(name, "is not set"),
                        std::env::VarError::NotUnicode(_) => unusable(name, "is not UTF-8"),
                    })?;
                    out.push_str(&value);
                    supplied.push(Secret::new(value));
                }
            }
        }
        let out = Secret::new(out);
        if !supplied.is_empty() {
            supplied.push(out.clone());
            redact::learn(&supplied);
        }
        Ok(out)
    }

    /// The same for an address, which cannot be blank: then the variable behind it is named.
    ///
    /// # Errors
    /// A variable that is not set, or nothing in those there are.
    pub fn address(&self) -> Result<Secret> {
        let out = self.resolve()?;
        match (out.expose().trim().is_empty(), self.variables()?.first()) {
            (true, Some(name)) => Err(unusable(name, "is empty")),
            _ => Ok(out),
        }
    }

    /// The variables it refers to.
    ///
    /// # Errors
    /// A reference that is not closed.
    pub fn variables(&self) -> Result<Vec<&str>> {
        Ok(pieces(&self.0)?
            .into_iter()
            .filter_map(|piece| match piece {
                Piece::Variable(name) => Some(name),
                Piece::Text(_) => None,
            })
            .collect())
    }
}

impl fmt::Display for EnvString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Redactor {
    /// What the environment supplies to `text`, the whole that it makes, and the passwords in either.
    pub fn add_env(&mut self, text: &EnvString) {
        let variables = text.variables().unwrap_or_default();
        if variables.is_empty() {
            return;
        }
        for value in variables.iter().filter_map(|name| std::env::var(name).ok()) {
            self.add_url(&Secret::new(value));
        }
        if let Ok(whole) = text.resolve() {
            self.add_url(&whole);
        }
    }
}

fn unusable(name: &str, why: &str) -> Error {
    Error::usage(format!("environment variable {name} {why}"))
        .hint(format!("set it, e.g. `export {name}=…`, or in the environment of the service that runs this"))
}

enum Piece<'a> {
    Text(&'a str),
    Variable(&'a str),
}

fn pieces(text: &str) -> Result<Vec<Piece<'_>>> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            out.push(Piece::Text(&rest[..at - 1]));
            out.push(Piece::Text("${"));
            rest = &rest[at + 2..];
            continue;
        }
        out.push(Piece::Text(&rest[..at]));
        let after = &rest[at + 2..];
        let end = after.find('}').ok_or_else(|| {
            Error::usage(format!("`{text}` has a `${{` without its `}}`"))
                .hint("write `${NAME}`, or `$${` for a literal `${`")
        })?;
        let name = &after[..end];
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(Error::usage(format!("`${{{name}}}` is not the name of an environment variable"))
                .hint("use letters, digits and underscores"));
        }
        out.push(Piece::Variable(name));
        rest = &after[end + 1..];
    }
    out.push(Piece::Text(rest));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_found_and_escapes_kept() {
        let text = EnvString("a ${ONE} b $${TWO} ${THREE}".into());
        assert_eq!(text.variables().unwrap(), ["ONE", "THREE"]);
        assert!(EnvString("${oops".into()).variables().is_err());
        assert!(EnvString("${a b}".into()).variables().is_err());
        assert_eq!(EnvString("$${x}".into()).resolve().unwrap().expose(), "${x}");
    }
}
