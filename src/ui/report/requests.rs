//! What people asked of a run, in words.

use crate::journal::RequestRow;
use crate::ui::words::time;
use jiff::Timestamp;

/// A request in words, with its time.
pub(super) fn request(request: &RequestRow) -> String {
    let (at, text) = requested(request);
    format!("{} {text}", time(at))
}

/// A request in words, and its time.
pub(super) fn requested(request: &RequestRow) -> (Timestamp, String) {
    let what = match (request.kind.as_str(), &request.step) {
        ("approve", Some(step)) => format!("approved step {step}"),
        ("abort", _) => "asked to abort".into(),
        (other, _) => other.to_owned(),
    };
    let note = request.note.as_ref().map_or_else(String::new, |note| format!(": {note}"));
    (request.at, format!("{} {what}{note}", request.by))
}
