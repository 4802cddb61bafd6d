//! One run: starts the backend and a proxy in front of it, does the scenario's work to it, and gives the figures.

use std::{
    ffi::OsString,
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail, ensure};
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::Value;

use crate::{
    load::{GRPC_MESSAGE, Load},
    machine::Places,
    process::{self, Server, free_port, get},
    results::Run,
    scenario::{Program, Subject, Work},
    template::{Values, expand},
    tls,
    tools::Tools,
    usage,
};

/// How many idle connections there are, if the limits allow.
const IDLE: u64 = 10_000;

/// How long `tollgate bench chain` may take: it measures for two seconds, and may have to compile before.
const CHAIN: Duration = Duration::from_secs(60);

/// Of the requests at saturation, for a run to count.
const MOST_FAILED: f64 = 0.005;

/// Requests a second where nothing is measured.
const SMOKE_RATE: u32 = 64;

/// Seconds with a swap in each, at least.
const SWAPS: u64 = 6;

/// How long memory may take to be given back.
const SETTLE: Duration = Duration::from_secs(2);

/// What all runs have in common.
pub struct Bench {
    pub tools: Tools,
    folder: PathBuf,
    /// How many files a process may open.
    files: u64,
    seconds: u64,
    /// Whether it is only to be seen that everything works.
    smoke: bool,
}

impl Bench {
    /// Makes the folder that all of it works in.
    pub fn new(tools: Tools, work: &Path, seconds: u64, smoke: bool) -> anyhow::Result<Bench> {
        // Of an earlier comparison that was broken off.
        let _ = fs::remove_dir_all(work.join("run"));
        for part in ["large", "grpc", "tmp"] {
            let part = work.join("run").join(part);
            fs::create_dir_all(&part).with_context(|| format!("cannot make {}", part.display()))?;
        }
        let folder = fs::canonicalize(work.join("run"))?;
        fs::write(folder.join("large/1MiB"), vec![b'x'; 1 << 20])?;
        let length = (GRPC_MESSAGE - 5) as u8;
        fs::write(folder.join("grpc/message"), [&[0, 0, 0, 0, length][..], &[b'x'; GRPC_MESSAGE - 5]].concat())?;
        tls::write_certificate(&folder)?;
        let files = raise_limit()?;
        Ok(Bench { tools, folder, files, seconds, smoke })
    }

    /// The backend, and the port at which it takes gRPC calls.
    fn start_backend(&self, places: &Places) -> anyhow::Result<(Server, u16)> {
        let config = self.folder.join("backend.conf");
        let (port, grpc) = (free_port()?, free_port()?);
        let (dir, files) = (self.folder.display().to_string(), self.files.to_string());
        let names = [("dir", dir), ("port", port.to_string()), ("grpc", grpc.to_string()), ("files", files)];
        let values = Values { names: &names, ..Values::default() };
        fs::write(&config, expand(include_str!("../configs/backend.conf"), &values)?)?;
        let command = [self.tools.nginx.clone().into(), "-c".into(), config.into_os_string()];
        let log = self.folder.join("backend.log");
        let backend = Server::start(&command, &places.backend, port, &log, || process::answers(port, "/"));
        Ok((backend.context("the backend does not start")?, grpc))
    }

    /// Why this one cannot be measured here, if so.
    pub fn missing(&self, subject: &Subject) -> Option<String> {
        if self.executable(subject.program).is_none() {
            return Some("there is no such program here; --install gets it".into());
        }
        let module = subject.modules.iter().map(|name| self.tools.module(name)).find(|file| !file.is_file())?;
        Some(format!("there is no {}; run.sh makes it", module.display()))
    }

    /// Removes everything that was written for the runs.
    pub fn clean_up(self) {
        let _ = fs::remove_dir_all(&self.folder);
    }

    /// The proxy's executable, if there is one.
    fn executable(&self, program: Program) -> Option<&Path> {
        match program {
            Program::Nginx => Some(&self.tools.nginx),
            Program::Haproxy => self.tools.haproxy.as_deref(),
            Program::Envoy => self.tools.envoy.as_deref(),
            Program::Tollgate => Some(&self.tools.tollgate),
        }
    }

    /// Measures once.
    pub fn run(&self, subject: &Subject, work: Work) -> anyhow::Result<Run> {
        let places = Places::of(subject.workers)?;
        let modules = self.modules(subject)?;
        let admin = free_port()?;
        let figures = if work == Work::Chain {
            let config = self.config(subject, &modules, (free_port()?, admin, free_port()?))?;
            self.chain(subject, &places, config)?
        } else {
            let (backend, grpc) = self.start_backend(&places)?;
            let backend_port = if subject.spoken.grpc { grpc } else { backend.port };
            self.loaded(subject, &places, &modules, (admin, backend_port), work)?
        };
        Ok(figures.into_iter().map(|(key, value)| (key.to_owned(), (value * 1000.0).round() / 1000.0)).collect())
    }

    /// What a proxy does under load.
    fn loaded(
        &self,
        subject: &Subject,
        places: &Places,
        modules: &Path,
        (admin, backend): (u16, u16),
        work: Work,
    ) -> anyhow::Result<Vec<(&'static str, f64)>> {
        let port = free_port()?;
        let config = self.config(subject, modules, (port, admin, backend))?;
        let close = matches!(work, Work::Requests { close: true, .. });
        let load = Load {
            tools: &self.tools,
            cores: &places.load,
            folder: &self.folder,
            port,
            path: &subject.path,
            spoken: subject.spoken,
            close,
        };
        let proxy = self.start(subject, places, config, &load)?;
        match work {
            Work::Requests { rate, .. } => self.requests(&proxy, load, Some(rate)),
            Work::Half => self.requests(&proxy, load, None),
            Work::Idle => self.idle(&proxy, load),
            Work::Swap { rate } => {
                let file = subject.modules.first().map(|name| modules.join(name)).filter(|_| subject.swaps);
                self.swap(load, rate, file.as_deref(), admin)
            }
            Work::Chain => bail!("a chain is measured without load"),
        }
    }

    /// Where the filters' files are: copies, if one is going to be replaced.
    fn modules(&self, subject: &Subject) -> anyhow::Result<PathBuf> {
        let folder = fs::canonicalize(&self.tools.modules)?;
        if !subject.swaps {
            return Ok(folder);
        }
        let copies = self.folder.join("swapped");
        fs::create_dir_all(&copies)?;
        for name in subject.modules {
            fs::copy(folder.join(name), copies.join(name)).with_context(|| format!("cannot copy {name}"))?;
        }
        Ok(copies)
    }

    /// Writes the configuration, and says where it is.
    fn config(
        &self,
        subject: &Subject,
        modules: &Path,
        (port, admin, backend): (u16, u16, u16),
    ) -> anyhow::Result<PathBuf> {
        let file = match subject.program {
            Program::Nginx => "nginx.conf",
            Program::Haproxy => "haproxy.cfg",
            Program::Envoy => "envoy.yaml",
            Program::Tollgate => "tollgate.yaml",
        };
        let names = [
            ("dir", self.folder.display().to_string()),
            ("port", port.to_string()),
            ("admin", admin.to_string()),
            ("backend", backend.to_string()),
            ("workers", subject.workers.to_string()),
            ("files", self.files.to_string()),
            // HAProxy counts two files for each, and needs some for itself.
            ("connections", (self.files / 2 - 300).to_string()),
            ("portable", self.tools.portable.canonicalize().unwrap_or_default().display().to_string()),
            (
                "module",
                subject.modules.first().map(|name| modules.join(name).display().to_string()).unwrap_or_default(),
            ),
        ];
        let config = self.folder.join(file);
        let values = Values { names: &names, flags: subject.spoken.flags(), repeat: subject.repeat };
        fs::write(&config, expand(subject.template, &values)?)?;
        Ok(config)
    }

    fn start(&self, subject: &Subject, places: &Places, config: PathBuf, load: &Load) -> anyhow::Result<Server> {
        let workers = subject.workers.to_string();
        let flags: &[&str] = match subject.program {
            Program::Nginx => &["-c"],
            Program::Haproxy => &["-db", "-f"],
            Program::Envoy => &["--disable-hot-restart", "--log-level", "error", "--concurrency", &workers, "-c"],
            Program::Tollgate => &["run"],
        };
        let program = self.executable(subject.program).context("the program is missing")?;
        let mut command: Vec<OsString> = vec![program.into()];
        command.extend(flags.iter().map(Into::into));
        command.push(config.into());
        Server::start(&command, &places.proxy, load.port, &self.folder.join("proxy.log"), || load.answers())
    }

    /// What the filters cost without anything around them.
    fn chain(&self, subject: &Subject, places: &Places, config: PathBuf) -> anyhow::Result<Vec<(&'static str, f64)>> {
        let mut command: Vec<OsString> = vec![self.tools.tollgate.clone().into(), "bench".into(), "chain".into()];
        command.extend([config.into(), "--json".into(), "--request".into(), format!("GET {}", subject.path).into()]);
        command.extend(["-H", "user-agent: peers/1.0", "-H", "accept: */*"].map(Into::into));
        let text = process::output(&command, &places.proxy, &self.folder, CHAIN)?;
        let report: Value = serde_json::from_str(&text).context("`bench chain` says something else than expected")?;
        let micros = |pointer: &str| {
            let nanos = report.pointer(pointer).and_then(Value::as_f64).with_context(|| format!("no {pointer}"))?;
            anyhow::Ok(nanos / 1000.0)
        };
        Ok(vec![
            ("chain_us", micros("/total/median_ns")?),
            ("mean_us", micros("/total/mean_ns")?),
            ("p99_us", micros("/total/p99_ns")?),
            ("calls_us", micros("/calls/of_medians_ns")?),
        ])
    }

    /// Requests as fast as they go, then at a rate: the one given, or half of what went.
    fn requests(&self, proxy: &Server, load: Load, rate: Option<u32>) -> anyhow::Result<Vec<(&'static str, f64)>> {
        // Connections to the backend are opened, memory is touched.
        load.saturate(1)?;
        let (before, begun) = (usage::cpu(proxy.pid()), Instant::now());
        let saturated = load.saturate(self.seconds)?;
        let (cpu, seconds) = (usage::cpu(proxy.pid()) - before, begun.elapsed().as_secs_f64());
        let rss = usage::resident_kib(proxy.pid());
        // At its most a proxy may refuse one now and then; but what fails costs less than what does not.
        let (failed, requests) = (saturated.errors as f64, saturated.requests);
        ensure!(requests > 0.0 && failed <= requests * MOST_FAILED, "{failed} of {requests} requests failed");
        let rate = rate.unwrap_or((saturated.requests / saturated.seconds / 2.0) as u32);
        let rate = if self.smoke { SMOKE_RATE } else { rate };
        let paced = load.pace(rate, self.seconds)?;
        ensure!(paced.errors == 0, "{} requests failed at {rate} a second", paced.errors);
        ensure!(
            self.smoke || paced.achieved > f64::from(rate) * 0.97,
            "{rate} requests a second are too many: {:.0}",
            paced.achieved
        );
        let each = |cpu: f64| cpu * 1e6 / saturated.requests;
        Ok(vec![
            ("cpu_us", each(cpu.total())),
            ("user_us", each(cpu.user)),
            ("system_us", each(cpu.system)),
            ("rate", saturated.requests / saturated.seconds),
            ("failed", failed),
            ("busy", cpu.total() / seconds * 100.0),
            ("paced", rate.into()),
            ("p50", paced.p50),
            ("p99", paced.p99),
            ("p999", paced.p999),
            ("rss_mib", rss / 1024.0),
        ])
    }

    fn idle(&self, proxy: &Server, load: Load) -> anyhow::Result<Vec<(&'static str, f64)>> {
        let rss = || usage::resident_kib(proxy.pid());
        // What starting has needed for a moment only is given back.
        thread::sleep(SETTLE);
        let start = rss();
        load.saturate(1)?;
        thread::sleep(SETTLE);
        let busy = rss();
        // This process needs a file for each, the proxy perhaps two.
        let count = IDLE.min(self.files.saturating_sub(1000) / 2);
        let connections: Vec<TcpStream> = (0..count)
            .map(|n| idle_connection(proxy.port, load.path).with_context(|| format!("idle connection {n} of {count}")))
            .collect::<Result<_, _>>()?;
        thread::sleep(SETTLE);
        let idle = rss();
        drop(connections);
        Ok(vec![
            ("each_kib", (idle - busy) / count as f64),
            ("connections", count as f64),
            ("start_mib", start / 1024.0),
            ("load_mib", busy / 1024.0),
            ("idle_mib", idle / 1024.0),
        ])
    }

    fn swap(&self, load: Load, rate: u32, file: Option<&Path>, admin: u16) -> anyhow::Result<Vec<(&'static str, f64)>> {
        let over = AtomicBool::new(false);
        let before = version(admin)?;
        let (paced, replaced) = thread::scope(|scope| {
            let replaced = file.map(|file| scope.spawn(|| replace_every_second(file, &over)));
            let rate = if self.smoke { SMOKE_RATE } else { rate };
            let paced = load.pace(rate, self.seconds.max(if self.smoke { 3 } else { SWAPS }));
            over.store(true, Ordering::Relaxed);
            let replaced = replaced.map(|thread| thread.join().expect("it does not panic"));
            (paced, replaced.unwrap_or(Ok(0)))
        });
        let (paced, replaced) = (paced?, replaced?);
        thread::sleep(Duration::from_secs(1));
        let swaps = version(admin)? - before;
        // Files may be replaced faster than they are compiled, but not all of them.
        ensure!(swaps * 2 >= replaced, "of {replaced} modules only {swaps} were taken over");
        Ok(vec![
            ("p50", paced.p50),
            ("p99", paced.p99),
            ("p999", paced.p999),
            ("errors", paced.errors as f64),
            ("swaps", swaps as f64),
        ])
    }
}

/// As many open files as this process may have, for itself and for those it starts.
fn raise_limit() -> anyhow::Result<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("cannot raise the number of open files")?;
    Ok(limit.maximum.unwrap_or(65_536).min(65_536))
}

/// A connection that has carried one request.
fn idle_connection(port: u16, path: &str) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())?;
    let (mut answer, mut part) = (Vec::new(), [0; 4096]);
    // The backend's bodies end with the only line feed that does not follow a carriage return.
    while !answer.ends_with(b"e\n") {
        match stream.read(&mut part)? {
            0 => bail!("closed after {} bytes", answer.len()),
            n => answer.extend_from_slice(&part[..n]),
        }
    }
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "not answered with 200");
    Ok(stream)
}

/// The version of the configuration in force.
fn version(admin: u16) -> anyhow::Result<u64> {
    let answer = get(admin, "/config")?;
    let number = answer.split_once("\"version\":").map(|(_, rest)| rest.split(',').next().unwrap_or_default().trim());
    number.and_then(|n| n.parse().ok()).with_context(|| format!("the admin listener says no version:\n{answer}"))
}

/// Replaces the module until it is over; says how often.
fn replace_every_second(file: &Path, over: &AtomicBool) -> anyhow::Result<u64> {
    let module = fs::read(file)?;
    let next = file.with_extension("next");
    let mut count = 0;
    loop {
        for _ in 0..20 {
            if over.load(Ordering::Relaxed) {
                return Ok(count);
            }
            thread::sleep(Duration::from_millis(50));
        }
        // At once, as a build does: never half a file.
        fs::write(&next, another(&module)?)?;
        fs::rename(&next, file)?;
        count += 1;
    }
}

/// The same code as another module, never seen before: with a custom section that holds the time.
fn another(module: &[u8]) -> anyhow::Result<Vec<u8>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
    // Section 0 of 13 bytes, with a name of 4.
    let section = [&[0, 13, 4][..], b"time", &now.to_le_bytes()].concat();
    Ok([module, &section].concat())
}
