//! The file names of migration tools: what is a migration, in which order, and which file takes it back.
//!
//! Each tool's own rules are kept, because a vendor's folder is used as it is. A name that a tool would not
//! understand is refused, never taken for another tool's: with Flyway `U3__x.sql` takes back, with refinery it
//! goes forward.
//! - refinery: `V1__name.sql`, and `U1__name.sql` which may come late. It has no down files; we take
//!   `V1__name.down.sql` for one.
//! - Flyway: `V1.1__name.sql`, `U1.1__name.sql` which takes it back, `R__name.sql` which runs again when it
//!   changed, `B5__name.sql` which stands for all up to 5 on a new database.
//! - golang-migrate: `0001_name.up.sql` and `0001_name.down.sql`, ordered by number.
//! - sqlx: `20220301120000_name.sql`, or the same with `.up.sql` and `.down.sql`, ordered by number.
//! - popx (Ory): `20150101000001000000_name.postgres.autocommit.up.sql`, where dialect and `autocommit` may be
//!   absent. Numbers have 20 digits, more than 64 bits hold, and are ordered as text.
//! - Diesel: `2022-03-01-120000_name/up.sql` and `down.sql`; Prisma: `20220301120000_name/migration.sql`.
//! - goose: `00001_name.sql`, dbmate: `20220301120000_name.sql`, both with marks for the two directions.
//! - numbered: `0001-name.sql`, `V0001.Name.up.sql`, `001.do.name.sql` and the like, of tools without a table
//!   that Handover knows.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

mod detect;
mod flyway;

/// The layouts that are known, for messages.
pub const KNOWN: &str = "refinery (V1__name.sql), flyway (V1.1__name.sql, U, R, B), golang_migrate (1_name.up.sql), sqlx (1_name.sql), popx (1_name.postgres.up.sql), diesel (NAME/up.sql), prisma (NAME/migration.sql), goose and dbmate (1_name.sql with their marks), numbered (0001-name.sql, V0001.Name.up.sql)";

/// Whose file names a folder uses.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Names {
    /// Found out from the names, folder by folder.
    #[default]
    Auto,
    /// `V1__name.sql`, `U1__name.sql`, `V1__name.down.sql`.
    Refinery,
    /// `V1.1__name.sql`; `U1.1__name.sql` takes it back, `R__name.sql` runs again when it changed, `B5__name.sql`
    /// stands for all up to 5 on a new database.
    Flyway,
    /// `0001_name.up.sql`, `0001_name.down.sql`.
    GolangMigrate,
    /// `20220301120000_name.sql`, or with `.up.sql` and `.down.sql`.
    Sqlx,
    /// `20150101000001000000_name.up.sql`, also with a dialect and `autocommit` before `up`.
    Popx,
    /// `2022-03-01-120000_name/up.sql`, `2022-03-01-120000_name/down.sql`.
    Diesel,
    /// `20220301120000_name/migration.sql`, perhaps with `down.sql` beside it.
    Prisma,
    /// `00001_name.sql` with `-- +goose Up` and `-- +goose Down`.
    Goose,
    /// `20220301120000_name.sql` with `-- migrate:up` and `-- migrate:down`.
    Dbmate,
    /// A number, then a blank or one of `-_.`, then a name: `0001-name.sql`, `V0001.Name.up.sql`.
    Numbered,
}

/// Which way a file goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// Takes the migration back.
    Down,
    /// Applies the migration.
    Up,
}

/// When a migration runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Instead of all versions up to its own, on a database that has none (Flyway's `B`).
    Baseline,
    /// Once, in its place.
    Versioned,
    /// After all others, again whenever its text changed (Flyway's `R`).
    Repeatable,
}

/// A file name, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// The number as written; of a repeatable one its name.
    pub number: String,
    /// The words after it.
    pub title: String,
    /// Which way it goes.
    pub direction: Direction,
    /// When it runs.
    pub kind: Kind,
    /// For which database it is, if it says so.
    pub dialect: Dialect,
    /// Whether the name says that it must not run in a transaction (popx).
    pub autocommit: bool,
    /// Whether it may appear after higher numbers were applied: refinery's `U`, and every file of a tool that
    /// asks of each number whether it was applied.
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
    /// Whether the tool looks into folders below, at any depth.
    #[must_use]
    pub fn recurses(self) -> bool {
        matches!(self, Names::Refinery | Names::Flyway | Names::Popx)
    }

    /// Whether each migration is a folder of its own.
    #[must_use]
    pub fn has_folders(self) -> bool {
        matches!(self, Names::Diesel | Names::Prisma)
    }

    /// Whether a file holds both directions.
    #[must_use]
    pub fn has_sections(self) -> bool {
        matches!(self, Names::Goose | Names::Dbmate)
    }

    /// Reads a file's name: `NAME/FILE` where a migration is a folder, otherwise without any folder.
    ///
    /// # Errors
    /// Why it is no migration of this tool, to stand after "is not a migration: ".
    pub fn parse(self, file: &str) -> Result<Name, String> {
        let stem = file.strip_suffix(".sql").ok_or("it does not end in .sql")?;
        let mut name = match self {
            Names::Auto => Err("the tool is not known".into()),
            Names::Refinery => refinery(stem),
            Names::Flyway => flyway::parse(stem),
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
            Names::Diesel => folder(stem, "up"),
            Names::Prisma => folder(stem, "migration"),
            Names::Goose => numbered(stem, Direction::Up),
            Names::Dbmate => dbmate(stem),
            Names::Numbered => any_numbered(stem),
        }?;
        name.may_be_late |=
            matches!(self, Names::Sqlx | Names::Popx | Names::Diesel | Names::Prisma | Names::Dbmate);
        Ok(name)
    }

    /// How this tool orders two numbers.
    #[must_use]
    pub fn compare(self, a: &str, b: &str) -> Ordering {
        match self {
            Names::Popx | Names::Diesel | Names::Prisma | Names::Dbmate => a.cmp(b),
            Names::Flyway => flyway::compare(a, b),
            _ => compare_numbers(a, b),
        }
    }

    /// What two ways of writing the same number have in common.
    #[must_use]
    pub fn identity(self, number: &str) -> String {
        match self {
            Names::Popx | Names::Diesel | Names::Prisma | Names::Dbmate => number.to_owned(),
            Names::Flyway => flyway::identity(number),
            _ => number.trim_start_matches('0').to_owned(),
        }
    }

    /// Finds out which tool's names a folder's `.sql` files have, by their paths in it.
    ///
    /// # Errors
    /// Why that cannot be told.
    pub fn detect<'a>(files: impl Iterator<Item = &'a str>) -> Result<Names, String> {
        detect::detect(&files.collect::<Vec<_>>())
    }
}

/// Compares two whole numbers of any length.
fn compare_numbers(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn direction(stem: &str) -> Option<(&str, Direction)> {
    stem.strip_suffix(".up")
        .map(|s| (s, Direction::Up))
        .or_else(|| stem.strip_suffix(".down").map(|s| (s, Direction::Down)))
}

fn plain(number: &str, title: &str, direction: Direction) -> Name {
    Name {
        number: number.to_owned(),
        title: title.to_owned(),
        direction,
        kind: Kind::Versioned,
        dialect: Dialect::Any,
        autocommit: false,
        may_be_late: false,
    }
}

fn numbered(stem: &str, direction: Direction) -> Result<Name, String> {
    let (number, title) = stem.split_once('_').ok_or("there is no `_` after its number")?;
    if !digits(number) {
        return Err(format!("`{number}` is not a number"));
    }
    check_title(title)?;
    Ok(plain(number, title, direction))
}

/// A last word that means something to another tool must not be passed over: such a file may take something
/// back, or be for another database.
fn check_title(title: &str) -> Result<(), String> {
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
    let mut name = plain(number, title, direction);
    name.may_be_late = kind == 'U';
    Ok(name)
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
        Some(word) if postgres(word) => Dialect::Postgres,
        Some(word) if other_dialect(word) => Dialect::Other,
        Some(other) => return Err(format!("`{other}` is not a dialect that popx knows")),
    };
    Ok(name)
}

fn postgres(word: &str) -> bool {
    matches!(word, "postgres" | "postgresql" | "pg")
}

fn other_dialect(word: &str) -> bool {
    matches!(word, "cockroach" | "cockroachdb" | "crdb" | "mysql" | "mariadb" | "sqlite" | "sqlite3")
}

/// `NUMBER_NAME/FILE`: of Diesel's number dashes are no part.
fn folder(stem: &str, forward: &str) -> Result<Name, String> {
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
fn dbmate(stem: &str) -> Result<Name, String> {
    let end = stem.find(|c: char| !c.is_ascii_digit()).unwrap_or(stem.len());
    if end == 0 {
        return Err("it does not begin with a number".into());
    }
    Ok(plain(&stem[..end], stem[end..].trim_start_matches(['_', '-']), Direction::Up))
}

/// `0001-name`, `V0001.Name.up`, `001.undo.name`.
fn any_numbered(stem: &str) -> Result<Name, String> {
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
            (Names::Flyway, "V1.1__add - a column.sql", "1.1", Up, Any, false),
            (Names::Flyway, "V2013_1_15__x.sql", "2013.1.15", Up, Any, false),
            (Names::Flyway, "U3__x.sql", "3", Down, Any, false),
            (Names::Flyway, "R__all views.sql", "R__all views", Up, Any, false),
            (Names::Flyway, "B5__all.sql", "5", Up, Any, false),
            (Names::Diesel, "2018-01-01-000000_create_posts/up.sql", "20180101000000", Up, Any, false),
            (
                Names::Diesel,
                "00000000000000_diesel_initial_setup/down.sql",
                "00000000000000",
                Down,
                Any,
                false,
            ),
            (Names::Prisma, "20200101000000_init/migration.sql", "20200101000000_init", Up, Any, false),
            (Names::Goose, "00001_a.sql", "00001", Up, Any, false),
            (Names::Dbmate, "20151127184807-create.sql", "20151127184807", Up, Any, false),
            (Names::Numbered, "0001-name.sql", "0001", Up, Any, false),
            (Names::Numbered, "V0001.Name.up.sql", "0001", Up, Any, false),
            (Names::Numbered, "V0001.Name.down.sql", "0001", Down, Any, false),
            (Names::Numbered, "001.do.sql", "001", Up, Any, false),
            (Names::Numbered, "001.undo.a name.sql", "001", Down, Any, false),
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
            (Names::Sqlx, "1_initial.rollback.sql"),
            (Names::Sqlx, "1_initial.mysql.sql"),
            (Names::Flyway, "V1_initial.sql"),
            (Names::Flyway, "V1.__initial.sql"),
            (Names::Flyway, "R1__views.sql"),
            (Names::Flyway, "v1__initial.sql"),
            (Names::Flyway, "afterMigrate.sql"),
            (Names::Flyway, "1__initial.sql"),
            (Names::Diesel, "initial/up.sql"),
            (Names::Diesel, "1_a/other.sql"),
            (Names::Prisma, "migration.sql"),
            (Names::Goose, "1-a.sql"),
            (Names::Numbered, "V1.1-a.sql"),
            (Names::Numbered, "V1__a.sql"),
            (Names::Numbered, "0001-a.rollback.sql"),
            (Names::Numbered, "schema.sql"),
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
        assert_eq!(detect(&["V1__a.sql", "V1__a.down.sql", "U3__b.sql"]), Ok(Names::Refinery));
        assert_eq!(detect(&["V1__a.sql", "V3__b.sql", "U3__b.sql"]), Ok(Names::Flyway));
        assert_eq!(detect(&["V1__a.sql", "R__b.sql", "U3__b.sql"]), Ok(Names::Flyway));
        assert_eq!(detect(&["V1.1__a.sql"]), Ok(Names::Flyway));
        assert_eq!(detect(&["V1__a b.sql"]), Ok(Names::Flyway));
        assert_eq!(detect(&["core/V1__a.sql", "more/V2__b.sql"]), Ok(Names::Refinery));
        assert_eq!(
            detect(&["2018-01-01-000000_a/up.sql", "2018-01-01-000000_a/down.sql"]),
            Ok(Names::Diesel)
        );
        assert_eq!(detect(&["20200101000000_a/migration.sql"]), Ok(Names::Prisma));
        assert_eq!(detect(&["0001-a.sql", "0002-b.sql"]), Ok(Names::Numbered));
        assert_eq!(detect(&["V0001.A.up.sql", "V0001.A.down.sql"]), Ok(Names::Numbered));
        let unclear = detect(&["V1__a.sql", "U3__b.sql"]).unwrap_err();
        assert!(unclear.contains("U3__b.sql") && unclear.contains("flyway"), "{unclear}");
        assert!(detect(&["V1__a.down.sql", "V1.1__b.sql"]).is_err());
        assert!(detect(&["20200101000000_a/migration.sql", "1_b.sql"]).is_err());
        assert_eq!(detect(&["0001-a.sql", "V2__b.sql"]), Ok(Names::Refinery));
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
        let flyway = |a, b| Names::Flyway.compare(a, b);
        assert_eq!(flyway("1.2", "1.10"), Ordering::Less);
        assert_eq!(flyway("1.0", "1"), Ordering::Equal);
        assert_eq!(flyway("2", "1.9"), Ordering::Greater);
        assert_eq!(Names::Flyway.identity("01.1.0"), "1.1");
        assert_eq!(Names::Popx.compare("20190100000009", "20190100000001000000"), Ordering::Greater);
        assert_eq!(Names::Popx.compare("20150101000001000000", "20150101000002000000"), Ordering::Less);
    }
}
