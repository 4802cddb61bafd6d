//! How much memory the process uses, and may use.
//!
//! A thread of its own reads the former, since the system may take its time; it sleeps while nobody asks.

use std::{
    fs,
    path::Path,
    sync::{
        LazyLock, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

use crate::observe::metrics::resident_memory;

/// A reading that is older than this is renewed.
const FRESH: Duration = Duration::from_millis(100);

/// A reading that is older than this is not used.
const STALE: Duration = Duration::from_secs(10);

static METER: MemoryMeter =
    MemoryMeter { bytes: AtomicU64::new(0), at: AtomicU64::new(0), is_asked: AtomicBool::new(false) };

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

static READER: OnceLock<Option<Thread>> = OnceLock::new();

struct MemoryMeter {
    bytes: AtomicU64,
    /// When they were read, in milliseconds since the first use.
    at: AtomicU64,
    is_asked: AtomicBool,
}

/// Reads the memory in use once, and starts the thread that reads it from now on.
pub(super) fn start() {
    READER.get_or_init(|| {
        METER.read();
        let reader = thread::Builder::new().name("memory".to_owned()).spawn(|| {
            loop {
                thread::park();
                if METER.is_asked.load(Relaxed) {
                    METER.read();
                    METER.is_asked.store(false, Relaxed);
                }
            }
        });
        reader.ok().map(|reader| reader.thread().clone())
    });
}

/// Returns the resident memory of the process in bytes, up to a tenth of a second old while others ask as well; `None` if it
/// is not known.
pub(super) fn in_use(now: Instant) -> Option<u64> {
    let age = now.saturating_duration_since(*START + Duration::from_millis(METER.at.load(Relaxed)));
    if age >= FRESH
        && !METER.is_asked.swap(true, Relaxed)
        && let Some(Some(reader)) = READER.get()
    {
        reader.unpark();
    }
    Some(METER.bytes.load(Relaxed)).filter(|bytes| *bytes > 0 && age < STALE)
}

impl MemoryMeter {
    fn read(&self) {
        self.bytes.store(resident_memory().unwrap_or(0), Relaxed);
        self.at.store(START.elapsed().as_millis() as u64, Relaxed);
    }
}

/// Returns how much memory the process may use, in bytes: the lowest limit of its cgroup and those above it (versions 1
/// and 2), and at most the machine's memory.
pub(super) fn limit() -> Option<u64> {
    limit_below(Path::new("/"))
}

fn limit_below(root: &Path) -> Option<u64> {
    let read = |path: &str| fs::read_to_string(root.join(path)).ok();
    let machine = read("proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
    });
    let groups = read("proc/self/cgroup").unwrap_or_default();
    let limits = groups.lines().flat_map(|line| {
        // The number of a hierarchy, its controllers (none in version 2), and the group's path.
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let (folder, file) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max"),
            named if named.split(',').any(|name| name == "memory") => ("sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => return Vec::new(),
        };
        // In a container, the group itself is often mounted at the top.
        let above = Path::new(group.trim_start_matches('/')).ancestors();
        let limit = |group: &Path| fs::read_to_string(root.join(folder).join(group).join(file)).ok();
        above.filter_map(|group| limit(group)?.trim().parse().ok()).collect()
    });
    limits.chain(machine).filter(|bytes: &u64| *bytes > 0).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_the_lowest_of_the_groups_and_the_machine() {
        const MIB: u64 = 1 << 20;
        let root = std::env::temp_dir().join(format!("tollgate-cgroup-{}", std::process::id()));
        let put = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(limit_below(&root), None);
        put("proc/meminfo", "MemFree: 1 kB\nMemTotal:     1048576 kB\n");
        assert_eq!(limit_below(&root), Some(1024 * MIB));
        put("proc/self/cgroup", "0::/a/b\n");
        put("sys/fs/cgroup/a/b/memory.max", "max\n");
        assert_eq!(limit_below(&root), Some(1024 * MIB));
        put("sys/fs/cgroup/a/b/memory.max", "536870912\n");
        assert_eq!(limit_below(&root), Some(512 * MIB));
        put("sys/fs/cgroup/a/memory.max", "268435456\n");
        assert_eq!(limit_below(&root), Some(256 * MIB), "a group above it has less");
        put("sys/fs/cgroup/memory.max", "134217728\n");
        assert_eq!(limit_below(&root), Some(128 * MIB), "in a container");
        put("proc/self/cgroup", "5:cpu,memory:/x\n4:pids:/y\n");
        put("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit_below(&root), Some(1024 * MIB));
        put("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "67108864\n");
        assert_eq!(limit_below(&root), Some(64 * MIB));
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn memory_in_use_is_read_again_when_somebody_asks() {
        start();
        let before = in_use(Instant::now()).expect("this process uses memory");
        assert!(before > 1 << 20);
        let held = vec![1u8; 64 << 20];
        let end = Instant::now() + Duration::from_secs(30);
        while in_use(Instant::now()).is_some_and(|now| now < before + (32 << 20)) {
            assert!(Instant::now() < end, "it does not grow");
            thread::sleep(Duration::from_millis(10));
        }
        assert!(held.iter().all(|byte| *byte == 1));
        assert_eq!(in_use(Instant::now() + STALE * 2), None, "an old reading is not used");
        assert!(limit().is_some_and(|limit| limit > before));
    }
}
