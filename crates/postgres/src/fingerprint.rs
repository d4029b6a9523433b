//! What a database's schema is, fact by fact, so that what was proven of it once can be watched: taken when a step
//! relied on it, compared again before and behind the lock of a cutover, and told by name where it drifted.
//!
//! Two looks. [`look`] is in words, which are the same on every server, so that a change that was made on both sides is
//! told from one that the new side lacks; it takes a second for some thousand tables. [`digest`] is one row of sums
//! over the catalogs' raw rows, cheap enough for a pause, and only says whether anything changed since a moment ago.

use super::catalog::{USER_SCHEMAS, application, is_ours, no_member};
use super::{Session, TableName};
use handover_core::error::Result;
use std::collections::{BTreeMap, BTreeSet};

/// What a fact is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// `table`, `column`, `index`, … as it is told.
    pub kind: String,
    /// The relation it belongs to, or is; its name is empty where it belongs to a schema only.
    pub relation: TableName,
    /// Its own name, empty for the relation itself.
    pub name: String,
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let schema = &self.relation.schema;
        match (self.relation.name.is_empty(), self.name.is_empty()) {
            (true, true) => write!(f, "{} schema {schema}", self.kind),
            (true, false) => write!(f, "{} {schema}.{}", self.kind, self.name),
            (false, true) => write!(f, "{} {}", self.kind, self.relation),
            (false, false) => write!(f, "{} {}.{}", self.kind, self.relation, self.name),
        }
    }
}

/// All facts of a database, each with how it is.
pub type Facts = BTreeMap<Subject, String>;

/// The kind of the facts that tell one table from another of its name.
pub const IDENTITY: &str = "identity of";
/// The kind of the facts about triggers of a capture.
pub const CAPTURE: &str = "capture trigger";
/// The kind of the facts about tables in publications of ours.
pub const PUBLISHED: &str = "publication of";
/// The kind of the facts about owners and grants: of relations, columns, schemas and routines.
pub const RIGHTS: &str = "rights on";
/// What stands between the rights of one such fact.
const AND: &str = ", ";

/// Of facts like these only the old side knows what they should be, and a new one means nothing.
#[must_use]
pub fn is_of_one_side(kind: &str) -> bool {
    [IDENTITY, CAPTURE, PUBLISHED].contains(&kind)
}

/// A fact as it is kept: kind, schema, relation, name, and how it is.
pub type Row = [String; 5];

/// Facts as rows, to be kept.
#[must_use]
pub fn to_rows(facts: &Facts) -> Vec<Row> {
    let row = |(subject, fact): (&Subject, &String)| {
        let Subject { kind, relation, name } = subject.clone();
        [kind, relation.schema, relation.name, name, fact.clone()]
    };
    facts.iter().map(row).collect()
}

/// The facts of such rows.
#[must_use]
pub fn from_rows(rows: Vec<Row>) -> Facts {
    let fact = |[kind, schema, relation, name, fact]: Row| {
        (Subject { kind, relation: TableName::new(schema, relation), name }, fact)
    };
    rows.into_iter().map(fact).collect()
}

/// Every fact about the application's schema. The session must have a path on which none of its names is visible, or
/// words differ.
pub async fn look(session: &Session) -> Result<Facts> {
    let facts = session.query(&words(), &[]).await?;
    Ok(facts
        .iter()
        .map(|row| {
            let relation = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
            (Subject { kind: row.get(0), relation, name: row.get(3) }, row.get(4))
        })
        .collect())
}

fn words() -> String {
    format!(
        "with rel as (
             select c.oid, n.nspname::text as schema, c.relname::text as name, c.relkind, c.relpersistence, c.relreplident,
                    c.relrowsecurity, c.relforcerowsecurity, c.relispartition, c.relpartbound, c.relowner, c.relacl
             from {tables}
         ), named as (
             select c.oid, n.nspname::text as schema, c.relname::text as name, c.relkind, c.relowner, c.relacl from {named}
         ), facts (kind, schema, relation, what, fact) as (
         select 'table' as kind, r.schema, r.name, '' as what,
                concat_ws(', ', r.relkind, r.relpersistence, 'replica identity ' || r.relreplident::text,
                    case when r.relrowsecurity then 'row security' end, case when r.relforcerowsecurity then 'forced' end,
                    (select string_agg(format('below %I.%I', pn.nspname, p.relname), ', ' order by i.inhseqno)
                     from pg_inherits i join pg_class p on p.oid = i.inhparent join pg_namespace pn on pn.oid = p.relnamespace
                     where i.inhrelid = r.oid), pg_get_expr(r.relpartbound, r.oid)) as fact
         from rel r
         union all
         select '{IDENTITY}', r.schema, r.name, '', r.oid::text from rel r
         union all
         select '{RIGHTS}', r.schema, r.name, '', {of_relation}
         from named r
         union all
         select '{RIGHTS}', r.schema, r.name, a.attname, {of_column}
         from named r join pg_attribute a on a.attrelid = r.oid
         where a.attnum > 0 and not a.attisdropped and a.attacl is not null
         union all
         select '{RIGHTS}', n.nspname, '', '', {of_schema} from pg_namespace n where {USER_SCHEMAS} and {no_schema}
         union all
         select '{RIGHTS}', n.nspname, '', format('%s(%s)', p.proname, pg_get_function_identity_arguments(p.oid)), {of_routine}
         from pg_proc p join pg_namespace n on n.oid = p.pronamespace where {USER_SCHEMAS} and {no_routine}
         union all
         select 'collation of', r.schema, r.name, a.attname, format('%I.%I', cn.nspname, l.collname)
         from named r join pg_attribute a on a.attrelid = r.oid join pg_type t on t.oid = a.atttypid
         join pg_collation l on l.oid = a.attcollation join pg_namespace cn on cn.oid = l.collnamespace
         where r.relkind in ('r', 'p') and a.attnum > 0 and not a.attisdropped and a.attcollation <> t.typcollation
         union all
         select 'rule', r.schema, r.name, w.rulename, concat_ws(' ', w.ev_enabled, md5(pg_get_ruledef(w.oid)))
         from named r join pg_rewrite w on w.ev_class = r.oid where w.rulename <> '_RETURN'
         union all
         select 'column', r.schema, r.name, a.attname, concat_ws(' ', format_type(a.atttypid, a.atttypmod),
                case when a.attnotnull then 'not null' end, nullif('identity ' || a.attidentity::text, 'identity '),
                nullif('generated ' || a.attgenerated::text, 'generated '), 'default ' || pg_get_expr(d.adbin, d.adrelid))
         from rel r join pg_attribute a on a.attrelid = r.oid
         left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
         where a.attnum > 0 and not a.attisdropped
         union all
         select 'index', r.schema, r.name, i.relname, pg_get_indexdef(x.indexrelid) || case when x.indisvalid then '' else ', invalid' end
         from rel r join pg_index x on x.indrelid = r.oid join pg_class i on i.oid = x.indexrelid
         union all
         select 'constraint', r.schema, r.name, k.conname, pg_get_constraintdef(k.oid)
         from rel r join pg_constraint k on k.conrelid = r.oid where k.contype in ('p', 'u', 'x', 'f', 'c')
         union all
         select case when {ours} then '{CAPTURE}' else 'trigger' end, r.schema, r.name, t.tgname,
                -- Disabled and enabled again, it looks the same, and is another row version.
                case when {ours} then concat_ws(' ', t.tgenabled, t.oid, t.xmin) else pg_get_triggerdef(t.oid) || ' ' || t.tgenabled::text end
         from rel r join pg_trigger t on t.tgrelid = r.oid join pg_proc p on p.oid = t.tgfoid
         join pg_namespace pn on pn.oid = p.pronamespace
         where not t.tgisinternal and (not ({ours}) or t.tgname ~ '^00_handover_[0-9]')
         union all
         select 'policy', r.schema, r.name, o.polname, concat_ws(' ', o.polcmd, o.polpermissive,
                (select 'to ' || string_agg(case when x = 0 then 'public' else quote_ident(pg_get_userbyid(x)) end, ', ' order by pg_get_userbyid(x))
                 from unnest(o.polroles) x), pg_get_expr(o.polqual, o.polrelid), pg_get_expr(o.polwithcheck, o.polrelid))
         from rel r join pg_policy o on o.polrelid = r.oid
         union all
         select '{PUBLISHED}', r.schema, r.name, b.pubname, x.oid::text
         from rel r join pg_publication_rel x on x.prrelid = r.oid join pg_publication b on b.oid = x.prpubid
         where starts_with(b.pubname::text, 'handover_')
         union all
         select 'sequence', n.nspname, c.relname, '', concat_ws(' ', format_type(s.seqtypid, null), s.seqstart, s.seqincrement,
                s.seqmin, s.seqmax, s.seqcache, s.seqcycle)
         from {sequences}
         union all
         select case c.relkind when 'v' then 'view' else 'materialized view' end, n.nspname, c.relname, '',
                concat_ws(' ', md5(pg_get_viewdef(c.oid)), (select string_agg(x, ', ' order by x) from unnest(c.reloptions) x))
         from {views}
         union all
         select 'type', n.nspname, '', t.typname, case t.typtype
                when 'e' then (select string_agg(quote_literal(e.enumlabel), ', ' order by e.enumsortorder) from pg_enum e where e.enumtypid = t.oid)
                when 'd' then concat_ws(' ', format_type(t.typbasetype, t.typtypmod), case when t.typnotnull then 'not null' end, t.typdefault,
                    (select string_agg(pg_get_constraintdef(k.oid), ' ' order by k.conname) from pg_constraint k where k.contypid = t.oid and k.contype = 'c'))
                when 'c' then (select string_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' order by a.attnum)
                    from pg_attribute a where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped)
                else t.typtype::text end
         from pg_type t join pg_namespace n on n.oid = t.typnamespace left join pg_class c on c.oid = t.typrelid
         where (t.typtype in ('e', 'd', 'r') or t.typtype = 'c' and c.relkind = 'c') and {USER_SCHEMAS} and {no_type}
         union all
         select 'routine', n.nspname, '', format('%s(%s)', p.proname, pg_get_function_identity_arguments(p.oid)),
                -- Of a routine `begin atomic`, the source is empty and the body is in the definition.
                concat_ws(' ', p.prokind, case when p.prokind = 'a'
                    then (select md5(concat_ws(' ', g.aggtransfn, g.aggfinalfn, g.aggcombinefn, format_type(g.aggtranstype, null), g.agginitval))
                          from pg_aggregate g where g.aggfnoid = p.oid)
                    else md5(pg_get_functiondef(p.oid)) end, pg_get_function_result(p.oid))
         from pg_proc p join pg_namespace n on n.oid = p.pronamespace where {USER_SCHEMAS} and {no_routine}
         )
         select kind, schema, relation, what, coalesce(fact, '') from facts",
        tables = application("'r', 'p'"),
        named = application("'r', 'p', 'v', 'm', 'S'"),
        of_relation = rights("r.relowner", "case r.relkind when 'S' then 's' else 'r' end::\"char\"", "r.relacl"),
        of_column = granted("a.attacl"),
        of_schema = rights("n.nspowner", "'n'", "n.nspacl"),
        of_routine = rights("p.proowner", "'f'", "p.proacl"),
        no_schema = no_member("pg_namespace", "n.oid"),
        ours = is_ours("pn"),
        sequences = application("'S'").replacen(
            "pg_class c",
            "pg_sequence s join pg_class c on c.oid = s.seqrelid",
            1
        ),
        views = application("'v', 'm'"),
        no_type = no_member("pg_type", "t.oid"),
        no_routine = no_member("pg_proc", "p.oid"),
    )
}

/// The grants of a list, each right by itself: `app=SELECT, app=UPDATE*, =USAGE`. That of Postgres 17 to maintain is left
/// out, or the same owner would have other rights in two versions.
fn granted(list: &str) -> String {
    format!(
        "(select string_agg(format('%s=%s%s', case when x.grantee = 0 then '' else quote_ident(pg_get_userbyid(x.grantee)) end,
                   x.privilege_type, case when x.is_grantable then '*' end), '{AND}'
               order by pg_get_userbyid(x.grantee)::text collate \"C\", x.privilege_type, x.grantor)
          from aclexplode({list}) x where x.privilege_type <> 'MAINTAIN')"
    )
}

/// An owner and the grants, those by default too.
fn rights(owner: &str, kind: &str, list: &str) -> String {
    let granted = granted(&format!("coalesce({list}, acldefault({kind}, {owner}))"));
    format!("concat_ws('{AND}', 'owner ' || quote_ident(pg_get_userbyid({owner})), {granted})")
}

/// One value that is another one when anything of the schema changed. What a cutover itself makes is not in it.
#[must_use]
pub fn digest_sql() -> String {
    let of = |catalog: &str, alias: &str, relation: &str, key: &str| {
        format!(
            "select concat_ws(' ', '{catalog}', {alias}.{key}, {alias}.xmin) from {catalog} {alias} join rel on rel.oid = {alias}.{relation}"
        )
    };
    format!(
        "with rel as (select c.* from {tables})
         select count(*) || ' ' || coalesce(sum(hashtextextended(line, 0)), 0) from (
             -- Not its version: a TRUNCATE makes a new one.
             select concat_ws(' ', r.oid, r.relnamespace, r.relname, r.relkind, r.relpersistence, r.relreplident,
                              r.relrowsecurity, r.relforcerowsecurity, r.relpartbound, r.relowner, r.relacl) from rel r
             union all select concat_ws(' ', 'a', a.attrelid, a.attnum, a.xmin) from pg_attribute a join rel on rel.oid = a.attrelid
                       where a.attnum > 0
             union all {defaults} union all {indexes} union all {constraints} union all {inherits} union all {policies}
             union all {published}
             union all select concat_ws(' ', 't', t.oid, t.xmin) from pg_trigger t join rel on rel.oid = t.tgrelid
                       where not starts_with(t.tgname::text, '00_handover_refuse')
             union all select concat_ws(' ', 's', s.seqrelid, s.xmin) from pg_sequence s
                       where s.seqrelid in (select c.oid from {sequences})
             union all select concat_ws(' ', 'e', e.oid, e.xmin) from pg_enum e join pg_type t on t.oid = e.enumtypid
                       join pg_namespace n on n.oid = t.typnamespace where {USER_SCHEMAS}
             union all select concat_ws(' ', 'y', t.oid, t.typname, t.xmin) from pg_type t join pg_namespace n on n.oid = t.typnamespace
                       where {USER_SCHEMAS}
             union all select concat_ws(' ', 'p', p.oid, p.xmin) from pg_proc p join pg_namespace n on n.oid = p.pronamespace
                       where {USER_SCHEMAS}
             union all select concat_ws(' ', 'w', w.oid, w.xmin) from pg_rewrite w join pg_class c on c.oid = w.ev_class
                       join pg_namespace n on n.oid = c.relnamespace where {USER_SCHEMAS}
             union all select concat_ws(' ', 'g', c.oid, c.relowner, c.relacl, c.reloptions) from {others}
             union all select concat_ws(' ', 'n', n.oid, n.nspowner, n.nspacl) from pg_namespace n where {USER_SCHEMAS}
             union all select concat_ws(' ', 'u', s.subname, s.subenabled) from pg_subscription s
                       where s.subdbid = (select d.oid from pg_database d where d.datname = current_database())
         ) facts (line)",
        tables = application("'r', 'p'"),
        others = application("'v', 'm', 'S'"),
        sequences = application("'S'"),
        defaults = of("pg_attrdef", "d", "adrelid", "oid"),
        indexes = of("pg_index", "x", "indrelid", "indexrelid"),
        constraints = of("pg_constraint", "k", "conrelid", "oid"),
        inherits = of("pg_inherits", "i", "inhrelid", "inhparent"),
        policies = of("pg_policy", "o", "polrelid", "oid"),
        published = of("pg_publication_rel", "b", "prrelid", "oid"),
    )
}

/// See [`digest_sql`].
pub async fn digest(session: &Session) -> Result<String> {
    Ok(session.query_one(&digest_sql(), &[]).await?.get(0))
}

/// How a fact of one moment is at a later one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    /// What drifted.
    pub subject: Subject,
    /// How it was, if it was there.
    pub was: Option<String>,
    /// How it is, if it is there.
    pub is: Option<String>,
}

impl Drift {
    /// Whether somebody lost a right by it, or the owner is another one.
    #[must_use]
    pub fn takes_rights(&self) -> bool {
        // Who may grant a right may also use it: a star that comes takes nothing.
        let has = |is: &str, was: &str| is == was || is.replace('*', "") == was;
        let is: BTreeSet<&str> = self.is.iter().flat_map(|is| is.split(AND)).collect();
        self.subject.kind == RIGHTS
            && self.was.iter().flat_map(|was| was.split(AND)).any(|was| !is.iter().any(|is| has(is, was)))
    }
}

impl std::fmt::Display for Drift {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let subject = &self.subject;
        if subject.kind == IDENTITY {
            return write!(f, "table {} was replaced by another of that name", subject.relation);
        }
        match (&self.was, &self.is) {
            (None, _) => write!(f, "{subject} was made"),
            (_, None) => write!(f, "{subject} is gone"),
            (Some(was), Some(is)) if subject.kind == "column" || subject.kind == RIGHTS => {
                write!(f, "{subject} was {was} and is {is}")
            }
            _ => write!(f, "{subject} was altered"),
        }
    }
}

/// What differs between two moments. A relation that is new or gone is told once, not with all that is its own.
#[must_use]
pub fn drift(before: &Facts, now: &Facts) -> Vec<Drift> {
    let mut out = Vec::new();
    let own = ["table", "sequence", "view", "materialized view"];
    let whole = |facts: &Facts, Subject { kind, relation, name }: &Subject| {
        let has = |kind: &str, name: &str| {
            let (relation, name) = (relation.clone(), name.to_owned());
            facts.contains_key(&Subject { kind: kind.into(), relation, name })
        };
        // The rights on something, and what else is told of a column.
        match (relation.name.is_empty(), name.is_empty()) {
            (true, false) if kind == RIGHTS => has("routine", name),
            (true, _) => true,
            (false, false) if [RIGHTS, "collation of"].contains(&kind.as_str()) && has("table", "") => {
                has("column", name)
            }
            (false, _) => own.iter().any(|kind| has(kind, "")),
        }
    };
    let told = |subject: &Subject| {
        own.contains(&subject.kind.as_str()) || whole(before, subject) && whole(now, subject)
    };
    for (subject, was) in before {
        let is = now.get(subject);
        if is != Some(was) && told(subject) {
            out.push(Drift { subject: subject.clone(), was: Some(was.clone()), is: is.cloned() });
        }
    }
    for (subject, is) in now {
        if !before.contains_key(subject) && !is_of_one_side(&subject.kind) && told(subject) {
            out.push(Drift { subject: subject.clone(), was: None, is: Some(is.clone()) });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(list: &[(&str, &str, &str, &str)]) -> Facts {
        list.iter()
            .map(|(kind, relation, name, fact)| {
                let relation = TableName::new("public", *relation);
                (Subject { kind: (*kind).into(), relation, name: (*name).into() }, (*fact).into())
            })
            .collect()
    }

    #[test]
    fn what_drifted_is_told_by_name_and_a_table_only_once() {
        let before = facts(&[
            ("table", "a", "", "r"),
            (IDENTITY, "a", "", "1"),
            ("column", "a", "x", "integer"),
            ("column", "a", "y", "text"),
            ("table", "b", "", "r"),
            (IDENTITY, "b", "", "2"),
            ("column", "b", "x", "integer"),
            ("type", "", "mood", "'sad'"),
        ]);
        let now = facts(&[
            ("table", "a", "", "r"),
            (IDENTITY, "a", "", "3"),
            (CAPTURE, "a", "t", "A 1 1"),
            ("column", "a", "x", "bigint"),
            ("column", "a", "z", "text"),
            ("table", "c", "", "r"),
            ("column", "c", "x", "integer"),
            ("type", "", "mood", "'sad', 'glad'"),
        ]);
        let mut told: Vec<String> = drift(&before, &now).iter().map(ToString::to_string).collect();
        told.sort();
        assert_eq!(
            told,
            [
                "column a.x was integer and is bigint",
                "column a.y is gone",
                "column a.z was made",
                "table a was replaced by another of that name",
                "table b is gone",
                "table c was made",
                "type public.mood was altered",
            ]
        );
        assert_eq!(drift(&before, &before), []);
    }

    #[test]
    fn a_right_that_is_gone_is_told_from_one_that_is_new() {
        let was = facts(&[
            ("sequence", "s", "", "1"),
            (RIGHTS, "s", "", "owner app, app=USAGE, dml=USAGE"),
            ("routine", "", "f()", "f"),
            (RIGHTS, "", "f()", "owner app, =EXECUTE"),
            ("routine", "", "gone()", "f"),
            (RIGHTS, "", "gone()", "owner app"),
        ]);
        let is = facts(&[
            ("sequence", "s", "", "1"),
            (RIGHTS, "s", "", "owner app, app=USAGE, app=SELECT, dml=USAGE"),
            ("routine", "", "f()", "f"),
            (RIGHTS, "", "f()", "owner app"),
        ]);
        let found = drift(&was, &is);
        let mut told: Vec<(String, bool)> =
            found.iter().map(|drift| (drift.subject.to_string(), drift.takes_rights())).collect();
        told.sort();
        assert_eq!(
            told,
            [
                ("rights on public.f()".to_owned(), true),
                ("rights on s".to_owned(), false),
                ("routine public.gone()".to_owned(), false),
            ]
        );
    }
}
