//! The crate `log` (feature `log`): its macros write to the proxy's log. Nothing has to be called for it.
//!
//! What is not shown anywhere in the proxy's log costs a comparison; the level is that of the module's start.

use log::{LevelFilter, Log, Metadata, Record};

use crate::{Level, sys};

struct Logger;

static LOGGER: Logger = Logger;

/// Makes the proxy's log the crate's.
pub(crate) fn install() {
    // A filter may have a logger of its own.
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(match sys::log_level() {
            l if l <= Level::Trace as i32 => LevelFilter::Trace,
            l if l <= Level::Debug as i32 => LevelFilter::Debug,
            l if l <= Level::Info as i32 => LevelFilter::Info,
            l if l <= Level::Warn as i32 => LevelFilter::Warn,
            _ => LevelFilter::Error,
        });
    }
}

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        // The macros have compared the level already.
        true
    }

    fn log(&self, record: &Record<'_>) {
        let level = match record.level() {
            log::Level::Error => Level::Error,
            log::Level::Warn => Level::Warn,
            log::Level::Info => Level::Info,
            log::Level::Debug => Level::Debug,
            log::Level::Trace => Level::Trace,
        };
        let args = record.args();
        match args.as_str() {
            Some(message) => crate::log(level, message),
            None => crate::log(level, &args.to_string()),
        }
    }

    fn flush(&self) {}
}
