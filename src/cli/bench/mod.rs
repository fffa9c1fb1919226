//! `quire bench`: measures a server, the engine, or serving itself.

mod arrivals;
mod engine;
mod engine_clients;
mod latency;
mod measure;
mod offline;
mod report;
mod result_file;
mod serve;
mod serve_args;
mod stats;
mod thread_cpu;
mod throughput;
mod vocabulary;
mod workload;

use clap::Subcommand;

use self::engine::EngineBench;
use self::latency::LatencyBench;
use self::serve_args::ServeBench;
use self::throughput::ThroughputBench;

/// The benches.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Measure a running server as its clients see it
    Serve(Box<ServeBench>),
    /// Measure the engine without a server: how much it does when it always has enough to do
    Throughput(Box<ThroughputBench>),
    /// Measure the engine without a server: how long one batch takes
    Latency(Box<LatencyBench>),
    /// Measure what serving itself costs: the whole server over a simulated model
    Engine(EngineBench),
}

/// Runs one.
pub(crate) fn run(command: BenchCommand) -> anyhow::Result<()> {
    match command {
        BenchCommand::Serve(args) => serve::run(&args),
        BenchCommand::Throughput(args) => throughput::run(*args),
        BenchCommand::Latency(args) => latency::run(*args),
        BenchCommand::Engine(args) => engine::run(&args),
    }
}
