//! The triggers of a capture, and the function behind them.
//!
//! They run in the writer's transaction, so they are few and plain: one row trigger for each operation, whose
//! `WHEN` is evaluated before any function is called, and one function for each table with its columns written
//! out. The function is SECURITY DEFINER, so that writers need no grant of ours, and pins every setting that
//! decides how a value is written as text.
//! (<https://www.postgresql.org/docs/current/sql-createtrigger.html>)

use crate::applies;
use crate::catalog::Form;
use handover_postgres::ours::OURS;
use handover_postgres::routine::Routine;
use handover_postgres::{TableName, quote_ident, quote_literal};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A kind of write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// A new row.
    Insert,
    /// A changed row. If its key changed, it is captured as a delete of the old key and an insert of the new.
    Update,
    /// A row that is gone.
    Delete,
}

impl Operation {
    /// Its name, as events carry it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Insert => "insert",
            Operation::Update => "update",
            Operation::Delete => "delete",
        }
    }

    /// Whether its trigger has an `OLD` row.
    #[must_use]
    pub fn has_old(self) -> bool {
        self != Operation::Insert
    }

    /// Whether its trigger has a `NEW` row.
    #[must_use]
    pub fn has_new(self) -> bool {
        self != Operation::Delete
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Finds the triggers whose function's name matches `$1`: schema, table, trigger, `tgenabled`, function. Clones
/// on partitions follow their parent's.
#[must_use]
pub(crate) fn find() -> String {
    format!(
        "select tn.nspname, c.relname, t.tgname, t.tgenabled::text, p.proname::text
    from pg_trigger t join pg_proc p on p.oid = t.tgfoid join pg_namespace n on n.oid = p.pronamespace
    join pg_class c on c.oid = t.tgrelid join pg_namespace tn on tn.oid = c.relnamespace
    where n.nspname = '{OURS}' and p.proname like $1 and t.tgparentid = 0
    order by 1, 2, 3"
    )
}

/// The `LIKE` pattern of a capture's functions.
#[must_use]
pub(crate) fn function_pattern(capture: i64) -> String {
    format!("capture\\_{capture}\\_%")
}

/// What is captured of one table.
#[derive(Debug, Clone)]
pub(crate) struct Spec<'a> {
    /// The capture's id.
    pub capture: i64,
    /// Number of partitions.
    pub partitions: u32,
    /// The table's place among the capture's tables.
    pub index: usize,
    /// The table.
    pub table: &'a TableName,
    /// Its key.
    pub key: &'a [String],
    /// The columns that events carry; all if none are named.
    pub columns: Option<&'a [String]>,
    /// Those of the table's columns whose text the JSON image of a row does not tell.
    pub forms: &'a [(String, Form)],
    /// The operations with their conditions.
    pub operations: Vec<(Operation, Option<&'a str>)>,
    /// Whether a TRUNCATE is refused.
    pub refuse_truncate: bool,
    /// The streams whose replay writes here and is not captured.
    pub leaves_out: &'a [String],
}

/// What is executed for one table, in one transaction.
pub(crate) struct Installation {
    /// The function, as one batch.
    pub function: String,
    /// The triggers, a statement each: a condition is the plan's own SQL.
    pub triggers: Vec<String>,
}

impl Installation {
    /// The statements in their order.
    pub fn statements(&self) -> impl Iterator<Item = &str> {
        [&self.function].into_iter().chain(&self.triggers).map(String::as_str)
    }
}

impl Spec<'_> {
    fn name(&self) -> String {
        format!("capture_{}_{}", self.capture, self.index)
    }

    fn function(&self) -> String {
        format!("{OURS}.{}", quote_ident(&self.name()))
    }

    /// The name of the trigger for an operation or `truncate`. Triggers of one event fire in the order of their
    /// names: the digits put ours before others, whose own writes must come after what caused them.
    #[must_use]
    pub fn trigger(&self, what: &str) -> String {
        format!("00_handover_{}_{what}", self.capture)
    }

    /// Names of all triggers it makes.
    #[must_use]
    pub fn triggers(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.operations.iter().map(|(operation, _)| self.trigger(operation.as_str())).collect();
        if self.refuse_truncate {
            names.push(self.trigger("truncate"));
        }
        names
    }

    fn key_of(&self, row: &str) -> String {
        let pairs: Vec<String> =
            self.key.iter().map(|c| format!("{}, {row}.{}", quote_literal(c), quote_ident(c))).collect();
        format!("json_build_object({})", pairs.join(", "))
    }

    fn image_of(&self, row: &str) -> String {
        match self.columns {
            None => format!("row_to_json({row})"),
            Some(columns) => {
                let list: Vec<String> = columns
                    .iter()
                    .map(|c| format!("{row}.{name} as {name}", name = quote_ident(c)))
                    .collect();
                format!("(select row_to_json(r.*) from (select {}) r)", list.join(", "))
            }
        }
    }

    /// The texts that the images do not tell. What they tell is not said twice: rows may be large.
    fn forms_of(&self, key: &str, old: Option<&str>, new: Option<&str>) -> String {
        let of = |row: &str, carried: &dyn Fn(&String) -> bool| {
            let list: Vec<String> = self
                .forms
                .iter()
                .filter(|(column, _)| carried(column))
                .map(|(column, form)| {
                    let name = quote_ident(column);
                    // `is not null` is another question for a composite.
                    let value = match form {
                        Form::Text => format!("format('%s', {row}.{name})"),
                        Form::Document => "1".to_owned(),
                    };
                    format!("case when {row}.{name} is distinct from null then {value} end as {name}")
                })
                .collect();
            (!list.is_empty())
                .then(|| format!("(select row_to_json(f.*) from (select {}) f)", list.join(", ")))
        };
        let all = |column: &String| self.columns.is_none_or(|columns| columns.contains(column));
        let in_key = |column: &String| self.key.contains(column);
        let parts: Vec<String> = [
            ("key", of(key, &in_key)),
            ("old", old.and_then(|row| of(row, &all))),
            ("new", new.and_then(|row| of(row, &all))),
        ]
        .into_iter()
        .filter_map(|(name, forms)| Some(format!("'{name}', {}", forms?)))
        .collect();
        if parts.is_empty() { "null".to_owned() } else { format!("json_build_object({})", parts.join(", ")) }
    }

    /// By the hash of the key's own types, which agrees with their equality (`1.0` and `1.00` are one key). An array
    /// of one takes a value of any type; rows can be hashed only since Postgres 14.
    fn partition_of(&self, row: &str) -> String {
        let hash = |item: &str| format!("hash_array_extended(array[{item}], 0)");
        let columns: Vec<String> =
            self.key.iter().map(|c| hash(&format!("{row}.{}", quote_ident(c)))).collect();
        let all = if columns.len() == 1 { columns.join("") } else { hash(&columns.join(", ")) };
        format!("(({all} & 9223372036854775807) % {})::int", self.partitions)
    }

    fn insert(&self, operation: &str, via: &str, key: &str, old: Option<&str>, new: Option<&str>) -> String {
        let image = |row: Option<&str>| row.map_or("null".to_owned(), |row| self.image_of(row));
        let forms = self.forms_of(key, old, new);
        format!(
            "insert into {OURS}.outbox (capture, partition, tbl, op, via, key, old, new, forms) values ({}, {}, {}, '{operation}', '{via}', {}, {}, {}, {forms});",
            self.capture,
            self.partition_of(key),
            quote_literal(&self.table.to_string()),
            self.key_of(key),
            image(old),
            image(new)
        )
    }

    /// What makes the function and the triggers.
    #[must_use]
    pub fn installation(&self) -> Installation {
        Installation { function: self.function_sql(), triggers: self.trigger_sql() }
    }

    /// The statements that make the function, for one batch.
    fn function_sql(&self) -> String {
        let same: Vec<String> = self
            .key
            .iter()
            .map(|c| format!("format('%s', old.{0}) = format('%s', new.{0})", quote_ident(c)))
            .collect();
        let table = self.table.to_string();
        let leave_out = match self.leaves_out {
            [] => String::new(),
            streams => format!("if {} then return null; end if;\n  ", applies::one_of(streams)),
        };
        let body = format!(
            "{leave_out}case tg_op
  when 'UPDATE' then
    if {same} then
      {update}
    else
      {leave}
      {enter}
    end if;
  when 'INSERT' then {insert}
  when 'DELETE' then {delete}
  else
    raise exception 'TRUNCATE of % is refused while Handover captures its changes', {name}
      using errcode = 'object_not_in_prerequisite_state',
            hint = 'Delete the rows instead, or wait until the upgrade is over.';
  end case;
  return null;",
            same = same.join(" and "),
            update = self.insert("update", "update", "new", Some("old"), Some("new")),
            leave = self.insert("delete", "update", "old", Some("old"), None),
            enter = self.insert("insert", "update", "new", None, Some("new")),
            insert = self.insert("insert", "insert", "new", None, Some("new")),
            delete = self.insert("delete", "delete", "old", Some("old"), None),
            name = quote_literal(&table),
        );
        Routine {
            name: &self.name(),
            definer: true,
            settings: "set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD' set intervalstyle = 'iso_8601'
             set extra_float_digits = 1 set bytea_output = 'hex'",
            head: "",
            body: &body,
            tables: &[self.table],
        }
        .sql()
    }

    /// The statements that make the triggers, which fire for every session: also one that applies changes
    /// replicated from elsewhere (`session_replication_role = replica`) writes rows that the new side needs.
    fn trigger_sql(&self) -> Vec<String> {
        let table = self.table.sql();
        let mut out = Vec::new();
        for (operation, condition) in &self.operations {
            let name = quote_ident(&self.trigger(operation.as_str()));
            let when = condition.map_or(String::new(), |c| format!(" when ({c}\n)"));
            out.push(format!(
                "create trigger {name} after {operation} on {table} for each row{when} execute function {}()",
                self.function()
            ));
            out.push(format!("alter table {table} enable always trigger {name}"));
        }
        if self.refuse_truncate {
            let name = quote_ident(&self.trigger("truncate"));
            out.push(format!(
                "create trigger {name} before truncate on {table} for each statement execute function {}()",
                self.function()
            ));
            out.push(format!("alter table {table} enable always trigger {name}"));
        }
        out
    }
}
