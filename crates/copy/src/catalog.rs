//! The queries a copy asks of catalogs.

use handover_postgres::catalog::{OUR_SCHEMAS, application, is_application};
pub use handover_postgres::catalog::{USER_SCHEMAS, no_member};

/// A trigger of the application's, and none that capture, backfill or a cutover installed: condition on `p`, its
/// function.
#[must_use]
pub fn not_our_trigger() -> String {
    format!("p.pronamespace not in (select n.oid from pg_namespace n where {OUR_SCHEMAS})")
}

/// A routine `p` in words that are the same in every version: which names are quoted differs.
pub const ROUTINE: &str = "format('routine %s(%s)', p.proname,
    (select string_agg(an.nspname || '.' || coalesce(ae.typname || '[]', at.typname) || coalesce(' ' || p.proargmodes[x.n]::text, ''), ', ' order by x.n)
     from unnest(coalesce(p.proallargtypes, p.proargtypes::oid[])) with ordinality x (type, n)
     join pg_type at on at.oid = x.type join pg_namespace an on an.oid = at.typnamespace
     left join pg_type ae on ae.typarray = at.oid))";

/// User relations of some kinds: `oid`, schema, name, kind.
#[must_use]
pub fn relations(kinds: &str) -> String {
    format!(
        "select c.oid, n.nspname::text, c.relname::text, c.relkind::text
         from {} order by 2, 3",
        application(kinds)
    )
}

/// Tables with rows of their own: schema, name, columns, whether binary, sizes, schema and name of the root.
///
/// Binary rows carry the oids of user-defined types inside arrays and composites, and oids of objects in the
/// `reg…` types; both differ between servers. So rows are binary only where every column's type is one that
/// initdb makes with a fixed oid (below 10000), or an enum, or a domain over such.
///
/// The last two columns name a hash-partitioned table above this one, if its key may hash differently on the
/// target: an enum's value hashes by its oid. Which partition a row belongs to is then the target's to say.
#[must_use]
pub fn tables() -> String {
    format!(
        "with recursive rel as (
             select c.oid, n.nspname, c.relname from {tables}
         ), base (relid, typid) as (
             select a.attrelid, a.atttypid from pg_attribute a join rel on rel.oid = a.attrelid
             where a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
             union
             select b.relid, t.typbasetype from base b join pg_type t on t.oid = b.typid where t.typtype = 'd'
         ), textual as (
             select distinct b.relid from base b join pg_type t on t.oid = b.typid
             where t.typtype not in ('d', 'e')
               and not (t.oid < 10000 and t.typsend <> 0 and t.typtype in ('b', 'r', 'm')
                        and t.typname not like 'reg%' and t.typname not like '\\_reg%'
                        and t.typname not in ('aclitem', '_aclitem'))
         )
         select rel.nspname::text, rel.relname::text,
                coalesce((select array_agg(a.attname::text order by a.attnum) from pg_attribute a
                          where a.attrelid = rel.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''),
                         '{{}}'::text[]),
                not exists (select from textual where textual.relid = rel.oid),
                pg_table_size(rel.oid),
                pg_relation_size(rel.oid) / current_setting('block_size')::bigint,
                root.schema, root.name
         from rel left join lateral (
             select rn.nspname::text as schema, r.relname::text as name
             from pg_partition_ancestors(rel.oid) with ordinality a (relid, level)
             join pg_partitioned_table p on p.partrelid = a.relid
             join pg_class r on r.oid = a.relid join pg_namespace rn on rn.oid = r.relnamespace
             where p.partstrat = 'h' and exists (
                 select from unnest(p.partattrs::int2[]) k left join pg_attribute t on t.attrelid = r.oid and t.attnum = k
                 where k = 0 or t.atttypid >= 10000)
             order by a.level desc limit 1) root on true order by 5 desc, 1, 2",
        tables = application("'r'")
    )
}

/// Indexes that a copy builds: schema and name of the table, name, method, bytes, and the key of a
/// B-tree where that is nothing but columns.
#[must_use]
pub fn indexes() -> String {
    format!(
        "select n.nspname::text, c.relname::text, i.relname::text, a.amname::text, pg_relation_size(i.oid),
                case when a.amname = 'btree' and x.indpred is null and x.indexprs is null then
                    (select string_agg(quote_ident(t.attname), ', ' order by k.place)
                     from unnest(x.indkey::int2[]) with ordinality k (attnum, place)
                     join pg_attribute t on t.attrelid = c.oid and t.attnum = k.attnum
                     where k.place <= x.indnkeyatts) end
         from pg_index x join pg_class i on i.oid = x.indexrelid join pg_am a on a.oid = i.relam
         join pg_class c on c.oid = x.indrelid join pg_namespace n on n.oid = c.relnamespace
         where x.indisvalid and {}",
        is_application("'r', 'm'")
    )
}

/// Whether ANALYZE of a relation `c` is the one that covers it: a partitioned table's includes its partitions.
/// Tables with a foreign table below are not analyzed (it would be asked for a sample over the network, or not
/// answer); what is below those is, piece by piece.
#[must_use]
pub fn analyzable() -> String {
    let above_foreign = "with recursive up (oid) as (
             select i.inhparent from pg_inherits i join pg_class k on k.oid = i.inhrelid where k.relkind = 'f'
             union select i.inhparent from up join pg_inherits i on i.inhrelid = up.oid)
         select oid from up";
    format!(
        "c.relkind in ('r', 'p') and c.relpersistence <> 't' and c.oid not in ({above_foreign})
         and (not c.relispartition or exists (
             select from pg_partition_ancestors(c.oid) a (oid) where a.oid <> c.oid and a.oid in ({above_foreign})))"
    )
}

/// Which table an index, constraint or statistics object is on: catalog, row, schema, name, and for foreign keys
/// the schema and name of the table they point to.
pub const PLACES: &str = "
    select o.class, o.oid, n.nspname::text, c.relname::text, fn.nspname::text, f.relname::text
    from (select 'pg_class'::regclass::oid, indexrelid, indrelid, 0::oid from pg_index
          union all select 'pg_constraint'::regclass::oid, oid, conrelid, confrelid from pg_constraint
          union all select 'pg_statistic_ext'::regclass::oid, oid, stxrelid, 0 from pg_statistic_ext
         ) o (class, oid, relation, reference)
    join pg_class c on c.oid = o.relation join pg_namespace n on n.oid = c.relnamespace
    left join pg_class f on f.oid = o.reference left join pg_namespace fn on fn.oid = f.relnamespace
    where o.oid >= 16384";

/// Tables to analyze: schema, name, and the names of those below as two arrays
/// (<https://www.postgresql.org/docs/current/sql-analyze.html>).
#[must_use]
pub fn analyzed() -> String {
    format!(
        "with recursive below (top, oid) as (
             select inhparent, inhrelid from pg_inherits
             union select b.top, i.inhrelid from below b join pg_inherits i on i.inhparent = b.oid
         )
         select n.nspname::text, c.relname::text,
                array(select bn.nspname::text from below b join pg_class bc on bc.oid = b.oid
                      join pg_namespace bn on bn.oid = bc.relnamespace where b.top = c.oid order by bc.oid),
                array(select bc.relname::text from below b join pg_class bc on bc.oid = b.oid where b.top = c.oid order by bc.oid)
         from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where {} and {USER_SCHEMAS} and {} order by 1, 2",
        analyzable(),
        no_member("pg_class", "c.oid")
    )
}

/// Sequences that are no extension's: schema, name.
#[must_use]
pub fn sequences() -> String {
    relations("'S'")
}

/// What both sides must agree on: schema, relation (or empty), a line of text.
#[must_use]
pub fn inventory() -> String {
    format!(
        "with rel as (
             select c.oid, n.nspname, c.relname, c.relkind, c.relpersistence, c.relrowsecurity, c.relforcerowsecurity
             from {relations}
         ), facts (schema, relation, fact) as (
             select nspname, relname, format('relation of kind %s, persistence %s, row security %s/%s',
                    relkind, relpersistence, relrowsecurity, relforcerowsecurity) from rel
             union all
             select r.nspname, r.relname, format('column %s %s.%s(%s)%s, default %s, identity «%s», generated «%s»', a.attname,
                    tn.nspname, coalesce(te.typname || '[]', t.typname), a.atttypmod, case when a.attnotnull then ' not null' else '' end,
                    a.atthasdef, a.attidentity, a.attgenerated)
             from rel r join pg_attribute a on a.attrelid = r.oid join pg_type t on t.oid = a.atttypid
             join pg_namespace tn on tn.oid = t.typnamespace left join pg_type te on te.typarray = t.oid
             where a.attnum > 0 and not a.attisdropped and r.relkind <> 'S'
             union all
             select r.nspname, r.relname, format('index %s, unique %s', i.relname, x.indisunique)
             from rel r join pg_index x on x.indrelid = r.oid join pg_class i on i.oid = x.indexrelid
             where x.indisvalid and x.indisready
             union all
             select r.nspname, r.relname, format('constraint %s of kind %s, validated %s', k.conname, k.contype, k.convalidated)
             from rel r join pg_constraint k on k.conrelid = r.oid
             where k.contype in ('p', 'u', 'x', 'f', 'c') and k.conparentid = 0
             union all
             select r.nspname, r.relname, format('trigger %s, enabled «%s»', t.tgname, t.tgenabled)
             from rel r join pg_trigger t on t.tgrelid = r.oid join pg_proc p on p.oid = t.tgfoid
             where not t.tgisinternal and t.tgparentid = 0 and {not_ours}
             union all
             select r.nspname, r.relname, format('rule %s', w.rulename) from rel r join pg_rewrite w on w.ev_class = r.oid
             union all
             select r.nspname, r.relname, format('policy %s', p.polname) from rel r join pg_policy p on p.polrelid = r.oid
             union all
             select n.nspname, '', {ROUTINE}
             from pg_proc p join pg_namespace n on n.oid = p.pronamespace where {USER_SCHEMAS} and {proc}
               -- Constructors that come with a range; those of its multirange came with Postgres 14.
               and not exists (select from pg_depend i where i.classid = 'pg_proc'::regclass and i.objid = p.oid and i.deptype = 'i')
             union all
             select n.nspname, '', format('type %s: %s', t.typname,
                    (select string_agg(e.enumlabel, ',' order by e.enumsortorder) from pg_enum e where e.enumtypid = t.oid))
             from pg_type t join pg_namespace n on n.oid = t.typnamespace
             where t.typtype in ('d', 'e', 'r') and {USER_SCHEMAS} and {typ}
         )
         select schema::text, relation::text, fact::text from facts",
        relations = application("'r', 'p', 'v', 'm', 'S', 'f'"),
        not_ours = not_our_trigger(),
        proc = no_member("pg_proc", "p.oid"),
        typ = no_member("pg_type", "t.oid"),
    )
}

/// Catalogs whose rows a dump's first half, or a publication or event trigger in its second, can create, each
/// with a condition for those that go by themselves with another object.
const CREATABLE: &[(&str, &str)] = &[
    ("pg_namespace", "true"),
    ("pg_extension", "true"),
    ("pg_language", "true"),
    ("pg_class", "o.relkind in ('r', 'p', 'v', 'm', 'S', 'f')"),
    ("pg_type", "o.typtype in ('b', 'c', 'd', 'e', 'r', 'p')"),
    ("pg_proc", "true"),
    ("pg_operator", "true"),
    ("pg_opclass", "true"),
    ("pg_opfamily", "true"),
    ("pg_collation", "true"),
    ("pg_conversion", "true"),
    ("pg_cast", "true"),
    ("pg_transform", "true"),
    ("pg_ts_config", "true"),
    ("pg_ts_dict", "true"),
    ("pg_ts_parser", "true"),
    ("pg_ts_template", "true"),
    ("pg_foreign_data_wrapper", "true"),
    ("pg_foreign_server", "true"),
    ("pg_event_trigger", "true"),
    ("pg_am", "true"),
    ("pg_publication", "true"),
];

/// Objects in those catalogs that a user made, as (catalog, row). `condition` may speak of `o.xmin`.
#[must_use]
pub fn objects(condition: &str) -> String {
    CREATABLE
        .iter()
        .map(|(catalog, filter)| {
            format!(
                "select '{catalog}'::regclass::oid, o.oid from {catalog} o
                 where o.oid >= 16384 and {filter} and {condition}
                   and not exists (select from pg_depend d where d.classid = '{catalog}'::regclass
                                   and d.objid = o.oid and d.objsubid = 0 and d.deptype in ('e', 'i'))"
            )
        })
        .collect::<Vec<_>>()
        .join(" union all ")
}
