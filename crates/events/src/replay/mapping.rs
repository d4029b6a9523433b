//! What an event means on the new side: the operator's statements, with placeholders for what the event carries.
//!
//! `$key.col`, `$old.col`, `$new.col`, `$op` and `$at` are text, to be cast where the column is not;
//! `$key`, `$old` and `$new` alone are json objects, or NULL where the event has none. Each is a parameter of its own,
//! so nothing an application wrote ever becomes part of a statement's text, and a document that the server cannot take
//! apart (`\u0000`) spoils no other value of its event.

use crate::trigger::Operation;
use handover_core::error::{Error, Result};
use handover_core::problem::{Problems, Segment};
use handover_postgres::binding::assert_bound;
use handover_postgres::sql::{Token, statements, tokens};
use handover_postgres::{Session, TableName};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio_postgres::Statement;
use tokio_postgres::types::Type;

/// What the events of one table mean: for all operations, and for those that need it differently.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mapping {
    /// What an event does; see `Effect`.
    pub apply: Option<Apply>,
    /// A SELECT of one boolean: whether the event's effect is there already. Asked when `apply` changed nothing.
    pub already: Option<String>,
    /// Events without an effect on the new side.
    #[serde(default)]
    pub ignore: bool,
    /// Inserts, if they are to be treated otherwise.
    pub insert: Option<Effect>,
    /// Updates, likewise.
    pub update: Option<Effect>,
    /// Deletes, likewise.
    pub delete: Option<Effect>,
}

/// What one operation means.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Effect {
    /// The statements, with `$key.column`, `$old.column`, `$new.column`, `$op` and `$at` as text, and `$key`, `$old`
    /// and `$new` as json objects. All of them run in the transaction that marks the event as applied.
    pub apply: Option<Apply>,
    /// A SELECT of one boolean: whether the event's effect is there already. Asked when `apply` changed nothing.
    pub already: Option<String>,
    /// Events without an effect on the new side.
    #[serde(default)]
    pub ignore: bool,
}

/// One statement or several.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Apply {
    /// One.
    One(String),
    /// Several, executed in order.
    Several(Vec<String>),
}

impl Apply {
    fn statements(&self) -> &[String] {
        match self {
            Apply::One(one) => std::slice::from_ref(one),
            Apply::Several(several) => several,
        }
    }
}

impl Mapping {
    /// What an operation means here: its own effect, or the one for all operations.
    pub fn effect(&self, operation: Operation) -> Option<Effect> {
        let own = match operation {
            Operation::Insert => &self.insert,
            Operation::Update => &self.update,
            Operation::Delete => &self.delete,
        };
        own.clone().or_else(|| {
            (self.apply.is_some() || self.ignore).then(|| Effect {
                apply: self.apply.clone(),
                already: self.already.clone(),
                ignore: self.ignore,
            })
        })
    }

    /// Every SQL text with its place in the mapping and whether it is an `already`.
    pub fn texts(&self) -> Vec<(Vec<Segment>, &str, bool)> {
        let mut out = Vec::new();
        collect(None, self.apply.as_ref(), self.already.as_ref(), &mut out);
        for (name, effect) in [("insert", &self.insert), ("update", &self.update), ("delete", &self.delete)] {
            if let Some(effect) = effect {
                collect(Some(name), effect.apply.as_ref(), effect.already.as_ref(), &mut out);
            }
        }
        out
    }
}

fn collect<'a>(
    prefix: Option<&str>,
    apply: Option<&'a Apply>,
    already: Option<&'a String>,
    out: &mut Vec<(Vec<Segment>, &'a str, bool)>,
) {
    let place = |field: &str| -> Vec<Segment> {
        prefix.map(Segment::from).into_iter().chain([field.into()]).collect()
    };
    match apply {
        Some(Apply::One(text)) => out.push((place("apply"), text, false)),
        Some(Apply::Several(texts)) => {
            for (i, text) in texts.iter().enumerate() {
                let mut at = place("apply");
                at.push(i.into());
                out.push((at, text, false));
            }
        }
        None => {}
    }
    if let Some(text) = already {
        out.push((place("already"), text, true));
    }
}

/// A part of an event that a placeholder names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The key's columns.
    Key,
    /// The row as it was.
    Old,
    /// The row as it became.
    New,
}

/// What a parameter of a statement carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Param {
    /// A column, as text.
    Column(Part, String),
    /// A row, as a JSON object.
    Whole(Part),
    /// The operation.
    Op,
    /// When it was captured.
    At,
}

/// SQL with its placeholders replaced by parameters, each of which is text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rewritten {
    /// The statement to prepare.
    pub sql: String,
    /// What its parameters carry, from `$1` on.
    pub params: Vec<Param>,
}

/// Replaces the placeholders outside quotes and comments.
pub fn rewrite(text: &str) -> Result<Rewritten, String> {
    let mut out = Rewritten { sql: String::with_capacity(text.len()), params: Vec::new() };
    // The part of a placeholder whose column comes in double quotes, as the next token.
    let mut open: Option<Part> = None;
    for token in tokens(text) {
        let (range, code) = match token {
            Token::Code(range) => (range, true),
            Token::Quoted(range) | Token::Comment(range) => (range, false),
            Token::Semicolon(at) => (at..at + 1, false),
        };
        let piece = &text[range];
        if let Some(part) = open.take() {
            if piece.len() > 2 && piece.starts_with('"') && piece.ends_with('"') {
                out.column(part, &piece[1..piece.len() - 1].replace("\"\"", "\""));
                continue;
            }
            return Err("a placeholder ends in a dot; write e.g. `$key.id`".into());
        }
        if code {
            open = out.code(piece)?;
        } else {
            out.sql.push_str(piece);
        }
    }
    if open.is_some() {
        return Err("a placeholder ends in a dot; write e.g. `$key.id`".into());
    }
    Ok(out)
}

impl Rewritten {
    /// The columns that it names.
    pub fn columns(&self) -> impl Iterator<Item = (Part, &str)> {
        self.params.iter().filter_map(|param| match param {
            Param::Column(part, name) => Some((*part, name.as_str())),
            _ => None,
        })
    }

    fn column(&mut self, part: Part, column: &str) {
        self.param(Param::Column(part, column.to_owned()), "text");
    }

    fn param(&mut self, param: Param, of: &str) {
        let place = self.params.iter().position(|known| *known == param).unwrap_or_else(|| {
            self.params.push(param);
            self.params.len() - 1
        });
        let of = if of == "text" { "" } else { "::json" };
        self.sql.push_str(&format!("(${}::text{of})", place + 1));
    }

    /// Rewrites a piece without quotes; returns the part if it ends in one that waits for a quoted column.
    fn code(&mut self, piece: &str) -> Result<Option<Part>, String> {
        let word_end =
            |text: &str| text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
        let mut rest = piece;
        let mut before: Option<char> = None;
        while let Some(at) = rest.find('$') {
            before = rest[..at].chars().next_back().or(before);
            self.sql.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
                // A dollar within an identifier.
                self.sql.push('$');
                before = Some('$');
                continue;
            }
            let end = word_end(rest);
            let word = &rest[..end];
            rest = &rest[end..];
            before = Some('_');
            let part = match word {
                "key" => Part::Key,
                "old" => Part::Old,
                "new" => Part::New,
                "op" | "at" => {
                    self.param(if word == "op" { Param::Op } else { Param::At }, "text");
                    continue;
                }
                _ => {
                    return Err(format!(
                        "`${word}` is no placeholder; there are $key.column, $old.column, $new.column, $key, $old, $new, $op and $at"
                    ));
                }
            };
            let Some(after) = rest.strip_prefix('.') else {
                self.param(Param::Whole(part), "json");
                continue;
            };
            let end = word_end(after);
            if end == 0 {
                if after.is_empty() {
                    return Ok(Some(part));
                }
                return Err("a placeholder ends in a dot; write e.g. `$key.id`".into());
            }
            self.column(part, &after[..end]);
            rest = &after[end..];
        }
        self.sql.push_str(rest);
        Ok(None)
    }
}

/// Reports what the plan alone shows to be wrong with a mapping's texts. `known` says of a column whether events
/// can carry it, as far as the plan tells.
pub fn check(
    table: &TableName,
    mapping: &Mapping,
    known: impl Fn(Part, &str) -> Result<(), String>,
    problems: &mut Problems,
) {
    for (place, text, already) in mapping.texts() {
        let mut at = vec![Segment::from("events"), table.to_string().into()];
        at.extend(place);
        if statements(text).len() != 1 || text.trim_end().ends_with(';') && statements(text).len() > 1 {
            problems
                .error(at.clone(), "this is not one statement")
                .hint("write several as a list, one statement each");
            continue;
        }
        match rewrite(text) {
            Err(message) => {
                problems.error(at, message).hint("docs/plans.md#replay says what an event carries");
            }
            Ok(rewritten) => {
                for (part, column) in rewritten.columns() {
                    if let Err(message) = known(part, column) {
                        problems
                            .error(at.clone(), message)
                            .hint("name a column of the capture's `key` or `columns`");
                    }
                }
                let first = text.trim_start().split(|c: char| !c.is_alphabetic()).next().unwrap_or_default();
                if already
                    && !["select", "with", "values", "table"].contains(&first.to_ascii_lowercase().as_str())
                {
                    problems.error(at, "`already` only looks: it is a SELECT of one boolean").hint(
                        "e.g. `already: select not active from oauth_token where signature = $key.signature`",
                    );
                }
            }
        }
    }
}

/// One prepared statement.
#[derive(Clone)]
pub struct Prepared {
    /// The statement.
    pub statement: Statement,
    /// What its parameters carry.
    pub params: Arc<[Param]>,
}

/// What an operation on a table means, prepared on one session.
#[derive(Clone, Default)]
pub struct PreparedEffect {
    /// What it does.
    pub apply: Vec<Prepared>,
    /// Whether that is so already.
    pub already: Option<Prepared>,
    /// Whether it means nothing here.
    pub ignore: bool,
}

/// All effects of a mapping, by table as events name it and operation.
pub type Effects = HashMap<(String, &'static str), PreparedEffect>;

/// Prepares every mapping on a session of the new side.
pub async fn prepare(session: &Session, events: &BTreeMap<TableName, Mapping>) -> Result<Effects> {
    let mut out = Effects::new();
    for (table, mapping) in events {
        for operation in [Operation::Insert, Operation::Update, Operation::Delete] {
            let Some(effect) = mapping.effect(operation) else { continue };
            let place = format!("the mapping for {operation} of {table}");
            let mut prepared = PreparedEffect { ignore: effect.ignore, ..Default::default() };
            if !effect.ignore {
                for text in effect.apply.iter().flat_map(Apply::statements) {
                    prepared.apply.push(prepare_one(session, text, &place).await?);
                }
                if let Some(text) = &effect.already {
                    let already = prepare_one(session, text, &place).await?;
                    let boolean = already.statement.columns();
                    if boolean.len() != 1 || *boolean[0].type_() != Type::BOOL {
                        return Err(Error::data(format!("{place}: `already` does not select one boolean"))
                            .on_database(session.database())
                            .hint(
                                "e.g. `select not active from oauth_token where signature = $key.signature`",
                            ));
                    }
                    prepared.already = Some(already);
                }
            }
            out.insert((table.to_string(), operation.as_str()), prepared);
        }
    }
    Ok(out)
}

async fn prepare_one(session: &Session, text: &str, place: &str) -> Result<Prepared> {
    let rewritten =
        rewrite(text).map_err(|m| Error::usage(format!("{place}: {m}")).hint("correct the plan"))?;
    let sql = statements(&rewritten.sql).first().copied().unwrap_or_default().to_owned();
    let statement = session.prepare(&sql).await.map_err(|e| {
        e.context(place)
            .or_hint("correct the statement in the plan, or the schema it speaks of, then `handover resume`")
    })?;
    assert_bound(session, &sql, place).await?;
    Ok(Prepared { statement, params: rewritten.params.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_become_parameters() {
        let sql = |text: &str| rewrite(text).unwrap().sql;
        assert_eq!(
            sql("update t set a = $new.a::int where id = $key.id and b <> '$new.b' and c < $new.a::int"),
            "update t set a = ($1::text)::int where id = ($2::text) and b <> '$new.b' and c < ($1::text)::int"
        );
        assert_eq!(rewrite("select $op || $at").unwrap().params, [Param::Op, Param::At]);
        let odd = rewrite("select $key.\"Odd \"\"name\"").unwrap();
        assert_eq!(
            (odd.sql.as_str(), &odd.params[..]),
            ("select ($1::text)", &[Param::Column(Part::Key, "Odd \"name".into())][..])
        );
        assert_eq!(sql("select a$key, $$ $key.a $$ -- $new.x"), "select a$key, $$ $key.a $$ -- $new.x");
        assert!(rewrite("delete from t").unwrap().params.is_empty());
        assert_eq!(sql("select $new"), "select ($1::text::json)");
        for bad in ["select $1", "select $foo.bar", "select $key.", "select $key.'a'", "select $"] {
            assert!(rewrite(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_placeholder_names_its_column() {
        let rewritten = rewrite("select $key.a, $old.b, $new.\"c\"").unwrap();
        let columns: Vec<_> = rewritten.columns().collect();
        assert_eq!(columns, [(Part::Key, "a"), (Part::Old, "b"), (Part::New, "c")]);
    }
}
