//! What is moved where: the SQL by which batches fill it, undo it and find what is not in step.

use crate::batch::Effect;
use crate::table::{Column, Table};
use handover_core::error::Result;
use handover_postgres::{Session, TableName, quote_ident};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Where a backfill moves columns to.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveTo {
    /// The new table; it is empty, and has a unique key over the columns of `key`.
    pub table: TableName,
    /// Its key columns, each with its expression over the old table.
    #[schemars(length(min = 1))]
    pub key: BTreeMap<String, String>,
    /// Its other columns, each with its expression over the old table.
    #[serde(default)]
    pub columns: BTreeMap<String, String>,
}
/// What a backfill moves, resolved against the catalog.
#[derive(Debug)]
pub(crate) struct Move {
    pub source: Table,
    /// Which rows of the source it is about.
    pub condition: String,
    pub shape: Shape,
    /// Source columns and how to derive them from the new ones, for writes of new code; empty: one way only.
    pub back: Vec<(Column, String)>,
}

/// Where the columns go.
#[derive(Debug)]
pub(crate) enum Shape {
    /// Other columns of the same row.
    Columns(Vec<(Column, String)>),
    /// A row of another table: its key and its other columns, each with its expression over the source.
    Table { target: Table, key: Vec<(Column, String)>, columns: Vec<(Column, String)> },
}

/// Expressions as a select list, named `f0…`.
pub(super) fn select(pairs: &[(Column, String)]) -> String {
    let parts: Vec<String> = pairs.iter().enumerate().map(|(i, (_, e))| format!("({e}\n) as f{i}")).collect();
    parts.join(", ")
}

/// The columns' names, quoted, with something before each.
pub(super) fn idents(pairs: &[(Column, String)], prefix: &str) -> Vec<String> {
    pairs.iter().map(|(c, _)| format!("{prefix}{}", c.ident())).collect()
}

impl Shape {
    /// Finds the columns that a plan names.
    pub fn resolve(
        database: &str,
        source: &Table,
        target: Option<Table>,
        set: &BTreeMap<String, String>,
        to: Option<&MoveTo>,
    ) -> Result<Shape> {
        let pairs = |table: &Table, map: &BTreeMap<String, String>| -> Result<Vec<(Column, String)>> {
            map.iter().map(|(n, e)| Ok((table.writable(n, database)?.clone(), e.clone()))).collect()
        };
        let (Some(to), Some(target)) = (to, target) else {
            return Ok(Shape::Columns(pairs(source, set)?));
        };
        let key = pairs(&target, &to.key)?;
        let columns = pairs(&target, &to.columns)?;
        Ok(Shape::Table { target, key, columns })
    }
}

impl Move {
    /// `t.c is distinct from s.f0 or …`, with the values' names given.
    pub(super) fn differs(
        columns: &[(Column, String)],
        left: &str,
        right: impl Fn(usize, &Column) -> String,
    ) -> String {
        let parts: Vec<String> = columns
            .iter()
            .enumerate()
            .map(|(i, (c, _))| c.differs(&format!("{left}{}", c.ident()), &right(i, c)))
            .collect();
        if parts.is_empty() { "false".into() } else { parts.join(" or ") }
    }

    /// Which source rows the batches must still handle.
    pub fn matching(&self) -> String {
        match &self.shape {
            Shape::Columns(set) => {
                let parts: Vec<String> =
                    set.iter().map(|(c, e)| c.differs(&c.ident(), &format!("{e}\n"))).collect();
                format!("({}\n) and ({})", self.condition, parts.join(" or "))
            }
            Shape::Table { .. } => self.condition.clone(),
        }
    }

    /// What the batches do.
    pub fn effect(&self) -> Effect {
        match &self.shape {
            Shape::Columns(set) => Effect::Update { set: set.clone() },
            Shape::Table { target, key, columns } => {
                let joined: Vec<String> = key
                    .iter()
                    .enumerate()
                    .map(|(i, (c, _))| format!("handover_t.{} = handover_s.k{i}", c.ident()))
                    .collect();
                Effect::Move {
                    insert: self.upsert(&self.source.name.sql(), "{among}"),
                    remaining: format!(
                        "select 1 from {} left join {} as handover_t on {} where handover_t.{} is null or {}",
                        self.derived("true"),
                        target.name.sql(),
                        joined.join(" and "),
                        key.first().map(|(c, _)| c.ident()).unwrap_or_default(),
                        Self::differs(columns, "handover_t.", |i, _| format!("handover_s.f{i}")),
                    ),
                }
            }
        }
    }

    /// The batches of the undo: deletes the new rows that the source can bring forth again.
    pub fn undo_effect(&self) -> Option<Effect> {
        let Shape::Table { target, key, columns } = &self.shape else { return None };
        let joined: Vec<String> = key
            .iter()
            .enumerate()
            .map(|(i, (c, _))| format!("handover_t.{} = handover_s.k{i}", c.ident()))
            .collect();
        Some(Effect::Move {
            insert: format!(
                "delete from {} as handover_t using {} where {} and not ({})",
                target.name.sql(),
                self.derived("{among}"),
                joined.join(" and "),
                Self::differs(columns, "handover_t.", |i, _| format!("handover_s.f{i}")),
            ),
            remaining: "select 1 where false".into(),
        })
    }

    /// The source rows as the new table should have them: keys `k0…`, columns `f0…`.
    fn derived(&self, among: &str) -> String {
        let Shape::Table { key, columns, .. } = &self.shape else { return String::new() };
        let mut parts: Vec<String> =
            key.iter().enumerate().map(|(i, (_, e))| format!("({e}\n) as k{i}")).collect();
        parts.extend(columns.iter().enumerate().map(|(i, (_, e))| format!("({e}\n) as f{i}")));
        parts.extend(self.back.iter().map(|(c, _)| c.ident()));
        format!(
            "(select {} from {} where {among} and ({}\n)) as handover_s",
            parts.join(", "),
            self.source.name.sql(),
            self.condition
        )
    }

    pub(super) fn upsert(&self, from: &str, among: &str) -> String {
        let Shape::Table { target, key, columns } = &self.shape else { return String::new() };
        let all: Vec<(Column, String)> = key.iter().chain(columns).cloned().collect();
        let values: Vec<String> = all.iter().map(|(_, e)| format!("({e}\n)")).collect();
        let update: Vec<String> =
            columns.iter().map(|(c, _)| format!("{0} = excluded.{0}", c.ident())).collect();
        let conflict = if update.is_empty() {
            "do nothing".to_owned()
        } else {
            format!(
                "do update set {} where {}",
                update.join(", "),
                Self::differs(columns, "handover_t.", |_, c| format!("excluded.{}", c.ident()))
            )
        };
        format!(
            "insert into {} as handover_t ({}) select {} from {from} where {among} and ({}\n) on conflict ({}) {conflict}",
            target.name.sql(),
            idents(&all, "").join(", "),
            values.join(", "),
            self.condition,
            idents(key, "").join(", "),
        )
    }

    /// Queries for rows that are not in step, each with what is wrong with them. Where both sides may be written to, a
    /// row is in step if either is what the other derives.
    pub(super) fn stale(&self) -> Vec<(String, String)> {
        let source = self.source.name.sql();
        let behind = format!("{} are not in step with what they are filled from", self.source.name);
        match &self.shape {
            Shape::Columns(_) => {
                let mut sql = format!("select * from {source} where {}", self.matching());
                if !self.back.is_empty() {
                    let differs: Vec<String> =
                        self.back.iter().map(|(c, e)| c.differs(&c.ident(), &format!("({e}\n)"))).collect();
                    sql.push_str(&format!(" and ({})", differs.join(" or ")));
                }
                vec![(behind, sql)]
            }
            Shape::Table { target, key, columns } => {
                let joined: Vec<String> = key
                    .iter()
                    .enumerate()
                    .map(|(i, (c, _))| format!("handover_t.{} = handover_s.k{i}", c.ident()))
                    .collect();
                let mut differs = Self::differs(columns, "handover_t.", |i, _| format!("handover_s.f{i}"));
                if !self.back.is_empty() {
                    differs = format!(
                        "({differs}) and exists (select from (select {} from (select handover_t.*) as {}) handover_b where {})",
                        select(&self.back),
                        quote_ident(&target.name.name),
                        Self::differs(&self.back, "handover_s.", |i, _| format!("handover_b.f{i}")),
                    );
                }
                let mut out = vec![(
                    behind,
                    format!(
                        "select handover_s.* from {} left join {} as handover_t on {} where handover_t.{} is null or {differs}",
                        self.derived("true"),
                        target.name.sql(),
                        joined.join(" and "),
                        key.first().map(|(c, _)| c.ident()).unwrap_or_default(),
                    ),
                )];
                if self.back.is_empty() {
                    out.push((
                        format!("{} have nothing that they are filled from", target.name),
                        format!(
                            "select handover_t.* from {} as handover_t where not exists (select from {} where {})",
                            target.name.sql(),
                            self.derived("true"),
                            joined.join(" and ")
                        ),
                    ));
                }
                out
            }
        }
    }

    /// Rows of the new table that the old one does not account for; after an undo they are somebody's own.
    pub async fn left_over(&self, session: &Session) -> Result<u64> {
        let Shape::Table { target, .. } = &self.shape else { return Ok(0) };
        let n: i64 =
            session.query_one(&format!("select count(*) from {}", target.name.sql()), &[]).await?.get(0);
        Ok(n.unsigned_abs())
    }
}
