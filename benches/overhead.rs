//! What the engine itself costs: milliseconds per step of a plan of trivial steps with a durable journal, the
//! start-up time of the program, and its peak memory. `cargo bench --bench overhead`.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use handover_lab::{PostgresOptions, PostgresServer, Programs};
use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const STEPS: usize = 1000;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let server = runtime.block_on(async {
        let programs = tokio::task::spawn_blocking(|| Programs::pair().unwrap().blue).await.unwrap();
        let server = PostgresServer::start(PostgresOptions::new(programs).durable(true)).await.unwrap();
        server.create_database("bench", None).await.unwrap();
        server.create_database("control", None).await.unwrap();
        server
            .execute_as_owner("bench", "create table t (id int); create index t_id on t (id)")
            .await
            .unwrap();
        server
    });
    let folder = tempfile::tempdir().unwrap();
    let plan = folder.path().join("plan.yaml");
    // Each step finds its index there already: what is left is connecting, looking, and the journal.
    let mut text = String::from(
        "handover: 1\nname: bench\ndatabases: { db: '${DB_URL}' }\ncontrol: ${CONTROL_URL}\nsteps:\n",
    );
    for n in 0..STEPS {
        writeln!(text, "  - id: s{n}\n    create_index: {{ on: db, indexes: [{{ name: t_id, table: t, columns: [id] }}] }}").unwrap();
    }
    std::fs::write(&plan, text).unwrap();

    for (what, args) in
        [("--version", vec!["--version"]), ("check (1,000 steps)", vec!["check", plan.to_str().unwrap()])]
    {
        let times: Vec<Duration> = (0..20).map(|_| time(&server, &args).0).collect();
        println!("{what}: median {:.1} ms", median(times).as_secs_f64() * 1000.0);
    }
    let (took, peak) = time(&server, &["run", plan.to_str().unwrap()]);
    let per_step = took.as_secs_f64() * 1000.0 / STEPS as f64;
    println!(
        "run of {STEPS} trivial steps: {:.1} s, {per_step:.2} ms per step, peak memory {:.1} MiB",
        took.as_secs_f64(),
        peak as f64 / 1024.0
    );
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// How long a call takes, and its peak resident memory in KiB as the kernel counted it.
fn time(server: &PostgresServer, args: &[&str]) -> (Duration, u64) {
    let program = Path::new(env!("CARGO_BIN_EXE_handover"));
    let begun = Instant::now();
    let mut child = Command::new(program)
        .args(args)
        .env("DB_URL", server.handover_url("bench"))
        .env("CONTROL_URL", server.handover_url("control"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        if let Some(code) = child.try_wait().unwrap() {
            assert!(code.success());
            return (begun.elapsed(), peak);
        }
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        peak = peak.max(line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0));
        std::thread::sleep(Duration::from_micros(200));
    }
}
