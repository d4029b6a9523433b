//! The file names of migration tools: what is a migration, in which order, and which file takes it back.
//!
//! Each tool's own rules are kept, because a vendor's folder is used as it is:
//! - refinery: `V1__name.sql`, and `U1__name.sql` which may come late. It has no down files; we take
//!   `V1__name.down.sql` for one.
//! - golang-migrate: `0001_name.up.sql` and `0001_name.down.sql`, ordered by number.
//! - sqlx: `20220301120000_name.sql`, or the same with `.up.sql` and `.down.sql`, ordered by number.
//! - popx (Ory): `20150101000001000000_name.postgres.autocommit.up.sql`, where dialect and `autocommit` may be
//!   absent. Numbers have 20 digits, more than 64 bits hold, and are ordered as text.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// Whose file names a folder uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Names {
    /// Found out from the names, folder by folder.
    #[default]
    Auto,
    /// `V1__name.sql`, `U1__name.sql`, `V1__name.down.sql`.
    Refinery,
    /// `0001_name.up.sql`, `0001_name.down.sql`.
    GolangMigrate,
    /// `20220301120000_name.sql`, or with `.up.sql` and `.down.sql`.
    Sqlx,
    /// `20150101000001000000_name.up.sql`, also with a dialect and `autocommit` before `up`.
    Popx,
}

/// Which way a file goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Applies the migration.
    Up,
    /// Takes it back.
    Down,
}

/// A file name, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// The number as written.
    pub number: String,
    /// The words after it.
    pub title: String,
    /// Which way it goes.
    pub direction: Direction,
    /// For which database it is, if it says so.
    pub dialect: Dialect,
    /// Whether the name says that it must not run in a transaction (popx).
    pub autocommit: bool,
    /// Whether it may appear after higher numbers were applied (refinery's `U`).
    pub may_be_late: bool,
}

/// For which database a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// Any that has no file of its own.
    Any,
    /// Ours.
    Postgres,
    /// Another; the file is passed over.
    Other,
}

impl Names {
    /// Whether the tool looks into folders below.
    #[must_use]
    pub fn recurses(self) -> bool {
        matches!(self, Names::Refinery | Names::Popx)
    }

    /// Reads a file name.
    ///
    /// # Errors
    /// Why it is no migration of this tool, to stand after "is not a migration: ".
    pub fn parse(self, file: &str) -> Result<Name, String> {
        let stem = file.strip_suffix(".sql").ok_or("it does not end in .sql")?;
        match self {
            Names::Auto => Err("the tool is not known".into()),
            Names::Refinery => refinery(stem),
            Names::GolangMigrate => {
                let (stem, direction) =
                    direction(stem).ok_or("it ends neither in .up.sql nor in .down.sql")?;
                numbered(stem, direction)
            }
            Names::Sqlx => match direction(stem) {
                Some((stem, direction)) => numbered(stem, direction),
                None => numbered(stem, Direction::Up),
            },
            Names::Popx => popx(stem),
        }
    }

    /// How this tool orders two numbers.
    #[must_use]
    pub fn compare(self, a: &str, b: &str) -> Ordering {
        if self == Names::Popx {
            return a.cmp(b);
        }
        let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
        a.len().cmp(&b.len()).then_with(|| a.cmp(b))
    }

    /// Finds out which tool's names a folder's `.sql` files have.
    ///
    /// # Errors
    /// Why that cannot be told.
    pub fn detect<'a>(files: impl Iterator<Item = &'a str> + Clone) -> Result<Names, String> {
        let some = |names: Names| files.clone().find(|f| names.parse(f).is_ok());
        let simple = files.clone().find(|f| {
            Names::Sqlx.parse(f).is_ok() && direction(f.strip_suffix(".sql").unwrap_or(f)).is_none()
        });
        let dialects = files.clone().find(|f| is_popx_only(f));
        if let Some(refinery) = some(Names::Refinery) {
            return match some(Names::Sqlx) {
                Some(other) => {
                    Err(format!("`{refinery}` is named for refinery and `{other}` for another tool"))
                }
                None => Ok(Names::Refinery),
            };
        }
        match (dialects, simple) {
            (Some(a), Some(b)) => Err(format!("`{a}` is named for popx and `{b}` for sqlx")),
            (Some(_), None) => Ok(Names::Popx),
            (None, Some(_)) => Ok(Names::Sqlx),
            (None, None) if some(Names::GolangMigrate).is_some() => Ok(Names::GolangMigrate),
            (None, None) => Err("no file has a name that one of the known tools uses".into()),
        }
    }
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn direction(stem: &str) -> Option<(&str, Direction)> {
    stem.strip_suffix(".up")
        .map(|s| (s, Direction::Up))
        .or_else(|| stem.strip_suffix(".down").map(|s| (s, Direction::Down)))
}

fn numbered(stem: &str, direction: Direction) -> Result<Name, String> {
    let (number, title) = stem.split_once('_').ok_or("there is no `_` after its number")?;
    if !digits(number) {
        return Err(format!("`{number}` is not a number"));
    }
    Ok(Name {
        number: number.to_owned(),
        title: title.to_owned(),
        direction,
        dialect: Dialect::Any,
        autocommit: false,
        may_be_late: false,
    })
}

fn refinery(stem: &str) -> Result<Name, String> {
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
    Ok(Name {
        number: number.to_owned(),
        title: title.to_owned(),
        direction,
        dialect: Dialect::Any,
        autocommit: false,
        may_be_late: kind == 'U',
    })
}

fn popx(stem: &str) -> Result<Name, String> {
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
        Some("postgres" | "postgresql" | "pg") => Dialect::Postgres,
        Some("cockroach" | "cockroachdb" | "crdb" | "mysql" | "mariadb" | "sqlite" | "sqlite3") => {
            Dialect::Other
        }
        Some(other) => return Err(format!("`{other}` is not a dialect that popx knows")),
    };
    Ok(name)
}

/// Whether only popx would write such a name: a dialect or `autocommit`, or a number that no other tool can hold.
fn is_popx_only(file: &str) -> bool {
    let Ok(name) = file.strip_suffix(".sql").ok_or_else(String::new).and_then(popx) else { return false };
    name.dialect != Dialect::Any || name.autocommit || name.number.parse::<u64>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names as the tools' own folders and documentation have them.
    #[test]
    fn real_names_are_understood() {
        use Dialect::{Any, Other, Postgres};
        use Direction::{Down, Up};
        let table: &[(Names, &str, &str, Direction, Dialect, bool)] = &[
            (Names::Refinery, "V1__initial.sql", "1", Up, Any, false),
            (Names::Refinery, "V20220301110000__add_cars.sql", "20220301110000", Up, Any, false),
            (Names::Refinery, "U10__merge_out_of_order.sql", "10", Up, Any, false),
            (Names::Refinery, "V1__initial.down.sql", "1", Down, Any, false),
            (Names::GolangMigrate, "1_initialize_schema.up.sql", "1", Up, Any, false),
            (Names::GolangMigrate, "000012_add.table.down.sql", "000012", Down, Any, false),
            (Names::GolangMigrate, "1500360784_initialize_schema.down.sql", "1500360784", Down, Any, false),
            (Names::Sqlx, "20210621120000_create_users.sql", "20210621120000", Up, Any, false),
            (Names::Sqlx, "20210621120000_create_users.up.sql", "20210621120000", Up, Any, false),
            (Names::Sqlx, "20210621120000_create_users.down.sql", "20210621120000", Down, Any, false),
            (
                Names::Popx,
                "20150101000001000000_networks.postgres.up.sql",
                "20150101000001000000",
                Up,
                Postgres,
                false,
            ),
            (Names::Popx, "20150101000001000000_networks.down.sql", "20150101000001000000", Down, Any, false),
            (
                Names::Popx,
                "20190100000013000000_client.cockroach.up.sql",
                "20190100000013000000",
                Up,
                Other,
                false,
            ),
            (Names::Popx, "20190100000014_client.mysql.down.sql", "20190100000014", Down, Other, false),
            (
                Names::Popx,
                "20240612000000000000_index.autocommit.up.sql",
                "20240612000000000000",
                Up,
                Any,
                true,
            ),
            (
                Names::Popx,
                "20240612000000000000_index.postgres.autocommit.down.sql",
                "20240612000000000000",
                Down,
                Postgres,
                true,
            ),
            (
                Names::Popx,
                "20190100000001000000_client.sqlite3.up.sql",
                "20190100000001000000",
                Up,
                Other,
                false,
            ),
        ];
        for (names, file, number, direction, dialect, autocommit) in table {
            let name = names.parse(file).unwrap_or_else(|e| panic!("{file}: {e}"));
            assert_eq!(
                (name.number.as_str(), name.direction, name.dialect, name.autocommit),
                (*number, *direction, *dialect, *autocommit),
                "{file}"
            );
        }
    }

    #[test]
    fn misspelt_names_are_refused() {
        for (names, file) in [
            (Names::Refinery, "V1_initial.sql"),
            (Names::Refinery, "1__initial.sql"),
            (Names::Refinery, "V1.5__initial.sql"),
            (Names::Refinery, "V1__a-b.sql"),
            (Names::GolangMigrate, "1_initial.sql"),
            (Names::GolangMigrate, "one_initial.up.sql"),
            (Names::Sqlx, "initial.sql"),
            (Names::Popx, "20150101000001000000_networks.postgrse.up.sql"),
            (Names::Popx, "20150101000001000000_networks.postgres.autocomit.up.sql"),
            (Names::Popx, "20150101000001000000_networks.sql"),
        ] {
            assert!(names.parse(file).is_err(), "{file}");
        }
    }

    #[test]
    fn tools_are_told_apart() {
        let detect = |files: &[&str]| Names::detect(files.iter().copied());
        assert_eq!(detect(&["V1__a.sql", "V2__b.sql"]), Ok(Names::Refinery));
        assert_eq!(detect(&["1_a.up.sql", "1_a.down.sql"]), Ok(Names::GolangMigrate));
        assert_eq!(detect(&["1_a.sql", "2_b.up.sql", "2_b.down.sql"]), Ok(Names::Sqlx));
        assert_eq!(detect(&["1_a.up.sql", "1_a.mysql.up.sql"]), Ok(Names::Popx));
        assert_eq!(detect(&["20150101000001000000_a.up.sql"]), Ok(Names::Popx));
        assert!(detect(&["V1__a.sql", "1_a.up.sql"]).is_err());
        assert!(detect(&["1_a.sql", "1_a.mysql.up.sql"]).is_err());
        assert!(detect(&["schema.sql"]).is_err());
        assert!(detect(&[]).is_err());
    }

    #[test]
    fn numbers_are_ordered_as_the_tool_does() {
        assert_eq!(Names::GolangMigrate.compare("9", "10"), Ordering::Less);
        assert_eq!(Names::GolangMigrate.compare("001", "1"), Ordering::Equal);
        assert_eq!(Names::Sqlx.compare("99999999999999999999", "100000000000000000000"), Ordering::Less);
        assert_eq!(Names::Popx.compare("20190100000009", "20190100000001000000"), Ordering::Greater);
        assert_eq!(Names::Popx.compare("20150101000001000000", "20150101000002000000"), Ordering::Less);
    }
}
