//! The demo model on the GPU (or its stand-in) against its golden answers: greedy tokens and log-probabilities that
//! transformers computed in f32 from the same bf16 weights.

mod support;

use std::collections::HashMap;

use quire_cuda::{CudaBackend, CudaOptions, emulator};
use quire_model::{Checkpoint, Dtype, Model, ModelSpec, Runner, RunnerConfig};
use quire_scheduler::{RequestId, SamplingParams, TokenId, TokenLogprob};
use serde_json::Value;
use support::{Planner, Sequence, open, options, pebble};

const CONFIG: RunnerConfig = RunnerConfig {
    max_num_seqs: 16,
    max_num_batched_tokens: 256,
    max_model_len: 1024,
    block_size: 16,
    num_blocks: 400,
};

/// How far answers may be from transformers'.
struct Tolerance {
    /// Of log-probabilities.
    logprob: f64,
    /// Where the two best logits are this close, the order of sums or roundings decide, and both continuations are
    /// right.
    near_tie: f64,
    /// Tokens to be compared at least, of a hundred: after a near tie the rest of a case is another text.
    compared_percent: usize,
}

fn ids(value: &Value) -> Vec<TokenId> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as TokenId).collect()
}

fn load_runner(options: CudaOptions) -> Runner<CudaBackend> {
    let mut backend = open(options);
    let dir = pebble().join("model");
    let spec = ModelSpec::from_dir(&dir).unwrap();
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let model = Model::load(&mut backend, spec, &checkpoint, &mut |_| {}).unwrap();
    Runner::new(backend, model, CONFIG).unwrap()
}

/// Every `stride`-th case: the emulation takes its time.
fn check(options: CudaOptions, stride: usize, tolerance: &Tolerance) {
    let golden: Value =
        serde_json::from_str(&std::fs::read_to_string(pebble().join("golden.json")).unwrap()).unwrap();
    let cases: Vec<&Value> = golden["cases"].as_array().unwrap().iter().step_by(stride).collect();
    let what = format!("{:?}", options.dtype);
    let answers = generate(&mut load_runner(options), &cases);
    let (mut compared, mut total) = (0, 0);
    for (index, case) in cases.iter().enumerate() {
        let (expected, found) = (ids(&case["output_ids"]), &answers[&RequestId(index as u64)]);
        assert_eq!(found.len(), expected.len());
        total += expected.len();
        for (position, found) in found.iter().enumerate() {
            let top = case["top5"][position].as_array().unwrap();
            let best: Vec<f64> = top.iter().map(|entry| entry[1].as_f64().unwrap()).collect();
            let name = format!("{what}, case {} ({}), output token {position}", index * stride, case["name"]);
            if found.token != expected[position] {
                let gap = best[0] - best[1];
                let second = top[1][0].as_u64() == Some(found.token.into());
                assert!(
                    gap < tolerance.near_tie && second,
                    "{name}: {} for {}",
                    found.token,
                    expected[position]
                );
                break;
            }
            let error = (f64::from(found.logprob) - best[0]).abs();
            assert!(error < tolerance.logprob, "{name}: logprob {} for {}", found.logprob, best[0]);
            assert_eq!(found.rank, 1, "{name}");
            compared += 1;
        }
    }
    println!("{what}: {compared} of {total} golden tokens compared");
    let wanted = tolerance.compared_percent;
    assert!(compared * 100 >= total * wanted, "near ties cut off too much: {compared} of {total}");
}

/// Log-probabilities of the greedy tokens of all cases, as many at once as there are slots, prompts in chunks.
fn generate(runner: &mut Runner<CudaBackend>, cases: &[&Value]) -> HashMap<RequestId, Vec<TokenLogprob>> {
    let greedy = |max_tokens| SamplingParams {
        temperature: 0.0,
        max_tokens,
        logprobs: Some(5),
        ..SamplingParams::default()
    };
    let sequence = |(index, case): (usize, &&Value)| {
        let max_tokens = ids(&case["output_ids"]).len() as u32;
        Sequence::new(u32::MAX, index as u64, &ids(&case["prompt_ids"]), greedy(max_tokens))
    };
    let mut waiting = cases.iter().enumerate().map(sequence);
    let mut planner = Planner::new(CONFIG.block_size, (1..CONFIG.num_blocks as u32).collect());
    let mut running: Vec<Sequence> = Vec::new();
    let mut found: HashMap<RequestId, Vec<TokenLogprob>> = HashMap::new();
    loop {
        planner.begin();
        let is_done = |sequence: &Sequence| sequence.output.len() == sequence.sampling.max_tokens as usize;
        running.iter_mut().filter(|sequence| is_done(sequence)).for_each(|done| planner.release(done));
        running.retain(|sequence| !is_done(sequence));
        for slot in 0..CONFIG.max_num_seqs as u32 {
            if running.iter().all(|sequence| sequence.slot != slot) {
                running.extend(waiting.next().map(|sequence| Sequence { slot, ..sequence }));
            }
        }
        // Shorter ones first, so that there is room for a chunk of the longest.
        running.sort_by_key(|sequence| sequence.len() - sequence.computed);
        let mut room = CONFIG.max_num_batched_tokens;
        for sequence in &mut running {
            let count = (sequence.len() - sequence.computed).min(room);
            if count > 0 {
                planner.add(sequence, count);
                room -= count;
            }
        }
        if running.is_empty() {
            return found;
        }
        for logprob in &planner.run(runner, &mut running).logprobs {
            let id = planner.plan.rows[logprob.row as usize].id;
            found.entry(id).or_default().push(logprob.clone());
        }
    }
}

#[test]
fn f32_tokens_and_logprobs_are_those_of_transformers() {
    check(
        CudaOptions { graphs: false, ..options(Dtype::F32) },
        6,
        &Tolerance { logprob: 0.02, near_tie: 0.02, compared_percent: 95 },
    );
}

#[test]
fn bf16_tokens_and_logprobs_are_nearly_those_of_transformers() {
    check(options(Dtype::Bf16), 3, &Tolerance { logprob: 0.1, near_tie: 0.1, compared_percent: 80 });
    let recorded = emulator::is_device_real() || emulator::count("cuGraphLaunch") > 0;
    assert!(recorded, "decode steps were not recorded");
}
