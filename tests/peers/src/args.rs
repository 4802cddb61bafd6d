//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// The executable that is measured by default.
pub const RELEASE: &str = "target/release/tollgate";

/// Compares Tollgate with nginx, HAProxy and Envoy on this machine, over the loopback interface.
///
/// Each run starts one proxy on its own processors, puts load on it, and stops it; runs of the compared proxies
/// alternate. The results are stored in docs/performance/ and shown in docs/performance.md.
///
/// Latencies are measured at half the rate that a scenario's slowest proxy carries here. A failed run is repeated; if it keeps
/// failing, the page shows the reason, and it is an error only if nothing is left to compare, or with --smoke.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// Run only these scenarios [default: all]
    #[arg(value_name = "SCENARIO")]
    pub scenarios: Vec<String>,

    /// Run each proxy this many times
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,

    /// Run each load for this many seconds
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,

    /// Run 2 rounds of 1 second
    #[arg(long)]
    pub quick: bool,

    /// Only check that everything works: one round of short runs at low rates, whose results are discarded
    #[arg(long)]
    pub smoke: bool,

    /// Install missing programs first: Debian packages with apt-get (and sudo), Envoy with pip into the cache folder
    #[arg(long)]
    pub install: bool,

    /// List the scenarios
    #[arg(long)]
    pub list: bool,

    /// Do not change docs/performance.md and docs/performance/
    #[arg(long)]
    pub dry_run: bool,

    /// Only rewrite docs/performance.md and its plots from the stored results
    #[arg(long)]
    pub write: bool,

    /// Spend at most this many seconds in total on waiting for a quiet machine and on repeating disturbed runs
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub patience: u64,

    /// Record this commit with the results [default: the current commit]
    #[arg(long)]
    pub commit: Option<String>,

    /// Measure this executable; the page names it unless it is the plain release build
    #[arg(long, value_name = "FILE", default_value = RELEASE)]
    pub tollgate: PathBuf,

    /// Use this Envoy [default: the one in the cache folder, or on the PATH]
    #[arg(long, value_name = "FILE")]
    pub envoy: Option<PathBuf>,

    /// Find the filters built by `cargo filters` here
    #[arg(long, value_name = "FOLDER", default_value = "target/filters/wasm32-unknown-unknown/filter")]
    pub modules: PathBuf,

    /// Find the filters built by `cargo portable`, for any Proxy-Wasm host, here
    #[arg(long, value_name = "FOLDER", default_value = "target/portable/wasm32-unknown-unknown/filter")]
    pub portable: PathBuf,

    /// Store configurations, logs and downloads here
    #[arg(long, value_name = "FOLDER", default_value = "target/peers")]
    pub work: PathBuf,

    /// Find performance.md and the folder performance here
    #[arg(long, value_name = "FOLDER", default_value = "docs")]
    pub docs: PathBuf,
}

impl Args {
    /// The number of rounds, and the seconds per load.
    pub fn extent(&self) -> (u32, u64) {
        match (self.smoke, self.quick) {
            (true, _) => (1, 1),
            (false, true) => (2, 1),
            _ => (self.rounds, self.seconds),
        }
    }

    /// Whether the results are stored.
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
