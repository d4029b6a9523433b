//! The report of a run: its journal, folded into what a reader wants to know, in four formats.

mod fold;
mod html;
pub(super) mod markdown;
mod requests;
mod shape;
mod text;
mod timeline;

pub use fold::report;
pub use html::html;
pub use markdown::markdown;
pub use shape::{Actor, Attempt, Change, Moment, Outcome, Report, StepReport, Way, What};
pub use text::text;

/// The formats of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For a terminal.
    #[default]
    Text,
    /// Markdown, for a ticket or a wiki.
    Md,
    /// One object, for programs.
    Json,
    /// One self-contained page.
    Html,
}
