//! The command line.

mod check;

use std::{io::IsTerminal, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{bench, ca, config, control::server, observe, tools};

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
    /// SIGTERM drains and stops, SIGHUP reloads; the configuration and the filters are watched and swapped when they change.
    Run {
        /// The configuration: YAML, JSON or TOML, by its name.
        file: PathBuf,
    },
    /// Check a configuration, the filters' own included, without starting anything.
    Check {
        /// The configuration.
        file: PathBuf,
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the JSON Schema of the configuration, for editors.
    Schema,
    /// Create a filter project that builds and passes its tests out of the box.
    New(tools::new::NewArgs),
    /// Test a compiled filter in the real host against a file of cases, without a network.
    ///
    /// Docs and examples: docs/tools.md. The exit status is 0 if all cases pass, else 1.
    Test(tools::cases::TestArgs),
    /// Show what a filter module needs and can do, and whether this version can load it.
    ///
    /// The exit status is 0 if it can be loaded, else 1.
    Inspect(tools::inspect::InspectArgs),
    /// A certificate authority for development and small meshes: a root, certificates, join tokens.
    ///
    /// A proxy with `admin.ca` signs for those that show a join token; a proxy with `workload` gets its certificate from
    /// there. Docs: docs/operating.md.
    Ca {
        #[command(subcommand)]
        what: ca::command::CaCommand,
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

/// Whether standard error is a terminal that wants colours.
fn color_on_stderr() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run { file } => run(file),
        Command::Check { file, json } => return check::run(&file, json),
        Command::Schema => {
            println!("{:#}", config::schema());
            Ok(())
        }
        Command::New(args) => tools::new::run(&args),
        Command::Test(args) => return exit(tools::cases::run(&args)),
        Command::Inspect(args) => return exit(tools::inspect::run(&args)),
        Command::Ca { what } => ca::command::run(&what),
        Command::Bench { what: Bench::Chain(args) } => bench::chain::run(&args),
        Command::Bench { what: Bench::Load(args) } => bench::load::run(*args),
    };
    exit(result.map(|()| ExitCode::SUCCESS))
}

/// The exit status; an error is shown.
fn exit(result: anyhow::Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(e) => {
            let color = color_on_stderr();
            let error = if color { "\x1b[1;31merror\x1b[0m" } else { "error" };
            match e.downcast_ref::<config::Diagnostics>() {
                Some(wrong) => eprintln!("{}\n{error}: the configuration cannot be used", wrong.render(color)),
                None => eprintln!("{error}: {e:#}"),
            }
            ExitCode::FAILURE
        }
    }
}

fn run(file: PathBuf) -> anyhow::Result<()> {
    let loaded = server::load(&file)?;
    if !loaded.warnings.is_empty() {
        eprint!("{}", loaded.warnings.render(color_on_stderr()));
    }
    let log = observe::log::init(&loaded.config.log)?;
    server::run(file, loaded, log)
}
