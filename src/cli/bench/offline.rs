//! The engine in this process, without sockets, fed with prompts in token ids.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use indicatif::ProgressBar;
use quire_scheduler::SamplingParams;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use super::vocabulary::Prompt;
use super::workload::Sample;
use crate::cli::args::{ModelArgs, SchedulingArgs};
use crate::cli::{env, loading_bar, resolve};
use crate::engine::{FinishKind, GenerateRequest, OutputStream, TextOptions};
use crate::load::{self, Loaded};

/// What clap gives where `--max-logprobs` was not typed.
const DEFAULT_MAX_LOGPROBS: i64 = 20;

/// The engine's flags: those of `quire serve`.
#[derive(Debug, Args)]
pub(crate) struct EngineArgs {
    /// Everything about the model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Everything about memory and steps.
    #[command(flatten)]
    pub scheduling: SchedulingArgs,
}

/// A running engine.
pub(crate) struct Offline {
    loaded: Loaded,
    runtime: Runtime,
}

/// Flags of `serve` that are about its clients: there are none here.
fn refuse_without_effect(model: &ModelArgs) -> anyhow::Result<()> {
    let given = [
        ("--served-model-name", !model.served_model_name.is_empty()),
        ("--chat-template", model.chat_template.is_some()),
        ("--max-logprobs", model.max_logprobs != DEFAULT_MAX_LOGPROBS),
    ];
    match given.iter().find(|(_, is_given)| *is_given) {
        Some((flag, _)) => bail!("{flag} has no effect on an engine without clients; leave it out"),
        None => Ok(()),
    }
}

/// What one run through the engine came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Elapsed {
    /// From the first request to the last token.
    pub duration: Duration,
    /// Of all prompts.
    pub prompt_tokens: u64,
    /// Of all answers.
    pub output_tokens: u64,
}

impl Offline {
    /// Loads the model and starts the engine, which takes at least `num_requests` at a time.
    pub(crate) fn start(args: EngineArgs, num_requests: u32) -> anyhow::Result<Self> {
        refuse_without_effect(&args.model)?;
        let mut config = resolve::engine_config(None, args.model, args.scheduling, &env)?;
        config.max_num_queued_reqs = config.max_num_queued_reqs.max(num_requests as usize);
        let loaded = load::start(&config, false, loading_bar())?;
        let runtime = Builder::new_current_thread().build().context("cannot start a runtime")?;
        Ok(Self { loaded, runtime })
    }

    /// The model.
    pub(crate) fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// Gives all requests to the engine at once and waits for the last one's end. Each answer has its full
    /// length, whatever the model says.
    pub(crate) fn run(&self, samples: &[Sample], bar: &ProgressBar) -> anyhow::Result<Elapsed> {
        let requests =
            samples.iter().map(|sample| self.request(sample)).collect::<anyhow::Result<Vec<_>>>()?;
        let prompt_tokens = requests.iter().map(|request| request.prompt_token_ids.len() as u64).sum();
        let start = Instant::now();
        let output_tokens = self.runtime.block_on(async {
            let mut running = JoinSet::new();
            for request in requests {
                let stream = self.loaded.engine.handle().submit(request)?;
                running.spawn(count_tokens(stream));
            }
            let mut tokens = 0;
            while let Some(ended) = running.join_next().await {
                tokens += ended.context("a reader of the engine's output failed")??;
                bar.inc(1);
            }
            anyhow::Ok(tokens)
        })?;
        Ok(Elapsed { duration: start.elapsed(), prompt_tokens, output_tokens })
    }

    /// Ends the engine.
    pub(crate) fn stop(self) {
        self.loaded.engine.join();
    }

    fn request(&self, sample: &Sample) -> anyhow::Result<GenerateRequest> {
        let ids = match &sample.prompt {
            Prompt::Ids(ids) => ids.clone(),
            Prompt::Text(text) => self.loaded.tokenizer.encode(text, true)?,
        };
        let limits = &self.loaded.limits;
        ensure!(!ids.is_empty(), "a prompt is empty");
        ensure!(
            ids.len() as u64 + u64::from(sample.output_len) <= u64::from(limits.max_model_len),
            "a request of {} tokens to read and {} to write is longer than the model's context of {}; lower \
             --input-len or --output-len",
            ids.len(),
            sample.output_len,
            limits.max_model_len,
        );
        let sampling = SamplingParams {
            max_tokens: sample.output_len,
            ignore_eos: true,
            eos_token_ids: limits.eos_token_ids.clone(),
            ..SamplingParams::default()
        };
        Ok(GenerateRequest {
            external_id: "bench".into(),
            prompt_token_ids: ids.into(),
            sampling,
            seeded: false,
            n: 1,
            priority: 0,
            cache_salt: None,
            bypass_prefix_cache: false,
            adapter: None,
            text: TextOptions::default(),
        })
    }
}

/// Writes a result for programs.
pub(crate) fn write_json(path: &Path, json: &Value) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(json)? + "\n";
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

async fn count_tokens(mut stream: OutputStream) -> anyhow::Result<u64> {
    let mut finish = None;
    while let Some(delta) = stream.next().await {
        finish = delta.finish.take().or(finish);
    }
    match finish {
        Some(finish) if matches!(finish.kind, FinishKind::Stop | FinishKind::Length) => {
            Ok(finish.num_output_tokens.into())
        }
        Some(finish) => {
            bail!(
                "a request ended early: {}",
                finish.error.map_or_else(|| finish.kind.as_str().to_owned(), |error| error.to_string())
            )
        }
        None => bail!("a request ended without a reason"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::vocabulary::Vocabulary;
    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        engine: EngineArgs,
    }

    #[test]
    fn the_demo_model_is_run_to_the_full_length() {
        let words = "bench --max-model-len 128 --max-num-seqs 4 --max-num-queued-reqs 1";
        let args = Flags::parse_from(words.split_whitespace()).engine;
        let offline = Offline::start(args, 6).unwrap();
        let mut rng = rand::rng();
        let vocabulary = Vocabulary::ids_of(&offline.loaded().tokenizer);
        let mut sample = |prompt_len, output_len| {
            let ids = vocabulary.draw(prompt_len, &mut rng);
            Sample { prompt: Prompt::Ids(ids), prompt_len, output_len }
        };
        let samples: Vec<_> = (1..=6).map(|index| sample(10 * index, index)).collect();
        let elapsed = offline.run(&samples, &ProgressBar::hidden()).unwrap();
        assert_eq!((elapsed.prompt_tokens, elapsed.output_tokens), (210, 21));
        assert!(!elapsed.duration.is_zero());
        let error = offline.run(&[sample(100, 29)], &ProgressBar::hidden()).unwrap_err();
        assert!(error.to_string().contains("context of 128"), "{error}");
        offline.stop();
    }
}
