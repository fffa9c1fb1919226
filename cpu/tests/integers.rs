//! What 8-bit activations cost: the demo model with integer weights and rounded activations against the same weights
//! with f32 activations, and against its own weights, on the texts of its golden answers.
//!
//!     cargo test --release -p quire-cpu --test integers -- --nocapture

mod support;

use quire_cpu::{CpuBackend, CpuOptions};
use quire_model::{Checkpoint, Model, ModelSpec, Runner, RunnerConfig};
use quire_scheduler::{ALL_LOGPROBS, SamplingParams, TokenId};
use serde_json::Value;
use support::{Planner, Sequence, pebble};

const CONFIG: RunnerConfig = RunnerConfig {
    max_num_seqs: 2,
    max_num_batched_tokens: 64,
    max_model_len: 1024,
    block_size: 16,
    num_blocks: 200,
};

/// Texts compared, the first tokens of each.
const NUM_TEXTS: usize = 6;
const TEXT_LEN: usize = 160;

/// The logits of each position, but for a constant: log-probabilities less their mean.
type Logits = Vec<Vec<f32>>;

/// The demo model's logits of some texts, with its weights quantised by that flag.
fn logits(texts: &[Vec<TokenId>], quantization: Option<&str>, int8_activations: bool) -> Logits {
    let folder = pebble().join("model");
    let mut spec = ModelSpec::from_dir(&folder).unwrap();
    if let Some(asked) = quantization {
        spec.quantization = spec.quantization.asked_for(asked).unwrap();
    }
    let vocab_size = spec.vocab_size;
    let mut backend = CpuBackend::new(CpuOptions::default()).unwrap().with_int8_activations(int8_activations);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let model = Model::load(&mut backend, spec, &checkpoint, &mut |_| {}).unwrap();
    assert_eq!(backend.num_integer_matrices() > 0, int8_activations);
    let mut runner = Runner::new(backend, model, CONFIG).unwrap();
    let sampling = SamplingParams { prompt_logprobs: Some(ALL_LOGPROBS), ..SamplingParams::default() };
    let mut found = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let mut planner = Planner::new(CONFIG.block_size, (1..200).collect());
        let mut sequences = [Sequence::new(0, index as u64, text, sampling.clone())];
        while sequences[0].computed < text.len() {
            planner.begin();
            let left = text.len() - sequences[0].computed;
            planner.add(&mut sequences[0], left.min(CONFIG.max_num_batched_tokens));
            let output = planner.run(&mut runner, &mut sequences);
            for position in &output.logprobs {
                let mut logits = vec![0.0; vocab_size];
                for (token, logprob) in &output.top[position.top.start as usize..position.top.end as usize] {
                    logits[*token as usize] = *logprob;
                }
                let mean = logits.iter().sum::<f32>() / vocab_size as f32;
                logits.iter_mut().for_each(|logit| *logit -= mean);
                found.push(logits);
            }
        }
    }
    found
}

/// The size of the difference by that of the logits, and the share of positions with the same greatest.
fn compare(found: &Logits, expected: &Logits) -> (f64, f64) {
    assert_eq!(found.len(), expected.len());
    let square = |logits: &[f32]| logits.iter().map(|logit| f64::from(*logit).powi(2)).sum::<f64>();
    let best = |logits: &[f32]| (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
    let (mut error, mut size, mut agreeing) = (0.0, 0.0, 0);
    for (found, expected) in found.iter().zip(expected) {
        let difference: Vec<f32> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
        error += square(&difference);
        size += square(expected);
        agreeing += usize::from(best(found) == best(expected));
    }
    ((error / size).sqrt(), agreeing as f64 / expected.len() as f64)
}

#[test]
fn rounded_activations_change_logits_less_than_rounded_weights() {
    let golden: Value =
        serde_json::from_str(&std::fs::read_to_string(pebble().join("golden.json")).unwrap()).unwrap();
    let ids = |value: &Value| -> Vec<TokenId> { serde_json::from_value(value.clone()).unwrap() };
    let texts: Vec<Vec<TokenId>> = golden["cases"].as_array().unwrap()[..NUM_TEXTS]
        .iter()
        .map(|case| [ids(&case["prompt_ids"]), ids(&case["output_ids"])].concat())
        .map(|text| text[..text.len().min(TEXT_LEN)].to_vec())
        .collect();
    let own = logits(&texts, None, false);
    println!("{} positions; relative error of logits, and share of equal greedy tokens", own.len());
    for (format, error_bound, least_agreement) in
        [("int8", 0.04, 0.96), ("q8_0", 0.02, 0.97), ("q4_0", 0.25, 0.9)]
    {
        let exact = logits(&texts, Some(format), false);
        let rounded = logits(&texts, Some(format), true);
        let (of_weights, agreeing) = compare(&exact, &own);
        println!("{format}, f32 activations, against own weights: {of_weights:.5}, {agreeing:.4}");
        let (of_activations, agreeing) = compare(&rounded, &exact);
        println!("{format}, int8 against f32 activations: {of_activations:.5}, {agreeing:.4}");
        assert!(of_activations < 0.02, "{format}: {of_activations}");
        let (of_both, agreeing) = compare(&rounded, &own);
        println!("{format}, int8 activations, against own weights: {of_both:.5}, {agreeing:.4}");
        assert!(of_both < error_bound && agreeing > least_agreement, "{format}: {of_both}, {agreeing}");
    }
}
