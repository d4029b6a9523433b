//! `handover demo`: the main job, shown. A live OAuth service on servers of its own is upgraded twice by the
//! engine as operators run it, under traffic, and everything that may not happen is counted. Where asked for, the second
//! upgrade is taken back under traffic, and made again.

mod files;
mod runner;
mod strike;
mod tally;
pub mod verdict;
pub mod way_back;

pub use handover_lab::oauth::servers::{Folders, QueueChoice};
pub use verdict::Verdict;
pub use way_back::WayBack;

use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::ui::{Format, aside};
use handover_lab::oauth::dataset::{DATABASE, Dataset};
use handover_lab::oauth::endpoint::{Gate, Sides};
use handover_lab::oauth::ledger::Ledger;
use handover_lab::oauth::servers::Servers;
use handover_lab::oauth::traffic::Traffic;
use handover_lab::oauth::{audit, endpoint, purge};
use runner::Runner;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use strike::Strike;
use tally::{Honoured, PAUSE_BUDGET};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

/// Beyond the budget, what an answer may take at most.
const GRACE: Duration = Duration::from_secs(1);
/// Traffic before the first plan and after the second.
const AROUND: Duration = Duration::from_secs(1);

/// The step of the second plan behind which everything is taken back.
const BEFORE_FLIP: &str = "replay";

/// What to show.
#[derive(Debug, Clone)]
pub struct Options {
    /// Access tokens on blue.
    pub rows: u64,
    /// Requests a second.
    pub rate: f64,
    /// Kill the engine inside this step.
    pub kill_at: Option<String>,
    /// Take the second plan back when green has taken so many writes, and go forward again.
    pub and_back: Option<u64>,
    /// Leave the servers up.
    pub keep: bool,
    /// Where Postgres is.
    pub folders: Folders,
    /// Which queue.
    pub queue: QueueChoice,
    /// Where progress goes.
    pub format: Format,
}

/// A task that ends when this is dropped.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs the demo and gives its verdict. Everything it started has ended when this returns, unless it was told to
/// keep it.
///
/// # Errors
/// When it could not be shown at all: no Postgres, an unknown step to kill at, or it was asked to stop.
pub async fn run(options: Options, stop: CancellationToken) -> Result<Verdict> {
    let begun = Instant::now();
    let folder = tempfile::Builder::new()
        .prefix("handover-demo-")
        .tempdir()
        .map_err(|e| Error::external(format!("cannot make a folder: {e}")).hint("set TMPDIR to another"))?;
    files::write(folder.path())?;
    let strikes = strikes(folder.path(), options.kill_at.as_deref())?;
    let show = Show { options, folder: folder.path().to_owned(), stop, begun };
    let prepared = tokio::select! {
        prepared = show.prepare() => prepared?,
        () = show.stop.cancelled() => return Err(ended()),
    };
    let result = show.perform(prepared, &strikes).await;
    if show.options.keep {
        // Its guardians keep the servers; the plans stay for `handover status` and the like.
        let _ = folder.keep();
    }
    result
}

/// It was asked to stop.
fn ended() -> Error {
    Error::cancelled().hint("begin the demo anew; nothing of it is left")
}

/// Where the engine is to be killed, for each plan.
fn strikes(folder: &Path, step: Option<&str>) -> Result<BTreeMap<&'static str, Strike>> {
    let mut found = BTreeMap::new();
    let Some(step) = step else { return Ok(found) };
    let mut known = Vec::new();
    for file in [files::FIRST, files::SECOND] {
        let plan = load(folder, file)?;
        if let Some(strike) = Strike::find(&plan, step) {
            found.insert(file, strike);
        }
        known.extend(plan.steps.iter().map(|s| s.id.to_string()));
    }
    if found.is_empty() {
        return Err(Error::usage(format!("neither plan has a step `{step}`")).hint(
            match crate::problem::suggest(step, known.iter().map(String::as_str)) {
                Some(close) => format!("did you mean `{close}`?"),
                None => format!("the steps are: {}", known.join(", ")),
            },
        ));
    }
    Ok(found)
}

fn load(folder: &Path, file: &str) -> Result<Plan> {
    Plan::load(&folder.join(file)).map_err(|_| Error::internal(format!("the example {file} is not sound")))
}

struct Show {
    options: Options,
    folder: PathBuf,
    stop: CancellationToken,
    begun: Instant,
}

struct Prepared {
    servers: Servers,
    gate: Arc<Gate>,
    url: String,
    data: Dataset,
    _tasks: Vec<Task>,
}

impl Show {
    fn say(&self, text: impl std::fmt::Display) {
        aside(self.options.format, format_args!("[{:5.1} s] {text}", self.begun.elapsed().as_secs_f64()));
    }

    /// Starts the servers, fills blue, starts the service.
    async fn prepare(&self) -> Result<Prepared> {
        let options = &self.options;
        self.say("starting Postgres servers for blue, green and control, and a queue");
        let servers = Servers::start(options.folders.clone(), options.queue.clone()).await?;
        self.say(format_args!(
            "blue is Postgres {}, green is Postgres {}; the queue is {}",
            servers.blue.version(),
            servers.green.version(),
            servers.queue_name()
        ));
        let data = Dataset::new(options.rows);
        data.load(&servers.blue, DATABASE).await?;
        self.say(format_args!("blue holds {} tokens of an OAuth service", indicatif::HumanCount(data.rows)));
        let sides =
            Sides { blue: servers.blue.owner_url(DATABASE), green: servers.green.owner_url(DATABASE) };
        let gate = Arc::new(Gate::new(sides).await?);
        let (url, serving) = endpoint::serve(gate.clone()).await?;
        let purging = tokio::spawn(purge::purge(gate.clone(), self.folder.join(files::PURGE_HOLD)));
        let tasks = vec![Task(serving.abort_handle()), Task(purging.abort_handle())];
        Ok(Prepared { servers, gate, url, data, _tasks: tasks })
    }

    /// Both plans under traffic, then the verdict.
    async fn perform(&self, on: Prepared, strikes: &BTreeMap<&str, Strike>) -> Result<Verdict> {
        let mut environment = on.servers.environment();
        environment.push(("OAUTH_URL", on.url.clone()));
        let runner = Runner {
            folder: self.folder.clone(),
            environment,
            programs: on.servers.green.programs().folder().to_owned(),
            format: self.options.format,
            stop: self.stop.clone(),
        };
        let ledger = Ledger::new(on.data, 7);
        let mut traffic = Traffic::start(&on.url, self.options.rate, PAUSE_BUDGET + GRACE, ledger)?;
        self.say(format_args!("traffic: {} requests a second at {}", self.options.rate, on.url));
        self.pause(AROUND).await?;

        let green = on.servers.green.admin(DATABASE).await?;
        let honoured: Honoured = Arc::default();
        let watcher = tokio::spawn(tally::watch_flips(
            on.gate.clone(),
            on.servers.blue.admin(DATABASE).await?,
            on.servers.green.admin(DATABASE).await?,
            traffic.dead_tokens(),
            honoured.clone(),
        ));
        let watcher = Task(watcher.abort_handle());
        let (mut before, mut way) = (None, None);
        let plans = async {
            self.say(format_args!("handover run {}", files::FIRST));
            runner.run(files::FIRST, strikes.get(files::FIRST)).await?;
            before = Some(audit::work(&green).await?);
            self.say(format_args!("handover run {}", files::SECOND));
            runner.run(files::SECOND, strikes.get(files::SECOND)).await?;
            match self.options.and_back {
                Some(writes) => {
                    self.and_back(writes, &on, &runner, &traffic, way.insert(WayBack::default())).await
                }
                None => Ok(()),
            }
        };
        let problem = plans.await.err();
        if self.stop.is_cancelled() {
            return Err(ended());
        }
        if let Some(e) = &problem {
            crate::ui::error(self.options.format, e);
        }
        self.pause(AROUND).await?;
        traffic.stop().await;
        self.say("the traffic has ended; looking at every token");
        let mut verdict = Verdict { plans_done: problem.is_none(), way_back: way, ..Verdict::default() };
        tally::requests(&mut verdict, &traffic, &on.gate.holds());
        if on.gate.state().database == "green" {
            // Sessions report their figures once a second.
            self.pause(Duration::from_millis(1200)).await?;
            if let Some(before) = before {
                tally::work(&mut verdict, before, audit::work(&green).await?);
            }
            let blue = on.servers.blue.admin(DATABASE).await?;
            tally::tokens(&mut verdict, &traffic, &on.gate.serving(), &blue, &green, &honoured).await?;
        }
        drop(watcher);
        verdict.killed = strikes.values().next().map(ToString::to_string);
        for file in [files::FIRST, files::SECOND] {
            let plan = load(&self.folder, file)?;
            tally::journal(&mut verdict, &plan, &on.servers.control_url()).await?;
        }
        verdict.not_flipped =
            tally::not_at("green", &on.gate, &self.folder.join(files::CONFIG), &on.servers).await?;
        verdict.seconds = self.begun.elapsed().as_secs_f64();
        if self.options.keep {
            self.keep(&on, &runner).await?;
        }
        Ok(verdict.judged())
    }

    /// Green takes so many writes; then the second plan is taken back under traffic, and made again.
    async fn and_back(
        &self,
        writes: u64,
        on: &Prepared,
        runner: &Runner,
        traffic: &Traffic,
        way: &mut WayBack,
    ) -> Result<()> {
        self.say(format_args!("green takes {} writes more", indicatif::HumanCount(writes)));
        way.writes_asked = writes;
        let before = traffic.written();
        tokio::select! {
            () = traffic.press(writes) => {}
            () = self.stop.cancelled() => return Err(ended()),
        }
        way.writes_on_green = traffic.written() - before;
        let (holds, begun) = (on.gate.holds().len(), Instant::now());
        self.say(format_args!("handover rollback {} --to {BEFORE_FLIP}", files::SECOND));
        runner.ended_well(&["rollback", files::SECOND, "--to", BEFORE_FLIP]).await?;
        (way.done, way.seconds) = (true, begun.elapsed().as_secs_f64());
        self.say("blue serves again; looking at every token there");
        let blue = on.servers.blue.admin(DATABASE).await?;
        tally::tokens_on_blue(way, traffic, &blue).await?;
        way.not_turned_back =
            tally::not_at("blue", &on.gate, &self.folder.join(files::CONFIG), &on.servers).await?;
        self.pause(AROUND).await?;
        tally::pause_of(way, traffic, on.gate.holds().get(holds..).unwrap_or_default());
        self.say(format_args!("handover resume {}", files::SECOND));
        runner.ended_well(&["resume", files::SECOND]).await
    }

    async fn pause(&self, time: Duration) -> Result<()> {
        tokio::select! {
            () = tokio::time::sleep(time) => Ok(()),
            () = self.stop.cancelled() => Err(ended()),
        }
    }

    /// Leaves everything where it is and says how to look around and how to end it.
    async fn keep(&self, on: &Prepared, runner: &Runner) -> Result<()> {
        let stop = on.servers.keep().await?;
        let file = self.folder.join("environment");
        let lines = runner.environment.iter().map(|(name, value)| format!("export {name}='{value}'\n"));
        std::fs::write(&file, lines.collect::<String>())
            .and_then(|()| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)))
            .map_err(|e| Error::external(format!("cannot write {}: {e}", file.display())))?;
        let psql = on.servers.green.programs().program("psql");
        let psql = psql.display();
        self.say("the servers stay up; the service and its traffic have ended");
        let mut lines = vec![
            "Look around:".to_owned(),
            format!("  cd {} && . ./environment", self.folder.display()),
            format!("  {psql} \"$BLUE_URL\"      # where it came from"),
            format!("  {psql} \"$GREEN_URL\"     # where it is now"),
            format!("  {psql} \"$REGISTRY_URL\" -c 'table service'"),
            format!("  handover status {}", files::SECOND),
            format!("  handover events {}", files::SECOND),
            format!("  handover finish {}", files::SECOND),
            "Stop and remove everything:".to_owned(),
        ];
        lines.extend(stop.iter().map(|command| format!("  {command}")));
        lines.push(format!("  rm -r {}", self.folder.display()));
        for line in lines {
            aside(self.options.format, line);
        }
        Ok(())
    }
}
