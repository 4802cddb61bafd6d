//! Compares Tollgate with nginx, HAProxy and Envoy on this machine: what a request costs each of them, in several scenarios.
//! `tests/peers/run.sh` builds what is needed and runs it; docs/performance.md shows the results and says how they are made.

mod args;
mod connect;
mod document;
mod load;
mod machine;
mod plot;
mod process;
mod results;
mod run;
mod scenario;
mod scenarios;
mod stats;
mod targets;
mod template;
mod tls;
mod tools;
mod usage;

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Parser;

use args::Args;
use machine::{Made, Places};
use results::{Measured, Results, Row, Run};
use run::Bench;
use scenario::{Scenario, Subject};
use tools::Tools;
use usage::Others;

/// So many processors may be taken by others before a run is worth repeating.
const DISTURBED: f64 = 0.2;

fn main() -> anyhow::Result<()> {
    let mut words = std::env::args_os();
    if words.nth(1).is_some_and(|word| word == "connect") {
        return connect::run(&connect::ConnectArgs::parse_from(["connect".into()].into_iter().chain(words)));
    }
    let args = Args::parse();
    let scenarios = scenarios::all();
    if args.list {
        scenarios.iter().for_each(|s| println!("{:12} {}: {}", s.name, s.title, s.about));
        return Ok(());
    }
    for name in &args.scenarios {
        let known = || scenarios.iter().map(|s| s.name).collect::<Vec<_>>().join(", ");
        ensure!(scenarios.iter().any(|s| s.name == name), "there is no scenario `{name}`, only {}", known());
    }
    let folder = args.docs.join("performance");
    let file = folder.join("results.json");
    let mut results = Results::read(&file)?;
    if args.write {
        return document::write(&args.docs, &scenarios, &results);
    }

    let (rounds, seconds) = args.extent();
    let tools = Tools::find(&args)?;
    let made = Made::now(args.commit.as_deref(), rounds, seconds, tools.versions());
    let bench = Bench::new(tools, &args.work, seconds, args.smoke)?;
    say_places()?;
    let mut failed = false;
    let mut patience = Duration::from_secs(if args.smoke { 0 } else { args.patience });
    for scenario in scenarios.iter().filter(|s| args.scenarios.is_empty() || args.scenarios.iter().any(|n| n == s.name))
    {
        let rows = measure(&bench, scenario, rounds.min(scenario.work.most_rounds()), &mut patience);
        failed |= rows.iter().any(|row| row.runs.contains(&None));
        results.scenarios.insert(scenario.name.into(), Measured { made: made.clone(), rows });
        // After each, so that nothing is lost if a later one is broken off.
        if args.keeps() {
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            results.write(&file)?;
            document::write(&args.docs, &scenarios, &results)?;
        }
    }
    ensure!(!failed, "some runs have failed; what the last one has written is in {}", args.work.join("run").display());
    bench.clean_up();
    Ok(())
}

fn say_places() -> anyhow::Result<()> {
    let places = Places::of(1)?;
    eprintln!("processors: proxy {}, load generator {}, backend {}", places.proxy, places.load, places.backend);
    if places.proxy == places.load {
        eprintln!("!!! There is only one processor: the load generator slows down what it measures.");
    }
    Ok(())
}

/// All rounds of a scenario: each proxy once in every round.
fn measure(bench: &Bench, scenario: &Scenario, rounds: u32, patience: &mut Duration) -> Vec<Row> {
    eprintln!("\n== {}: {}", scenario.name, scenario.title);
    let (subjects, missing): (Vec<_>, Vec<_>) =
        scenario.subjects.iter().map(|subject| (subject, bench.missing(subject))).partition(|(_, why)| why.is_none());
    for (subject, why) in missing {
        eprintln!("!!! {} is left out: {}.", subject.label, why.unwrap_or_default());
    }
    let subjects: Vec<&Subject> = subjects.into_iter().map(|(subject, _)| subject).collect();
    let row = |subject: &&Subject| Row { label: subject.label.clone(), number: subject.repeat, runs: Vec::new() };
    let mut rows: Vec<Row> = subjects.iter().map(row).collect();
    for round in 1..=rounds {
        for (subject, row) in subjects.iter().zip(&mut rows) {
            let run = patient(bench, scenario, subject, patience);
            match &run {
                Ok(figures) => eprintln!("{round}/{rounds} {:32} {}", subject.label, shown(scenario, figures)),
                Err(e) => eprintln!("!!! {round}/{rounds} {}: {e:#}", subject.label),
            }
            row.runs.push(run.ok());
        }
    }
    rows
}

/// Measures when the machine is quiet, and again if it was not, as long as there is patience for it.
fn patient(bench: &Bench, scenario: &Scenario, subject: &Subject, patience: &mut Duration) -> anyhow::Result<Run> {
    let mut best: Option<Run> = None;
    loop {
        let begun = Instant::now();
        while begun.elapsed() < *patience && disturbed_now() {}
        *patience = patience.saturating_sub(begun.elapsed());

        let (begun, others) = (Instant::now(), Others::watch());
        let run = bench.run(subject, scenario.work);
        let others = others.processors();
        let (quiet, last) = (others <= DISTURBED, begun.elapsed() > *patience);
        match run {
            Ok(mut run) => {
                run.insert("others".into(), (others * 100.0).round() / 100.0);
                if best.as_ref().is_none_or(|best| others < best["others"]) {
                    best = Some(run);
                }
            }
            // A slow machine misses rates, and of 64 bodies of 1 MiB at a time it may send none within a second.
            Err(e) if quiet || (last && best.is_none()) => return Err(e),
            Err(e) => eprintln!("    {}: {e:#}", subject.label),
        }
        if quiet || last {
            return best.context("a run");
        }
        eprintln!("    {} again: others took {others:.1} processors", subject.label);
        *patience -= begun.elapsed();
    }
}

fn disturbed_now() -> bool {
    let others = Others::watch();
    std::thread::sleep(Duration::from_millis(300));
    others.processors() > DISTURBED
}

fn shown(scenario: &Scenario, run: &Run) -> String {
    let figure = |column: &scenario::Column| {
        run.get(column.key).map(|value| format!("{} {value:.*}", column.label, column.decimals))
    };
    let mut figures: Vec<String> = scenario.columns.iter().filter_map(figure).collect();
    figures.push(format!("others {:.2}", run.get("others").copied().unwrap_or(0.0)));
    figures.join(", ")
}
