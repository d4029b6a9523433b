//! Everything that reaches a screen: listeners to events, and the only place that may print.

pub mod bars;
pub mod doctor;
pub mod dry_run;
pub mod facts;
pub mod hint;
pub mod json;
mod listener;
pub mod plain;
pub mod report;
mod screen;
pub mod status;
pub mod table;
pub mod words;

use crate::event::Event;
pub use listener::{Listener, Places};
pub use screen::{
    Format, about, aside, error, error_of, heard, object, on_panic, out, problems, raw, remark,
};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;

/// Starts showing events; ends when every emitter is gone.
pub fn listen(format: Format, places: Places, mut events: UnboundedReceiver<Event>) -> JoinHandle<()> {
    let mut listener: Box<dyn Listener> = match format {
        Format::Json => Box::new(json::Json),
        Format::Text if bars::wanted() => Box::new(bars::Bars::new(places)),
        Format::Text => Box::new(plain::Plain::new(places)),
    };
    tokio::spawn(async move {
        while let Some(mut event) = events.recv().await {
            if let Event::Note { text, .. } = &mut event {
                screen::named(text);
            }
            if matches!(event, Event::Recorded { .. }) {
                screen::recorded();
            }
            listener.on(&event);
        }
        listener.end();
    })
}
