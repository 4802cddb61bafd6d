//! One run: starts the backend and a proxy in front of it, puts the scenario's load on it, and returns the figures.

use std::{
    ffi::OsString,
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::Value;

use crate::{
    contain, kinds,
    load::{GRPC_MESSAGE, Load, Paced, Saturated},
    machine::{Made, Places},
    process::{self, Server, free_port},
    results::{Output, Run},
    rounds::Measure,
    scenario::{Program, Subject, Work},
    swap,
    template::{Values, expand},
    tls,
    tools::Tools,
    usage::{self, Cpu},
};

/// The number of idle connections, if the limits allow it.
const IDLE: u64 = 10_000;

/// Timeout for `tollgate bench chain`, which measures for two seconds and may have to compile first.
const CHAIN: Duration = Duration::from_secs(60);

/// The largest share of failed requests at saturation for a run to count.
const MOST_FAILED: f64 = 0.005;

/// The share of a rate that must be achieved for its latencies to count.
const KEPT: f64 = 0.97;

/// The minimum number of requests for a p99.9: ten are above it.
const TAIL: usize = 10_000;

/// The maximum number of seconds to extend an open loop to in order to reach `TAIL`.
const LONGEST: u64 = 2;

/// The maximum rate of a smoke test, in requests a second.
const SMOKE_RATE: u32 = 64;

/// The minimum number of seconds, with one swap in each.
const SWAPS: u64 = 6;

/// Timeout for a response, in seconds.
const TIMEOUT: u64 = 5;

/// Time for freed memory to return to the system.
const SETTLE: Duration = Duration::from_secs(2);

/// Timeout for the first replaced module to be compiled and applied.
const TAKEN_OVER: Duration = Duration::from_secs(30);

/// The figures of a run, by key.
type Figures = Vec<(&'static str, f64)>;

/// A running proxy in front of a backend, and its load.
struct Proxy<'a> {
    server: Server,
    /// The service next to it whose resources count as its own.
    service: Option<Server>,
    load: Load<'a>,
    admin: u16,
    /// The folder with its filters' files.
    modules: PathBuf,
}

impl Proxy<'_> {
    fn pids(&self) -> impl Iterator<Item = u32> {
        [Some(&self.server), self.service.as_ref()].into_iter().flatten().map(Server::pid)
    }

    fn cpu(&self) -> Cpu {
        self.pids().map(usage::cpu).sum()
    }

    fn resident_kib(&self) -> f64 {
        self.pids().map(usage::resident_kib).sum()
    }
}

/// The state that all runs share.
pub struct Bench {
    pub tools: Tools,
    folder: PathBuf,
    /// The limit of open files per process.
    files: u64,
    seconds: u64,
    /// Whether to check only that everything works.
    smoke: bool,
}

impl Bench {
    /// Creates the working folder.
    pub fn new(tools: Tools, work: &Path, seconds: u64, smoke: bool) -> anyhow::Result<Bench> {
        // Left by an interrupted comparison.
        let _ = fs::remove_dir_all(work.join("run"));
        for part in ["large", "grpc", "tmp"] {
            let part = work.join("run").join(part);
            fs::create_dir_all(&part).with_context(|| format!("cannot create {}", part.display()))?;
        }
        let folder = fs::canonicalize(work.join("run"))?;
        fs::write(folder.join("large/1MiB"), vec![b'x'; 1 << 20])?;
        let length = (GRPC_MESSAGE - 5) as u8;
        fs::write(folder.join("grpc/message"), [&[0, 0, 0, 0, length][..], &[b'x'; GRPC_MESSAGE - 5]].concat())?;
        tls::write_files(&folder)?;
        kinds::write_offenders(&folder)?;
        let files = raise_limit()?;
        Ok(Bench { tools, folder, files, seconds, smoke })
    }

    /// Starts the backend; returns it with its port for gRPC calls.
    fn start_backend(&self, places: &Places) -> anyhow::Result<(Server, u16)> {
        let grpc = free_port()?;
        Ok((self.start_nginx("backend", include_str!("../configs/backend.conf"), &places.backend, grpc)?, grpc))
    }

    /// Starts an nginx that serves responses itself.
    fn start_nginx(&self, name: &str, template: &str, cores: &str, grpc: u16) -> anyhow::Result<Server> {
        let (config, log) = (self.folder.join(format!("{name}.conf")), self.folder.join(format!("{name}.log")));
        let port = free_port()?;
        let (dir, files) = (self.folder.display().to_string(), self.files.to_string());
        let names = [("dir", dir), ("port", port.to_string()), ("grpc", grpc.to_string()), ("files", files)];
        let values = Values { names: &names, ..Values::default() };
        fs::write(&config, expand(template, &values)?)?;
        let command = [self.tools.nginx.clone().into(), "-c".into(), config.into_os_string()];
        let server = Server::start(&command, cores, port, &log, || process::answers(port, "/"));
        server.with_context(|| format!("cannot start the {name}"))
    }

    /// Removes all files of the runs.
    pub fn clean_up(self) {
        let _ = fs::remove_dir_all(&self.folder);
    }

    /// The proxy's executable, if it is installed.
    fn executable(&self, program: Program) -> Option<&Path> {
        match program {
            Program::Nginx => Some(&self.tools.nginx),
            Program::Haproxy => self.tools.haproxy.as_deref(),
            Program::Envoy => self.tools.envoy.as_deref(),
            Program::Tollgate => Some(&self.tools.tollgate),
        }
    }

    /// Starts the backend and a proxy in front of it for the duration of `then`.
    fn with_proxy<T>(
        &self,
        subject: &Subject,
        work: Work,
        then: impl FnOnce(&Proxy) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let places = Places::of(subject.workers)?;
        let modules = self.modules(subject)?;
        let (backend, grpc) = self.start_backend(&places)?;
        let backend_port = if subject.spoken.grpc { grpc } else { backend.port };
        let service = subject.service.map(|template| self.start_nginx("service", template, &places.proxy, 0));
        let service = service.transpose()?;
        let service_port = service.as_ref().map_or(0, |service| service.port);
        let (port, admin) = (free_port()?, free_port()?);
        let config = self.config(subject, &modules, (port, admin, backend_port, service_port))?;
        let load = Load {
            tools: &self.tools,
            cores: &places.load,
            folder: &self.folder,
            port,
            path: &subject.path,
            spoken: subject.spoken,
            close: matches!(work, Work::Requests { close: true, .. }),
            timeout: if matches!(work, Work::Contain { .. }) { contain::TIMEOUT } else { TIMEOUT },
        };
        let server = self.start(subject, &places, config, &load)?;
        load.check_tls()?;
        if let Some(field) = subject.refuses {
            let answer = process::get_with(port, &subject.path, field)?;
            ensure!(answer.starts_with("HTTP/1.1 403"), "a request with `{field}` is not rejected:\n{answer}");
        }
        then(&Proxy { server, service, load, admin, modules })
    }

    /// The folder with the filters' files; copies, if one is replaced during the run.
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

    /// A filter's file: `portable:x` is built for any host, `made:x` is built for the runs, others are in the folder `modules`.
    fn module(&self, name: &str, modules: &Path) -> String {
        let file = match name.split_once(':') {
            Some(("portable", name)) => self.tools.portable.canonicalize().unwrap_or_default().join(name),
            Some(("made", name)) => self.folder.join(name),
            _ => modules.join(name),
        };
        file.display().to_string()
    }

    /// Writes the configuration; returns its path.
    fn config(
        &self,
        subject: &Subject,
        modules: &Path,
        (port, admin, backend, service): (u16, u16, u16, u16),
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
            ("service", service.to_string()),
            ("workers", subject.workers.to_string()),
            ("files", self.files.to_string()),
            // HAProxy counts two files per connection, and needs some for itself.
            ("connections", (self.files / 2 - 300).to_string()),
            ("portable", self.tools.portable.canonicalize().unwrap_or_default().display().to_string()),
            ("module", subject.modules.first().map(|name| self.module(name, modules)).unwrap_or_default()),
        ];
        let config = self.folder.join(file);
        // HAProxy's map, for many routes.
        let routes: String = (1..=subject.repeat).map(|i| format!("/service-{i}/ backend\n")).collect();
        fs::write(self.folder.join("routes.map"), routes)?;
        let values = Values { names: &names, flags: subject.spoken.flags(), repeat: subject.repeat };
        fs::write(&config, expand(&subject.template, &values)?)?;
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

    /// The cost of the filters alone.
    fn chain(&self, subject: &Subject) -> anyhow::Result<Figures> {
        let places = Places::of(subject.workers)?;
        let config = self.config(subject, &self.modules(subject)?, (free_port()?, free_port()?, free_port()?, 0))?;
        let mut command: Vec<OsString> = vec![self.tools.tollgate.clone().into(), "bench".into(), "chain".into()];
        command.extend([config.into(), "--json".into(), "--request".into(), format!("GET {}", subject.path).into()]);
        command.extend(["-H", "user-agent: peers/1.0", "-H", "accept: */*"].map(Into::into));
        let text = process::output(&command, &places.proxy, &self.folder, CHAIN)?;
        let report: Value = serde_json::from_str(&text).context("cannot parse the output of `bench chain`")?;
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

    /// The output of `bench chain` for the quick start's configuration, for docs/operating.md.
    pub fn quick_start_chain(&self, made: &Made) -> anyhow::Result<Output> {
        let command =
            [self.tools.tollgate.as_os_str(), "bench".as_ref(), "chain".as_ref(), "examples/quickstart.yaml".as_ref()];
        let text = process::output(&command.map(Into::into), &Places::of(1)?.proxy, &self.folder, CHAIN)?;
        Ok(Output {
            commit: made.commit.clone(),
            date: made.date.clone(),
            by: "target/release/tollgate bench chain examples/quickstart.yaml".into(),
            lines: text.trim_end().lines().map(str::to_owned).collect(),
        })
    }

    /// The rate, limited for a smoke test.
    fn capped(&self, rate: u32) -> u32 {
        if self.smoke { rate.min(SMOKE_RATE) } else { rate }
    }

    /// Sends requests at saturation, then at the given rate, or at half of the saturated one.
    fn requests(&self, proxy: &Proxy, rate: Option<u32>) -> anyhow::Result<Figures> {
        let load = proxy.load;
        // Warm-up: opens connections to the backend and touches memory.
        load.saturate(1)?;
        let (before, begun) = (proxy.cpu(), Instant::now());
        let saturated = saturate(&load, self.seconds)?;
        let (cpu, seconds) = (proxy.cpu() - before, begun.elapsed().as_secs_f64());
        let rss = proxy.resident_kib();
        let rate = rate.unwrap_or((saturated.requests / saturated.seconds / 2.0) as u32);
        let rate = self.capped(rate.max(1));
        let open = open_seconds(rate, self.seconds);
        let (paced, paced_busy) = busy(proxy, || load.pace(rate, open))?;
        ensure!(paced.errors == 0, "{} requests failed at {rate} a second", paced.errors);
        // Requests in flight at the end are not answered, which matters at low rates.
        let answered = paced.achieved * open as f64 + load.at_a_time() as f64;
        ensure!(
            self.smoke || answered > f64::from(rate) * open as f64 * KEPT,
            "it fell behind: only {:.0} of {rate} requests a second were answered",
            paced.achieved
        );
        let each = |cpu: f64| cpu * 1e6 / saturated.requests;
        let mut figures = latencies(&paced);
        figures.extend([
            ("cpu_us", each(cpu.total())),
            ("user_us", each(cpu.user)),
            ("system_us", each(cpu.system)),
            ("rate", saturated.requests / saturated.seconds),
            ("failed", saturated.errors as f64),
            ("busy", cpu.total() / seconds * 100.0),
            ("paced", rate.into()),
            ("paced_seconds", open as f64),
            ("paced_busy", paced_busy),
            ("rss_mib", rss / 1024.0),
        ]);
        Ok(figures)
    }

    fn idle(&self, proxy: &Proxy) -> anyhow::Result<Figures> {
        let load = proxy.load;
        let pid = proxy.server.pid();
        let rss = || usage::resident_kib(pid);
        // Memory that only startup needed is returned.
        thread::sleep(SETTLE);
        let (start, files) = (rss(), usage::resident_file_kib(pid));
        load.saturate(1)?;
        thread::sleep(SETTLE);
        let busy = rss();
        // This process needs one file per connection, the proxy up to two.
        let count = IDLE.min(self.files.saturating_sub(1000) / 2);
        let connections: Vec<TcpStream> = (0..count)
            .map(|n| idle_connection(load.port, load.path).with_context(|| format!("idle connection {n} of {count}")))
            .collect::<Result<_, _>>()?;
        thread::sleep(SETTLE);
        let idle = rss();
        drop(connections);
        Ok(vec![
            ("each_kib", (idle - busy) / count as f64),
            ("connections", count as f64),
            ("start_mib", start / 1024.0),
            ("file_mib", files / 1024.0),
            ("load_mib", busy / 1024.0),
            ("idle_mib", idle / 1024.0),
        ])
    }

    /// Sends requests at a rate, and meanwhile replaces the file, if there is one.
    fn swap(&self, proxy: &Proxy, rate: u32, file: Option<&Path>) -> anyhow::Result<Figures> {
        let over = AtomicBool::new(false);
        let rate = self.capped(rate);
        let before = swap::version(proxy.admin)?;
        let seconds = self.seconds.max(if self.smoke { 3 } else { SWAPS });
        let (paced, replaced) = thread::scope(|scope| {
            let replaced = file.map(|file| scope.spawn(|| swap::replace_every_second(file, &over)));
            let paced = busy(proxy, || proxy.load.pace(rate, seconds));
            over.store(true, Ordering::Relaxed);
            let replaced = replaced.map(|thread| thread.join().expect("it does not panic"));
            (paced, replaced.unwrap_or(Ok(0)))
        });
        let ((paced, paced_busy), replaced) = (paced?, replaced?);
        thread::sleep(Duration::from_secs(1));
        let (begun, mut swaps) = (Instant::now(), swap::version(proxy.admin)? - before);
        // Files can be replaced faster than they are compiled, but one must be applied in the end.
        while replaced > 0 && swaps == 0 {
            ensure!(begun.elapsed() < TAKEN_OVER, "none of {replaced} replaced modules was applied");
            thread::sleep(Duration::from_millis(100));
            swaps = swap::version(proxy.admin)? - before;
        }
        let mut figures = latencies(&paced);
        figures.extend([
            ("paced", rate.into()),
            ("paced_seconds", seconds as f64),
            ("paced_busy", paced_busy),
            ("errors", paced.errors as f64),
            ("swaps", swaps as f64),
        ]);
        Ok(figures)
    }

    /// Sends good requests at a rate, alongside one bad request a second.
    fn contain(&self, proxy: &Proxy, rate: u32, offence: &str) -> anyhow::Result<Figures> {
        let over = AtomicBool::new(false);
        let (rate, load, pid) = (self.capped(rate), proxy.load, proxy.server.pid());
        let seconds = contain::SECONDS;
        let start = proxy.resident_kib();
        let (paced, bad) = thread::scope(|scope| {
            let bad = scope.spawn(|| contain::offend(load.port, load.path, offence, pid, &over));
            let paced = load.pace(rate, seconds);
            over.store(true, Ordering::Relaxed);
            (paced, bad.join().expect("it does not panic"))
        });
        let paced = paced?;
        let failed = paced.errors as f64 / (f64::from(rate) * seconds as f64) * 100.0;
        let mut figures = vec![
            ("failed_percent", failed.min(100.0)),
            ("paced", rate.into()),
            ("paced_seconds", seconds as f64),
            ("bad", f64::from(bad.sent)),
            ("before_mib", start / 1024.0),
            ("peak_mib", bad.peak_kib / 1024.0),
            // A process that has ended has no memory, but still exists as a zombie until it is waited for.
            ("lives", f64::from(usage::resident_kib(pid) > 0.0)),
            ("serves", f64::from(process::answers(load.port, load.path))),
        ];
        // If more have failed, the slowest hundredth was never answered.
        if failed <= 1.0 {
            figures.push(("p99", paced.p99));
        }
        Ok(figures)
    }
}

/// Seconds of an open loop at this rate: longer than a closed loop only if that gives enough requests for a p99.9.
fn open_seconds(rate: u32, seconds: u64) -> u64 {
    let enough = |seconds: &u64| u64::from(rate) * seconds >= TAIL as u64;
    (seconds..=LONGEST).find(enough).unwrap_or(seconds)
}

/// The latencies of an open loop. The p99.9 is omitted if there were too few requests.
fn latencies(paced: &Paced) -> Figures {
    let mut figures = vec![("p50", paced.p50), ("p99", paced.p99), ("samples", paced.samples as f64)];
    if paced.samples >= TAIL {
        figures.push(("p999", paced.p999));
    }
    figures
}

/// Does some work; returns also the share of time for which the proxy was busy, in percent.
fn busy<T>(proxy: &Proxy, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, f64)> {
    let (before, begun) = (proxy.cpu(), Instant::now());
    let done = work()?;
    let share = (proxy.cpu() - before).total() / begun.elapsed().as_secs_f64();
    Ok((done, share * 100.0))
}

impl Measure for Bench {
    fn missing(&self, subject: &Subject) -> Option<String> {
        if self.executable(subject.program).is_none() {
            return Some("the program is missing; --install installs it".into());
        }
        let files = subject.modules.iter().map(|name| self.module(name, &self.tools.modules));
        files
            .into_iter()
            .find(|file| !Path::new(file).is_file())
            .map(|file| format!("{file} is missing; run.sh builds it"))
    }

    fn carries(&self, subject: &Subject, work: Work) -> anyhow::Result<f64> {
        self.with_proxy(subject, work, |proxy| {
            let load = saturate(&proxy.load, 1)?;
            Ok(load.requests / load.seconds)
        })
    }

    fn run(&self, subject: &Subject, work: Work, rate: Option<u32>) -> anyhow::Result<Run> {
        let with_proxy = |then: &dyn Fn(&Proxy) -> anyhow::Result<Figures>| self.with_proxy(subject, work, then);
        let figures = match work {
            Work::Requests { .. } | Work::Half => with_proxy(&|proxy| self.requests(proxy, rate)),
            Work::Idle => with_proxy(&|proxy| self.idle(proxy)),
            Work::Swap { .. } => with_proxy(&|proxy| {
                let name = subject.modules.first().filter(|_| subject.swaps);
                let file = name.map(|name| proxy.modules.join(name));
                self.swap(proxy, rate.context("swaps need a rate")?, file.as_deref())
            }),
            Work::Contain { rate } => with_proxy(&|proxy| self.contain(proxy, rate, subject.offence)),
            Work::Chain => self.chain(subject),
        }?;
        Ok(figures.into_iter().map(|(key, value)| (key.to_owned(), (value * 1000.0).round() / 1000.0)).collect())
    }
}

/// Sends requests at saturation. Fails unless nearly all succeed, since failures cost less than successes.
fn saturate(load: &Load, seconds: u64) -> anyhow::Result<Saturated> {
    let saturated = load.saturate(seconds)?;
    let (failed, requests) = (saturated.errors as f64, saturated.requests);
    ensure!(
        requests > 0.0,
        "no request was answered within {seconds} s, {failed} failed; give more time with --seconds"
    );
    // At saturation a proxy can reject a request now and then.
    ensure!(failed <= requests * MOST_FAILED, "{failed} requests failed, {requests} succeeded");
    Ok(saturated)
}

/// Raises the limit of open files to the hard one, for this process and its children; returns it.
fn raise_limit() -> anyhow::Result<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("cannot raise the limit of open files")?;
    Ok(limit.maximum.unwrap_or(65_536).min(65_536))
}

/// Opens a connection that has carried one request.
fn idle_connection(port: u16, path: &str) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())?;
    let (mut answer, mut part) = (Vec::new(), [0; 4096]);
    // The backend's bodies end with the only line feed that does not follow a carriage return.
    while !answer.ends_with(b"e\n") {
        match stream.read(&mut part)? {
            0 => bail!("the connection was closed after {} bytes", answer.len()),
            n => answer.extend_from_slice(&part[..n]),
        }
    }
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "the response is not 200");
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_loops_are_extended_only_if_that_reaches_the_tail() {
        assert_eq!(open_seconds(5500, 1), 2);
        assert_eq!(open_seconds(25_000, 1), 1);
        assert_eq!(open_seconds(4000, 1), 1);
        assert_eq!(open_seconds(4000, 3), 3);
    }

    #[test]
    fn tails_of_few_requests_are_omitted() {
        let paced = |samples| Paced { p50: 1.0, p99: 2.0, p999: 3.0, errors: 0, achieved: 9.0, samples };
        let has = |samples| latencies(&paced(samples)).iter().any(|(key, _)| *key == "p999");
        assert!(has(TAIL) && !has(TAIL - 1));
    }
}
