//! Whether a statement that ran outside a transaction, and was interrupted, took effect.

use crate::lex::Words;
use crate::script::Statement;
use handover_core::error::{Error, Result};
use handover_port::Port;
use handover_postgres::index::{Found, find};
use handover_postgres::{Session, TableName};

/// What a look at the database says of an interrupted statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// It took effect.
    There,
    /// It did not, or may run again.
    Absent,
    /// Nobody can tell; why.
    Unknown(String),
}

/// Looks for the effect of `statement`, and clears away half of one.
pub async fn effect(port: &Port, session: &mut Session, statement: &Statement) -> Result<Effect> {
    let words = &statement.words;
    if let Some(query) = &statement.done_if {
        let row = session.query_one(query.as_str(), &[]).await?;
        let there = row.try_get::<_, bool>(0).map_err(|_| {
            Error::data(format!("`{query}` after done-if does not give true or false"))
                .hint("write a query with one boolean value, such as `select exists (…)`")
        })?;
        return Ok(if there { Effect::There } else { Effect::Absent });
    }
    if statement.repeatable {
        return Ok(Effect::Absent);
    }
    if let Some((name, table)) = created_index(words) {
        let Some(name) = name else {
            return Ok(Effect::Unknown("an index without a name cannot be recognised".into()));
        };
        let Some(table) = resolve(session, &table).await? else { return Ok(Effect::Absent) };
        let found = find(session, &table, &name).await?;
        if found == Found::Invalid {
            port.note(format!("dropping what an interrupted build left of index {name}"));
            let sql =
                format!("drop index concurrently if exists {}", TableName::new(&table.schema, &name).sql());
            // It waits for old snapshots in the lock manager, where any lock_timeout would end it.
            let timeout: String =
                session.query_one("select current_setting('lock_timeout')", &[]).await?.get(0);
            session.set("lock_timeout", "0").await?;
            // The caller proved the fence when it read the position, and a successor ends this by our name.
            session.client().execute(sql.as_str(), &[]).await.map_err(|e| session.error(&e))?;
            session.set("lock_timeout", &timeout).await?;
        }
        return Ok(if found == Found::Valid { Effect::There } else { Effect::Absent });
    }
    Ok(match (words.get(0), words.get(1)) {
        ("drop", "index") => {
            let at = words.skip(2, &[&["concurrently"], &["if", "exists"]]);
            match words.name(at) {
                Some((name, _)) if resolve(session, &name).await?.is_none() => Effect::There,
                _ => Effect::Absent,
            }
        }
        ("reindex", _) => {
            port.warn("an interrupted REINDEX CONCURRENTLY may leave invalid indexes whose names end in _ccnew; look for them with \\di");
            Effect::Absent
        }
        ("vacuum" | "cluster" | "discard", _) | ("alter", "system") => Effect::Absent,
        ("alter", "table") if words.has(&["detach", "partition"]) => detached(session, words).await?,
        _ if words.has(&["if", "exists"]) || words.has(&["if", "not", "exists"]) => Effect::Absent,
        _ => Effect::Unknown("Handover knows no way to look for it".into()),
    })
}

/// Looks before the statement runs for the first time: an INVALID index of that name is somebody else's, and
/// IF NOT EXISTS would take it for a good one.
///
/// # Errors
/// Such an index; or what the server says.
pub async fn before(session: &Session, statement: &Statement) -> Result<()> {
    let Some((Some(name), table)) = created_index(&statement.words) else { return Ok(()) };
    let Some(table) = resolve(session, &table).await? else { return Ok(()) };
    if find(session, &table, &name).await? != Found::Invalid {
        return Ok(());
    }
    Err(Error::data(format!("an INVALID index {name} exists that this run did not make"))
        .on_database(session.database())
        .hint(format!(
            "nobody reads it and every write pays for it; `drop index concurrently {}`, then `handover resume`",
            TableName::new(&table.schema, &name).sql()
        )))
}

/// Whether even a failure of this statement may leave something behind.
#[must_use]
pub fn leaves_traces(statement: &Statement) -> bool {
    let words = &statement.words;
    words.has(&["concurrently"]) || ["call", "do", "vacuum", "reindex"].contains(&words.get(0))
}

/// The index that `CREATE INDEX CONCURRENTLY` makes: its name if it has one, and the table as SQL.
#[must_use]
pub fn created_index(words: &Words) -> Option<(Option<String>, String)> {
    let at = words.skip(1, &[&["unique"]]);
    if words.get(0) != "create" || !words.at(at, &["index", "concurrently"]) {
        return None;
    }
    let at = words.skip(at + 2, &[&["if", "not", "exists"]]);
    let (name, on) = match words.get(at) {
        "on" => (None, at),
        _ => words.name(at).map(|(name, end)| (Some(unquoted(&name)), end))?,
    };
    let at = words.skip(on, &[&["on"], &["only"]]);
    Some((name, words.name(at)?.0))
}

fn unquoted(name: &str) -> String {
    match name.strip_prefix('"').and_then(|n| n.strip_suffix('"')) {
        Some(inner) => inner.replace("\"\"", "\""),
        None => name.to_owned(),
    }
}

/// The relation that a name means in this session.
async fn resolve(session: &Session, name: &str) -> Result<Option<TableName>> {
    let row = session
        .query_opt(
            "select n.nspname::text, c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
             where c.oid = to_regclass($1)",
            &[&name],
        )
        .await?;
    Ok(row.map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))))
}

async fn detached(session: &Session, words: &Words) -> Result<Effect> {
    let at = words.find(&["detach", "partition"]).map_or(0, |i| i + 2);
    let Some((name, _)) = words.name(at) else {
        return Ok(Effect::Unknown("its partition cannot be read".into()));
    };
    let row = session
        .query_opt("select inhdetachpending from pg_inherits where inhrelid = to_regclass($1)", &[&name])
        .await?;
    Ok(match row.map(|row| row.get::<_, bool>(0)) {
        None => Effect::There,
        Some(false) => Effect::Absent,
        Some(true) => Effect::Unknown(format!(
            "the detaching of {name} is pending: ALTER TABLE … DETACH PARTITION {name} FINALIZE ends it"
        )),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn created_indexes_are_named() {
        let of = |sql: &str| created_index(&Words::of(sql));
        assert_eq!(of("create index concurrently a on b (c)"), Some((Some("a".into()), "b".into())));
        assert_eq!(
            of("CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS \"A\"\"b\" ON ONLY s.\"T\" (c)"),
            Some((Some("A\"b".into()), "s.\"T\"".into()))
        );
        assert_eq!(of("create index concurrently on b (c)"), Some((None, "b".into())));
        assert_eq!(of("create index a on b (c)"), None);
    }
}
