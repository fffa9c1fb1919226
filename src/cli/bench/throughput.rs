//! `quire bench throughput`: all requests at once, and how much the engine does in a second.

use std::path::PathBuf;

use anyhow::ensure;
use clap::Args;
use indicatif::ProgressBar;
use serde_json::json;

use super::offline::{Elapsed, EngineArgs, Offline, write_json};
use super::vocabulary::Vocabulary;
use super::workload::{DatasetArgs, samples};
use crate::cli::progress_bar;

/// Flags of `quire bench throughput`: those of `vllm bench throughput`, and the engine's.
#[derive(Debug, Args)]
pub(crate) struct ThroughputBench {
    /// What to ask.
    #[command(flatten)]
    pub dataset: DatasetArgs,
    /// Write the figures to this JSON file
    #[arg(long, value_name = "FILE")]
    pub output_json: Option<PathBuf>,
    /// No progress bar
    #[arg(long)]
    pub disable_tqdm: bool,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Runs it and prints the figures.
pub(crate) fn run(args: ThroughputBench) -> anyhow::Result<()> {
    let num_requests = args.dataset.num_prompts;
    let seed = args.engine.model.seed;
    let offline = Offline::start(args.engine, num_requests)?;
    let tokenizer = &offline.loaded().tokenizer;
    let vocabulary = Vocabulary::ids_of(tokenizer);
    let samples = samples(&args.dataset, 0, seed, &vocabulary, Some(tokenizer))?;
    let bar = match args.disable_tqdm {
        true => ProgressBar::hidden(),
        false => progress_bar(num_requests.into(), "{bar:40} {pos}/{len} requests [{elapsed} < {eta}]"),
    };
    let elapsed = offline.run(&samples, &bar)?;
    bar.finish_and_clear();
    offline.stop();
    report(num_requests, elapsed, args.output_json)
}

fn report(num_requests: u32, elapsed: Elapsed, output_json: Option<PathBuf>) -> anyhow::Result<()> {
    let seconds = elapsed.duration.as_secs_f64();
    ensure!(seconds > 0.0, "the clock did not move");
    let tokens = elapsed.prompt_tokens + elapsed.output_tokens;
    let (requests_per_s, tokens_per_s) = (f64::from(num_requests) / seconds, tokens as f64 / seconds);
    println!(
        "Throughput: {requests_per_s:.2} requests/s, {tokens_per_s:.2} total tokens/s, {:.2} output tokens/s",
        elapsed.output_tokens as f64 / seconds
    );
    println!("Total num prompt tokens:  {}", elapsed.prompt_tokens);
    println!("Total num output tokens:  {}", elapsed.output_tokens);
    let Some(path) = output_json else { return Ok(()) };
    let json = json!({
        "elapsed_time": seconds,
        "num_requests": num_requests,
        "total_num_tokens": tokens,
        "requests_per_second": requests_per_s,
        "tokens_per_second": tokens_per_s,
    });
    write_json(&path, &json)
}
