//! Identifiers and literals, quoted the way the server's own `quote_ident` and `quote_literal` do.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// An identifier in double quotes, whatever it contains.
#[must_use]
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string literal; backslashes make it an escape string, so that `standard_conforming_strings` is irrelevant.
#[must_use]
pub fn quote_literal(text: &str) -> String {
    let body = text.replace('\'', "''");
    if body.contains('\\') { format!(" E'{}'", body.replace('\\', "\\\\")) } else { format!("'{body}'") }
}

/// A table as plans write it: `name` (in `public`) or `schema.name`. A part with dots or quotes of its own is
/// written in double quotes, as in SQL; unlike SQL, case is kept as written.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend(
    "description" = "A table: `name` (in `public`) or `schema.name`; a part with dots goes in double quotes.",
    "pattern" = r#"^("([^"]|"")+"|[^".]+)(\.("([^"]|"")+"|[^".]+))?$"#,
))]
pub struct TableName {
    /// Schema, `public` unless written.
    pub schema: String,
    /// Name within it.
    pub name: String,
}

impl TableName {
    /// A table by its parts.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        TableName { schema: schema.into(), name: name.into() }
    }

    /// Both parts quoted, ready for SQL.
    #[must_use]
    pub fn sql(&self) -> String {
        format!("{}.{}", quote_ident(&self.schema), quote_ident(&self.name))
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |text: &str| {
            if text.contains(['.', '"']) { quote_ident(text) } else { text.to_owned() }
        };
        if self.schema != "public" {
            write!(f, "{}.", part(&self.schema))?;
        }
        f.write_str(&part(&self.name))
    }
}

impl From<TableName> for String {
    fn from(table: TableName) -> Self {
        table.to_string()
    }
}

impl TryFrom<String> for TableName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut parts = vec![String::new()];
        let mut quoted = false;
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            let Some(part) = parts.last_mut() else { break };
            match c {
                '"' if quoted && chars.peek() == Some(&'"') => {
                    chars.next();
                    part.push('"');
                }
                '"' => quoted = !quoted,
                '.' if !quoted => parts.push(String::new()),
                _ => part.push(c),
            }
        }
        if quoted || parts.iter().any(String::is_empty) {
            return Err(format!("`{text}` is not a table name; write `table` or `schema.table`"));
        }
        match <[String; 2]>::try_from(parts) {
            Ok([schema, name]) => Ok(TableName { schema, name }),
            Err(parts) => match <[String; 1]>::try_from(parts) {
                Ok([name]) => Ok(TableName::new("public", name)),
                Err(_) => Err(format!("`{text}` has too many parts; write `table` or `schema.table`")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_names_round_trip() {
        for (text, schema, name) in [
            ("t", "public", "t"),
            ("s.t", "s", "t"),
            ("\"a.b\".\"c\"\"d\"", "a.b", "c\"d"),
            ("Übung", "public", "Übung"),
        ] {
            let table = TableName::try_from(text.to_owned()).unwrap();
            assert_eq!((table.schema.as_str(), table.name.as_str()), (schema, name));
            assert_eq!(TableName::try_from(table.to_string()).unwrap(), table);
        }
        for bad in ["", "a.", "a.b.c", "\"a", "."] {
            assert!(TableName::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn literals_are_safe() {
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\'b"), " E'a\\\\''b'");
    }
}
