//! Facts of the journal as sentences. What a fact holds is for the step that finds it again, and for programs
//! (`events --format json`); a person wants to know what it means.

use serde_json::Value;

/// A fact of a step in words.
#[must_use]
pub fn words(key: &str, value: &Value) -> String {
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    if let Some(command) = key.strip_prefix("command:") {
        return match value.get("pid") {
            Some(pid) => format!("command `{command}` runs (pid {pid})"),
            None => format!("command `{command}` is about to be started"),
        };
    }
    match key {
        "granted" => {
            let note = text("note").map_or_else(String::new, |note| format!(": {note}"));
            format!("the approval of {} is kept{note}", text("by").unwrap_or("somebody"))
        }
        "fingerprint" => match value.as_array() {
            Some(facts) => format!(
                "{} about tables and what belongs to them are kept, to find out what changes",
                crate::problem::count(facts.len(), "fact")
            ),
            None => "how things are defined is kept, to find out what changes".into(),
        },
        "lever" => match text("phase") {
            Some("already") => "the lever was up before, and is left alone".into(),
            Some("applying") => "the lever is about to be raised; what it was before is kept".into(),
            Some("held") => "the lever is up".into(),
            Some("reverting") => "the lever is about to be restored".into(),
            Some("released") => "the lever is restored".into(),
            _ => "where the lever stands is kept".into(),
        },
        "begun" => "it has begun".into(),
        "marker" => "it goes on up to the marker".into(),
        "soak" => "what was seen so far is kept".into(),
        crate::table::KEY => "what was seen is kept as a table".into(),
        "tuned" => "the settings of before are kept".into(),
        "passed" => "its checks passed".into(),
        "differences" => "differences were found".into(),
        "ended" => match value.as_str() {
            Some(why) => format!("it has ended: {why}"),
            None => "it has ended".into(),
        },
        "successor" => "which database takes over is kept".into(),
        "flip" => "nobody is asked anything; the old side serves".into(),
        _ if key.ends_with(".paused") => {
            let participant = key.trim_end_matches(".paused");
            match value {
                Value::Bool(true) => format!("clients of {participant} are about to be held"),
                _ => format!("clients of {participant} go on"),
            }
        }
        _ if *value == Value::Bool(true) => format!("{key} is about to be made"),
        _ => match key.split_once('.') {
            Some(("agreed", _)) => "what agreed so far is kept".into(),
            Some(("boundaries", table)) => format!("how {table} is cut into pieces is kept"),
            Some((participant, "original")) => format!("the file of {participant} is kept as it was"),
            Some((participant, "entries")) => format!("where {participant} led before is kept"),
            _ => format!("`{key}` is kept, for when it is resumed"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn facts_read_as_sentences() {
        for (key, value, says) in [
            (
                "command:pgbouncer commit",
                json!({ "pid": 7, "host": "h" }),
                "command `pgbouncer commit` runs (pid 7)",
            ),
            (
                "command:pgbouncer commit",
                json!({ "host": "h" }),
                "command `pgbouncer commit` is about to be started",
            ),
            ("payment_order", json!(true), "payment_order is about to be made"),
            (
                "granted",
                json!({ "by": "alice", "note": "ok", "at": "" }),
                "the approval of alice is kept: ok",
            ),
            ("lever", json!({ "phase": "held" }), "the lever is up"),
            ("boundaries.public.token", json!([1]), "how public.token is cut into pieces is kept"),
            ("of another version", json!({ "a": 1 }), "`of another version` is kept, for when it is resumed"),
        ] {
            assert_eq!(words(key, &value), says);
        }
    }
}
