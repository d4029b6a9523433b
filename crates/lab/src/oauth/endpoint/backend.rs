//! One database as the service uses it: a release's statements on a small pool of connections.

use super::release::Release;
use crate::oauth::dataset::signature;
use handover_core::error::{Error, Result};
use rand::RngExt;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;
use tokio_postgres::{Client, NoTls, Statement};

/// Connections of one pool.
const POOL: usize = 12;

/// What the service says of a token.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Whether it is good.
    pub active: bool,
    /// Whose it is.
    pub subject: String,
    /// The claims of its consent.
    pub claims: Option<Value>,
}

/// A new pair of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The access token.
    pub access: String,
    /// The refresh token.
    pub refresh: String,
}

/// A release of the service on one database.
pub struct Backend {
    /// The database's name in the plans.
    pub database: &'static str,
    /// The release.
    pub release: Release,
    url: String,
    idle: Mutex<Vec<Connection>>,
    places: Arc<Semaphore>,
}

struct Connection {
    client: Client,
    insert_consent: Vec<Statement>,
    insert_access: Statement,
    insert_refresh: Statement,
    introspect: Statement,
    redeem: Statement,
    request_of: Statement,
    deactivate: Vec<Statement>,
}

fn failed(error: &tokio_postgres::Error) -> Error {
    let detail = error
        .as_db_error()
        .map_or_else(|| error.to_string(), |e| format!("{} ({})", e.message(), e.code().code()));
    Error::external(format!("the demo's service: {detail}"))
        .hint("see the server's log; `handover demo --keep` leaves it in place")
}

fn token() -> String {
    let mut rng = rand::rng();
    (0..3).map(|_| format!("{:016x}", rng.random::<u64>())).collect()
}

impl Connection {
    async fn open(url: &str, release: Release) -> Result<Self, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        let mut insert_consent = Vec::new();
        for sql in release.insert_consent() {
            insert_consent.push(client.prepare(sql).await?);
        }
        let mut deactivate = Vec::new();
        for sql in release.deactivate() {
            deactivate.push(client.prepare(sql).await?);
        }
        Ok(Connection {
            insert_consent,
            insert_access: client.prepare(release.insert_access()).await?,
            insert_refresh: client.prepare(release.insert_refresh()).await?,
            introspect: client.prepare(release.introspect()).await?,
            redeem: client.prepare(release.redeem()).await?,
            request_of: client.prepare(release.request_of()).await?,
            deactivate,
            client,
        })
    }
}

impl Backend {
    /// A pool that is ready: every statement is prepared, which fails where the schema is another.
    pub async fn connect(database: &'static str, url: &str, release: Release) -> Result<Self> {
        let mut idle = Vec::new();
        for _ in 0..POOL {
            idle.push(Connection::open(url, release).await.map_err(|e| failed(&e))?);
        }
        let places = Arc::new(Semaphore::new(POOL));
        Ok(Backend { database, release, url: url.to_owned(), idle: Mutex::new(idle), places })
    }

    /// Works with a connection; a broken one is not put back.
    async fn with<T>(
        &self,
        work: impl AsyncFnOnce(&mut Connection) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T> {
        let _place = self.places.acquire().await.map_err(|e| Error::internal(e.to_string()))?;
        let pooled = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut connection = match pooled.filter(|c| !c.client.is_closed()) {
            Some(connection) => connection,
            None => Connection::open(&self.url, self.release).await.map_err(|e| failed(&e))?,
        };
        let result = work(&mut connection).await.map_err(|e| failed(&e));
        if !connection.client.is_closed() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
        result
    }

    /// A person consents and an application gets its tokens.
    pub async fn issue(&self, client: &str, subject: &str, tenant: &str) -> Result<Pair> {
        let pair = Pair { access: token(), refresh: token() };
        let (consent, request) = (token(), token());
        let claims = json!({ "tenant": tenant, "roles": ["reader"] });
        self.with(async |c| {
            let tx = c.client.transaction().await?;
            match &c.insert_consent[..] {
                [one] => drop(tx.execute(one, &[&consent, &client, &subject, &claims]).await?),
                several => {
                    for (i, statement) in several.iter().enumerate() {
                        match i {
                            0 => tx.execute(statement, &[&consent, &client, &subject]).await?,
                            _ => tx.execute(statement, &[&consent, &claims]).await?,
                        };
                    }
                }
            }
            for (statement, token) in [(&c.insert_access, &pair.access), (&c.insert_refresh, &pair.refresh)] {
                tx.execute(statement, &[&signature(token), &request, &consent, &client, &subject]).await?;
            }
            tx.commit().await
        })
        .await?;
        Ok(pair)
    }

    /// Looks at an access token.
    pub async fn introspect(&self, access: &str) -> Result<Option<Seen>> {
        let signature = signature(access);
        self.with(async |c| {
            let row = c.client.query_opt(&c.introspect, &[&signature]).await?;
            row.map(|row| {
                Ok(Seen { active: row.try_get(0)?, subject: row.try_get(1)?, claims: row.try_get(2)? })
            })
            .transpose()
        })
        .await
    }

    /// Takes a refresh token and its access token back, and gives new ones; none when it is not good.
    pub async fn refresh(&self, refresh: &str) -> Result<Option<Pair>> {
        let pair = Pair { access: token(), refresh: token() };
        self.with(async |c| {
            let tx = c.client.transaction().await?;
            let Some(row) = tx.query_opt(&c.redeem, &[&signature(refresh)]).await? else {
                return Ok(None);
            };
            let (request, consent): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            let (client, subject): (String, String) = (row.try_get(2)?, row.try_get(3)?);
            for statement in &c.deactivate {
                tx.execute(statement, &[&request]).await?;
            }
            for (statement, token) in [(&c.insert_access, &pair.access), (&c.insert_refresh, &pair.refresh)] {
                tx.execute(statement, &[&signature(token), &request, &consent, &client, &subject]).await?;
            }
            tx.commit().await?;
            Ok(Some(pair))
        })
        .await
    }

    /// Takes a token and those of the same request back; says whether there was such a token.
    pub async fn revoke(&self, token: &str) -> Result<bool> {
        self.with(async |c| {
            let tx = c.client.transaction().await?;
            let Some(row) = tx.query_opt(&c.request_of, &[&signature(token)]).await? else {
                return Ok(false);
            };
            let request: String = row.try_get(0)?;
            for statement in &c.deactivate {
                tx.execute(statement, &[&request]).await?;
            }
            tx.commit().await?;
            Ok(true)
        })
        .await
    }

    /// Deletes some expired tokens.
    pub async fn purge(&self) -> Result<u64> {
        self.with(async |c| c.client.execute(self.release.purge(), &[]).await).await
    }

    /// How many seconds new access tokens live.
    pub async fn lifetime(&self) -> Result<u32> {
        self.with(async |c| {
            let sql = "select value::int from setting where name = 'access_token_lifetime'";
            c.client.query_one(sql, &[]).await?.try_get::<_, i32>(0)
        })
        .await
        .map(i32::unsigned_abs)
    }

    /// Sets how many seconds new access tokens live.
    pub async fn set_lifetime(&self, seconds: u32) -> Result<()> {
        self.with(async |c| {
            let sql = "update setting set value = $1 where name = 'access_token_lifetime'";
            c.client.execute(sql, &[&seconds.to_string()]).await
        })
        .await
        .map(drop)
    }
}
