//! What can be wrong with a lever before anything is touched.

use super::shape::{Lever, SqlLever};
use crate::problem::{Problems, Segment};
use crate::steps::CheckContext;
use handover_actions::sql;

fn at(key: &str, field: &str) -> Vec<Segment> {
    vec![key.into(), field.into()]
}

impl Lever {
    pub(super) fn check_shape(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        let count = [
            self.command.is_some(),
            self.http.is_some(),
            self.sql.is_some(),
            self.file.is_some(),
            self.revert.is_some(),
        ];
        let count = count.into_iter().filter(|given| *given).count();
        handover_actions::one_of(count, &["command", "http", "sql", "file", "revert"], &[], problems);
        if let Some(lever) = &self.command {
            lever.apply.check(&at("command", "apply"), problems);
            lever.revert.check(&at("command", "revert"), problems);
            for value in lever.env.values() {
                handover_actions::check_env(value, &at("command", "env"), problems);
            }
            match &lever.check {
                Some(check) => check.check(&at("command", "check"), problems),
                None => unproven("command", problems),
            }
            if lever.apply == lever.revert {
                same("command", problems);
            }
        }
        if let Some(lever) = &self.http {
            lever.apply.check(&at("http", "apply"), problems);
            lever.revert.check(&at("http", "revert"), problems);
            match &lever.check {
                Some(check) => {
                    check.check(&at("http", "check"), problems);
                    if !check.method.is_safe() {
                        problems
                            .warning(at("http", "check"), "this check may change something")
                            .hint("a check is asked again and again; use GET or HEAD");
                    }
                }
                None => unproven("http", problems),
            }
            if lever.apply == lever.revert {
                same("http", problems);
            }
        }
        if let Some(lever) = &self.sql {
            lever.check_shape(cx, problems);
        }
        if let Some(file) = &self.file {
            file.check(&["file".into()], problems);
        }
        if let Some(target) = &self.revert {
            check_target(target, cx, problems);
        }
    }
}

impl SqlLever {
    fn check_shape(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        let base = problems.base().join("sql");
        problems.within(base, |problems| {
            cx.database(problems, "on", &self.on);
            let field = |name: &str| -> Vec<Segment> { vec![name.into()] };
            sql::check_statement(&self.apply, &field("apply"), problems);
            sql::check_statement(&self.revert, &field("revert"), problems);
            for (name, query) in [("check", &self.check), ("read", &self.read)] {
                if let Some(query) = query {
                    sql::check_query(query, &field(name), problems);
                }
            }
            match (&self.read, sql::uses_previous(&self.revert)) {
                (None, true) => {
                    problems
                        .error(field("revert"), "`$previous` has no value without `read`")
                        .hint("add `read:`, a query for the value before");
                }
                (Some(_), false) => {
                    problems
                        .warning(field("revert"), "the value that `read` remembers is not used")
                        .hint("write `$previous` where `revert` should put it");
                }
                _ => {}
            }
            if sql::uses_previous(&self.apply) {
                problems.error(field("apply"), "`$previous` can only stand in `revert`");
            }
        });
        if self.check.is_none() && self.read.is_none() {
            unproven("sql", problems);
        }
    }
}

fn unproven(key: &str, problems: &mut Problems) {
    problems
        .warning([key], "nothing proves that the lever was raised or restored")
        .hint("add `check:`, which looks at the setting itself");
}

fn same(key: &str, problems: &mut Problems) {
    problems
        .error(at(key, "revert"), "`revert` does the same as `apply`")
        .hint("a lever needs a way back; a step without one is no lever");
}

fn check_target(target: &str, cx: &CheckContext<'_>, problems: &mut Problems) {
    let levers = || {
        cx.links
            .levers
            .before(cx.index)
            .filter(|(_, lever)| lever.revert.is_none())
            .map(|(id, _)| id.as_str())
    };
    if !levers().any(|id| id == target) {
        let later = cx.links.ids.iter().any(|id| id.as_str() == target);
        let message = if later {
            format!("step `{target}` is not an earlier lever")
        } else {
            format!("there is no step `{target}`")
        };
        let hint = match crate::problem::suggest(target, levers()) {
            Some(close) => format!("did you mean `{close}`?"),
            None => "name a lever step that stands before this one".to_owned(),
        };
        problems.error(["revert"], message).hint(hint);
    } else if let Some((id, _)) =
        cx.links.levers.before(cx.index).find(|(_, lever)| lever.revert.as_deref() == Some(target))
    {
        problems.error(["revert"], format!("lever `{target}` is restored by step `{id}` already"));
    }
}
