//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// What the figures are of, if nothing else is said.
pub const RELEASE: &str = "target/release/tollgate";

/// Compares Tollgate with nginx, HAProxy and Envoy on this machine, over the loopback interface.
///
/// Each run starts one proxy on processors of its own, puts load on it, and ends it; runs of the compared proxies take
/// turns. The results are kept in docs/performance/ and shown in docs/performance.md.
///
/// Latencies are taken at half of what a scenario's slowest proxy carries here. A run that fails is tried again; what keeps
/// failing is shown with its reason, and is an error only if nothing is left to compare, or with --smoke.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// The scenarios to run; all of them, if none is named
    #[arg(value_name = "SCENARIO")]
    pub scenarios: Vec<String>,

    /// How often each proxy has its turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,

    /// How long each load lasts, in seconds
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,

    /// 2 rounds of 1 second
    #[arg(long)]
    pub quick: bool,

    /// Only see whether everything works: one round of short runs at low rates, whose figures mean nothing and are not kept
    #[arg(long)]
    pub smoke: bool,

    /// First install what is missing: Debian packages by apt-get (with sudo), Envoy by pip into the cache folder
    #[arg(long)]
    pub install: bool,

    /// Only say what there is
    #[arg(long)]
    pub list: bool,

    /// Do not change docs/performance.md and docs/performance/
    #[arg(long)]
    pub dry_run: bool,

    /// Only write docs/performance.md and its plots again, from the results that are there
    #[arg(long)]
    pub write: bool,

    /// For how many seconds in all to wait for a quiet machine, and to repeat runs that other processes have disturbed
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub patience: u64,

    /// The commit that the results are of, if not that of this folder
    #[arg(long)]
    pub commit: Option<String>,

    /// Another build than a plain release is named on the page
    #[arg(long, value_name = "FILE", default_value = RELEASE)]
    pub tollgate: PathBuf,

    /// Default: the one in the cache folder, or on the PATH
    #[arg(long, value_name = "FILE")]
    pub envoy: Option<PathBuf>,

    /// Where the filters are that `cargo filters` makes
    #[arg(long, value_name = "FOLDER", default_value = "target/filters/wasm32-unknown-unknown/filter")]
    pub modules: PathBuf,

    /// Where those are that `cargo portable` makes, for any Proxy-Wasm host
    #[arg(long, value_name = "FOLDER", default_value = "target/portable/wasm32-unknown-unknown/filter")]
    pub portable: PathBuf,

    /// For configurations, logs, and the cache of what was downloaded
    #[arg(long, value_name = "FOLDER", default_value = "target/peers")]
    pub work: PathBuf,

    /// Where performance.md and the folder performance are
    #[arg(long, value_name = "FOLDER", default_value = "docs")]
    pub docs: PathBuf,
}

impl Args {
    /// Rounds, and seconds of each load.
    pub fn extent(&self) -> (u32, u64) {
        match (self.smoke, self.quick) {
            (true, _) => (1, 1),
            (false, true) => (2, 1),
            _ => (self.rounds, self.seconds),
        }
    }

    /// Whether the results are kept.
    pub fn keeps(&self) -> bool {
        !self.dry_run && !self.smoke
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents() {
        use clap::CommandFactory;
        Args::command().debug_assert();
        assert_eq!(Args::parse_from(["peers"]).extent(), (5, 1));
        assert_eq!(Args::parse_from(["peers", "--quick", "--rounds", "9", "bare"]).extent(), (2, 1));
    }
}
