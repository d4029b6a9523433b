//! Opening connections: by name, for reading, or – only under a held lease – for writing.

use super::address::{Address, Refused};
use super::error::from_postgres;
use super::lease::{Lease, lost};
use super::profile::{self, Profile, SearchPath};
use super::session::Session;
use super::standby::Told;
use super::worker::Worker;
use handover_core::error::{Error, Result};
use handover_core::value::Secret;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where a database is, and as whom to read it.
#[derive(Debug, Clone)]
pub struct Target {
    /// URL of the role that executes the plan.
    pub url: Secret,
    /// URL of a role that may only read, for whoever only looks: `dry-run`, `doctor`, `status`, `report`. It may
    /// lead to a standby, which lags; so nothing that acts ever sees it ([`Databases::under`]).
    pub reader: Option<Secret>,
    /// Where SQL of the plan's finds names without a schema.
    pub search_path: SearchPath,
}

impl Target {
    /// A database by its URL alone.
    #[must_use]
    pub fn new(url: Secret) -> Self {
        Target { url, reader: None, search_path: SearchPath::default() }
    }
}

/// The plan's databases by name. Cheap to clone.
#[derive(Clone)]
pub struct Databases {
    targets: Arc<BTreeMap<String, Target>>,
    lease: Option<Lease>,
    label: String,
    /// Whether its sessions are for the plan's own SQL.
    for_operator: bool,
    /// Whom to tell of a commit that a standby may lack.
    told: Option<Told>,
}

impl std::fmt::Debug for Databases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Databases").field("targets", &self.targets).finish_non_exhaustive()
    }
}

impl Databases {
    /// Databases that can only be read, as before a lease is taken.
    #[must_use]
    pub fn new(targets: BTreeMap<String, Target>) -> Self {
        Databases {
            targets: Arc::new(targets),
            lease: None,
            label: "reader".into(),
            for_operator: false,
            told: None,
        }
    }

    /// The same databases, whose writers say what the operator should know of a commit.
    #[must_use]
    pub fn telling(&self, told: Told) -> Self {
        Databases { told: Some(told), ..self.clone() }
    }

    /// The same databases, writable under `lease`. The readers' URLs stay behind: what acts decides by what it
    /// reads, and a standby says late what is so, or that an ambiguous commit did not happen.
    #[must_use]
    pub fn under(&self, lease: Lease) -> Self {
        Databases { lease: Some(lease), label: "engine".into(), ..self.without_readers() }
    }

    /// The same databases, looked at as the role that executes the plan.
    #[must_use]
    pub fn without_readers(&self) -> Self {
        let targets = self.targets.iter();
        let own = targets.map(|(name, target)| (name.clone(), Target { reader: None, ..target.clone() }));
        Databases { targets: Arc::new(own.collect()), ..self.clone() }
    }

    /// Whether a URL for looking is the only one that is known: the other's variable need not be set for that.
    #[must_use]
    pub fn has_only_reader(&self, name: &str) -> bool {
        self.targets.get(name).is_some_and(|target| {
            target.reader.as_ref().is_some_and(|reader| reader.expose() == target.url.expose())
        })
    }

    /// Whether looking at this database goes through a URL of its own, which may lead to a standby.
    #[must_use]
    pub fn has_reader(&self, name: &str) -> bool {
        self.targets.get(name).is_some_and(|target| target.reader.is_some())
    }

    /// The same databases, with connections labelled by a step's id.
    #[must_use]
    pub fn labelled(&self, step: &str) -> Self {
        Databases { label: step.to_owned(), ..self.clone() }
    }

    /// The same databases, with sessions for SQL that stands in the plan: see [`Profile::Operator`].
    #[must_use]
    pub fn for_operator(&self) -> Self {
        Databases { for_operator: true, ..self.clone() }
    }

    /// Where the plan's SQL finds names in a database.
    ///
    /// # Errors
    /// A name that the plan does not have.
    pub fn search_path(&self, name: &str) -> Result<&SearchPath> {
        Ok(&self.target(name)?.search_path)
    }

    fn profile(&self, target: &Target) -> Profile {
        if self.for_operator { Profile::Operator(target.search_path.clone()) } else { Profile::Catalog }
    }

    /// The same databases for looking, where one name leads to another database of the plan. None when there is no
    /// such database, or a lease: nothing is ever written in another's place.
    #[must_use]
    pub fn with_in_place_of(&self, there: &str, name: &str) -> Option<Self> {
        if self.lease.is_some() || !self.targets.contains_key(name) {
            return None;
        }
        let mut targets = (*self.targets).clone();
        targets.insert(name.to_owned(), self.targets.get(there)?.clone());
        Some(Databases { targets: Arc::new(targets), ..self.clone() })
    }

    /// The lease writers are bound to.
    ///
    /// # Errors
    /// [`Class::LeaseLost`] when there is none.
    pub fn lease(&self) -> Result<&Lease> {
        self.lease.as_ref().ok_or_else(lost)
    }

    /// Names of all databases.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.targets.keys().map(String::as_str)
    }

    /// The URL of a database, for child programs that connect by themselves (`pg_dump`). Give it to them
    /// through their environment, never as an argument.
    ///
    /// # Errors
    /// A name that the plan does not have.
    pub fn url(&self, name: &str) -> Result<&Secret> {
        Ok(&self.target(name)?.url)
    }

    /// The role that executes the plan in a database, for who looks through [`Databases::reader`].
    ///
    /// # Errors
    /// A name that the plan does not have, or a URL that cannot be read.
    pub fn worker(&self, name: &str) -> Result<Worker> {
        if !self.has_reader(name) {
            return Ok(Worker::Own);
        }
        if self.has_only_reader(name) {
            return Ok(Worker::Unknown);
        }
        let config = Address::parse(self.url(name)?).map_err(|e| e.on_database(name))?.config;
        Ok(config.get_user().map_or(Worker::Unknown, |role| Worker::Named(role.to_owned())))
    }

    fn target(&self, name: &str) -> Result<&Target> {
        self.targets.get(name).ok_or_else(|| {
            Error::usage(format!("there is no database `{name}` in the plan"))
                .hint("add it under `databases:`")
        })
    }

    /// A session that may write, if the lease is still held. See [`Session`] for what it checks.
    ///
    /// # Errors
    /// Lease lost, or no connection.
    pub async fn writer(&self, name: &str) -> Result<Session> {
        let lease = self.lease()?;
        lease.assert_held()?;
        let target = self.target(name)?;
        let label = lease.application_name(&self.label);
        let client = open_as(&target.url, name, &label, &self.profile(target), false).await?;
        let address = Address::parse(&target.url).map_err(|e| e.on_database(name))?;
        Ok(Session::writer(client, name, lease.clone(), address, self.told.clone()))
    }

    /// A read-only session as the role that executes the plan, for steps that must see every row: row security
    /// may hide some from the role that may only read.
    ///
    /// # Errors
    /// No connection.
    pub async fn read_only(&self, name: &str) -> Result<Session> {
        let label = match &self.lease {
            Some(lease) => lease.application_name(&self.label),
            None => format!("handover/{}", self.label),
        };
        let target = self.target(name)?;
        let client = open_as(&target.url, name, &label, &self.profile(target), true).await?;
        Ok(Session::unleased(client, name))
    }

    /// A session for looking: every transaction in it is read-only. Under a lease it is the run's own role's;
    /// else the reader's, if the plan names one.
    ///
    /// # Errors
    /// No connection.
    pub async fn reader(&self, name: &str) -> Result<Session> {
        let target = self.target(name)?;
        let Some(url) = &target.reader else { return self.read_only(name).await };
        let label = format!("handover/{}", self.label);
        let key = format!("databases.{name}.reader");
        let client = open_by(url, name, &key, &label, &self.profile(target), true).await?;
        Ok(Session::unleased(client, name))
    }
}

/// Opens one connection for SQL of ours and drives it in the background until the client is dropped.
///
/// # Errors
/// A URL that does not parse (shown without its content), or no connection.
pub async fn open(url: &Secret, name: &str, application_name: &str) -> Result<tokio_postgres::Client> {
    open_as(url, name, application_name, &Profile::Catalog, false).await
}

/// The same, for SQL of either kind; with `read_only`, every transaction of the session is so from the start.
/// Given at the start and not by SET, which behind a pooler would also change the sessions of the application.
///
/// # Errors
/// As [`open`]; a pooler; a role whose sessions fire other triggers than they should.
pub async fn open_as(
    url: &Secret,
    name: &str,
    application_name: &str,
    profile: &Profile,
    read_only: bool,
) -> Result<tokio_postgres::Client> {
    open_by(url, name, &key(name), application_name, profile, read_only).await
}

/// The place in the plan of a database's URL.
fn key(name: &str) -> String {
    if name == "control" { name.to_owned() } else { format!("databases.{name}") }
}

/// The same, for a URL that stands at `key` in the plan.
async fn open_by(
    url: &Secret,
    name: &str,
    key: &str,
    application_name: &str,
    profile: &Profile,
    read_only: bool,
) -> Result<tokio_postgres::Client> {
    let of_url = |error: Error| error.context(format!("the URL of `{key}`")).on_database(name);
    let mut address = Address::parse(url).map_err(of_url)?;
    let place = address.place();
    let options = profile.options(address.config.get_options().unwrap_or_default(), read_only, None);
    address.config.application_name(application_name).options(options);
    let client = match address.dial().await {
        Ok((client, wire)) => {
            // The connection's own error reaches every pending call through the client; nothing is lost here.
            tokio::spawn(wire);
            client
        }
        Err(Refused::Driver(e))
            if e.as_db_error().is_some_and(|e| e.message().contains("startup parameter")) =>
        {
            return Err(of_url(pooler(name).context(place)));
        }
        Err(refused) => {
            let error = refused.into_error(|e| from_postgres(e, name));
            return Err(of_url(error.context(format!("cannot connect to {place}"))));
        }
    };
    let start = profile::begin(&client).await.map_err(|e| from_postgres(&e, name))?;
    if !start.direct {
        return Err(of_url(pooler(name).context(place)));
    }
    // Who only reads fires no trigger.
    if start.replication_role != "origin" && !read_only {
        return Err(Error::usage(format!(
            "sessions of this role begin with session_replication_role = {}, under which triggers and foreign keys do not act",
            start.replication_role
        ))
        .on_database(name)
        .hint("a superuser can take that default back: `alter role … reset session_replication_role` (and `alter role … in database … reset`, `alter database … reset`)"));
    }
    Ok(client)
}

/// What a pooler does to us: session settings reach other clients, and a statement of a dead runner cannot be
/// found by its connection's name.
fn pooler(name: &str) -> Error {
    Error::usage("this is a connection pooler, not the server itself")
        .on_database(name)
        .hint("use the host and port of the Postgres server; a pooler gives sessions of ours to others, and theirs to us")
}
