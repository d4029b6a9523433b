//! Which plan a command is about: a file, or what the journal kept of it.

use super::load::load;
use crate::error::{Error, Result};
use crate::journal::{Journal, RunState};
use crate::plan::{Plan, has_password};
use crate::postgres::ours::{self, OURS};
use crate::ui::{self, Format};
use crate::value::EnvString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Which plan.
#[derive(Debug, Clone, clap::Args)]
pub struct Which {
    /// The plan.
    #[arg(value_name = "PLAN", required_unless_present = "kept")]
    file: Option<PathBuf>,
    /// With `--plan`: the control database, as a reference to the environment, e.g. '${CONTROL_URL}' in single quotes.
    #[arg(long, value_name = "REFERENCE", requires = "kept", conflicts_with = "file")]
    control: Option<String>,
    /// Without a file: the plan of this name as the journal of its newest run has it.
    #[arg(long = "plan", id = "kept", value_name = "NAME", requires = "control", conflicts_with = "file")]
    kept: Option<String>,
    /// With `--control`: the `schema:` of that plan, if it has one.
    #[arg(long, value_name = "NAME", requires = "kept", conflicts_with = "file")]
    schema: Option<String>,
}

impl Which {
    /// The plan's file, when one was named.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The plan as it was named, for a command that is to be pasted.
    #[must_use]
    pub fn words(&self) -> Option<String> {
        match (&self.file, &self.control, &self.kept) {
            (Some(file), ..) => Some(quoted(&file.to_string_lossy())),
            // A password on the command line is not repeated.
            (None, Some(control), Some(name)) if !has_password(control) => {
                let schema = self.schema.as_deref().unwrap_or(ours::DEFAULT);
                Some(format!("--control {} --plan {}{}", quoted(control), quoted(name), ours::option(schema)))
            }
            _ => None,
        }
    }

    /// Reads the plan; prints its problems and returns none when it is refused.
    ///
    /// # Errors
    /// No such plan in the journal, or no connection to it.
    pub async fn load(&self, format: Format, verb: &str) -> Result<Option<Plan>> {
        if let (Some(control), Some(name)) = (&self.control, &self.kept) {
            ours::choose(self.schema.as_deref().unwrap_or(ours::DEFAULT))?;
            let mut plan = kept(control, name).await?;
            plan.kept_as = self.words();
            return Ok(Some(plan));
        }
        let Some(file) = &self.file else { return Err(Error::usage("no plan is named")) };
        let plan = load(format, file)?;
        if plan.is_none()
            && let Some((name, control, schema)) =
                std::fs::read_to_string(file).ok().and_then(|text| guess(&text))
        {
            ui::remark(format_args!(
                "\nA run that has begun does not need the file: `handover {verb} --control '{control}' --plan {name}{}`",
                ours::option(&schema)
            ));
        }
        Ok(plan)
    }
}

/// A word for the shell.
#[must_use]
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+:@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// The plan as the journal has it: the text that its newest run began with, or that was accepted last.
async fn kept(control: &str, name: &str) -> Result<Plan> {
    if has_password(control) {
        return Err(Error::usage(
            "a password stands on the command line, where every user of this machine can read it",
        )
        .hint("name the variable that holds the URL, in single quotes: `--control '${CONTROL_URL}'`"));
    }
    let variable = !control.is_empty() && control.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let control = EnvString(if variable { format!("${{{control}}}") } else { control.to_owned() });
    let never = || {
        Error::usage(format!("plan `{name}` was never run from this control database (in schema {OURS})"))
            .hint("look at the name, at where `--control` leads, and at `schema:` in the plan, which is `--schema` here")
    };
    let journal = Journal::look(control.address()?, Duration::from_secs(5)).await?.ok_or_else(never)?;
    let run = journal.runs(Some(name)).await?.first().map(|row| row.run).ok_or_else(never)?;
    let state = RunState::fold(&journal.entries(run).await?)?;
    let reviewed = state.reviewed.ok_or_else(|| {
        Error::usage(format!(
            "run {run} of plan `{name}` was begun by a Handover that did not keep the plan's text"
        ))
        .hint("name the plan's file")
    })?;
    let mut plan = Plan::parse(Path::new(&reviewed.file), reviewed.text)?;
    if plan.schema != OURS.name() {
        return Err(Error::usage(format!(
            "run {run} of plan `{name}` began with `schema: {}`, and its journal is in schema {OURS} now",
            plan.schema
        ))
        .hint(format!(
            "routines of a run write its name: give it back (`alter schema {OURS} rename to {}`) in the control database \
             and in those of the plan",
            plan.schema
        )));
    }
    plan.control = control;
    Ok(plan)
}

/// Name, control database and schema of a plan that cannot be read as one.
fn guess(text: &str) -> Option<(String, String, String)> {
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix(':'))?;
        let value = line.split(" #").next()?.trim().trim_matches(['"', '\'']);
        let plain = !value.is_empty() && !value.contains(['"', '\'', ' ']) && !has_password(value);
        plain.then(|| value.to_owned())
    };
    let schema = value("schema").filter(|name| ours::problem(name).is_none());
    Some((value("name")?, value("control")?, schema.unwrap_or_else(|| ours::DEFAULT.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_plan_still_tells_its_name_and_control() {
        let found = guess("handover: 1\nname: shop  # ours\ncontrol: ${CONTROL_URL}\nsteps:\n  - {{{\n");
        assert_eq!(found, Some(("shop".into(), "${CONTROL_URL}".into(), "handover".into())));
        let found = guess("name: shop\nschema: upkeep\ncontrol: ${C}\nsteps: {{{\n");
        assert_eq!(found, Some(("shop".into(), "${C}".into(), "upkeep".into())));
        assert_eq!(guess("name: shop\ncontrol: postgres://u:pw@h/d\n"), None);
        assert_eq!(guess("steps: []"), None);
    }
}
