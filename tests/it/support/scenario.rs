//! The crash proof of a step kind: kill everywhere and resume, roll back and run again, and compare.

use super::servers::{self, Database};
use super::snapshot::assert_same;
use super::world::{Ended, World, bounded, example_program};
use handover::failpoint;
use handover_lab::PostgresServer;

/// A plan that reaches every failpoint of a step kind, and the databases it starts from.
#[derive(Clone, Default)]
pub struct Scenario {
    /// Whose failpoints it must reach: the text before the dot.
    pub prefixes: &'static [&'static str],
    /// Failpoints that are not the library's.
    pub own: &'static [&'static str],
    /// The program, if it is not `handover`: an example.
    pub example: Option<&'static str>,
    /// The plan; it may use every variable that [`World::command`] sets.
    pub plan: &'static str,
    /// Files beside the plan.
    pub files: &'static [(&'static str, &'static str)],
    /// Whether blue's server is of the version between, whose roles may subscribe.
    pub blue_subscribes: bool,
    /// What the application did on blue before.
    pub blue: &'static str,
    /// What is on green before.
    pub green: &'static str,
    /// Whether a PgBouncer stands before blue.
    pub pooler: bool,
    /// Whether a rollback needs `--accept-loss`.
    pub lossy: bool,
    /// Whether that rollback exports what it loses.
    pub exports: bool,
    /// Whether a rollback brings the databases back to how they were; some kinds leave green's content alone.
    pub rollback_restores: bool,
}

struct Templates {
    blue: Database,
    green: Database,
}

impl Scenario {
    async fn server_of_blue(&self) -> &'static PostgresServer {
        if self.blue_subscribes { servers::between().await } else { servers::blue().await }
    }

    async fn templates(&self) -> Templates {
        Templates {
            blue: Database::with(self.server_of_blue().await, self.blue).await,
            green: Database::with(servers::green().await, self.green).await,
        }
    }

    /// What a rollback of it has to be told.
    fn loss(&self) -> &'static [&'static str] {
        match (self.lossy, self.exports) {
            (true, true) => &["--accept-loss", "--export", "$WORLD/lost"],
            (true, false) => &["--accept-loss"],
            _ => &[],
        }
    }

    async fn world(&self, templates: &Templates) -> World {
        let server = self.server_of_blue().await;
        let mut world =
            World::on(server, Some(&templates.blue.name), Some(&templates.green.name), self.plan, self.files)
                .await;
        if let Some(example) = self.example {
            world.program = example_program(example);
        }
        if self.pooler {
            world.add_pooler("transaction").await;
        }
        world
    }

    fn failpoints(&self) -> impl Iterator<Item = &'static str> {
        failpoint::ALL
            .iter()
            .copied()
            .filter(|name| self.prefixes.iter().any(|p| name.split('.').next() == Some(p)))
            .chain(self.own.iter().copied())
    }

    /// Calls the program with all of `left` armed, and takes those that it reached off the list.
    async fn call(&self, world: &World, how: How, verb: &str, args: &[&str], left: &mut Vec<&str>) -> Ended {
        let mark = world.path("failpoint-mark");
        let points: Vec<String> = left.iter().map(|name| format!("{name}:1:{}", how.action())).collect();
        let mut command = world.command();
        command.env("HANDOVER_FAILPOINT", points.join(",")).env("HANDOVER_FAILPOINT_MARK", &mark);
        let ended = Ended::of(command.arg(verb).arg(world.plan()).args(world.args(args))).await;
        let reached = std::fs::read_to_string(&mark).unwrap_or_default();
        std::fs::remove_file(&mark).unwrap_or_default();
        left.retain(|name| !reached.lines().any(|line| line == *name));
        match how {
            How::Killed if !reached.is_empty() => ended.killed(),
            _ if reached.is_empty() => ended.success(),
            _ => ended,
        }
    }

    /// Calls the program until it succeeds: it is killed, or fails, at the first of `left` that it comes to, and goes on
    /// from there to the next. Whether a failure takes a word of the operator's depends on the kind.
    async fn go_on(&self, world: &World, how: How, verb: &str, args: &[&str], left: &mut Vec<&str>) {
        let mut ended = self.call(world, how, verb, args, left).await;
        while ended.code != Some(0) {
            ended = self.call(world, how, if verb == "finish" { verb } else { "resume" }, &[], left).await;
        }
    }

    /// Loses the connection, or fails, right after each checkpoint that a run and its rollback commit: each attempt comes
    /// one checkpoint further, and all of them together to the same end.
    pub async fn prove_checkpoints(&self, failures: &[&str]) {
        let patient = |line: &str| match line.starts_with("  - id: ") {
            true => format!("{line}\n    retry: {{ attempts: 500, backoff: 0ms }}\n"),
            false => format!("{line}\n"),
        };
        let plan: String = self.plan.lines().map(patient).collect();
        let (templates, loss) = (self.templates().await, self.loss());
        let world = self.world(&templates).await;
        let before = world.snapshot().await;
        world.handover("run", &[]).await.success();
        let expected = world.snapshot().await;
        for failure in failures {
            let world = self.world(&templates).await;
            world.write("plan.yaml", &plan);
            let point = format!("{}:1+:{failure}", failpoint::CHECKPOINT_COMMITTED);
            let failed = async || {
                let count = "select count(*) from handover.record where record ->> 'record' in ('step_failed', 'undo_failed')
                             and record::text like '%checkpoint.committed%'";
                world.control.value(count).await.unwrap().parse::<u32>().unwrap()
            };
            world.handover_failing(&point, "run", &[]).await.success();
            let what = format!("{:?}, {failure} at each checkpoint", self.prefixes);
            assert!(failed().await > 0, "{what}: no checkpoint was reached");
            assert_same(&what, &expected, &world.snapshot().await);
            world.handover_failing(&point, "rollback", loss).await.success();
            if self.rollback_restores {
                assert_same(&format!("{what}, rolled back"), &before, &world.snapshot().await);
            }
            world.drop_now().await;
        }
    }

    /// As [`Scenario::prove_checkpoints`], for a kind that would begin anew at each: one checkpoint fails in each run.
    pub async fn prove_each_checkpoint(&self, failure: &str) {
        let (templates, loss) = (self.templates().await, self.loss());
        let world = self.world(&templates).await;
        let before = world.snapshot().await;
        world.handover("run", &[]).await.success();
        let expected = world.snapshot().await;
        world.drop_now().await;
        let (templates, before, expected) = (&templates, &before, &expected);
        let fails_at = async |number: usize| -> bool {
            let world = self.world(templates).await;
            let point = format!("{}:{number}:{failure}", failpoint::CHECKPOINT_COMMITTED);
            let mut command = world.command();
            command.env("HANDOVER_FAILPOINT", point).env("HANDOVER_FAILPOINT_MARK", world.path("mark"));
            let output = bounded(command.arg("run").arg(world.plan())).await;
            let reached = world.path("mark").exists();
            let what = format!("{:?}, {failure} at checkpoint {number}", self.prefixes);
            if !output.status.success() {
                assert!(reached, "{what}: {}", String::from_utf8_lossy(&output.stderr));
                world.handover("resume", &[]).await.success();
            }
            std::fs::remove_file(world.path("mark")).unwrap_or_default();
            assert_same(&what, expected, &world.snapshot().await);
            if reached {
                world.handover("rollback", loss).await.success();
                if self.rollback_restores {
                    assert_same(&format!("{what}, rolled back"), before, &world.snapshot().await);
                }
            }
            world.drop_now().await;
            reached
        };
        // They mostly wait: several at a time.
        let mut number = 1;
        while futures_util::future::join_all((number..number + 4).map(&fails_at)).await.into_iter().all(|r| r)
        {
            number += 4;
        }
        assert!(number > 4, "{:?}: there are more checkpoints than that", self.prefixes);
    }

    /// Proves it.
    pub async fn prove(&self) {
        let (templates, loss) = (self.templates().await, self.loss());

        // Uninterrupted; rolled back; run again.
        let world = self.world(&templates).await;
        let before = world.snapshot().await;
        world.handover("run", &[]).await.success();
        let expected = world.snapshot().await;
        world.handover("rollback", loss).await.success();
        if self.rollback_restores {
            assert_same("after rollback", &before, &world.snapshot().await);
        }
        world.handover("run", &[]).await.success();
        assert_same("run again after rollback", &expected, &world.snapshot().await);
        world.handover("finish", &[]).await.success();
        world.drop_now().await;

        for how in [How::Killed, How::Failed] {
            let finish = self.failpoints().filter(|name| *name == failpoint::FINISH_STARTED).collect();
            let (undo, run): (Vec<_>, Vec<_>) = self
                .failpoints()
                .filter(|name| *name != failpoint::FINISH_STARTED)
                .partition(|name| name.contains("undo"));
            let mut left = Left { run, undo, finish };
            while !left.is_empty() {
                // What a rollback leaves may keep the next run from a place: it is looked for in a world of its own.
                let together = if alone() { left.take_one() } else { std::mem::take(&mut left) };
                left.add(self.prove_at(how, together, &templates, &before, &expected).await);
            }
        }

        // Killed half-way forward, then rolled back instead of resumed.
        if let Some(name) = self.failpoints().find(|name| !name.contains("undo")) {
            let world = self.world(&templates).await;
            world.handover_failing(name, "run", &[]).await.killed();
            world.handover("rollback", loss).await.success();
            if self.rollback_restores {
                assert_same(&format!("killed at {name}, then rolled back"), &before, &world.snapshot().await);
            }
            world.drop_now().await;
        }
    }

    /// Kills or fails it at these places, and goes on each time, forward and back. Returns those that it did not come to.
    async fn prove_at(
        &self,
        how: How,
        mut left: Left,
        from: &Templates,
        before: &str,
        expected: &str,
    ) -> Left {
        let (world, loss, all) = (self.world(from).await, self.loss(), left.clone());
        self.go_on(&world, how, "run", &[], &mut left.run).await;
        assert_same(&format!("{how:?} at {:?}", all.run), expected, &world.snapshot().await);
        if !all.undo.is_empty() {
            self.go_on(&world, how, "rollback", loss, &mut left.undo).await;
            if self.rollback_restores {
                let what = format!("undo {how:?} at {:?}", all.undo);
                assert_same(&what, before, &world.snapshot().await);
            }
            world.handover("run", &[]).await.success();
            assert_same(&format!("run again after {:?}", all.undo), expected, &world.snapshot().await);
        }
        if !all.finish.is_empty() {
            let ended = self.call(&world, how, "finish", &[], &mut left.finish).await;
            if ended.code != Some(0) {
                // What a rollback needs may be gone already.
                world.handover("rollback", loss).await.code(2);
                world.handover("finish", &[]).await.success();
            }
            assert_same(&format!("finish {how:?}"), expected, &world.snapshot().await);
        }
        assert!(left.len() < all.len(), "never reached: {left:?}");
        world.drop_now().await;
        left
    }
}

/// What happens at a failpoint.
#[derive(Debug, Clone, Copy)]
enum How {
    Killed,
    Failed,
}

impl How {
    fn action(self) -> &'static str {
        match self {
            How::Killed => "kill",
            How::Failed => "error:40001",
        }
    }
}

/// Whether each failpoint gets a world of its own, as in `scripts/soak`. Otherwise one run goes through all of them, killed
/// at each, which takes a fraction of the time.
fn alone() -> bool {
    std::env::var_os("HANDOVER_PROVE_ALONE").is_some()
}

/// Failpoints still to be reached, by the call that comes to them.
#[derive(Debug, Clone, Default)]
struct Left {
    run: Vec<&'static str>,
    undo: Vec<&'static str>,
    finish: Vec<&'static str>,
}

impl Left {
    fn lists(&mut self) -> [&mut Vec<&'static str>; 3] {
        [&mut self.run, &mut self.undo, &mut self.finish]
    }

    fn len(&self) -> usize {
        self.run.len() + self.undo.len() + self.finish.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn take_one(&mut self) -> Left {
        let mut one = Left::default();
        let from = self.lists().into_iter().zip(one.lists()).find(|(from, _)| !from.is_empty());
        if let Some((from, to)) = from {
            to.extend(from.pop());
        }
        one
    }

    fn add(&mut self, other: Left) {
        let Left { run, undo, finish } = other;
        for (to, from) in self.lists().into_iter().zip([run, undo, finish]) {
            to.extend(from);
        }
    }
}
