//! `quire bench`: measures a server, the engine, or serving itself.

mod engine;
mod engine_clients;
mod thread_cpu;

use clap::Subcommand;

/// The benches.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// What serving itself costs: the whole server over a simulated model.
    Engine(engine::EngineBench),
}

/// Runs one.
pub fn run(command: BenchCommand) -> anyhow::Result<()> {
    match command {
        BenchCommand::Engine(args) => engine::run(&args),
    }
}
