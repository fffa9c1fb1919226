//! Tiny GGUF files of each architecture against transformers with the same numbers, position by position. The files are
//! made by model/tests/fixtures/make_gguf_fixtures.py.

mod support;

use std::path::{Path, PathBuf};

use candle_core::{Device, safetensors};
use quire_cpu::{CpuBackend, CpuOptions};
use quire_model::gguf::GgufFile;
use quire_model::{Checkpoint, Model, ModelSpec, Runner, RunnerConfig};
use quire_scheduler::{ALL_LOGPROBS, SamplingParams, TokenId};
use support::{Planner, Sequence};

/// Log-probabilities have a spread of two to three. What is quantised is so on both sides.
const TOLERANCE: f32 = 1e-4;
/// Where the runner-up is nearer, another order of sums may choose it.
const NEAR_TIE: f32 = 1e-3;
const CHUNK: usize = 7;

#[test]
fn llama_with_rows_in_the_other_order() {
    compare("gguf-llama/model.gguf");
}

#[test]
fn llama_3_in_two_files_with_factors_of_frequencies() {
    compare("gguf-llama3-split/model-00001-of-00002.gguf");
}

#[test]
fn qwen2_with_biases_and_yarn() {
    compare("gguf-qwen2/model.gguf");
}

#[test]
fn qwen3_with_plain_types() {
    compare("gguf-qwen3/model.gguf");
}

#[test]
fn phi3_with_stacked_projections_and_two_lists_of_factors() {
    compare("gguf-phi3/model.gguf");
}

#[test]
fn gemma_with_norms_that_one_was_added_to() {
    compare("gguf-gemma/model.gguf");
}

#[test]
fn gemma2_with_soft_caps_and_windows() {
    compare("gguf-gemma2/model.gguf");
}

#[test]
fn gemma3_with_two_rotations() {
    compare("gguf-gemma3/model.gguf");
}

#[test]
fn mixtral_with_experts_in_one_tensor() {
    compare("gguf-mixtral/model.gguf");
}

#[test]
fn qwen2_moe_with_a_shared_expert() {
    compare("gguf-qwen2moe/model.gguf");
}

#[test]
fn qwen3_moe() {
    compare("gguf-qwen3moe/model.gguf");
}

fn load_runner(path: &Path) -> Runner<CpuBackend> {
    let file = GgufFile::open(path).unwrap();
    let generation = file.generation_config_json().unwrap();
    let spec = ModelSpec::from_json(&file.config_json().unwrap(), Some(&generation)).unwrap();
    let mut backend = CpuBackend::new(CpuOptions::default()).unwrap();
    let checkpoint = Checkpoint::from_gguf(file).unwrap();
    let model = Model::load(&mut backend, spec, &checkpoint, &mut |_| {}).unwrap();
    let config = RunnerConfig {
        max_num_seqs: 3,
        max_num_batched_tokens: CHUNK,
        max_model_len: 96,
        block_size: 4,
        num_blocks: 30,
    };
    Runner::new(backend, model, config).unwrap()
}

/// All log-probabilities of a text that comes in chunks, and the tokens that follow it.
fn compare(name: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures").join(name);
    let stored = safetensors::load(path.with_file_name("expected.safetensors"), &Device::Cpu).unwrap();
    let ids = |name: &str| -> Vec<TokenId> {
        stored[name].to_vec1::<i64>().unwrap().into_iter().map(|id| id as TokenId).collect()
    };
    let (token_ids, greedy) = (ids("token_ids"), ids("greedy_ids"));
    let margins: Vec<f32> = stored["greedy_margins"].to_vec1().unwrap();
    let expected: Vec<Vec<f32>> = stored["logprobs"].to_vec2().unwrap();

    let mut runner = load_runner(&path);
    let sampling = SamplingParams {
        temperature: 0.0,
        logprobs: Some(ALL_LOGPROBS),
        prompt_logprobs: Some(ALL_LOGPROBS),
        ..SamplingParams::default()
    };
    let mut planner = Planner::new(4, (1..30).collect());
    let mut sequences = [Sequence::new(1, 5, &token_ids, sampling)];
    let mut num_compared = 0;
    while sequences[0].output.len() < greedy.len() {
        planner.begin();
        let left = sequences[0].len() - sequences[0].computed;
        planner.add(&mut sequences[0], left.min(CHUNK));
        let output = planner.run(&mut runner, &mut sequences);
        assert!(output.failed_rows.is_empty(), "{:?}", output.failed_rows);
        for found in &output.logprobs {
            let Some(expected) = expected.get(found.position as usize - 1) else { continue };
            for (token, logprob) in &output.top[found.top.start as usize..found.top.end as usize] {
                let wanted = expected[*token as usize];
                let position = found.position;
                assert!(
                    (logprob - wanted).abs() < TOLERANCE,
                    "{name}, position {position}, token {token}: {logprob} for {wanted}"
                );
                num_compared += 1;
            }
        }
    }
    assert_eq!(num_compared, expected.len() * expected[0].len(), "{name}: all positions, all tokens");
    let until = margins.iter().position(|margin| *margin < NEAR_TIE).unwrap_or(greedy.len());
    assert_eq!(sequences[0].output[..until], greedy[..until], "{name}");
}
