//! `tollgate check`: reports everything that a start would report, without starting the proxy, and what would change in a
//! running one.

mod admin;
mod against;

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use serde_json::{Value, json};

use self::{admin::AdminListener, against::Comparison};
use super::trial;
use crate::{
    config::{Diagnostic, Diagnostics, Severity},
    control::snapshot::{BuildMode, SnapshotBuilder},
    escape,
    observe::log::{colours, stderr},
    snapshot::Snapshot,
};

/// The arguments of `tollgate check`.
#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// The configuration; `-` reads YAML or JSON from standard input.
    file: PathBuf,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Show what the configuration would change in a running proxy, found by its admin listener: `http://127.0.0.1:9901` or
    /// `unix:PATH`.
    #[arg(long, value_name = "URL")]
    against: Option<String>,
    /// The file with the token of that admin listener.
    #[arg(long, value_name = "FILE", requires = "against")]
    token_file: Option<PathBuf>,
}

/// Checks a file. Exit code 0: it can be used. 1: it cannot. Against a running proxy, as `diff` does it: 0: nothing would
/// change. 1: something would. 2: the file cannot be used, or the proxy cannot be asked.
pub(super) fn run(args: &CheckArgs) -> ExitCode {
    let trouble = if args.against.is_some() { ExitCode::from(2) } else { ExitCode::FAILURE };
    let (snapshot, warnings) = match checked(&args.file) {
        Ok(checked) => checked,
        Err(wrong) => {
            match args.json {
                true => println!("{:#}", json!({ "ok": false, "diagnostics": wrong.to_json() })),
                false => eprint!("{}", wrong.render(colours())),
            }
            return trouble;
        }
    };
    let url = args.against.as_deref();
    let compared = url.map(|url| against::compared(&snapshot, &AdminListener::new(url, args.token_file.as_deref())?));
    match args.json {
        true => print_json(&warnings, compared.as_ref()),
        false => print_text(&args.file, &snapshot, &warnings, compared.as_ref()),
    }
    match compared {
        None => ExitCode::SUCCESS,
        Some(Ok(comparison)) if !comparison.has_changes() => ExitCode::SUCCESS,
        Some(Ok(_)) => ExitCode::from(1),
        Some(Err(_)) => trouble,
    }
}

type Compared = anyhow::Result<Comparison>;

fn print_json(warnings: &Diagnostics, compared: Option<&Compared>) {
    let mut result = json!({ "ok": true, "diagnostics": warnings.to_json() });
    match compared {
        None => {}
        Some(Ok(comparison)) => result["against"] = comparison.json(),
        Some(Err(error)) => {
            result["ok"] = Value::Bool(false);
            result["error"] = format!("{error:#}").into();
        }
    }
    println!("{result:#}");
}

fn print_text(file: &Path, snapshot: &Snapshot, warnings: &Diagnostics, compared: Option<&Compared>) {
    eprint!("{}", warnings.render(colours()));
    let counted = |n: usize, thing: &str| format!("{n} {thing}{}", if n == 1 { "" } else { "s" });
    let (listeners, filters, clusters) = (
        counted(snapshot.listeners.len(), "listener"),
        counted(snapshot.plugins.len(), "filter"),
        counted(snapshot.clusters.len(), "cluster"),
    );
    let ok = if std::io::stdout().is_terminal() { "\x1b[1;32mok\x1b[0m" } else { "ok" };
    println!("{ok}: {}: {listeners}, {filters}, {clusters}", file.display());
    match compared {
        None => {}
        Some(Ok(comparison)) => {
            comparison.notes.iter().for_each(|note| stderr::say(&format!("note: {}\n", escape::lines(note))));
            print!("{}", escape::lines(&comparison.text()));
        }
        Some(Err(error)) => stderr::say(&format!("error: {}\n", escape::lines(&format!("{error:#}")))),
    }
}

/// Loads a file and builds it on trial. Returns the snapshot with all warnings.
fn checked(file: &Path) -> Result<(Arc<Snapshot>, Diagnostics), Diagnostics> {
    let loaded = match file == Path::new("-") {
        true => crate::control::load::loader().stdin(),
        false => crate::control::load::load(file),
    };
    loaded.and_then(|loaded| {
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
    })
}
