//! The SQL of the gate: its function, open and shut, and the triggers that call it. What a dry run shows of it and what is
//! executed both come from here.

use super::passes::{PASS, Passes};
use crate::event::{RunId, StepId};
use crate::postgres::ours::OURS;
use crate::postgres::routine::Routine;
use crate::postgres::{TableName, catalog, quote_ident, quote_literal};
use crate::steps::Context;
use crate::value::fingerprint;

/// What the names of our triggers begin with. Digits put them before an application's own.
pub const PREFIX: &str = "00_handover_refuse";
/// Tables whose triggers are made in one transaction, while their writers wait for some milliseconds.
pub const TOGETHER: usize = 100;
/// What a body that refuses begins with.
pub const SHUT: &str = "-- shut";

/// One cutover's function and the names of its triggers.
#[derive(Debug, Clone)]
pub struct Gate {
    /// The function's name.
    pub function: String,
    statement: String,
    row: String,
    plan: String,
    passes: Passes,
}

/// What kind of trigger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// For each statement, before the decision is in sight.
    Statement,
    /// For each row, behind the decision: apply workers fire no other.
    Row,
}

fn mark(run: RunId, step: &StepId) -> String {
    fingerprint(&format!("{run}/{step}"), 4)
}

/// The names of a cutover's triggers: of statements, and of rows.
#[must_use]
pub fn triggers(run: RunId, step: &StepId) -> [String; 2] {
    let mark = mark(run, step);
    [format!("{PREFIX}_{mark}"), format!("{PREFIX}_row_{mark}")]
}

impl Gate {
    /// The gate of the step `cx` is of.
    #[must_use]
    pub fn of(cx: &Context) -> Self {
        // Of the run and the step: a gate that another cutover shut is never opened by making one's own.
        let [statement, row] = triggers(cx.run, &cx.step);
        Gate {
            function: format!("refuse_{}", mark(cx.run, &cx.step)),
            statement,
            row,
            plan: cx.plan.to_string(),
            passes: Passes::default(),
        }
    }

    /// One that lets some through when it is shut.
    #[must_use]
    pub fn letting(self, passes: Passes) -> Self {
        Gate { passes, ..self }
    }

    /// What makes the function, or replaces it.
    pub fn body(&self, shut: bool) -> String {
        let (head, body) = if shut {
            let message = format!("this database was handed over to its successor by plan \"{}\"", self.plan);
            (
                SHUT,
                format!(
                    "{}raise exception using message = {}, errcode = 'read_only_sql_transaction',
        hint = 'Connect to the successor. Whoever opens this side again by hand loses what was written on the successor since.';",
                    self.passes.sql(),
                    quote_literal(&message)
                ),
            )
        } else {
            ("-- open", PASS.to_owned())
        };
        Routine {
            name: &self.function,
            definer: false,
            settings: "set search_path = pg_catalog, pg_temp",
            head,
            body: &body,
            // Its triggers on partitioned tables are for statements, which partitions do not inherit.
            tables: &[],
        }
        .sql()
    }

    fn name(&self, level: Level) -> &str {
        match level {
            Level::Statement => &self.statement,
            Level::Row => &self.row,
        }
    }

    /// What makes the function, open.
    pub fn making(&self, step: &StepId) -> [String; 2] {
        let comment = format!(
            "comment on function {OURS}.{}() is {}",
            quote_ident(&self.function),
            quote_literal(&format!(
                "Behind the triggers by which the cutover {step} of plan {} keeps this database from being written to, once it is decided.",
                self.plan
            ))
        );
        [self.body(false), comment]
    }

    /// What locks tables, and what makes their triggers.
    pub fn hanging(&self, tables: &[Lacking], level: Level, wait: &str) -> [String; 2] {
        let list: Vec<String> = tables.iter().map(|t| format!("only {}", t.table.sql())).collect();
        let mode = if tables.iter().any(|t| t.disabled) { "access exclusive" } else { "share row exclusive" };
        let mut sql = String::new();
        for Lacking { table, disabled } in tables {
            if *disabled {
                let name = quote_ident(self.name(level));
                sql.push_str(&format!("drop trigger if exists {name} on {};", table.sql()));
            }
            sql.push_str(&self.trigger_sql(table, level));
        }
        [format!("lock table {} in {mode} mode {wait}", list.join(", ")), sql]
    }

    /// What shuts it.
    pub fn shutting(&self) -> String {
        self.body(true)
    }

    fn trigger_sql(&self, table: &TableName, level: Level) -> String {
        let (events, each) = match level {
            Level::Statement => ("insert or update or delete or truncate", "statement"),
            Level::Row => ("insert or update or delete", "row"),
        };
        let (name, table) = (quote_ident(self.name(level)), table.sql());
        format!(
            "create trigger {name} before {events} on {table} for each {each} execute function {OURS}.{}();
             alter table {table} enable always trigger {name};",
            quote_ident(&self.function)
        )
    }

    /// What takes function and triggers away.
    #[must_use]
    pub fn drop_sql(&self) -> String {
        format!("drop function {OURS}.{}() cascade", quote_ident(&self.function))
    }

    /// Finds the tables without their trigger, frozen or not: schema, name, and whether one by its name is there.
    pub fn lacking_sql(&self, level: Level) -> String {
        // Rows are in tables, not in partitioned ones, and those of a table's partitions are looked for by themselves.
        let (kinds, name) = match level {
            Level::Statement => ("'r', 'p'", &self.statement),
            Level::Row => ("'r'", &self.row),
        };
        format!(
            "select n.nspname::text, c.relname::text,
                    exists (select from pg_trigger t where t.tgrelid = c.oid and t.tgname = {0})
             from {1}
             and not exists (select from pg_trigger t join pg_proc p on p.oid = t.tgfoid
                             join pg_namespace pn on pn.oid = p.pronamespace and pn.nspname = '{OURS}'
                             where t.tgrelid = c.oid and t.tgname = {0} and t.tgenabled = 'A' and t.tgqual is null
                               and p.proname = {2})
             order by n.nspname::text collate \"C\", c.relname::text collate \"C\"",
            quote_literal(name),
            catalog::application(kinds),
            quote_literal(&self.function)
        )
    }
}

/// A frozen table without its trigger.
#[derive(Debug, Clone)]
pub struct Lacking {
    /// The table.
    pub table: TableName,
    /// Whether one by that name is there, disabled or of another function.
    pub disabled: bool,
}

/// Those whose triggers are made together. One that is to be dropped first takes a stronger lock: each by itself.
pub fn batches(missing: &mut [Lacking]) -> Vec<&[Lacking]> {
    missing.sort_by_key(|one| one.disabled);
    let (fresh, altered) = missing.split_at(missing.partition_point(|one| !one.disabled));
    fresh.chunks(TOGETHER).chain(altered.chunks(1)).collect()
}
