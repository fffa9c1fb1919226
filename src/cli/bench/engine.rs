//! `quire bench engine`: the whole server stack over a simulated model, to measure what serving itself costs.
//!
//! The model computes nothing and is never the limit, so tokens per second is what the rest can carry:
//! scheduler, engine and output threads, detokenisation, and with `--through http|grpc` the sockets. The
//! clients run in this process, on threads of their own, so that their CPU time can be told apart.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde::Serialize;
use tokio::runtime::{Builder, Runtime};

use super::engine_clients::{self, Work};
use super::thread_cpu::thread_cpu_s;
use crate::server::{Listeners, Serving};
use crate::simulated::{self, Simulation};

/// Flags of `quire bench engine`.
#[derive(Debug, Args)]
pub struct EngineBench {
    /// What the tokens go through: the engine and output threads alone, or the sockets of a protocol too.
    #[arg(long, value_enum, default_value = "engine")]
    pub through: Through,
    /// Streams open at the same time.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub num_streams: u32,
    /// Requests in all.
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..))]
    pub num_prompts: u32,
    /// Tokens in each prompt.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub input_len: u32,
    /// Tokens generated for each prompt.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=16384))]
    pub output_len: u32,
    /// Microseconds that a step of the simulated model takes; 0 = none.
    #[arg(long, default_value_t = 0.0)]
    pub step_us: f64,
    /// Also write the figures to this file, as JSON.
    #[arg(long)]
    pub output_json: Option<std::path::PathBuf>,
}

/// How far tokens travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Through {
    /// From the scheduler to the mailbox of each stream.
    Engine,
    /// Server-sent events over loopback.
    Http,
    /// `GenerateStream` over loopback.
    Grpc,
}

/// The figures.
#[derive(Debug, Serialize)]
struct Report {
    through: Through,
    num_streams: u32,
    num_prompts: u32,
    input_len: u32,
    output_len: u32,
    step_us: f64,
    num_cpus: usize,
    duration_s: f64,
    output_tokens: u64,
    tokens_per_s: f64,
    requests_per_s: f64,
    /// What clients were handed: deltas, SSE frames or messages. Fewer than tokens where they coalesced.
    num_messages: u64,
    num_steps: u64,
    /// Microseconds of CPU a token, by thread.
    cpu_us_per_token: BTreeMap<String, f64>,
    /// Microseconds of CPU a request, clients left out.
    server_cpu_us_per_request: f64,
    server_cpu_us_per_token: f64,
}

/// Runs the bench and prints its report.
pub fn run(args: &EngineBench) -> anyhow::Result<()> {
    let server = named_runtime("server")?;
    let clients = named_runtime("client")?;
    let _entered = server.enter();
    let simulation = Simulation {
        max_num_seqs: args.num_streams,
        max_model_len: args.input_len + args.output_len,
        step_us: args.step_us,
    };
    let (engine, app) = simulated::start(&simulation)?;
    let app = Arc::new(app);
    let stats = app.engine.clone();
    let work = Work {
        num_streams: args.num_streams,
        num_prompts: args.num_prompts,
        input_len: args.input_len,
        output_len: args.output_len,
    };
    let serving = match args.through {
        Through::Engine => None,
        _ => {
            let listeners = Listeners::bind(&app.server)?;
            let addr = match args.through {
                Through::Http => listeners.http_addr().context("HTTP is not listening")??,
                _ => listeners.grpc_addr().context("gRPC is not listening")??,
            };
            Some((Serving::start(&app, listeners), addr))
        }
    };
    let cpu_before = thread_cpu_s()?;
    let start = Instant::now();
    let driven = match &serving {
        None => clients.block_on(engine_clients::through_engine(stats.clone(), work)),
        Some((_, addr)) if args.through == Through::Http => {
            clients.block_on(engine_clients::through_http(*addr, work))
        }
        Some((_, addr)) => clients.block_on(engine_clients::through_grpc(*addr, work)),
    };
    let num_messages = driven?;
    let duration = start.elapsed();
    let cpu = cpu_since(&cpu_before)?;
    let report = report(args, duration, num_messages, stats.stats().num_steps(), &cpu);
    print(&report);
    if let Some(path) = &args.output_json {
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some((serving, _)) = serving {
        server.block_on(serving.stop());
    }
    // Its threads end with the process; joining would wait for connections that clients keep open.
    drop(engine);
    clients.shutdown_background();
    drop(_entered);
    server.shutdown_background();
    Ok(())
}

fn named_runtime(name: &str) -> anyhow::Result<Runtime> {
    Builder::new_multi_thread().thread_name(name).enable_all().build().context("cannot start threads")
}

fn cpu_since(before: &BTreeMap<String, f64>) -> anyhow::Result<BTreeMap<String, f64>> {
    let mut after = thread_cpu_s()?;
    for (name, seconds) in &mut after {
        *seconds -= before.get(name).copied().unwrap_or(0.0);
    }
    after.retain(|_, seconds| *seconds > 0.0);
    Ok(after)
}

fn report(
    args: &EngineBench,
    duration: Duration,
    num_messages: u64,
    num_steps: u64,
    cpu: &BTreeMap<String, f64>,
) -> Report {
    let output_tokens = u64::from(args.num_prompts) * u64::from(args.output_len);
    let per_token = |seconds: f64| seconds * 1e6 / output_tokens as f64;
    // Through the engine alone, "client" is what a front end would do to receive: part of serving.
    let is_server = |name: &str| args.through == Through::Engine || !is_client(name);
    let server_s: f64 = cpu.iter().filter(|(name, _)| is_server(name)).map(|(_, seconds)| seconds).sum();
    Report {
        through: args.through,
        num_streams: args.num_streams,
        num_prompts: args.num_prompts,
        input_len: args.input_len,
        output_len: args.output_len,
        step_us: args.step_us,
        num_cpus: std::thread::available_parallelism().map_or(1, usize::from),
        duration_s: duration.as_secs_f64(),
        output_tokens,
        tokens_per_s: output_tokens as f64 / duration.as_secs_f64(),
        requests_per_s: f64::from(args.num_prompts) / duration.as_secs_f64(),
        num_messages,
        num_steps,
        cpu_us_per_token: cpu.iter().map(|(name, &seconds)| (name.clone(), per_token(seconds))).collect(),
        server_cpu_us_per_request: server_s * 1e6 / f64::from(args.num_prompts),
        server_cpu_us_per_token: per_token(server_s),
    }
}

/// The main thread drives the clients, so its time is theirs.
fn is_client(thread: &str) -> bool {
    thread == "client" || thread == "quire"
}

fn print(report: &Report) {
    println!("through                      {:?}", report.through);
    println!("streams / requests           {} / {}", report.num_streams, report.num_prompts);
    println!("tokens in / out a request    {} / {}", report.input_len, report.output_len);
    println!("duration                     {:.2} s", report.duration_s);
    println!("output tokens                {}", report.output_tokens);
    println!("output tokens per second     {:.0}", report.tokens_per_s);
    println!("requests per second          {:.1}", report.requests_per_s);
    println!("tokens a message             {:.2}", report.output_tokens as f64 / report.num_messages as f64);
    println!("tokens a step                {:.1}", report.output_tokens as f64 / report.num_steps as f64);
    println!("server CPU a token           {:.2} us", report.server_cpu_us_per_token);
    println!("server CPU a request         {:.1} us", report.server_cpu_us_per_request);
    for (thread, us) in &report.cpu_us_per_token {
        println!("  {thread:<26} {us:.3} us CPU a token");
    }
}
