//! What the catalog says of a table that is to be captured.

use handover_core::error::Result;
use handover_postgres::{Session, TableName};

/// What a capture needs to know of a table.
#[derive(Debug, Clone)]
pub struct TableFacts {
    /// `pg_class.relkind`.
    pub kind: String,
    /// Columns with whether they are NOT NULL, in order.
    pub columns: Vec<(String, bool)>,
    /// Columns whose text the row's JSON image does not tell.
    pub forms: Vec<(String, Form)>,
    /// The primary key's columns; empty without one.
    pub primary: Vec<String>,
    /// Column sets of the indexes that make rows unique at once: whole, valid, not deferrable.
    pub unique: Vec<Vec<String>>,
    /// Whether tables inherit from it (partitions not meant).
    pub has_children: bool,
    /// Other triggers that fire after a row was written.
    pub other_triggers: Vec<String>,
    /// Rows written per second, on average since the statistics began.
    pub writes_per_second: f64,
}

/// How an event carries a column's text besides the JSON image of its row, which writes arrays and composites as JSON,
/// and gives to types the form of their own cast to json, if they have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As its type's output function writes it.
    Text,
    /// It is a JSON document, and the image holds it as it is written.
    Document,
}

/// Looks a table up; none if there is none.
pub async fn inspect(session: &Session, table: &TableName) -> Result<Option<TableFacts>> {
    let row = session
        .query_opt(
            "select c.oid, c.relkind::text,
                    exists (select from pg_inherits i where i.inhparent = c.oid) and c.relkind <> 'p',
                    coalesce((s.n_tup_ins + s.n_tup_upd + s.n_tup_del)
                             / nullif(extract(epoch from clock_timestamp() - coalesce(d.stats_reset, pg_postmaster_start_time())), 0), 0)::float8
             from pg_class c join pg_namespace n on n.oid = c.relnamespace
             left join pg_stat_all_tables s on s.relid = c.oid
             left join pg_stat_database d on d.datname = current_database()
             where n.nspname = $1 and c.relname = $2",
            &[&table.schema, &table.name],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    let oid: u32 = row.get(0);
    let columns = session
        .query(
            // The same distinctions that row_to_json makes, below domains.
            "select a.attname::text, a.attnotnull,
                    case when b.oid in ('json'::regtype, 'jsonb'::regtype) then 'document'
                         when b.typtype = 'c' or b.typcategory in ('A', 'P')
                              or exists (select from pg_cast k where k.castsource = b.oid and k.castmethod = 'f'
                                         and k.casttarget in ('json'::regtype, 'jsonb'::regtype)) then 'text' end
             from pg_attribute a
             cross join lateral (
                 with recursive base (oid, typtype, typbasetype, typcategory) as (
                     select t.oid, t.typtype, t.typbasetype, t.typcategory from pg_type t where t.oid = a.atttypid
                     union all
                     select t.oid, t.typtype, t.typbasetype, t.typcategory
                     from base join pg_type t on t.oid = base.typbasetype where base.typtype = 'd'
                 ) select * from base where typtype <> 'd'
             ) b
             where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped order by a.attnum",
            &[&oid],
        )
        .await?;
    let indexes = session
        .query(
            "select i.indisprimary,
                    array(select a.attname::text from unnest(i.indkey::int2[]) with ordinality k(num, place)
                          join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.num
                          where k.place <= i.indnkeyatts order by k.place)
             from pg_index i
             where i.indrelid = $1 and i.indisunique and i.indisvalid and i.indimmediate
               and i.indpred is null and i.indexprs is null",
            &[&oid],
        )
        .await?;
    let triggers = session
        .query(
            "select tgname::text from pg_trigger t
             where tgrelid = $1 and not tgisinternal and tgtype & 1 = 1 and tgtype & 66 = 0 and tgenabled <> 'D'
               and tgname not like '00\\_handover\\_%' order by 1",
            &[&oid],
        )
        .await?;
    let mut facts = TableFacts {
        kind: row.get(1),
        columns: columns.iter().map(|row| (row.get(0), row.get(1))).collect(),
        forms: columns
            .iter()
            .filter_map(|row| {
                let form = match row.get::<_, Option<&str>>(2)? {
                    "document" => Form::Document,
                    _ => Form::Text,
                };
                Some((row.get(0), form))
            })
            .collect(),
        primary: Vec::new(),
        unique: Vec::new(),
        has_children: row.get(2),
        other_triggers: triggers.iter().map(|row| row.get(0)).collect(),
        writes_per_second: row.get(3),
    };
    for index in &indexes {
        let columns: Vec<String> = index.get(1);
        if index.get(0) {
            facts.primary.clone_from(&columns);
        }
        facts.unique.push(columns);
    }
    Ok(Some(facts))
}

impl TableFacts {
    /// Whether a column exists.
    #[must_use]
    pub fn has(&self, column: &str) -> bool {
        self.columns.iter().any(|(name, _)| name == column)
    }

    /// Whether rows with equal values in these columns are one row: only then does holding the row's lock order
    /// the events of a key.
    #[must_use]
    pub fn identifies(&self, key: &[String]) -> bool {
        self.unique.iter().any(|index| index.iter().all(|column| key.contains(column)))
            && key
                .iter()
                .all(|column| self.columns.iter().any(|(name, not_null)| name == column && *not_null))
    }
}
