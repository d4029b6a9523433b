//! Looks at everything a plan needs before it is run: connections, versions, privileges, settings, programs,
//! clocks, and what dead runs left. Only reads.

mod database;
mod findings;
mod needs;
mod programs;
mod replication;
mod transport;

use crate::error::Result;
use crate::journal::Journal;
use crate::plan::{Plan, compare_reader};
use crate::postgres::connect::Target;
use crate::postgres::{Databases, ours};
use crate::queue;
use crate::steps::{Access, StepKind};
use crate::value::Secret;
use findings::Notes;
pub use findings::{Finding, Severity};
use handover_migrations::whole_rows;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Everything that was found: one object, which `docs/cli.md` documents.
#[derive(Debug, Clone, Serialize)]
pub struct Diagnosis {
    /// The plan's name.
    pub plan: String,
    /// Whether there is no error among the findings.
    pub ok: bool,
    /// The findings, by what they are about.
    pub findings: Vec<Finding>,
}

/// Looks.
///
/// # Errors
/// An environment variable that is not set; everything else is a finding.
pub async fn examine(plan: &Plan) -> Result<Diagnosis> {
    ours::choose(&plan.schema)?;
    let targets = plan.targets()?;
    let control = plan.control.address()?;
    let mut findings = Vec::new();
    let mut versions = BTreeMap::new();
    let acting = acting(&control, plan).await;
    let databases = Databases::new(targets.clone()).labelled("doctor");
    for (name, target) in &targets {
        let mut notes = Notes::new(name);
        let kinds: Vec<(&dyn StepKind, Access)> = plan
            .steps
            .iter()
            .flat_map(|step| {
                step.kind.databases().into_iter().map(move |(db, access)| (db, (&*step.kind, access)))
            })
            .filter(|(db, _)| db == name)
            .map(|(_, kind)| kind)
            .collect();
        transport::examine(&target.url, &format!("databases.{name}"), &mut notes);
        let works = match database::examine(&databases, name, &kinds, acting, &mut notes).await {
            Ok(version) => versions.insert(name.clone(), version).is_none(),
            Err(e) => {
                notes.failure(&e);
                false
            }
        };
        if works {
            for (id, migrate) in plan.links.migrations.all() {
                if let Some(role) = migrate.role.as_ref().filter(|_| migrate.on == *name)
                    && let Err(e) = database::becomes(&databases, name, id, role, &mut notes).await
                {
                    notes.failure(&e);
                }
            }
            if let Err(e) = prepared(plan, &databases, name, &mut notes).await {
                notes.failure(&e);
            }
        }
        if let Some(url) = &target.reader {
            transport::examine(url, &format!("databases.{name}.reader"), &mut notes);
            match database::examine_reader(&databases, name, &mut notes).await {
                Ok(()) if works => match compare_reader(&databases, name).await {
                    Ok(None) => {}
                    Ok(Some(note)) => {
                        notes.warning(note, "for what must not lag, look as the role that works")
                    }
                    Err(e) => notes.failure(&e),
                },
                Ok(()) => {}
                Err(e) => notes.failure(&e),
            }
        }
        findings.extend(notes.findings);
    }
    findings.extend(examine_control(control, plan).await);
    if let Some(url) = &plan.queue {
        findings.extend(examine_queue(&url.address()?).await);
    }
    findings.extend(programs::examine(plan, &versions).await);
    findings.extend(replication::examine(plan, &targets).await);
    let ok = findings.iter().all(|finding| finding.severity != Severity::Error);
    Ok(Diagnosis { plan: plan.name.clone(), ok, findings })
}

/// Clients that would fail once because a migration in place changes the columns of what they read.
async fn prepared(plan: &Plan, databases: &Databases, name: &str, notes: &mut Notes) -> Result<()> {
    for (id, migrate) in plan.links.migrations.all() {
        if migrate.on != name || !plan.links.serves(&migrate.on) {
            continue;
        }
        let session = databases.read_only(name).await?;
        let path = databases.search_path(name)?;
        let found = whole_rows(migrate, &session, path, &plan.base, &plan.name, id.as_str()).await;
        match found {
            Ok(readers) => {
                for text in readers.warnings {
                    notes.warning(
                        format!("step `{id}`: {text}"),
                        "nothing is refused for it: see that these clients try again",
                    );
                }
                if let Some(text) = readers.unknown {
                    notes.ok(format!("step `{id}`: {text}"));
                }
            }
            // The dry run says what is wrong with the files or their history.
            Err(e) if matches!(e.class(), crate::Class::Data | crate::Class::Usage) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Whether a living runner holds the plan's lease: what it holds then is no leftover.
async fn acting(control: &Secret, plan: &Plan) -> bool {
    let look = async {
        let journal = Journal::look(control.clone(), Duration::from_secs(5)).await?;
        match journal {
            Some(journal) => journal.lease(&plan.name).await,
            None => Ok(None),
        }
    };
    let row = look.await.ok().flatten();
    crate::engine::status::LeaseLook::new(row).status == crate::engine::status::LeaseStatus::Held
}

async fn examine_control(control: Secret, plan: &Plan) -> Vec<Finding> {
    use crate::engine::status::{LeaseLook, LeaseStatus};
    let mut notes = Notes::new("control");
    let targets = BTreeMap::from([("control".to_owned(), Target::new(control.clone()))]);
    transport::examine(&control, "control", &mut notes);
    if let Err(e) = database::examine_control(&Databases::new(targets), &mut notes).await {
        notes.failure(&e);
        return notes.findings;
    }
    let journal = match Journal::look(control, Duration::from_secs(5)).await {
        Ok(Some(journal)) => journal,
        Ok(None) => {
            notes.ok("no journal yet; the first run makes it");
            return notes.findings;
        }
        Err(e) => {
            notes.failure(&e);
            return notes.findings;
        }
    };
    match journal.lease(&plan.name).await {
        Ok(row) => {
            let look = LeaseLook::new(row);
            let who = look
                .row
                .as_ref()
                .and_then(|row| row.holder.as_ref())
                .map_or_else(String::new, ToString::to_string);
            match look.status {
                LeaseStatus::Free => notes.ok("nobody acts on the plan"),
                LeaseStatus::Held => notes.ok(format!("{who} acts on the plan")),
                LeaseStatus::Expired | LeaseStatus::HolderDead => notes.warning(
                    format!("{who} acted on the plan and is gone"),
                    "`handover status` shows where the run stands, `handover resume` goes on",
                ),
            }
        }
        Err(e) => notes.failure(&e),
    }
    notes.findings
}

async fn examine_queue(url: &Secret) -> Vec<Finding> {
    let mut notes = Notes::new("queue");
    transport::examine_queue(url, &mut notes);
    let options = queue::Options { name: "handover/doctor".into(), ..queue::Options::default() };
    match queue::connect(url.expose(), options).await {
        Ok(_) => notes.ok("answers"),
        Err(e) => notes.failure(&e),
    }
    notes.findings
}
