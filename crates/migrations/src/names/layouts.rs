//! How each tool reads a name. Each reader gets it without its `.sql`, and says why it is none of its own.

use super::name::{Dialect, Direction, Name, digits, plain};

pub fn direction(stem: &str) -> Option<(&str, Direction)> {
    stem.strip_suffix(".up")
        .map(|s| (s, Direction::Up))
        .or_else(|| stem.strip_suffix(".down").map(|s| (s, Direction::Down)))
}

pub fn numbered(stem: &str, direction: Direction) -> Result<Name, String> {
    let (number, title) = stem.split_once('_').ok_or("there is no `_` after its number")?;
    if !digits(number) {
        return Err(format!("`{number}` is not a number"));
    }
    check_title(title)?;
    Ok(plain(number, title, direction))
}

/// A last word that means something to another tool must not be passed over: such a file may take something
/// back, or be for another database.
pub fn check_title(title: &str) -> Result<(), String> {
    match title.rsplit_once('.') {
        Some((_, word @ ("down" | "undo" | "rollback" | "revert" | "backout" | "up" | "do"))) => {
            Err(format!("`.{word}` before .sql says which way it goes, in another tool's way"))
        }
        Some((_, word)) if other_dialect(word) || postgres(word) => {
            Err(format!("`.{word}` before .sql says for which database it is, in another tool's way"))
        }
        _ => Ok(()),
    }
}

pub fn refinery(stem: &str) -> Result<Name, String> {
    let (stem, direction) = match stem.strip_suffix(".down") {
        Some(stem) => (stem, Direction::Down),
        None => (stem, Direction::Up),
    };
    let kind =
        stem.chars().next().filter(|c| matches!(c, 'V' | 'U')).ok_or("it begins with neither V nor U")?;
    let (number, title) = stem[1..].split_once("__").ok_or("there is no `__` after its number")?;
    if !digits(number) {
        return Err(format!("`{number}` is not a whole number"));
    }
    if title.is_empty() || !title.chars().all(|c| c.is_alphanumeric() || c == '_') {
        return Err("after `__` there may be letters, digits and `_` only".into());
    }
    let mut name = plain(number, title, direction);
    name.may_be_late = kind == 'U';
    Ok(name)
}

pub fn popx(stem: &str) -> Result<Name, String> {
    let (stem, direction) = direction(stem).ok_or("it ends neither in .up.sql nor in .down.sql")?;
    let mut parts = stem.split('.');
    let mut name = numbered(parts.next().unwrap_or(""), direction)?;
    let rest: Vec<&str> = parts.collect();
    let dialect = match rest[..] {
        [] => None,
        ["autocommit"] => {
            name.autocommit = true;
            None
        }
        [dialect] => Some(dialect),
        [dialect, "autocommit"] => {
            name.autocommit = true;
            Some(dialect)
        }
        _ => return Err("between name and direction there may be a dialect and `autocommit` only".into()),
    };
    name.dialect = match dialect {
        None => Dialect::Any,
        Some(word) if postgres(word) => Dialect::Postgres,
        Some(word) if other_dialect(word) => Dialect::Other,
        Some(other) => return Err(format!("`{other}` is not a dialect that popx knows")),
    };
    Ok(name)
}

pub fn postgres(word: &str) -> bool {
    matches!(word, "postgres" | "postgresql" | "pg")
}

pub fn other_dialect(word: &str) -> bool {
    matches!(word, "cockroach" | "cockroachdb" | "crdb" | "mysql" | "mariadb" | "sqlite" | "sqlite3")
}

/// `NUMBER_NAME/FILE`: of Diesel's number dashes are no part.
pub fn folder(stem: &str, forward: &str) -> Result<Name, String> {
    let (folder, file) = stem.split_once('/').ok_or("it stands in no folder of its own")?;
    let direction = match file {
        "down" => Direction::Down,
        file if file == forward => Direction::Up,
        _ => return Err(format!("there may be {forward}.sql and down.sql only")),
    };
    let (number, title) = folder.split_once('_').unwrap_or((folder, ""));
    let number = if forward == "up" { number.replace('-', "") } else { folder.to_owned() };
    if forward == "up" && !digits(&number) {
        return Err(format!("`{folder}` does not begin with a number"));
    }
    Ok(plain(&number, title, direction))
}

/// dbmate takes the digits that a name begins with, whatever follows.
pub fn dbmate(stem: &str) -> Result<Name, String> {
    let end = stem.find(|c: char| !c.is_ascii_digit()).unwrap_or(stem.len());
    if end == 0 {
        return Err("it does not begin with a number".into());
    }
    Ok(plain(&stem[..end], stem[end..].trim_start_matches(['_', '-']), Direction::Up))
}

/// `0001-name`, `V0001.Name.up`, `001.undo.name`.
pub fn any_numbered(stem: &str) -> Result<Name, String> {
    let (stem, mut way) = match direction(stem) {
        Some((stem, direction)) => (stem, direction),
        None => (stem, Direction::Up),
    };
    let bare = stem.strip_prefix(['V', 'v']).unwrap_or(stem);
    let end = bare.find(|c: char| !c.is_ascii_digit()).unwrap_or(bare.len());
    if end == 0 {
        return Err("it does not begin with a number".into());
    }
    let (number, rest) = bare.split_at(end);
    let separators: &[char] = if bare == stem { &['-', '_', '.', ' '] } else { &['-', '.', ' '] };
    let Some(mut title) = rest.strip_prefix(separators).or_else(|| rest.is_empty().then_some("")) else {
        return Err("after its number there is neither a blank nor one of `-_.`".into());
    };
    if rest.starts_with('.') && title.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("its number has parts".into());
    }
    if let Some((word @ ("do" | "undo"), after)) = title.split_once('.').or(Some((title, ""))) {
        way = if word == "undo" { Direction::Down } else { way };
        title = after;
    }
    check_title(title)?;
    Ok(plain(number, title, way))
}
