//! What the checks of actions share, and how they are shown.

use handover_core::problem::{Problems, Segment};
use handover_core::value::EnvString;

/// Reports a mapping that has none or several of the keys of which it must have one.
pub fn one_of(count: usize, keys: &[&str], path: &[Segment], problems: &mut Problems) {
    let list = keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
    match count {
        1 => {}
        0 => {
            problems.error(path.iter().cloned(), format!("one of {list} is missing"));
        }
        _ => {
            problems
                .error(path.iter().cloned(), format!("only one of {list} can stand here"))
                .hint("write a step or an entry for each");
        }
    }
}

/// Reports references in a text that are not well formed.
pub fn check_env(text: &EnvString, path: &[Segment], problems: &mut Problems) {
    if let Err(e) = text.variables() {
        let problem = problems.error(path.iter().cloned(), e.message());
        if let Some(hint) = e.next_step() {
            problem.hint(hint);
        }
    }
}

/// Text as one line of bounded length.
#[must_use]
pub fn line(text: &str) -> String {
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match flat.char_indices().nth(160) {
        Some((at, _)) => format!("{}…", &flat[..at]),
        None => flat,
    }
}
