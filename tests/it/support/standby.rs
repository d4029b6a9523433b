//! A standby of a local server.

use handover_lab::PostgresServer;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// A standby; it ends with this handle, or with the process that holds it.
pub struct Standby {
    pub port: u16,
    child: Child,
}

impl Standby {
    /// Copies `primary` and follows it. `delay` is how far behind it applies what was committed (`1h`).
    pub async fn start(primary: &PostgresServer, delay: &str) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let owner = std::fs::metadata(primary.data_folder()).unwrap();
        let folder = tempfile::tempdir().unwrap().keep();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(&folder, Some(owner.uid()), Some(owner.gid())).unwrap();
        // The shell outlives us by as long as it takes to tidy up.
        let script = "set -e
            cd \"$FOLDER\"
            \"$BIN/pg_basebackup\" --dbname \"$PRIMARY\" -D data -R -c fast -X stream >&2
            printf \"port = %s\\nrecovery_min_apply_delay = '%s'\\nhot_standby = on\\n\" \"$PORT\" \"$DELAY\" >> data/postgresql.auto.conf
            \"$BIN/pg_ctl\" -D data -o \"-p $PORT\" -l log -w start >&2
            echo ready
            read _ || true
            \"$BIN/pg_ctl\" -D data -m immediate stop >&2 || true
            rm -rf \"$FOLDER\"";
        let mut command = Command::new("sh");
        command
            .args(["-c", script])
            .env("FOLDER", &folder)
            .env("BIN", primary.programs().folder())
            .env("PRIMARY", primary.admin_url("postgres"))
            .env("PORT", port.to_string())
            .env("DELAY", delay)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if nix::unistd::geteuid().is_root() {
            command.uid(owner.uid()).gid(owner.gid());
        }
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let ready = tokio::task::spawn_blocking(move || {
            use std::io::BufRead;
            std::io::BufReader::new(stdout).lines().any(|line| line.is_ok_and(|line| line == "ready"))
        });
        assert!(ready.await.unwrap(), "the standby did not start");
        Standby { port, child }
    }

    /// A URL of the primary, led here.
    pub fn instead(&self, url: &str) -> String {
        let mut url = url::Url::parse(url).unwrap();
        url.set_port(Some(self.port)).unwrap();
        url.into()
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        if let Some(mut input) = self.child.stdin.take() {
            let _ = input.write_all(b"\n");
        }
        let _ = self.child.wait();
    }
}
