//! The members of a JSON object as they are written.
//!
//! A parsed number has lost digits, and a document has lost its form; and the server cannot take apart what holds
//! `\u0000` anywhere. So an event is cut, not parsed.

use std::borrow::Cow;

/// The members of an object, each with its value's text. None if it is not a whole object. Postgres has checked what
/// is cut here; what is wrong inside a value is found by whoever reads that value.
pub fn members(json: &str) -> Option<Vec<(Cow<'_, str>, &str)>> {
    let mut at = Cursor { json, at: 0 };
    let mut out = Vec::new();
    at.blank();
    at.expect(b'{')?;
    at.blank();
    if at.take(b'}') {
        return Some(out);
    }
    loop {
        at.blank();
        let name = string(at.value()?)?;
        at.blank();
        at.expect(b':')?;
        at.blank();
        out.push((name, at.value()?));
        at.blank();
        if at.take(b'}') {
            return Some(out);
        }
        at.expect(b',')?;
    }
}

/// The content of a JSON string.
pub fn string(json: &str) -> Option<Cow<'_, str>> {
    let inner = json.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        serde_json::from_str(json).ok().map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(inner))
    }
}

struct Cursor<'a> {
    json: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<u8> {
        self.json.as_bytes().get(self.at).copied()
    }

    fn blank(&mut self) {
        while self.peek().is_some_and(|b| b.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        self.take(byte).then_some(())
    }

    /// Over one value; its text.
    fn value(&mut self) -> Option<&'a str> {
        let begin = self.at;
        let mut depth = 0_usize;
        loop {
            match self.peek()? {
                b'"' => self.over_string()?,
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                    continue;
                }
                b'}' | b']' => {
                    depth = depth.checked_sub(1)?;
                    self.at += 1;
                }
                b',' | b':' if depth > 0 => {
                    self.at += 1;
                    continue;
                }
                b',' | b':' => return None,
                b if b.is_ascii_whitespace() => {
                    self.blank();
                    continue;
                }
                _ => {
                    while self.peek().is_some_and(|b| !b.is_ascii_whitespace() && !b",:]}[{\"".contains(&b)) {
                        self.at += 1;
                    }
                }
            }
            if depth == 0 {
                return self.json.get(begin..self.at);
            }
        }
    }

    fn over_string(&mut self) -> Option<()> {
        self.at += 1;
        loop {
            match self.peek()? {
                b'\\' => self.at += 2,
                b'"' => {
                    self.at += 1;
                    return Some(());
                }
                _ => self.at += 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    #[test]
    fn values_stay_as_they_are_written() {
        let text = r#" {"n" : 1.10, "o":{"a": "}\"", "b":[1,{"c":null}]} ,"s\u00e9\n":"x\\","z":"\u0000", "e":{},"t":true}"#;
        let found: Vec<(String, &str)> =
            members(text).unwrap().into_iter().map(|(name, value)| (name.into_owned(), value)).collect();
        let expected = [
            ("n", "1.10"),
            ("o", r#"{"a": "}\"", "b":[1,{"c":null}]}"#),
            ("s\u{e9}\n", r#""x\\""#),
            ("z", r#""\u0000""#),
            ("e", "{}"),
            ("t", "true"),
        ];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value)));
        for bad in ["", "[]", "{", "{\"a\"}", "{\"a\":}", "{\"a\":1", "{\"a\":1,}", "{\"a\":[1}", "null"] {
            assert!(
                members(bad).is_none_or(|m| m.iter().any(|(_, v)| serde_json::from_str::<Value>(v).is_err())),
                "{bad}"
            );
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::hash_map(".{0,6}", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn cutting_agrees_with_parsing(map in prop::collection::hash_map(".{0,6}", any_json(), 0..6), pretty: bool) {
            let value = Value::Object(map.into_iter().collect());
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            let cut = members(&text).unwrap();
            let object = value.as_object().unwrap();
            prop_assert_eq!(cut.len(), object.len());
            for (name, raw) in cut {
                prop_assert_eq!(&serde_json::from_str::<Value>(raw).unwrap(), &object[name.as_ref()]);
            }
        }

        #[test]
        fn nothing_makes_it_panic(text in ".{0,40}") {
            let _ = members(&text);
        }
    }
}
