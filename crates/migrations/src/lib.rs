//! Folders of SQL migrations, applied through refinery; a vendor's as it is.
//!
//! Each file is one fenced transaction in which its effect and refinery's history row commit together, so the
//! history is the checkpoint. Files that cannot run in a transaction go statement by statement, with a record
//! before and after each, and a look at the database where the record does not tell. A file waits for its locks
//! in short attempts, so that no traffic queues behind it for long. What a vendor's own tool would have written into
//! its table is written in the same transaction, so that a service which migrates when it starts finds all done.
//!
//! It needs a port ([`handover_port::Port`]), and our schema in the database ([`handover_postgres::install`]).
//!
//! - [`check()`] reads the folders and connects to nothing; [`describe()`] says what a run would do.
//! - [`run`], [`verify`] and [`undo`] act. Each may be called again after a crash.
//!
//! ```
//! use handover_core::problem::Problems;
//! use handover_migrations::{Migrate, check};
//!
//! let folder = std::env::temp_dir().join(format!("migrations-{}", std::process::id()));
//! std::fs::create_dir_all(folder.join("m"))?;
//! std::fs::write(folder.join("m/V1__a.sql"), "create table a (id int)")?;
//! let step: Migrate = serde_json::from_value(serde_json::json!({ "on": "green", "dir": "m" }))?;
//!
//! // The first version of a table needs a way back, or the word that there is none.
//! let mut problems = Problems::default();
//! check(&step, &folder, &mut problems);
//! assert!(problems.has_errors());
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod act;
mod apply;
mod check;
mod culprit;
mod describe;
mod files;
mod folder;
mod history;
mod lex;
mod lint;
mod locks;
mod names;
mod options;
mod overrides;
mod place;
mod probe;
pub mod role;
mod script;
mod sections;
mod star;
mod status;
mod stepwise;
mod tail;
pub mod thrown_away;
mod together;
mod undo;
mod vendor;
mod watch;
mod worker;

pub use act::{Applied, run, undo, verify};
pub use check::check;
pub use describe::{describe, whole_rows};
pub use names::Names;
pub use options::{Baseline, BaselineFile, History, Migrate, UndoBy};
pub use star::Readers;
