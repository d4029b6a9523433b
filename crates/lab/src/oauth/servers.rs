//! The demo's servers: blue, green and control, and the queue.

use super::dataset::DATABASE;
use crate::{Pair, PostgresOptions, PostgresServer, Programs, RabbitServer};
use handover_core::error::{Error, Result};
use std::path::PathBuf;

/// The journal's database, on the control server.
const CONTROL: &str = "control";
/// The database of the team's service registry, also there.
const REGISTRY: &str = "registry";

const REGISTRY_SQL: &str = "
    create table service (name text primary key, database text not null, release text not null);
    insert into service values ('oauth', 'blue', '1.10');";

/// Which queue carries the captured writes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum QueueChoice {
    /// `QUEUE_URL` if it is set, else RabbitMQ if it is installed, else the embedded queue.
    #[default]
    Auto,
    /// A RabbitMQ node of the demo's own.
    RabbitMq,
    /// The queue inside the control server.
    Embedded,
}

/// Where to find Postgres.
#[derive(Debug, Clone, Default)]
pub struct Folders {
    /// The old side's programs.
    pub blue: Option<PathBuf>,
    /// The new side's.
    pub green: Option<PathBuf>,
}

impl Folders {
    fn pair(self) -> Result<Pair> {
        let at = |folder: Option<PathBuf>| folder.map(|f| Programs::at(&f)).transpose();
        Ok(match (at(self.blue)?, at(self.green)?) {
            (Some(blue), Some(green)) => Pair { blue, green },
            (Some(blue), None) => {
                let found = Programs::pair()?;
                // Never an older server on the new side.
                let newer = found.green.version() >= blue.version();
                Pair { green: if newer { found.green } else { blue.clone() }, blue }
            }
            (None, Some(green)) => {
                let found = Programs::pair()?;
                let older = found.blue.version() <= green.version();
                Pair { blue: if older { found.blue } else { green.clone() }, green }
            }
            (None, None) => Programs::pair()?,
        })
    }
}

/// Everything that runs beside the service. Dropping it stops and removes it all.
pub struct Servers {
    /// The old side.
    pub blue: PostgresServer,
    /// The new side.
    pub green: PostgresServer,
    /// The journal's server.
    pub control: PostgresServer,
    rabbit: Option<RabbitServer>,
    queue: String,
}

impl Servers {
    /// Starts them, with their databases and roles.
    ///
    /// # Errors
    /// When Postgres cannot be found, fetched or started, or the RabbitMQ that was asked for cannot.
    pub async fn start(folders: Folders, queue: QueueChoice) -> Result<Self> {
        let pair = tokio::task::spawn_blocking(move || folders.pair())
            .await
            .map_err(|e| Error::internal(e.to_string()))??;
        let server = |programs: &Programs| PostgresServer::start(PostgresOptions::new(programs.clone()));
        let (blue, green, control, rabbit) =
            tokio::join!(server(&pair.blue), server(&pair.green), server(&pair.green), start_rabbit(&queue));
        let (blue, green, control, rabbit) = (blue?, green?, control?, rabbit?);
        blue.create_database(DATABASE, None).await?;
        green.create_database(DATABASE, None).await?;
        control.create_database(CONTROL, None).await?;
        control.create_database(REGISTRY, None).await?;
        control.execute_as_owner(REGISTRY, REGISTRY_SQL).await?;
        let given = std::env::var("QUEUE_URL").ok().filter(|url| !url.is_empty());
        let queue = match (&rabbit, given) {
            (Some(rabbit), _) => rabbit.url(),
            (None, Some(url)) if queue == QueueChoice::Auto => url,
            (None, _) => control.handover_url(CONTROL),
        };
        Ok(Servers { blue, green, control, rabbit, queue })
    }

    /// The environment that the plans' `${…}` refer to. Holds passwords.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("BLUE_URL", self.blue.handover_url(DATABASE)),
            ("BLUE_READER_URL", self.blue.reader_url(DATABASE)),
            ("GREEN_URL", self.green.handover_url(DATABASE)),
            ("GREEN_READER_URL", self.green.reader_url(DATABASE)),
            ("CONTROL_URL", self.control_url()),
            ("REGISTRY_URL", self.control.handover_url(REGISTRY)),
            ("QUEUE_URL", self.queue.clone()),
        ]
    }

    /// The URL of the journal's database. Holds a password.
    #[must_use]
    pub fn control_url(&self) -> String {
        self.control.handover_url(CONTROL)
    }

    /// A connection of the superuser's to the service registry.
    ///
    /// # Errors
    /// When the server does not let it in.
    pub async fn registry(&self) -> Result<tokio_postgres::Client> {
        self.control.admin(REGISTRY).await
    }

    /// The queue in a word.
    #[must_use]
    pub fn queue_name(&self) -> &'static str {
        if self.queue.starts_with("amqp") { "RabbitMQ" } else { "the embedded queue" }
    }

    /// Leaves everything running when this process ends; gives the commands that end it.
    ///
    /// # Errors
    /// When a server's guardian is gone.
    pub async fn keep(&self) -> Result<Vec<String>> {
        let mut commands = Vec::new();
        for server in [&self.blue, &self.green, &self.control] {
            commands.push(server.keep().await?);
        }
        if let Some(rabbit) = &self.rabbit {
            commands.push(rabbit.keep().await?);
        }
        Ok(commands)
    }
}

async fn start_rabbit(choice: &QueueChoice) -> Result<Option<RabbitServer>> {
    match choice {
        QueueChoice::Embedded => Ok(None),
        QueueChoice::RabbitMq => RabbitServer::start().await.map(Some),
        QueueChoice::Auto => {
            let given = std::env::var_os("QUEUE_URL").is_some_and(|url| !url.is_empty());
            if given || RabbitServer::installed().is_none() {
                return Ok(None);
            }
            // Installed but not able to start is as good as not installed.
            Ok(RabbitServer::start().await.ok())
        }
    }
}
