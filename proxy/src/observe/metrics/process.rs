//! Metrics of the process itself, under the standard names of Prometheus clients. They are read from
//! `/proc` at each scrape, and omitted if it does not exist.

use std::{fs, time::SystemTime};

use super::{Kind, Labels, MetricError, Registry};

/// Ticks a second in `/proc/self/stat`: `USER_HZ`, which is 100 on every architecture that Tollgate is built for.
const TICKS: f64 = 100.0;

/// Registers the version, the start time (this call's), memory, processor time, threads and open files.
pub fn register_process(registry: &Registry, version: &str) -> Result<(), MetricError> {
    registry.plain_gauge("tollgate_build_info", "The version of Tollgate", &[("version", version)])?.set(1);
    let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let show = |name, help, kind, read: fn() -> Option<f64>| registry.collect_fn(name, help, kind, move || one(read()));
    show("process_resident_memory_bytes", "Resident memory in bytes", Kind::Gauge, || status("VmRSS:", 1024.0))?;
    show("process_virtual_memory_bytes", "Virtual memory in bytes", Kind::Gauge, || status("VmSize:", 1024.0))?;
    show("process_threads", "Threads", Kind::Gauge, || status("Threads:", 1.0))?;
    show("process_cpu_seconds_total", "Processor time, user and system", Kind::Counter, processor_seconds)?;
    show("process_open_fds", "Open file descriptors", Kind::Gauge, open_files)?;
    show("process_max_fds", "The limit of open file descriptors", Kind::Gauge, max_files)?;
    let help = "Start of the process, in seconds since 1970";
    registry.collect_fn("process_start_time_seconds", help, Kind::Gauge, move || one(Some(started)))
}

/// Returns the resident memory of the process in bytes, if the system tells it.
pub fn resident_memory() -> Option<u64> {
    status("VmRSS:", 1024.0).map(|bytes| bytes as u64)
}

fn one(value: Option<f64>) -> Vec<(Labels, f64)> {
    value.map(|value| (Labels::new(), value)).into_iter().collect()
}

/// A value of `/proc/self/status`, which has kilobytes; `statm` has pages, whose size would need a system call.
fn status(key: &str, unit: f64) -> Option<f64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? * unit)
}

fn processor_seconds() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the command in parentheses, which can contain any character; `utime` and `stime` are the 14th and 15th.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS)
}

fn open_files() -> Option<f64> {
    // Minus the descriptor for reading the directory.
    Some((fs::read_dir("/proc/self/fd").ok()?.count() as f64 - 1.0).max(0.0))
}

fn max_files() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/limits").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}
