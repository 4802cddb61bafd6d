//! The conditions of a measurement: the machine, the processors that each part got, the commit, the date.

use std::{fs, process::Command};

use anyhow::ensure;
use serde::{Deserialize, Serialize};

use crate::{load::CONNECTIONS, tls};

/// Stored with each scenario's results.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Made {
    pub commit: String,
    pub date: String,
    pub processor: String,
    pub processors: usize,
    pub kernel: String,
    /// Duration of each closed loop.
    pub seconds: u64,
    /// Programs with their versions.
    pub versions: Vec<(String, String)>,
    /// Other conditions that were the same for all proxies, by name.
    #[serde(default)]
    pub conditions: Vec<(String, String)>,
}

impl Made {
    pub fn now(commit: Option<&str>, seconds: u64, versions: Vec<(String, String)>, places: &Places) -> Made {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Made {
            commit: commit.map_or_else(git_commit, str::to_owned),
            date: said(&["date", "-u", "+%F"]),
            processor: model.map_or("unknown", |(_, name)| name).to_owned(),
            processors: available().len(),
            kernel: said(&["uname", "-sr"]),
            seconds,
            versions,
            conditions: conditions(places),
        }
    }
}

/// The conditions that templates, load generators and places keep the same for all proxies.
fn conditions(places: &Places) -> Vec<(String, String)> {
    let Places { proxy, backend, load } = places;
    let tls = tls::PINNED.map(|line| line.split(": ").nth(1).unwrap_or_default()).join(", ");
    [
        ("workers", "one in each proxy, unless its label has another number".to_owned()),
        ("processors", format!("{proxy} for the proxy, {load} for the load generator, {backend} for the backend")),
        (
            "connections",
            format!(
                "{CONNECTIONS} over HTTP/1.1, 8 with 32 streams each over HTTP/2, 16 at a time if each carries one request"
            ),
        ),
        ("keep-alive", "longer than a run and for any number of requests, to the client and to the backend".into()),
        (
            "TLS",
            format!(
                "{tls}: clients offer nothing else, so hybrid groups are not measured; checked before \
                 each run; an ECDSA P-256 certificate"
            ),
        ),
        (
            "metrics",
            "enabled in all proxies on a separate port, but not scraped during a run: Tollgate's and Envoy's admin \
             listeners, HAProxy's prometheus-exporter, nginx's stub_status, which has by far the fewest"
                .into(),
        ),
        ("access log", "none".into()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

fn git_commit() -> String {
    let changed = !said(&["git", "status", "--porcelain", "--untracked-files=no"]).is_empty();
    said(&["git", "rev-parse", "--short", "HEAD"]) + if changed { " with changes" } else { "" }
}

/// A command's output; empty if it cannot be run.
fn said(command: &[&str]) -> String {
    let output = Command::new(command[0]).args(&command[1..]).output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
}

/// The processors available to this process.
fn available() -> Vec<usize> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    parse_list(list.unwrap_or("0").trim())
}

/// `0-2,5` is 0, 1, 2, 5.
fn parse_list(list: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        from.parse::<usize>().ok().zip(to.parse().ok()).map_or(0..=0, |(from, to)| from..=to)
    };
    list.split(',').flat_map(range).collect()
}

/// The processors of each part, in taskset's format.
#[derive(Debug, Clone, PartialEq)]
pub struct Places {
    pub proxy: String,
    pub backend: String,
    pub load: String,
}

impl Places {
    pub fn of(workers: usize) -> anyhow::Result<Places> {
        Places::among(&available(), workers)
    }

    /// The proxy gets the first processors, the load generator the last one. The backend has its own if there are enough;
    /// otherwise it shares the load generator's.
    fn among(cores: &[usize], workers: usize) -> anyhow::Result<Places> {
        ensure!(workers <= cores.len(), "{workers} workers need as many processors, but there are {}", cores.len());
        let list = |cores: &[usize]| cores.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let rest = &cores[workers..];
        let load = cores.last().map_or("0".into(), usize::to_string);
        let backend = if rest.len() >= 2 { rest[0].to_string() } else { load.clone() };
        Ok(Places { proxy: list(&cores[..workers]), backend, load })
    }

    /// The maximum number of workers.
    pub fn most_workers() -> usize {
        available().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        assert_eq!(parse_list("0-2,5"), [0, 1, 2, 5]);
        assert_eq!(parse_list("3"), [3]);
    }

    #[test]
    fn places() {
        let among = |cores: &[usize], workers| {
            let places = Places::among(cores, workers).unwrap();
            [places.proxy, places.backend, places.load]
        };
        assert_eq!(among(&[0, 1], 1), ["0", "1", "1"]);
        assert_eq!(among(&[0, 1], 2), ["0,1", "1", "1"]);
        assert_eq!(among(&[2, 3, 5], 1), ["2", "3", "5"]);
        assert_eq!(among(&[0], 1), ["0", "0", "0"]);
        assert!(Places::among(&[0], 2).unwrap_err().to_string().contains("there are 1"));
    }
}
