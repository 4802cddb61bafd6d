//! The load generators. In a closed loop (each connection sends as soon as it can) they are wrk for HTTP/1.1 and h2load for HTTP/2.
//! In an open loop (a fixed rate) they are `tollgate bench load` for HTTP/1.1 and this program's `connect` for TLS, which both
//! count latencies from when a request was due, and h2load for HTTP/2, which does not. For one TLS connection per
//! request, `connect` is used in both loops.

use std::{ffi::OsString, fs, path::Path, time::Duration};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::{
    connect::Connected,
    process,
    scenario::{Spoken, TLS_H1},
    tls,
    tools::Tools,
};

/// The load generators' connections, with HTTP/1.1.
pub const CONNECTIONS: usize = 64;

/// The same with HTTP/2, and streams on each.
const H2_CONNECTIONS: usize = 8;
const H2_STREAMS: usize = 32;

/// Bytes of a gRPC message, its prefix included; requests and responses have one.
pub const GRPC_MESSAGE: usize = 5 + 64;

/// Concurrent TLS connections, if each carries one request.
const HANDSHAKES: usize = 16;

/// The parameters of a load.
#[derive(Debug, Clone, Copy)]
pub struct Load<'a> {
    pub tools: &'a Tools,
    pub cores: &'a str,
    pub folder: &'a Path,
    pub port: u16,
    pub path: &'a str,
    pub spoken: Spoken,
    /// Whether to use one connection per request.
    pub close: bool,
    /// Timeout for a response, in seconds.
    pub timeout: u64,
}

/// The result of a closed loop.
#[derive(Debug, PartialEq)]
pub struct Saturated {
    pub requests: f64,
    pub seconds: f64,
    pub errors: u64,
}

/// The result of an open loop; times in microseconds.
#[derive(Debug, PartialEq)]
pub struct Paced {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub errors: u64,
    pub achieved: f64,
    /// The number of requests in these latencies.
    pub samples: usize,
}

/// Warm-up of an open loop, in milliseconds.
pub const WARM_UP: u64 = 500;

impl Load<'_> {
    /// Runs a closed loop.
    pub fn saturate(&self, seconds: u64) -> anyhow::Result<Saturated> {
        if self.close && self.spoken == TLS_H1 {
            let connected = self.connect(&self.connections(), seconds)?;
            let (requests, errors) = (connected.times.len() as f64, connected.errors);
            return Ok(Saturated { requests, seconds: connected.seconds, errors });
        }
        if self.spoken.h2 {
            let text = self.h2load(&[format!("-D{seconds}")], seconds)?;
            return parse_h2load(&text).with_context(|| unexpected("h2load", &text));
        }
        let pinned = format!("OPENSSL_CONF={}", self.folder.join("openssl.cnf").display());
        let mut command: Vec<OsString> = vec!["env".into(), pinned.into(), self.tools.wrk.clone().into()];
        command.extend(["-t1", "-c"].map(Into::into));
        let flags = [CONNECTIONS.to_string(), format!("-d{seconds}s"), format!("--timeout={}s", self.timeout)];
        command.extend(flags.map(Into::into));
        command.extend(self.rest());
        let text = self.output(&command, seconds)?;
        parse_wrk(&text).with_context(|| unexpected("wrk", &text))
    }

    /// Runs an open loop at this number of requests a second.
    pub fn pace(&self, rate: u32, seconds: u64) -> anyhow::Result<Paced> {
        if self.spoken.h2 {
            return self.pace_h2load(rate, seconds);
        }
        if self.spoken.tls {
            let mut flags = self.connections();
            flags.extend([format!("--rate={rate}"), format!("--warm-up={WARM_UP}")]);
            let mut connected = self.connect(&flags, seconds)?;
            let (errors, achieved) = (connected.errors, connected.times.len() as f64 / seconds as f64);
            return paced(&mut connected.times, errors, achieved);
        }
        let mut command: Vec<OsString> = vec![self.tools.tollgate.clone().into()];
        command.extend(["bench", "load", "--json", "--expect-status", "200"].map(Into::into));
        let numbers = [
            format!("--warmup={WARM_UP}ms"),
            format!("--rate={rate}"),
            format!("--duration={seconds}s"),
            format!("--timeout={}s", self.timeout),
            format!("-c{CONNECTIONS}"),
        ];
        command.extend(numbers.map(Into::into));
        command.extend(self.rest());
        let text = self.output(&command, seconds)?;
        parse_paced(&text).with_context(|| unexpected("`bench load`", &text))
    }

    /// The maximum number of requests in flight.
    pub fn at_a_time(&self) -> usize {
        match (self.close && self.spoken == TLS_H1, self.spoken.h2) {
            (true, _) => HANDSHAKES,
            (_, true) => H2_CONNECTIONS * H2_STREAMS,
            _ => CONNECTIONS,
        }
    }

    /// The programs that generate this load, for the page.
    pub fn generators(close: bool, spoken: Spoken) -> &'static str {
        match (close && spoken == TLS_H1, spoken.h2, spoken.tls) {
            (true, ..) => "`peers connect` in both loops",
            (_, true, _) => "h2load in both loops",
            (_, _, true) => "wrk in the closed loop, `peers connect` in the open one",
            _ => "wrk in the closed loop, `tollgate bench load` in the open one",
        }
    }

    /// Whether the proxy responds yet.
    pub fn answers(&self) -> bool {
        match self.spoken.tls || self.spoken.h2 {
            false => process::answers(self.port, self.path),
            true => self.one().is_ok_and(|text| {
                // A failed gRPC call has status 200 too, but no message.
                let message = format!("({GRPC_MESSAGE}) data");
                text.contains("status codes: 1 2xx") && (!self.spoken.grpc || text.contains(&message))
            }),
        }
    }

    /// Fails if TLS is not negotiated as pinned.
    pub fn check_tls(&self) -> anyhow::Result<()> {
        if self.spoken.tls { tls::check(&self.one()?) } else { Ok(()) }
    }

    /// Sends one request with h2load.
    fn one(&self) -> anyhow::Result<String> {
        self.h2load(&["-n1".into(), "-c1".into()], 1)
    }

    /// Runs an open loop with h2load, and reads the latencies from its log of each request, which has more detail than its summary.
    fn pace_h2load(&self, rate: u32, seconds: u64) -> anyhow::Result<Paced> {
        let log = self.folder.join("load.log");
        let _ = fs::remove_file(&log);
        let each = f64::from(rate) / if self.spoken.h2 { H2_CONNECTIONS } else { CONNECTIONS } as f64;
        let log_file = format!("--log-file={}", log.display());
        // The warm-up covers the handshakes.
        let flags = [format!("-D{seconds}"), format!("--warm-up-time={WARM_UP}ms"), format!("--rps={each}"), log_file];
        let text = self.h2load(&flags, seconds)?;
        let seen = parse_h2load(&text).with_context(|| unexpected("h2load", &text))?;
        let log = fs::read_to_string(&log).context("h2load has written no log")?;
        let mut times = parse_h2load_log(&log)?;
        paced(&mut times, seen.errors, seen.requests / seconds as f64)
    }

    fn h2load(&self, flags: &[String], seconds: u64) -> anyhow::Result<String> {
        let mut command: Vec<OsString> = vec![self.tools.h2load.clone().into(), "-t1".into()];
        if self.spoken.h2 {
            command.extend([format!("-c{H2_CONNECTIONS}"), format!("-m{H2_STREAMS}")].map(Into::into));
        } else {
            command.extend(["--h1".into(), format!("-c{CONNECTIONS}").into()]);
        }
        if self.spoken.grpc {
            command.extend(["-d".into(), self.folder.join("grpc/message").into_os_string()]);
            command.extend(["-H", "content-type: application/grpc", "-H", "te: trailers"].map(Into::into));
        }
        if self.spoken.tls {
            command.extend(tls::H2LOAD.map(Into::into));
        }
        // Later flags override earlier ones.
        command.extend(flags.iter().map(Into::into));
        command.extend(self.rest());
        self.output(&command, seconds)
    }

    /// The flags of `connect` for its connections.
    fn connections(&self) -> Vec<String> {
        let mut flags = vec![format!("--connections={}", self.at_a_time())];
        if !self.close {
            flags.push("--keep".into());
        }
        flags
    }

    /// Runs this program's `connect`.
    fn connect(&self, flags: &[String], seconds: u64) -> anyhow::Result<Connected> {
        let mut command: Vec<OsString> = vec![std::env::current_exe()?.into(), "connect".into()];
        let (port, path) = (format!("--port={}", self.port), format!("--path={}", self.path));
        command.extend([port, path, format!("--seconds={seconds}")].map(Into::into));
        command.extend(flags.iter().map(Into::into));
        Ok(serde_json::from_str(&self.output(&command, seconds)?)?)
    }

    fn output(&self, command: &[OsString], seconds: u64) -> anyhow::Result<String> {
        process::output(command, self.cores, self.folder, Duration::from_secs(seconds + 20))
    }

    /// The headers that curl would send, and the URL.
    fn rest(&self) -> Vec<OsString> {
        let mut rest = vec!["-H", "User-Agent: peers/1.0", "-H", "Accept: */*"];
        if self.close {
            rest.extend(["-H", "Connection: close"]);
        }
        let scheme = if self.spoken.tls { "https" } else { "http" };
        let url = format!("{scheme}://127.0.0.1:{}{}", self.port, self.path);
        rest.into_iter().map(OsString::from).chain([url.into()]).collect()
    }
}

fn unexpected(program: &str, text: &str) -> String {
    format!("cannot parse the output of {program}:\n{text}")
}

fn paced(times: &mut [u32], errors: u64, achieved: f64) -> anyhow::Result<Paced> {
    ensure!(!times.is_empty(), "no requests at all");
    times.sort_unstable();
    let quantile = |q: f64| f64::from(times[((times.len() as f64 * q).ceil() as usize).clamp(1, times.len()) - 1]);
    let samples = times.len();
    Ok(Paced { p50: quantile(0.5), p99: quantile(0.99), p999: quantile(0.999), errors, achieved, samples })
}

/// Parses a time of wrk or h2load; returns seconds.
fn seconds(text: &str) -> anyhow::Result<f64> {
    for (unit, scale) in [("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0)] {
        if let Some(number) = text.strip_suffix(unit) {
            return Ok(number.parse::<f64>()? * scale);
        }
    }
    bail!("unknown unit of time: {text}")
}

fn parse_wrk(text: &str) -> anyhow::Result<Saturated> {
    let line = text.lines().find(|line| line.contains(" requests in ")).context("no `requests in`")?;
    let (requests, rest) = line.trim().split_once(" requests in ").context("no number of requests")?;
    let time = rest.split(',').next().context("no time")?;
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
    Ok(Saturated { requests: requests.parse()?, seconds: seconds(time)?, errors })
}

/// Requests in flight at the end do not count.
fn parse_h2load(text: &str) -> anyhow::Result<Saturated> {
    let after =
        |start: &str| text.lines().find_map(|line| line.strip_prefix(start)).with_context(|| format!("no `{start}`"));
    let time = after("finished in ")?.split(',').next().context("no time")?;
    let count = |line: &str, what: &str| -> anyhow::Result<u64> {
        let part = line.split(", ").find_map(|part| part.trim().strip_suffix(what));
        Ok(part.with_context(|| format!("no number of{what}"))?.parse()?)
    };
    let (requests, codes) = (after("requests: ")?, after("status codes: ")?);
    let (done, succeeded) = (count(requests, " done")?, count(requests, " succeeded")?);
    let errors = done - succeeded + count(codes, " 3xx")? + count(codes, " 4xx")? + count(codes, " 5xx")?;
    Ok(Saturated { requests: succeeded as f64, seconds: seconds(time)?, errors })
}

/// Parses lines of a request's start, its status, and its duration in microseconds.
fn parse_h2load_log(text: &str) -> anyhow::Result<Vec<u32>> {
    let time = |line: &str| line.split('\t').nth(2)?.parse().ok();
    text.lines()
        .map(|line| time(line).with_context(|| format!("cannot parse a line of h2load's log: {line}")))
        .collect()
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
        samples: number("/requests")? as usize,
    };
    ensure!(paced.samples > 0, "no requests at all");
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
    fn output_of_h2load() {
        let text = "starting benchmark...\n\nfinished in 592.50ms, 24414.00 req/s, 5.38MB/s\n\
            requests: 12210 total, 12212 started, 12210 done, 12207 succeeded, 3 failed, 3 errored, 0 timeout\n\
            status codes: 12206 2xx, 0 3xx, 0 4xx, 1 5xx\n";
        assert_eq!(parse_h2load(text).unwrap(), Saturated { requests: 12207.0, seconds: 0.5925, errors: 4 });
        assert!(parse_h2load("failed to connect").is_err());
        let mut times = parse_h2load_log("1795\t200\t182\n1796\t200\t82\n").unwrap();
        assert_eq!(times, [182, 82]);
        let expected = Paced { p50: 82.0, p99: 182.0, p999: 182.0, errors: 0, achieved: 2.0, samples: 2 };
        assert_eq!(paced(&mut times, 0, 2.0).unwrap(), expected);
        assert!(parse_h2load_log("1795\n").is_err());
    }

    #[test]
    fn output_of_bench_load() {
        let text = r#"{"requests": 9, "errors": {"total": 2}, "achieved_rate": 99.5,
            "latency_us": {"p50": 100, "p99": 200, "p99.9": 300}}"#;
        let expected = Paced { p50: 100.0, p99: 200.0, p999: 300.0, errors: 2, achieved: 99.5, samples: 9 };
        assert_eq!(parse_paced(text).unwrap(), expected);
        assert_eq!(parse_paced("{}").unwrap_err().to_string(), "no /latency_us/p50");
    }
}
