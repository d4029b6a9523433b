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

pub mod detect;
mod flyway;
mod layouts;
mod name;

pub use name::{Dialect, Direction, Kind, Name};

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
            Names::Refinery => layouts::refinery(stem),
            Names::Flyway => flyway::parse(stem),
            Names::GolangMigrate => {
                let (stem, direction) =
                    layouts::direction(stem).ok_or("it ends neither in .up.sql nor in .down.sql")?;
                layouts::numbered(stem, direction)
            }
            Names::Sqlx => match layouts::direction(stem) {
                Some((stem, direction)) => layouts::numbered(stem, direction),
                None => layouts::numbered(stem, Direction::Up),
            },
            Names::Popx => layouts::popx(stem),
            Names::Diesel => layouts::folder(stem, "up"),
            Names::Prisma => layouts::folder(stem, "migration"),
            Names::Goose => layouts::numbered(stem, Direction::Up),
            Names::Dbmate => layouts::dbmate(stem),
            Names::Numbered => layouts::any_numbered(stem),
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
            _ => name::compare_numbers(a, b),
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
