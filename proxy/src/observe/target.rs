//! The targets of the events in Tollgate's own log. Each names a subject; docs/operating.md lists them.
//!
//! Users filter by target (`log.level`, `TOLLGATE_LOG`), so every event names its target instead of inheriting its module's
//! path: a filter selects the same events even if code moves. proxy/tests/golden checks every event.
//!
//! A filter selects every target that begins with its own, so no name here may be a prefix of another.

/// The access logs' files: opening, writing, lost lines.
pub const ACCESS_LOG: &str = "tollgate::access_log";
/// The admin listener and its metrics.
pub const ADMIN: &str = "tollgate::admin";
/// Certificates issued as an authority, and certificates obtained from an authority as a workload.
pub const CA: &str = "tollgate::ca";
/// The configuration and its files: loading, watching, applying, warnings.
pub const CONFIG: &str = "tollgate::config";
/// Client connections: why they ended or were rejected.
pub const DOWNSTREAM: &str = "tollgate::downstream";
/// Messages from filters, and failures of filters.
pub const FILTER: &str = "tollgate::filter";
/// Listeners and their sockets.
pub const LISTENER: &str = "tollgate::listener";
/// This log itself.
pub const LOG: &str = "tollgate::log";
/// The process: startup, limits, successor, shutdown.
pub const PROCESS: &str = "tollgate::process";
/// Clusters and their endpoints: health, connections, requests without a response.
pub const UPSTREAM: &str = "tollgate::upstream";
/// Modules and their instances: compiling, the compile cache, memory.
pub const WASM: &str = "tollgate::wasm";
