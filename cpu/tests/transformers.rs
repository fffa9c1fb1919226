//! Tiny random models of each family against transformers, position by position. The files are made by
//! model/tests/fixtures/make_fixtures.py.

mod support;

use std::path::PathBuf;

use candle_core::{Device, safetensors};
use quire_cpu::CpuOptions;
use quire_model::RunnerConfig;
use quire_scheduler::{ALL_LOGPROBS, SamplingParams, TokenId};
use support::{Planner, Sequence, load_runner};

/// Both sides compute in f32; only the order of sums differs.
const TOLERANCE: f32 = 2e-5;
const CHUNK: usize = 7;

#[test]
fn llama_with_biases_and_llama3_frequencies() {
    compare("llama-bias-llama3");
}

#[test]
fn llama_tied_with_linear_frequencies() {
    compare("llama-tied-linear");
}

#[test]
fn mistral_with_a_sliding_window() {
    compare("mistral-window");
}

#[test]
fn qwen2_with_a_window_in_some_layers() {
    compare("qwen2-window");
}

#[test]
fn qwen3_with_head_norms_in_several_files_of_float16() {
    compare("qwen3-sharded");
}

/// All log-probabilities that the model gives, prompt in chunks, against the stored ones.
fn compare(name: &str) {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures").join(name);
    let stored = safetensors::load(dir.join("expected.safetensors"), &Device::Cpu).unwrap();
    let token_ids: Vec<TokenId> =
        stored["token_ids"].to_vec1::<i64>().unwrap().into_iter().map(|id| id as TokenId).collect();
    let expected: Vec<Vec<f32>> = stored["logprobs"].to_vec2().unwrap();

    // Fewer logits rows than tokens in a chunk, so that a step's logits come in parts.
    let config = RunnerConfig {
        max_num_seqs: 3,
        max_num_batched_tokens: CHUNK,
        max_model_len: 64,
        block_size: 4,
        num_blocks: 20,
    };
    let mut runner = load_runner(&dir, CpuOptions::default(), config);
    let sampling = SamplingParams {
        logprobs: Some(ALL_LOGPROBS),
        prompt_logprobs: Some(ALL_LOGPROBS),
        ..SamplingParams::default()
    };
    let mut planner = Planner::new(config.block_size, (1..20).collect());
    let mut sequences = [Sequence::new(1, 5, &token_ids, sampling)];
    let mut next_position = 1;
    while sequences[0].computed < token_ids.len() {
        planner.begin();
        let left = token_ids.len() - sequences[0].computed;
        planner.add(&mut sequences[0], left.min(CHUNK));
        let output = planner.run(&mut runner, &mut sequences);
        assert!(output.failed_rows.is_empty(), "{:?}", output.failed_rows);
        for found in &output.logprobs {
            assert_eq!(found.position, next_position, "{name}");
            let top = &output.top[found.top.start as usize..found.top.end as usize];
            let expected = &expected[next_position as usize - 1];
            assert_eq!(top.len(), expected.len(), "{name}");
            for (token, logprob) in top {
                let wanted = expected[*token as usize];
                let error = (logprob - wanted).abs();
                assert!(
                    error < TOLERANCE,
                    "{name}, position {next_position}, token {token}: {logprob} for {wanted}"
                );
            }
            assert_eq!(found.logprob, top.iter().find(|(token, _)| *token == found.token).unwrap().1);
            if let Some(prompt_token) = token_ids.get(next_position as usize) {
                assert_eq!(found.token, *prompt_token, "{name}");
            }
            next_position += 1;
        }
    }
    assert_eq!(next_position as usize, token_ids.len() + 1, "{name}: a position has no log-probabilities");
}
