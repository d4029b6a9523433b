//! `handover guard`: lets a pooler's clients go on when a cutover that holds them is gone.

use crate::error::{Error, Result};
use crate::plan::has_password;
use crate::ui::{Format, out};
use crate::value::{Duration, EnvString};
use futures_util::future::try_join_all;
use handover_pooler::guard::{Told, check_after, watch};
use serde_json::json;
use std::process::ExitCode;

/// Shown under `--help`.
pub const EXAMPLES: &str = "Examples:
  handover guard --admin '${PGBOUNCER_ADMIN_URL}' --database shop
  handover guard --admin '${POOLER_1}' --admin '${POOLER_2}' --database shop --after 15s

Runs until it is ended: beside the pooler, as a service of its own. What it may not lose is the way to the console.
A pause that an operator made is never touched.";

/// Arguments of `guard`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The URL of a PgBouncer's console, as a reference to the environment in single quotes. Once for each process.
    #[arg(long, value_name = "REFERENCE", required = true)]
    admin: Vec<String>,
    /// The entry of `[databases]` that a plan turns.
    #[arg(long, value_name = "NAME")]
    database: String,
    /// How long a cutover that holds the entry may be silent before its clients go on with the old side.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time)]
    after: Duration,
}

fn time(text: &str) -> Result<Duration, String> {
    serde_json::from_value(json!(text)).map_err(|e| e.to_string())
}

/// Watches until it fails. As JSON, one object a line: `guard` is what happened, with `admin`, `database`, and `place`,
/// `seconds` or `error`.
pub async fn run(format: Format, args: &Args) -> Result<ExitCode> {
    check_after(args.after.0)?;
    if args.admin.iter().any(|url| has_password(url)) {
        return Err(Error::usage(
            "a password stands on the command line, where every user of this machine can read it",
        )
        .hint("name the variable that holds the URL, in single quotes: `--admin '${PGBOUNCER_ADMIN_URL}'`"));
    }
    let all = args.admin.iter().map(async |admin| {
        let tell = |told: Told| tell(format, admin, &args.database, &told);
        watch(&EnvString(admin.clone()), &args.database, args.after.0, tell).await
    });
    try_join_all(all).await?;
    Ok(ExitCode::SUCCESS)
}

fn tell(format: Format, admin: &str, database: &str, told: &Told) {
    let (word, text) = match told {
        Told::Watching { place } => ("watching", format!("watching {database} of PgBouncer at {place}")),
        Told::Held => ("held", format!("{database} is paused by a cutover, which is alive")),
        Told::Open => ("open", format!("{database} goes on")),
        Told::Foreign => ("foreign", format!("{database} is paused by somebody else, and is left alone")),
        Told::Silent => ("silent", format!("{database} is paused by a cutover that is silent")),
        Told::Resumed(silent) => (
            "resumed",
            format!(
                "RESUME {database}: the cutover that paused it has been silent for {} s",
                silent.as_secs()
            ),
        ),
        Told::Lost(why) => ("lost", why.clone()),
    };
    match format {
        Format::Text => out(text),
        Format::Json => {
            let mut object = json!({ "guard": word, "admin": admin, "database": database });
            match told {
                Told::Watching { place } => object["place"] = json!(place),
                Told::Resumed(silent) => object["seconds"] = json!(silent.as_secs_f64()),
                Told::Lost(why) => object["error"] = json!(why),
                _ => {}
            }
            out(object);
        }
    }
}
