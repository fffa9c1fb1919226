//! `quire bench latency`: one batch of equal requests, again and again, and how long it takes.

use std::path::PathBuf;

use clap::Args;
use indicatif::ProgressBar;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Map, Value, json};

use super::offline::{EngineArgs, Offline, write_json};
use super::stats::{Summary, percentage_word};
use super::vocabulary::Vocabulary;
use super::workload::Sample;
use crate::cli::progress_bar;

/// The percentiles of the report.
const PERCENTAGES: [f64; 6] = [10.0, 25.0, 50.0, 75.0, 90.0, 99.0];

/// Flags of `quire bench latency`: those of `vllm bench latency`, and the engine's.
#[derive(Debug, Args)]
pub(crate) struct LatencyBench {
    /// Tokens of a prompt
    #[arg(long, value_name = "TOKENS", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    pub input_len: u32,
    /// Tokens of an answer
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub output_len: u32,
    /// Requests of a batch
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: u32,
    /// Batches before the measurement
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub num_iters_warmup: u32,
    /// Batches measured
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    pub num_iters: u32,
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

/// Runs it and prints the figures. Each batch has prompts of its own, so that none is found in the prefix
/// cache.
pub(crate) fn run(args: LatencyBench) -> anyhow::Result<()> {
    let mut rng = StdRng::seed_from_u64(args.engine.model.seed);
    let offline = Offline::start(args.engine, args.batch_size)?;
    let vocabulary = Vocabulary::ids_of(&offline.loaded().tokenizer);
    let bar = match args.disable_tqdm {
        true => ProgressBar::hidden(),
        false => {
            let num_batches = u64::from(args.num_iters_warmup) + u64::from(args.num_iters);
            progress_bar(num_batches, "{bar:40} {pos}/{len} batches [{elapsed} < {eta}]")
        }
    };
    let mut batch = || {
        let mut samples = Vec::new();
        for _ in 0..args.batch_size {
            let ids = vocabulary.draw(args.input_len, &mut rng);
            let (prompt, prompt_len) = vocabulary.prompt(ids, &mut rng)?;
            samples.push(Sample { prompt, prompt_len, output_len: args.output_len });
        }
        let elapsed = offline.run(&samples, &ProgressBar::hidden())?;
        bar.inc(1);
        anyhow::Ok(elapsed.duration.as_secs_f64())
    };
    for _ in 0..args.num_iters_warmup {
        batch()?;
    }
    let latencies_s = (0..args.num_iters).map(|_| batch()).collect::<anyhow::Result<Vec<_>>>()?;
    bar.finish_and_clear();
    offline.stop();
    report(latencies_s, args.output_json)
}

fn report(latencies_s: Vec<f64>, output_json: Option<PathBuf>) -> anyhow::Result<()> {
    let summary = Summary::of(latencies_s.clone(), &PERCENTAGES);
    println!("Avg latency: {:.6} seconds", summary.mean);
    for &(q, seconds) in &summary.percentiles {
        println!("{}% percentile latency: {seconds:.6} seconds", percentage_word(q));
    }
    let Some(path) = output_json else { return Ok(()) };
    let percentiles = summary.percentiles.iter().map(|&(q, seconds)| (percentage_word(q), json!(seconds)));
    let json = json!({
        "avg_latency": summary.mean,
        "latencies": latencies_s,
        "percentiles": Value::Object(percentiles.collect::<Map<_, _>>()),
    });
    write_json(&path, &json)
}
