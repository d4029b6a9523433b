//! One captured event, as a message brings it or the outbox keeps it.

use super::mapping::{Param, Part};
use crate::json::{members, string};
use crate::stream::MARKER;
use bytes::Bytes;
use handover_core::error::{Error, Result};
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::HashMap;

/// An event of a known place in its partition.
#[derive(Debug, Clone)]
pub struct Event {
    pub number: i64,
    pub table: String,
    pub op: String,
    /// The transaction on the old side that wrote it.
    pub txid: u64,
    /// The key as text, to tell keys apart.
    pub key: String,
    /// The fence marker's identity, if it is one.
    pub marker: Option<i64>,
    /// Its length in the outbox, if the message only says that it is there.
    pub stored: Option<usize>,
    at: String,
    payload: Bytes,
}

#[derive(Deserialize)]
struct Envelope {
    number: i64,
    table: String,
    op: String,
    txid: String,
    at: Option<String>,
    key: serde_json::Value,
    /// The old side has the rest, and it is so long.
    bytes: Option<usize>,
}

impl Event {
    /// Reads a message's payload.
    pub fn parse(number: i64, payload: Bytes) -> Result<Event> {
        let broken = |why: String| {
            Error::internal(format!("message {number} is not an event of ours ({why})"))
                .hint("somebody else publishes to this stream? The outbox still has the event")
        };
        let text = std::str::from_utf8(&payload).map_err(|e| broken(e.to_string()))?;
        // The error would quote the payload's values.
        let envelope: Envelope =
            serde_json::from_str(text).map_err(|e| broken(format!("at column {}", e.column())))?;
        if envelope.number != number {
            return Err(broken("it has another number inside".into()));
        }
        let marker = if envelope.op == MARKER { envelope.key["marker"].as_i64() } else { None };
        Ok(Event {
            number,
            table: envelope.table,
            op: envelope.op,
            txid: envelope.txid.parse().map_err(|_| broken("it names no transaction".into()))?,
            key: envelope.key.to_string(),
            marker,
            stored: envelope.bytes,
            at: envelope.at.unwrap_or_default(),
            payload,
        })
    }

    /// How many bytes it takes to apply it.
    pub fn size(&self) -> usize {
        self.stored.unwrap_or(self.payload.len())
    }

    /// All of it, as JSON.
    pub fn json(&self) -> &str {
        std::str::from_utf8(&self.payload).unwrap_or_default()
    }

    /// An error that is not the event's own, with where it happened.
    pub fn blame(&self, error: Error) -> Error {
        error.context(format!("event {} ({} of {})", self.number, self.op, self.table))
    }

    /// Takes it apart, for the parameters of statements.
    pub fn fields(&self) -> Result<Fields<'_>> {
        let broken = || {
            Error::internal(format!("event {} ({} of {}) cannot be read", self.number, self.op, self.table))
        };
        let all: HashMap<Cow<'_, str>, &str> = members(self.json()).ok_or_else(broken)?.into_iter().collect();
        let forms: HashMap<Cow<'_, str>, &str> = all
            .get("forms")
            .copied()
            .filter(|raw| raw.starts_with('{'))
            .and_then(members)
            .unwrap_or_default()
            .into_iter()
            .collect();
        let row = |name: &str| -> Result<Option<Row<'_>>> {
            let Some(json) = all.get(name).copied().filter(|raw| raw.starts_with('{')) else {
                return Ok(None);
            };
            let columns = members(json).ok_or_else(broken)?.into_iter().collect();
            let forms = forms
                .get(name)
                .copied()
                .filter(|raw| raw.starts_with('{'))
                .and_then(members)
                .unwrap_or_default()
                .into_iter()
                .collect();
            Ok(Some(Row { json, columns, forms }))
        };
        Ok(Fields { event: self, key: row("key")?, old: row("old")?, new: row("new")? })
    }
}

/// One row of an event.
struct Row<'a> {
    json: &'a str,
    columns: HashMap<Cow<'a, str>, &'a str>,
    /// Columns whose text the JSON image does not tell: the text, or 1 where it is what the image holds.
    forms: HashMap<Cow<'a, str>, &'a str>,
}

/// An event taken apart.
pub struct Fields<'a> {
    event: &'a Event,
    key: Option<Row<'a>>,
    old: Option<Row<'a>>,
    new: Option<Row<'a>>,
}

impl<'a> Fields<'a> {
    /// The value of a placeholder; None is NULL.
    pub fn get(&self, param: &Param) -> Option<Cow<'a, str>> {
        match param {
            Param::Op => Some(Cow::Borrowed(&self.event.op)),
            Param::At => Some(Cow::Borrowed(&self.event.at)),
            Param::Whole(part) => self.row(*part).map(|row| Cow::Borrowed(row.json)),
            Param::Column(part, name) => self.row(*part)?.text(name),
        }
    }

    fn row(&self, part: Part) -> Option<&Row<'a>> {
        match part {
            Part::Key => self.key.as_ref(),
            Part::Old => self.old.as_ref(),
            Part::New => self.new.as_ref(),
        }
    }
}

impl<'a> Row<'a> {
    fn text(&self, name: &str) -> Option<Cow<'a, str>> {
        let image = self.columns.get(name).copied();
        let raw = match self.forms.get(name).copied() {
            Some("1") => return image.map(Cow::Borrowed),
            Some(form) => form,
            None => image?,
        };
        match raw {
            "null" => None,
            // What is wrong with an escape would have been refused by Postgres.
            _ if raw.starts_with('"') => Some(string(raw).unwrap_or(Cow::Borrowed(raw))),
            _ => Some(Cow::Borrowed(raw)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(rest: &str) -> Event {
        let text = format!(
            r#"{{"stream" : "s", "number" : 7, "table" : "t", "op" : "update", "at" : "now", "txid" : "12", "key" : {{"id" : 5}}{rest}}}"#
        );
        Event::parse(7, text.into_bytes().into()).unwrap()
    }

    fn new(event: &Event, name: &str) -> Option<String> {
        event.fields().unwrap().get(&Param::Column(Part::New, name.into())).map(Cow::into_owned)
    }

    #[test]
    fn a_column_is_the_text_that_its_type_writes() {
        let event = event(
            r#", "old" : null, "new" : {"a":["x"],"n":1.10,"s":"q\"","z":null,"doc":{"k": "\u0000"},"word":"w","nothing":null},
                "forms" : {"new":{"a":"{x}","doc":1,"word":1,"nothing":1,"gone":null}}"#,
        );
        let of = |name: &str| new(&event, name);
        assert_eq!(of("a").unwrap(), "{x}");
        assert_eq!(of("n").unwrap(), "1.10");
        assert_eq!(of("s").unwrap(), "q\"");
        assert_eq!(of("z"), None);
        assert_eq!(of("doc").unwrap(), r#"{"k": "\u0000"}"#);
        assert_eq!(of("word").unwrap(), r#""w""#, "a document that is a string");
        assert_eq!(of("nothing").unwrap(), "null", "a document that is null, which is not NULL");
        assert_eq!((of("gone"), of("absent")), (None, None));
        let fields = event.fields().unwrap();
        assert_eq!(fields.get(&Param::Whole(Part::Old)), None);
        assert_eq!(fields.get(&Param::Whole(Part::Key)).unwrap(), r#"{"id" : 5}"#);
        assert_eq!(
            (fields.get(&Param::Op).unwrap(), fields.get(&Param::At).unwrap()),
            ("update".into(), "now".into())
        );
    }

    #[test]
    fn events_of_an_older_version_are_read() {
        let event = event(r#", "old" : null, "new" : {"a":["x"],"doc":{"k":1},"b":true}"#);
        assert_eq!(new(&event, "a").unwrap(), r#"["x"]"#);
        assert_eq!(new(&event, "doc").unwrap(), r#"{"k":1}"#);
        assert_eq!(new(&event, "b").unwrap(), "true");
        assert_eq!((event.stored, event.key.as_str()), (None, r#"{"id":5}"#));
    }
}
