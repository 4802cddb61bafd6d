//! Resource usage from /proc: processor time and memory of a process with all its threads and
//! descendants, and the load of other processes on the machine.

use std::{collections::HashMap, fs, iter::Sum, ops::Sub, time::Instant};

/// Processor time, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cpu {
    pub user: f64,
    pub system: f64,
}

impl Cpu {
    pub fn total(self) -> f64 {
        self.user + self.system
    }
}

impl Sub for Cpu {
    type Output = Cpu;

    fn sub(self, before: Cpu) -> Cpu {
        Cpu { user: self.user - before.user, system: self.system - before.system }
    }
}

impl Sum for Cpu {
    fn sum<I: Iterator<Item = Cpu>>(all: I) -> Cpu {
        all.fold(Cpu::default(), |sum, cpu| Cpu { user: sum.user + cpu.user, system: sum.system + cpu.system })
    }
}

/// A line of /proc/PID/stat.
#[derive(Debug, PartialEq)]
struct Stat {
    parent: u32,
    own: Cpu,
    /// Processor time of its children that have ended.
    ended: Cpu,
}

/// Parses a line of stat. The name is in parentheses and can contain any character, so the fields after it are found from the last `)`.
fn parse_stat(line: &str) -> Option<Stat> {
    let fields: Vec<&str> = line.get(line.rfind(')')? + 1..)?.split_whitespace().collect();
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let seconds = |nth: usize| Some(fields.get(nth)?.parse::<f64>().ok()? / ticks);
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        own: Cpu { user: seconds(11)?, system: seconds(12)? },
        ended: Cpu { user: seconds(13)?, system: seconds(14)? },
    })
}

/// A process and all its descendants.
fn tree(root: u32) -> Vec<(u32, Stat)> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut all: HashMap<u32, Stat> = pids
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| Some((pid, parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?)))
        .collect();
    let mut found: Vec<(u32, Stat)> = all.remove_entry(&root).into_iter().collect();
    let mut visited = 0;
    while let Some(&(parent, _)) = found.get(visited) {
        found.extend(all.extract_if(|_, stat| stat.parent == parent));
        visited += 1;
    }
    found
}

/// The processor time of a process and its living descendants.
pub fn cpu(pid: u32) -> Cpu {
    tree(pid).iter().map(|(_, stat)| stat.own).sum()
}

/// The resident memory of a process and its descendants, in KiB.
pub fn resident_kib(pid: u32) -> f64 {
    memory(pid, "VmRSS:")
}

/// The part of the resident memory that is file pages, such as the executable's, in KiB.
pub fn resident_file_kib(pid: u32) -> f64 {
    memory(pid, "RssFile:")
}

fn memory(pid: u32, name: &str) -> f64 {
    let statuses = tree(pid).into_iter().filter_map(|(pid, _)| fs::read_to_string(format!("/proc/{pid}/status")).ok());
    statuses.map(|status| kib(&status, name)).sum()
}

fn kib(status: &str, name: &str) -> f64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
}

/// The processors that other processes and the hypervisor take, which slows ours down.
pub struct Others {
    since: Instant,
    busy: f64,
    ours: f64,
}

impl Others {
    pub fn watch() -> Others {
        Others { since: Instant::now(), busy: machine_busy(), ours: ours() }
    }

    /// The mean number of processors since `watch`.
    pub fn processors(&self) -> f64 {
        let taken = (machine_busy() - self.busy) - (ours() - self.ours);
        (taken / self.since.elapsed().as_secs_f64()).max(0.0)
    }
}

/// Processor time of this process, its descendants, and its children that have ended.
fn ours() -> f64 {
    tree(std::process::id()).iter().map(|(_, stat)| stat.own.total() + stat.ended.total()).sum()
}

/// Seconds for which all processors together were busy, or taken by the hypervisor.
fn machine_busy() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    parse_busy(&stat).unwrap_or(0.0) / rustix::param::clock_ticks_per_second() as f64
}

fn parse_busy(stat: &str) -> Option<f64> {
    let fields: Vec<f64> = stat.lines().next()?.split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; the fields after these are already included in `user`.
    Some([0, 1, 2, 5, 6, 7].iter().filter_map(|&i| fields.get(i)).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_stat() {
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let line = "12 (a) b (c)) S 7 12 12 0 -1 4 1 2 3 4 150 50 30 10 20 0 3 0 99";
        let cpu = |user: f64, system: f64| Cpu { user: user / ticks, system: system / ticks };
        assert_eq!(parse_stat(line), Some(Stat { parent: 7, own: cpu(150.0, 50.0), ended: cpu(30.0, 10.0) }));
        assert_eq!(parse_stat("12 (a"), None);
        assert_eq!(parse_stat("12 (a) S 7"), None);
    }

    #[test]
    fn other_lines() {
        assert_eq!(kib("Name:\tx\nVmRSS:\t    1234 kB\nRssFile:\t 12 kB\n", "RssFile:"), 12.0);
        assert_eq!(kib("Name:\tkthread\n", "VmRSS:"), 0.0);
        assert_eq!(parse_busy("cpu  1 2 4 1000 2000 8 16 32 5 5\ncpu0 1"), Some(63.0));
    }

    #[test]
    fn a_process_has_its_children() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pids: Vec<u32> = tree(std::process::id()).iter().map(|(pid, _)| *pid).collect();
        assert!(pids.contains(&std::process::id()) && pids.contains(&child.id()));
        assert!(resident_kib(std::process::id()) > 500.0);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
