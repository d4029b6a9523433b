//! A PgBouncer in front of a world's old side, with a role that may log in on both sides.

use super::servers::Database;
use handover_lab::{PgBouncer, PgBouncerOptions};
use std::path::PathBuf;
use tokio_postgres::SimpleQueryMessage;

/// Who connects through it: the same on every server.
const WEB: (&str, &str) = ("web", "web-x8Kq2mV9tRz4");

/// One PgBouncer whose entry `shop` leads to a database.
#[derive(Debug, Clone)]
pub struct TestPooler {
    pub process: PgBouncer,
}

/// Lets the clients' role use a database's tables, as far as there are some.
pub async fn admit(database: &Database) {
    let sql = format!(
        "do $$ begin create role {0} login password '{1}';
         exception when duplicate_object or unique_violation then null; end $$;
         grant usage on schema public to {0}; grant all on all tables in schema public to {0};
         grant all on all sequences in schema public to {0};",
        WEB.0, WEB.1
    );
    database.admin().await.batch_execute(&sql).await.unwrap();
}

/// Where a database is, as an entry says it.
pub fn place(database: &Database) -> String {
    format!("host=127.0.0.1 port={} dbname={}", database.server.port(), database.name)
}

impl TestPooler {
    pub async fn start(database: &Database, mode: &'static str, config: Option<PathBuf>) -> Self {
        let entries = format!("; the application's\nshop = {}  pool_size=5", place(database));
        let users = vec![(WEB.0.to_owned(), WEB.1.to_owned())];
        let options = PgBouncerOptions { entries, mode, users, config };
        TestPooler { process: PgBouncer::start(options).await.unwrap() }
    }

    pub fn through_url(&self) -> String {
        format!("postgres://{}:{}@127.0.0.1:{}/shop", WEB.0, WEB.1, self.process.port())
    }

    /// A connection to one of its databases, as the application's.
    pub async fn client(&self) -> tokio_postgres::Client {
        connect(&self.through_url()).await
    }

    pub async fn console(&self) -> tokio_postgres::Client {
        connect(&self.process.admin_url()).await
    }

    /// One column of the entry, in force.
    pub async fn says(&self, column: &str) -> String {
        let rows = self.console().await.simple_query("SHOW DATABASES").await.unwrap();
        let value = rows.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) if row.get("name") == Some("shop") => {
                row.get(column).map(str::to_owned)
            }
            _ => None,
        });
        value.unwrap()
    }

    pub async fn is_paused(&self) -> bool {
        self.says("paused").await == "1"
    }

    pub async fn leads_to(&self, database: &Database) -> bool {
        (self.says("port").await, self.says("database").await)
            == (database.server.port().to_string(), database.name.clone())
    }

    pub fn config(&self) -> String {
        std::fs::read_to_string(self.process.config()).unwrap()
    }
}

async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}
