//! An entry of PgBouncer's `[databases]`, found and rewritten in the text of its file. Everything else of the file stays
//! byte for byte, comments and the entry's other parameters too. Pure.
//!
//! The file is read as PgBouncer reads it: a comment begins a line, a value goes on to its line's end, and parameters are
//! kept apart by spaces, with single quotes around what holds some.

use handover_core::error::{Class, Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;

/// The entry that is in the file for a moment, to see whether the pooler takes it up.
pub const PROBE: &str = "handover_probe";

/// What PgBouncer takes where an entry names no port.
const DEFAULT_PORT: &str = "5432";

/// The parameters that say where an entry leads, as they stand in the file, quotes included. None of them may be secret.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Written {
    /// `host`.
    pub host: Option<String>,
    /// `port`.
    pub port: Option<String>,
    /// `dbname`.
    pub dbname: Option<String>,
}

/// Where an entry leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// A name, an address, or the folder of a socket; none is PgBouncer's own default, a socket.
    pub host: Option<String>,
    /// The port, as PgBouncer shows it.
    pub port: String,
    /// The database's name in the server.
    pub dbname: String,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.host.as_deref().unwrap_or("(local socket)"), self.port, self.dbname)
    }
}

impl Target {
    /// It as parameters of an entry.
    #[must_use]
    pub fn written(&self) -> Written {
        Written {
            host: self.host.as_deref().map(quoted),
            port: Some(quoted(&self.port)),
            dbname: Some(quoted(&self.dbname)),
        }
    }

    /// Reads `host=… port=… dbname=…`; a database that is not named has the entry's name.
    ///
    /// # Errors
    /// What is wrong with the text, in words; other parameters than these three.
    pub fn parse(text: &str, entry: &str) -> Result<Self, String> {
        let pairs = pairs(text).ok_or("it is not `host=… port=… dbname=…`")?;
        if let Some(other) = pairs.iter().find(|pair| !WHERE.contains(&pair.key)) {
            return Err(format!("`{}` is not one of {}", other.key, WHERE.join(", ")));
        }
        let target = written(text, &pairs).target(entry);
        if target.host.is_none() {
            return Err("it names no `host`".into());
        }
        match target.port.parse::<u16>() {
            Ok(port) if port > 0 => Ok(target),
            _ => Err(format!("`{}` is not a port", target.port)),
        }
    }
}

const WHERE: [&str; 3] = ["host", "port", "dbname"];

impl Written {
    /// Where that leads, for the entry of this name.
    #[must_use]
    pub fn target(&self, entry: &str) -> Target {
        let plain = |text: &Option<String>| text.as_deref().map(unquoted);
        Target {
            host: plain(&self.host),
            port: plain(&self.port).unwrap_or_else(|| DEFAULT_PORT.to_owned()),
            dbname: plain(&self.dbname).unwrap_or_else(|| entry.to_owned()),
        }
    }

    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "host" => self.host.as_deref(),
            "port" => self.port.as_deref(),
            _ => self.dbname.as_deref(),
        }
    }
}

fn quoted(text: &str) -> String {
    if text.is_empty() || text.contains([' ', '\'']) {
        format!("'{}'", text.replace('\'', "''"))
    } else {
        text.to_owned()
    }
}

fn unquoted(text: &str) -> String {
    text.strip_prefix('\'')
        .and_then(|t| t.strip_suffix('\''))
        .map_or_else(|| text.to_owned(), |t| t.replace("''", "'"))
}

/// One parameter of an entry.
struct Pair<'a> {
    key: &'a str,
    /// Where it stands, from the key's first byte to the value's last.
    whole: Range<usize>,
    value: Range<usize>,
}

/// The parameters of an entry's value; none where PgBouncer would refuse it.
fn pairs(text: &str) -> Option<Vec<Pair<'_>>> {
    let bytes = text.as_bytes();
    let skip = |mut at: usize| {
        while bytes.get(at) == Some(&b' ') {
            at += 1;
        }
        at
    };
    let (mut out, mut at) = (Vec::new(), skip(0));
    while at < bytes.len() {
        let start = at;
        while bytes.get(at).is_some_and(|b| *b != b'=' && *b != b' ') {
            at += 1;
        }
        let key = &text[start..at];
        at = skip(at);
        if key.is_empty() || bytes.get(at) != Some(&b'=') {
            return None;
        }
        at = skip(at + 1);
        let value = at;
        if bytes.get(at) == Some(&b'\'') {
            at += 1;
            loop {
                match bytes.get(at)? {
                    b'\'' if bytes.get(at + 1) == Some(&b'\'') => at += 2,
                    b'\'' => break,
                    _ => at += 1,
                }
            }
            at += 1;
            // PgBouncer would swallow what follows at once.
            if bytes.get(at).is_some_and(|b| *b != b' ') {
                return None;
            }
        } else {
            while bytes.get(at).is_some_and(|b| *b != b' ') {
                at += 1;
            }
        }
        if value == at {
            return None;
        }
        out.push(Pair { key, whole: start..at, value: value..at });
        at = skip(at);
    }
    Some(out)
}

/// The last of each counts, as for PgBouncer.
fn written(text: &str, pairs: &[Pair<'_>]) -> Written {
    let last = |key: &str| pairs.iter().rfind(|p| p.key == key).map(|p| text[p.value.clone()].to_owned());
    Written { host: last("host"), port: last("port"), dbname: last("dbname") }
}

/// An entry's value with these parameters.
fn rewrite(value: &str, wanted: &Written) -> Option<String> {
    let mut out = value.to_owned();
    for key in WHERE {
        let found = pairs(&out)?.iter().rfind(|p| p.key == key).map(|p| (p.whole.clone(), p.value.clone()));
        match (found, wanted.get(key)) {
            (Some((_, value)), Some(text)) => out.replace_range(value, text),
            (Some((whole, _)), None) => {
                let start = if whole.start > 0 { whole.start - 1 } else { 0 };
                out.replace_range(start..whole.end, "");
            }
            (None, Some(text)) => {
                if !out.is_empty() {
                    out.push(' ');
                }
                out.push_str(&format!("{key}={text}"));
            }
            (None, None) => {}
        }
    }
    Some(out)
}

/// One `key = value` of a file.
struct Line {
    section: Vec<u8>,
    key: Vec<u8>,
    /// The whole line, with its end.
    whole: Range<usize>,
    /// The value, without white space around it.
    value: Range<usize>,
}

/// The settings of a file. What does not look like one is passed over: whether PgBouncer can read the file is its own
/// word.
fn lines(file: &[u8]) -> Vec<Line> {
    let blank = |b: u8| b == b' ' || b == b'\t';
    let (mut out, mut at) = (Vec::new(), 0);
    // A file that is included in the midst of `[databases]` needs no heading of its own.
    let mut section = b"databases".to_vec();
    while at < file.len() {
        let end = file[at..].iter().position(|b| *b == b'\n').map_or(file.len(), |n| at + n + 1);
        let line = at..end;
        at = end;
        let text = &file[line.clone()];
        let start = text.iter().position(|b| !b.is_ascii_whitespace()).unwrap_or(text.len());
        match text.get(start) {
            None | Some(b'#' | b';' | b'%') => continue,
            Some(b'[') => {
                let name = text[start + 1..].split(|b| *b == b']').next().unwrap_or_default();
                section = name.to_vec();
                continue;
            }
            Some(_) => {}
        }
        let (key, after) = match text[start] {
            quote @ (b'\'' | b'"') => {
                let inner = &text[start + 1..];
                let Some(length) = inner.iter().position(|b| *b == quote) else { continue };
                (inner[..length].to_vec(), start + length + 2)
            }
            _ => {
                let plain = |b: &u8| b.is_ascii_alphanumeric() || b"_.-*".contains(b);
                let length = text[start..].iter().take_while(|b| plain(b)).count();
                (text[start..start + length].to_vec(), start + length)
            }
        };
        let Some(gap) = text.get(after..).and_then(|rest| rest.iter().position(|b| !blank(*b))) else {
            continue;
        };
        if text[after + gap] != b'=' {
            continue;
        }
        let mut from = after + gap + 1;
        while text.get(from).is_some_and(|b| blank(*b)) {
            from += 1;
        }
        let mut to = text.len();
        while to > from && text[to - 1].is_ascii_whitespace() {
            to -= 1;
        }
        let value = line.start + from..line.start + to;
        out.push(Line { section: section.clone(), key, whole: line, value });
    }
    out
}

/// A file with one entry found in it.
pub struct Found<'a> {
    file: &'a [u8],
    line: Line,
    value: &'a str,
    /// Where it leads, as it stands there.
    pub written: Written,
}

/// Finds an entry.
///
/// # Errors
/// No such entry, several, or one that cannot be read.
pub fn find<'a>(file: &'a [u8], entry: &str) -> Result<Found<'a>> {
    let refused = |why: String, hint: &str| Err(Error::new(Class::Usage, why).hint(hint.to_owned()));
    let mut all = lines(file)
        .into_iter()
        .filter(|line| line.section == b"databases" && line.key == entry.as_bytes())
        .collect::<Vec<_>>();
    let Some(line) = all.pop() else {
        return refused(
            format!("there is no entry `{entry}` under [databases]"),
            "`config` is the file in which the entry itself stands, which may be one that the main file includes",
        );
    };
    if !all.is_empty() {
        return refused(format!("the entry `{entry}` stands there twice"), "take one of them out");
    }
    let unreadable = "mend it; `host=… port=… dbname=…`, with single quotes around what holds spaces";
    let Ok(value) = std::str::from_utf8(&file[line.value.clone()]) else {
        return refused(format!("the entry `{entry}` is not UTF-8"), unreadable);
    };
    let Some(pairs) = pairs(value) else {
        return refused(format!("the entry `{entry}` cannot be read"), unreadable);
    };
    let written = written(value, &pairs);
    Ok(Found { file, line, value, written })
}

impl Found<'_> {
    /// The file with the entry leading elsewhere.
    #[must_use]
    pub fn leading(&self, to: &Written) -> Vec<u8> {
        let mut out = self.file.to_vec();
        out.splice(self.line.value.clone(), self.rewritten(to).into_bytes());
        out
    }

    /// The file with the entry as it is, and another that leads there: [`PROBE`].
    #[must_use]
    pub fn probing(&self, to: &Written) -> Vec<u8> {
        let mut line = format!("{PROBE} = {}\n", self.rewritten(to));
        if self.file.get(self.line.whole.end.wrapping_sub(1)) != Some(&b'\n') {
            line = format!("\n{}", line.trim_end());
        }
        let mut out = self.file.to_vec();
        out.splice(self.line.whole.end..self.line.whole.end, line.into_bytes());
        out
    }

    fn rewritten(&self, to: &Written) -> String {
        // It was read already.
        rewrite(self.value, to).unwrap_or_else(|| self.value.to_owned())
    }
}

/// The file without an entry [`PROBE`] that a runner which died has left there.
#[must_use]
pub fn without_probe(file: &[u8]) -> Vec<u8> {
    let probes = lines(file).into_iter().filter(|line| line.key == PROBE.as_bytes());
    let mut out = file.to_vec();
    for line in probes.collect::<Vec<_>>().into_iter().rev() {
        let mut whole = line.whole;
        // The last line of a file that had no end of line has none after it, but one before.
        if whole.end == file.len() && !file.ends_with(b"\n") && whole.start > 0 {
            whole.start -= 1;
        }
        out.splice(whole, []);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILE: &str = "; ours\n[pgbouncer]\nshop = no\n[databases]\n# shop = host=x\n  shop\t=  host=old port=5432 user=u password='a ''b' pool_size=3  \r\nother = host=old\n";

    fn target(text: &str) -> Written {
        Target::parse(text, "shop").unwrap().written()
    }

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn only_the_place_changes_and_comes_back_byte_for_byte() {
        let found = find(FILE.as_bytes(), "shop").unwrap();
        assert_eq!(found.written.target("shop").to_string(), "old:5432/shop");
        let new = text(found.leading(&target("host=/run/new port=6000 dbname='my shop'")));
        let line =
            "  shop\t=  host=/run/new port=6000 user=u password='a ''b' pool_size=3 dbname='my shop'  \r\n";
        assert_eq!(
            new,
            FILE.replace(FILE.lines().nth(5).unwrap(), line.trim_end_matches("\r\n")).replace("\r\r", "\r")
        );
        let again = find(new.as_bytes(), "shop").unwrap();
        assert_eq!(again.written.target("shop").to_string(), "/run/new:6000/my shop");
        assert_eq!(text(again.leading(&found.written)), FILE);
    }

    #[test]
    fn a_probe_is_an_entry_of_its_own_and_leaves_nothing() {
        for file in [FILE.to_owned(), "shop = port=1".to_owned(), "shop=".to_owned()] {
            let found = find(file.as_bytes(), "shop").unwrap();
            let probing = found.probing(&target("host=new"));
            let probe = find(&probing, PROBE).unwrap().written;
            assert_eq!(probe.target(PROBE).to_string(), "new:5432/shop", "{file}");
            assert_eq!(find(&probing, "shop").unwrap().written, found.written);
            assert_eq!(text(without_probe(&probing)), file);
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let why = |file: &str| find(file.as_bytes(), "shop").err().map(|e| e.message().to_owned());
        assert!(why("[databases]\nshops = host=a\n").unwrap().contains("no entry"));
        assert!(why("[pgbouncer]\nshop = host=a\n").unwrap().contains("no entry"));
        assert!(why("[databases]\nshop = host=a\n'shop' = host=b\n").unwrap().contains("twice"));
        assert!(why("[databases]\nshop = host\n").unwrap().contains("cannot be read"));
        assert_eq!(why("%include x\nshop = host=a\n"), None);
        let parse = |text: &str| Target::parse(text, "shop").map(|t| t.to_string());
        assert_eq!(parse("host=h").unwrap(), "h:5432/shop");
        assert!(parse("port=1").unwrap_err().contains("no `host`"));
        assert!(parse("host=h user=u").unwrap_err().contains("`user`"));
        assert!(parse("host=h port=x").unwrap_err().contains("not a port"));
        assert!(parse("postgres://h").is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_there_comes_back(
            before in "([a-z=; \\[\\]\n]{0,20}\n)?",
            value in "((host|port|dbname|user|pool_size)= ?(a|1|'x y'|'''') {0,2}){0,4}",
            after in "(\n[a-z=; \\[\\]\n%']{0,20})?",
        ) {
            let file = format!("{before}[databases]\nshop = {value}{after}");
            let Ok(found) = find(file.as_bytes(), "shop") else { return Ok(()) };
            let there = found.leading(&target("host=new port=2 dbname=d"));
            let again = find(&there, "shop").unwrap();
            prop_assert_eq!(again.written.target("shop").to_string(), "new:2/d");
            prop_assert_eq!(text(again.leading(&found.written)), file.clone());
            let probing = found.probing(&target("host=new"));
            prop_assert_eq!(text(without_probe(&probing)), file);
        }

        #[test]
        fn reading_never_panics(file in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = find(&file, "shop");
            let _ = without_probe(&file);
        }
    }
}
