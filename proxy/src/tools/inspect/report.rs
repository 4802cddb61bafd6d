//! The result of analyzing a module, as text and as JSON.

use std::{collections::BTreeMap, fmt::Write};

use serde::Serialize;

use crate::{
    escape,
    tools::{Paint, counted},
};

/// Everything known about a module. Sizes are in bytes, times in milliseconds.
#[derive(Debug, Serialize)]
pub struct Report {
    pub module: String,
    /// The SHA-256 of the module, in hex.
    pub hash: String,
    pub bytes: usize,
    /// Bytes of its sections: `code`, `data`, `custom`, `other`.
    pub sizes: BTreeMap<&'static str, usize>,
    pub sections: Vec<Section>,
    pub functions: u32,
    /// The Proxy-Wasm version that it declares.
    pub abi: Option<&'static str>,
    pub producers: Vec<Producer>,
    pub memory: Option<Memory>,
    pub imports: Vec<Import>,
    pub exports: Vec<Export>,
    /// The stream callbacks that it exports.
    pub phases: Vec<&'static str>,
    /// The callbacks that it subscribed to; `None` if it did not subscribe, or could not be configured.
    pub subscribed: Option<Vec<&'static str>>,
    pub can: Vec<&'static str>,
    /// The reasons why it cannot be loaded; empty if it can.
    pub problems: Vec<String>,
    pub compiled: Option<Compiled>,
}

/// The results of compiling and starting the module.
#[derive(Debug, Serialize)]
pub struct Compiled {
    pub compile_ms: f64,
    pub native_bytes: usize,
    /// The time for creating an instance, which is started and configured.
    pub instantiate_ms: f64,
    /// The reason why the filter rejected the given configuration.
    pub refused: Option<Refused>,
}

/// The reason for a rejected configuration. Only the reason is part of the JSON.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Refused {
    pub why: String,
    /// Advice.
    #[serde(skip)]
    pub hint: &'static str,
}

#[derive(Debug, Serialize)]
pub struct Section {
    pub name: String,
    pub bytes: usize,
}

/// A tool that produced the module.
#[derive(Debug, Serialize)]
pub struct Producer {
    pub field: String,
    pub name: String,
    pub version: String,
}

/// The module's memory, in bytes.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Memory {
    pub initial: u64,
    pub max: Option<u64>,
}

#[derive(Debug, Serialize)]
pub struct Import {
    pub module: String,
    pub name: String,
    pub group: Group,
}

#[derive(Debug, Serialize)]
pub struct Export {
    pub name: String,
    pub is_callback: bool,
}

/// The interface that a function belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    Standard,
    TollgateV1,
    Wasi,
    /// Not available in this version of Tollgate.
    Unknown,
}

impl Group {
    const ALL: [(Group, &str); 4] = [
        (Group::Standard, "standard"),
        (Group::TollgateV1, "tollgate_v1"),
        (Group::Wasi, "WASI"),
        (Group::Unknown, "unknown"),
    ];
}

/// The width of the label column.
const LABEL: usize = 14;

/// The width of the text column.
const WIDTH: usize = 100;

impl Report {
    /// Returns the report as text.
    pub fn text(&self, paint: Paint) -> String {
        let mut out = Lines { out: String::new(), paint };
        let _ = writeln!(out.out, "{}", paint.bold(&escape::line(&self.module)));
        match self.problems.is_empty() {
            true => out.line("loads", &paint.green("yes")),
            false => out.line("loads", &paint.red("no")),
        }
        for problem in &self.problems {
            out.line("", &paint.red(&escape::line(problem)));
        }
        out.line("ABI", &self.abi.map_or("none".to_owned(), |abi| format!("Proxy-Wasm {abi}")));
        let made_by = self.producers.iter().map(|p| format!("{} {}", p.name, p.version).trim().to_owned());
        out.list("made by", made_by.collect());
        let sizes = ["code", "data", "custom", "other"].map(|kind| {
            let bytes = self.sizes.get(kind).copied().unwrap_or_default();
            format!("{kind} {}", size(bytes as u64))
        });
        out.line("size", &format!("{}: {}", size(self.bytes as u64), sizes.join(", ")));
        out.line("functions", &self.functions.to_string());
        if let Some(Memory { initial, max }) = self.memory {
            let max = max.map_or("no declared maximum".to_owned(), |max| format!("at most {}", size(max)));
            out.line("memory", &format!("{} initially, {max}", size(initial)));
        }
        for (group, name) in Group::ALL {
            let names = self.imports.iter().filter(|i| i.group == group).map(|i| match group {
                Group::Unknown => format!("{}.{}", i.module, i.name),
                _ => i.name.clone(),
            });
            let names: Vec<_> = names.collect();
            if !names.is_empty() {
                let title = format!("{name} ({}):", names.len());
                let title = if group == Group::Unknown { paint.red(&title) } else { paint.bold(&title) };
                out.line(if group == self.first_group() { "imports" } else { "" }, &title);
                out.list("", names);
            }
        }
        let callbacks = self.exports.iter().filter(|e| e.is_callback).map(|e| e.name.clone());
        out.list("callbacks", callbacks.collect());
        out.list("exports", self.exports.iter().filter(|e| !e.is_callback).map(|e| e.name.clone()).collect());
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        out.list("phases", names(&self.phases));
        match (&self.subscribed, &self.compiled) {
            (Some(subscribed), _) if subscribed.is_empty() => out.line("subscribed", "nothing"),
            (Some(subscribed), _) => out.list("subscribed", names(subscribed)),
            (None, Some(Compiled { refused: None, .. })) => {
                out.line("subscribed", "not declared: it receives all phases that it exports");
            }
            (None, Some(_)) => out.line("subscribed", "unknown: it could not be configured"),
            (None, None) => {}
        }
        for (i, words) in self.can.iter().enumerate() {
            out.line(if i == 0 { "it can" } else { "" }, words);
        }
        if let Some(compiled) = &self.compiled {
            let Compiled { compile_ms, native_bytes, instantiate_ms, refused } = compiled;
            out.line("compiles", &format!("in {compile_ms:.1} ms to {} of machine code", size(*native_bytes as u64)));
            match refused {
                None => out.line("starts", &format!("in {instantiate_ms:.2} ms, configuring included")),
                Some(Refused { why, hint }) => {
                    let what = if why.starts_with("it failed in ") { "" } else { "it rejects its configuration: " };
                    let why = escape::line(why);
                    out.line("starts", &format!("no, after {instantiate_ms:.2} ms: {what}{why}"));
                    out.line("", &paint.yellow(hint));
                }
            }
        }
        out.out
    }

    fn first_group(&self) -> Group {
        let has = |group: &Group| self.imports.iter().any(|i| i.group == *group);
        Group::ALL.into_iter().map(|(group, _)| group).find(has).unwrap_or(Group::Standard)
    }
}

struct Lines {
    out: String,
    paint: Paint,
}

impl Lines {
    fn line(&mut self, label: &str, text: &str) {
        let label = self.paint.bold(&format!("{label:<LABEL$}"));
        let _ = writeln!(self.out, "  {label}{text}");
    }

    /// Appends names separated by commas, on as many lines as they need.
    fn list(&mut self, label: &str, names: Vec<String>) {
        let (mut label, mut line, mut width) = (label, String::new(), 0);
        // Import and export names can contain any characters.
        let names: Vec<_> = names.iter().map(|name| escape::line(name)).collect();
        for (i, name) in names.iter().enumerate() {
            let comma = if i + 1 < names.len() { ", " } else { "" };
            let visible = name.chars().count() + comma.len();
            if width > 0 && width + visible > WIDTH {
                self.line(label, line.trim_end());
                (label, line, width) = ("", String::new(), 0);
            }
            line.push_str(name);
            line.push_str(comma);
            width += visible;
        }
        if !line.is_empty() {
            self.line(label, line.trim_end());
        }
    }
}

/// Formats a size.
fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => counted(bytes as usize, "byte"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Modules from untrusted sources are inspected before they are run.
    #[test]
    fn terminal_escapes_in_names_are_escaped() {
        let nasty = || "a\u{1b}[2J\nb\u{9b}c".to_owned();
        let report = Report {
            module: nasty(),
            hash: String::new(),
            bytes: 0,
            sizes: BTreeMap::new(),
            sections: Vec::new(),
            functions: 0,
            abi: None,
            producers: vec![Producer { field: nasty(), name: nasty(), version: nasty() }],
            memory: None,
            imports: vec![Import { module: nasty(), name: nasty(), group: Group::Unknown }],
            exports: vec![Export { name: nasty(), is_callback: false }],
            phases: Vec::new(),
            subscribed: None,
            can: Vec::new(),
            problems: vec![nasty()],
            compiled: Some(Compiled {
                compile_ms: 0.0,
                native_bytes: 0,
                instantiate_ms: 0.0,
                refused: Some(Refused { why: nasty(), hint: "" }),
            }),
        };
        let text = report.text(Paint(true));
        assert!(!text.contains("[2J\n") && !text.contains("\u{1b}[2J") && !text.contains('\u{9b}'), "{text:?}");
        assert_eq!(text.matches("a\\x1b[2J\\nb\\u{9b}c").count(), 8, "{text}");
    }
}
