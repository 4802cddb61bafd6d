//! What a scenario is: a question, the proxies that it is put to, and what is shown of their answers. `scenarios` has them all.

use std::borrow::Cow;

use crate::load::Load;

/// A question, and the proxies that it is put to in turn.
#[derive(Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub title: &'static str,
    /// `{rate}` stands for the rate of its latencies, `{share}` for the clause that says what the rate is to the slowest proxy.
    pub about: &'static str,
    pub work: Work,
    pub subjects: Vec<Subject>,
    /// The first one is the main one: plotted, shown with its spread, and compared.
    pub columns: &'static [Column],
    /// What is taken at a rate, with its spread.
    pub open: &'static [Column],
    /// Labels of subjects that the others are divided by.
    pub against: &'static [&'static str],
    /// Whether the main figure's growth with the subjects' numbers is shown.
    pub slope: bool,
}

/// What is done to a proxy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Work {
    /// Requests as fast as they go, then at the scenario's rate (see `rate`), which is not above `most`.
    Requests { most: u32, close: bool },
    /// Requests as fast as they go, then at half of that rate.
    Half,
    /// Connections that do nothing.
    Idle,
    /// Requests at the scenario's rate, with or without a filter's file replaced every second.
    Swap { most: u32 },
    /// Requests at this rate, and beside them one a second that makes the subject's filter misbehave.
    Contain { rate: u32 },
    /// Nothing: `tollgate bench chain` runs the filters.
    Chain,
}

impl Scenario {
    pub fn subject(&self, label: &str) -> Option<&Subject> {
        self.subjects.iter().find(|subject| subject.label == label)
    }

    pub fn column(&self, key: &str) -> Option<&'static Column> {
        self.columns.iter().chain(self.open).find(|column| column.key == key)
    }

    /// Each peer with what of ours does the same: `(ours, peer)`.
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
    /// More rounds would say nothing new: memory is the same each time, and a filter that hangs always hangs.
    pub fn most_rounds(self) -> u32 {
        match self {
            Work::Idle => 2,
            Work::Contain { .. } => 3,
            _ => u32::MAX,
        }
    }

    /// Which programs make the load, for the page.
    pub fn generators(self, subjects: &[Subject]) -> &'static str {
        let spoken = subjects.first().map(|subject| subject.spoken).unwrap_or_default();
        match self {
            Work::Idle | Work::Chain => "",
            Work::Swap { .. } | Work::Contain { .. } => "`tollgate bench load`",
            Work::Requests { close, .. } => Load::generators(close, spoken),
            Work::Half => Load::generators(false, spoken),
        }
    }

    /// Requests a second that are enough on any machine, where all proxies get the same rate.
    pub fn most(self) -> Option<u32> {
        match self {
            Work::Requests { most, .. } | Work::Swap { most } => Some(most),
            Work::Half | Work::Idle | Work::Contain { .. } | Work::Chain => None,
        }
    }
}

/// What is spoken to a proxy.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spoken {
    pub tls: bool,
    pub h2: bool,
    /// To the backend too.
    pub grpc: bool,
}

pub const PLAIN: Spoken = Spoken { tls: false, h2: false, grpc: false };
pub const TLS_H1: Spoken = Spoken { tls: true, ..PLAIN };
pub const TLS_H2: Spoken = Spoken { tls: true, h2: true, grpc: false };
pub const GRPC: Spoken = Spoken { tls: false, h2: true, grpc: true };

impl Spoken {
    /// What templates call it.
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
    /// How labels begin.
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
    /// How often the repeated part of the template comes.
    pub repeat: usize,
    pub workers: usize,
    pub path: String,
    pub spoken: Spoken,
    /// Files of filters that it needs.
    pub modules: &'static [&'static str],
    /// Whether its filter is replaced meanwhile.
    pub swaps: bool,
    /// Of a peer: the label of ours that does the same, if it is not called the same but for the program's name.
    pub beside: Option<&'static str>,
    /// The label of the same proxy without the filter: the difference is what the filter adds.
    pub over: Option<&'static str>,
    /// The template of an nginx that runs beside the proxy as a part of it: what it takes counts as the proxy's.
    pub service: Option<&'static str>,
    /// A field of a request's head that the filter must refuse with 403.
    pub refuses: Option<&'static str>,
    /// What bad requests ask the filter to do: see `offender.wat`.
    pub offence: &'static str,
}

/// A figure of each run.
#[derive(Debug, PartialEq)]
pub struct Column {
    pub key: &'static str,
    pub label: &'static str,
    /// As it stands behind the figure in a sentence.
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
