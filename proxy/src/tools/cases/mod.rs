//! `tollgate test`: runs a module in the real host against a file of cases, without a network.
//!
//! A case consists of a configuration of the filter, scripted clusters, requests, and expectations. [`load`] reads the
//! file ([`model`], [`want`]), [`world`] builds what a worker has, [`client`] sends requests to it, [`script`] plays
//! the clusters, [`observer`] and [`logs`] record, [`check`] compares, [`report`] prints.
//!
//! The production code runs, from the request head to the access log's fields, with pipes instead of sockets. Time is
//! the runtime's paused clock: it jumps to the next timer when nothing else is left to do, so that a case takes no
//! longer than its work, and always runs the same way.

mod check;
mod client;
mod load;
mod logs;
mod model;
mod observer;
mod report;
mod script;
mod want;
mod world;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::Context;
use clap::Args;
use tokio::{
    task::LocalSet,
    time::{Instant, sleep},
};
use tollgate_abi::fast::phase;

use self::{
    check::{Failure, Happened, check},
    load::Loaded,
    logs::Logs,
    model::{Answer, Case, List, Step},
    report::{Outcome, StepOutcome},
    script::Script,
    want::Want,
    world::World,
};
use super::{Paint, engine, module_name, read_module};
use crate::{
    config::model::{Compile, Filter},
    observe::{Shard, set_shard},
    wasm::{CompiledModule, Engine, InstantiateError},
};

/// The cluster for requests that no filter routes. It always exists, and answers with an empty 200.
const UPSTREAM: &str = "upstream";

/// A fixed seed, so that random choices are the same in every run.
const SEED: u64 = 1;

/// The command line.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// The module: a file, or `builtin:NAME` for a built-in filter.
    filter: String,
    /// The file of cases: YAML, JSON or TOML, by its extension; see docs/tools.md.
    cases: PathBuf,
    /// Run only the cases whose name contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the cases and prints the results. Fails if a case fails.
pub fn run(args: &TestArgs) -> anyhow::Result<ExitCode> {
    let bytes = read_module(&args.filter)?;
    let mut loaded = load::load(&args.cases, &module_name(&args.filter))?;
    let engine = engine()?;
    let code = CompiledModule::load(&engine, &args.filter, &bytes, &Compile::default())?;
    set_shard(Shard::worker(0));

    let cases = std::mem::take(&mut loaded.cases);
    let wanted = |case: &Case| args.only.as_ref().is_none_or(|only| case.name.contains(only.as_str()));
    let run = |(index, case)| run_case(&engine, &code, &loaded, index, case);
    let outcomes = cases.iter().enumerate().filter(|(_, case)| wanted(case)).map(run);
    let outcomes = outcomes.collect::<anyhow::Result<Vec<_>>>()?;
    anyhow::ensure!(!outcomes.is_empty(), "{}: no case matches", args.cases.display());
    match args.json {
        true => println!("{:#}", report::json(&loaded.source, &outcomes)),
        false => print!("{}", report::text(&loaded.source, &outcomes, Paint::stdout())),
    }
    Ok(if outcomes.iter().all(Outcome::passed) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a case in its own runtime, which has its own clock.
fn run_case(
    engine: &Arc<Engine>,
    code: &Arc<CompiledModule>,
    loaded: &Loaded,
    index: usize,
    case: &Case,
) -> anyhow::Result<Outcome> {
    fastrand::seed(SEED);
    let (logs, _guard) = Logs::catch();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.context("cannot create a runtime")?;
    let tasks = LocalSet::new();
    let steps = tasks.block_on(&runtime, run_steps(engine, code, loaded, (index, case), &logs));
    let steps = steps.with_context(|| format!("case `{}`", case.name))?;
    Ok(Outcome { name: case.name.clone(), steps })
}

async fn run_steps(
    engine: &Arc<Engine>,
    code: &Arc<CompiledModule>,
    loaded: &Loaded,
    (index, case): (usize, &Case),
    logs: &Logs,
) -> anyhow::Result<Vec<StepOutcome>> {
    let default = (UPSTREAM.to_owned(), List(vec![Answer::default()]));
    let clusters = std::iter::once((&default.0, &default.1)).chain(&loaded.file.clusters).chain(&case.clusters);
    let script = Script::new(clusters);
    let mut filter: Filter = loaded.filter.clone();
    filter.config = case.config.as_ref().map_or(filter.config, Into::into);
    let (template, clusters, registry, configured) = world::configure(engine, code, &filter, &script)?;
    let configured = match (configured, &case.refused) {
        (Ok(instance), None) => {
            let phases = instance.phases(0);
            anyhow::ensure!(
                phases & phase::TCP == 0 || phases & phase::HTTP != 0,
                "TCP filters cannot be tested with cases: use the SDK's `TcpHost` for native tests"
            );
            instance
        }
        (Ok(_), Some(want)) => {
            let failure = of_config(format!("/cases/{index}/refused"), "", &want.to_string(), "it was accepted");
            return Ok(vec![configuring(vec![failure], logs)]);
        }
        (Err(error), want) => {
            return Ok(refused(error, want.as_ref(), index, case, logs).into_iter().collect());
        }
    };
    let world = World::new(loaded, (template, configured), &clusters, script, registry)?;
    let mut outcomes = Vec::new();
    for (n, step) in case.steps.iter().enumerate() {
        let (title, happened) = take(step, &world, logs).await.with_context(|| format!("step {}", n + 1))?;
        let failures = check(&format!("/cases/{index}/steps/{n}/expect"), &step.expect, &happened);
        outcomes.push(StepOutcome { title, failures, logs: happened.logs });
    }
    Ok(outcomes)
}

/// Runs one step.
async fn take(step: &Step, world: &World, logs: &Logs) -> anyhow::Result<(String, Happened)> {
    let start = Instant::now();
    let (title, got) = match (&step.request, step.wait) {
        (Some(request), _) => {
            let title = format!("{} {}", request.method, request.path);
            (title, Some(client::send(&world.context, world.local, request).await?))
        }
        (None, wait) => {
            let wait = wait.map_or(std::time::Duration::ZERO, |wait| wait.0);
            sleep(wait).await;
            (format!("wait {} ms", wait.as_millis()), None)
        }
    };
    let happened = Happened {
        got,
        took: start.elapsed(),
        ended: world.observer.take(),
        arrived: world.script.take_arrived(),
        logs: logs.take(),
        metrics: world.registry.render(),
    };
    Ok((title, happened))
}

/// Handles a rejected configuration. Returns `None` if that was expected.
fn refused(
    error: InstantiateError,
    want: Option<&Want>,
    index: usize,
    case: &Case,
    logs: &Logs,
) -> Option<StepOutcome> {
    let mistakes = match error {
        InstantiateError::Config(mistakes) => mistakes,
        other => vec![(String::new(), other.to_string())],
    };
    let failures: Vec<_> = match want {
        Some(want) => {
            let line = |(path, message): &(String, String)| match path.is_empty() {
                true => message.clone(),
                false => format!("{path}: {message}"),
            };
            let said = mistakes.iter().map(line).collect::<Vec<_>>().join("\n");
            if want.is_in(&said) {
                return None;
            }
            vec![of_config(format!("/cases/{index}/refused"), "", &want.to_string(), &said)]
        }
        None => {
            let own = case.config.is_some();
            let pointer = || if own { format!("/cases/{index}/config") } else { "/filter/config".to_owned() };
            mistakes.iter().map(|(path, message)| of_config(pointer(), path, "it is accepted", message)).collect()
        }
    };
    Some(configuring(failures, logs))
}

/// Creates the failure of an expectation of a configuration.
fn of_config(pointer: String, inner: &str, expected: &str, actual: &str) -> Failure {
    let what = if inner.is_empty() { "config".to_owned() } else { format!("config.{inner}") };
    Failure { pointer, inner: inner.to_owned(), what, expected: expected.to_owned(), actual: actual.to_owned() }
}

fn configuring(failures: Vec<Failure>, logs: &Logs) -> StepOutcome {
    StepOutcome { title: "configuring".to_owned(), failures, logs: logs.take() }
}
