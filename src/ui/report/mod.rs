//! The report of a run: its journal, folded into what a reader wants to know, in four formats.

mod fold;
mod html;
pub(super) mod markdown;
mod text;
mod timeline;

pub use fold::{Actor, Attempt, Change, Outcome, Report, StepReport, Way, report};
pub use html::html;
pub use markdown::markdown;
pub use text::text;
pub use timeline::{Moment, What};

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
