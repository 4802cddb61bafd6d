//! placeholder
use clap::Args;
/// x
#[derive(Debug, Args)]
pub struct ChainArgs {}
/// x
pub fn run(_: &ChainArgs) -> anyhow::Result<()> { Ok(()) }
