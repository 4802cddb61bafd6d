//! The results in docs/performance/results.json: every run of every scenario. Running a scenario again replaces its results.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::{
    machine::Made,
    rate::Pace,
    stats::{self, Figure},
};

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Results {
    pub scenarios: BTreeMap<String, Measured>,
    /// Outputs of commands that the documents show, by name.
    #[serde(default)]
    pub outputs: BTreeMap<String, Output>,
}

/// The output of a command.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub struct Output {
    pub commit: String,
    pub date: String,
    /// The command, without parts that depend on the machine, or another source.
    pub by: String,
    pub lines: Vec<String>,
}

/// The results of a scenario.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    pub made: Made,
    /// The rate of its latencies, if all proxies get the same.
    #[serde(default)]
    pub pace: Option<Pace>,
    /// The programs that generated the load.
    #[serde(default)]
    pub generators: String,
    pub rows: Vec<Row>,
}

/// One of the compared proxies.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Row {
    pub label: String,
    /// The number of copies of a filter or of routes, if rows differ in it.
    pub number: usize,
    /// One per round.
    pub runs: Vec<Round>,
    /// The attempts that failed before one succeeded.
    #[serde(default)]
    pub repeated: Vec<Repeated>,
}

/// An attempt that failed, after which the round was tried again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Repeated {
    /// Counted from 1; 0 is the calibration.
    pub round: usize,
    pub why: String,
}

/// The result of one proxy in one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Round {
    Measured(Run),
    /// All attempts failed; the reason of the last one.
    Lost {
        lost: String,
    },
}

/// The figures of one run.
pub type Run = BTreeMap<String, f64>;

impl Results {
    pub fn read(file: &Path) -> anyhow::Result<Results> {
        let text = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Results::default()),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", file.display())),
        };
        serde_json::from_str(&text).with_context(|| format!("cannot parse {}", file.display()))
    }

    /// Writes one run per line, so that the file is readable and diffs are small.
    pub fn write(&self, file: &Path) -> anyhow::Result<()> {
        let mut text = String::from("{\"scenarios\": {\n");
        for (i, (name, measured)) in self.scenarios.iter().enumerate() {
            let comma = if i == 0 { "" } else { ",\n" };
            let made = serde_json::to_string(&measured.made)?;
            let pace = measured.pace.as_ref().map(serde_json::to_string).transpose()?;
            let pace = pace.map_or_else(String::new, |pace| format!(", \"pace\": {pace}"));
            let generators = serde_json::to_string(&measured.generators)?;
            text +=
                &format!("{comma}\"{name}\": {{\"made\": {made}{pace}, \"generators\": {generators}, \"rows\": [\n");
            for (i, row) in measured.rows.iter().enumerate() {
                let runs: Vec<_> = row.runs.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
                let (comma, label) = (if i == 0 { "" } else { ",\n" }, serde_json::to_string(&row.label)?);
                let runs = runs.join(",\n  ");
                let repeated = match row.repeated.is_empty() {
                    true => String::new(),
                    false => format!(",\n  \"repeated\": {}", serde_json::to_string(&row.repeated)?),
                };
                text += &format!(
                    "{comma} {{\"label\": {label}, \"number\": {}, \"runs\": [\n  {runs}]{repeated}}}",
                    row.number
                );
            }
            text += "]}";
        }
        text += &format!("}},\n\"outputs\": {}}}\n", serde_json::to_string_pretty(&self.outputs)?);
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }
}

impl Measured {
    pub fn row(&self, label: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.label == label)
    }

    /// Whether two rows have figures, or the only row has.
    pub fn compares(&self) -> bool {
        let measured = self.rows.iter().filter(|row| row.measured()).count();
        measured > 0 && measured >= self.rows.len().min(2)
    }

    /// The difference of a figure between two rows, in the rounds that both have.
    pub fn added(&self, key: &str, label: &str, base: &str) -> Option<Figure> {
        let pairs = self.row(label)?.runs.iter().zip(&self.row(base)?.runs);
        stats::figure(&pairs.filter_map(|(run, base)| Some(run.figure(key)? - base.figure(key)?)).collect::<Vec<_>>())
    }

    /// The ratio of a figure between two rows, in the rounds that both have.
    pub fn ratio(&self, key: &str, label: &str, base: &str) -> Option<Figure> {
        let pairs = self.row(label)?.runs.iter().zip(&self.row(base)?.runs);
        let ratio = |(run, base): (&Round, &Round)| {
            let base = base.figure(key).filter(|base| *base > 0.0)?;
            Some(run.figure(key)? / base)
        };
        stats::figure(&pairs.filter_map(ratio).collect::<Vec<_>>())
    }

    /// The growth of a figure with the number of the rows labelled `PROGRAM, NUMBER`: the slope of each round.
    pub fn slope(&self, key: &str, program: &str) -> Option<Figure> {
        let rows: Vec<_> = self.rows.iter().filter(|row| row.label == format!("{program}, {}", row.number)).collect();
        let slope = |round: usize| {
            let point = |row: &&Row| Some((row.number as f64, row.runs.get(round)?.figure(key)?));
            // Only rounds with all points: a line through fewer points would not be comparable.
            stats::slope(&rows.iter().map(point).collect::<Option<Vec<_>>>()?)
        };
        stats::figure(&(0..self.rounds()).filter_map(slope).collect::<Vec<_>>())
    }

    /// The number of rounds, including lost ones.
    pub fn rounds(&self) -> usize {
        self.rows.iter().map(|row| row.runs.len()).max().unwrap_or(0)
    }
}

impl Round {
    fn figure(&self, key: &str) -> Option<f64> {
        match self {
            Round::Measured(run) => run.get(key).copied(),
            Round::Lost { .. } => None,
        }
    }
}

impl Row {
    /// A figure's values in the rounds that have it.
    pub fn values(&self, key: &str) -> Vec<f64> {
        self.runs.iter().filter_map(|round| round.figure(key)).collect()
    }

    /// Whether any round has figures.
    pub fn measured(&self) -> bool {
        self.runs.iter().any(|round| matches!(round, Round::Measured(_)))
    }

    /// The rounds without figures, counted from 1, each with its reason.
    pub fn lost(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(&self.runs).filter_map(|(number, round)| match round {
            Round::Measured(_) => None,
            Round::Lost { lost } => Some((number, lost.as_str())),
        })
    }

    pub fn figure(&self, key: &str) -> Option<Figure> {
        stats::figure(&self.values(key))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A row with the given processor time in each round; `None` is a lost round.
    pub fn row(label: &str, number: usize, cpu: &[Option<f64>]) -> Row {
        let run = |cpu: &Option<f64>| match *cpu {
            Some(cpu) => Round::Measured(Run::from([("cpu_us".to_owned(), cpu), ("rate".to_owned(), 1e6 / cpu)])),
            None => Round::Lost { lost: "it fell behind\nand more".into() },
        };
        Row { label: label.into(), number, runs: cpu.iter().map(run).collect(), repeated: Vec::new() }
    }

    #[test]
    fn comparing_needs_figures_of_two_rows_or_of_the_only_one() {
        let compares = |rows: Vec<Row>| Measured { rows, ..Default::default() }.compares();
        let (good, lost) = (|| row("a", 0, &[None, Some(1.0)]), || row("b", 0, &[None, None]));
        assert!(compares(vec![good()]) && compares(vec![good(), lost(), good()]));
        assert!(!compares(vec![]) && !compares(vec![lost()]) && !compares(vec![good(), lost()]));
    }

    #[test]
    fn ratios_are_calculated_within_a_round() {
        let rows = vec![row("a", 0, &[Some(10.0), Some(20.0), None]), row("b", 0, &[Some(5.0), Some(10.0), Some(1.0)])];
        let measured = Measured { rows, ..Default::default() };
        assert_eq!(measured.ratio("cpu_us", "b", "a"), Some(Figure { middle: 0.5, low: 0.5, high: 0.5, rounds: 2 }));
        assert_eq!(measured.ratio("cpu_us", "c", "a"), None);
        assert_eq!(measured.ratio("other", "b", "a"), None);
    }

    #[test]
    fn slopes_are_of_each_round_that_has_all_points() {
        let rows = vec![
            row("T, 0", 0, &[Some(10.0), Some(10.0), None]),
            row("T, 2", 2, &[Some(12.0), Some(14.0), Some(90.0)]),
            row("T, 2 in one VM", 2, &[Some(99.0), Some(99.0), Some(99.0)]),
            row("E, 2", 2, &[Some(99.0), Some(99.0), Some(99.0)]),
        ];
        let measured = Measured { rows, ..Default::default() };
        assert_eq!(measured.slope("cpu_us", "T"), Some(Figure { middle: 1.5, low: 1.0, high: 2.0, rounds: 2 }));
        assert_eq!(measured.slope("cpu_us", "E"), None, "one point has no slope");
    }

    #[test]
    fn results_round_trip() {
        let pace = Some(Pace { rate: 1200, carried: [("c".into(), 2500.0)].into() });
        let mut rows = vec![row("a \"b\"", 2, &[Some(1.5), None]), row("c", 0, &[])];
        rows[0].repeated.push(Repeated { round: 1, why: "it fell\nbehind".into() });
        let measured = Measured { rows, pace, ..Default::default() };
        let results = Results {
            scenarios: BTreeMap::from([("x".into(), measured), ("y".into(), Measured::default())]),
            outputs: [("o".into(), Output { lines: vec!["\"a\"".into()], ..Default::default() })].into(),
        };
        let file = std::env::temp_dir().join(format!("peers-results-{}.json", std::process::id()));
        results.write(&file).unwrap();
        let read = Results::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), serde_json::to_value(&results).unwrap());
        assert!(Results::read(&file).unwrap().scenarios.is_empty(), "a missing file counts as empty");
    }
}
