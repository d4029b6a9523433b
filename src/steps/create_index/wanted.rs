//! What a dry run can find out about an index before it is built: whether the server understands its columns, and
//! whether the one that has its name is the same. Only SELECTs are prepared and explained, so that nothing is made.

use super::decide::Fit;
use super::index::Index;
use crate::error::{Class, Result};
use crate::postgres::{Session, TableName, quote_ident};
use serde_json::Value;

/// A column or expression of an index with its options.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Element {
    /// The expression, with its collation if one is given.
    sql: String,
    /// Whether a collation is given.
    collated: bool,
    opclass: Option<String>,
    descending: bool,
    nulls_first: bool,
}

/// Asks the server. `there`: the definition of the index of that name and table, if one exists.
///
/// # Errors
/// A lost connection.
pub async fn judge(session: &Session, index: &Index, there: Option<&str>) -> Result<Fit> {
    let Some(elements) = index.columns.iter().map(|text| element(text)).collect::<Option<Vec<_>>>() else {
        return Ok(Fit::Unknown("its columns are written in a way that only the server reads".into()));
    };
    let table = index.table.sql();
    let ordered = index.using.as_deref().is_none_or(|method| method == "btree");
    // A class of operators of its own may order what the type's default does not.
    let order: Vec<&str> =
        elements.iter().filter(|e| ordered && e.opclass.is_none()).map(|e| e.sql.as_str()).collect();
    let asked = select(&elements, &index.include, index.condition.as_deref(), &table);
    let order = if order.is_empty() { String::new() } else { format!(" order by {}", order.join(", ")) };
    let condition = index.condition.as_ref().map_or_else(String::new, |c| format!(" where ({c}\n)"));
    let all = format!("select {} from {table}{condition}{order}", list(&elements, &index.include));
    for sql in [&all, &asked] {
        match session.prepare(sql).await {
            Ok(_) => {}
            Err(e) if e.class() == Class::Connection => return Err(e),
            Err(e) => return Ok(Fit::Refused(e.message().to_owned())),
        }
    }
    match there {
        Some(there) => compare(session, index, &elements, &asked, there).await,
        None => Ok(Fit::Fits),
    }
}

async fn compare(
    session: &Session,
    index: &Index,
    wanted: &[Element],
    asked: &str,
    definition: &str,
) -> Result<Fit> {
    let differs = || Ok(Fit::Differs(definition.to_owned()));
    let name = TableName::new(&index.table.schema, &index.name).sql();
    let rows = session
        .query(
            "select m.amname::text, i.indisunique, coalesce(pg_catalog.to_jsonb(i) ->> 'indnullsnotdistinct', 'false'),
                    i.indnkeyatts::int, i.indnatts::int, pg_catalog.pg_get_expr(i.indpred, i.indrelid), k,
                    pg_catalog.pg_get_indexdef(i.indexrelid, k, false),
                    coalesce((i.indoption::int2[])[k - 1], 0)::int, o.opcname::text, o.opcdefault,
                    case when l.oid is not null
                         then pg_catalog.format('%I.%I', (select nspname from pg_catalog.pg_namespace where oid = l.collnamespace), l.collname)
                    end
             from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indexrelid
             join pg_catalog.pg_am m on m.oid = c.relam
             cross join pg_catalog.generate_series(1, i.indnatts::int) k
             left join pg_catalog.pg_opclass o on o.oid = (i.indclass::oid[])[k - 1]
             left join pg_catalog.pg_collation l on l.oid = (i.indcollation::oid[])[k - 1]
             where i.indexrelid = pg_catalog.to_regclass($1) order by k",
            &[&name],
        )
        .await?;
    let Some(first) = rows.first() else { return Ok(Fit::Unknown("it went away meanwhile".into())) };
    let method = index.using.as_deref().unwrap_or("btree");
    let keys = usize::try_from(first.get::<_, i32>(3)).unwrap_or_default();
    let predicate: Option<String> = first.get(5);
    let alike = first.get::<_, &str>(0) == method
        && first.get::<_, bool>(1) == index.unique
        && first.get::<_, &str>(2) == "false"
        && keys == wanted.len()
        && rows.len() == wanted.len() + index.include.len()
        && predicate.is_some() == index.condition.is_some();
    if !alike {
        return differs();
    }
    let mut found = Vec::new();
    for (row, wanted) in rows.iter().zip(wanted) {
        let options: i32 = row.get(8);
        let (descending, nulls_first) = (options & 1 != 0, options & 2 != 0);
        let class: Option<String> = row.get(9);
        let same_class = match &wanted.opclass {
            Some(named) => class.as_deref() == Some(named.as_str()),
            None => row.get::<_, Option<bool>>(10).unwrap_or(true),
        };
        if !same_class
            || (method == "btree" && (descending, nulls_first) != (wanted.descending, wanted.nulls_first))
        {
            return differs();
        }
        let sql: String = row.get(7);
        let collation: Option<String> = row.get(11);
        if let Some(collation) = collation
            && !same_collation(session, index, &wanted.sql, &format!("({sql}) collate {collation}")).await
        {
            return differs();
        }
        found.push(Element { sql, ..wanted.clone() });
    }
    let include: Vec<String> = rows.iter().skip(keys).map(|row| row.get(7)).collect();
    let wanted_include: Vec<String> = index.include.iter().map(|name| quote_ident(name)).collect();
    let bare = |name: &String| name.trim_matches('"').to_owned();
    if include.iter().map(bare).ne(wanted_include.iter().map(bare)) {
        return differs();
    }
    // The server words both, so that it doesn't matter how either was written.
    let there = select(&found, &index.include, predicate.as_deref(), &index.table.sql());
    let (asked, there) = (worded(session, asked).await, worded(session, &there).await);
    match (asked, there) {
        (Ok(asked), Ok(there)) if asked == there => Ok(Fit::Fits),
        (Ok(_), Ok(_)) => differs(),
        (Err(e), _) | (_, Err(e)) if e.class() == Class::Connection => Err(e),
        (Err(e), _) | (_, Err(e)) => Ok(Fit::Unknown(e.message().to_owned())),
    }
}

fn list(elements: &[Element], include: &[String]) -> String {
    let include: Vec<String> = include.iter().map(|name| quote_ident(name)).collect();
    elements
        .iter()
        .map(|e| e.sql.as_str())
        .chain(include.iter().map(String::as_str))
        .collect::<Vec<_>>()
        .join(", ")
}

/// The expressions and the condition as columns of one query.
fn select(elements: &[Element], include: &[String], condition: Option<&str>, table: &str) -> String {
    let condition = condition.map_or_else(String::new, |c| format!(", ({c}\n)"));
    format!("select {}{condition} from {table}", list(elements, include))
}

/// A query's columns as the server words them.
async fn worded(session: &Session, sql: &str) -> Result<Value> {
    let row = session.query_one(&format!("explain (verbose, costs off, format json) {sql}"), &[]).await?;
    let plan: Value = row.get(0);
    Ok(plan[0]["Plan"]["Output"].clone())
}

/// Whether two expressions over the table sort by the same collation. One that cannot be asked has none.
async fn same_collation(session: &Session, index: &Index, one: &str, other: &str) -> bool {
    let sql = format!(
        "select pg_catalog.pg_collation_for({one}) = pg_catalog.pg_collation_for({other}) from (select) as handover_one
         left join {} on false",
        index.table.sql()
    );
    match session.query_one(&sql, &[]).await {
        Ok(row) => row.get::<_, Option<bool>>(0).unwrap_or(false),
        Err(_) => false,
    }
}

/// Takes an index column apart: `lower(email) collate "C" text_pattern_ops desc nulls last`. None where it isn't
/// understood.
fn element(text: &str) -> Option<Element> {
    let text = text.trim();
    let mut end = if text.starts_with('(') { closing(text)? } else { name(text)? };
    if !text.starts_with('(') {
        let rest = &text[end..];
        let spaces = rest.len() - rest.trim_start().len();
        if rest.trim_start().starts_with('(') {
            end += spaces + closing(rest.trim_start())?;
        }
    }
    let mut out = Element {
        sql: text[..end].to_owned(),
        collated: false,
        opclass: None,
        descending: false,
        nulls_first: false,
    };
    let mut nulls = None;
    let mut rest = text[end..].trim_start();
    while !rest.is_empty() {
        let at = name(rest)?;
        let (word, after) = (&rest[..at], rest[at..].trim_start());
        match word.to_ascii_lowercase().as_str() {
            "collate" if !out.collated => {
                let at = name(after)?;
                out.sql = format!("{} collate {}", out.sql, &after[..at]);
                out.collated = true;
                rest = after[at..].trim_start();
            }
            "asc" => rest = after,
            "desc" => {
                out.descending = true;
                rest = after;
            }
            "nulls" => {
                let at = name(after)?;
                nulls = match after[..at].to_ascii_lowercase().as_str() {
                    "first" => Some(true),
                    "last" => Some(false),
                    _ => return None,
                };
                rest = after[at..].trim_start();
            }
            _ if out.opclass.is_none() => {
                let class = word.rsplit('.').next().unwrap_or(word);
                out.opclass = Some(match class.strip_prefix('"').and_then(|c| c.strip_suffix('"')) {
                    Some(quoted) => quoted.to_owned(),
                    None => class.to_ascii_lowercase(),
                });
                rest = if after.starts_with('(') { after[closing(after)?..].trim_start() } else { after };
            }
            _ => return None,
        }
    }
    out.nulls_first = nulls.unwrap_or(out.descending);
    Some(out)
}

/// Where a name ends that the text begins with, with its schema if it has one.
fn name(text: &str) -> Option<usize> {
    let mut at = 0;
    loop {
        let rest = &text[at..];
        if let Some(quoted) = rest.strip_prefix('"') {
            at += quoted.find('"')? + 2;
        } else {
            let length =
                rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$')).unwrap_or(rest.len());
            if length == 0 {
                return None;
            }
            at += length;
        }
        if !text[at..].starts_with('.') {
            return Some(at);
        }
        at += 1;
    }
}

/// Where the bracket ends that the text begins with.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if open == c => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '(') => depth += 1,
            (None, ')') => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            (None, _) => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_taken_apart_as_the_server_does() {
        let plain = element("subject").unwrap();
        assert_eq!((plain.sql.as_str(), plain.descending, plain.nulls_first), ("subject", false, false));
        let desc = element("created_at DESC").unwrap();
        assert_eq!((desc.sql.as_str(), desc.descending, desc.nulls_first), ("created_at", true, true));
        let all =
            element("lower(a || ')' ) collate \"C\" pg_catalog.text_pattern_ops desc nulls last").unwrap();
        assert_eq!(all.sql, "lower(a || ')' ) collate \"C\"");
        assert_eq!(
            (all.opclass.as_deref(), all.descending, all.nulls_first),
            (Some("text_pattern_ops"), true, false)
        );
        assert_eq!(element("(a + (b)) nulls first").unwrap().sql, "(a + (b))");
        assert_eq!(element("doc jsonb_path_ops").unwrap().opclass.as_deref(), Some("jsonb_path_ops"));
        assert_eq!(
            element("v gist_trgm_ops(siglen = 32)").unwrap().opclass.as_deref(),
            Some("gist_trgm_ops")
        );
        assert_eq!(element("\"Odd name\" asc").unwrap().sql, "\"Odd name\"");
        assert_eq!(element("a + b"), None);
        assert_eq!(element("lower(a"), None);
    }
}
