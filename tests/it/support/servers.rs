//! Real servers, started when a test first asks for one and shared by all tests of the process.
//!
//! Statics are never dropped, and each test has a runtime of its own, so nothing here holds a connection; the
//! servers' guardians stop them when the process ends. Tests that stop, kill or reconfigure a server start
//! their own with [`own_blue`] or [`own_green`].

use handover_lab::{Pair, PostgresOptions, PostgresServer, Programs, RabbitServer};
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::OnceCell;

/// The programs for both sides: two major versions where there are two.
pub async fn programs() -> &'static Pair {
    static PAIR: OnceCell<Pair> = OnceCell::const_new();
    PAIR.get_or_init(async || tokio::task::spawn_blocking(|| Programs::pair().unwrap()).await.unwrap()).await
}

/// The old side's server, shared.
pub async fn blue() -> &'static PostgresServer {
    static SERVER: OnceCell<PostgresServer> = OnceCell::const_new();
    SERVER.get_or_init(own_blue).await
}

/// The new side's server, shared.
pub async fn green() -> &'static PostgresServer {
    static SERVER: OnceCell<PostgresServer> = OnceCell::const_new();
    SERVER.get_or_init(own_green).await
}

/// A server of the oldest version that is copied from, shared.
pub async fn oldest() -> &'static PostgresServer {
    static SERVER: OnceCell<PostgresServer> = OnceCell::const_new();
    SERVER.get_or_init(|| of_major(13)).await
}

/// A server of a version between blue's and green's, shared.
pub async fn between() -> &'static PostgresServer {
    static SERVER: OnceCell<PostgresServer> = OnceCell::const_new();
    SERVER.get_or_init(|| of_major(16)).await
}

async fn of_major(major: u32) -> PostgresServer {
    let programs = tokio::task::spawn_blocking(move || Programs::of_major(major).unwrap()).await.unwrap();
    PostgresServer::start(PostgresOptions::new(programs)).await.unwrap()
}

/// The RabbitMQ node, shared. Its start takes seconds.
pub async fn rabbit() -> &'static RabbitServer {
    static SERVER: OnceCell<RabbitServer> = OnceCell::const_new();
    SERVER.get_or_init(async || RabbitServer::start().await.unwrap()).await
}

/// A RabbitMQ node for one test alone.
pub async fn own_rabbit() -> RabbitServer {
    RabbitServer::start().await.unwrap()
}

/// A server of the old side's version for one test alone.
pub async fn own_blue() -> PostgresServer {
    PostgresServer::start(PostgresOptions::new(programs().await.blue.clone())).await.unwrap()
}

/// A server of the new side's version for one test alone.
pub async fn own_green() -> PostgresServer {
    PostgresServer::start(PostgresOptions::new(programs().await.green.clone())).await.unwrap()
}

/// A name that no other test of this process uses.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("{prefix}_{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A database of one test's, owned by the role `app` and with Handover's grants applied. It goes with the
/// server, or with [`Database::drop_now`].
#[derive(Debug, Clone)]
pub struct Database {
    pub server: &'static PostgresServer,
    pub name: String,
}

impl Database {
    /// A new database, empty or a copy of `template`.
    pub async fn create(server: &'static PostgresServer, template: Option<&str>) -> Self {
        let name = unique("test");
        server.create_database(&name, template).await.unwrap();
        Database { server, name }
    }

    /// A new database in which the application has executed `sql`.
    pub async fn with(server: &'static PostgresServer, sql: &str) -> Self {
        let database = Self::create(server, None).await;
        database.execute(sql).await;
        database
    }

    /// Executes statements as the application's role.
    pub async fn execute(&self, sql: &str) {
        self.server.execute_as_owner(&self.name, sql).await.unwrap();
    }

    /// The first column of the first row, as text.
    pub async fn value(&self, query: &str) -> Option<String> {
        let client = self.admin().await;
        let rows = client.simple_query(query).await.unwrap();
        rows.into_iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
    }

    /// A connection of the superuser's.
    pub async fn admin(&self) -> tokio_postgres::Client {
        self.server.admin(&self.name).await.unwrap()
    }

    /// The URL for Handover's role.
    pub fn handover_url(&self) -> String {
        self.server.handover_url(&self.name)
    }

    /// The URL for the role that may only read.
    pub fn reader_url(&self) -> String {
        self.server.reader_url(&self.name)
    }

    /// The URL for the application's role.
    pub fn owner_url(&self) -> String {
        self.server.owner_url(&self.name)
    }

    /// Drops the database before the end of the process, for tests that fill it.
    pub async fn drop_now(self) {
        let admin = self.admin().await;
        // A subscription keeps its database, and a slot that is read from does.
        let sql = "select subname::text from pg_subscription s join pg_database d on d.oid = s.subdbid
                   where d.datname = current_database()";
        for row in admin.query(sql, &[]).await.unwrap() {
            let name: String = row.get(0);
            let sql = format!(
                "alter subscription {name} disable; alter subscription {name} set (slot_name = none); drop subscription {name}"
            );
            admin.batch_execute(&sql).await.unwrap();
        }
        let sql = "select pg_terminate_backend(active_pid) from pg_replication_slots
                   where database = current_database() and active";
        while !admin.query(sql, &[]).await.unwrap().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        drop(admin);
        self.server.drop_database(&self.name).await.unwrap();
    }
}
