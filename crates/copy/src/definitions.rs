//! What constraints, policies, defaults, views, indexes, rules, triggers and routines *mean* on both sides.
//!
//! A dump carries their words, and words may change their meaning between versions: `system_user` was a column's
//! name until it became the server's function. So after every copy both servers are asked what each object refers to
//! (`pg_depend`, the same in all versions), and for its text with every identifier quoted. Texts of two versions
//! are written differently (parentheses, casts, qualifiers), and even one version does not always give back the text
//! it read; names and literals in them are the same wherever they mean the same.

use crate::catalog::{ROUTINE, USER_SCHEMAS, no_member, not_our_trigger};
use crate::options::Selection;
use handover_core::error::Result;
use handover_core::problem::few;
use handover_port::Description;
use handover_postgres::{Session, TableName};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What one object says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// Its schema.
    pub schema: String,
    /// Its relation, empty for others.
    pub relation: String,
    /// What it is, in words.
    pub label: String,
    /// Its text, with identifiers quoted.
    pub text: String,
    /// Tables, columns and routines that it refers to.
    pub needs: BTreeSet<String>,
}

/// Definitions with the catalog row of each: class, oid, schema, relation, label, text. The server's own three thousand
/// routines are left out before a text is made of them, which would take most of the time.
fn definitions() -> String {
    format!(
        "with spaces as materialized (select n.oid, n.nspname from pg_namespace n where {USER_SCHEMAS}),
         defs (class, id, schema, relation, label, text) as (
             select 'pg_constraint'::regclass::oid, k.oid, n.nspname, c.relname, format('constraint %s', k.conname), pg_get_constraintdef(k.oid)
             from pg_constraint k join pg_class c on c.oid = k.conrelid join spaces n on n.oid = c.relnamespace
             where k.contype in ('c', 'p', 'u', 'x', 'f') and k.conparentid = 0 and {class}
             union all
             select 'pg_constraint'::regclass, k.oid, n.nspname, '', format('constraint %s of domain %s', k.conname, t.typname), pg_get_constraintdef(k.oid)
             from pg_constraint k join pg_type t on t.oid = k.contypid join spaces n on n.oid = t.typnamespace
             where k.contype = 'c' and {typ}
             union all
             select 'pg_type'::regclass, t.oid, n.nspname, '', format('default of domain %s', t.typname), pg_get_expr(t.typdefaultbin, 0)
             from pg_type t join spaces n on n.oid = t.typnamespace
             where t.typtype = 'd' and t.typdefaultbin is not null and {typ}
             union all
             select 'pg_attrdef'::regclass, d.oid, n.nspname, c.relname, format('default of column %s', a.attname), pg_get_expr(d.adbin, d.adrelid)
             from pg_attrdef d join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
             join pg_class c on c.oid = d.adrelid join spaces n on n.oid = c.relnamespace where {class}
             union all
             select 'pg_policy'::regclass, p.oid, n.nspname, c.relname, format('policy %s', p.polname),
                    concat_ws(' with check ', coalesce(pg_get_expr(p.polqual, p.polrelid), ''), pg_get_expr(p.polwithcheck, p.polrelid))
             from pg_policy p join pg_class c on c.oid = p.polrelid join spaces n on n.oid = c.relnamespace where {class}
             union all
             select 'pg_rewrite'::regclass, r.oid, n.nspname, c.relname,
                    case when c.relkind in ('v', 'm') and r.ev_type = '1' then 'query' else format('rule %s', r.rulename) end,
                    case when c.relkind in ('v', 'm') and r.ev_type = '1' then pg_get_viewdef(c.oid) else pg_get_ruledef(r.oid) end
             from pg_rewrite r join pg_class c on c.oid = r.ev_class join spaces n on n.oid = c.relnamespace where {class}
             union all
             select 'pg_class'::regclass, i.oid, n.nspname, c.relname, format('index %s', i.relname), pg_get_indexdef(i.oid)
             from pg_index x join pg_class i on i.oid = x.indexrelid join pg_class c on c.oid = x.indrelid
             join spaces n on n.oid = c.relnamespace where x.indisvalid and x.indisready and {class}
             union all
             select 'pg_statistic_ext'::regclass, s.oid, n.nspname, c.relname, format('statistics %s', s.stxname), pg_get_statisticsobjdef(s.oid)
             from pg_statistic_ext s join pg_class c on c.oid = s.stxrelid join spaces n on n.oid = c.relnamespace where {class}
             union all
             select 'pg_trigger'::regclass, t.oid, n.nspname, c.relname, format('trigger %s', t.tgname), pg_get_triggerdef(t.oid)
             from pg_trigger t join pg_class c on c.oid = t.tgrelid join spaces n on n.oid = c.relnamespace
             join pg_proc p on p.oid = t.tgfoid
             where not t.tgisinternal and t.tgparentid = 0 and {class} and {not_ours}
             union all
             select 'pg_class'::regclass, c.oid, n.nspname, c.relname, 'partitioning', concat_ws(' of ', pg_get_partkeydef(c.oid), pg_get_expr(c.relpartbound, c.oid))
             from pg_class c join spaces n on n.oid = c.relnamespace
             where (c.relkind = 'p' or c.relispartition and c.relkind in ('r', 'f')) and {class}
             union all
             select 'pg_proc'::regclass, p.oid, n.nspname, '', {ROUTINE},
                    concat_ws(' ', pg_get_function_arguments(p.oid), pg_get_function_result(p.oid))
             from pg_proc p join spaces n on n.oid = p.pronamespace where {proc}
         )
         select d.class, d.id, d.schema::text, d.relation::text, d.label, coalesce(d.text, '')
         from defs d",
        class = no_member("pg_class", "c.oid"),
        typ = no_member("pg_type", "t.oid"),
        proc = no_member("pg_proc", "p.oid"),
        not_ours = not_our_trigger(),
    )
}

/// What objects refer to, as far as users made it and it is no part of an extension, whose next version may be made
/// otherwise. Before Postgres 15 a generated column's expression refers to others in the column's name.
fn needs() -> String {
    format!(
        "select distinct o.class, o.id,
                case when c.oid is not null then concat_ws('.', cn.nspname, c.relname, a.attname)
                     else format('%s.%s()', pn.nspname, p.proname) end
         from (select classid as class, objid as id, refclassid, refobjid, refobjsubid from pg_depend
               where classid in ('pg_constraint'::regclass, 'pg_type'::regclass, 'pg_attrdef'::regclass, 'pg_policy'::regclass,
                                 'pg_rewrite'::regclass, 'pg_class'::regclass, 'pg_statistic_ext'::regclass,
                                 'pg_trigger'::regclass, 'pg_proc'::regclass)
                 and not (classid = 'pg_class'::regclass and objsubid > 0 and refclassid = 'pg_class'::regclass and refobjid = objid)
               union all
               select 'pg_attrdef'::regclass, f.oid, d.refclassid, d.refobjid, d.refobjsubid
               from pg_depend d join pg_attrdef f on f.adrelid = d.objid and f.adnum = d.objsubid
               where d.classid = 'pg_class'::regclass and d.objsubid > 0) o
         left join pg_class c on o.refclassid = 'pg_class'::regclass and c.oid = o.refobjid and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
         left join pg_namespace cn on cn.oid = c.relnamespace
         left join pg_attribute a on a.attrelid = c.oid and a.attnum = o.refobjsubid and o.refobjsubid <> 0
         left join pg_proc p on o.refclassid = 'pg_proc'::regclass and p.oid = o.refobjid
         left join pg_namespace pn on pn.oid = p.pronamespace
         where o.refobjid >= 16384 and (c.oid is not null or p.oid is not null)
           -- Columns of what a routine gives back, which only newer versions record.
           and not (o.refobjsubid <> 0 and c.oid is not null and exists (
               select from pg_depend f join pg_proc q on f.refclassid = 'pg_proc'::regclass and q.oid = f.refobjid
               join pg_type t on t.oid = q.prorettype
               where f.classid = o.class and f.objid = o.id and t.typrelid = c.oid))
           and (c.oid is null or {}) and (p.oid is null or {})",
        no_member("pg_class", "c.oid"),
        no_member("pg_proc", "p.oid"),
    )
}

/// Definitions of what is selected.
pub async fn read(session: &Session, selection: &Selection<'_>) -> Result<Vec<Definition>> {
    session.set("quote_all_identifiers", "on").await?;
    let (rows, needs) = (session.query(&definitions(), &[]).await?, session.query(&needs(), &[]).await?);
    session.set("quote_all_identifiers", "off").await?;
    let mut by_object: BTreeMap<(u32, u32), BTreeSet<String>> = BTreeMap::new();
    for row in &needs {
        by_object.entry((row.get(0), row.get(1))).or_default().insert(row.get(2));
    }
    let definition = |row: &tokio_postgres::Row| Definition {
        schema: row.get(2),
        relation: row.get(3),
        label: row.get(4),
        text: row.get(5),
        needs: by_object.remove(&(row.get(0), row.get(1))).unwrap_or_default(),
    };
    let selected = |d: &Definition| match d.relation.as_str() {
        "" => selection.schema(&d.schema),
        relation => selection.relation(&TableName::new(&d.schema, relation)),
    };
    Ok(rows.iter().map(definition).filter(selected).collect())
}

/// What means something else on the target, in words. What one side lacks is not told here: that is the catalogs'
/// comparison.
#[must_use]
pub fn differing(here: &[Definition], there: &[Definition], (from, to): (&str, &str)) -> Vec<String> {
    let key = |d: &Definition| (d.schema.clone(), d.relation.clone(), d.label.clone());
    let there: BTreeMap<_, &Definition> = there.iter().map(|d| (key(d), d)).collect();
    let mut out = Vec::new();
    for one in here {
        let Some(other) = there.get(&key(one)) else { continue };
        let (gone, new): (Vec<&String>, Vec<&String>) =
            (one.needs.difference(&other.needs).collect(), other.needs.difference(&one.needs).collect());
        if gone.is_empty() && new.is_empty() && same(&one.text, &other.text) {
            continue;
        }
        let name = if one.relation.is_empty() {
            format!("{} in schema {}", one.label, one.schema)
        } else {
            format!("{} of {}", one.label, TableName::new(&one.schema, &one.relation))
        };
        let mut words = name;
        if !gone.is_empty() {
            words.push_str(&format!(" refers to {} on {from} and not on {to}", few(&gone)));
        }
        if !new.is_empty() {
            words.push_str(&format!(" refers to {} on {to} and not on {from}", few(&new)));
        }
        words.push_str(&format!(" («{}» and «{}»)", short(&one.text), short(&other.text)));
        out.push(words);
    }
    out
}

fn short(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut short: String = text.chars().take(200).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// Whether two texts have the same names and literals. What precedes a dot is left out: newer servers qualify less.
/// A name may stand without quotes on the other side (`EXTRACT(year FROM …)`) as long as it is no keyword there, which
/// servers write in capitals.
fn same(one: &str, other: &str) -> bool {
    let ((names, bare), (other_names, other_bare)) = (substance(one), substance(other));
    let found = |name: &str, bare: &BTreeSet<&str>| {
        name.strip_prefix('"').and_then(|n| n.strip_suffix('"')).is_some_and(|n| bare.contains(n))
    };
    names.difference(&other_names).all(|name| found(name, &other_bare))
        && other_names.difference(&names).all(|name| found(name, &bare))
}

/// Quoted names and literals with their quotes, and numbers; and the words outside of quotes.
fn substance(text: &str) -> (BTreeSet<&str>, BTreeSet<&str>) {
    use handover_postgres::sql::{Token, tokens};
    let (mut quoted, mut bare) = (BTreeSet::new(), BTreeSet::new());
    for token in tokens(text) {
        match token {
            Token::Quoted(range) => {
                let (end, name) = (range.end, &text[range]);
                if !(name.starts_with('"') && text[end..].starts_with('.')) {
                    quoted.insert(name);
                }
            }
            Token::Code(range) => {
                let words = text[range].split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.'));
                for word in words.filter(|word| !word.is_empty()) {
                    if word.starts_with(|c: char| c.is_ascii_digit()) {
                        quoted.insert(word);
                    } else {
                        bare.insert(word);
                    }
                }
            }
            Token::Comment(_) | Token::Semicolon(_) => {}
        }
    }
    (quoted, bare)
}

/// Warns of routines whose body is text in which a name has become a word of the target's own: nobody quotes names there.
///
/// # Errors
/// What a server says.
pub async fn keywords(
    selection: &Selection<'_>,
    blue: &Session,
    green: &Session,
    out: &mut Description,
) -> Result<()> {
    let words = async |session: &Session| {
        let sql = "select word::text from pg_get_keywords() where catcode in ('R', 'T')";
        let rows = session.query(sql, &[]).await?;
        Ok::<BTreeSet<String>, handover_core::error::Error>(rows.iter().map(|row| row.get(0)).collect())
    };
    let (old, new) = (words(blue).await?, words(green).await?);
    let grown: Vec<&String> = new.difference(&old).collect();
    if grown.is_empty() {
        return Ok(());
    }
    let rows = blue
        .query(
            &format!(
                "select n.nspname::text, format('%s (%s)', p.oid::regprocedure, w), w
                 from pg_proc p join pg_namespace n on n.oid = p.pronamespace join pg_language l on l.oid = p.prolang
                 cross join unnest($1::text[]) w
                 where {USER_SCHEMAS} and {} and l.lanname not in ('c', 'internal')
                   and p.prosrc ~* ('(^|[^\"a-z0-9_])' || w || '([^\"a-z0-9_]|$)')
                   and (w = any (p.proargnames) or exists (
                       select from pg_attribute a join pg_class c on c.oid = a.attrelid
                       where a.attname = w and a.attnum > 0 and c.oid >= 16384))
                 order by 2",
                no_member("pg_proc", "p.oid")
            ),
            &[&grown],
        )
        .await?;
    let routines: Vec<String> =
        rows.iter().filter(|row| selection.schema(row.get(0))).map(|row| row.get(1)).collect();
    if !routines.is_empty() {
        out.warning(format!(
            "words that are names on {} are the server's own on {}, and these routines use them in a body that is copied as text: {}: quote the name there before the copy",
            blue.database(),
            green.database(),
            few(&routines)
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::same;

    #[test]
    fn texts_of_two_versions_mean_the_same_or_not() {
        let old = r#"SELECT "en"."x" AS "x", EXTRACT(year FROM "en"."ts"), ("s" = ANY ((ARRAY['a'::character varying])::"text"[])) FROM "en""#;
        let new = r#"SELECT "x", EXTRACT("year" FROM "ts"), ("s" = ANY (ARRAY[('a'::character varying)::"text"])) FROM "en""#;
        assert!(same(old, new));
        assert!(!same(
            r#"CHECK (("system_user" <> 'x'::"text"))"#,
            r#"CHECK ((SYSTEM_USER <> 'x'::"text"))"#
        ));
        assert!(!same(r#"CHECK (("a" <> 'x'::"text"))"#, r#"CHECK (("a" <> 'y'::"text"))"#));
        assert!(!same(r#"CHECK (("a" > 1))"#, r#"CHECK (("a" > 2))"#));
    }
}
