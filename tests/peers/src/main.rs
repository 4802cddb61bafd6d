//! Compares the cost of a request in Tollgate, nginx, HAProxy and Envoy on this machine, in several scenarios.
//! `tests/peers/run.sh` builds and runs it; docs/performance.md shows the results and explains the method.

mod args;
mod connect;
mod contain;
mod document;
mod figures;
mod kinds;
mod load;
mod machine;
mod plot;
mod process;
mod rate;
mod results;
mod rounds;
mod run;
mod scenario;
mod scenarios;
mod stats;
mod summary;
mod swap;
mod targets;
mod template;
mod tls;
mod tools;
mod usage;

use std::{fs, process::ExitCode, time::Duration};

use anyhow::{Context, ensure};
use clap::Parser;

use args::Args;
use machine::{Made, Places};
use results::{Measured, Results, Row};
use run::Bench;
use scenario::Work;
use tools::Tools;

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let done = if words.nth(1).is_some_and(|word| word == "connect") {
        connect::run(&connect::ConnectArgs::parse_from(["connect".into()].into_iter().chain(words)))
    } else {
        compare(&Args::parse())
    };
    // Returning the error from `main` would print a backtrace with RUST_BACKTRACE.
    done.map_or_else(
        |e| {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}

fn compare(args: &Args) -> anyhow::Result<()> {
    let scenarios = scenarios::all();
    if args.list {
        scenarios.iter().for_each(|s| println!("{:12} {}: {}", s.name, s.title, document::about(s, None)));
        return Ok(());
    }
    for name in &args.scenarios {
        let known = || scenarios.iter().map(|s| s.name).collect::<Vec<_>>().join(", ");
        ensure!(scenarios.iter().any(|s| s.name == name), "unknown scenario `{name}`: use one of {}", known());
    }
    let folder = args.docs.join("performance");
    let file = folder.join("results.json");
    let mut results = Results::read(&file)?;
    if args.write {
        results.write(&file)?;
        return document::write(&args.docs, &scenarios, &results);
    }

    let (rounds, seconds) = args.extent();
    let tools = Tools::find(args)?;
    let places = Places::of(1)?;
    say_places(&places);
    let made = Made::now(args.commit.as_deref(), seconds, tools.versions(), &places);
    let bench = Bench::new(tools, &args.work, seconds, args.smoke)?;
    let mut outcome = Outcome::default();
    let mut patience = Duration::from_secs(if args.smoke { 0 } else { args.patience });
    for scenario in scenarios.iter().filter(|s| args.scenarios.is_empty() || args.scenarios.iter().any(|n| n == s.name))
    {
        let (pace, rows) = rounds::measure(&bench, scenario, rounds.min(scenario.work.most_rounds()), &mut patience);
        let generators = scenario.work.generators(&scenario.subjects).to_owned();
        let measured = Measured { made: made.clone(), pace, generators, rows };
        outcome.add(scenario.name, &measured);
        if scenario.work == Work::Chain {
            // The previous output is good enough to continue with.
            match bench.quick_start_chain(&made) {
                Ok(output) => drop(results.outputs.insert("chain".into(), output)),
                Err(e) => eprintln!("!!! `bench chain` failed, operating.md keeps its previous output: {e:#}"),
            }
        }
        // Earlier results are better than none, so they are replaced only by new ones.
        if args.keeps() && measured.rows.iter().any(Row::measured) {
            results.scenarios.insert(scenario.name.into(), measured);
            // Written after each scenario, so that an interrupted run loses nothing.
            fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
            results.write(&file)?;
            document::write(&args.docs, &scenarios, &results)?;
        }
    }
    if outcome.lost == 0 {
        bench.clean_up();
    } else {
        let logs = args.work.join("run");
        eprintln!("\nrounds lost: {}; the logs of the last run are in {}", outcome.lost, logs.display());
    }
    outcome.verdict(args.smoke)
}

/// The outcome of all scenarios.
#[derive(Debug, Default)]
struct Outcome {
    lost: usize,
    /// Whether any scenario has results to compare.
    compares: bool,
    /// Rows without results, as `SCENARIO: LABEL`.
    without: Vec<String>,
}

impl Outcome {
    fn add(&mut self, scenario: &str, measured: &Measured) {
        self.lost += measured.rows.iter().map(|row| row.lost().count()).sum::<usize>();
        self.compares |= measured.compares();
        let without = measured.rows.iter().filter(|row| !row.measured());
        self.without.extend(without.map(|row| format!("{scenario}: {}", row.label)));
    }

    /// A comparison succeeds if any scenario has results to compare; a smoke test only if everything works.
    fn verdict(&self, smoke: bool) -> anyhow::Result<()> {
        ensure!(self.compares, "nothing could be compared; see the reasons above");
        ensure!(!smoke || self.without.is_empty(), "not everything works, see above: {}", self.without.join("; "));
        Ok(())
    }
}

fn say_places(places: &Places) {
    eprintln!("processors: proxy {}, load generator {}, backend {}", places.proxy, places.load, places.backend);
    if places.proxy == places.load {
        eprintln!("!!! There is only one processor: the load generator slows down the proxy that it measures.");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use results::tests::row;

    fn verdict(scenarios: Vec<Vec<Row>>, smoke: bool) -> Result<(), String> {
        let mut outcome = Outcome::default();
        for rows in scenarios {
            outcome.add("x", &Measured { rows, ..Default::default() });
        }
        outcome.verdict(smoke).map_err(|e| e.to_string())
    }

    #[test]
    fn lost_rounds_are_an_error_only_if_nothing_is_left_to_compare() {
        let good = || vec![row("nginx", 0, &[Some(1.0), None]), row("Tollgate", 0, &[None, Some(1.0)])];
        let lost = || vec![row("nginx", 0, &[Some(1.0)]), row("Envoy", 0, &[None])];
        assert_eq!(verdict(vec![lost(), good()], false), Ok(()));
        assert!(verdict(vec![lost(), lost()], false).unwrap_err().starts_with("nothing could be compared"));
        assert!(verdict(vec![], false).is_err());
    }

    #[test]
    fn a_smoke_test_fails_for_each_proxy_that_does_not_work() {
        let good = || vec![row("nginx", 0, &[Some(1.0)]), row("Tollgate", 0, &[Some(1.0)])];
        let broken = vec![row("nginx", 0, &[Some(1.0)]), row("Envoy", 0, &[None])];
        assert_eq!(verdict(vec![good()], true), Ok(()));
        let said = verdict(vec![good(), broken], true).unwrap_err();
        assert_eq!(said, "not everything works, see above: x: Envoy");
    }
}
