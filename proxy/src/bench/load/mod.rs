//! `tollgate bench load`: an HTTP/1.1 load generator with a constant rate (open loop), so that it reports the latencies
//! that users of the proxy would have seen.
//!
//! `args` checks the command line, `schedule` determines when each request is due, `generator` sends requests over the
//! `connection`s of a thread and counts into `stats`, `progress` collects the counts during the run, `report` and
//! `html` show them. This file starts the threads and decides when they end.

mod args;
mod connection;
mod generator;
mod html;
mod progress;
mod report;
mod schedule;
mod stats;
#[cfg(test)]
mod tests;

use std::{
    io::{IsTerminal, Write},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, anyhow, bail, ensure};
use tokio::{
    sync::{Semaphore, mpsc as async_mpsc, watch},
    time,
};

pub use args::{Expected, LoadArgs, Target};
use args::{Mode, Plan};
use generator::{Finished, Job};
use progress::Observer;
use report::Report;
use schedule::{Pacer, Schedule};
use stats::Stats;

/// Time from "all threads are ready" to the first request, so that the threads can wake up.
const START_DELAY: Duration = Duration::from_millis(10);

/// How long an interrupted run waits for in-flight requests.
const INTERRUPT_GRACE: Duration = Duration::from_secs(1);

/// Runs `tollgate bench load`: sends the load, and writes the report to stdout.
///
/// An error means that the load could not be sent at all or, with `--fail-on-error`, that a request failed; the report
/// is written in the second case too.
pub fn run(args: LoadArgs) -> anyhow::Result<()> {
    let plan = Arc::new(Plan::new(&args)?);
    if let Some(file) = &args.html {
        // Checked before the run: an error afterwards would lose the result.
        std::fs::write(file, "").with_context(|| format!("--html {}: cannot write the file", file.display()))?;
    }
    let report = measure(&plan)?;
    if let Some(file) = &args.html {
        std::fs::write(file, html::page(&report))
            .with_context(|| format!("--html {}: cannot write the file", file.display()))?;
    }
    let mut stdout = std::io::stdout();
    let text = if args.json {
        serde_json::to_string_pretty(&report.json())? + "\n"
    } else {
        report.text(stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()))
    };
    stdout.write_all(text.as_bytes()).context("cannot write the report to stdout")?;
    let failed = report.failed();
    ensure!(!args.fail_on_error || failed == 0, "{failed} of {} requests failed", report.attempted());
    Ok(())
}

/// The threads of a run.
struct Crew {
    generators: Vec<thread::JoinHandle<anyhow::Result<Finished>>>,
    stats: Vec<Arc<Mutex<Stats>>>,
    paces: Vec<(Schedule, Arc<Semaphore>)>,
    pacers: Vec<Pacer>,
    stop: Arc<AtomicBool>,
    cut: watch::Sender<bool>,
    /// Ends when the last generator thread does.
    finished: async_mpsc::UnboundedReceiver<()>,
}

fn measure(plan: &Arc<Plan>) -> anyhow::Result<Report> {
    // First, so that a run that cannot be supervised does not start.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let started = SystemTime::now();
    let (mut crew, t0) = start(plan)?;
    let mut observer = Observer::new(plan.clone(), t0, crew.stats.clone());
    let interrupted = runtime.block_on(supervise(plan, &mut crew, &mut observer, t0));

    let released: Vec<_> = crew.pacers.into_iter().map(Pacer::join).collect();
    let (mut due, mut unsent, mut abandoned, mut usage) = (0, 0, 0, Vec::new());
    for (k, generator) in crew.generators.into_iter().enumerate() {
        let finished = generator.join().map_err(|_| anyhow!("a generator thread panicked"))??;
        if let (Some((schedule, _)), Some(released)) = (crew.paces.get(k), released.get(k)) {
            let warm = schedule.before(plan.warmup);
            due += released.saturating_sub(warm);
            unsent += released.saturating_sub(finished.taken.max(warm));
        }
        abandoned += finished.abandoned;
        usage.extend(finished.usage);
    }
    let (stats, series) = observer.finish();
    let measured = interrupted.map_or(plan.duration, |at| at.saturating_sub(plan.warmup).min(plan.duration));
    ensure!(!measured.is_zero(), "interrupted during the warm-up: nothing was measured");
    let elapsed = measured.max(stats.last.saturating_sub(plan.warmup));
    let interrupted = interrupted.is_some();
    Ok(Report { plan: plan.clone(), started, stats, series, elapsed, interrupted, due, unsent, abandoned, usage })
}

/// Opens the connections, and starts the run.
fn start(plan: &Arc<Plan>) -> anyhow::Result<(Crew, Instant)> {
    let paces: Vec<_> = match plan.mode {
        Mode::Saturate => Vec::new(),
        Mode::Rate(rate) => (0..plan.threads)
            .map(|k| (Schedule::new(rate, plan.total(), k, plan.threads), Arc::new(Semaphore::new(0))))
            .collect(),
    };
    if let Mode::Rate(rate) = plan.mode {
        ensure!(
            paces.iter().any(|(s, _)| s.len() > s.before(plan.warmup)),
            "--rate {rate}: no request is due in --duration {:?}",
            plan.duration
        );
    }
    let (ready, readiness) = mpsc::channel();
    let (cut, cut_seen) = watch::channel(false);
    let (alive, finished) = async_mpsc::unbounded_channel();
    let stop = Arc::new(AtomicBool::new(false));
    let (mut generators, mut stats, mut starts) = (Vec::new(), Vec::new(), Vec::new());
    for k in 0..plan.threads {
        let counts = Arc::new(Mutex::new(Stats::default()));
        let (start, wait) = mpsc::channel();
        let job = Job {
            plan: plan.clone(),
            // The remainder goes to the first threads.
            connections: plan.connections / plan.threads + usize::from(k < plan.connections % plan.threads),
            pace: paces.get(k).cloned(),
            stats: counts.clone(),
            ready: ready.clone(),
            start: wait,
            stop: stop.clone(),
            cut: cut_seen.clone(),
        };
        let alive = alive.clone();
        generators.push(thread::Builder::new().name(format!("load-{k}")).spawn(move || {
            let _alive = alive;
            generator::generate(job)
        })?);
        stats.push(counts);
        starts.push(start);
    }
    drop((ready, alive));

    let (mut open, mut first_error): (usize, Option<String>) = (0, None);
    for ready in readiness.iter().take(plan.threads) {
        open += ready.open;
        first_error = first_error.or(ready.first_error);
    }
    if open == 0 {
        let mut why = first_error.unwrap_or_else(|| "no thread could start".into());
        if plan.tls.is_some() && why.contains("certificate") {
            why += " (trust its authority with --cacert, or accept any certificate with --insecure)";
        }
        bail!("cannot connect to {}: {why}", plan.url);
    }
    if let Some(e) = first_error {
        let warning = format!("warning: only {open} of {} connections could be opened: {e}", plan.connections);
        let _ = writeln!(std::io::stderr(), "{warning}");
    }
    let t0 = Instant::now() + START_DELAY;
    for start in starts {
        // If a thread has ended, joining it returns the reason.
        let _ = start.send(t0);
    }
    let pacers = paces.iter().map(|(s, p)| Pacer::start(*s, t0, p.clone())).collect::<Result<_, _>>()?;
    Ok((Crew { generators, stats, paces, pacers, stop, cut, finished }, t0))
}

impl Crew {
    /// Stops sending requests, whether due or not.
    fn close(&self) {
        self.stop.store(true, Ordering::Release);
        self.pacers.iter().for_each(Pacer::stop);
        self.paces.iter().for_each(|(_, permits)| permits.close());
    }
}

/// Supervises the run until all generator threads have ended. Returns the time of an interrupt, if there was one.
async fn supervise(plan: &Plan, crew: &mut Crew, observer: &mut Observer, t0: Instant) -> Option<Duration> {
    let mut interrupted = None;
    let mut closed = false;
    let mut cut_at = None;
    // Requests that are overdue at the end are still sent until this time; the remaining ones count as unsent.
    let drained = t0 + plan.total() + plan.timeout;
    loop {
        let cut = cut_at.unwrap_or(drained);
        tokio::select! {
            _ = crew.finished.recv() => return interrupted,
            () = time::sleep_until(observer.next_tick().into()) => observer.tick(),
            () = time::sleep_until(drained.into()), if !closed => {
                closed = true;
                crew.close();
            }
            () = time::sleep_until(cut.into()), if cut_at.is_some() => {
                cut_at = None;
                let _ = crew.cut.send(true);
            }
            Ok(()) = tokio::signal::ctrl_c(), if interrupted.is_none() => {
                interrupted = Some(t0.elapsed());
                closed = true;
                crew.close();
                cut_at = Some(Instant::now() + INTERRUPT_GRACE);
            }
        }
    }
}
