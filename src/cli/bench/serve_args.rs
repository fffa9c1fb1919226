//! Flags of `quire bench serve`: names and defaults are those of `vllm bench serve`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value};

use super::measure::Api;
use super::report::{Goal, Metric, ReportOptions};
use super::workload::DatasetArgs;

/// Flags of `quire bench serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeBench {
    /// Which API to speak: completions (openai, vllm) or chat
    #[arg(long, value_enum, default_value_t = Api::Openai)]
    pub backend: Api,
    /// The server, instead of --host and --port: http://host:port
    #[arg(long, value_name = "URL")]
    pub base_url: Option<String>,
    /// Host of the server
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// Port of the server
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// Path of the API [default: /v1/completions, or /v1/chat/completions for chat]
    #[arg(long, value_name = "PATH", value_parser = parse_path)]
    pub endpoint: Option<String>,
    /// Model to ask for [default: the first that the server lists]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Name to ask for, if the server calls --model by another one
    #[arg(long, value_name = "NAME")]
    pub served_model_name: Option<String>,
    /// Folder with the model's tokenizer: prompts are then sent as text, and texts of files are counted
    #[arg(long, value_name = "FOLDER")]
    pub tokenizer: Option<PathBuf>,
    /// Without --tokenizer: made-up prompts are token ids from 10 up to this one (for chat: as many words)
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(11..))]
    pub vocab_size: u32,
    /// Key for the server
    #[arg(long, value_name = "KEY", env = "OPENAI_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Headers of every request
    #[arg(long, value_name = "NAME=VALUE", num_args = 1.., value_parser = parse_pair)]
    pub header: Vec<(String, String)>,

    /// What to send.
    #[command(flatten)]
    pub dataset: DatasetArgs,
    /// When to send.
    #[command(flatten)]
    pub load: LoadArgs,
    /// What to ask for besides.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// What to tell.
    #[command(flatten)]
    pub report: ReportArgs,
}

/// When requests are sent.
#[derive(Debug, Args)]
#[command(next_help_heading = "Load")]
pub(crate) struct LoadArgs {
    /// Requests sent a second; inf = all at once
    #[arg(long, value_name = "RATE", default_value = "inf", value_parser = parse_rate)]
    pub request_rate: f64,
    /// How even the gaps between requests are: 1 = by chance (Poisson), less = bursts, more = even
    #[arg(long, value_name = "SHAPE", default_value = "1.0", value_parser = parse_burstiness)]
    pub burstiness: f64,
    /// Requests open together at most; those that are due wait
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_concurrency: Option<u32>,
    /// Requests sent before the measurement
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub num_warmups: u32,
    /// Seconds to wait until the server answers a request; 0 = no check
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub ready_check_timeout_sec: u64,
    /// Decides prompts, lengths and arrivals
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// Fields of every request.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling (what is not given is left to the server)")]
pub(crate) struct SamplingArgs {
    /// Let each answer run to its full length
    #[arg(long)]
    pub ignore_eos: bool,
    /// 0 = greedy
    #[arg(long)]
    pub temperature: Option<f64>,
    /// Keep the most likely tokens that together have this probability
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// Keep so many of the most likely tokens
    #[arg(long, value_name = "K", allow_hyphen_values = true)]
    pub top_k: Option<i64>,
    /// Keep tokens at least this fraction as likely as the best
    #[arg(long, value_name = "P")]
    pub min_p: Option<f64>,
    /// JSON object whose fields are put into every request
    #[arg(long, value_name = "JSON", value_parser = parse_object)]
    pub extra_body: Option<Map<String, Value>>,
}

/// What is reported, and where to.
#[derive(Debug, Args)]
#[command(next_help_heading = "Report")]
pub(crate) struct ReportArgs {
    /// Times to report: ttft, tpot, itl, e2el
    #[arg(long, value_name = "METRICS", value_enum, value_delimiter = ',', default_value = "ttft,tpot,itl")]
    pub percentile_metrics: Vec<Metric>,
    /// Percentiles of each
    #[arg(long, value_name = "PERCENTAGES", value_delimiter = ',', default_value = "99", value_parser = parse_percentage)]
    pub metric_percentiles: Vec<f64>,
    /// Count requests that keep these limits in milliseconds: ttft:200 tpot:20 e2el:2000
    #[arg(long, value_name = "METRIC:MS", num_args = 1.., value_parser = parse_goal)]
    pub goodput: Vec<Goal>,
    /// Write the figures to a JSON file
    #[arg(long)]
    pub save_result: bool,
    /// And those of each request, with the generated texts
    #[arg(long)]
    pub save_detailed: bool,
    /// Add a line to the file instead of replacing it
    #[arg(long)]
    pub append_result: bool,
    /// Folder of the file [default: the current one]
    #[arg(long, value_name = "FOLDER")]
    pub result_dir: Option<PathBuf>,
    /// Name of the file [default: LABEL-RATEqps[-concurrencyN]-MODEL-DATE.json]
    #[arg(long, value_name = "NAME")]
    pub result_filename: Option<String>,
    /// Names the run in the file [default: the backend]
    #[arg(long)]
    pub label: Option<String>,
    /// Further fields of the file
    #[arg(long, value_name = "NAME=VALUE", num_args = 1.., value_parser = parse_pair)]
    pub metadata: Vec<(String, String)>,
    /// No progress bar
    #[arg(long)]
    pub disable_tqdm: bool,
}

impl ReportArgs {
    /// What the report shall contain.
    pub(crate) fn options(&self) -> ReportOptions {
        ReportOptions {
            metrics: self.percentile_metrics.clone(),
            percentages: self.metric_percentiles.clone(),
            goals: self.goodput.clone(),
        }
    }
}

impl SamplingArgs {
    /// As fields of a request; `--extra-body` wins.
    pub(crate) fn fields(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        let numbers = [("temperature", self.temperature), ("top_p", self.top_p), ("min_p", self.min_p)];
        fields.extend(numbers.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into()))));
        fields.extend(self.top_k.map(|k| ("top_k".to_owned(), k.into())));
        if self.ignore_eos {
            fields.insert("ignore_eos".into(), true.into());
        }
        fields.extend(self.extra_body.clone().unwrap_or_default());
        fields
    }
}

fn parse_path(text: &str) -> Result<String, String> {
    let is_path = text.starts_with('/') && text.parse::<hyper::Uri>().is_ok();
    if is_path { Ok(text.into()) } else { Err("must be a path like /v1/completions".into()) }
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE")?;
    Ok((name.trim().into(), value.trim().into()))
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|&rate| rate > 0.0);
    rate.ok_or_else(|| "must be a number above 0, or inf".into())
}

fn parse_burstiness(text: &str) -> Result<f64, String> {
    let shape = text.parse::<f64>().ok().filter(|&shape| shape > 0.0 && shape.is_finite());
    shape.ok_or_else(|| "must be a number above 0".into())
}

fn parse_percentage(text: &str) -> Result<f64, String> {
    let percentage = text.trim().parse::<f64>().ok().filter(|q| (0.0..=100.0).contains(q));
    percentage.ok_or_else(|| "must be between 0 and 100".into())
}

fn parse_object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("must be a JSON object: {error}"))
}

fn parse_goal(text: &str) -> Result<Goal, String> {
    let parse = || {
        let (name, limit) = text.split_once(':')?;
        let metric = Metric::from_str(name, true).ok().filter(|&metric| metric != Metric::Itl)?;
        let limit_ms = limit.parse::<f64>().ok().filter(|&limit| limit >= 0.0)?;
        Some(Goal { metric, limit_ms })
    };
    parse().ok_or_else(|| "must be ttft:MS, tpot:MS or e2el:MS".into())
}
