//! The crash proof of a step kind: kill everywhere and resume, roll back and run again, and compare.

use super::servers::{self, Database};
use super::snapshot::assert_same;
use super::world::{World, bounded, example_program};
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

    /// Whether failures are tried everywhere, and not only kills: what takes too long for each change.
    fn fails(&self) -> bool {
        let always = ["engine", "cutover", "gate", "checkpoint", "pooler"];
        std::env::var_os("HANDOVER_PROVE_ERRORS").is_some()
            || self.prefixes.iter().any(|p| always.contains(p))
    }

    /// Fails at a failpoint; goes on until it succeeds. Whether that takes a word of the operator's depends on the kind.
    async fn fail_and_go_on(&self, world: &World, name: &str, verb: &str, args: &[&str]) {
        let mark = world.path("failpoint-mark");
        let mut command = world.command();
        command
            .env("HANDOVER_FAILPOINT", format!("{name}:1:error:40001"))
            .env("HANDOVER_FAILPOINT_MARK", &mark);
        let output = bounded(command.arg(verb).arg(world.plan()).args(world.args(args))).await;
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(mark.exists(), "{name} was not reached: {text}");
        std::fs::remove_file(&mark).unwrap();
        if !output.status.success() {
            world.handover(if verb == "finish" { verb } else { "resume" }, &[]).await.success();
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

        // Killed at every failpoint, resumed. Those of an undo are reached by a rollback.
        for name in self.failpoints() {
            let world = self.world(&templates).await;
            if name.contains("undo") {
                world.handover("run", &[]).await.success();
                world.handover_failing(name, "rollback", loss).await.killed();
                world.handover("resume", &[]).await.success();
                if self.rollback_restores {
                    assert_same(&format!("undo killed at {name}"), &before, &world.snapshot().await);
                }
                world.handover("run", &[]).await.success();
            } else if name == failpoint::FINISH_STARTED {
                world.handover("run", &[]).await.success();
                world.handover_failing(name, "finish", &[]).await.killed();
                // What a rollback needs may be gone already.
                world.handover("rollback", loss).await.code(2);
                world.handover("finish", &[]).await.success();
            } else {
                world.handover_failing(name, "run", &[]).await.killed();
                world.handover("resume", &[]).await.success();
            }
            assert_same(&format!("killed at {name}"), &expected, &world.snapshot().await);
            world.drop_now().await;
        }

        // An error at each of them: tried again by itself or by the operator, it comes to the same.
        for name in self.failpoints().filter(|_| self.fails()) {
            let world = self.world(&templates).await;
            if name.contains("undo") {
                world.handover("run", &[]).await.success();
                self.fail_and_go_on(&world, name, "rollback", loss).await;
                if self.rollback_restores {
                    assert_same(&format!("undo failed at {name}"), &before, &world.snapshot().await);
                }
                world.handover("run", &[]).await.success();
            } else if name == failpoint::FINISH_STARTED {
                world.handover("run", &[]).await.success();
                self.fail_and_go_on(&world, name, "finish", &[]).await;
            } else {
                self.fail_and_go_on(&world, name, "run", &[]).await;
            }
            assert_same(&format!("failed at {name}"), &expected, &world.snapshot().await);
            world.drop_now().await;
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
}
