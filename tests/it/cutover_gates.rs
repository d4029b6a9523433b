//! The gates before a cutover's pause: that a crash at any of them is survived.

use crate::cutover_blockers::TABLE;
use crate::support::scenario::Scenario;

/// The first step starts somebody whose transaction is in the way, and somebody who approves again and again, until the
/// folder goes with the test.
const SCENARIO: &str = r#"
handover: 1
name: gates
databases: { blue: '${BLUE_URL}', green: '${GREEN_URL}' }
control: ${CONTROL_URL}
steps:
  - id: intruder
    lever: { command: { apply: [sh, intruder.sh], revert: [rm, -f, intruded], check: [test, -e, intruded], env: { BLUE_URL: '${BLUE_URL}', CONTROL_URL: '${CONTROL_URL}', GREEN_URL: '${GREEN_URL}' } } }
  - id: flip
    retry: { attempts: 1 }
    cutover:
      freeze: blue
      to: green
      write_pause: 3s
      attempts: 3
      backoff: 100ms
      max_transaction_age: 100ms
      allow_served: true
      blockers: { do: terminate, older_than: 100ms }
      approve: before_freeze
      invariants:
        - { name: tokens, before: select count(*) from token }
        - { name: active tokens, before: select count(*) from token where active, quick: true }
      participants:
        - name: config
          file: { path: switch.conf, content: "database = green\n" }
"#;

const INTRUDER: &str = r#"PGAPPNAME=intruder psql "$BLUE_URL" -c "begin; update token set active = false where id = 4711; select pg_sleep(30)" >/dev/null 2>&1 &
holds="select 1 from pg_stat_activity where application_name = 'intruder' and datname = current_database() and wait_event = 'PgSleep'"
until [ "$(psql "$BLUE_URL" -Atc "$holds")" = 1 ]; do sleep 0.05; done
touch intruded
exe=$(readlink /proc/$PPID/exe)
(i=0; while [ -e intruded ] && [ $i -lt 5000 ]; do "$exe" approve plan.yaml flip --by alice; i=$((i+1)); sleep 0.2; done) >/dev/null 2>&1 &
"#;

pub fn scenario() -> Scenario {
    Scenario {
        prefixes: &["gate"],
        plan: SCENARIO,
        files: &[("switch.conf", "database = blue\n"), ("intruder.sh", INTRUDER)],
        blue: TABLE,
        green: TABLE,
        lossy: true,
        ..Scenario::default()
    }
}
