//! Clients that prepared `select *` fail once when the table's columns change (`cached plan must not change result
//! type`). Who does is asked of `pg_stat_statements`: `pg_prepared_statements` shows one's own session only.

use crate::lex::Words;
use handover_core::Result;
use handover_postgres::{Session, TableName, foreign, quote_ident};
use std::collections::BTreeMap;

/// Queries that are named for a table; what more there are is counted.
const NAMED: usize = 5;

/// The table whose row looks otherwise after a statement: a column comes, goes, or gets another name or type.
#[must_use]
pub fn reshaped(words: &Words) -> Option<String> {
    if !words.starts(&["alter", "table"]) {
        return None;
    }
    let (table, from) = words.name(words.skip(2, &[&["if", "exists"], &["only"]]))?;
    let mut depth = 0_i32;
    let mut begins = true;
    for i in from..words.len() {
        match words.get(i) {
            "(" => depth += 1,
            ")" => depth -= 1,
            _ if begins && changes_a_row(words, i) => return Some(table),
            _ => {}
        }
        begins = depth == 0 && words.get(i) == ",";
    }
    None
}

/// Whether the action that begins at `i` changes what `*` stands for.
fn changes_a_row(words: &Words, i: usize) -> bool {
    const NO_COLUMN: &[&str] = &["constraint", "primary", "foreign", "unique", "check", "exclude", "to"];
    match words.get(i) {
        "add" | "drop" | "rename" => !NO_COLUMN.contains(&words.get(i + 1)),
        "alter" => {
            let at = words.skip(i + 1, &[&["column"]]) + 1;
            words.at(at, &["type"]) || words.at(at, &["set", "data", "type"])
        }
        _ => false,
    }
}

/// Whether a query gives whole rows of a table: `*`, or `t.*` with the table's name or an alias of it.
fn gives_rows(query: &Words, table: &str) -> bool {
    let is_table = |i: usize| name_at(query, i) == table;
    if !(0..query.len()).any(is_table) {
        return false;
    }
    (0..query.len()).filter(|i| query.get(*i) == "*").any(|i| match query.get(i.wrapping_sub(1)) {
        "select" | "distinct" | "all" | "," | "returning" => true,
        ")" => matches!(query.get(i + 1), "from" | ","),
        "." => {
            let of = i.wrapping_sub(2);
            is_table(of)
                || (0..query.len())
                    .any(|n| is_table(n) && query.get(query.skip(n + 1, &[&["as"]])) == query.get(of))
        }
        _ => false,
    })
}

/// A name without its quotes.
fn name_at(words: &Words, i: usize) -> String {
    let word = words.get(i);
    match word.strip_prefix('"').and_then(|w| w.strip_suffix('"')) {
        Some(quoted) => quoted.replace("\"\"", "\""),
        None => word.to_owned(),
    }
}

/// What is known of clients that read whole rows of the tables.
#[derive(Debug, Default)]
pub struct Readers {
    /// A sentence for each table that is read so.
    pub warnings: Vec<String>,
    /// How to find out, where this server does not tell.
    pub unknown: Option<String>,
}

const FAILS: &str = "a client that prepared it fails once with `cached plan must not change result type`";

/// Asks the server who reads whole rows of tables that these statements reshape. Names mean what they mean on the
/// session's path; tables that are not there have no clients.
pub async fn readers<'w>(session: &Session, statements: impl Iterator<Item = &'w Words>) -> Result<Readers> {
    let names: Vec<String> = statements.filter_map(reshaped).collect();
    let rows = session
        .query(
            "select distinct n.nspname::text, c.relname::text
             from unnest($1::text[]) u (name) join pg_class c on c.oid = to_regclass(u.name)
             join pg_namespace n on n.oid = c.relnamespace order by 1, 2",
            &[&names],
        )
        .await?;
    let tables: Vec<TableName> =
        rows.iter().map(|r| TableName::new(r.get::<_, String>(0), r.get::<_, String>(1))).collect();
    let mut out = Readers::default();
    if tables.is_empty() {
        return Ok(out);
    }
    let list = tables.iter().map(TableName::to_string).collect::<Vec<_>>().join(", ");
    let queries = match queries(session).await? {
        Ok(queries) => queries,
        Err(why) => {
            out.unknown = Some(format!(
                "who prepares `select *` on {list} is not known ({why}): search the application's queries, for {FAILS}"
            ));
            return Ok(out);
        }
    };
    for table in &tables {
        let mut found: BTreeMap<String, i64> = BTreeMap::new();
        for (query, calls) in &queries {
            if gives_rows(&Words::of(query), &table.name) {
                *found.entry(foreign::masked(query)).or_default() += calls;
            }
        }
        let mut found: Vec<(String, i64)> = found.into_iter().collect();
        found.sort_by_key(|(_, calls)| std::cmp::Reverse(*calls));
        if found.is_empty() {
            continue;
        }
        let named: Vec<String> =
            found.iter().take(NAMED).map(|(query, calls)| format!("`{query}` (called {calls}×)")).collect();
        let more = match found.len().saturating_sub(NAMED) {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        out.warnings.push(format!(
            "columns of {table} change, and clients read whole rows of it: {}{more}; {FAILS}; safer: let it name its columns, or connect anew after the change",
            named.join(", ")
        ));
    }
    Ok(out)
}

/// Queries of this database with a `*`, and how often each was called; or why they cannot be seen.
async fn queries(session: &Session) -> Result<Result<Vec<(String, i64)>, &'static str>> {
    // Asking the view where its library is not loaded, or its reader has no right to it, would be an error.
    let row = session
        .query_opt(
            "select n.nspname::text, has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select'),
                    coalesce(current_setting('pg_stat_statements.track', true), '') <> '',
                    pg_has_role((select oid from pg_roles where rolname = 'pg_read_all_stats'), 'usage')
             from pg_extension e join pg_namespace n on n.oid = e.extnamespace
             join pg_class c on c.relnamespace = n.oid and c.relname = 'pg_stat_statements'
             where e.extname = 'pg_stat_statements'",
            &[],
        )
        .await?;
    let Some(row) = row else {
        return Ok(Err("the extension pg_stat_statements is not in this database"));
    };
    let (schema, readable, loaded, all): (String, bool, bool, bool) =
        (row.get(0), row.get(1), row.get(2), row.get(3));
    match (readable, loaded, all) {
        (_, false, _) => return Ok(Err("pg_stat_statements is not in shared_preload_libraries")),
        (false, ..) | (_, _, false) => {
            return Ok(Err("this role may not read pg_stat_statements; `grant pg_monitor` lets it"));
        }
        _ => {}
    }
    let sql = format!(
        "select query, sum(calls)::int8 from {}.pg_stat_statements
         where dbid = (select oid from pg_database where datname = current_database())
           and query like '%*%' and query ~* '\\m(select|returning)\\M' group by 1",
        quote_ident(&schema)
    );
    let rows = session.query(sql.as_str(), &[]).await?;
    Ok(Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_that_change_a_row_are_known() {
        for sql in [
            "alter table if exists only s.t add column if not exists x int",
            "alter table s.t add x int default f(1, 2)",
            "alter table s.t add constraint c check (a in (1, 2)), drop column y",
            "alter table s.t alter column x type bigint using x::bigint",
            "alter table s.t alter x set data type text",
            "alter table s.t rename column a to b",
            "alter table s.t rename a to b",
        ] {
            assert_eq!(reshaped(&Words::of(sql)).as_deref(), Some("s.t"), "{sql}");
        }
        for sql in [
            "alter table t add constraint c foreign key (a) references b",
            "alter table t add primary key using index i",
            "alter table t drop constraint c",
            "alter table t rename to u",
            "alter table t rename constraint a to b",
            "alter table t alter column x set default 1, alter y set not null",
            "alter table t add check (x in (select add from drop))",
            "alter table t enable trigger all",
            "create table t (x int)",
        ] {
            assert_eq!(reshaped(&Words::of(sql)), None, "{sql}");
        }
    }

    #[test]
    fn queries_that_give_whole_rows_are_known() {
        for sql in [
            "select * from token where id = $1",
            "SELECT t.* FROM public.Token AS t JOIN other o ON true",
            "select token.* from token",
            "select distinct on (a) * from token",
            "select x.id, * from x, token",
            "insert into token values ($1) returning *",
            "select o.*, t.* from orders o join \"token\" t using (id)",
            "with n as (select * from token) select id from n",
        ] {
            assert!(gives_rows(&Words::of(sql), "token"), "{sql}");
        }
        for sql in [
            "select count(*) from token",
            "select a * b from token",
            "select (a + 1) * b from token",
            "select o.*, t.id from orders o join token t using (id)",
            "select * from tokens",
            "select '* from token'",
            "select id from token /* select * */",
        ] {
            assert!(!gives_rows(&Words::of(sql), "token"), "{sql}");
        }
    }
}
