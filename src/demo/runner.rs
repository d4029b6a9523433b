//! The engine as operators run it: the program itself as a child process, which can be killed and resumed.

use super::strike::Strike;
use crate::error::{Error, Result};
use crate::failpoint;
use crate::ui::Format;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long a child that was asked to stop may take.
const GRACE: Duration = Duration::from_secs(15);

/// Runs plans in child processes.
pub struct Runner {
    /// The folder that plans are written to.
    pub folder: PathBuf,
    /// What the plans' `${…}` refer to.
    pub environment: Vec<(&'static str, String)>,
    /// Programs that the plans need (pg_dump) are looked for here first.
    pub programs: PathBuf,
    /// Where the children's progress goes: to ours.
    pub format: Format,
    /// Fires when the demo should end.
    pub stop: CancellationToken,
}

impl Runner {
    /// Runs a plan to its end. With a strike, the engine is killed there and the run resumed.
    ///
    /// # Errors
    /// When it does not end well, when the strike was not reached, or the demo was asked to stop.
    pub async fn run(&self, plan: &str, strike: Option<&Strike>) -> Result<()> {
        let Some(strike) = strike else { return self.ended_well(&["run", plan]).await };
        let status = self.child(&["run", plan], Some(&strike.armed())).await?;
        if status.signal() != Some(Signal::SIGKILL as i32) {
            return Err(Error::internal(format!(
                "the engine was not killed inside step `{}`: {} was never reached ({status})",
                strike.step, strike.midway.failpoint
            )));
        }
        crate::ui::aside(self.format, format_args!("SIGKILL: {strike}; resuming"));
        self.ended_well(&["resume", plan]).await
    }

    /// Runs a command of the engine's to its end.
    ///
    /// # Errors
    /// When it does not end well, or the demo was asked to stop.
    pub async fn ended_well(&self, command: &[&str]) -> Result<()> {
        let status = self.child(command, None).await?;
        if status.success() {
            return Ok(());
        }
        Err(Error::external(format!("`handover {}` ended with {status}", command.join(" ")))
            .hint("its error stands above; `handover demo --keep` leaves the servers up for a look"))
    }

    async fn child(&self, arguments: &[&str], armed: Option<&str>) -> Result<ExitStatus> {
        let cannot = |e: std::io::Error| {
            Error::external(format!("cannot start the engine: {e}"))
                .hint("the program must be able to start itself; see its permissions")
        };
        let program = std::env::current_exe().map_err(cannot)?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(self.programs.clone()).chain(std::env::split_paths(&path));
        let path = std::env::join_paths(folders).unwrap_or(path);
        let mut command = tokio::process::Command::new(program);
        command
            .args(arguments)
            .current_dir(&self.folder)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env("PATH", path)
            .env_remove(failpoint::VARIABLE)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if let Some(armed) = armed {
            command.env(failpoint::VARIABLE, armed);
        }
        if self.format == Format::Json {
            // Standard output is for the verdict alone.
            let stderr = std::io::stderr().as_fd().try_clone_to_owned().map_err(cannot)?;
            command.stdout(stderr);
        }
        let mut child = command.spawn().map_err(cannot)?;
        tokio::select! {
            status = child.wait() => return status.map_err(cannot),
            () = self.stop.cancelled() => {}
        }
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
            let _ = child.kill().await;
        }
        Err(Error::cancelled().hint("begin the demo anew; nothing of it is left"))
    }
}
