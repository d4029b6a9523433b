//! Actions outside the transactions of the plan's databases: commands, HTTP requests, files, and single SQL statements.
//!
//! Nothing here can be committed together with a checkpoint. So [`Actions`] keeps the intention before it acts, ends or
//! waits for what an interrupted runner left, and restores a file byte by byte; whoever uses it must name an effect that
//! is safe to repeat. A secret never comes out: not in an error, not in what is quoted of a command's output.
//!
//! It needs a port ([`handover_port::Port`]), and for commands a Unix system.
//!
//! ```
//! use handover_actions::Command;
//!
//! let command: Command = serde_json::from_value(serde_json::json!(["sh", "-c", "true"]))?;
//! assert!(format!("{command:?}").contains("sh"));
//! # Ok::<(), serde_json::Error>(())
//! ```

mod action;
mod actions;
pub mod command;
pub mod file;
pub mod http;
pub mod process;
pub mod sql;
mod words;

pub use action::{Act, Action};
pub use actions::Actions;
pub use command::{Command, Ran};
pub use file::{FileWrite, Original};
pub use http::{Answer, Http, Verb};
pub use sql::Sql;
pub use words::{check_env, line, one_of};
