//! Logging to the proxy's log.

#[cfg(feature = "log")]
pub(crate) mod log_crate;
#[cfg(feature = "tracing")]
pub(crate) mod tracing_crate;

use tollgate_abi::proxy_wasm::log_level;

use crate::sys;

/// Severity of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
#[allow(missing_docs)]
pub enum Level {
    Trace = log_level::TRACE,
    Debug = log_level::DEBUG,
    Info = log_level::INFO,
    Warn = log_level::WARN,
    Error = log_level::ERROR,
}

/// Writes a message to the proxy's log.
pub fn log(level: Level, message: &str) {
    sys::log(level as i32, message);
}
