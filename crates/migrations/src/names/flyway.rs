//! Flyway's names: a prefix that says when a file runs, a version of parts, `__`, and words.
//! (<https://documentation.red-gate.com/fd/migrations-184127470.html>)

use super::name::{Direction, Kind, Name, compare_numbers, digits, plain};
use std::cmp::Ordering;

/// Reads a name without its `.sql`.
pub fn parse(stem: &str) -> Result<Name, String> {
    if ["before", "after", "createSchema"].iter().any(|event| stem.starts_with(event)) {
        return Err("it is a callback of Flyway's, and Handover runs none".into());
    }
    let mut chars = stem.chars();
    let prefix = chars.next().unwrap_or(' ');
    let rest = chars.as_str();
    let (version, title) = rest.split_once("__").unwrap_or((rest, ""));
    if prefix == 'R' {
        if !version.is_empty() || title.is_empty() {
            return Err("a repeatable migration is named R__name.sql".into());
        }
        let mut name = plain(&format!("R__{title}"), title, Direction::Up);
        name.kind = Kind::Repeatable;
        return Ok(name);
    }
    if !matches!(prefix, 'V' | 'U' | 'B') {
        return Err("it begins with none of V, U, R and B".into());
    }
    let version = version.replace('_', ".");
    if !version.split('.').all(digits) {
        return Err(format!("`{version}` is not a version of numbers and dots, followed by `__`"));
    }
    let mut name = plain(&version, title, if prefix == 'U' { Direction::Down } else { Direction::Up });
    if prefix == 'B' {
        name.kind = Kind::Baseline;
    }
    Ok(name)
}

/// Compares two versions part by part; repeatable ones come after them, in the order of their names.
pub fn compare(a: &str, b: &str) -> Ordering {
    if a.starts_with('R') || b.starts_with('R') {
        return a.cmp(b);
    }
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return Ordering::Equal,
            (a, b) => match compare_numbers(a.unwrap_or("0"), b.unwrap_or("0")) {
                Ordering::Equal => {}
                unequal => return unequal,
            },
        }
    }
}

/// A version without what does not count: zeros before each part, and parts of zero at the end.
pub fn identity(version: &str) -> String {
    if !version.split('.').all(digits) {
        return version.to_owned();
    }
    let mut parts: Vec<&str> = version.split('.').map(|part| part.trim_start_matches('0')).collect();
    while parts.len() > 1 && parts.last().is_some_and(|part| part.is_empty()) {
        parts.pop();
    }
    parts.iter().map(|part| if part.is_empty() { "0" } else { part }).collect::<Vec<_>>().join(".")
}
