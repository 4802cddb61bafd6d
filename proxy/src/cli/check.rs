//! `tollgate check`: reports everything that a start would report, without starting the proxy.

use std::{io::IsTerminal, path::Path, process::ExitCode};

use serde_json::json;

use super::trial;
use crate::{
    config::{Diagnostic, Diagnostics, Severity},
    control::snapshot::{BuildMode, SnapshotBuilder},
    observe::log::colours,
};

/// Checks a file. Exit code 0: it can be used. 1: it cannot.
pub(super) fn run(file: &Path, as_json: bool) -> ExitCode {
    let loaded = match file == Path::new("-") {
        true => crate::control::load::loader().stdin(),
        false => crate::control::load::load(file),
    };
    let checked = loaded.and_then(|loaded| {
        let mut warnings: Vec<_> = loaded.warnings.iter().cloned().collect();
        let (source, cache) = (loaded.source.clone(), crate::control::load::cache_dir(&loaded));
        let mut wrong = trial::look(&loaded, cache);
        let builder =
            crate::control::load::compiler(&loaded).map_err(anyhow::Error::from).and_then(|(compiler, said)| {
                match said {
                    Some(error) if error.severity == Severity::Error => wrong.push(error),
                    said => warnings.extend(said),
                }
                SnapshotBuilder::new(1, compiler)
            });
        let builder = match builder {
            Ok(builder) => builder,
            Err(e) => {
                wrong.push(Diagnostic::error(None, e.to_string()));
                return Err(Diagnostics::new(source, wrong));
            }
        };
        let built = match builder.build(loaded, None, BuildMode::Trial) {
            Ok(built) if wrong.is_empty() => built,
            Ok(_) => return Err(Diagnostics::new(source, wrong)),
            Err(others) => {
                return Err(Diagnostics::new(source, wrong.into_iter().chain(others.iter().cloned()).collect()));
            }
        };
        warnings.extend(built.snapshot.warnings.iter().cloned());
        let source = built.snapshot.loaded.source.clone();
        Ok((built.snapshot, Diagnostics::new(source, warnings)))
    });
    match (checked, as_json) {
        (Ok((_, warnings)), true) => println!("{:#}", json!({ "ok": true, "diagnostics": warnings.to_json() })),
        (Err(wrong), true) => {
            println!("{:#}", json!({ "ok": false, "diagnostics": wrong.to_json() }));
            return ExitCode::FAILURE;
        }
        (Ok((snapshot, warnings)), false) => {
            eprint!("{}", warnings.render(colours()));
            let counted = |n: usize, thing: &str| format!("{n} {thing}{}", if n == 1 { "" } else { "s" });
            let (listeners, filters, clusters) = (
                counted(snapshot.listeners.len(), "listener"),
                counted(snapshot.plugins.len(), "filter"),
                counted(snapshot.clusters.len(), "cluster"),
            );
            let ok = if std::io::stdout().is_terminal() { "\x1b[1;32mok\x1b[0m" } else { "ok" };
            println!("{ok}: {}: {listeners}, {filters}, {clusters}", file.display());
        }
        (Err(wrong), false) => {
            eprint!("{}", wrong.render(colours()));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
