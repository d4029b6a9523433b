//! What can be known of a capture before it begins: from the plan, and from the catalog.

use super::cascades;
use super::options::{Capture, Table, Truncate, When};
use crate::catalog::{TableFacts, inspect};
use crate::stream::Stream;
use crate::trigger::Operation;
use handover_core::error::Result;
use handover_core::problem::{Problems, Segment};
use handover_port::{Description, Port};
use handover_postgres::ours::OURS;
use handover_postgres::sql::{Token, statements, tokens};
use handover_postgres::{TableName, blockers, quote_ident};

/// Reports what the plan alone shows to be wrong with the tables.
pub fn check(capture: &Capture, problems: &mut Problems) {
    if capture.tables.is_empty() {
        problems.error(["tables"], "no table is captured").hint("name at least one");
    }
    for (name, table) in &capture.tables {
        check_table(name, table, problems);
    }
}

fn check_table(name: &TableName, table: &Table, problems: &mut Problems) {
    let at = |field: &str| [Segment::from("tables"), name.to_string().into(), field.into()];
    if table.on.is_empty() {
        problems
            .error(at("on"), "no operation is captured")
            .hint("write e.g. `on: [insert, update, delete]`");
    }
    if table.key.as_ref().is_some_and(Vec::is_empty) {
        problems.error(at("key"), "the key has no columns").hint("leave `key` out to use the primary key");
    }
    if table.key.as_ref().is_some_and(|key| key.len() > 32) {
        problems
            .error(at("key"), "a key has at most 32 columns")
            .hint("name the columns of one unique index");
    }
    if table.columns.as_ref().is_some_and(Vec::is_empty) {
        problems
            .error(at("columns"), "an event carries at least one column")
            .hint("leave `columns` out for all");
    }
    if let Some(When::Each(each)) = &table.when {
        for operation in each.keys().filter(|operation| !table.on.contains(operation)) {
            problems
                .error(at("when"), format!("there is a condition for {operation}, which is not captured"))
                .hint(format!("add {operation} to `on`, or drop its condition"));
        }
    }
    for (operation, condition) in table.operations() {
        let Some(condition) = condition else { continue };
        let words = words(condition);
        let each = "give each operation its own: `when: { update: \"…\", delete: \"…\" }`";
        if !operation.has_old() && words.iter().any(|w| w == "old") {
            problems
                .error(
                    at("when"),
                    format!("the condition speaks of `old`, which an {operation} does not have"),
                )
                .hint(each);
        }
        if !operation.has_new() && words.iter().any(|w| w == "new") {
            problems
                .error(
                    at("when"),
                    format!("the condition speaks of `new`, which a {operation} does not have"),
                )
                .hint(each);
        }
        if words.iter().any(|w| w == "select") {
            problems
                .error(at("when"), "a trigger's condition cannot hold a subquery")
                .hint("capture more, and let the replay's mapping decide");
        }
        if statements(condition).len() != 1 || !balanced(condition) {
            problems
                .error(at("when"), "the condition is not one expression")
                .hint("see to its parentheses, and that it has no semicolon");
        }
    }
}

/// The words outside quotes and comments, in lower case.
fn words(sql: &str) -> Vec<String> {
    tokens(sql)
        .into_iter()
        .filter_map(|token| match token {
            Token::Code(range) => Some(sql[range].to_ascii_lowercase()),
            _ => None,
        })
        .flat_map(|code| {
            code.split(|c: char| !(c.is_alphanumeric() || c == '_')).map(str::to_owned).collect::<Vec<_>>()
        })
        .filter(|word| !word.is_empty())
        .collect()
}

fn balanced(sql: &str) -> bool {
    let mut depth = 0_i32;
    for token in tokens(sql) {
        let Token::Code(range) = token else { continue };
        for c in sql[range].chars() {
            match c {
                '(' => depth += 1,
                ')' => depth -= 1,
                _ => {}
            }
            if depth < 0 {
                return false;
            }
        }
    }
    depth == 0
}

/// The columns of a table's key.
pub fn key_of(table: &Table, facts: Option<&TableFacts>) -> Vec<String> {
    table.key.clone().or_else(|| facts.map(|f| f.primary.clone())).unwrap_or_default()
}

/// Why a table cannot be captured as asked, each with what to do about it.
pub fn obstacles(name: &TableName, table: &Table, facts: Option<&TableFacts>) -> Vec<(String, String)> {
    let Some(facts) = facts else {
        return vec![(format!("there is no table {name}"), "correct its name, or its schema".into())];
    };
    let mut out = Vec::new();
    if facts.kind != "r" && facts.kind != "p" {
        out.push((
            format!("{name} is not a table"),
            "row triggers need an ordinary or a partitioned table".into(),
        ));
    }
    if facts.has_children {
        out.push((
            format!("tables inherit from {name}, and its triggers would not see their rows"),
            "capture each of the inheriting tables by name".into(),
        ));
    }
    if facts.kind == "p" && table.operations().len() < 3 {
        out.push((
            format!(
                "{name} is partitioned, and an update that moves a row is a delete and an insert to triggers"
            ),
            "capture all three: `on: [insert, update, delete]`".into(),
        ));
    }
    let key = key_of(table, Some(facts));
    for column in key.iter().chain(table.columns.iter().flatten()).filter(|column| !facts.has(column)) {
        let close =
            handover_core::problem::suggest(column, facts.columns.iter().map(|(name, _)| name.as_str()));
        out.push((
            format!("{name} has no column {column}"),
            close.map_or("correct its name".into(), |close| format!("did you mean `{close}`?")),
        ));
    }
    if key.is_empty() {
        out.push((format!("{name} has no primary key"), "name a `key` that is unique and NOT NULL".into()));
    } else if key.iter().all(|column| facts.has(column)) && !facts.identifies(&key) {
        out.push((
            format!("the key ({}) of {name} does not identify a row", key.join(", ")),
            "only a key that holds a unique index's columns and is NOT NULL keeps changes in order; choose such columns".into(),
        ));
    }
    out
}

/// Says what [`super::begin`] would do, through read-only sessions.
pub async fn describe(capture: &Capture, port: &Port, leaves_out: &[String]) -> Result<Description> {
    let session = port.reader(&capture.from).await?;
    let asking = port.operator_reader(&capture.from).await?;
    let mut out = Description::default();
    let role = port.databases.worker(&capture.from)?.role(&session).await?;
    let stream = capture.stream_name(port.run, &port.step);
    let stream = Stream::upcoming(&session, port.run, &port.step, &stream, capture.partitions).await?;
    for (index, (name, table)) in capture.tables.iter().enumerate() {
        let facts = inspect(&session, name).await?;
        let obstacles = obstacles(name, table, facts.as_ref());
        for (problem, hint) in &obstacles {
            out.blocker(format!("{problem}; {hint}"));
        }
        let Some(facts) = facts else { continue };
        if obstacles.is_empty() {
            let key = key_of(table, Some(&facts));
            let spec = table.spec(&stream, index, name, &key, &facts.forms, leaves_out);
            for sql in spec.installation().statements() {
                out.statement(&capture.from, sql);
            }
        }
        for (operation, condition) in table.operations() {
            let when = condition.map_or(String::new(), |c| format!(" when {c}"));
            out.action(format!("create a trigger after {operation} on {name} for each row{when}"));
            if let Some(condition) = condition
                && let Err(error) = asking.prepare(&as_select(name, operation, condition)).await
            {
                out.blocker(format!("the condition for {operation} on {name}: {}", error.message()));
            }
        }
        if table.truncate == Truncate::Refuse {
            out.action(format!("refuse TRUNCATE of {name} until `handover finish`"));
        }
        if facts.writes_per_second >= 1.0 {
            out.warning(format!(
                "{name} takes {:.0} row writes a second on average; each one captured costs one row more",
                facts.writes_per_second
            ));
        }
        if !facts.other_triggers.is_empty() {
            out.warning(format!(
                "{name} has triggers of its own ({}): if they write to {name} itself, events of one statement may be captured out of order",
                facts.other_triggers.join(", ")
            ));
        }
        if let Some(role) = &role {
            let row = session
                .query_one(
                    "select has_table_privilege($1::text, $2::text, 'TRIGGER'),
                            has_database_privilege($1::text, current_database(), 'CREATE')",
                    &[role, &name.sql()],
                )
                .await;
            if let Ok(row) = row {
                if !row.get::<_, bool>(0) {
                    out.blocker(format!(
                        "the role {role} may not create triggers on {name}; run scripts/grants.sql"
                    ));
                }
                if !row.get::<_, bool>(1) {
                    out.blocker(format!(
                        "the role {role} may not create the schema `{OURS}`; run scripts/grants.sql"
                    ));
                }
            }
        }
        for holder in blockers::of_table(&session, name).await? {
            out.warning(format!("the triggers on {name} would wait for {holder}"));
        }
    }
    for unseen in cascades::unseen(&session, capture).await? {
        out.warning(unseen);
    }
    out.action(format!(
        "each table is locked against writers (SHARE ROW EXCLUSIVE) for an instant; an attempt waits at most {}",
        capture.lock_timeout
    ));
    out.action("relay what is captured to the queue until the replay ends it");
    Ok(out)
}

/// The condition as a SELECT, which the server checks without touching the table.
fn as_select(name: &TableName, operation: Operation, condition: &str) -> String {
    let table = name.sql();
    let mut rows = Vec::new();
    if operation.has_old() {
        rows.push(format!("{table} as {}", quote_ident("old")));
    }
    if operation.has_new() {
        rows.push(format!("{table} as {}", quote_ident("new")));
    }
    format!("select 1 from {} where ({condition}\n)", rows.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_read_by_their_words() {
        assert_eq!(
            words("old.a and \"new\".b -- new\n or 'new' = NEW.c"),
            ["old", "a", "and", "b", "or", "new", "c"]
        );
        assert!(balanced("(a) and (b = ')')"));
        assert!(!balanced("a) or (b"));
    }
}
