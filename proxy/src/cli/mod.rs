//! The command line.

mod check;
pub mod trial;

use std::{io, path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};

use crate::{
    bench, builtins, ca, config, escape,
    observe::log::{colours, stderr},
    process, tools,
    wasm::engine::compiler,
};

/// A programmable proxy: the core moves bytes, WebAssembly filters decide.
#[derive(Debug, Parser)]
#[command(name = "tollgate", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy.
    ///
    /// SIGTERM drains and stops, SIGHUP reloads, SIGUSR1 reopens the access logs. The configuration and the filters are
    /// watched and reloaded when they change. Docs: docs/operating.md.
    Run {
        /// The configuration: YAML, JSON or TOML, by its extension.
        file: PathBuf,
        /// Set the log level, overriding the configuration: `debug`, `info,tollgate::filter=trace`.
        #[arg(long, value_name = "LEVEL", env = "TOLLGATE_LOG")]
        log_level: Option<String>,
        /// Replace a running Tollgate without losing a connection: listen alongside it, and tell it to drain when this
        /// process is ready. Both must run as the same user.
        #[arg(long, value_name = "PID")]
        replace: Option<i32>,
    },
    /// Check a configuration, including those of the filters, without starting anything.
    ///
    /// The exit status is 0 if it can be used, otherwise 1. With `--against`: 0 if nothing would change, 1 if something
    /// would, 2 if the configuration cannot be used or the proxy cannot be asked.
    Check(check::CheckArgs),
    /// Print the JSON Schema of the configuration, for editors.
    Schema,
    /// Create a filter project that builds and passes its tests out of the box.
    New(tools::new::NewArgs),
    /// Test a compiled filter in the real host against a file of cases, without a network.
    ///
    /// Docs and examples: docs/tools.md. The exit status is 0 if all cases pass, otherwise 1.
    Test(tools::cases::TestArgs),
    /// Show what a filter module needs and can do, and whether this version can load it.
    ///
    /// The exit status is 0 if the module can be loaded, otherwise 1.
    Inspect(tools::inspect::InspectArgs),
    /// Run a certificate authority for development and small meshes: a root, certificates, join tokens.
    ///
    /// A proxy with `admin.ca` signs certificates for workloads that present a join token; a proxy with `workload`
    /// obtains its certificate from there. Docs: docs/operating.md.
    Ca {
        #[command(subcommand)]
        what: ca::command::CaCommand,
    },
    /// Print the version and the build features.
    Version,
    /// Print shell completions for this command.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Run benchmarks.
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Run a configuration's filter chain in this process and show what each filter costs.
    Chain(Box<bench::chain::ChainArgs>),
    /// Send load to a URL and report latency and throughput.
    Load(Box<bench::load::LoadArgs>),
}

/// Runs the command line.
pub fn main() -> ExitCode {
    // A compiler process needs nothing of the rest.
    if let Some(code) = compiler::job::run_if_asked() {
        return code;
    }
    let _flush = stderr::FlushAtEnd;
    let result = match Cli::parse().command {
        Command::Run { file, log_level, replace } => {
            let log_level = log_level.filter(|level| !level.is_empty());
            process::run(process::Options { file, log_level, replace })
        }
        Command::Check(args) => return check::run(&args),
        Command::Schema => {
            println!("{:#}", config::schema());
            Ok(())
        }
        Command::Version => {
            println!("{}", version());
            Ok(())
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut command(), "tollgate", &mut io::stdout());
            Ok(())
        }
        Command::New(args) => tools::new::run(&args),
        Command::Test(args) => return exit("no case was run", tools::cases::run(&args)),
        Command::Inspect(args) => return exit(UNUSABLE, tools::inspect::run(&args)),
        Command::Ca { what } => ca::command::run(&what),
        Command::Bench { what: Bench::Chain(args) } => bench::chain::run(&args),
        Command::Bench { what: Bench::Load(args) } => bench::load::run(*args),
    };
    exit(UNUSABLE, result.map(|()| ExitCode::SUCCESS))
}

/// The command line's commands and options.
pub fn command() -> clap::Command {
    Cli::command()
}

/// The summary of errors in a configuration.
const UNUSABLE: &str = "the configuration cannot be used";

/// Returns the exit status, after printing an error. `so` is the summary of errors in a file.
fn exit(so: &str, result: anyhow::Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(e) => {
            let color = colours();
            let error = if color { "\x1b[1;31merror\x1b[0m" } else { "error" };
            match e.downcast_ref::<config::Diagnostics>() {
                Some(wrong) => stderr::say(&format!("{}\n{error}: {so}\n", wrong.render(color))),
                None => stderr::say(&format!("{error}: {}\n", escape::lines(&format!("{e:#}")))),
            }
            ExitCode::FAILURE
        }
    }
}

/// Returns the version, the target, the features and the built-in filters.
fn version() -> String {
    let features = [
        ("consul", cfg!(feature = "consul")),
        ("http3", cfg!(feature = "http3")),
        ("kubernetes", cfg!(feature = "kubernetes")),
    ];
    let features: Vec<_> = features.into_iter().filter_map(|(name, is_on)| is_on.then_some(name)).collect();
    let features = if features.is_empty() { "none".to_owned() } else { features.join(", ") };
    let (version, arch, os) = (env!("CARGO_PKG_VERSION"), std::env::consts::ARCH, std::env::consts::OS);
    format!("tollgate {version}\ntarget   {arch}-{os}\nfeatures {features}\nfilters  {}", builtins::NAMES.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound_and_every_shell_has_its_completions() {
        command().debug_assert();
        for shell in <clap_complete::Shell as clap::ValueEnum>::value_variants() {
            let mut out = Vec::new();
            clap_complete::generate(*shell, &mut command(), "tollgate", &mut out);
            assert!(String::from_utf8_lossy(&out).contains("completions"), "{shell}");
        }
    }

    #[test]
    fn the_version_names_target_and_features() {
        let said = version();
        for what in [env!("CARGO_PKG_VERSION"), std::env::consts::ARCH, "features", "router"] {
            assert!(said.contains(what), "{what}: {said}");
        }
    }
}
