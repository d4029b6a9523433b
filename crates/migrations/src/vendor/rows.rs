//! Reading and writing the vendors' tables, each in its tool's way.

use super::checksum;
use super::table::{State, Vendor};
use super::tool::{Tool, words};
use crate::folder::Migration;
use crate::names::{Kind, Names};
use handover_core::error::{Error, Result};
use handover_postgres::{Session, TableName, Tx};
use std::time::Duration;

/// Reads a table.
pub async fn read(session: &Session, tool: Tool, table: &TableName) -> Result<State> {
    let t = table.sql();
    // number, checksum, sort, done
    let sql = match tool {
        Tool::Flyway => format!(
            "select coalesce(version, description)::text, checksum::text,
                    case when version is null and type <> 'SCHEMA' then 'REPEATABLE' else type end::text, success
             from {t} order by installed_rank"
        ),
        Tool::Refinery => format!("select version::text, checksum::text, '', true from {t} order by version"),
        Tool::GolangMigrate => format!("select version::text, null::text, '', not dirty from {t}"),
        Tool::Sqlx => format!("select version::text, encode(checksum, 'hex'), '', success from {t} order by version"),
        Tool::Popx | Tool::Dbmate | Tool::Diesel => {
            format!("select version::text, null::text, '', true from {t} order by version")
        }
        Tool::Prisma => format!(
            "select migration_name::text, checksum::text, '', finished_at is not null from {t}
             where rolled_back_at is null order by started_at"
        ),
        Tool::Goose => format!(
            "select version_id::text, null::text, case when is_applied then '' else 'undone' end, true from {t}
             where version_id > 0 order by id"
        ),
    };
    let mut state = State::default();
    for row in session.query(sql.as_str(), &[]).await? {
        let (number, sum, sort): (String, Option<String>, String) = (row.get(0), row.get(1), row.get(2));
        if !row.get::<_, bool>(3) {
            state.unfinished = Some(number);
            continue;
        }
        match tool {
            Tool::GolangMigrate => state.up_to = Some(Names::GolangMigrate.identity(&number)),
            Tool::Flyway => flyway(&mut state, &number, sum, &sort),
            Tool::Goose if sort == "undone" => drop(state.versions.remove(&number)),
            Tool::Popx | Tool::Dbmate | Tool::Diesel | Tool::Prisma => {
                state.versions.insert(number, sum);
            }
            _ => drop(state.versions.insert(Names::Sqlx.identity(&number), sum)),
        }
    }
    Ok(state)
}

fn flyway(state: &mut State, number: &str, sum: Option<String>, sort: &str) {
    let identity = Names::Flyway.identity(number);
    match sort {
        "SCHEMA" => {}
        "BASELINE" | "SQL_BASELINE" | "BASELINE_SQL" => state.up_to = Some(identity),
        "DELETE" | "UNDO_SQL" | "UNDO_JDBC" | "UNDO_SCRIPT" | "UNDO" => {
            state.versions.remove(&identity);
        }
        "REPEATABLE" => drop(state.repeatable.insert(number.to_owned(), sum.unwrap_or_default())),
        _ => drop(state.versions.insert(identity, sum)),
    }
}

/// Writes the row of a migration.
pub async fn write(tx: &Tx<'_>, vendor: &Vendor, file: &Migration, took: Duration) -> Result<()> {
    let t = vendor.table.sql();
    let number = file.number.as_str();
    let sum = checksum::of(vendor.tool, file, vendor.narrow).unwrap_or_default();
    let title = words(&file.title);
    let nanos = i64::try_from(took.as_nanos()).unwrap_or(i64::MAX);
    match vendor.tool {
        Tool::Flyway => {
            let version = (file.kind != Kind::Repeatable).then_some(number);
            let sort = if file.kind == Kind::Baseline { "SQL_BASELINE" } else { "SQL" };
            let millis = i32::try_from(took.as_millis()).unwrap_or(i32::MAX);
            tx.execute(
                format!(
                    "insert into {t} (installed_rank, version, description, type, script, checksum, installed_by, execution_time, success)
                     select coalesce(max(installed_rank), 0) + 1, $1::text, $2::text, $3::text, $4::text, $5::text::int, current_user, $6::int, true from {t}"
                )
                .as_str(),
                &[&version, &title, &sort, &file.script, &sum, &millis],
            )
            .await
        }
        Tool::Refinery if sum.is_empty() => {
            return Err(Error::data(format!("the number {number} is too large for {}", vendor.table))
                .hint("say `history: own`"));
        }
        Tool::Refinery => {
            tx.execute(
                format!(
                    "insert into {t} (version, name, applied_on, checksum)
                     values ($1::text::{}, $2::text, to_char(now() at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), $3::text)",
                    if vendor.narrow { "int4" } else { "int8" }
                )
                .as_str(),
                &[&number, &file.title, &sum],
            )
            .await
        }
        Tool::GolangMigrate => {
            tx.execute(format!("delete from {t}").as_str(), &[]).await?;
            tx.execute(
                format!("insert into {t} (version, dirty) values ($1::text::bigint, false)").as_str(),
                &[&number],
            )
            .await
        }
        Tool::Sqlx => {
            tx.execute(
                format!(
                    "insert into {t} (version, description, success, checksum, execution_time)
                     values ($1::text::bigint, $2::text, true, decode($3::text, 'hex'), $4::bigint)"
                )
                .as_str(),
                &[&number, &title, &sum, &nanos],
            )
            .await
        }
        Tool::Popx | Tool::Dbmate | Tool::Diesel => {
            tx.execute(format!("insert into {t} (version) values ($1::text)").as_str(), &[&number]).await
        }
        Tool::Prisma => {
            tx.execute(
                format!(
                    "insert into {t} (id, checksum, finished_at, migration_name, started_at, applied_steps_count)
                     values (gen_random_uuid()::text, $1::text, clock_timestamp(), $2::text,
                             clock_timestamp() - $3::bigint * interval '1 microsecond', 1)"
                )
                .as_str(),
                &[&sum, &number, &(nanos / 1000)],
            )
            .await
        }
        Tool::Goose => {
            tx.execute(
                format!("insert into {t} (version_id, is_applied) values ($1::text::bigint, true)").as_str(),
                &[&number],
            )
            .await
        }
    }
    .map(drop)
}

/// Takes the row of a migration back.
pub async fn forget(tx: &Tx<'_>, vendor: &Vendor, file: &Migration, previous: Option<&str>) -> Result<()> {
    let t = vendor.table.sql();
    let number = file.number.as_str();
    let (sql, key) = match (vendor.tool, previous) {
        (Tool::Flyway, _) => (
            format!(
                "delete from {t} where installed_rank = (select max(installed_rank) from {t} where script = $1::text)"
            ),
            file.script.as_str(),
        ),
        (Tool::GolangMigrate, Some(previous)) => {
            let sql = format!("update {t} set version = $2::text::bigint where version = $1::text::bigint");
            return match tx.execute(sql.as_str(), &[&number, &previous]).await? {
                1 => Ok(()),
                _ => Err(Error::data(format!("{} does not say that {} was the last", vendor.table, file.file))
                    .on_database(tx.database())
                    .hint("somebody else migrated since: take that back first, with golang-migrate; then continue the rollback")),
            };
        }
        (Tool::GolangMigrate | Tool::Sqlx, _) => {
            (format!("delete from {t} where version = $1::text::bigint"), number)
        }
        (Tool::Refinery, _) => {
            (format!("delete from {t} where version::text = $1::text::numeric::text"), number)
        }
        (Tool::Popx | Tool::Dbmate | Tool::Diesel, _) => {
            (format!("delete from {t} where version = $1::text"), number)
        }
        (Tool::Prisma, _) => {
            (format!("delete from {t} where migration_name = $1::text and rolled_back_at is null"), number)
        }
        (Tool::Goose, _) => (
            format!(
                "delete from {t} where id = (select max(id) from {t} where version_id = $1::text::bigint)"
            ),
            number,
        ),
    };
    tx.execute(sql.as_str(), &[&key]).await.map(drop)
}
