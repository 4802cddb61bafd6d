//! The parts of a scenario: the work, the proxies that do it, and the columns that show the results. `scenarios` lists all scenarios.

use std::borrow::Cow;

use crate::load::Load;

/// A measurement, and the proxies that are measured alternately.
#[derive(Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub title: &'static str,
    /// The description. `{rate}` is replaced with the rate of the latencies, `{share}` with its relation to the slowest proxy's rate.
    pub about: &'static str,
    pub work: Work,
    pub subjects: Vec<Subject>,
    /// Columns of the closed loop. The first one is the main one: plotted, shown with its spread, and compared.
    pub columns: &'static [Column],
    /// Columns of the open loop, shown with their spread.
    pub open: &'static [Column],
    /// Labels of subjects that the others are divided by.
    pub against: &'static [&'static str],
    /// Whether to show how the main figure grows with the subjects' numbers.
    pub slope: bool,
}

/// The load on a proxy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Work {
    /// Requests at saturation, then at the scenario's rate (see `rate`), which is at most `most`.
    Requests { most: u32, close: bool },
    /// Requests at saturation, then at half of that rate.
    Half,
    /// Idle connections.
    Idle,
    /// Requests at the scenario's rate, with or without a filter's file replaced every second.
    Swap { most: u32 },
    /// Requests at this rate, alongside one request a second that makes the subject's filter misbehave.
    Contain { rate: u32 },
    /// No load: `tollgate bench chain` runs the filters.
    Chain,
}

impl Scenario {
    pub fn subject(&self, label: &str) -> Option<&Subject> {
        self.subjects.iter().find(|subject| subject.label == label)
    }

    pub fn column(&self, key: &str) -> Option<&'static Column> {
        self.columns.iter().chain(self.open).find(|column| column.key == key)
    }

    /// Each peer with Tollgate's equivalent: `(ours, peer)`.
    pub fn pairs(&self) -> Vec<(&Subject, &Subject)> {
        let ours = |peer: &Subject| {
            let same = || peer.label.replacen(peer.program.name(), Program::Tollgate.name(), 1);
            self.subject(&peer.beside.map_or_else(same, str::to_owned))
        };
        let peers = self.subjects.iter().filter(|subject| subject.program != Program::Tollgate);
        peers.filter_map(|peer| Some((ours(peer)?, peer))).collect()
    }
}

impl Work {
    /// The maximum number of rounds. More would show nothing new: memory is the same each time, and a filter that hangs always hangs.
    pub fn most_rounds(self) -> u32 {
        match self {
            Work::Idle => 2,
            Work::Contain { .. } => 3,
            _ => u32::MAX,
        }
    }

    /// The programs that generate the load, for the page.
    pub fn generators(self, subjects: &[Subject]) -> &'static str {
        let spoken = subjects.first().map(|subject| subject.spoken).unwrap_or_default();
        match self {
            Work::Idle | Work::Chain => "",
            Work::Swap { .. } | Work::Contain { .. } => "`tollgate bench load`",
            Work::Requests { close, .. } => Load::generators(close, spoken),
            Work::Half => Load::generators(false, spoken),
        }
    }

    /// The maximum rate in requests a second, for work in which all proxies get the same rate.
    pub fn most(self) -> Option<u32> {
        match self {
            Work::Requests { most, .. } | Work::Swap { most } => Some(most),
            Work::Half | Work::Idle | Work::Contain { .. } | Work::Chain => None,
        }
    }
}

/// The protocol between client and proxy.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spoken {
    pub tls: bool,
    pub h2: bool,
    /// gRPC, to the backend too.
    pub grpc: bool,
}

pub const PLAIN: Spoken = Spoken { tls: false, h2: false, grpc: false };
pub const TLS_H1: Spoken = Spoken { tls: true, ..PLAIN };
pub const TLS_H2: Spoken = Spoken { tls: true, h2: true, grpc: false };
pub const GRPC: Spoken = Spoken { tls: false, h2: true, grpc: true };

impl Spoken {
    /// The flags for templates.
    pub fn flags(self) -> &'static [&'static str] {
        match (self.tls, self.grpc) {
            (_, true) => &["grpc"],
            (true, _) => &["tls"],
            _ => &["plain"],
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    Nginx,
    Haproxy,
    Envoy,
    Tollgate,
}

impl Program {
    /// The name with which labels begin.
    pub fn name(self) -> &'static str {
        match self {
            Program::Nginx => "nginx",
            Program::Haproxy => "HAProxy",
            Program::Envoy => "Envoy",
            Program::Tollgate => "Tollgate",
        }
    }
}

/// A proxy in one configuration.
#[derive(Debug, Clone)]
pub struct Subject {
    pub label: String,
    pub program: Program,
    pub template: Cow<'static, str>,
    /// The number of copies of the template's repeated part.
    pub repeat: usize,
    pub workers: usize,
    pub path: String,
    pub spoken: Spoken,
    /// Files of the filters that it needs.
    pub modules: &'static [&'static str],
    /// Whether its filter is replaced during the run.
    pub swaps: bool,
    /// For a peer: the label of Tollgate's equivalent, if it differs in more than the program's name.
    pub beside: Option<&'static str>,
    /// The label of the same proxy without the filter; the difference is the filter's cost.
    pub over: Option<&'static str>,
    /// The template of an nginx that runs next to the proxy as a part of it; its resources count as the proxy's.
    pub service: Option<&'static str>,
    /// A header field that the filter must reject with 403.
    pub refuses: Option<&'static str>,
    /// The misbehaviour that bad requests cause: see `offender.wat`.
    pub offence: &'static str,
}

/// A figure that each run has.
#[derive(Debug, PartialEq)]
pub struct Column {
    pub key: &'static str,
    pub label: &'static str,
    /// The unit to print after the figure in a sentence.
    pub unit: &'static str,
    pub decimals: usize,
}

impl Subject {
    pub fn new(label: &str, program: Program, template: &'static str) -> Subject {
        Subject {
            label: label.to_owned(),
            program,
            template: template.into(),
            repeat: 0,
            workers: 1,
            path: "/items/42".to_owned(),
            spoken: PLAIN,
            modules: &[],
            swaps: false,
            beside: None,
            over: None,
            service: None,
            refuses: None,
            offence: "",
        }
    }

    pub fn beside(self, ours: &'static str) -> Subject {
        Subject { beside: Some(ours), ..self }
    }

    pub fn repeat(self, repeat: usize) -> Subject {
        Subject { repeat, ..self }
    }

    pub fn at(self, path: impl Into<String>) -> Subject {
        Subject { path: path.into(), ..self }
    }

    pub fn spoken(self, spoken: Spoken) -> Subject {
        Subject { spoken, ..self }
    }

    pub fn modules(self, modules: &'static [&'static str]) -> Subject {
        Subject { modules, ..self }
    }

    pub fn workers(self, workers: usize) -> Subject {
        Subject { workers, ..self }
    }
}
