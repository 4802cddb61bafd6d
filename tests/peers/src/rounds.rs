//! Runs a scenario from its calibration to its last round. Failed runs are repeated. A round that keeps failing is lost, with its
//! reason recorded, so that one proxy's failure does not end the comparison of the others.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{
    rate::Pace,
    results::{Repeated, Round, Row, Run},
    scenario::{Column, Scenario, Subject, Work},
    usage::Others,
};

/// The number of attempts before a round is lost.
pub const ATTEMPTS: u32 = 3;

/// A run is repeated if other processes took more than this number of processors.
const DISTURBED: f64 = 0.2;

/// Measures a proxy.
pub trait Measure {
    /// The reason why this proxy cannot be measured here, if any.
    fn missing(&self, subject: &Subject) -> Option<String>;

    /// The approximate number of requests a second that a proxy carries.
    fn carries(&self, subject: &Subject, work: Work) -> anyhow::Result<f64>;

    /// The figures of one run; `rate` is the scenario's, if it has one.
    fn run(&self, subject: &Subject, work: Work, rate: Option<u32>) -> anyhow::Result<Run>;
}

/// Runs all rounds of a scenario: each proxy once per round.
pub fn measure(
    bench: &impl Measure,
    scenario: &Scenario,
    rounds: u32,
    patience: &mut Duration,
) -> (Option<Pace>, Vec<Row>) {
    eprintln!("\n== {}: {}", scenario.name, scenario.title);
    let mut subjects: Vec<&Subject> = Vec::new();
    for subject in &scenario.subjects {
        match bench.missing(subject) {
            None => subjects.push(subject),
            Some(why) => eprintln!("!!! {} is skipped: {why}.", subject.label),
        }
    }
    let row = |subject: &&Subject| Row { label: subject.label.clone(), number: subject.repeat, ..Row::default() };
    let mut rows: Vec<Row> = subjects.iter().map(row).collect();
    let (pace, failed) = calibrate(bench, scenario.work, &subjects, &mut rows, patience);
    if let Some(pace) = &pace {
        eprintln!("rate: {} a second{}", pace.rate, pace.clause());
    }
    for round in 1..=rounds {
        for (subject, row) in subjects.iter().zip(&mut rows) {
            let label = &subject.label;
            let run = || bench.run(subject, scenario.work, pace.as_ref().map(|p| p.rate));
            let run = match failed.get(label) {
                Some(why) => Err(why.clone()),
                None => patient(label, patience, &mut noted(row, round as usize), run).map_err(|e| format!("{e:#}")),
            };
            row.runs.push(match run {
                Ok(figures) => {
                    eprintln!("{round}/{rounds} {label:32} {}", shown(scenario.columns, &figures));
                    Round::Measured(figures)
                }
                Err(lost) => {
                    eprintln!("!!! {round}/{rounds} {label} is lost: {lost}");
                    Round::Lost { lost }
                }
            });
        }
    }
    (pace, rows)
}

/// The scenario's rate, if it needs one, and the errors of proxies that could not be saturated: their rounds are lost.
fn calibrate(
    bench: &impl Measure,
    work: Work,
    subjects: &[&Subject],
    rows: &mut [Row],
    patience: &mut Duration,
) -> (Option<Pace>, BTreeMap<String, String>) {
    let (mut carried, mut failed) = (BTreeMap::new(), BTreeMap::new());
    let Some(most) = work.most() else { return (None, failed) };
    // The scenario measures the cost of swaps, so the rate is based on the runs without swaps.
    for (subject, row) in subjects.iter().zip(rows).filter(|(subject, _)| !subject.swaps) {
        wait_for_quiet(patience);
        match attempts(&subject.label, &mut noted(row, 0), || bench.carries(subject, work)) {
            Ok(rate) => drop(carried.insert(subject.label.clone(), rate.round())),
            Err(e) => {
                eprintln!("!!! {} cannot be saturated: {e:#}", subject.label);
                failed.insert(subject.label.clone(), format!("at saturation: {e:#}"));
            }
        }
    }
    let pace = Pace::of(carried, most);
    if pace.is_none() {
        for subject in subjects {
            failed.entry(subject.label.clone()).or_insert_with(|| "there is no rate to measure at".to_owned());
        }
    }
    (pace, failed)
}

/// Repeats `attempt` until it succeeds, at most `ATTEMPTS` times. `note` receives each error but the last.
fn attempts<T>(
    label: &str,
    note: &mut impl FnMut(String),
    attempt: impl Fn() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    for _ in 1..ATTEMPTS {
        match attempt() {
            Err(e) => {
                eprintln!("    {label} again: {e:#}");
                note(format!("{e:#}"));
            }
            done => return done,
        }
    }
    attempt()
}

/// Records a row's repeated attempts.
fn noted(row: &mut Row, round: usize) -> impl FnMut(String) {
    move |why| row.repeated.push(Repeated { round, why })
}

/// Measures when the machine is quiet, and repeats disturbed runs while patience lasts.
fn patient(
    label: &str,
    patience: &mut Duration,
    note: &mut impl FnMut(String),
    run: impl Fn() -> anyhow::Result<Run>,
) -> anyhow::Result<Run> {
    let watched = || {
        let others = Others::watch();
        let mut run = run()?;
        run.insert("others".into(), (others.processors() * 100.0).round() / 100.0);
        Ok(run)
    };
    wait_for_quiet(patience);
    let (mut best, mut disturbed) = (attempts(label, note, watched)?, 0);
    while best["others"] > DISTURBED && !patience.is_zero() {
        eprintln!("    {label} again: others took {:.1} processors", best["others"]);
        wait_for_quiet(patience);
        let begun = Instant::now();
        // The existing result counts, whatever the outcome of the repetition.
        let Ok(again) = attempts(label, note, watched) else { break };
        disturbed += 1;
        *patience = patience.saturating_sub(begun.elapsed());
        if again["others"] < best["others"] {
            best = again;
        }
    }
    // The number of runs discarded for a quieter one, whatever their results.
    if disturbed > 0 {
        best.insert("disturbed".into(), disturbed.into());
    }
    Ok(best)
}

fn wait_for_quiet(patience: &mut Duration) {
    let begun = Instant::now();
    while begun.elapsed() < *patience && disturbed_now() {}
    *patience = patience.saturating_sub(begun.elapsed());
}

fn disturbed_now() -> bool {
    let others = Others::watch();
    std::thread::sleep(Duration::from_millis(300));
    others.processors() > DISTURBED
}

fn shown(columns: &[Column], run: &Run) -> String {
    let figure =
        |column: &Column| run.get(column.key).map(|value| format!("{} {value:.*}", column.label, column.decimals));
    let mut figures: Vec<String> = columns.iter().filter_map(figure).collect();
    figures.push(format!("others {:.2}", run.get("others").copied().unwrap_or(0.0)));
    figures.join(", ")
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use anyhow::{bail, ensure};

    use super::*;
    use crate::scenario::Program;

    const COLUMNS: &[Column] = &[Column { key: "cpu_us", label: "CPU", unit: "µs", decimals: 1 }];

    /// Proxies with given capacities; one without capacity does not start. The next runs fail the given number of times.
    #[derive(Default)]
    struct Pretended {
        carried: BTreeMap<&'static str, f64>,
        failures: RefCell<BTreeMap<&'static str, u32>>,
        /// The label and the rate of each attempted run.
        tried: RefCell<Vec<(String, Option<u32>)>>,
    }

    impl Measure for Pretended {
        fn missing(&self, subject: &Subject) -> Option<String> {
            (subject.label == "missing").then(|| "it is not here".into())
        }

        fn carries(&self, subject: &Subject, _: Work) -> anyhow::Result<f64> {
            let carried = self.carried.get(&*subject.label).copied().unwrap_or(0.0);
            ensure!(carried > 0.0, "does not start");
            Ok(carried)
        }

        fn run(&self, subject: &Subject, _: Work, rate: Option<u32>) -> anyhow::Result<Run> {
            self.tried.borrow_mut().push((subject.label.clone(), rate));
            if let Some(left) = self.failures.borrow_mut().get_mut(&*subject.label).filter(|left| **left > 0) {
                *left -= 1;
                bail!("fell behind, {left} more failures to come");
            }
            Ok(Run::from([("cpu_us".into(), 20.0)]))
        }
    }

    fn scenario(work: Work, labels: &[&str]) -> Scenario {
        let subjects = labels.iter().map(|label| Subject::new(label, Program::Nginx, "")).collect();
        Scenario {
            name: "x",
            title: "X",
            about: "",
            work,
            subjects,
            columns: COLUMNS,
            open: &[],
            against: &[],
            slope: false,
        }
    }

    /// No patience, so that tests never wait for a quiet machine.
    fn impatient() -> Duration {
        Duration::ZERO
    }

    fn measured(bench: &Pretended, work: Work, labels: &[&str], rounds: u32) -> (Option<Pace>, Vec<Row>) {
        measure(bench, &scenario(work, labels), rounds, &mut impatient())
    }

    /// For each row, the reason per round why it was lost, or an empty string.
    fn lost(rows: &[Row]) -> Vec<(&str, Vec<&str>)> {
        let word = |round: &'_ Round| match round {
            Round::Measured(_) => "",
            Round::Lost { lost } => lost.clone().leak(),
        };
        rows.iter().map(|row| (row.label.as_str(), row.runs.iter().map(word).collect())).collect()
    }

    const REQUESTS: Work = Work::Requests { most: 5000, close: false };

    #[test]
    fn all_proxies_of_a_scenario_get_the_rate_that_the_slowest_carries() {
        let bench = Pretended { carried: [("fast", 9_000.0), ("slow", 2_500.0)].into(), ..Pretended::default() };
        let (pace, rows) = measured(&bench, REQUESTS, &["fast", "slow", "missing"], 2);
        assert_eq!(
            pace.unwrap(),
            Pace { rate: 1200, carried: [("fast".into(), 9_000.0), ("slow".into(), 2_500.0)].into() }
        );
        let expected = ["fast", "slow", "fast", "slow"].map(|label| (label.to_owned(), Some(1200)));
        assert_eq!(*bench.tried.borrow(), expected);
        assert_eq!(lost(&rows), [("fast", vec!["", ""]), ("slow", vec!["", ""])]);
    }

    #[test]
    fn a_failed_run_is_repeated() {
        let bench = Pretended { failures: RefCell::new([("a", ATTEMPTS - 1)].into()), ..Pretended::default() };
        let (pace, rows) = measured(&bench, Work::Half, &["a"], 1);
        assert_eq!(pace, None, "each run has its own rate");
        assert_eq!(lost(&rows), [("a", vec![""])]);
        assert_eq!(bench.tried.borrow().len(), ATTEMPTS as usize);
        let why = |left: u32| Repeated { round: 1, why: format!("fell behind, {left} more failures to come") };
        assert_eq!(rows[0].repeated, [why(1), why(0)], "repeated attempts stay visible");
    }

    #[test]
    fn a_round_that_keeps_failing_is_lost_with_its_reason_and_others_continue() {
        let bench = Pretended { failures: RefCell::new([("a", ATTEMPTS)].into()), ..Pretended::default() };
        let (_, rows) = measured(&bench, Work::Half, &["a", "b"], 2);
        assert_eq!(lost(&rows), [("a", vec!["fell behind, 0 more failures to come", ""]), ("b", vec!["", ""])]);
    }

    #[test]
    fn a_proxy_that_cannot_be_saturated_is_lost_and_does_not_set_the_rate() {
        let bench = Pretended { carried: [("a", 2_000.0)].into(), ..Pretended::default() };
        let (pace, rows) = measured(&bench, REQUESTS, &["a", "broken"], 2);
        assert_eq!(pace.unwrap().rate, 1000);
        let why = "at saturation: does not start";
        assert_eq!(lost(&rows), [("a", vec!["", ""]), ("broken", vec![why, why])]);
        assert!(bench.tried.borrow().iter().all(|(label, _)| label == "a"), "no pointless attempts");
    }

    #[test]
    fn without_any_rate_all_rounds_are_lost() {
        let (pace, rows) = measured(&Pretended::default(), REQUESTS, &["broken"], 1);
        assert_eq!(pace, None);
        assert_eq!(lost(&rows), [("broken", vec!["at saturation: does not start"])]);
    }

    #[test]
    fn swaps_do_not_set_the_rate() {
        let bench = Pretended { carried: [("without", 3_000.0), ("with", 10.0)].into(), ..Pretended::default() };
        let mut scenario = scenario(Work::Swap { most: 5000 }, &["without", "with"]);
        scenario.subjects[1].swaps = true;
        let (pace, rows) = measure(&bench, &scenario, 1, &mut impatient());
        assert_eq!(pace.unwrap().rate, 1500);
        assert_eq!(lost(&rows), [("without", vec![""]), ("with", vec![""])]);
    }
}
