//! What the catalog says of a table, and the pieces of SQL that follow from it.

use handover_core::error::{Error, Result};
use handover_postgres::{Session, TableName, Tx, quote_ident, quote_literal};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

/// Where the catalog is read: alone, or in the transaction that acts on it.
#[derive(Clone, Copy)]
pub(crate) enum Catalog<'a> {
    Session(&'a Session),
    Transaction(&'a Tx<'a>),
}

impl Catalog<'_> {
    pub async fn query(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        match self {
            Catalog::Session(session) => session.query(sql, params).await,
            Catalog::Transaction(tx) => tx.query(sql, params).await,
        }
    }

    pub fn database(&self) -> &str {
        match self {
            Catalog::Session(session) => session.database(),
            Catalog::Transaction(tx) => tx.database(),
        }
    }
}

/// A column.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    pub name: String,
    /// The type's name without its modifier, so that reading a value back never cuts it short silently.
    pub type_sql: String,
    /// Computed by the server (`GENERATED ALWAYS AS`); never written.
    pub generated: bool,
    /// `GENERATED ALWAYS AS IDENTITY`: may be inserted with OVERRIDING, but never updated.
    pub identity_always: bool,
    pub not_null: bool,
    pub has_default: bool,
    /// Whether the type has an equality that tells all values apart (json, xml and most geometric types have not).
    pub comparable: bool,
}

impl Column {
    /// A plain column that no catalog knows, e.g. of a derived relation.
    pub fn new(name: &str, type_sql: &str) -> Self {
        Column {
            name: name.to_owned(),
            type_sql: type_sql.to_owned(),
            generated: false,
            identity_always: false,
            not_null: true,
            has_default: false,
            comparable: true,
        }
    }

    pub fn ident(&self) -> String {
        quote_ident(&self.name)
    }

    /// `left is distinct from right`, as text for types without equality.
    pub fn differs(&self, left: &str, right: &str) -> String {
        if self.comparable {
            format!("({left}) is distinct from ({right})")
        } else {
            format!("({left})::text is distinct from ({right})::text")
        }
    }

    /// This column's value out of an archived row.
    pub fn read_json(&self, json: &str) -> String {
        format!("({json} ->> {})::{}", quote_literal(&self.name), self.type_sql)
    }
}

/// A foreign key that points at a table.
#[derive(Debug, Clone)]
pub(crate) struct ForeignKey {
    pub name: String,
    pub child: TableName,
    pub child_columns: Vec<String>,
    pub parent_columns: Vec<String>,
    /// What happens to children when a parent is deleted, as in `pg_constraint.confdeltype`.
    pub on_delete: String,
    /// Whether an index of the child serves it.
    pub indexed: bool,
}

/// A table as the catalog has it.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub name: TableName,
    pub columns: Vec<Column>,
    /// The columns that identify a row; empty when [`Table::load`] was not asked for a key.
    pub key: Vec<Column>,
    /// Rows, as the last ANALYZE estimated; none when there was none.
    pub estimated_rows: Option<u64>,
    /// Enabled triggers of the application, with what they fire on.
    pub triggers: Vec<String>,
    pub foreign_keys: Vec<ForeignKey>,
    /// Whether row security hides rows from us.
    pub row_security: bool,
}

impl Table {
    /// Reads the catalog. `key`: the columns the plan names, checked to be unique and not null; none picks the
    /// primary key, or else the narrowest unique index over not-null columns.
    pub async fn load(session: Catalog<'_>, name: &TableName, key: Option<&[String]>) -> Result<Table> {
        let mut table = Self::load_without_key(session, name).await?;
        let columns = key_columns(session, &table, key).await?;
        table.key = table.columns.iter().filter(|c| columns.contains(&c.name)).cloned().collect();
        table.key.sort_by_key(|c| columns.iter().position(|name| *name == c.name));
        Ok(table)
    }

    /// The same without a key, for children that are found by their foreign key.
    pub async fn load_without_key(session: Catalog<'_>, name: &TableName) -> Result<Table> {
        let row = session
            .query(
                "select c.oid, c.relkind::text, c.reltuples::float8, row_security_active(c.oid),
                        c.relkind = 'r' and exists (select 1 from pg_inherits i where i.inhparent = c.oid)
                 from pg_class c join pg_namespace n on n.oid = c.relnamespace
                 where n.nspname = $1 and c.relname = $2",
                &[&name.schema, &name.name],
            )
            .await?
            .into_iter()
            .next()
            .ok_or_else(|| {
                Error::data(format!("there is no table {name}"))
                    .on_database(session.database())
                    .hint("correct its name in the plan; a table outside `public` is written schema.table")
            })?;
        let (oid, kind): (u32, String) = (row.get(0), row.get(1));
        if kind != "r" && kind != "p" || row.get::<_, bool>(4) {
            return Err(Error::data(format!("{name} is not an ordinary or partitioned table"))
                .on_database(session.database())
                .hint("name the table behind a view, or each child of an inheritance parent"));
        }
        let tuples: f64 = row.get(2);
        Ok(Table {
            name: name.clone(),
            columns: columns(session, oid).await?,
            key: Vec::new(),
            estimated_rows: (tuples > 0.0).then_some(tuples as u64),
            triggers: triggers(session, oid).await?,
            foreign_keys: foreign_keys(session, oid).await?,
            row_security: row.get(3),
        })
    }

    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|c| c.name == name)
    }

    /// A column that a plan wants written.
    pub fn writable(&self, name: &str, database: &str) -> Result<&Column> {
        let fail = |message: String, hint: String| Err(Error::data(message).on_database(database).hint(hint));
        match self.column(name) {
            None => {
                let names = self.columns.iter().map(|c| c.name.as_str());
                let hint = match handover_core::problem::suggest(name, names) {
                    Some(close) => format!("did you mean `{close}`?"),
                    None => "a new column is made by a `migrate` step before this one".into(),
                };
                fail(format!("table {} has no column `{name}`", self.name), hint)
            }
            Some(c) if c.generated || c.identity_always => fail(
                format!("column `{name}` of {} is computed by the server", self.name),
                "leave it out: the server gives it its value".into(),
            ),
            Some(c) => Ok(c),
        }
    }

    /// The row (the columns of it that are not computed) as an archived object.
    pub fn row_json(&self) -> String {
        object(self.columns.iter().filter(|c| !c.generated), "")
    }

    /// The row's key as an archived object.
    pub fn key_json(&self) -> String {
        object(self.key.iter(), "")
    }

    /// The key's columns, quoted and joined.
    pub fn key_list(&self) -> String {
        self.key.iter().map(Column::ident).collect::<Vec<_>>().join(", ")
    }

    /// The key's columns as text, joined. They get names of their own: ORDER BY prefers the name of an output
    /// column to a table's column, and would sort by the text.
    pub fn key_text(&self) -> String {
        let parts: Vec<String> = self
            .key
            .iter()
            .enumerate()
            .map(|(i, c)| format!("{}::text as handover_k{i}", c.ident()))
            .collect();
        parts.join(", ")
    }

    /// `(a, b) > ($1, $2)`. The parameters' casts carry the default collation and the columns their own, which
    /// therefore decides, as it does for ORDER BY and for the index.
    pub fn key_beyond(&self, operator: &str, first_parameter: usize) -> String {
        let parameters: Vec<String> = self
            .key
            .iter()
            .enumerate()
            .map(|(i, c)| format!("(${}::text)::{}", first_parameter + i, c.type_sql))
            .collect();
        format!("({}) {operator} ({})", self.key_list(), parameters.join(", "))
    }

    /// Restricts to rows whose keys come as one text array per key column, from `$1` on. It keeps the names of
    /// the parameters' columns away from the operator's condition.
    pub fn key_among(&self) -> String {
        let casts: Vec<String> =
            self.key.iter().enumerate().map(|(i, c)| format!("(handover_k.c{i})::{}", c.type_sql)).collect();
        let arrays: Vec<String> = (0..self.key.len()).map(|i| format!("${}::text[]", i + 1)).collect();
        let names: Vec<String> = (0..self.key.len()).map(|i| format!("c{i}")).collect();
        format!(
            "({}) in (select {} from unnest({}) as handover_k({}))",
            self.key_list(),
            casts.join(", "),
            arrays.join(", "),
            names.join(", ")
        )
    }
}

/// Keys as one text array per column, the way [`Table::key_among`] wants them.
pub(crate) fn key_arrays(keys: &[Vec<String>], width: usize) -> Vec<Vec<&str>> {
    (0..width).map(|i| keys.iter().filter_map(|key| key.get(i).map(String::as_str)).collect()).collect()
}

/// References to values, as parameters.
pub(crate) fn params<T: ToSql + Sync>(values: &[T]) -> Vec<&(dyn ToSql + Sync)> {
    values.iter().map(|v| v as &(dyn ToSql + Sync)).collect()
}

/// An object of column name to value as text. `jsonb_object` takes two arrays, so it has no limit of arguments.
/// `prefix` goes before each column, e.g. `t.`.
pub(crate) fn object<'a>(columns: impl Iterator<Item = &'a Column>, prefix: &str) -> String {
    let (names, values): (Vec<String>, Vec<String>) =
        columns.map(|c| (quote_literal(&c.name), format!("{prefix}{}::text", c.ident()))).unzip();
    format!("jsonb_object(array[{}]::text[], array[{}]::text[])", names.join(", "), values.join(", "))
}

async fn columns(session: Catalog<'_>, oid: u32) -> Result<Vec<Column>> {
    let rows = session
        .query(
            "select a.attname::text, format_type(a.atttypid, -1), a.attgenerated <> '', a.attidentity = 'a',
                    a.attnotnull, a.atthasdef or a.attidentity <> '',
                    coalesce(b.typname, t.typname) <> all
                        (array['json','xml','point','line','lseg','box','path','polygon','circle'])
                    and coalesce(nullif(t.typelem, 0) is null or e.typname <> all
                        (array['json','xml','point','line','lseg','box','path','polygon','circle']), true)
             from pg_attribute a join pg_type t on t.oid = a.atttypid
             left join pg_type b on b.oid = nullif(t.typbasetype, 0)
             left join pg_type e on e.oid = nullif(t.typelem, 0)
             where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped order by a.attnum",
            &[&oid],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| Column {
            name: row.get(0),
            type_sql: row.get(1),
            generated: row.get(2),
            identity_always: row.get(3),
            not_null: row.get(4),
            has_default: row.get(5),
            comparable: row.get(6),
        })
        .collect())
}

async fn triggers(session: Catalog<'_>, oid: u32) -> Result<Vec<String>> {
    let rows = session
        .query(
            "select pg_get_triggerdef(oid) from pg_trigger
             where tgrelid = $1 and not tgisinternal and tgenabled in ('O', 'A') order by tgname",
            &[&oid],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

async fn foreign_keys(session: Catalog<'_>, oid: u32) -> Result<Vec<ForeignKey>> {
    let rows = session
        .query(
            "select k.conname::text, n.nspname::text, c.relname::text,
                    array(select a.attname::text from unnest(k.conkey) with ordinality u(num, pos)
                          join pg_attribute a on a.attrelid = k.conrelid and a.attnum = u.num order by u.pos),
                    array(select a.attname::text from unnest(k.confkey) with ordinality u(num, pos)
                          join pg_attribute a on a.attrelid = k.confrelid and a.attnum = u.num order by u.pos),
                    k.confdeltype::text,
                    exists (select 1 from pg_index i where i.indrelid = k.conrelid and i.indisvalid
                            and i.indkey[0] = any (k.conkey))
             from pg_constraint k join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace
             where k.contype = 'f' and k.confrelid = $1 and k.conparentid = 0 order by k.conname",
            &[&oid],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| ForeignKey {
            name: row.get(0),
            child: TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
            child_columns: row.get(3),
            parent_columns: row.get(4),
            on_delete: row.get(5),
            indexed: row.get(6),
        })
        .collect())
}

/// The columns of the key to walk a table by, in the index's order.
async fn key_columns(session: Catalog<'_>, table: &Table, wanted: Option<&[String]>) -> Result<Vec<String>> {
    let rows = session
        .query(
            "select array(select a.attname::text from unnest(i.indkey::int2[]) with ordinality u(num, pos)
                          join pg_attribute a on a.attrelid = i.indrelid and a.attnum = u.num
                          where u.pos <= i.indnkeyatts order by u.pos)
             from pg_index i join pg_class c on c.oid = i.indexrelid
             join pg_class t on t.oid = i.indrelid join pg_namespace n on n.oid = t.relnamespace
             join pg_am m on m.oid = c.relam
             where n.nspname = $1 and t.relname = $2 and i.indisunique and i.indisvalid and i.indimmediate
               and i.indpred is null and i.indexprs is null and m.amname = 'btree'
               and not exists (select 1 from unnest(i.indkey::int2[]) with ordinality u(num, pos)
                               join pg_attribute a on a.attrelid = i.indrelid and a.attnum = u.num
                               where u.pos <= i.indnkeyatts and not a.attnotnull)
             order by i.indisprimary desc, i.indnkeyatts, pg_relation_size(i.indexrelid), c.relname",
            &[&table.name.schema, &table.name.name],
        )
        .await?;
    let unique: Vec<Vec<String>> = rows.iter().map(|row| row.get(0)).collect();
    let same = |a: &[String], b: &[String]| a.len() == b.len() && a.iter().all(|c| b.contains(c));
    match wanted {
        None => unique.into_iter().next().ok_or_else(|| {
            Error::data(format!("table {} has neither a primary key nor a unique index over not-null columns", table.name))
                .on_database(session.database())
                .hint("rows are found again by their key, in batches and on undo; add a primary key (or a unique index and NOT NULL) first")
        }),
        Some(wanted) => unique.into_iter().find(|columns| same(columns, wanted)).ok_or_else(|| {
            Error::data(format!("({}) is not a key of table {}", wanted.join(", "), table.name))
                .on_database(session.database())
                .hint("`key` names exactly the columns of a unique index that is not partial or deferrable, all of them NOT NULL")
        }),
    }
}
