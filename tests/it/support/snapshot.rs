//! A database as text: schema and content of everything outside our own schemas, so that two databases can be
//! compared and a difference read.

use super::servers::Database;
use std::fmt::Write;

const CATALOG: &[&str] = &[
    // Columns
    "select 'column', n.nspname, c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
        a.attidentity, a.attgenerated, pg_get_expr(d.adbin, d.adrelid)
     from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
     left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
     where a.attnum > 0 and not a.attisdropped and c.relkind in ('r', 'p', 'v', 'm', 'f') and USER_SCHEMA",
    "select 'relation', n.nspname, c.relname, c.relkind, pg_get_userbyid(c.relowner), c.relrowsecurity
     from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and USER_SCHEMA",
    "select 'index', pg_get_indexdef(i.indexrelid), i.indisvalid, i.indisready
     from pg_index i join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace
     where USER_SCHEMA",
    "select 'constraint', n.nspname, c.relname, k.conname, pg_get_constraintdef(k.oid), k.convalidated
     from pg_constraint k join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace
     where k.contype <> 'n' and USER_SCHEMA",
    // The name of a gate is each run's own.
    "select 'trigger', regexp_replace(pg_get_triggerdef(t.oid), '(refuse_(row_)?)[0-9a-f]{8}', '\\1*', 'g'), t.tgenabled
     from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
     where not t.tgisinternal and USER_SCHEMA",
    "select 'function', pg_get_functiondef(p.oid) from pg_proc p join pg_namespace n on n.oid = p.pronamespace
     where p.prokind in ('f', 'p') and USER_SCHEMA",
    "select 'type', n.nspname, t.typname, t.typtype,
        (select string_agg(e.enumlabel, ',' order by e.enumsortorder) from pg_enum e where e.enumtypid = t.oid)
     from pg_type t join pg_namespace n on n.oid = t.typnamespace where t.typtype in ('e', 'd') and USER_SCHEMA",
    "select 'schema', n.nspname from pg_namespace n where USER_SCHEMA",
];

const USER_SCHEMA: &str =
    "n.nspname not like 'pg\\_%' and n.nspname not like 'handover%' and n.nspname <> 'information_schema'";

/// Everything in `database` that is not ours.
pub async fn snapshot(database: &Database) -> String {
    let client = database.admin().await;
    let mut out = String::new();
    for query in CATALOG {
        let inner = query.replace("USER_SCHEMA", USER_SCHEMA);
        let sql = format!("select x from (select q::text as x from ({inner}) q) y order by x collate \"C\"");
        for row in client.query(&sql, &[]).await.unwrap() {
            writeln!(out, "{}", row.get::<_, String>(0)).unwrap();
        }
    }
    let tables = client
        .query(
            &format!(
                "select n.nspname, c.relname, c.relkind = 'S', format('%I.%I', n.nspname, c.relname)
                 from pg_class c join pg_namespace n on n.oid = c.relnamespace
                 where c.relkind in ('r', 'm', 'S') and c.relispopulated and {USER_SCHEMA} order by 1, 2"
            ),
            &[],
        )
        .await
        .unwrap();
    for table in tables {
        let (sequence, name): (bool, String) = (table.get(2), table.get(3));
        let sql = if sequence {
            format!("select format('%s %s', last_value, is_called) from {name}")
        } else {
            format!(
                "select count(*) || ' rows ' || coalesce(md5(string_agg(t::text, e'\\n' order by t::text collate \"C\")), '') from {name} t"
            )
        };
        let content: String = client.query_one(&sql, &[]).await.unwrap().get(0);
        writeln!(out, "content {name}: {content}").unwrap();
    }
    out
}

/// Fails with the lines that differ.
pub fn assert_same(what: &str, expected: &str, actual: &str) {
    if expected == actual {
        return;
    }
    let missing: Vec<&str> = expected.lines().filter(|l| !actual.lines().any(|a| a == *l)).collect();
    let extra: Vec<&str> = actual.lines().filter(|l| !expected.lines().any(|e| e == *l)).collect();
    panic!(
        "{what}: databases differ\nonly expected:\n  {}\nonly found:\n  {}",
        missing.join("\n  "),
        extra.join("\n  ")
    );
}
