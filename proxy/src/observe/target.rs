//! The targets of the events in Tollgate's own log: each names a subject, and docs/operating.md lists them.
//!
//! People filter by them (`log.level`, `TOLLGATE_LOG`), so every event names its target instead of inheriting the path of its
//! module: code can move, and a filter still selects the same events. proxy/tests/golden holds every event to this.
//!
//! A filter selects every target that begins with its own, so no name here may be the beginning of another.

/// The access logs' files: opening and writing them, lines that were lost.
pub const ACCESS_LOG: &str = "tollgate::access_log";
/// The admin listener and its metrics.
pub const ADMIN: &str = "tollgate::admin";
/// The certificate authority, and the certificates that a workload gets from one.
pub const CA: &str = "tollgate::ca";
/// The configuration and its files: loading, watching, applying, warnings about what it says.
pub const CONFIG: &str = "tollgate::config";
/// Connections of clients: why they ended, and why one was turned away.
pub const DOWNSTREAM: &str = "tollgate::downstream";
/// What filters log, and how they fail.
pub const FILTER: &str = "tollgate::filter";
/// Listeners and their sockets.
pub const LISTENER: &str = "tollgate::listener";
/// This log itself.
pub const LOG: &str = "tollgate::log";
/// The process: its start, its limits, its successor, its end.
pub const PROCESS: &str = "tollgate::process";
/// Clusters and their endpoints: health, connections, requests that had no response.
pub const UPSTREAM: &str = "tollgate::upstream";
/// Modules and their instances: compiling, the compile cache, memory.
pub const WASM: &str = "tollgate::wasm";
