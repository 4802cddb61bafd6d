//! The crate `tracing` (feature `tracing`): its events are written to the proxy's log, fields as `name=value` after the
//! message. Nothing has to be called for it.
//!
//! Spans cost nothing and say nothing: a stream's lines are brought together by a field such as its request's id. What is
//! not shown anywhere in the proxy's log costs a comparison; the level is that of the module's start.

use std::fmt::{Debug, Write};

use tracing_core::{
    Dispatch, Event, Level as TracingLevel, LevelFilter, Metadata, Subscriber, dispatcher,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
    subscriber::Interest,
};

use crate::{Level, sys};

struct Subscribed(LevelFilter);

/// Makes the proxy's log the crate's.
pub(crate) fn install() {
    let level = match sys::log_level() {
        l if l <= Level::Trace as i32 => LevelFilter::TRACE,
        l if l <= Level::Debug as i32 => LevelFilter::DEBUG,
        l if l <= Level::Info as i32 => LevelFilter::INFO,
        l if l <= Level::Warn as i32 => LevelFilter::WARN,
        _ => LevelFilter::ERROR,
    };
    // A filter may have a subscriber of its own.
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

    // Spans are not enabled, so that none of these is of use.
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
