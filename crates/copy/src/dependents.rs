//! What hangs on something that is left out: a view on a table, a foreign key to one, a trigger that calls a function.
//!
//! Such a thing cannot be created without the other. By default that stops the copy. With `dependents: leave_out` those
//! that hold no rows and no rule for rows stay behind too, and what hangs on them, each of them named. Tables, their
//! defaults, checks and policies never do: rows, or what may be in them, would be lost in silence.

use crate::dump::Entry;
use crate::options::{Copy, Dependents, Selection};
use crate::state::Fact;
use handover_core::error::Result;
use handover_core::problem::few;
use handover_port::Description;
use handover_postgres::catalog::OUR_SCHEMAS;
use handover_postgres::ours;
use handover_postgres::{Session, TableName};
use std::collections::BTreeSet;

/// A row of a catalog.
type Id = (u32, u32);

/// Something that may stay behind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Dependent {
    /// In words, with what it needs.
    words: String,
    id: Id,
    /// Its schema, its relation (or none), and how its line in the catalog comparison begins.
    fact: (String, String, String),
}

/// What hangs on what is left out.
#[derive(Debug, Clone, Default)]
struct Found {
    /// Those that may stay behind.
    loose: BTreeSet<Dependent>,
    /// The others, in words.
    fixed: BTreeSet<String>,
    /// Foreign keys to rows that are not copied, in words.
    keys: BTreeSet<String>,
}

/// One object that needs another.
struct Edge {
    from: Id,
    words: String,
    from_schema: String,
    from_relation: Option<String>,
    /// None for what cannot stay behind alone.
    fact: Option<String>,
    to: Id,
    needs: String,
    to_schema: String,
    to_relation: Option<String>,
}

/// Looks for them, and says what the plan wants done about them.
pub async fn look(copy: &Copy, blue: &Session, out: &mut Description) -> Result<()> {
    let found = find(copy, blue).await?;
    if copy.dependents == Dependents::LeaveOut {
        for dependent in &found.loose {
            out.warning(format!("stays behind: {}", dependent.words));
        }
    } else {
        let loose = found.loose.iter().map(|d| d.words.clone()).filter(|words| !found.keys.contains(words));
        let loose: Vec<String> = loose.collect();
        for key in &found.keys {
            out.blocker(format!("{key}, whose rows are not copied: copy both or neither, or leave the key out too with `dependents: leave_out`"));
        }
        if !loose.is_empty() {
            out.blocker(format!(
                "something that is copied needs what is left out: {}: copy both or neither, or leave such out too with `dependents: leave_out`",
                few(&loose)
            ));
        }
    }
    if !found.fixed.is_empty() {
        let fixed: Vec<&String> = found.fixed.iter().collect();
        out.blocker(format!(
            "something that is copied needs what is left out: {}: copy both or neither",
            few(&fixed)
        ));
    }
    Ok(())
}

/// What stays behind as the plan wants it.
#[derive(Debug, Clone, Default)]
pub struct LeftOut {
    named: BTreeSet<Dependent>,
    /// Indexes, statistics, triggers and rules of views among them: the dump does not tell whose they are.
    parts: BTreeSet<Id>,
}

impl LeftOut {
    /// Whether a line of the catalog comparison is about it.
    #[must_use]
    pub fn covers(&self, fact: &Fact) -> bool {
        self.named.iter().any(|dependent| {
            let (schema, relation, text) = &dependent.fact;
            fact.schema == *schema && fact.relation == *relation && fact.text.starts_with(text)
        })
    }

    /// Whether an entry of the dump makes something of it.
    #[must_use]
    pub fn has(&self, entry: &Entry) -> bool {
        let id = (entry.class, entry.oid);
        self.parts.contains(&id) || self.named.iter().any(|dependent| dependent.id == id)
    }

    /// Each in words, with what it needs.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        self.named.iter().map(|dependent| dependent.words.clone()).collect()
    }
}

/// Finds what stays behind.
pub async fn left_out(copy: &Copy, blue: &Session) -> Result<LeftOut> {
    if copy.dependents == Dependents::Refuse {
        return Ok(LeftOut::default());
    }
    let named = find(copy, blue).await?.loose;
    let ids: Vec<u32> = named.iter().map(|dependent| dependent.id.1).collect();
    let rows = blue
        .query(
            "select 'pg_class'::regclass::oid, x.indexrelid from pg_index x join pg_class c on c.oid = x.indrelid
                 where c.relkind = 'm' and c.oid = any($1)
             union all select 'pg_statistic_ext'::regclass, x.oid from pg_statistic_ext x join pg_class c on c.oid = x.stxrelid
                 where c.relkind = 'm' and c.oid = any($1)
             union all select 'pg_trigger'::regclass, x.oid from pg_trigger x join pg_class c on c.oid = x.tgrelid
                 where c.relkind = 'v' and c.oid = any($1)
             union all select 'pg_rewrite'::regclass, x.oid from pg_rewrite x join pg_class c on c.oid = x.ev_class
                 where c.relkind in ('v', 'm') and c.oid = any($1)",
            &[&ids],
        )
        .await?;
    let parts = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    Ok(LeftOut { named, parts })
}

async fn find(copy: &Copy, blue: &Session) -> Result<Found> {
    let mut out = Found::default();
    let mut left: BTreeSet<Id> = BTreeSet::new();
    for key in keys(copy, blue).await? {
        left.insert(key.id);
        out.keys.insert(key.words.clone());
        out.loose.insert(key);
    }
    if copy.include.is_empty() && copy.exclude.is_empty() {
        return Ok(out);
    }
    let edges = edges(blue).await?;
    let selection = copy.selection();
    // What hangs on what hangs on it: until nothing more is found.
    loop {
        let before = left.len();
        for edge in &edges {
            let copied = selected(&selection, &edge.from_schema, edge.from_relation.as_deref())
                && !left.contains(&edge.from);
            let there = selected(&selection, &edge.to_schema, edge.to_relation.as_deref())
                && !left.contains(&edge.to);
            if !copied || there {
                continue;
            }
            let words = format!("{} needs {}", edge.words, edge.needs);
            match &edge.fact {
                Some(fact) => {
                    left.insert(edge.from);
                    let relation = edge.from_relation.clone().unwrap_or_default();
                    let fact = (edge.from_schema.clone(), relation, fact.clone());
                    out.loose.insert(Dependent { words, id: edge.from, fact });
                }
                None => drop(out.fixed.insert(words)),
            }
        }
        if left.len() == before {
            return Ok(out);
        }
    }
}

fn selected(selection: &Selection<'_>, schema: &str, relation: Option<&str>) -> bool {
    !ours::is_ours(schema)
        && match relation {
            Some(relation) => selection.relation(&TableName::new(schema, relation)),
            None => selection.schema(schema),
        }
}

/// Foreign keys of copied tables to tables that are not copied, or whose rows are not.
async fn keys(copy: &Copy, blue: &Session) -> Result<Vec<Dependent>> {
    let rows = blue
        .query(
            "select n.nspname::text, c.relname::text, fn.nspname::text, f.relname::text, k.conname::text,
                    'pg_constraint'::regclass::oid, k.oid
             from pg_constraint k join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace
             join pg_class f on f.oid = k.confrelid join pg_namespace fn on fn.oid = f.relnamespace
             where k.contype = 'f' and k.conparentid = 0",
            &[],
        )
        .await?;
    let selection = copy.selection();
    let mut out = Vec::new();
    for row in &rows {
        let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let other = TableName::new(row.get::<_, String>(2), row.get::<_, String>(3));
        let (rows, others) = (!copy.without_data.contains(&table), !copy.without_data.contains(&other));
        // An empty table may point to another that is empty, but not to one that is not there.
        if selection.table(&table) && (!selection.table(&other) || rows && !others) {
            let name: String = row.get(4);
            out.push(Dependent {
                words: format!("foreign key {name} of {table} points to {other}"),
                id: (row.get(5), row.get(6)),
                fact: (table.schema, table.name, format!("constraint {name} of kind f")),
            });
        }
    }
    Ok(out)
}

/// Which objects need which others. Parts of a relation are taken for the relation, unless they may stay behind
/// alone; and the type of a relation's rows for the relation.
async fn edges(blue: &Session) -> Result<Vec<Edge>> {
    let rows = blue
        .query(
            &format!("select distinct o.class::oid, o.oid, pg_describe_object(o.class, o.oid, 0), oi.schema, oc.relname::text,
                    case when o.class = 'pg_trigger'::regclass then format('trigger %s, enabled', tg.tgname)
                         when o.class = 'pg_rewrite'::regclass then format('rule %s', rw.rulename)
                         when o.class = 'pg_proc'::regclass and pr.prokind <> 'a' then {routine}
                         when o.class = 'pg_class'::regclass and oc.relkind in ('v', 'm') then '' end,
                    r.class::oid, r.oid, pg_describe_object(r.class, r.oid, 0), ri.schema, rc.relname::text
             from pg_depend d
             left join pg_rewrite rw on d.classid = 'pg_rewrite'::regclass and rw.oid = d.objid
             left join pg_class rv on rv.oid = rw.ev_class
             left join pg_attrdef ad on d.classid = 'pg_attrdef'::regclass and ad.oid = d.objid
             left join pg_trigger tg on d.classid = 'pg_trigger'::regclass and tg.oid = d.objid
             left join pg_policy po on d.classid = 'pg_policy'::regclass and po.oid = d.objid
             left join pg_constraint co on d.classid = 'pg_constraint'::regclass and co.oid = d.objid
             left join pg_index ix on d.classid = 'pg_class'::regclass and ix.indexrelid = d.objid
             left join pg_proc pr on d.classid = 'pg_proc'::regclass and pr.oid = d.objid
             left join pg_type rt on d.refclassid = 'pg_type'::regclass and rt.oid = d.refobjid
             left join pg_type re on rt.typcategory = 'A' and re.oid = rt.typelem
             cross join lateral (select coalesce(case when rv.relkind in ('v', 'm') then rv.oid end, ad.adrelid, po.polrelid,
                                                 nullif(co.conrelid, 0), ix.indrelid) as relation) l
             cross join lateral (select case when l.relation is null then d.classid else 'pg_class'::regclass end as class,
                                        coalesce(l.relation, d.objid) as oid) o
             cross join lateral (select coalesce(nullif(rt.typrelid, 0), nullif(re.typrelid, 0)) as relation) rl
             left join pg_class rk on rk.oid = rl.relation and rk.relkind <> 'c'
             cross join lateral (select case when rk.oid is null then d.refclassid else 'pg_class'::regclass end as class,
                                        coalesce(rk.oid, d.refobjid) as oid) r
             cross join lateral pg_identify_object(o.class, o.oid, 0) i
             cross join lateral pg_identify_object(r.class, r.oid, 0) ri
             left join pg_class oc on oc.oid = case when o.class = 'pg_class'::regclass then o.oid
                                                    when o.class = 'pg_trigger'::regclass then tg.tgrelid
                                                    when o.class = 'pg_rewrite'::regclass then rw.ev_class end
             left join pg_namespace oin on oin.oid = oc.relnamespace
             cross join lateral (select coalesce(oin.nspname::text, i.schema) as schema) oi
             left join pg_class rc on r.class = 'pg_class'::regclass and rc.oid = r.oid
             where (d.deptype = 'n' or d.deptype = 'a' and oc.relispartition and d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass)
               and d.objid >= 16384 and d.refobjid >= 16384
               and not (co.contype is not distinct from 'f' and d.refclassid = 'pg_class'::regclass)
               and (o.class, o.oid) is distinct from (r.class, r.oid)
               and ri.schema is not null and oi.schema is not null
               and (rc.oid is null or rc.relkind in ('r', 'p', 'v', 'm', 'f'))
               and (oc.oid is null or oc.relkind in ('r', 'p', 'v', 'm', 'f'))
               and not coalesce(tg.tgisinternal, false)
               -- Triggers of ours stay where they are.
               and not (d.classid = 'pg_trigger'::regclass and exists (
                   select from pg_proc p join pg_namespace n on n.oid = p.pronamespace where p.oid = tg.tgfoid and {OUR_SCHEMAS}))
               and not exists (select from pg_depend e where e.classid = o.class and e.objid = o.oid and e.deptype = 'e')
             order by 3, 9",
                routine = crate::catalog::ROUTINE.replace("p.pro", "pr.pro")
            ),
            &[],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| Edge {
            from: (row.get(0), row.get(1)),
            words: plain(row.get(2)),
            from_schema: row.get(3),
            from_relation: row.get(4),
            fact: row.get(5),
            to: (row.get(6), row.get(7)),
            needs: plain(row.get(8)),
            to_schema: row.get(9),
            to_relation: row.get(10),
        })
        .collect())
}

/// As other messages have names: without the schema `public`, whatever this session's search path is.
fn plain(words: &str) -> String {
    words.replace(" public.", " ").replace("(public.", "(")
}
