//! A generator thread and its connections, each a task that takes the next request when one is due, sends it and
//! records the outcome.

use std::{
    cell::{Cell, RefCell},
    pin::{Pin, pin},
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use tokio::{
    runtime::{Builder, LocalOptions},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{self, Sleep},
};

use super::{
    args::Plan,
    connection::{Answer, Link},
    schedule::Schedule,
    stats::{Failure, Outcome, Stats, Times},
};

/// Delay after a failed connection attempt without a rate, so that an unreachable server does not keep a processor busy.
const BACKOFF: Duration = Duration::from_millis(10);

/// The input of a generator thread.
pub(super) struct Job {
    pub(super) plan: Arc<Plan>,
    pub(super) connections: usize,
    /// The requests to send and the permits for those that are due; none in a closed loop.
    pub(super) pace: Option<(Schedule, Arc<Semaphore>)>,
    pub(super) stats: Arc<Mutex<Stats>>,
    /// Receives the result of opening the connections.
    pub(super) ready: mpsc::Sender<Ready>,
    /// Sends the time to start; no thread starts before all are ready.
    pub(super) start: mpsc::Receiver<Instant>,
    /// Set to stop sending new requests.
    pub(super) stop: Arc<AtomicBool>,
    /// Set to stop waiting for in-flight requests.
    pub(super) cut: watch::Receiver<bool>,
}

/// The result of opening a thread's connections.
pub(super) struct Ready {
    pub(super) open: usize,
    pub(super) first_error: Option<String>,
}

/// The result of a generator thread, apart from the statistics.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Finished {
    /// The number of requests of its schedule that it took.
    pub(super) taken: u64,
    /// The number of requests abandoned because the run was interrupted.
    pub(super) abandoned: u64,
    /// The processor time that it used.
    pub(super) usage: Option<Usage>,
}

/// A thread's use of the processor during the measurement, as shares of the elapsed time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    /// The thread ran.
    pub(super) busy: f64,
    /// The thread was runnable, but no processor was free.
    pub(super) starved: f64,
}

/// State shared by the connections of a thread.
struct Shared {
    plan: Arc<Plan>,
    pace: Option<(Schedule, Arc<Semaphore>)>,
    stats: Arc<Mutex<Stats>>,
    stop: Arc<AtomicBool>,
    t0: Instant,
    next: Cell<u64>,
    in_flight: Cell<u64>,
}

/// A connection's next step.
enum Next {
    /// Send the request that was due at this time.
    Send(Duration),
    /// The connection has ended: open a new one.
    Reopen,
    Finish,
}

/// Runs a generator thread.
pub(super) fn generate(job: Job) -> anyhow::Result<Finished> {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    let (links, ready) = runtime.block_on(open_all(&job));
    // If the receiver is gone or no start arrives, the run was cancelled.
    let _ = job.ready.send(ready);
    let Ok(t0) = job.start.recv() else { return Ok(Finished::default()) };
    let shared = Rc::new(Shared {
        plan: job.plan,
        pace: job.pace,
        stats: job.stats,
        stop: job.stop,
        t0,
        next: Cell::new(0),
        in_flight: Cell::new(0),
    });
    if let Some((schedule, permits)) = &shared.pace
        && schedule.len() == 0
    {
        permits.close();
    }
    let usage = runtime.block_on(run(&shared, links, job.cut));
    Ok(Finished { taken: shared.next.get(), abandoned: shared.in_flight.get(), usage })
}

async fn open_all(job: &Job) -> (Vec<Option<Link>>, Ready) {
    let mut attempts = JoinSet::new();
    for _ in 0..job.connections {
        let (plan, stats) = (job.plan.clone(), job.stats.clone());
        attempts.spawn_local(async move { open(&plan, &stats).await });
    }
    let mut links = Vec::with_capacity(job.connections);
    let mut ready = Ready { open: 0, first_error: None };
    while let Some(attempt) = attempts.join_next().await {
        match attempt {
            Ok(Ok(link)) => {
                ready.open += 1;
                links.push(Some(link));
            }
            Ok(Err(e)) => {
                ready.first_error.get_or_insert(e);
                links.push(None);
            }
            Err(_) => links.push(None),
        }
    }
    (links, ready)
}

async fn open(plan: &Plan, stats: &Mutex<Stats>) -> Result<Link, String> {
    match time::timeout(plan.timeout, Link::open(plan)).await {
        Ok(Ok(link)) => {
            stats.lock().unwrap_or_else(PoisonError::into_inner).connections += 1;
            Ok(link)
        }
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err(format!("no connection within {:?}", plan.timeout)),
    }
}

async fn run(shared: &Rc<Shared>, links: Vec<Option<Link>>, mut cut: watch::Receiver<bool>) -> Option<Usage> {
    let meter = Rc::new(RefCell::new(Meter::default()));
    let mut connections = JoinSet::new();
    for link in links {
        connections.spawn_local(connection(shared.clone(), link));
    }
    let (reader, t0, plan) = (meter.clone(), shared.t0, shared.plan.clone());
    let metering = tokio::task::spawn_local(async move {
        time::sleep_until((t0 + plan.warmup).into()).await;
        reader.borrow_mut().read();
        time::sleep_until((t0 + plan.total()).into()).await;
        reader.borrow_mut().read();
    });
    tokio::select! {
        () = join_all(&mut connections) => {}
        // An error means that the sender is gone, which also ends the run.
        _ = cut.wait_for(|cut| *cut) => {}
    }
    if !metering.is_finished() {
        // Ended early: use the measurements so far.
        metering.abort();
        meter.borrow_mut().read();
    }
    meter.borrow().usage()
}

async fn join_all(connections: &mut JoinSet<()>) {
    while let Some(end) = connections.join_next().await {
        // Without this connection, the result would look valid but be wrong.
        if let Err(e) = end
            && e.is_panic()
        {
            std::panic::resume_unwind(e.into_panic());
        }
    }
}

/// The task of one connection.
async fn connection(shared: Rc<Shared>, mut link: Option<Link>) {
    if shared.pace.is_none() {
        time::sleep_until(shared.t0.into()).await;
    }
    // One timer for all requests: moving it later costs tokio next to nothing.
    let mut timer = pin!(time::sleep(shared.plan.timeout));
    loop {
        let free = shared.elapsed();
        let due = match next(&shared, &mut link).await {
            Next::Send(due) => due,
            Next::Reopen => {
                // If this fails, the next request on this connection tries again, and counts the failure.
                link = open(&shared.plan, &shared.stats).await.ok();
                continue;
            }
            Next::Finish => return,
        };
        shared.in_flight.set(shared.in_flight.get() + 1);
        let outcome = perform(&shared, &mut link, due, free, timer.as_mut()).await;
        shared.in_flight.set(shared.in_flight.get() - 1);
        let unconnected = matches!(outcome.failure, Some((Failure::Connect, _)));
        if due >= shared.plan.warmup {
            shared.stats.lock().unwrap_or_else(PoisonError::into_inner).record(outcome);
        }
        if unconnected && shared.pace.is_none() {
            time::sleep(BACKOFF).await;
        } else if !unconnected && link.is_none() {
            link = open(&shared.plan, &shared.stats).await.ok();
        }
    }
}

async fn next(shared: &Shared, link: &mut Option<Link>) -> Next {
    if let Some(link) = link
        && !link.ready().await
    {
        return Next::Reopen;
    }
    let Some((schedule, permits)) = &shared.pace else {
        let now = shared.elapsed();
        let over = now >= shared.plan.total() || shared.stop.load(Ordering::Acquire);
        return if over { Next::Finish } else { Next::Send(now) };
    };
    let permit = match link {
        None => permits.acquire().await,
        Some(link) => match link.idle_until(permits.acquire()).await {
            Some(permit) => permit,
            None => return Next::Reopen,
        },
    };
    match permit {
        Err(_) => Next::Finish,
        Ok(permit) => {
            permit.forget();
            let j = shared.next.get();
            shared.next.set(j + 1);
            if j + 1 == schedule.len() {
                // This was the last request: the other connections need not wait.
                permits.close();
            }
            Next::Send(schedule.at(j))
        }
    }
}

/// Sends one request, on a new connection if there is none. Afterwards the link is `None` if it cannot be reused.
async fn perform(
    shared: &Shared,
    link: &mut Option<Link>,
    due: Duration,
    free: Duration,
    mut timer: Pin<&mut Sleep>,
) -> Outcome {
    let plan = &*shared.plan;
    let taken = shared.elapsed();
    let mut answer = Answer::default();
    let mut request = plan.request.clone();
    let (sent, reused) = loop {
        let open_link = match link {
            Some(link) => link,
            None => match open(plan, &shared.stats).await {
                Ok(opened) => link.insert(opened),
                Err(e) => {
                    answer.failure = Some((Failure::Connect, e));
                    break (taken, false);
                }
            },
        };
        let (sent, reused) = (shared.elapsed(), open_link.used);
        timer.as_mut().reset((shared.t0 + sent + plan.timeout).into());
        let unsent = tokio::select! {
            biased;
            unsent = open_link.exchange(request, plan.tally.as_ref(), &mut answer) => unsent,
            () = timer.as_mut() => {
                answer.failure = Some((Failure::Timeout, format!("no complete response within {:?}", plan.timeout)));
                None
            }
        };
        match unsent {
            // The server closed the idle connection, and hyper noticed before it wrote anything: sending the request
            // on a new connection is not a retry. A partly written request never gets here.
            Some(unsent) if reused => {
                *link = None;
                answer = Answer::default();
                request = unsent;
            }
            _ => break (sent, reused),
        }
    };
    let times = Times { due, free, taken, sent, done: shared.elapsed() };
    if answer.failure.is_some() {
        *link = None;
    } else if let Some(status) = answer.status
        && !plan.is_success(status)
    {
        answer.failure = Some((Failure::Status, format!("status {status}")));
    }
    let Answer { status, tally, bytes, failure } = answer;
    Outcome { times, status, failure, bytes, reused, tally }
}

impl Shared {
    fn elapsed(&self) -> Duration {
        self.t0.elapsed()
    }
}

/// Reads the processor time of this thread, which only Linux provides.
#[derive(Default)]
struct Meter {
    readings: Vec<(Instant, f64, f64)>,
}

impl Meter {
    fn read(&mut self) {
        let Ok(text) = std::fs::read_to_string("/proc/thread-self/schedstat") else { return };
        let mut numbers = text.split_whitespace().map_while(|n| n.parse::<f64>().ok());
        if let (Some(ran), Some(waited)) = (numbers.next(), numbers.next()) {
            self.readings.push((Instant::now(), ran * 1e-9, waited * 1e-9));
        }
    }

    fn usage(&self) -> Option<Usage> {
        let ((t1, ran1, waited1), (t2, ran2, waited2)) = (self.readings.first()?, self.readings.last()?);
        let passed = t2.duration_since(*t1).as_secs_f64();
        // The kernel counts in ticks: the shares are meaningless over less than a few of them.
        (passed >= 0.1).then(|| Usage { busy: (ran2 - ran1) / passed, starved: (waited2 - waited1) / passed })
    }
}
