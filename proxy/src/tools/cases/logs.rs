//! Captures the log lines of filters, and about filters, while a case runs.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    subscriber::DefaultGuard,
};
use tracing_subscriber::{
    Layer,
    filter::Targets,
    layer::{Context, SubscriberExt},
};

use crate::observe::target;

/// Lines as `LEVEL message`.
#[derive(Debug, Clone, Default)]
pub struct Logs(Arc<Mutex<Vec<String>>>);

impl Logs {
    /// Captures the lines of this thread while the guard lives.
    pub fn catch() -> (Logs, DefaultGuard) {
        let logs = Logs::default();
        let only = Targets::new().with_target(target::FILTER, tracing::Level::TRACE);
        let subscriber = tracing_subscriber::registry().with(logs.clone().with_filter(only));
        (logs, tracing::subscriber::set_default(subscriber))
    }

    /// Takes the lines since the last call.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S: Subscriber> Layer<S> for Logs {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        struct Message(String);
        impl Visit for Message {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        let line = format!("{} {}", event.metadata().level(), message.0);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
}
