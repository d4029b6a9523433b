//! `handover man`: manual pages.

use crate::error::{Error, Result};
use crate::ui::{self, out};
use std::path::PathBuf;
use std::process::ExitCode;

/// Shown under `--help`.
pub const EXAMPLES: &str = "Examples:
  handover man | man -l -
  handover man --into /usr/local/share/man/man1";

/// Arguments of `man`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write the page of every command into this folder, instead of the main page to standard output.
    #[arg(long, value_name = "FOLDER")]
    into: Option<PathBuf>,
}

/// Writes the pages.
pub fn run(program: clap::Command, args: &Args) -> Result<ExitCode> {
    let Some(folder) = &args.into else {
        let mut page = Vec::new();
        clap_mangen::Man::new(program)
            .render(&mut page)
            .map_err(|e| Error::internal(format!("cannot write the page ({e})")))?;
        ui::raw(&page);
        return Ok(ExitCode::SUCCESS);
    };
    let write = || {
        std::fs::create_dir_all(folder)?;
        clap_mangen::generate_to(program, folder)
    };
    write().map_err(|e| {
        Error::external(format!("cannot write the manual pages ({e})"))
            .in_file(folder.display(), None)
            .hint("name a folder that you may write to")
    })?;
    out(format_args!("manual pages are in {}", folder.display()));
    Ok(ExitCode::SUCCESS)
}
