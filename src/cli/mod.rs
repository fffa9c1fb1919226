//! The command line: `serve`, `chat`, `complete`, `bench` and `compile-kernels`.
//!
//! Two levels, so that nothing below sees a raw flag: [`args`] and [`layers`] are what was typed (or said
//! by the environment or a config file), [`resolve`] is what it means.

mod answer_args;
mod args;
mod bench;
mod chat;
mod client;
mod compat;
#[cfg(feature = "cuda")]
mod compile_kernels;
mod config_file;
mod kv_events;
mod layers;
mod logging;
mod lora_args;
mod numbers;
mod pooler_config;
mod reasoning_config;
mod resolve;
mod sse;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use quire_model::Progress;
use tokio::runtime::Runtime;

use self::args::{Cli, Command, LogFormat, ServeArgs};
use self::layers::UsageError;
use crate::load;
use crate::server::{self, Listeners, Signals};

/// Exit status of a command line that is not understood, as clap's.
const USAGE: u8 = 2;

/// Runs what the process's arguments ask for.
pub fn run() -> ExitCode {
    let argv: Vec<OsString> = std::env::args_os().collect();
    if is_vllm(&argv) && argv.get(1).is_some_and(|word| word == "--version" || word == "-V") {
        println!("{}", compat::VLLM_VERSION);
        return ExitCode::SUCCESS;
    }
    let cli = match layers::parse(argv, &env) {
        Ok(cli) => cli,
        Err(UsageError::Clap(error)) => error.exit(),
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(USAGE);
        }
    };
    obey(cli).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn obey(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Serve(args) => return serve(*args),
        Command::Chat(args) => runtime()?.block_on(chat::chat(args))?,
        Command::Complete(args) => runtime()?.block_on(chat::complete(args))?,
        Command::Bench(command) => {
            logging::init(LogFormat::Text)?;
            bench::run(command)?;
        }
        #[cfg(feature = "cuda")]
        Command::CompileKernels(args) => compile_kernels::run(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn serve(args: ServeArgs) -> anyhow::Result<ExitCode> {
    logging::init(args.listen.log_format)?;
    let (engine_config, server_config) = match resolve::resolve(args, &env) {
        Ok(configs) => configs,
        Err(error) => {
            eprintln!("error: {error}");
            return Ok(ExitCode::from(USAGE));
        }
    };
    let runtime = runtime()?;
    let listeners = {
        let _inside = runtime.enter();
        Listeners::bind(&server_config)?
    };
    let loaded = load::start(&engine_config, server_config.enable_log_requests, loading_bar())?;
    let (engine, app) = loaded.into_app(server_config);
    // Before anybody is told that we are here.
    let signals = {
        let _inside = runtime.enter();
        Signals::new()?
    };
    announce(&app, &listeners)?;
    let orderly = runtime.block_on(server::serve(Arc::new(app), listeners, signals))?;
    // What is still running holds doors to the engine; without them its threads end.
    runtime.shutdown_background();
    if orderly {
        engine.join();
    }
    Ok(if orderly { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn announce(app: &crate::app::App, listeners: &Listeners) -> anyhow::Result<()> {
    let scheme = if app.server.tls.is_some() { "https" } else { "http" };
    let http = match listeners.http_addr().transpose().context("the HTTP listener has no address")? {
        Some(addr) => format!("{scheme}://{addr}"),
        None => format!("unix:{}", app.server.uds.as_deref().unwrap_or(Path::new("")).display()),
    };
    let grpc = listeners.grpc_addr().transpose().context("the gRPC listener has no address")?;
    match grpc {
        Some(grpc) => {
            println!("Quire serves {} on {http} (OpenAI) and {grpc} (gRPC)", app.model.name())
        }
        None => println!("Quire serves {} on {http} (OpenAI)", app.model.name()),
    }
    tracing::info!(
        model = app.model.name(),
        max_model_len = app.limits.max_model_len,
        kv_blocks = app.model.num_blocks,
        max_num_seqs = app.model.max_num_seqs,
        http = %http,
        grpc = grpc.map(|addr| addr.to_string()),
        "serving"
    );
    Ok(())
}

/// A bar of the layers loaded, on a terminal; nothing is drawn elsewhere.
fn loading_bar() -> impl FnMut(Progress) + Send + 'static {
    let bar = progress_bar(0, "loading {bar:30} {pos}/{len} layers");
    move |progress: Progress| {
        bar.set_length(progress.num_layers as u64);
        bar.set_position(progress.layers as u64);
        if progress.layers == progress.num_layers {
            bar.finish_and_clear();
        }
    }
}

/// A bar on standard error, if that is a terminal.
fn progress_bar(len: u64, template: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    ProgressBar::new(len).with_style(ProgressStyle::with_template(template).expect("the template is valid"))
}

fn runtime() -> anyhow::Result<Runtime> {
    Runtime::new().context("cannot start threads for sockets")
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn is_vllm(argv: &[OsString]) -> bool {
    argv.first().and_then(|program| Path::new(program).file_stem()).is_some_and(|stem| stem == "vllm")
}
