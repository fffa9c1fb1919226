//! The demo model on the GPU (or its stand-in) against its golden answers: greedy tokens and log-probabilities that
//! transformers computed in f32 from the same bf16 weights.

#[path = "../../cpu/tests/support/mod.rs"]
mod support;

use quire_cuda::{CudaBackend, CudaOptions, open_gpu};
use quire_model::{Checkpoint, Dtype, Model, ModelSpec, Runner, RunnerConfig};
use quire_scheduler::{ModelRunner, SamplingParams, TokenId, TokenLogprob};
use serde_json::Value;
use support::{Planner, Sequence, pebble};

/// Where the two best logits are this close, the order of sums decides, and both continuations are right.
const NEAR_TIE: f64 = 0.02;

fn ids(value: &Value) -> Vec<TokenId> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as TokenId).collect()
}

fn load_runner(options: CudaOptions, config: RunnerConfig) -> Runner<CudaBackend> {
    quire_cuda::emulator::use_stand_in();
    let context = open_gpu(0).unwrap();
    let mut backend = CudaBackend::new(&context, options).unwrap();
    let dir = pebble().join("model");
    let spec = ModelSpec::from_dir(&dir).unwrap();
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let model = Model::load(&mut backend, spec, &checkpoint, &mut |_| {}).unwrap();
    Runner::new(backend, model, config).unwrap()
}

fn check(options: CudaOptions, num_cases: usize, tolerance: f64) {
    let golden: Value =
        serde_json::from_str(&std::fs::read_to_string(pebble().join("golden.json")).unwrap()).unwrap();
    let config = RunnerConfig {
        max_num_seqs: 4,
        max_num_batched_tokens: 256,
        max_model_len: 1024,
        block_size: 16,
        num_blocks: 200,
    };
    let mut runner = load_runner(options, config);
    let mut compared = 0;
    let cases = golden["cases"].as_array().unwrap();
    for (index, case) in cases.iter().enumerate().take(num_cases) {
        let (prompt, expected) = (ids(&case["prompt_ids"]), ids(&case["output_ids"]));
        let logprobs = generate(&mut runner, index as u64, &prompt, expected.len());
        for (position, found) in logprobs.iter().enumerate() {
            let top = case["top5"][position].as_array().unwrap();
            let best: Vec<f64> = top.iter().map(|entry| entry[1].as_f64().unwrap()).collect();
            let name = format!("case {index} ({}), output token {position}", case["name"]);
            if found.token != expected[position] {
                assert!(best[0] - best[1] < NEAR_TIE, "{name}: {} for {}", found.token, expected[position]);
                break;
            }
            let error = (f64::from(found.logprob) - best[0]).abs();
            assert!(error < tolerance, "{name}: logprob {} for {}", found.logprob, best[0]);
            assert_eq!(found.rank, 1, "{name}");
            compared += 1;
        }
    }
    let total: usize =
        cases.iter().take(num_cases).map(|case| case["output_ids"].as_array().unwrap().len()).sum();
    println!("{compared} of {total} golden tokens compared");
    assert!(compared * 100 >= total * 95, "near ties cut off too much: {compared} of {total}");
}

#[test]
fn greedy_tokens_and_logprobs_are_those_of_transformers() {
    check(CudaOptions { graphs: false, ..CudaOptions::new(Dtype::F32) }, 3, 0.02);
}

/// Log-probabilities of `count` greedy tokens, the prompt computed in chunks.
fn generate(runner: &mut dyn ModelRunner, id: u64, prompt: &[TokenId], count: usize) -> Vec<TokenLogprob> {
    let sampling = SamplingParams {
        temperature: 0.0,
        max_tokens: count as u32,
        logprobs: Some(5),
        ..SamplingParams::default()
    };
    let mut planner = Planner::new(16, (1..200).collect());
    let mut sequences = [Sequence::new(0, id, prompt, sampling)];
    let mut found = Vec::new();
    while found.len() < count {
        planner.begin();
        let left = sequences[0].len() - sequences[0].computed;
        planner.add(&mut sequences[0], left.min(200));
        found.extend(planner.run(runner, &mut sequences).logprobs.iter().cloned());
    }
    found
}
