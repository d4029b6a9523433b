//! The tools whose history tables are known: their names, their columns, and how each creates its own.

use crate::names::Names;
use handover_postgres::TableName;
use std::fmt;

/// A tool that keeps a table of what it applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tool {
    /// `flyway_schema_history`
    Flyway,
    /// `refinery_schema_history`
    Refinery,
    /// `schema_migrations`, one row
    GolangMigrate,
    /// `_sqlx_migrations`
    Sqlx,
    /// `schema_migration`
    Popx,
    /// `__diesel_schema_migrations`
    Diesel,
    /// `_prisma_migrations`
    Prisma,
    /// `goose_db_version`
    Goose,
    /// `schema_migrations`, a row each
    Dbmate,
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tool::Flyway => "Flyway",
            Tool::Refinery => "refinery",
            Tool::GolangMigrate => "golang-migrate",
            Tool::Sqlx => "sqlx",
            Tool::Popx => "popx",
            Tool::Diesel => "Diesel",
            Tool::Prisma => "Prisma",
            Tool::Goose => "goose",
            Tool::Dbmate => "dbmate",
        })
    }
}

impl Tool {
    /// The tools whose folder this can be. `given`: the plan says whose names they are. `alike`: whether the
    /// folder holds nothing that refinery and Flyway understand differently.
    pub fn candidates(names: Names, given: bool, alike: impl Fn() -> bool) -> Vec<Tool> {
        match names {
            Names::Refinery if !given && alike() => vec![Tool::Refinery, Tool::Flyway],
            Names::Refinery => vec![Tool::Refinery],
            Names::Flyway => vec![Tool::Flyway],
            Names::GolangMigrate if !given => vec![Tool::GolangMigrate, Tool::Sqlx, Tool::Popx],
            Names::GolangMigrate => vec![Tool::GolangMigrate],
            Names::Sqlx => vec![Tool::Sqlx],
            Names::Popx => vec![Tool::Popx],
            Names::Diesel => vec![Tool::Diesel],
            Names::Prisma => vec![Tool::Prisma],
            Names::Goose => vec![Tool::Goose],
            Names::Dbmate => vec![Tool::Dbmate],
            Names::Numbered | Names::Auto => Vec::new(),
        }
    }

    /// The table's name unless the service was told another.
    pub fn table(self) -> &'static str {
        match self {
            Tool::Flyway => "flyway_schema_history",
            Tool::Refinery => "refinery_schema_history",
            Tool::GolangMigrate | Tool::Dbmate => "schema_migrations",
            Tool::Sqlx => "_sqlx_migrations",
            Tool::Popx => "schema_migration",
            Tool::Diesel => "__diesel_schema_migrations",
            Tool::Prisma => "_prisma_migrations",
            Tool::Goose => "goose_db_version",
        }
    }

    /// Whether a table with these columns (`name type`) is this tool's.
    pub fn fits(self, columns: &[String]) -> bool {
        let has = |column: &str| columns.iter().any(|c| c.split(' ').next() == Some(column));
        let text = || columns.iter().any(|c| c == "version character varying" || c == "version text");
        let all = |list: &[&str]| list.iter().all(|c| has(c));
        match self {
            Tool::Flyway => all(&["installed_rank", "version", "description", "type", "script", "checksum"]),
            Tool::Refinery => all(&["version", "name", "applied_on", "checksum"]),
            Tool::GolangMigrate => all(&["version", "dirty"]),
            Tool::Sqlx => all(&["version", "description", "success", "checksum", "execution_time"]),
            Tool::Popx | Tool::Dbmate => text() && !has("dirty"),
            Tool::Diesel => all(&["version", "run_on"]),
            Tool::Prisma => all(&["id", "checksum", "migration_name", "finished_at", "rolled_back_at"]),
            Tool::Goose => all(&["version_id", "is_applied"]),
        }
    }

    /// The statements by which the table comes to be, in the shape that the tool gives it.
    pub fn create(self, table: &TableName) -> String {
        let t = table.sql();
        let index = |suffix: &str| handover_postgres::quote_ident(&format!("{}{suffix}", table.name));
        match self {
            Tool::Flyway => format!(
                "create table {t} (installed_rank int not null, version varchar(50), description varchar(200) not null,
                   type varchar(20) not null, script varchar(1000) not null, checksum int,
                   installed_by varchar(100) not null, installed_on timestamp not null default now(),
                   execution_time int not null, success boolean not null, constraint {} primary key (installed_rank));
                 create index {} on {t} (success)",
                index("_pk"),
                index("_s_idx")
            ),
            Tool::Refinery => format!(
                "create table {t} (version int4 primary key, name varchar(255), applied_on varchar(255), checksum varchar(255))"
            ),
            Tool::GolangMigrate => {
                format!("create table {t} (version bigint not null primary key, dirty boolean not null)")
            }
            Tool::Sqlx => format!(
                "create table {t} (version bigint primary key, description text not null,
                   installed_on timestamptz not null default now(), success boolean not null,
                   checksum bytea not null, execution_time bigint not null)"
            ),
            Tool::Popx => format!(
                "create table {t} (version varchar(48) not null, version_self int not null default 0);
                 create unique index {} on {t} (version);
                 create index {} on {t} (version_self)",
                index("_version_idx"),
                index("_version_self_idx")
            ),
            Tool::Diesel => format!(
                "create table {t} (version varchar(50) primary key not null, run_on timestamp not null default current_timestamp)"
            ),
            Tool::Prisma => format!(
                "create table {t} (id varchar(36) primary key not null, checksum varchar(64) not null,
                   finished_at timestamptz, migration_name varchar(255) not null, logs text,
                   rolled_back_at timestamptz, started_at timestamptz not null default now(),
                   applied_steps_count integer not null default 0)"
            ),
            Tool::Goose => format!(
                "create table {t} (id integer primary key generated by default as identity, version_id bigint not null,
                   is_applied boolean not null, tstamp timestamp not null default now());
                 insert into {t} (version_id, is_applied) values (0, true)"
            ),
            Tool::Dbmate => format!("create table {t} (version varchar(128) primary key)"),
        }
    }
}

/// A title as tools that keep words keep it.
pub fn words(title: &str) -> String {
    title.replace('_', " ")
}
