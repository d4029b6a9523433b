//! A program with a step kind of its own: one file for the kind, one line to add it. Every command of Handover then
//! knows it.
//!
//! ```yaml
//! - id: hello
//!   greet: { on: blue, table: greeting, names: [Ada, Grace] }
//! ```

use async_trait::async_trait;
use handover::error::{Error, Result};
use handover::failpoint;
use handover::postgres::TableName;
use handover::problem::Problems;
use handover::steps::{
    Access, CheckContext, Context, Description, Kind, Links, Midway, Need, StepKind, Undo, add_kinds,
};
use handover::table::{Column, Table};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::process::ExitCode;

/// One name was greeted and that is committed.
const GREETED: &str = "greet.greeted";
/// A greeting was taken back and that is committed.
const TAKEN_BACK: &str = "greet.undo-taken-back";

/// Inserts names into a table.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Greet {
    /// The database.
    on: String,
    /// The table; it has a column `name`.
    table: TableName,
    /// Who is greeted.
    names: Vec<String>,
}

impl Greet {
    /// What greets: the dry run shows it and the run executes it.
    fn statement(&self) -> String {
        format!("insert into {} (name) values ($1)", self.table.sql())
    }
}

#[async_trait]
impl StepKind for Greet {
    fn check(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        cx.database(problems, "on", &self.on);
        if self.names.is_empty() {
            problems.error(["names"], "there is nobody to greet").hint("name somebody");
        }
    }

    fn databases(&self) -> Vec<(&str, Access)> {
        vec![(&self.on, Access::Write)]
    }

    fn needs(&self, _access: Access) -> &'static [Need] {
        &[Need::ActAsOwners]
    }

    async fn programs(&self, _versions: &std::collections::BTreeMap<String, u32>) -> Vec<Result<String>> {
        vec![Ok("no program is needed for greetings".to_owned())]
    }

    fn midway(&self, _links: &Links, _place: usize) -> Midway {
        Midway { failpoint: GREETED, passing: 1, place: "after its first greeting" }
    }

    fn reversibility(&self) -> Undo {
        Undo::Exact { how: "deletes the greetings".to_owned() }
    }

    async fn describe(&self, _cx: &Context) -> Result<Description> {
        let mut out = Description::default();
        for name in &self.names {
            out.action(format!("{}, with {name}", self.statement()));
        }
        Ok(out)
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        let mut session = cx.operator_writer(&self.on).await?;
        for name in &self.names {
            cx.proceed()?;
            let tx = session.transaction().await?;
            // The checkpoint commits with its effect, so nobody is greeted twice.
            if tx.checkpoint::<bool>(cx.run, &cx.step, name).await?.is_none() {
                tx.execute(&self.statement(), &[name]).await?;
                tx.save_checkpoint(cx.run, &cx.step, name, &true).await?;
            }
            tx.commit().await?;
            failpoint::at(GREETED)?;
        }
        let mut table = Table::new([Column::new("name"), Column::new("letters")]);
        for name in &self.names {
            table.row([json!(name), json!(name.chars().count())]);
        }
        Ok(json!({ "greeted": self.names.len(), "table": table }))
    }

    async fn verify(&self, cx: &Context) -> Result<()> {
        let session = cx.operator_reader(&self.on).await?;
        let sql = format!("select name from {} where name = any($1)", self.table.sql());
        let there = session.query(&sql, &[&self.names]).await?.len();
        if there < self.names.len() {
            return Err(Error::data(format!("{there} of {} greetings are there", self.names.len()))
                .on_database(&self.on)
                .hint("see who deleted them, then `handover resume`"));
        }
        Ok(())
    }

    async fn undo(&self, cx: &Context) -> Result<Value> {
        let mut session = cx.operator_writer(&self.on).await?;
        let tx = session.transaction().await?;
        let mut greeted = Vec::new();
        for name in &self.names {
            if tx.checkpoint::<bool>(cx.run, &cx.step, name).await?.is_some() {
                greeted.push(name);
            }
        }
        tx.execute(&format!("delete from {} where name = any($1)", self.table.sql()), &[&greeted]).await?;
        tx.forget_checkpoints(cx.run, &cx.step).await?;
        tx.commit().await?;
        failpoint::at(TAKEN_BACK)?;
        Ok(json!({ "taken_back": greeted.len() }))
    }
}

fn main() -> Result<ExitCode> {
    add_kinds(&[Kind::of::<Greet>("greet")])?;
    Ok(handover::cli::main())
}
