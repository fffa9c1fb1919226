//! `quire bench`: measures a server, the engine, or serving itself.

use clap::Subcommand;

/// The benches.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {}

/// Runs one.
pub fn run(command: BenchCommand) -> anyhow::Result<()> {
    match command {}
}
