//! What a cutover's summary says of its gates, whichever attempt came through them: all of it is in the journal.

use super::options::Cutover;
use super::{approval, blockers, forecast, stillness};
use crate::error::Result;
use crate::steps::Context;
use serde_json::{Value, json};

/// Adds it to the step's summary.
///
/// # Errors
/// A fact of another version.
pub async fn add(cutover: &Cutover, cx: &Context, summary: &mut Value) -> Result<()> {
    if let Some(forecast) = forecast::kept(cx)? {
        summary["write_pause_forecast_ms"] = json!(forecast.ms().round());
        summary["forecast_largest"] = json!(forecast.largest());
    }
    if let Some(granted) = approval::given(cx)? {
        summary["approved_by"] = json!(granted.by);
        if let Some(note) = granted.note {
            summary["approval_note"] = json!(note);
        }
    }
    let ended: Vec<String> = blockers::told(cx)?.iter().map(ToString::to_string).collect();
    if !ended.is_empty() {
        summary["ended_sessions"] = json!(ended);
    }
    if let Some(words) = stillness::words(cutover, cx).await {
        summary["old_side"] = json!(words);
    }
    Ok(())
}
