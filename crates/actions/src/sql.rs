//! SQL of the operator's: one statement each, through the extended protocol, which refuses more.

use crate::actions::Actions;
use crate::words::line;
use handover_core::error::{Error, Result};
use handover_core::problem::{Problems, Segment};
use handover_core::value::Duration;
use handover_postgres::sql::{Token, statements, tokens};
use handover_postgres::{Session, quote_literal};
use schemars::JsonSchema;
use serde::Deserialize;

/// How long a statement may take unless the plan says otherwise.
const TIMEOUT: Duration = Duration::secs(60);
/// How long it may wait for a lock: whoever waits for a strong lock holds up everybody behind it.
const LOCK_TIMEOUT: Duration = Duration::secs(5);
/// Stands for the remembered value in a statement that restores it.
pub const PREVIOUS: &str = "$previous";

/// Limits of a statement, and whether it may run in a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sql {
    /// The database.
    pub on: String,
    /// The statement.
    pub execute: String,
    /// `statement_timeout`; one minute unless given.
    pub timeout: Option<Duration>,
    /// `lock_timeout`; five seconds unless given.
    pub lock_timeout: Option<Duration>,
    /// False for a statement that refuses to run in a transaction, such as `ALTER SYSTEM` or `VACUUM`.
    pub transaction: Option<bool>,
}

impl Sql {
    /// Finds what is wrong with its statement; `path` is relative to the problems' base.
    pub fn check(&self, path: &[Segment], problems: &mut Problems) {
        let at: Vec<Segment> = path.iter().cloned().chain(["execute".into()]).collect();
        check_statement(&self.execute, &at, problems);
    }

    /// What is executed.
    ///
    /// # Errors
    /// As [`single`].
    pub fn statement(&self) -> Result<&str> {
        single(&self.execute)
    }

    /// Sets the session's limits.
    pub async fn limit(&self, session: &Session) -> Result<()> {
        limits(session, self.timeout, self.lock_timeout).await
    }
}

/// Sets a session's `statement_timeout` and `lock_timeout`, with our defaults where none is given.
pub async fn limits(
    session: &Session,
    timeout: Option<Duration>,
    lock_timeout: Option<Duration>,
) -> Result<()> {
    let ms = |limit: Duration| format!("{}ms", limit.0.as_millis());
    session.set("statement_timeout", &ms(timeout.unwrap_or(TIMEOUT))).await?;
    session.wait_for_locks(lock_timeout.unwrap_or(LOCK_TIMEOUT).0).await.map(drop)
}

/// Reports text that is not exactly one statement of a kind that we can execute.
pub fn check_statement(sql: &str, path: &[Segment], problems: &mut Problems) {
    match statements(sql)[..] {
        [] => {
            problems.error(path.iter().cloned(), "there is no SQL statement here");
        }
        [one] => {
            let first = first_word(one);
            if matches!(
                first.as_str(),
                "begin" | "start" | "commit" | "end" | "rollback" | "abort" | "savepoint" | "release"
            ) {
                problems
                    .error(path.iter().cloned(), format!("`{first}` does not work here"))
                    .hint("each statement runs in a transaction of its own; leave transactions to Handover");
            }
        }
        [_, _, ..] => {
            problems
                .error(path.iter().cloned(), format!("there are {} statements here", statements(sql).len()))
                .hint("write one statement; combine several in a `with …` query, a `do` block or a function");
        }
    }
}

/// Reports text that is not one query that only reads, as far as its first word tells; the session it runs in
/// is read-only besides.
pub fn check_query(sql: &str, path: &[Segment], problems: &mut Problems) {
    check_statement(sql, path, problems);
    if let [one] = statements(sql)[..] {
        let first = first_word(one);
        if !matches!(first.as_str(), "select" | "with" | "values" | "table") && !one.starts_with('(') {
            problems
                .error(path.iter().cloned(), "this is not a query")
                .hint("write `select …`; `current_setting('name')` reads what SHOW would show");
        }
    }
}

fn first_word(sql: &str) -> String {
    tokens(sql)
        .iter()
        .find_map(|token| match token {
            Token::Code(range) => sql[range.clone()]
                .split(|c: char| !(c.is_alphanumeric() || c == '_'))
                .find(|word| !word.is_empty())
                .map(str::to_ascii_lowercase),
            _ => None,
        })
        .unwrap_or_default()
}

/// Whether a statement refers to the remembered value.
#[must_use]
pub fn uses_previous(sql: &str) -> bool {
    with_previous(sql, None) != sql
}

/// A statement with the remembered value in the place of [`PREVIOUS`], as a quoted literal. A literal rather
/// than a parameter, because utility statements (`ALTER SYSTEM`, `ALTER ROLE … SET`) take none, and because
/// an untyped literal fits a column of any type.
#[must_use]
pub fn with_previous(sql: &str, previous: Option<&str>) -> String {
    let literal = previous.map_or_else(|| "null".to_owned(), quote_literal);
    let mut out = String::with_capacity(sql.len());
    for token in tokens(sql) {
        match token {
            Token::Code(range) => {
                let mut rest = &sql[range];
                while let Some(at) = rest.find(PREVIOUS) {
                    let after = &rest[at + PREVIOUS.len()..];
                    let whole = !after.starts_with(|c: char| c.is_alphanumeric() || c == '_');
                    out.push_str(&rest[..at]);
                    out.push_str(if whole { &literal } else { PREVIOUS });
                    rest = after;
                }
                out.push_str(rest);
            }
            Token::Quoted(range) | Token::Comment(range) => out.push_str(&sql[range]),
            Token::Semicolon(_) => out.push(';'),
        }
    }
    out
}

/// The statement alone, without a semicolon at its end.
///
/// # Errors
/// Text that is not one statement (which `check` reports earlier and better).
pub fn single(sql: &str) -> Result<&str> {
    match statements(sql)[..] {
        [one] => Ok(one),
        _ => Err(Error::usage("this is not one SQL statement").hint("see `handover check`")),
    }
}

/// A query that gives the first column of another as text, whatever its type.
///
/// # Errors
/// As [`single`].
pub fn as_text(query: &str) -> Result<String> {
    // The line break ends a comment that the query may end with.
    Ok(format!("select handover_value::text from ({}\n) as handover_row(handover_value)", single(query)?))
}

impl Actions<'_> {
    /// Executes a statement: in a transaction that checks the fence, or, where the plan says so, outside one.
    /// Returns how many rows it changed.
    ///
    /// # Errors
    /// Lease lost, or what the server says.
    pub async fn execute(&self, sql: &Sql) -> Result<u64> {
        self.port.proceed()?;
        let mut session = self.port.own_databases().for_operator().writer(&sql.on).await?;
        sql.limit(&session).await?;
        let statement = sql.statement()?;
        if sql.transaction == Some(false) {
            return session.autocommit(statement, &[]).await;
        }
        let tx = session.transaction().await?;
        let changed = tx.execute(statement, &[]).await?;
        tx.commit().await?;
        Ok(changed)
    }

    /// The value of a one-column query as text, through a read-only session; none for null or no row.
    ///
    /// # Errors
    /// What the server says; more than one row or column.
    pub async fn value(&self, on: &str, query: &str, timeout: Option<Duration>) -> Result<Option<String>> {
        self.port.proceed()?;
        self.read(on, query, timeout).await
    }

    /// As [`Actions::value`], but also before there is a lease, as in a dry run.
    ///
    /// # Errors
    /// As [`Actions::value`].
    pub async fn peek(&self, on: &str, query: &str) -> Result<Option<String>> {
        self.read(on, query, None).await
    }

    async fn read(&self, on: &str, query: &str, timeout: Option<Duration>) -> Result<Option<String>> {
        let session = self.port.own_databases().for_operator().reader(on).await?;
        limits(&session, timeout, None).await?;
        let row = session.query_opt(&as_text(query)?, &[]).await.map_err(|e| {
            e.or_hint("the query must give one row with one column; see the server's message")
        })?;
        Ok(row.and_then(|row| row.get(0)))
    }

    /// Whether a query gives `true`, through a read-only session. Null, false and no row are "no".
    ///
    /// # Errors
    /// What the server says; a value that is not a boolean.
    pub async fn holds(&self, on: &str, query: &str, timeout: Option<Duration>) -> Result<bool> {
        match self.value(on, query, timeout).await?.as_deref() {
            Some("true") => Ok(true),
            Some("false") | None => Ok(false),
            Some(other) => Err(Error::data(format!("the check gives `{}`, not a boolean", line(other)))
                .on_database(on)
                .hint("write a query with one boolean column, e.g. `select setting = '30d' from …`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remembered_value_is_put_in_as_a_literal() {
        let sql = "update s set v = $previous, w = '$previous' where $previous_x = $previous";
        assert_eq!(
            with_previous(sql, Some("it's")),
            "update s set v = 'it''s', w = '$previous' where $previous_x = 'it''s'"
        );
        assert!(uses_previous(sql) && !uses_previous("select '$previous'"));
        assert_eq!(with_previous("set x = $previous", None), "set x = null");
    }

    #[test]
    fn one_statement_each() {
        let check = |sql: &str| {
            let mut problems = Problems::new();
            check_query(sql, &["check".into()], &mut problems);
            problems.iter().map(|p| p.message.clone()).collect::<Vec<_>>()
        };
        assert!(check("select 1; -- fine").is_empty());
        assert!(check("with x as (select 1) table x").is_empty());
        assert_eq!(check("select 1; drop table t"), ["there are 2 statements here"]);
        assert_eq!(check(" -- nothing"), ["there is no SQL statement here"]);
        assert_eq!(check("show work_mem"), ["this is not a query"]);
        assert_eq!(check("commit").len(), 2);
    }
}
