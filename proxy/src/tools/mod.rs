//! Tools for filter authors: [`inspect`] analyzes a module, [`new`] creates a project, [`cases`] (`tollgate test`) runs
//! a module in the real host against a file of cases.

pub mod cases;
pub mod inspect;
pub mod new;

use std::{io::IsTerminal, net::SocketAddr, path::Path, sync::Arc};

use anyhow::Context;
use serde_json::json;

use crate::{
    builtins,
    config::model::{self, Compile},
    escape,
    upstream::{Cluster, Clusters},
    wasm::{CompiledModule, Compiler, Engine},
};

/// Reads a module from a file, or returns a built-in filter.
fn read_module(name: &str) -> anyhow::Result<Vec<u8>> {
    match builtins::name(name) {
        Some(builtin) => {
            let known = || builtins::NAMES.join(", ");
            let bytes = builtins::module(builtin);
            let bytes =
                bytes.with_context(|| format!("there is no built-in filter `{builtin}`; available: {}", known()))?;
            Ok(bytes.to_vec())
        }
        None => Ok(CompiledModule::read(Path::new(name), &Compile::default())?),
    }
}

/// Creates the engine of a tool.
fn engine() -> anyhow::Result<Arc<Engine>> {
    // Without a cache: the cost of compiling is of interest, and a tool leaves no files behind.
    let compiler = Compiler::in_child(None).context("cannot run the compiler")?;
    Engine::new(compiler).map_err(|e| anyhow::anyhow!("the WebAssembly engine cannot start: {e:#}"))
}

/// Returns the default name of a module: its file name without `.wasm`.
fn module_name(name: &str) -> String {
    let stem = || Path::new(name).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    builtins::name(name).map(str::to_owned).or_else(stem).unwrap_or_else(|| name.to_owned())
}

/// Creates clusters with these names, for a filter that runs without a network.
fn clusters<'n>(names: impl Iterator<Item = &'n str>) -> anyhow::Result<Arc<Clusters>> {
    let clusters = Clusters::default();
    for (name, n) in names.zip(0u32..) {
        // Addresses for benchmarks (RFC 2544): nothing is ever sent there.
        let address = SocketAddr::from(((0xc612_0000 + n).to_be_bytes(), 80));
        // One connection per request, so that each can fail to connect.
        let config = json!({
            "name": name, "endpoints": [{"address": address}], "limits": {"requests_per_connection": 1},
        });
        let config: model::Cluster = serde_json::from_value(config).context("a cluster")?;
        clusters.publish(&clusters.handle(name), &Cluster::new(&config, None));
    }
    Ok(Arc::new(clusters))
}

/// Colors text if the output supports it. Escape sequences in the text itself are escaped.
#[derive(Debug, Clone, Copy)]
struct Paint(bool);

impl Paint {
    /// For standard output: colored on a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
    fn stdout() -> Paint {
        Paint(std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()))
    }

    fn with(self, code: &str, text: &str) -> String {
        let text = escape::lines(text);
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into_owned() }
    }

    fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    fn faint(self, text: &str) -> String {
        self.with("2", text)
    }

    fn red(self, text: &str) -> String {
        self.with("31", text)
    }

    fn green(self, text: &str) -> String {
        self.with("32", text)
    }

    fn yellow(self, text: &str) -> String {
        self.with("33", text)
    }
}

/// Formats a number with its noun.
fn counted(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}
