//! The slot on the side that is replicated, and the snapshot it begins with.
//!
//! Only the replication protocol makes a slot with a snapshot that others can use, and the driver does not speak
//! it; psql does. The snapshot lives as long as psql's connection does nothing else.
//! (<https://www.postgresql.org/docs/current/protocol-replication.html>)

use crate::link::Link;
use handover_core::child;
use handover_core::error::{Class, Error, Result};
use handover_core::event::Measure;
use handover_port::Port;
use handover_postgres::Session;
use handover_postgres::blockers;
use handover_postgres::programs::{self, Program, connect_through_environment};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin};

/// How long a slot that is in use may take to be let go.
const PATIENCE: Duration = Duration::from_secs(30);

/// A slot that was just made, and the connection that shows its snapshot.
#[derive(Debug)]
pub struct Fresh {
    child: Child,
    /// Closing it ends psql.
    _input: ChildStdin,
    /// The name to import the snapshot by.
    pub snapshot: String,
    /// Where the stream begins.
    pub lsn: String,
}

impl Fresh {
    /// Lets the snapshot go, once somebody else holds it.
    pub async fn release(mut self) {
        // Ended hard: it has nothing to save, and must not keep the slot.
        let _ = self.child.kill().await;
    }
}

/// What makes it, as psql is told. Exporting the snapshot is what every version does unless told otherwise.
pub fn creation(link: &Link) -> String {
    format!("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput;", link.name)
}

/// What drops it; its name is the parameter.
pub const REMOVAL: &str = "select pg_drop_replication_slot($1)";

/// Makes it. The server first waits for every transaction that writes; who is in the way is told.
///
/// # Errors
/// No psql, what the server says, or `patience` running out.
pub async fn create(port: &Port, link: &Link, folder: Option<&Path>, patience: Duration) -> Result<Fresh> {
    let program = programs::psql(folder).await?;
    let application = port.databases.lease()?.application_name(port.step.as_str());
    let blue = port.databases.labelled("slot").read_only(&link.from).await?;
    let result = ask(port, link, &program, &blue, &application, patience).await;
    if result.is_err() {
        // While it waits, the server does not see that psql is gone, and would make the slot all the same.
        let sql = "select pg_terminate_backend(pid) from pg_stat_activity
                   where application_name = $1 and backend_type = 'walsender'";
        let _ = blue.query(sql, &[&application]).await;
        if let Err(e) = remove(port, link).await {
            port.warn(format!("the slot that could not be made is still there: {e}"));
        }
    }
    result
}

/// What makes one whose snapshot nobody needs.
pub const RESERVATION: &str = "select pg_create_logical_replication_slot($1, 'pgoutput')";

/// Makes one whose snapshot nobody needs. Like every new slot it begins after the transactions that are writing now.
///
/// # Errors
/// What the server says, also when those take longer than `patience`.
pub async fn reserve(port: &Port, link: &Link, patience: Duration) -> Result<()> {
    let session = port.writer(&link.from).await?;
    session.set("statement_timeout", &format!("{}ms", patience.as_millis())).await?;
    match session.autocommit(RESERVATION, &[&link.name]).await {
        Ok(_) => Ok(()),
        Err(e) if e.class() == Class::Timeout => {
            let age = Duration::ZERO;
            let waiting = blockers::of_freeze(&session, age).await?;
            Err(e
                .context(format!(
                    "the replication slot waits for transactions: {}",
                    blockers::listed(&waiting)
                ))
                .hint("end them, then `handover resume`"))
        }
        Err(e) => Err(refused(e.message(), link)),
    }
}

/// Moves one that nobody reads from to the end of the log: what was committed before is never sent.
///
/// # Errors
/// What the server says.
pub async fn advance(port: &Port, link: &Link) -> Result<()> {
    let session = port.writer(&link.from).await?;
    session
        .autocommit(
            "select pg_replication_slot_advance(slot_name, pg_current_wal_flush_lsn()) from pg_replication_slots
             where slot_name = $1 and database = current_database() and not active",
            &[&link.name],
        )
        .await
        .map(drop)
        .map_err(|e| e.context("moving the replication slot forward"))
}

async fn ask(
    port: &Port,
    link: &Link,
    program: &Program,
    blue: &Session,
    application: &str,
    patience: Duration,
) -> Result<Fresh> {
    let major = blue.major().await?;
    let mut command = child::command(&program.path);
    command
        .args([
            "-X",
            "-A",
            "-t",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "--no-password",
            "-d",
            &programs::dbname(port.databases.url(&link.from)?, &link.from, "replication=database")?,
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    // Its settings let it wait: that is what it is for.
    connect_through_environment(
        &mut command,
        port.databases.url(&link.from)?,
        &link.from,
        application,
        major,
    )?;
    let broken = |e: std::io::Error| Error::external(format!("cannot run {} ({e})", program.path.display()));
    let mut child = command.spawn().map_err(broken)?;
    let (Some(mut input), Some(output), Some(mut errors)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(Error::internal("a child without its pipes"));
    };
    input.write_all(format!("{}\n", creation(link)).as_bytes()).await.map_err(broken)?;
    input.flush().await.map_err(broken)?;
    let mut lines = BufReader::new(output).lines();
    let begun = Instant::now();
    let mut told = String::new();
    loop {
        tokio::select! {
            line = lines.next_line() => {
                let Some(line) = line.map_err(broken)? else {
                    let mut text = String::new();
                    let _ = errors.read_to_string(&mut text).await;
                    return Err(refused(&text, link));
                };
                let mut words = line.split('|').skip(1);
                let (Some(lsn), Some(snapshot)) = (words.next(), words.next()) else { continue };
                port.unit_done("slot");
                return Ok(Fresh { child, _input: input, snapshot: snapshot.into(), lsn: lsn.into() });
            }
            () = port.stop.cancelled() => return Err(Error::cancelled()),
            () = tokio::time::sleep(Duration::from_secs(1)) => {
                port.proceed()?;
                port.progress("slot", begun.elapsed().as_secs(), Some(patience.as_secs()), Measure::Seconds);
                let waiting = blockers::of_walsender(blue, application).await?;
                if begun.elapsed() > patience {
                    return Err(Error::new(Class::Timeout, format!(
                        "the replication slot waits for transactions that began before it: {}",
                        blockers::listed(&waiting)
                    ))
                    .on_database(&link.from)
                    .hint("end them, or raise `patience:` of the replicate step; then `handover resume`"));
                }
                let keys = blockers::keys(&waiting);
                if !waiting.is_empty() && keys != told {
                    port.note(format!("the replication slot waits for {}", blockers::listed(&waiting)));
                    told = keys;
                }
            }
        }
    }
}

fn refused(text: &str, link: &Link) -> Error {
    let said: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    let message = format!("the replication slot could not be made: {}", said.join("; "));
    let error = Error::external(message).on_database(&link.from);
    if text.contains("wal_level") {
        return error.hint("set wal_level = logical on the server and restart it");
    }
    if text.contains("all replication slots are in use") {
        return error
            .with_class(Class::Resources)
            .hint("drop one that nobody uses, or raise max_replication_slots");
    }
    error.hint("the role needs the attribute REPLICATION (scripts/grants.sql with handover.grant_replicate = on), and pg_hba.conf must let it in; then `handover resume`")
}

/// Drops it if it is there, ending whoever reads from it: what nobody consumes fills the disk.
pub async fn remove(port: &Port, link: &Link) -> Result<()> {
    let blue = port.writer(&link.from).await?;
    let begun = Instant::now();
    loop {
        let row = blue
            .query_opt(
                "select active_pid from pg_replication_slots where slot_name = $1 and database = current_database()",
                &[&link.name],
            )
            .await?;
        let Some(row) = row else { return Ok(()) };
        if let Some(pid) = row.get::<_, Option<i32>>(0) {
            blue.check_fence().await?;
            // It may be gone already, or be of another role: then it is waited for.
            let _ = blue.query("select pg_terminate_backend($1)", &[&pid]).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        match blue.autocommit(REMOVAL, &[&link.name]).await {
            Ok(_) => return Ok(()),
            Err(e) if e.class() == Class::Contention && begun.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            // Somebody else was faster.
            Err(e) if e.message().contains("42704") => return Ok(()),
            Err(e) => return Err(e.context("dropping the replication slot")),
        }
    }
}
