//! The target, as the role that executes the plan sees it.

use crate::dump;
use crate::options::Copy;
use handover_core::error::Result;
use handover_port::Port;
use handover_postgres::{Session, ours};
use std::collections::BTreeMap;

/// A read-only session on the target as the role that executes the plan.
pub async fn reader(port: &Port, copy: &Copy) -> Result<Session> {
    port.databases.labelled(port.step.as_str()).read_only(&copy.to).await
}

/// What a dump of the target shows, entry by entry as a fingerprint; none where no pg_dump here can read it.
pub async fn shown(port: &Port, copy: &Copy) -> Result<Option<BTreeMap<String, String>>> {
    let green = reader(port, copy).await?;
    let version = green.major().await?;
    let Ok(program) = dump::Program::find(copy.programs.as_deref(), version, version).await else {
        return Ok(None);
    };
    let mut options: Vec<String> = ours::schemas().iter().map(|s| format!("--exclude-schema={s}")).collect();
    options.push("--no-blobs".into());
    let dumped = match program.dump(port.databases.url(&copy.to)?, (&copy.to, version), None, &options).await
    {
        Ok(dumped) => dumped,
        // The copy does not hang on it.
        Err(e) => {
            port.note(format!("whether an undo leaves nothing behind cannot be compared: {}", e.message()));
            return Ok(None);
        }
    };
    let shown = dumped.entries.into_iter().map(|e| {
        // Comments tell numbers and the time, and settings stand behind what precedes a table.
        let said = |line: &&str| !line.starts_with("--") && !line.starts_with("SET ");
        let sql: Vec<&str> = e.sql.lines().filter(said).collect();
        (format!("{} {}", e.kind, e.name), handover_core::value::fingerprint(sql.join("\n").trim(), 16))
    });
    Ok(Some(shown.collect()))
}

/// What is other on the target than before the copy, by its dump of then.
pub async fn left_behind(
    port: &Port,
    copy: &Copy,
    before: Option<&BTreeMap<String, String>>,
) -> Result<Vec<String>> {
    let Some(before) = before else { return Ok(Vec::new()) };
    let Some(now) = shown(port, copy).await? else { return Ok(Vec::new()) };
    let other = |(name, sql): &(&String, &String)| before.get(*name) != Some(*sql);
    let gone = before.keys().filter(|name| !now.contains_key(*name));
    let left = now.iter().filter(other).map(|(name, _)| name.clone());
    Ok(left.chain(gone.map(|name| format!("{name} is gone"))).collect())
}
