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

use crate::{
    load::Load,
    machine::Places,
    process::{Server, free_port, get},
    results::Run,
    scenario::{Program, Subject, Work},
    template::expand,
    tools::Tools,
    usage,
};

/// How many idle connections there are, if the limits allow.
const IDLE: u64 = 10_000;

/// How long memory may take to be given back.
const SETTLE: Duration = Duration::from_secs(2);

/// What all runs have in common.
pub struct Bench {
    pub tools: Tools,
    folder: PathBuf,
    /// How many files a process may open.
    files: u64,
    pub seconds: u64,
}

impl Bench {
    /// Makes the folder that all of it works in.
    pub fn new(tools: Tools, work: &Path, seconds: u64) -> anyhow::Result<Bench> {
        fs::create_dir_all(work.join("run/large"))
            .and_then(|()| fs::create_dir_all(work.join("run/tmp")))
            .with_context(|| format!("cannot make folders in {}", work.display()))?;
        let folder = fs::canonicalize(work.join("run"))?;
        // Of earlier comparisons: each swap leaves a compiled module.
        let _ = fs::remove_dir_all(folder.join("cache"));
        fs::write(folder.join("large/1MiB"), vec![b'x'; 1 << 20])?;
        let files = raise_limit()?;
        Ok(Bench { tools, folder, files, seconds })
    }

    fn start_backend(&self, places: &Places) -> anyhow::Result<Server> {
        let config = self.folder.join("backend.conf");
        let port = free_port()?;
        let (dir, files) = (self.folder.display().to_string(), self.files.to_string());
        let values = [("dir", dir), ("port", port.to_string()), ("files", files)];
        fs::write(&config, expand(include_str!("../configs/backend.conf"), 0, &values)?)?;
        let command = [self.tools.nginx.clone().into(), "-c".into(), config.into_os_string()];
        Server::start(&command, &places.backend, port, "/", &self.folder.join("backend.log"))
            .context("the backend does not start")
    }

    /// The proxy's executable, if there is one.
    pub fn executable(&self, program: Program) -> Option<&Path> {
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
        let module = self.module(subject)?;
        let admin = free_port()?;
        let backend = self.start_backend(&places)?;
        let proxy = self.start(subject, &places, &module, admin, backend.port)?;
        let close = matches!(work, Work::Requests { close: true, .. });
        let load = Load {
            tools: &self.tools,
            cores: &places.load,
            folder: &self.folder,
            port: proxy.port,
            path: &subject.path,
            close,
        };
        let figures = match work {
            Work::Requests { rate, .. } => self.requests(&proxy, load, rate)?,
            Work::Idle => self.idle(&proxy, load)?,
            Work::Swap { rate } => self.swap(load, rate, subject.swaps.then_some(module.as_path()), admin)?,
        };
        Ok(figures.into_iter().map(|(key, value)| (key.to_owned(), (value * 1000.0).round() / 1000.0)).collect())
    }

    /// The filter's file: one of its own, if it is going to be replaced.
    fn module(&self, subject: &Subject) -> anyhow::Result<PathBuf> {
        if !subject.swaps {
            return Ok(fs::canonicalize(&self.tools.module)?);
        }
        let file = self.folder.join("swap.wasm");
        fs::copy(&self.tools.module, &file).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }

    fn start(
        &self,
        subject: &Subject,
        places: &Places,
        module: &Path,
        admin: u16,
        backend: u16,
    ) -> anyhow::Result<Server> {
        let (file, flags): (_, &[&str]) = match subject.program {
            Program::Nginx => ("nginx.conf", &["-c"]),
            Program::Haproxy => ("haproxy.cfg", &["-db", "-f"]),
            Program::Envoy => {
                ("envoy.yaml", &["--disable-hot-restart", "--log-level", "error", "--concurrency", "", "-c"])
            }
            Program::Tollgate => ("tollgate.yaml", &["run"]),
        };
        let port = free_port()?;
        let values = [
            ("dir", self.folder.display().to_string()),
            ("port", port.to_string()),
            ("admin", admin.to_string()),
            ("backend", backend.to_string()),
            ("workers", subject.workers.to_string()),
            ("files", self.files.to_string()),
            // HAProxy counts two files for each, and needs some for itself.
            ("connections", (self.files / 2 - 300).to_string()),
            ("module", module.display().to_string()),
        ];
        let config = self.folder.join(file);
        fs::write(&config, expand(subject.template, subject.repeat, &values)?)?;
        let program = self.executable(subject.program).context("the program is missing")?;
        let mut command: Vec<OsString> = vec![program.into()];
        let workers = subject.workers.to_string();
        command.extend(flags.iter().map(|flag| if flag.is_empty() { &workers } else { *flag }.into()));
        command.push(config.into());
        Server::start(&command, &places.proxy, port, &subject.path, &self.folder.join("proxy.log"))
    }

    fn requests(&self, proxy: &Server, load: Load, rate: u32) -> anyhow::Result<Vec<(&'static str, f64)>> {
        // Connections to the backend are opened, memory is touched.
        load.saturate(1)?;
        let (before, begun) = (usage::cpu(proxy.pid()), Instant::now());
        let saturated = load.saturate(self.seconds)?;
        let (cpu, seconds) = (usage::cpu(proxy.pid()) - before, begun.elapsed().as_secs_f64());
        let rss = usage::resident_kib(proxy.pid());
        ensure!(saturated.errors == 0, "{} of {} requests failed", saturated.errors, saturated.requests);
        let paced = load.pace(rate, self.seconds)?;
        ensure!(paced.errors == 0, "{} requests failed at {rate} a second", paced.errors);
        ensure!(
            paced.achieved > f64::from(rate) * 0.97,
            "{rate} requests a second are too many: {:.0}",
            paced.achieved
        );
        let each = |cpu: f64| cpu * 1e6 / saturated.requests;
        Ok(vec![
            ("cpu_us", each(cpu.total())),
            ("user_us", each(cpu.user)),
            ("system_us", each(cpu.system)),
            ("rate", saturated.requests / saturated.seconds),
            ("busy", cpu.total() / seconds * 100.0),
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
            let paced = load.pace(rate, self.seconds * 3);
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
