//! A plan with its own fresh databases, and the real program run on it.

use super::pooler::{TestPooler, admit};
use super::servers::{self, Database};
use super::snapshot::snapshot;
use handover_lab::PostgresServer;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

/// How one call of the program ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Runs a command to its end.
    pub async fn of(command: &mut tokio::process::Command) -> Self {
        Ended::new(bounded(command).await)
    }

    fn new(output: Output) -> Self {
        Ended {
            code: output.status.code(),
            signal: output.status.signal(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Fails unless it succeeded.
    #[track_caller]
    pub fn success(self) -> Self {
        assert_eq!(self.code, Some(0), "{self}");
        self
    }

    /// Fails unless it exited with `code`.
    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }

    /// Fails unless it was killed by SIGKILL.
    #[track_caller]
    pub fn killed(self) -> Self {
        assert_eq!(self.signal, Some(9), "the failpoint was never reached: {self}");
        self
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "code {:?} signal {:?}\nstdout:\n{}\nstderr:\n{}",
            self.code, self.signal, self.stdout, self.stderr
        )
    }
}

/// Databases `blue`, `green` and `control`, a folder with `plan.yaml` in it, and the environment for them.
pub struct World {
    pub blue: Database,
    pub green: Database,
    pub control: Database,
    pub queue: String,
    pub folder: tempfile::TempDir,
    /// What is run: `handover`, unless a test says otherwise.
    pub program: PathBuf,
    /// Where the clients of the newest version are, for worlds whose blue is too new for those of the machine.
    pub clients: Option<PathBuf>,
    /// In front of blue; see [`World::add_pooler`].
    pub poolers: Vec<TestPooler>,
}

/// The program of an example, which `cargo test` builds.
pub fn example_program(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_handover")).with_file_name("examples").join(name);
    assert!(path.exists(), "{} is not there: cargo build --example {name}", path.display());
    path
}

impl World {
    /// Fresh databases, empty or clones of templates, and the plan's files.
    pub async fn new(blue: Option<&str>, green: Option<&str>, plan: &str, files: &[(&str, &str)]) -> Self {
        World::on(servers::blue().await, blue, green, plan, files).await
    }

    /// The same, with blue on this server.
    pub async fn on(
        blue_server: &'static PostgresServer,
        blue: Option<&str>,
        green: Option<&str>,
        plan: &str,
        files: &[(&str, &str)],
    ) -> Self {
        let green_server = servers::green().await;
        let blue = Database::create(blue_server, blue).await;
        let green = Database::create(green_server, green).await;
        let control = Database::create(green_server, None).await;
        let mut world = World::of(blue, green, control);
        if blue_server.version().major > servers::blue().await.version().major {
            world.clients = Some(servers::programs().await.green.folder().to_owned());
        }
        world.write("plan.yaml", plan);
        for (name, content) in files {
            world.write(name, content);
        }
        world
    }

    /// These databases, an empty folder, and `handover`.
    pub fn of(blue: Database, green: Database, control: Database) -> Self {
        // The embedded queue unless a test says otherwise: it starts at once.
        let queue = control.handover_url();
        let folder = tempfile::tempdir().unwrap();
        World {
            blue,
            green,
            control,
            queue,
            folder,
            program: env!("CARGO_BIN_EXE_handover").into(),
            clients: None,
            poolers: Vec::new(),
        }
    }

    /// Starts a PgBouncer whose entry `shop` leads to blue. Its console is `${POOLER_1}`, its way through `${THROUGH_1}`,
    /// and its file is `pooler-1.ini` beside the plan; another one has the next number.
    pub async fn add_pooler(&mut self, mode: &'static str) {
        admit(&self.blue).await;
        admit(&self.green).await;
        let pooler = TestPooler::start(&self.blue, mode, None).await;
        let link = self.path(&format!("pooler-{}.ini", self.poolers.len() + 1));
        std::os::unix::fs::symlink(pooler.process.config(), link).unwrap();
        self.poolers.push(pooler);
    }

    /// Writes a file beside the plan.
    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The plan.
    pub fn plan(&self) -> PathBuf {
        self.folder.path().join("plan.yaml")
    }

    /// The program, with this world's environment.
    pub fn command(&self) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.program);
        command
            .env("BLUE_URL", self.blue.handover_url())
            .env("GREEN_URL", self.green.handover_url())
            .env("BLUE_READER_URL", self.blue.reader_url())
            .env("GREEN_READER_URL", self.green.reader_url())
            .env("CONTROL_URL", self.control.handover_url())
            .env("QUEUE_URL", &self.queue)
            .env("WORLD", self.folder.path())
            .env("PATH", self.path_variable())
            .env_remove("HANDOVER_FAILPOINT")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        for (i, pooler) in self.poolers.iter().enumerate() {
            command
                .env(format!("POOLER_{}", i + 1), pooler.process.admin_url())
                .env(format!("THROUGH_{}", i + 1), pooler.through_url());
        }
        command
    }

    fn path_variable(&self) -> std::ffi::OsString {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = self.clients.iter().cloned().chain(std::env::split_paths(&path));
        std::env::join_paths(folders).unwrap()
    }

    /// Arguments, with this world's folder for `$WORLD`.
    pub fn args(&self, args: &[&str]) -> Vec<String> {
        args.iter().map(|arg| arg.replace("$WORLD", &self.folder.path().to_string_lossy())).collect()
    }

    /// `handover VERB PLAN ARGS…`.
    pub async fn handover(&self, verb: &str, args: &[&str]) -> Ended {
        let mut command = self.command();
        command.arg(verb).arg(self.plan()).args(self.args(args));
        Ended::of(&mut command).await
    }

    /// The same, with a failpoint armed (`name`, `name:3`, `name:1:stop`).
    pub async fn handover_failing(&self, failpoint: &str, verb: &str, args: &[&str]) -> Ended {
        let mut command = self.command();
        command.env("HANDOVER_FAILPOINT", failpoint).arg(verb).arg(self.plan()).args(self.args(args));
        Ended::of(&mut command).await
    }

    /// Blue and green as text, and where poolers lead: by what is in force, and by their files.
    pub async fn snapshot(&self) -> String {
        let mut out =
            format!("-- blue\n{}-- green\n{}", snapshot(&self.blue).await, snapshot(&self.green).await);
        for pooler in &self.poolers {
            let side = match pooler.leads_to(&self.blue).await {
                true => "blue",
                false if pooler.leads_to(&self.green).await => "green",
                false => "elsewhere",
            };
            let place = |text: &str, database: &Database, word: &str| {
                text.replace(&format!("port={} dbname={}", database.server.port(), database.name), word)
            };
            let file = place(&place(&pooler.config(), &self.blue, "BLUE"), &self.green, "GREEN");
            out.push_str(&format!("-- pooler\nleads to {side}, paused {}\n{file}", pooler.is_paused().await));
        }
        out
    }

    /// A file beside the plan.
    pub fn path(&self, name: &str) -> PathBuf {
        Path::new(self.folder.path()).join(name)
    }

    /// Drops the databases, for tests that make many worlds.
    pub async fn drop_now(self) {
        self.blue.drop_now().await;
        self.green.drop_now().await;
        self.control.drop_now().await;
    }
}

/// Runs a command to its end; one that hangs fails its test rather than the whole suite's time.
pub async fn bounded(command: &mut tokio::process::Command) -> std::process::Output {
    let limit = std::time::Duration::from_secs(300);
    match tokio::time::timeout(limit, command.kill_on_drop(true).output()).await {
        Ok(output) => output.unwrap(),
        Err(_) => panic!("{:?} has not ended after {limit:?}", command.as_std()),
    }
}

/// True while a concurrent index build of the database asked waits for somebody's snapshot. Other tests build on
/// the same server, so the view alone would answer for them too.
pub const BUILDING: &str = "select 1 from pg_stat_progress_create_index where phase like 'waiting%' and datname = current_database()";

/// Waits until `query` finds a row.
pub async fn until(probe: &tokio_postgres::Client, query: &str) {
    for _ in 0..400 {
        if probe.query_opt(query, &[]).await.unwrap().is_some() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("never true: {query}");
}
