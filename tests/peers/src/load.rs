//! The two load generators: wrk finds the highest throughput, `tollgate bench load` the latencies at a fixed rate, counted
//! from the moment that each request was due.

use std::{ffi::OsString, path::Path, time::Duration};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::{process, tools::Tools};

/// Connections of the load generators.
pub const CONNECTIONS: usize = 64;

/// What is requested, and how long.
#[derive(Debug, Clone, Copy)]
pub struct Load<'a> {
    pub tools: &'a Tools,
    pub cores: &'a str,
    pub folder: &'a Path,
    pub port: u16,
    pub path: &'a str,
    /// A connection for each request.
    pub close: bool,
}

/// What wrk has seen.
#[derive(Debug, PartialEq)]
pub struct Saturated {
    pub requests: f64,
    pub seconds: f64,
    pub errors: u64,
}

/// What the generator with the fixed rate has seen; times in microseconds.
#[derive(Debug, PartialEq)]
pub struct Paced {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub errors: u64,
    pub achieved: f64,
}

impl Load<'_> {
    /// As much as the connections carry.
    pub fn saturate(&self, seconds: u64) -> anyhow::Result<Saturated> {
        let mut command: Vec<OsString> = vec![self.tools.wrk.clone().into()];
        command.extend(["-t1", "-c"].map(Into::into));
        command.extend([CONNECTIONS.to_string(), format!("-d{seconds}s"), "--timeout=5s".into()].map(Into::into));
        command.extend(self.rest());
        let text = process::output(&command, self.cores, self.folder, Duration::from_secs(seconds + 20))?;
        parse_wrk(&text).with_context(|| format!("wrk says something else than expected:\n{text}"))
    }

    /// So many requests each second.
    pub fn pace(&self, rate: u32, seconds: u64) -> anyhow::Result<Paced> {
        let mut command: Vec<OsString> = vec![self.tools.tollgate.clone().into()];
        command.extend(["bench", "load", "--json", "--expect-status", "200", "--warmup", "500ms"].map(Into::into));
        let numbers = [format!("--rate={rate}"), format!("--duration={seconds}s"), format!("-c{CONNECTIONS}")];
        command.extend(numbers.map(Into::into));
        command.extend(self.rest());
        let text = process::output(&command, self.cores, self.folder, Duration::from_secs(seconds + 20))?;
        parse_paced(&text).with_context(|| format!("`bench load` says something else than expected:\n{text}"))
    }

    /// The headers that curl would send, and the URL.
    fn rest(&self) -> Vec<OsString> {
        let mut rest = vec!["-H", "User-Agent: peers/1.0", "-H", "Accept: */*"];
        if self.close {
            rest.extend(["-H", "Connection: close"]);
        }
        let url = format!("http://127.0.0.1:{}{}", self.port, self.path);
        rest.into_iter().map(OsString::from).chain([url.into()]).collect()
    }
}

fn parse_wrk(text: &str) -> anyhow::Result<Saturated> {
    let line = text.lines().find(|line| line.contains(" requests in ")).context("no `requests in`")?;
    let (requests, rest) = line.trim().split_once(" requests in ").context("no number of requests")?;
    let time = rest.split(',').next().context("no time")?;
    let (number, scale) = if let Some(n) = time.strip_suffix("ms") {
        (n, 1e-3)
    } else if let Some(n) = time.strip_suffix('s') {
        (n, 1.0)
    } else {
        (time.strip_suffix('m').context("a time of unknown unit")?, 60.0)
    };
    let mut errors = 0;
    for line in text.lines().map(str::trim) {
        if let Some(n) = line.strip_prefix("Non-2xx or 3xx responses: ") {
            errors += n.parse::<u64>()?;
        } else if let Some(kinds) = line.strip_prefix("Socket errors: ") {
            for kind in kinds.split(", ") {
                errors += kind.split(' ').nth(1).context("a kind of error without a number")?.parse::<u64>()?;
            }
        }
    }
    Ok(Saturated { requests: requests.parse()?, seconds: number.parse::<f64>()? * scale, errors })
}

fn parse_paced(text: &str) -> anyhow::Result<Paced> {
    let report: Value = serde_json::from_str(text)?;
    let number =
        |pointer: &str| report.pointer(pointer).and_then(Value::as_f64).with_context(|| format!("no {pointer}"));
    let paced = Paced {
        p50: number("/latency_us/p50")?,
        p99: number("/latency_us/p99")?,
        p999: number("/latency_us/p99.9")?,
        errors: number("/errors/total")? as u64,
        achieved: number("/achieved_rate")?,
    };
    ensure!(number("/requests")? > 0.0, "no requests at all");
    Ok(paced)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_of_wrk() {
        let text = "Running 4s test @ http://127.0.0.1:1/\n  1 threads and 64 connections\n\
            \x20 Thread Stats   Avg      Stdev     Max   +/- Stdev\n    Latency     1.02ms  112.86us   4.68ms   92.38%\n\
            \x20 250116 requests in 4.01s, 51.28MB read\nRequests/sec:  62372.01\n";
        assert_eq!(parse_wrk(text).unwrap(), Saturated { requests: 250116.0, seconds: 4.01, errors: 0 });
        let bad = "  10 requests in 1.50m, 1B read\n  Socket errors: connect 1, read 2, write 0, timeout 4\n  \
            Non-2xx or 3xx responses: 8\n";
        assert_eq!(parse_wrk(bad).unwrap(), Saturated { requests: 10.0, seconds: 90.0, errors: 15 });
        assert!(parse_wrk("unable to connect to 127.0.0.1:1 Connection refused\n").is_err());
        assert!(parse_wrk("  10 requests in 1.50h, 1B read\n").is_err());
    }

    #[test]
    fn output_of_bench_load() {
        let text = r#"{"requests": 9, "errors": {"total": 2}, "achieved_rate": 99.5,
            "latency_us": {"p50": 100, "p99": 200, "p99.9": 300}}"#;
        let expected = Paced { p50: 100.0, p99: 200.0, p999: 300.0, errors: 2, achieved: 99.5 };
        assert_eq!(parse_paced(text).unwrap(), expected);
        assert_eq!(parse_paced("{}").unwrap_err().to_string(), "no /latency_us/p50");
    }
}
