//! The fingerprint of what was reviewed: the plan, every file it names, and the databases it is about.

use super::Plan;
use crate::error::{Error, Result};
use crate::postgres::Databases;
pub use crate::postgres::identity::DatabaseIdentity;
use crate::postgres::identity::identify;
use crate::steps::Access;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
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

/// What works on a standby finds out at its first write, and what reads there reads the past.
fn standby(name: &str) -> Error {
    Error::usage(format!("`databases.{name}` leads to a standby (the server is in recovery), where nothing can be written"))
        .on_database(name)
        .hint("give the primary's host, or several with target_session_attrs=read-write; a standby may serve as the `reader:`")
}

/// Compares where the URLs of the role that works and of the reader lead, if a database has both: a dry run through a
/// reader elsewhere would have looked at another database than the one that is changed. As the first one's identity is
/// in the digest and both must be one, the digest stands for both. Only reads. Returns what is worth knowing.
///
/// # Errors
/// A reader of another database; a URL for working that leads nowhere or to a standby. A reader that cannot be
/// reached is no error: nothing that acts needs it.
pub async fn compare_reader(databases: &Databases, name: &str) -> Result<Option<String>> {
    if !databases.has_reader(name) {
        return Ok(None);
    }
    let works = identify(&databases.read_only(name).await?).await?;
    if works.standby {
        return Err(standby(name));
    }
    let look = async { identify(&databases.reader(name).await?).await };
    match look.await {
        Ok(looks) => judge_reader(name, &works, &looks),
        Err(error) => Ok(Some(format!(
            "the reader of {name} cannot be asked which database it leads to; a run does not need it, `dry-run` and `status` do: {error}"
        ))),
    }
}

/// The same for a dry run, which needs the reader only: where the role that works cannot be asked, or is not known, the
/// two are not compared, and that is said.
///
/// # Errors
/// A reader of another database, one that cannot be reached; a URL for working that leads to a standby.
pub async fn compare_looked_at(databases: &Databases, name: &str) -> Result<Option<String>> {
    if !databases.has_reader(name) {
        return Ok(None);
    }
    let looks = identify(&databases.reader(name).await?).await?;
    let lags = |looks: &DatabaseIdentity| looks.standby.then(|| lag(name));
    if databases.has_only_reader(name) {
        return Ok(lags(&looks));
    }
    let work = async { identify(&databases.read_only(name).await?).await };
    match work.await {
        Ok(works) => judge_reader(name, &works, &looks),
        Err(error) => Ok(Some(format!(
            "whether {name} is what its reader looks at is not known, for the role that works there cannot be asked: {error}{}",
            lags(&looks).map(|lag| format!("; {lag}")).unwrap_or_default()
        ))),
    }
}

fn judge_reader(name: &str, works: &DatabaseIdentity, looks: &DatabaseIdentity) -> Result<Option<String>> {
    if works.standby {
        return Err(standby(name));
    }
    if works.is_same_or_standby(looks) {
        return Ok(looks.standby.then(|| lag(name)));
    }
    let who = |i: &DatabaseIdentity| format!("{}, of the cluster {}", i.database, i.system_identifier);
    Err(Error::usage(format!(
        "`databases.{name}.reader` leads to another database ({}) than `databases.{name}` ({})",
        who(looks),
        who(works)
    ))
    .on_database(name)
    .hint("a reader is a role of the same database, on its server or on a standby of it: correct the environment variable behind one of the two URLs"))
}

fn lag(name: &str) -> String {
    format!(
        "the reader of {name} looks at a standby, which may lag: what `dry-run`, `doctor` and `status` show may be past; a run does not use it"
    )
}

impl Plan {
    /// Asks every database of the plan who it is.
    ///
    /// # Errors
    /// One that cannot be reached; a URL for working that leads to a standby.
    pub async fn identities(&self, databases: &Databases) -> Result<BTreeMap<String, DatabaseIdentity>> {
        self.identities_without(databases, &BTreeSet::new()).await
    }

    /// The same without some of them.
    ///
    /// # Errors
    /// As [`Plan::identities`].
    pub async fn identities_without(
        &self,
        databases: &Databases,
        absent: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, DatabaseIdentity>> {
        let mut out = BTreeMap::new();
        for name in self.databases.keys().filter(|name| !absent.contains(*name)) {
            let session = databases.reader(name).await?;
            let identity = identify(&session).await?;
            if identity.standby && !databases.has_reader(name) {
                return Err(standby(name));
            }
            out.insert(name.clone(), identity);
        }
        Ok(out)
    }

    /// Compares the readers of all databases; see [`compare_reader`]. Returns what is worth knowing.
    ///
    /// # Errors
    /// As [`compare_reader`].
    pub async fn compare_readers(&self, databases: &Databases) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        for name in self.databases.keys() {
            notes.extend(compare_reader(databases, name).await?);
        }
        Ok(notes)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Problems;
    use crate::steps::{CheckContext, Context, Description, Step, StepKind, Undo};
    use serde_json::Value;
    use std::path::PathBuf;

    /// Names what a test wants named, and does nothing.
    #[derive(Debug)]
    struct Names {
        databases: Vec<(&'static str, Access)>,
        files: Vec<PathBuf>,
    }

    #[async_trait::async_trait]
    impl StepKind for Names {
        fn check(&self, _: &CheckContext<'_>, _: &mut Problems) {}
        fn databases(&self) -> Vec<(&str, Access)> {
            self.databases.clone()
        }
        fn files(&self) -> Vec<PathBuf> {
            self.files.clone()
        }
        fn reversibility(&self) -> Undo {
            Undo::Nothing
        }
        async fn describe(&self, _: &Context) -> Result<Description> {
            Ok(Description::default())
        }
        async fn run(&self, _: &Context) -> Result<Value> {
            Ok(Value::Null)
        }
        async fn verify(&self, _: &Context) -> Result<()> {
            Ok(())
        }
        async fn undo(&self, _: &Context) -> Result<Value> {
            Ok(Value::Null)
        }
    }

    fn plan(folder: &Path, databases: Vec<(&'static str, Access)>, files: Vec<PathBuf>) -> Plan {
        let text = "handover: 1\nname: p\ndatabases: {a: '${A}'}\ncontrol: ${A}\nsteps:\n  - id: s\n    create_index: {on: a, indexes: [{name: i, table: t, columns: [c]}]}\n";
        let mut plan = Plan::parse(&folder.join("plan.yaml"), text.to_owned()).unwrap();
        let kind = std::sync::Arc::new(Names { databases, files });
        plan.steps = [Step { kind, ..plan.steps[0].clone() }].into();
        plan
    }

    #[test]
    fn every_change_below_a_named_folder_counts() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("sql/a/1.sql", "one");
        write("sql/b.sql", "two");
        let plan = plan(folder.path(), Vec::new(), vec!["sql".into()]);
        let mut seen = vec![files_digest(&plan).unwrap()];
        let mut changed = |what: &str| {
            let now = files_digest(&plan).unwrap();
            assert!(!seen.contains(&now), "{what} went unseen");
            seen.push(now);
        };
        write("sql/a/1.sql", "One");
        changed("a file's content");
        write("sql/a/2.sql", "");
        changed("a new file");
        std::fs::rename(folder.path().join("sql/a/2.sql"), folder.path().join("sql/a/3.sql")).unwrap();
        changed("a new name");
        std::fs::create_dir(folder.path().join("sql/c")).unwrap();
        changed("an empty folder");
        let before = files_digest(&plan).unwrap();
        write("beside.sql", "three");
        assert_eq!(before, files_digest(&plan).unwrap(), "a file beside the folder counts");
        std::fs::remove_dir_all(folder.path().join("sql")).unwrap();
        let error = files_digest(&plan).unwrap_err();
        assert_eq!((error.place().step.as_deref(), error.place().line), (Some("s"), Some(6)), "{error}");
    }

    #[test]
    fn one_database_under_two_names_is_refused_where_one_of_them_is_written() {
        let identity = |oid, started_us| DatabaseIdentity {
            system_identifier: 7,
            database: "app".into(),
            oid,
            started_us,
            standby: false,
        };
        let all = |b| BTreeMap::from([("a".to_owned(), identity(1, 1)), ("b".to_owned(), b)]);
        let here = Path::new(".");
        let copies = plan(here, vec![("a", Access::Read), ("b", Access::Write)], Vec::new());
        let error = refuse_same(&copies, &all(identity(1, 1))).unwrap_err();
        assert!(error.to_string().contains("`a` and `b` are one and the same database (app)"), "{error}");
        refuse_same(&copies, &all(identity(2, 1))).unwrap();
        refuse_same(&copies, &all(identity(1, 2))).expect("a restored copy runs as a server of its own");
        let compares = plan(here, vec![("a", Access::Read), ("b", Access::Read)], Vec::new());
        refuse_same(&compares, &all(identity(1, 1))).unwrap();
        let once = plan(here, vec![("a", Access::Read), ("a", Access::Write)], Vec::new());
        refuse_same(&once, &all(identity(1, 1))).unwrap();
    }
}
