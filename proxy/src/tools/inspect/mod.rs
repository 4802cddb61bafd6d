//! `tollgate inspect`: the structure of a module, its requirements and abilities, and whether this version can run it.
//!
//! [`anatomy`] parses the module, [`abilities`] describes its imports in words, [`report`] prints the result. Only
//! compiling and creating an instance are actually tried.

mod abilities;
mod anatomy;
mod report;

use std::{process::ExitCode, sync::Arc, time::Instant};

use anyhow::Context;
use clap::Args;
use serde_json::{Value as Json, json};
use tollgate_abi::proxy_wasm::VERSION_MARKERS;

use self::{
    anatomy::{Anatomy, anatomy},
    report::{Compiled, Refused, Report},
};
use super::{Paint, clusters, engine, module_name, read_module};
use crate::{
    config::model::{Compile, Filter},
    digest::sha256_hex,
    observe::Registry,
    wasm::{CompiledModule, Engine, FilterEnv, InstantiateError, Plugin, SharedStore, VmTemplate},
};

/// The command line.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The module: a file, or `builtin:NAME` for a built-in filter.
    filter: String,
    /// The filter's configuration: JSON, or any other text verbatim. [default: none]
    #[arg(long, value_name = "JSON")]
    config: Option<String>,
    /// A cluster that exists for the filter, so that its configuration can refer to it; may be repeated.
    #[arg(long = "cluster", value_name = "NAME")]
    clusters: Vec<String>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Analyzes a module and prints the result. Fails if this version cannot load it.
pub fn run(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let bytes = read_module(&args.filter)?;
    let anatomy = anatomy(&bytes).with_context(|| format!("{} is not a WebAssembly module", args.filter))?;
    let config =
        args.config.as_ref().map(|text| serde_json::from_str(text).unwrap_or_else(|_| Json::from(text.as_str())));
    let report = report(args, &bytes, anatomy, config)?;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => print!("{}", report.text(Paint::stdout())),
    }
    Ok(if report.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report(args: &InspectArgs, bytes: &[u8], anatomy: Anatomy, config: Option<Json>) -> anyhow::Result<Report> {
    let module = args.filter.as_str();
    let engine = engine()?;
    let start = Instant::now();
    let loaded = CompiledModule::load_or_all(&engine, module, bytes, &Compile::default());
    let compile_ms = start.elapsed().as_secs_f64() * 1e3;
    let (mut subscribed, mut compiled, mut problems) = (None, None, Vec::new());
    match loaded {
        Err(errors) => problems.extend(errors.iter().map(ToString::to_string)),
        Ok(code) => {
            let native_bytes = code.native_size();
            let has_config = config.is_some();
            let template = VmTemplate::of(Arc::new(plugin(args, code, &engine, config)?));
            let start = Instant::now();
            let configured = template.instantiate().map_err(|e| e.error);
            let instantiate_ms = start.elapsed().as_secs_f64() * 1e3;
            let refused = match configured {
                Ok(instance) => {
                    subscribed = instance.subscribed(0).map(|bits| {
                        let named = abilities::PHASES
                            .iter()
                            .filter(|(_, export, bit)| bits & bit != 0 && anatomy.exports(export));
                        named.map(|(words, ..)| *words).collect()
                    });
                    None
                }
                // The module cannot even start, whatever its configuration.
                Err(e @ InstantiateError::Trapped(place, ..)) if place != "proxy_on_configure" => {
                    problems.push(format!("{module}: {e}"));
                    None
                }
                Err(e) => {
                    let hint = match has_config {
                        false => "set a configuration with --config",
                        true => "if it refers to clusters, add them with --cluster",
                    };
                    Some(Refused { why: e.to_string(), hint })
                }
            };
            compiled = Some(Compiled { compile_ms, native_bytes, instantiate_ms, refused });
        }
    }
    let abi = VERSION_MARKERS.iter().find(|(marker, _)| anatomy.exports(marker)).map(|(_, version)| *version);
    Ok(Report {
        module: module.to_owned(),
        hash: sha256_hex(bytes),
        bytes: bytes.len(),
        sizes: anatomy.sizes(),
        functions: anatomy.functions,
        abi,
        memory: anatomy.memory,
        phases: abilities::phases(&anatomy),
        can: abilities::abilities(&anatomy),
        subscribed,
        problems,
        compiled,
        sections: anatomy.sections,
        producers: anatomy.producers,
        imports: anatomy.imports,
        exports: anatomy.exports,
    })
}

/// Creates the filter in an environment with these clusters.
fn plugin(
    args: &InspectArgs,
    code: Arc<CompiledModule>,
    engine: &Arc<Engine>,
    config: Option<Json>,
) -> anyhow::Result<Plugin> {
    let filter = json!({"name": module_name(&args.filter), "wasm": args.filter, "config": config});
    let filter: Filter = serde_json::from_value(filter)?;
    let clusters = clusters(args.clusters.iter().map(String::as_str))?;
    let world = FilterEnv::new(clusters, None, SharedStore::new(Registry::new(1)));
    Ok(Plugin::new(&filter, code, engine, &world)?)
}
