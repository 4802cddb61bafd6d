//! Support for the crate `log` (feature `log`): its macros write to the proxy's log, without any setup.
//!
//! A message below the log level costs one comparison; the level is read when the module starts.

use log::{LevelFilter, Log, Metadata, Record};

use crate::{Level, sys};

struct Logger;

static LOGGER: Logger = Logger;

/// Installs the proxy's log as the logger of the crate `log`.
pub(crate) fn install() {
    // A filter may have installed its own logger.
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
        // The macros have already compared the level.
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
