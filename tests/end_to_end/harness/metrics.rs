//! Reads Prometheus metrics. The reader is strict: unknown syntax fails the test.

use std::collections::BTreeMap;

/// One scrape.
#[derive(Debug)]
pub struct Metrics {
    series: Vec<(String, BTreeMap<String, String>, f64)>,
    /// The types of the families by name, from `# TYPE`.
    pub types: BTreeMap<String, String>,
}

impl Metrics {
    /// Parses the text format, version 0.0.4.
    pub fn parse(text: &str) -> Metrics {
        assert!(text.ends_with('\n'), "the last line has no end");
        let mut metrics = Metrics { series: Vec::new(), types: BTreeMap::new() };
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let words: Vec<&str> = comment.splitn(3, ' ').collect();
                match words[..] {
                    ["HELP", _, _] => {}
                    ["TYPE", name, kind @ ("counter" | "gauge" | "histogram")] => {
                        let before = metrics.types.insert(name.to_owned(), kind.to_owned());
                        assert!(before.is_none(), "two types: {line}");
                    }
                    _ => panic!("{line:?} is not a comment"),
                }
            } else {
                let series = series(line).unwrap_or_else(|| panic!("{line:?} is not a series"));
                assert!(!metrics.series.iter().any(|(n, l, _)| (n, l) == (&series.0, &series.1)), "twice: {line}");
                metrics.series.push(series);
            }
        }
        metrics
    }

    /// The sum of all series with this name and these labels; 0 if there are none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.with(name, labels).sum()
    }

    /// Whether there is a series with this name and these labels.
    pub fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.with(name, labels).next().is_some()
    }

    fn with(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = f64> {
        let wanted = |has: &BTreeMap<String, String>| labels.iter().all(|(n, v)| has.get(*n).is_some_and(|is| is == v));
        self.series.iter().filter(move |(n, l, _)| n == name && wanted(l)).map(|(.., value)| *value)
    }

    /// The names and labels of all series.
    pub fn names(&self) -> impl Iterator<Item = (&str, &BTreeMap<String, String>)> {
        self.series.iter().map(|(name, labels, _)| (name.as_str(), labels))
    }
}

/// `name{label="value",...} number`.
fn series(line: &str) -> Option<(String, BTreeMap<String, String>, f64)> {
    let name_end = line.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':')?;
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next()? {
                    (at, '"') => break at,
                    (_, '\\') => value.push(match chars.next()?.1 {
                        'n' => '\n',
                        other => other,
                    }),
                    (_, other) => value.push(other),
                }
            };
            labels.insert(label.to_owned(), value);
            rest = &after[end + 1..];
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
        rest = &rest[1..];
    }
    let value = rest.strip_prefix(' ')?.parse().ok()?;
    (!name.is_empty()).then(|| (name.to_owned(), labels, value))
}
