//! Events as JSON lines on standard output.

use super::listener::Listener;
use super::screen::out;
use crate::event::Event;

/// One object a line.
pub struct Json;

impl Listener for Json {
    fn on(&mut self, event: &Event) {
        if let Ok(line) = serde_json::to_string(event) {
            out(line);
        }
    }
}
