//! Files that hold both directions, as goose and dbmate write them: each direction becomes a text of the same
//! length in which the rest is blank, so that lines and positions stay what they are in the file.

use crate::names::{Direction, Names};
use handover_core::error::{Error, Result};

/// One direction of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Its SQL, at its place in the file.
    pub sql: String,
    /// Whether it says that it must not run in a transaction.
    pub autocommit: bool,
}

/// The two directions of a file. The way back may be missing.
///
/// # Errors
/// A mark that is missing or not understood, with its line.
pub fn sections(names: Names, path: &str, text: &str) -> Result<(Section, Option<Section>)> {
    let wrong = |line: usize, what: String| {
        Error::usage(what)
            .in_file(path, Some(line))
            .hint("put a copy with the marks that the tool asks for into `override:`, or list the file under `ignore:`")
    };
    let mut now: Option<Direction> = None;
    let mut whole = false;
    let mut up = Section { sql: String::with_capacity(text.len()), autocommit: false };
    let mut down: Option<Section> = None;
    for (i, line) in text.split_inclusive('\n').enumerate() {
        let found = match names {
            Names::Goose => goose(line),
            _ => dbmate(line),
        };
        match &found {
            Some(Mark::Begin(direction, autocommit)) => {
                let again = match direction {
                    Direction::Up => now.is_some(),
                    Direction::Down => now.is_none() || down.is_some(),
                };
                if again {
                    return Err(wrong(i + 1, format!("`{}` in an unexpected place", line.trim())));
                }
                now = Some(*direction);
                match direction {
                    Direction::Up => up.autocommit |= autocommit,
                    Direction::Down => {
                        down = Some(Section { sql: blank(&text[..up.sql.len()]), autocommit: *autocommit });
                    }
                }
            }
            Some(Mark::NoTransaction) => whole = true,
            Some(Mark::Unknown) => {
                return Err(wrong(i + 1, format!("`{}` is a mark that Handover does not know", line.trim())));
            }
            Some(Mark::Ignored) | None => {}
        }
        let empty = line.trim().is_empty() || line.trim_start().starts_with("--");
        if now.is_none() && !empty {
            return Err(wrong(i + 1, format!("SQL before the mark `{}`", forward(names))));
        }
        let here = if found.is_some() { None } else { now };
        up.sql.push_str(&if here == Some(Direction::Up) { line.to_owned() } else { blank(line) });
        if let Some(down) = &mut down {
            down.sql.push_str(&if here == Some(Direction::Down) { line.to_owned() } else { blank(line) });
        }
    }
    if now.is_none() {
        return Err(wrong(1, format!("the mark `{}` is missing", forward(names))));
    }
    up.autocommit |= whole;
    if let Some(down) = &mut down {
        down.autocommit |= whole;
    }
    Ok((up, down))
}

enum Mark {
    Begin(Direction, bool),
    NoTransaction,
    Ignored,
    Unknown,
}

fn forward(names: Names) -> &'static str {
    if names == Names::Goose { "-- +goose Up" } else { "-- migrate:up" }
}

/// Whether a file's text is written for one of these tools.
#[must_use]
pub fn written_for(text: &str) -> Option<Names> {
    text.lines().find_map(|line| {
        let is = |mark: &Option<Mark>| matches!(mark, Some(Mark::Begin(..)));
        if is(&goose(line)) {
            Some(Names::Goose)
        } else if is(&dbmate(line)) {
            Some(Names::Dbmate)
        } else {
            None
        }
    })
}

/// goose's marks. A statement that it keeps together is kept together here too, whatever it marks.
/// (<https://pressly.github.io/goose/documentation/annotations/>)
fn goose(line: &str) -> Option<Mark> {
    let mark = line.trim().strip_prefix("--")?.trim().strip_prefix("+goose")?;
    Some(match mark.trim() {
        "Up" => Mark::Begin(Direction::Up, false),
        "Down" => Mark::Begin(Direction::Down, false),
        "NO TRANSACTION" => Mark::NoTransaction,
        "StatementBegin" | "StatementEnd" | "ENVSUB OFF" => Mark::Ignored,
        _ => Mark::Unknown,
    })
}

/// dbmate's marks. (<https://github.com/amacneil/dbmate#migration-options>)
fn dbmate(line: &str) -> Option<Mark> {
    let mark = line.strip_prefix("--")?.trim().strip_prefix("migrate:")?;
    let mut words = mark.split_whitespace();
    let direction = match words.next() {
        Some("up") => Direction::Up,
        Some("down") => Direction::Down,
        _ => return Some(Mark::Unknown),
    };
    let mut autocommit = false;
    for option in words {
        match option {
            "transaction:false" => autocommit = true,
            "transaction:true" => {}
            _ => return Some(Mark::Unknown),
        }
    }
    Some(Mark::Begin(direction, autocommit))
}

/// As many blanks and line ends.
fn blank(text: &str) -> String {
    text.bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_keep_their_lines() {
        let text = "-- a file\n-- +goose NO TRANSACTION\n-- +goose Up\nselect 'ü';\n-- +goose StatementBegin\nselect 2;\n-- +goose StatementEnd\n\n-- +goose Down\nselect 3;";
        let (up, down) = sections(Names::Goose, "f", text).unwrap();
        let down = down.unwrap();
        assert!(up.autocommit && down.autocommit);
        assert_eq!((up.sql.len(), down.sql.len()), (text.len(), text.len()));
        assert_eq!(up.sql.find("select 'ü'"), text.find("select 'ü'"));
        assert_eq!(down.sql.find("select 3"), text.find("select 3"));
        assert!(!up.sql.contains("select 3") && !down.sql.contains("select 2"));

        let text = "-- migrate:up transaction:false\nselect 1;\n-- migrate:down\nselect 2;\n";
        let (up, down) = sections(Names::Dbmate, "f", text).unwrap();
        assert!(up.autocommit && !down.unwrap().autocommit);
        assert_eq!(written_for(text), Some(Names::Dbmate));
        assert_eq!(sections(Names::Goose, "f", "-- +goose Up\nselect 1").unwrap().1, None);
    }

    #[test]
    fn what_the_tool_would_not_understand_is_refused() {
        for (names, text, line) in [
            (Names::Goose, "select 1;", 1),
            (Names::Goose, "\nselect 1;\n-- +goose Up", 2),
            (Names::Goose, "-- +goose Up\n-- +goose ENVSUB ON\nselect 1", 2),
            (Names::Goose, "-- +goose Down\nselect 1", 1),
            (Names::Goose, "-- +goose Up\n-- +goose Down\n-- +goose Up", 3),
            (Names::Goose, "-- +goose up\nselect 1", 1),
            (Names::Dbmate, "-- migrate:up tx:no\nselect 1", 1),
            (Names::Dbmate, "-- nothing", 1),
        ] {
            let error = sections(names, "f", text).unwrap_err();
            assert_eq!(error.place().line, Some(line), "{text}: {error}");
        }
    }
}
