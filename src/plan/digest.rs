//! The fingerprint of what was reviewed: the plan, every file it names, and the databases it is about.

use super::Plan;
use crate::error::{Error, Result};
use crate::postgres::Databases;
pub use crate::postgres::identity::DatabaseIdentity;
use crate::postgres::identity::identify;
use crate::steps::Access;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// Feeds named pieces to a hash so that no two different lists of pieces feed it the same bytes.
struct Fingerprint(Sha256);

impl Fingerprint {
    fn new() -> Self {
        Fingerprint(Sha256::new())
    }

    fn piece(&mut self, name: &str, content: &[u8]) {
        for part in [name.as_bytes(), content] {
            self.0.update((part.len() as u64).to_be_bytes());
            self.0.update(part);
        }
    }

    fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Digest over the plan's text and every file and folder that its steps name. Opens no connection.
///
/// # Errors
/// A file that cannot be read.
pub fn files_digest(plan: &Plan) -> Result<String> {
    let mut out = Fingerprint::new();
    out.piece("plan", plan.text.as_bytes());
    for step in plan.steps.iter() {
        for file in step.kind.files() {
            let name = file.to_string_lossy();
            add(&mut out, &plan.base.join(&file), &name).map_err(|e| plan.locate(e, &step.id))?;
        }
    }
    Ok(out.finish())
}

/// A file, or a folder with all that is in it, ordered by name.
fn add(out: &mut Fingerprint, path: &Path, name: &str) -> Result<()> {
    let unreadable = |e: std::io::Error| {
        Error::usage(format!("cannot read `{name}`, which the plan names ({e})"))
            .hint("restore it, or change the plan")
    };
    if !path.is_dir() {
        out.piece(name, &std::fs::read(path).map_err(unreadable)?);
        return Ok(());
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        names.push(entry.map_err(unreadable)?.file_name());
    }
    names.sort();
    // The folder itself counts, so that an empty one differs from none.
    out.piece(name, b"folder");
    for entry in names {
        add(out, &path.join(&entry), &format!("{name}/{}", entry.to_string_lossy()))?;
    }
    Ok(())
}

/// Digest of what a run would do and to what: [`files_digest`] and each database's system identifier and name.
///
/// # Errors
/// A file that cannot be read.
pub fn digest(plan: &Plan, identities: &BTreeMap<String, DatabaseIdentity>) -> Result<String> {
    let mut out = Fingerprint::new();
    out.piece("files", files_digest(plan)?.as_bytes());
    for (name, identity) in identities {
        out.piece(name, format!("{}/{}", identity.system_identifier, identity.database).as_bytes());
    }
    Ok(out.finish())
}

/// Refuses a plan in which a step changes one database and uses another that turns out to be the same.
///
/// # Errors
/// [`crate::Class::Usage`], with the step and both names.
pub fn refuse_same(plan: &Plan, identities: &BTreeMap<String, DatabaseIdentity>) -> Result<()> {
    for step in plan.steps.iter() {
        let used = step.kind.databases();
        for (i, (one, access)) in used.iter().enumerate() {
            for (other, other_access) in used.iter().skip(i + 1).filter(|(other, _)| other != one) {
                let writes = *access == Access::Write || *other_access == Access::Write;
                let (Some(a), Some(b)) = (identities.get(*one), identities.get(*other)) else { continue };
                if writes && a.is_same_database(b) {
                    let error = Error::usage(format!(
                        "`{one}` and `{other}` are one and the same database ({})",
                        a.database
                    ))
                    .hint("look at the environment variables behind the two URLs; one of them leads to the wrong place");
                    return Err(plan.locate(error, &step.id));
                }
            }
        }
    }
    Ok(())
}

impl Plan {
    /// Asks every database of the plan who it is.
    ///
    /// # Errors
    /// One that cannot be reached.
    pub async fn identities(&self, databases: &Databases) -> Result<BTreeMap<String, DatabaseIdentity>> {
        let mut out = BTreeMap::new();
        for name in self.databases.keys() {
            let session = databases.reader(name).await?;
            out.insert(name.clone(), identify(&session).await?);
        }
        Ok(out)
    }

    /// The digest of this plan on these databases. Only reads.
    ///
    /// # Errors
    /// A file or a database that cannot be read, and two names for one database where a step takes them for two.
    pub async fn digest(&self, databases: &Databases) -> Result<String> {
        let identities = self.identities(databases).await?;
        refuse_same(self, &identities)?;
        digest(self, &identities)
    }
}
