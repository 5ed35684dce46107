//! From log lines to the console.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter, Layer};
use zcri_sys::console::Console;

use super::{Message, find};

/// The field that makes a log line an operator message.
const FIELD: &str = "zcr";

/// The same complaint is not written again within this time: one cause, such as a full disk, fails many calls. What is
/// only information tells of something that was done, each time.
const QUIET: Duration = Duration::from_secs(60);

/// Writes what is an operator message to the console, whatever the level of the log is.
pub struct ConsoleLayer {
    console: Box<dyn Console>,
    written: Mutex<BTreeMap<&'static str, (String, Instant)>>,
}

impl ConsoleLayer {
    /// To that console.
    pub fn new(console: Box<dyn Console>) -> Self {
        Self {
            console,
            written: Mutex::default(),
        }
    }

    /// Whether a line is to be written: not if it was just now.
    fn is_new(&self, message: &Message, line: &str) -> bool {
        if message.id.ends_with('I') {
            return true;
        }
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        match written.get(message.id) {
            Some((last, at)) if last == line && at.elapsed() < QUIET => false,
            _ => {
                written.insert(message.id, (line.to_owned(), Instant::now()));
                true
            }
        }
    }
}

impl<S: Subscriber> Layer<S> for ConsoleLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Some(message) = fields.get(FIELD).and_then(|id| find(&id)) else {
            return;
        };
        let line = message.line(|name| fields.get(name));
        if self.is_new(message, &line)
            && let Err(error) = self.console.write(&line)
        {
            // Not logged: the log would bring it here again.
            eprintln!("zcrid: the console cannot be written: {error}");
        }
    }
}

/// Lets only operator messages through, so that nothing else costs anything.
pub struct OnlyMessages;

impl<S> Filter<S> for OnlyMessages {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        metadata.is_event() && metadata.fields().field(FIELD).is_some()
    }
}

/// The values of an event.
#[derive(Default)]
struct Fields(Vec<(&'static str, String)>);

impl Fields {
    fn get(&self, name: &str) -> Option<String> {
        let mut all = self.0.iter();
        all.find(|(key, _)| *key == name)
            .map(|(_, value)| value.clone())
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), value.to_owned()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push((field.name(), format!("{value:?}")));
    }
}
