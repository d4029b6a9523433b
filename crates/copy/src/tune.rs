//! Settings of the target's server for the time of the load, put back after it.
//!
//! `ALTER SYSTEM` writes into a file of the server's and outlives everybody, so what was there before is in the
//! journal before anything is changed, and every way out of the copy puts it back: its end, its failure, its
//! undo, and after a crash whichever of these comes next.
//! (<https://www.postgresql.org/docs/current/sql-altersystem.html>)

use crate::options::Copy;
use handover_core::error::{Class, Error, Result};
use handover_core::problem::{Problems, Segment};
use handover_port::Port;
use handover_postgres::{Session, quote_ident, quote_literal};
use std::collections::BTreeMap;

/// The fact in the journal: settings by name, with what was set by ALTER SYSTEM before, if anything was.
const TUNED: &str = "tuned";
/// With these a crash of the server loses more than the copy.
const FORBIDDEN: &[&str] = &["fsync", "full_page_writes", "data_sync_retry", "zero_damaged_pages"];

/// Finds what the plan must not ask for.
pub fn check(copy: &Copy, problems: &mut Problems) {
    for name in copy.tune.keys() {
        let at = || [Segment::from("tune"), name.as_str().into()];
        if FORBIDDEN.contains(&name.as_str()) {
            problems
                .error(
                    at(),
                    format!(
                        "`{name}` is not tuned: a crash of the server could then damage every database in it"
                    ),
                )
                .hint("max_wal_size, checkpoint_timeout and autovacuum are what a load profits from");
        } else if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.".contains(&b)) {
            problems.error(at(), format!("`{name}` is no setting's name")).hint("such as `max_wal_size`");
        }
    }
}

/// Sets what the plan asks for, after what is there now was written down.
///
/// # Errors
/// A setting that is unknown or needs a restart, a missing right; then nothing was changed.
pub async fn apply(port: &Port, copy: &Copy, green: &Session) -> Result<()> {
    if copy.tune.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = copy.tune.keys().map(String::as_str).collect();
    let rows = green
        .query(
            "select w.name, s.context, case when s.sourcefile like '%postgresql.auto.conf' then s.setting end,
                    s.source = 'configuration file' and s.sourcefile is null
                    or s.source in ('database', 'user', 'database user', 'client', 'session')
             from unnest($1::text[]) w (name) left join pg_settings s using (name)",
            &[&names],
        )
        .await?;
    let mut before: BTreeMap<String, Option<String>> = BTreeMap::new();
    for row in &rows {
        let name: String = row.get(0);
        let refuse =
            |class, what: String, hint: &str| Err(Error::new(class, what).on_database(&copy.to).hint(hint));
        match row.get::<_, Option<&str>>(1) {
            None => {
                return refuse(Class::Data, format!("the server knows no setting `{name}`"), "mend `tune:`");
            }
            Some("internal" | "postmaster") => {
                let what = format!("`{name}` can only be set when the server starts");
                return refuse(
                    Class::Data,
                    what,
                    "set it by hand before the copy, and leave it out of `tune:`",
                );
            }
            Some(_) if row.get::<_, bool>(3) => {
                let what = format!(
                    "this role cannot see what `{name}` is for the whole server, so it could not be put back"
                );
                let hint = "grant pg_read_all_settings to the role of the plan, and do not set it for the role or the database";
                return refuse(Class::Privilege, what, hint);
            }
            Some(_) => drop(before.insert(name, row.get(2))),
        }
    }
    // What an earlier attempt wrote down is the truth from before; what is there now may be ours.
    if port.recall::<BTreeMap<String, Option<String>>>(TUNED)?.is_none() {
        port.remember(TUNED, &before).await?;
    }
    for (name, value) in &copy.tune {
        port.proceed()?;
        set(green, name, Some(value)).await?;
    }
    reload(green).await?;
    let list: Vec<String> = copy.tune.iter().map(|(name, value)| format!("{name} = {value}")).collect();
    port.note(format!("for the load, {} has {}", copy.to, list.join(", ")));
    Ok(())
}

/// Puts back what was there before, if anything was changed.
pub async fn restore(port: &Port, copy: &Copy) -> Result<()> {
    let Some(before) = port.recall::<BTreeMap<String, Option<String>>>(TUNED)? else { return Ok(()) };
    let green = port.writer(&copy.to).await?;
    for (name, value) in &before {
        set(&green, name, value.as_deref()).await?;
    }
    reload(&green).await?;
    port.forget(TUNED).await
}

async fn set(green: &Session, name: &str, value: Option<&str>) -> Result<()> {
    let name = quote_ident(name);
    let sql = match value {
        Some(value) => format!("alter system set {name} = {}", quote_literal(value)),
        None => format!("alter system reset {name}"),
    };
    green.autocommit(&sql, &[]).await.map(drop).map_err(|e| {
        e.or_hint(format!("grant ALTER SYSTEM ON PARAMETER {name} (Postgres 15) and EXECUTE on pg_reload_conf(), or leave `tune:` out"))
    })
}

async fn reload(green: &Session) -> Result<()> {
    green.autocommit("select pg_reload_conf()", &[]).await.map(drop)
}
