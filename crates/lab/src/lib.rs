//! Postgres servers, PgBouncers and a RabbitMQ node of our own, on this machine, for the demo and for the tests.
//!
//! Every server has its own folder and free ports on the loopback address, and runs as an unprivileged account
//! when we are root. None outlives the process that started it, not even when that is killed,
//! unless it was told to stay. Nothing here touches servers of the system's.
//!
//! [`oauth`] is what the demo upgrades: a service under traffic, and somebody who counts what goes wrong.
//!
//! It needs the programs of Postgres (and of RabbitMQ), which it looks for and can fetch. Nothing of the product imports
//! it: a build without the feature `lab` leaves it out.
//!
//! ```no_run
//! # async fn example() -> handover_core::Result<()> {
//! use handover_lab::{PostgresOptions, PostgresServer, Programs};
//!
//! let pair = Programs::pair()?;
//! let server = PostgresServer::start(PostgresOptions::new(pair.blue)).await?;
//! server.create_database("shop", None).await?;
//! # Ok(())
//! # }
//! ```

mod account;
mod blocking;
mod guardian;
pub mod oauth;
mod password;
mod pgbouncer;
mod port;
mod postgres;
mod programs;
mod rabbitmq;
mod roles;
mod volume;

pub use pgbouncer::{PGBOUNCER_VARIABLE, PgBouncer, PgBouncerOptions};
pub use postgres::{PostgresOptions, PostgresServer};
pub use programs::{CACHE_VARIABLE, Pair, Programs, Version};
pub use rabbitmq::{RABBITMQ_VARIABLE, RabbitServer};
pub use roles::{ENGINE_ROLE, GRANTS, OWNER_ROLE, READER_ROLE};
