//! Quantised weights in memory, and weights quantised at load against transformers with what torch and bitsandbytes
//! make of them. That quantised checkpoints give transformers' numbers is tests/transformers.rs' business. The files
//! are made by model/tests/fixtures/make_quantized_fixtures.py.

mod support;

use std::path::PathBuf;

use candle_core::{Device, safetensors};
use quire_cpu::{CpuBackend, CpuOptions};
use quire_model::{Checkpoint, Model, ModelSpec, Runner, RunnerConfig};
use quire_scheduler::{ALL_LOGPROBS, SamplingParams, TokenId};
use support::{Planner, Sequence};

/// Both sides compute in f32 with the same weights; only the order of sums differs.
const TOLERANCE: f32 = 5e-5;
const CHUNK: usize = 13;
const CONFIG: RunnerConfig = RunnerConfig {
    max_num_seqs: 3,
    max_num_batched_tokens: CHUNK,
    max_model_len: 64,
    block_size: 4,
    num_blocks: 20,
};

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures").join(name)
}

/// A folder's model, quantised at load if `flag` says so; with the bytes of its weights.
fn load(name: &str, flag: Option<&str>) -> (Runner<CpuBackend>, usize) {
    let mut spec = ModelSpec::from_dir(&folder(name)).unwrap();
    if let Some(flag) = flag {
        spec.quantization = spec.quantization.asked_for(flag).unwrap();
    }
    let checkpoint = Checkpoint::open(&folder(name)).unwrap();
    let mut backend = CpuBackend::new(CpuOptions::default()).unwrap();
    let mut loaded_bytes = 0;
    let model = Model::load(&mut backend, spec, &checkpoint, &mut |progress| {
        loaded_bytes = progress.loaded_bytes;
    });
    (Runner::new(backend, model.unwrap(), CONFIG).unwrap(), loaded_bytes)
}

/// The greatest error of a log-probability at any position of the text in `expected`.
fn greatest_error(runner: &mut Runner<CpuBackend>, name: &str, expected: &str) -> f32 {
    let stored = safetensors::load(folder(name).join(expected), &Device::Cpu).unwrap();
    let token_ids: Vec<TokenId> =
        stored["token_ids"].to_vec1::<i64>().unwrap().into_iter().map(|id| id as TokenId).collect();
    let expected: Vec<Vec<f32>> = stored["logprobs"].to_vec2().unwrap();
    let sampling = SamplingParams {
        logprobs: Some(ALL_LOGPROBS),
        prompt_logprobs: Some(ALL_LOGPROBS),
        ..SamplingParams::default()
    };
    let mut planner = Planner::new(CONFIG.block_size, (1..20).collect());
    let mut sequences = [Sequence::new(1, 5, &token_ids, sampling)];
    let (mut positions, mut greatest) = (0, 0.0f32);
    while sequences[0].computed < token_ids.len() {
        planner.begin();
        let left = token_ids.len() - sequences[0].computed;
        planner.add(&mut sequences[0], left.min(CHUNK));
        let output = planner.run(runner, &mut sequences);
        assert!(output.failed_rows.is_empty(), "{:?}", output.failed_rows);
        for found in &output.logprobs {
            let expected = &expected[found.position as usize - 1];
            for (token, logprob) in &output.top[found.top.start as usize..found.top.end as usize] {
                let error = (logprob - expected[*token as usize]).abs();
                greatest = if error.is_nan() { f32::NAN } else { greatest.max(error) };
            }
            positions += 1;
        }
    }
    assert_eq!(positions, token_ids.len(), "{name}: a position has no log-probabilities");
    greatest
}

#[test]
fn weights_stay_packed_in_memory() {
    // Of each format: bits of a weight with its scales at most, in these small matrices.
    let of_layers = |name: &str| {
        let (_, packed) = load(name, None);
        let config = std::fs::read_to_string(folder(name).join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let number = |field: &str| config[field].as_u64().unwrap() as usize;
        let (hidden, inner) = (number("hidden_size"), number("intermediate_size"));
        let heads = number("num_attention_heads") + number("num_key_value_heads");
        let head_dim =
            config["head_dim"].as_u64().map_or(hidden / number("num_attention_heads"), |n| n as usize);
        let weights = number("num_hidden_layers") * (2 * heads * head_dim * hidden + 3 * hidden * inner);
        let embeddings = if config["tie_word_embeddings"] == true { 1 } else { 2 };
        // Embeddings and norms in 16 bits, biases as well.
        let rest = 2 * (number("vocab_size") * hidden * embeddings + 8 * hidden);
        8.0 * (packed as f64 - rest as f64) / weights as f64
    };
    for (name, bits) in [
        ("gptq-int4-act-order", 4.6),
        ("gptq-int8-rows", 8.4),
        ("awq-int4", 5.1),
        ("fp8-blocks", 8.6),
        ("ct-w4a16", 4.6),
        ("ct-mxfp4", 4.6),
        ("bnb-nf4-double", 5.2),
        ("bnb-int8", 8.6),
    ] {
        let found = of_layers(name);
        assert!(found < bits, "{name}: {found} bits a weight, {bits} allowed");
    }
}

#[test]
fn weights_quantised_at_load_are_those_of_torch_and_bitsandbytes() {
    for flag in ["int8", "fp8", "nf4"] {
        let (mut runner, packed) = load("quantize-at-load", Some(flag));
        let error = greatest_error(&mut runner, "quantize-at-load", &format!("expected-{flag}.safetensors"));
        assert!(error < TOLERANCE, "{flag}: {error}");
        let (_, plain) = load("quantize-at-load", None);
        assert!(packed * 3 < plain * 2, "{flag}: {packed} bytes of {plain}");
    }
}
