//! Support for the crate `tracing` (feature `tracing`): its events are written to the proxy's log, without any setup.
//! Fields follow the message as `name=value`.
//!
//! Spans are ignored and cost nothing; use a field such as the request id to correlate a stream's lines. An event below
//! the log level costs one comparison; the level is read when the module starts.

use std::fmt::{Debug, Write};

use tracing_core::{
    Dispatch, Event, Level as TracingLevel, LevelFilter, Metadata, Subscriber, dispatcher,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
    subscriber::Interest,
};

use crate::{Level, sys};

struct Subscribed(LevelFilter);

/// Installs the proxy's log as the subscriber of the crate `tracing`.
pub(crate) fn install() {
    let level = match sys::log_level() {
        l if l <= Level::Trace as i32 => LevelFilter::TRACE,
        l if l <= Level::Debug as i32 => LevelFilter::DEBUG,
        l if l <= Level::Info as i32 => LevelFilter::INFO,
        l if l <= Level::Warn as i32 => LevelFilter::WARN,
        _ => LevelFilter::ERROR,
    };
    // A filter may have installed its own subscriber.
    let _ = dispatcher::set_global_default(Dispatch::new(Subscribed(level)));
}

impl Subscriber for Subscribed {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.0
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.0)
    }

    fn event(&self, event: &Event<'_>) {
        let level = match *event.metadata().level() {
            TracingLevel::ERROR => Level::Error,
            TracingLevel::WARN => Level::Warn,
            TracingLevel::INFO => Level::Info,
            TracingLevel::DEBUG => Level::Debug,
            _ => Level::Trace,
        };
        let mut line = Line::default();
        event.record(&mut line);
        line.message.push_str(&line.fields);
        crate::log(level, &line.message);
    }

    // Spans are disabled, so these functions do nothing.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}
