//! `tollgate bench chain`: measures the cost of a chain's filters without a network.
//!
//! `args` is the command line, `sample` prepares the requests, `drive` passes one through the chain as `exchange` does, `timed`
//! wraps each filter and measures its calls, `report` shows the results. This file runs the requests.
//!
//! The same instances form two chains: a bare one, as in production, and one whose filters are
//! [`Timed`]. Slices of requests pass through the two alternately, so that disturbances of the machine affect both. On the
//! bare chain only the whole request is timed, from the head at the first filter to the end of the stream; creating and
//! dropping the stream is not. The cost of reading the clock is subtracted from all times, see [`timed::clock`].

mod args;
mod drive;
mod report;
mod sample;
#[cfg(test)]
mod tests;
mod timed;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io::{IsTerminal, Write},
    path::Path,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tokio::task::LocalSet;

use crate::{
    chain::{Chain, Filter, ResponseHead, Route},
    config::{Diagnostics, model::Protocol},
    control::snapshot::{BuildMode, Built, SnapshotBuilder},
    observe::{Shard, set_shard},
    snapshot::{ListenerParts, Snapshot},
    upstream::{PoolOptions, Pools},
    wasm::{InstanceSupply, Plugin, Vm, VmBinding, VmTemplate},
};
pub use args::ChainArgs;
use drive::{Driver, Ending};
use report::{EndingReport, FilterReport, PhaseFigures, PhaseReport, Report, Sums, plural, rounded};
use sample::{Sample, Workload};
use timed::{Timed, Times, clock};

/// Duration of the warm-up, in which caches, branch predictors and the guests' memory settle.
const WARM_UP: Duration = Duration::from_millis(300);

/// Duration of the measurement if the number of requests is not given.
const TARGET: Duration = Duration::from_secs(2);

/// The number of requests that pass through one chain before the other one's turn.
const SLICE: u64 = 256;

/// Runs `tollgate bench chain`, and writes the report to stdout.
pub fn run(args: &ChainArgs) -> anyhow::Result<()> {
    // Read before the run: an error afterwards would lose the result.
    let baseline = args.baseline.as_deref().map(read_baseline).transpose()?;
    let wanted = sample::asked(args)?;
    let made = match load(&args.file)? {
        Ok(made) => made,
        Err(wrong) => {
            eprint!("{}", wrong.render(wants_colour(&std::io::stderr())));
            bail!("the configuration cannot be used");
        }
    };
    let mut report = measure(made, args, wanted, WARM_UP)?;
    if let Some(baseline) = &baseline {
        report.compare(baseline);
    }
    let mut stdout = std::io::stdout();
    let text =
        if args.json { serde_json::to_string_pretty(&report)? + "\n" } else { report.text(wants_colour(&stdout)) };
    stdout.write_all(text.as_bytes()).context("cannot write the report to stdout")
}

fn wants_colour(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

fn read_baseline(file: &Path) -> anyhow::Result<Report> {
    let text = std::fs::read(file).with_context(|| format!("--baseline {}: cannot read the file", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("--baseline {}: not a result of --json", file.display()))
}

/// Creates the filters of a configuration, as the proxy does at startup.
fn load(file: &Path) -> anyhow::Result<Result<Built, Diagnostics>> {
    let mut loaded = match crate::control::load::load(file) {
        Ok(loaded) => loaded,
        Err(wrong) => return Ok(Err(wrong)),
    };
    eprint!("{}", loaded.warnings.render(wants_colour(&std::io::stderr())));
    // Synthetic requests must not be logged.
    loaded.config.listeners.iter_mut().for_each(|listener| Arc::make_mut(listener).access_log = None);
    let (compiler, wrong) = crate::control::load::compiler(&loaded)?;
    if let Some(wrong) = wrong {
        let wrong = Diagnostics::new(loaded.source.clone(), vec![wrong]);
        if wrong.has_errors() {
            return Ok(Err(wrong));
        }
        eprint!("{}", wrong.render(wants_colour(&std::io::stderr())));
    }
    let builder = SnapshotBuilder::new(1, compiler)?;
    Ok(builder.build(loaded, None, BuildMode::Trial))
}

fn listener<'s>(snapshot: &'s Snapshot, name: Option<&str>) -> anyhow::Result<&'s Arc<ListenerParts>> {
    let mut all = snapshot.listeners.iter();
    let found = match name {
        Some(name) => all.find(|l| l.config.name == name),
        None => all.next(),
    };
    let names = || snapshot.listeners.iter().map(|l| l.config.name.as_str()).collect::<Vec<_>>().join(", ");
    let found = found.with_context(|| format!("there is no such listener; use one of {}", names()))?;
    ensure!(
        found.config.protocol != Protocol::Tcp,
        "listener `{}` is for TCP connections, but the benchmark sends HTTP requests: choose another with --listener",
        found.config.name
    );
    ensure!(!found.config.chain.is_empty(), "the chain of listener `{}` is empty", found.config.name);
    Ok(found)
}

/// Runs the requests on a listener's chain, and on the chain of a second listener, if one is given.
fn measure(made: Built, args: &ChainArgs, workload: Workload, warm_up: Duration) -> anyhow::Result<Report> {
    let Built { snapshot, vms, .. } = made;
    set_shard(Shard::worker(0));
    // Filters spawn tasks for their ticks, timers and callouts. These tasks never run here, so nothing waits or is sent.
    let tasks = LocalSet::new();
    let _inside = tasks.enter();

    let failed: Rc<RefCell<Option<Arc<VmTemplate>>>> = Rc::default();
    let note = failed.clone();
    let binding = VmBinding {
        upstream: Pools::new(PoolOptions::default()),
        supply: InstanceSupply::new(move |order| *note.borrow_mut() = Some(order.template)),
    };
    let instances = vms.into_iter().flat_map(|(template, instances)| Some((template, instances.into_iter().next()?)));
    let vms: Vec<_> = instances.map(|(template, instance)| Vm::new(template, instance, binding.clone())).collect();
    let filters: Vec<_> = vms.iter().flat_map(Vm::filters).collect();
    let clock = clock();
    let runner = |name: Option<&str>| -> anyhow::Result<Runner> {
        let parts = listener(&snapshot, name)?;
        let config = &parts.config;
        let of = |plugin: &Arc<Plugin>| filters.iter().find(|f| std::ptr::eq(f.plugin(), Arc::as_ptr(plugin))).cloned();
        let filters: Vec<_> = parts.chains.iter().flat_map(|chain| &chain.filters).filter_map(of).collect();
        let timed: Vec<_> = filters.iter().map(|filter| Rc::new(Timed::new(filter.clone(), clock))).collect();
        let chain = |filters: Vec<Rc<dyn Filter>>| Rc::new(Chain::new(filters));
        let mut skipped = workload.skipped;
        let mut samples = Vec::with_capacity(workload.asked.len());
        for asked in &workload.asked {
            match Sample::new(asked.clone(), config) {
                Ok(sample) => samples.push(sample),
                // It was rejected before any filter, as it would be now.
                Err(_) if asked.logged => skipped += 1,
                Err(error) => return Err(error),
            }
        }
        ensure!(!samples.is_empty(), "listener `{}` would reject all requests of the access log", config.name);
        let cluster = config.cluster.as_ref().map(|name| snapshot.directory.handle(name));
        Ok(Runner {
            listener: config.name.clone(),
            samples,
            skipped,
            response: (response_head(args.response_body), vec![0; args.response_body].into()),
            driver: Driver {
                buffered_body: usize::try_from(config.limits.buffered_body.0).unwrap_or(usize::MAX),
                default_route: cluster.map(|cluster| Arc::new(Route::to_cluster(cluster))),
                trailers: args.trailers.then(|| {
                    let name = HeaderName::from_static("x-checksum");
                    HeaderMap::from_iter([(name, HeaderValue::from_static("ab56b4d92b40713acc5af89985d4b786"))])
                }),
            },
            bare: chain(filters.iter().map(|filter| filter.clone() as Rc<dyn Filter>).collect()),
            timed: chain(timed.iter().map(|timed| timed.clone() as Rc<dyn Filter>).collect()),
            filters: timed,
            failed: failed.clone(),
            run: Run::new(clock),
        })
    };
    let mut runners = vec![runner(args.listener.as_deref())?];
    if let Some(beside) = &args.beside {
        runners.push(runner(Some(beside))?);
    }

    let started = Instant::now();
    let mut warm = 0;
    while warm == 0 || started.elapsed() < warm_up {
        let requests = SLICE.min(args.iterations.unwrap_or(SLICE));
        runners.iter_mut().try_for_each(|runner| runner.slice(requests))?;
        warm += requests;
    }
    let as_many_as_fit = || (warm as f64 * TARGET.div_duration_f64(started.elapsed())).ceil() as u64;
    let iterations = args.iterations.unwrap_or_else(as_many_as_fit);
    for runner in &mut runners {
        runner.filters.iter().for_each(|filter| filter.reset());
        runner.run = Run::new(clock);
    }
    let mut done = 0;
    while done < iterations {
        let requests = SLICE.min(iterations - done);
        runners.iter_mut().try_for_each(|runner| runner.slice(requests))?;
        done += requests;
    }
    let mut reports = runners.iter().map(|runner| runner.report(&workload.hash, clock));
    let first = reports.next().context("there is a listener")?;
    Ok(Report { beside: reports.next().map(Box::new), ..first })
}

fn filter_report(filter: &Timed) -> FilterReport {
    let phases = filter.tallies().into_iter().map(|(phase, tally)| {
        let calls = tally.times.len();
        let per_call = |n: u64| rounded(n as f64 / calls as f64);
        let (hostcalls, copied_bytes) = (per_call(tally.hostcalls), per_call(tally.copied));
        PhaseReport { phase, calls, figures: PhaseFigures::new(&tally.times), hostcalls, copied_bytes }
    });
    let phases = phases.collect();
    FilterReport { name: filter.name().to_owned(), memory_bytes: filter.vm().memory_bytes(), phases }
}

/// The fields of an upstream's ordinary response.
fn response_head(body: usize) -> ResponseHead {
    let fields = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::CONTENT_LENGTH, body.into()),
        (header::DATE, HeaderValue::from_static("Thu, 01 Jan 2026 00:00:00 GMT")),
        (header::SERVER, HeaderValue::from_static("upstream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::ETAG, HeaderValue::from_static("\"33a64df551425fcc\"")),
    ];
    ResponseHead { status: StatusCode::OK, fields: fields.into_iter().collect() }
}

/// Reasons why the numbers may be misleading.
fn notes(endings: &[EndingReport], iterations: u64, skipped: usize) -> Vec<String> {
    let mut notes = Vec::new();
    if skipped > 0 {
        notes.push(format!(
            "{} of the access log skipped: rejected clients, connections, and requests that no filter has seen",
            plural(skipped as u64, "line")
        ));
    }
    let share = |wanted: fn(&EndingReport) -> bool| {
        let count: u64 = endings.iter().filter(|e| wanted(e)).map(EndingReport::count).sum();
        count as f64 * 100.0 / iterations as f64
    };
    let early = share(|e| matches!(e, EndingReport::Reply { .. } | EndingReport::Closed { .. }));
    if early > 0.0 {
        notes.push(format!(
            "{early:.1}% of the requests ended before the upstream: later filters saw fewer of them, and they took a \
             different path from the rest; limits count here as in production"
        ));
    }
    let held = share(|e| matches!(e, EndingReport::Held { .. }));
    if held > 0.0 {
        notes.push(format!(
            "{held:.1}% of the requests were held by a filter, for a delay or a callout, and abandoned: \
             they are not in the chain's total"
        ));
    }
    if cfg!(debug_assertions) {
        notes.push(
            "this is a development build; the proxy's own part is many times faster in a release build".to_owned(),
        );
    }
    notes
}

/// Runs requests on a listener's chain.
struct Runner {
    listener: String,
    samples: Vec<Sample>,
    /// The number of skipped lines of the access log.
    skipped: usize,
    response: (ResponseHead, Bytes),
    driver: Driver,
    bare: Rc<Chain>,
    timed: Rc<Chain>,
    /// The filters of the timed chain.
    filters: Vec<Rc<Timed>>,
    /// A filter that has failed, if any.
    failed: Rc<RefCell<Option<Arc<VmTemplate>>>>,
    run: Run,
}

/// The results of the requests so far.
struct Run {
    /// The number of requests on each of the two chains.
    requests: u64,
    /// The times on the bare chain.
    whole: Times,
    /// The endings on the bare chain.
    endings: BTreeMap<Ending, u64>,
}

impl Run {
    fn new(clock: Duration) -> Run {
        Run { requests: 0, whole: Times::new(clock), endings: BTreeMap::new() }
    }
}

impl Runner {
    /// Runs some requests on the bare chain, and then the same on the timed one.
    fn slice(&mut self, requests: u64) -> anyhow::Result<()> {
        // Collects the filters' tasks, so that they do not accumulate.
        let tasks = LocalSet::new();
        let _inside = tasks.enter();
        let turns = self.run.requests..self.run.requests + requests;
        for turn in turns.clone() {
            let (took, ending) = self.request(turn, &self.bare);
            if !matches!(ending, Ending::Held(_)) {
                self.run.whole.record(took);
            }
            *self.run.endings.entry(ending).or_default() += 1;
        }
        for turn in turns {
            self.request(turn, &self.timed);
        }
        self.run.requests += requests;
        match self.failed.borrow().as_ref() {
            None => Ok(()),
            Some(template) => {
                let error = template.plugins()[0].last_error.load_full();
                let error = error.as_ref().map_or("unknown", |e| e.as_str());
                bail!("filter `{}` failed on one of the requests: {error}", template.names())
            }
        }
    }

    fn request(&self, turn: u64, chain: &Rc<Chain>) -> (Duration, Ending) {
        let sample = &self.samples[turn as usize % self.samples.len()];
        let (stream, (head, body)) = (sample.stream(chain), &self.response);
        let mut head = ResponseHead { status: head.status, fields: sample::as_parsed(&head.fields) };
        let start = Instant::now();
        let ending = self.driver.run(&stream, &sample.body, (&mut head, body));
        (start.elapsed(), ending)
    }

    fn report(&self, workload: &str, clock: Duration) -> Report {
        let iterations = self.run.requests;
        let filters: Vec<_> = self.filters.iter().map(|filter| filter_report(filter)).collect();
        let name = |position: usize| self.filters[position].name().to_owned();
        let endings: Vec<_> = self.run.endings.iter().map(|(e, n)| EndingReport::new(*e, *n, name)).collect();
        Report {
            tollgate: env!("CARGO_PKG_VERSION").to_owned(),
            listener: self.listener.clone(),
            requests: self.samples.len(),
            workload: workload.to_owned(),
            iterations,
            clock_ns: clock.as_nanos() as f64,
            total: PhaseFigures::new(&self.run.whole),
            calls: Sums::new(&filters, iterations),
            notes: notes(&endings, iterations, self.skipped),
            endings,
            filters,
            beside: None,
        }
    }
}
