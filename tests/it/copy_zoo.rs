//! `copy` of a schema with something of every kind: what pg_dump and the rows say of both sides must agree.

use crate::support::context::{context, kind};
use crate::support::servers::{self, Database};
use crate::support::snapshot::{assert_same, snapshot};
use handover::steps::{Context, StepKind};
use handover_lab::PostgresServer;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use tokio::sync::Mutex;

/// Roles that own and use some of the zoo; they belong to the server, so they are made once for each.
const ROLES: &str = r#"
create role zoo_keeper; create role "Zoo; visitor";
grant zoo_keeper to app; grant zoo_keeper to handover;
"#;

pub async fn roles(server: &'static PostgresServer) {
    static DONE: Mutex<Option<HashMap<u16, ()>>> = Mutex::const_new(None);
    let mut done = DONE.lock().await;
    if done.get_or_insert_default().insert(server.port(), ()).is_none() {
        // The roles `app` and `handover` come with the first database.
        Database::create(server, None).await;
        server.admin("postgres").await.unwrap().batch_execute(ROLES).await.unwrap();
    }
}

pub async fn zoo(server: &'static PostgresServer, files: &[&str]) -> Database {
    let database = Database::create(server, None).await;
    let client = database.admin().await;
    for file in files {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it").join(file);
        let sql = std::fs::read_to_string(path).unwrap();
        // Sections are transactions of their own: a new word of an enum is of use only in the next one.
        for sql in sql.split("\n\n") {
            let Err(error) = client.batch_execute(sql).await else { continue };
            let db = error.as_db_error().unwrap();
            let at = match db.position() {
                Some(tokio_postgres::error::ErrorPosition::Original(at)) => *at as usize,
                _ => 0,
            };
            let near: String = sql.chars().skip(at.saturating_sub(1)).take(200).collect();
            panic!("{file}: {} {:?} {:?} near: {near}", db.message(), db.detail(), db.where_());
        }
    }
    database
}

/// What the newer pg_dump says of a database, as sorted entries.
///
/// Left out is what must differ: the lines that name server, program and session key. The order of entries is
/// of no meaning among those that do not depend on each other (it goes by oid), hence sorted.
async fn dumped(database: &Database) -> String {
    let program = servers::programs().await.green.program("pg_dump");
    let output = tokio::process::Command::new(program)
        .args(["--schema-only", "--exclude-schema=handover", "--exclude-schema=handover_queue", "--dbname"])
        .arg(database.server.admin_url(&database.name))
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let text = text.split("--\n-- PostgreSQL database dump complete").next().unwrap();
    let mut entries: Vec<String> = text
        .split("--\n-- Name: ")
        .skip(1)
        .filter(|entry| !is_of_one_side(entry))
        .map(|entry| {
            let mut entry = entry.trim_end().replace('\n', "⏎");
            // From 16 on a view's columns are qualified only where there is more than one table.
            if ["VIEW", "MATERIALIZED VIEW", "RULE"]
                .iter()
                .any(|kind| entry.contains(&format!("; Type: {kind};")))
            {
                entry = unqualified(&entry);
            }
            as_of_any_version(&entry)
        })
        .collect();
    entries.sort();
    entries.iter().map(|e| format!("{e}\n")).collect()
}

/// Without what only one version says, or says otherwise, of what is the same.
fn as_of_any_version(entry: &str) -> String {
    let mut entry = entry
        // All rights of an owner before Postgres 17, seen by a pg_dump that knows of one more.
        .replace("REVOKE SELECT,INSERT,REFERENCES,DELETE,TRIGGER,TRUNCATE,UPDATE ON", "REVOKE ALL ON")
        .replace(",MAINTAIN", "")
        // What initdb gave schema public to before Postgres 15.
        .replace("Schema: -; Owner: pg_database_owner", "Schema: -; Owner: postgres");
    // Since Postgres 14, IN is written for procedures, and a range has a multirange.
    if entry.contains("; Type: PROCEDURE;") {
        entry = entry.replace("(IN ", "(");
    }
    while entry.contains(" AS RANGE (")
        && let Some(at) = entry.find("    multirange_type_name = ")
        && let Some(end) = entry[at..].find('⏎')
    {
        entry.replace_range(at..at + end + '⏎'.len_utf8(), "");
    }
    entry
}

/// What is not the same: schema public, which exists, and is given to nobody; a grant on a catalog that scripts/grants.sql
/// makes for Postgres 13; and a child whose columns stand in its parents' order afterwards, as pg_dump makes it.
fn is_of_one_side(entry: &str) -> bool {
    [
        "public; Type: SCHEMA; ",
        "TABLE pg_largeobject; Type: ACL; ",
        "adopted; Type: TABLE; Schema: z08_inherited; ",
    ]
    .iter()
    .any(|name| entry.starts_with(name))
}

/// Without the names of tables and schemas before those of columns and the like.
fn unqualified(text: &str) -> String {
    let mut out: Vec<String> = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for c in text.chars() {
        quoted ^= c == '"';
        if c == '.' && !quoted && word.starts_with(|c: char| c.is_alphabetic() || c == '"') {
            word.clear();
        } else if quoted || c == '"' || c.is_alphanumeric() || c == '_' {
            word.push(c);
        } else {
            out.push(std::mem::take(&mut word));
            out.push(c.into());
        }
    }
    out.push(word);
    out.concat()
}

/// What pg_dump does not say, or says only with the rows.
const FACTS: &[&str] = &[
    "select 'large object', m.oid, md5(lo_get(m.oid)), length(lo_get(m.oid)), m.lomowner::regrole, m.lomacl,
            obj_description(m.oid, 'pg_largeobject') from pg_largeobject_metadata m where m.oid < 16384 or true",
    // In no order, and without what is the default.
    "select 'acl', c.oid::regclass, a.acl from pg_class c join pg_namespace n on n.oid = c.relnamespace
     cross join lateral (select array(select unnest(c.relacl)::text order by 1) as acl,
         array(select unnest(acldefault(case c.relkind when 'S' then 's' else 'r' end::\"char\", c.relowner))::text order by 1) as usual) a
     where c.relacl is not null and a.acl <> a.usual and n.nspname not like 'pg\\_%' and n.nspname !~ 'handover|information_schema'",
    "select 'default acl', defaclrole::regrole, defaclnamespace::regnamespace, defaclobjtype, defaclacl from pg_default_acl",
    // Schema public stays with whom initdb gave it to: another role before Postgres 15.
    "select 'schema', nspname, nullif(nspowner::regrole::text, 'postgres') from pg_namespace
     where nspname !~ '^pg_|handover|information_schema' and nspowner::regrole::text <> 'pg_database_owner'
       and (nspname, nspowner) <> ('public', 10)",
    "select 'extension', extname, extnamespace::regnamespace, extversion is not null from pg_extension",
    "select 'populated', oid::regclass, relispopulated from pg_class where relkind = 'm'",
    "select 'invalid index', indexrelid::regclass from pg_index where not indisvalid or not indisready",
    "select 'analyzed', c.oid::regclass, c.reltuples >= 0 from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.relkind in ('r', 'm') and n.nspname !~ '^pg_|handover|information_schema' and false",
];

/// Rows, positions of sequences, and facts.
async fn content(database: &Database) -> String {
    let all = snapshot(database).await;
    // The value of an enum hashes by its oid, which is the server's own: only the whole of this table compares.
    // And a child's columns stand in its parents' order afterwards, which is compared by name below.
    let rows = all.lines().filter(|l| {
        l.starts_with("content ") && !l.contains(" public.moods_by_") && !l.contains(" z08_inherited.")
    });
    let mut out: String = rows.map(|l| format!("{l}\n")).collect();
    let client = database.admin().await;
    for query in FACTS {
        let sql = format!("select x from (select q::text as x from ({query}) q) y order by x collate \"C\"");
        for row in client.query(&sql, &[]).await.unwrap() {
            // MAINTAIN came with Postgres 17: owners have it there, also those who gave away all they had before,
            // when it is a newer pg_dump that lists what they gave away.
            let line: String = row.get(0);
            writeln!(out, "{}", line.replace("dDxtm", "dDxt").replace("{app=rm/app}", "{app=r/app}"))
                .unwrap();
        }
    }
    for table in ["parent", "child", "grand", "adopted", "orphan"] {
        let name = format!("z08_inherited.{table}");
        if client.query_one("select to_regclass($1) is not null", &[&name]).await.unwrap().get(0) {
            let sql = format!("select string_agg(to_jsonb(t)::text, ';' order by id) from only {name} t");
            writeln!(
                out,
                "{name} {:?}",
                client.query_one(&sql, &[]).await.unwrap().get::<_, Option<String>>(0)
            )
            .unwrap();
        }
    }
    if client.query_one("select to_regclass('moods_by') is not null", &[]).await.unwrap().get(0) {
        let sql = "select string_agg(m::text, ',' order by m) from moods_by";
        let moods: Option<String> = client.query_one(sql, &[]).await.unwrap().get(0);
        writeln!(out, "moods {moods:?}").unwrap();
    }
    out
}

async fn assert_equal(what: &str, blue: &Database, green: &Database) {
    assert_same(&format!("{what}: rows"), &content(blue).await, &content(green).await);
    assert_same(&format!("{what}: pg_dump"), &dumped(blue).await, &dumped(green).await);
}

fn options(more: Value) -> Value {
    let mut options =
        json!({ "from": "blue", "to": "green", "jobs": 2, "chunk_mb": 1, "publications": true });
    options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    options
}

/// Copies, compares, takes it back, and compares with what green was before.
pub async fn proves(
    what: &str,
    blue: &Database,
    green: &Database,
    urls: [String; 2],
    programs: Option<&Path>,
) {
    let before = (dumped(green).await, content(green).await);
    let (cx, step) = arrives(what, blue, green, urls, programs).await;
    step.undo(&cx).await.unwrap();
    assert_same(&format!("{what}: undone"), &before.0, &dumped(green).await);
    assert_same(&format!("{what}: undone"), &before.1, &content(green).await);
}

/// Copies and compares.
pub async fn arrives(
    what: &str,
    blue: &Database,
    green: &Database,
    urls: [String; 2],
    programs: Option<&Path>,
) -> (Context, Arc<dyn StepKind>) {
    let [from, to] = urls;
    let (cx, _events) = context("copy", &[("blue", from), ("green", to)], &["green"]).await;
    let step = kind("copy", options(programs.map_or(json!({}), |programs| json!({ "programs": programs }))));
    let described = step.describe(&cx).await.unwrap();
    assert_eq!(described.blockers, Vec::<String>::new());
    step.run(&cx).await.unwrap();
    step.verify(&cx).await.unwrap();
    assert_equal(what, blue, green).await;
    (cx, step)
}

/// The newer programs, which are not where they would be looked for.
pub async fn newer() -> Option<&'static Path> {
    Some(servers::programs().await.green.folder())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_zoo_arrives_on_a_newer_server() {
    let (old, new) = (servers::blue().await, servers::green().await);
    roles(old).await;
    roles(new).await;
    let (blue, green) = (zoo(old, &["zoo.sql"]).await, Database::create(new, None).await);
    // With the older pg_dump, and with the newer.
    for programs in [None, newer().await] {
        proves("old to new", &blue, &green, [blue.handover_url(), green.handover_url()], programs).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_zoo_arrives_among_servers_of_the_new_version() {
    let new = servers::green().await;
    roles(new).await;
    let (blue, green) = (zoo(new, &["zoo.sql", "zoo_new.sql"]).await, Database::create(new, None).await);
    proves("new to new", &blue, &green, [blue.handover_url(), green.handover_url()], newer().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_zoo_of_a_superuser_arrives_among_servers_of_the_old_version() {
    let old = servers::blue().await;
    roles(old).await;
    let (blue, green) =
        (zoo(old, &["zoo.sql", "zoo_superuser.sql"]).await, Database::create(old, None).await);
    let url = |d: &Database| old.admin_url(&d.name);
    proves("old to old", &blue, &green, [url(&blue), url(&green)], None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_is_in_the_way_is_told_at_once() {
    let old = servers::blue().await;
    roles(old).await;
    let (blue, green) =
        (zoo(old, &["zoo.sql", "zoo_superuser.sql"]).await, Database::create(old, None).await);
    blue.admin()
        .await
        .batch_execute(
            "create role zoo_stranger; create table strange (id int); alter table strange owner to zoo_stranger;
             create role zoo_hidden; create schema closed; create table closed.t (id int); alter table closed.t owner to zoo_hidden;
             alter table closed.t enable row level security; select lo_from_bytea(4000, ''); alter large object 4000 owner to zoo_hidden",
        )
        .await
        .unwrap();
    let (cx, _events) =
        context("copy", &[("blue", blue.handover_url()), ("green", green.handover_url())], &["green"]).await;
    let step = kind("copy", options(json!({ "exclude": { "tables": ["hen", "customer"] } })));
    let described = step.describe(&cx).await.unwrap();
    let error = step.run(&cx).await.unwrap_err();
    for (i, text) in [
        "row security would hide rows of closed.t",
        "no right to read 1 of 7",
        "objects cannot be given to their owners",
        "zoo_stranger",
        "only a superuser can create on green: ",
        "something that is copied needs what is left out: ",
        "view grouped needs table customer",
        "foreign key egg_hen_fkey of egg points to hen",
        "only a superuser can create the extensions",
    ]
    .iter()
    .enumerate()
    {
        assert!(
            described.blockers.iter().any(|b| b.contains(text)),
            "{i}: {text}: {:#?}",
            described.blockers
        );
        assert!(error.message().contains(text), "{i}: {text}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_and_parents_may_be_left_out() {
    let sql = "create table p (id int) partition by range (id); create index on p (id);
         create table p1 partition of p for values from (0) to (10); create table p2 partition of p for values from (10) to (20);
         insert into p select generate_series(0, 19); create table q (id int) partition by list (id);
         create table q1 partition of q for values in (1); insert into q values (1); create table empty_one (id int);
         insert into empty_one values (1); create schema other; create table other.t (id int); create view v as select * from p";
    let (blue, green) = (
        Database::with(servers::blue().await, sql).await,
        Database::create(servers::green().await, None).await,
    );
    let (cx, _events) =
        context("copy", &[("blue", blue.handover_url()), ("green", green.handover_url())], &["green"]).await;
    let step = kind(
        "copy",
        options(json!({
            "exclude": { "tables": ["p2"], "schemas": ["other"] }, "without_data": ["empty_one"]
        })),
    );
    let orphans = kind("copy", options(json!({ "exclude": { "tables": ["q"] } })));
    let error = orphans.run(&cx).await.unwrap_err();
    assert!(error.message().contains("table q1 needs table q"), "{error}");
    assert_eq!(step.describe(&cx).await.unwrap().blockers, Vec::<String>::new());
    step.run(&cx).await.unwrap();
    step.verify(&cx).await.unwrap();
    let counts = "select format('%s %s %s %s %s', (select count(*) from v), to_regclass('p2'), (select count(*) from q1), (select count(*) from empty_one), to_regnamespace('other'))";
    assert_eq!(green.value(counts).await.as_deref(), Some("10  1 0 "));
    step.undo(&cx).await.unwrap();
    assert_eq!(dumped(&green).await, "");
}

/// Things that hang on `secret`, on schema `side` and on rows of `emptied`; `fixed` cannot be had without it.
const HANGING: &str = r#"
create table secret (id int primary key, v text); insert into secret select i, 's' || i from generate_series(1, 9) i;
create table emptied (id int primary key); insert into emptied select generate_series(1, 9);
create table kept (id int primary key, secret int references secret on delete cascade, emptied int, v text,
    constraint "odd; key" foreign key (emptied) references emptied);
insert into kept select i, i, i, 'k' || i from generate_series(1, 9) i;
create view over as select * from secret; comment on view over is 'over'; grant select on over to public;
create view over_over as select k.v from kept k join over o on o.id = k.id;
create materialized view counted as select count(*) as n from over; create unique index on counted (n);
create function told(secret) returns text language sql as 'select ($1).v';
create function told(int) returns int language sql as 'select $1';
create view telling as select told(1) as n, id from kept;
create schema side;
create function side.audit() returns trigger language plpgsql as 'begin return new; end';
create function side.next() returns int language sql as 'select 1';
create trigger audited before insert on kept for each row execute function side.audit();
comment on trigger audited on kept is 'seen';
create rule noted as on delete to kept do also delete from secret where id = old.secret;
create view fine as select v from kept;
create table fixed (id int default side.next(), v text);
create index fixed_v on fixed (v);
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_hangs_on_what_is_left_out_stays_behind_if_the_plan_says_so() {
    let (blue, green) = (
        Database::with(servers::blue().await, HANGING).await,
        Database::create(servers::green().await, None).await,
    );
    let urls = [("blue", blue.handover_url()), ("green", green.handover_url())];
    let (cx, _events) = context("copy", &urls, &["green"]).await;
    let step = |dependents: &str, tables: &[&str]| {
        kind(
            "copy",
            options(json!({
                "exclude": { "tables": tables, "schemas": ["side"] }, "without_data": ["emptied"],
                "dependents": dependents
            })),
        )
    };
    const BEHIND: &[&str] = &[
        "foreign key kept_secret_fkey of kept points to secret",
        "foreign key odd; key of kept points to emptied",
        "view over needs table secret",
        "view over_over needs view over",
        "materialized view counted needs view over",
        "function told(secret) needs table secret",
        "trigger audited on table kept needs function side.audit()",
        "rule noted on table kept needs table secret",
    ];
    let refused = step("refuse", &["secret", "fixed"]).describe(&cx).await.unwrap().blockers.join("\n");
    assert!(
        refused.contains("foreign key kept_secret_fkey of kept points to secret, whose rows are not copied"),
        "{refused}"
    );
    assert!(
        refused.contains("view over needs table secret") && refused.contains("`dependents: leave_out`"),
        "{refused}"
    );

    // A default is no thing of its own: without it the table would be another.
    let said = step("leave_out", &["secret"]).describe(&cx).await.unwrap();
    assert_eq!(said.blockers.len(), 1, "{said:?}");
    assert!(said.blockers[0].contains("table fixed needs function side.next()"), "{said:?}");

    let step = step("leave_out", &["secret", "fixed"]);
    let said = step.describe(&cx).await.unwrap();
    assert_eq!(said.blockers, Vec::<String>::new());
    let mut behind: Vec<&str> =
        said.warnings.iter().filter_map(|w| w.strip_prefix("stays behind: ")).collect();
    behind.sort_unstable();
    let mut expected = BEHIND.to_vec();
    expected.sort_unstable();
    assert_eq!(behind, expected);
    for _ in 0..2 {
        let summary = step.run(&cx).await.unwrap();
        step.verify(&cx).await.unwrap();
        let mut told: Vec<&str> =
            summary["left_out"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        told.sort_unstable();
        assert_eq!(told, expected);
        let there = "select string_agg(c.relname, ' ' order by c.relname) from pg_class c where relnamespace = 'public'::regnamespace";
        assert_eq!(
            green.value(there).await.as_deref(),
            Some("emptied emptied_pkey fine kept kept_pkey telling")
        );
        let rest = "select format('%s %s %s %s %s', (select count(*) from fine), (select sum(n) from telling),
                           (select count(*) from pg_trigger), (select count(*) from pg_constraint where contype = 'f'), to_regprocedure('told(int)'))";
        assert_eq!(green.value(rest).await.as_deref(), Some("9 9 0 0 told(integer)"));
        step.undo(&cx).await.unwrap();
        assert_eq!(dumped(&green).await, "");
    }
}
