//! Adapters against PEFT, position by position, and in any company. The files are made by
//! model/tests/fixtures/make_lora_fixtures.py.

mod support;

use std::path::PathBuf;

use candle_core::{Device, safetensors};
use quire_cpu::{CpuBackend, CpuOptions, Isa};
use quire_model::{Adapter, Dtype, LoraError, LoraWeights, Runner, RunnerConfig};
use quire_scheduler::{ALL_LOGPROBS, ModelRunner, SamplingParams, TokenId};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::any_batch::{
    Trace, assert_same_bits, make_runner, random_sequences, random_spec, run_alone, run_mixed,
};
use support::{Planner, Sequence, load_runner};

/// Both sides compute in f32; only the order of sums differs.
const TOLERANCE: f32 = 1e-4;
const MAX_RANK: usize = 8;
const BLOCK_SIZE: usize = 4;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures")
}

fn runner(base: &str) -> Runner<CpuBackend> {
    let config = RunnerConfig {
        max_num_seqs: 6,
        max_num_batched_tokens: 100,
        max_model_len: 64,
        block_size: BLOCK_SIZE,
        num_blocks: 100,
    };
    let runner = load_runner(&fixtures().join(base), CpuOptions::default(), config);
    runner.with_adapters(MAX_RANK).unwrap()
}

fn adapter(runner: &Runner<CpuBackend>, name: &str) -> Adapter {
    let dir = fixtures().join("lora").join(name);
    let weights = LoraWeights::read(&dir, runner.lora_targets(), MAX_RANK, None).unwrap();
    let digest = weights.digest().to_owned();
    Adapter::new(name, &digest, weights)
}

/// What PEFT stored: tokens, and the log-probabilities behind each.
fn expected(dir: PathBuf) -> (Vec<TokenId>, Vec<Vec<f32>>) {
    let stored = safetensors::load(dir.join("expected.safetensors"), &Device::Cpu).unwrap();
    let ids = stored["token_ids"].to_vec1::<i64>().unwrap();
    (ids.into_iter().map(|id| id as TokenId).collect(), stored["logprobs"].to_vec2().unwrap())
}

#[test]
fn two_adapters_and_the_model_itself_in_one_batch() {
    compare("llama-tied-linear", &[Some("all-rslora"), None, Some("some-patterns"), Some("all-rslora")]);
}

#[test]
fn attention_with_norms_of_heads() {
    compare("qwen3-sharded", &[None, Some("qwen3-attention")]);
}

#[test]
fn layers_that_are_stacked_turned_or_taken_apart_when_they_are_loaded() {
    for (base, adapter) in [
        ("phi4", "phi4-fused"),
        ("command-r", "command-r-pairs"),
        ("gpt-neox-sequential", "gpt-neox-interleaved"),
        ("gpt2", "gpt2-transposed"),
        ("deepseek-v2-lite", "deepseek-latent"),
    ] {
        compare(base, &[Some(adapter), None]);
    }
}

/// All of these at once, each in chunks of its own.
fn compare(base: &str, adapters: &[Option<&str>]) {
    let mut runner = runner(base);
    let sampling = SamplingParams {
        logprobs: Some(ALL_LOGPROBS),
        prompt_logprobs: Some(ALL_LOGPROBS),
        ..SamplingParams::default()
    };
    let mut wanted = Vec::new();
    let mut sequences: Vec<Sequence> = Vec::new();
    for (slot, name) in (0..).zip(adapters) {
        let (ids, logprobs) = expected(match name {
            Some(name) => fixtures().join("lora").join(name),
            None => fixtures().join(base),
        });
        let mut sequence = Sequence::new(slot, u64::from(slot), &ids, sampling.clone());
        sequence.adapter = name.map(|name| adapter(&runner, name));
        sequences.push(sequence);
        wanted.push(logprobs);
    }
    let mut told = vec![0; adapters.len()];
    let mut planner = Planner::new(BLOCK_SIZE, (1..100).collect());
    while sequences.iter().any(|sequence| sequence.output.is_empty()) {
        planner.begin();
        for (index, sequence) in sequences.iter_mut().enumerate() {
            let left = sequence.prompt.len().saturating_sub(sequence.computed);
            if left > 0 {
                planner.add(sequence, left.min(3 + 5 * index));
            }
        }
        let output = planner.run(&mut runner, &mut sequences);
        assert!(output.failed_rows.is_empty(), "{:?}", output.failed_rows);
        for found in &output.logprobs {
            let index = planner.plan.rows[found.row as usize].id.0 as usize;
            told[index] += 1;
            for (token, logprob) in &output.top[found.top.start as usize..found.top.end as usize] {
                let wanted = wanted[index][found.position as usize - 1][*token as usize];
                let error = (logprob - wanted).abs();
                let place = format!("{:?}, position {}, token {token}", adapters[index], found.position);
                assert!(error < TOLERANCE, "{place}: {logprob} for {wanted}");
            }
        }
    }
    for (index, told) in told.iter().enumerate() {
        assert_eq!(*told, wanted[index].len(), "{:?}: a position was not told", adapters[index]);
    }
}

/// Random adapters of random models: alone or in a crowd of others, in chunks, over cached prefixes, after preemptions.
#[test]
fn invariant_8_adapters_give_the_same_bits_in_any_batch() {
    for seed in 0..40 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let spec = random_spec(rng, 1, &[2, 6, 16, 18]);
        let dtype = [Dtype::F32, Dtype::Bf16][rng.random_range(0..2)];
        let runner = |options| {
            let runner = make_runner(CpuBackend::new(options).unwrap(), &spec, dtype, BLOCK_SIZE);
            runner.with_adapters(MAX_RANK).unwrap()
        };
        let targets = runner(CpuOptions::default());
        let adapters: Vec<Adapter> = (0..3).map(|_| random_adapter(&targets, rng)).collect();
        let mut sequences = random_sequences(rng);
        for sequence in &mut sequences {
            sequence.adapter = adapters.get(rng.random_range(0..4)).cloned();
        }
        let (mut alone, mut without) = (Trace::new(), Trace::new());
        for sequence in &sequences {
            let one_thread = CpuOptions { num_threads: Some(1), isa: None };
            run_alone(&mut runner(one_thread), BLOCK_SIZE, sequence.clone(), &mut alone);
            let plain = Sequence { adapter: None, ..sequence.clone() };
            run_alone(&mut runner(one_thread), BLOCK_SIZE, plain, &mut without);
        }
        for sequence in &sequences {
            let is_changed = alone[&sequence.id] != without[&sequence.id];
            assert_eq!(is_changed, sequence.adapter.is_some(), "seed {seed}: {:?}", sequence.adapter);
        }
        for _ in 0..2 {
            let isas = Isa::available();
            let isa = Some(isas[rng.random_range(0..isas.len())]);
            let num_threads = Some(rng.random_range(1..4));
            let mut runner = runner(CpuOptions { num_threads, isa });
            let mixed = run_mixed(&mut runner, BLOCK_SIZE, sequences.clone(), rng);
            assert_same_bits(&alone, &mixed, &format!("seed {seed}, {isa:?}"));
        }
    }
}

/// Some layers, each with a rank of its own.
fn random_adapter(runner: &Runner<CpuBackend>, rng: &mut StdRng) -> Adapter {
    let mut tensors = std::collections::HashMap::new();
    let random = |rows: usize, columns: usize, rng: &mut StdRng| {
        let values: Vec<f32> = (0..rows * columns).map(|_| rng.random_range(-0.4..0.4)).collect();
        candle_core::Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    };
    let targets = runner.lora_targets();
    for (module, target) in targets.iter() {
        if !tensors.is_empty() && rng.random_bool(0.4) {
            continue;
        }
        let rank = rng.random_range(1..=MAX_RANK);
        let a = random(rank, target.inputs, rng);
        let b = random(target.outputs, rank, rng);
        tensors.insert(format!("base_model.model.{module}.lora_A.weight"), a);
        tensors.insert(format!("base_model.model.{module}.lora_B.weight"), b);
    }
    let config = r#"{"r": 1, "lora_alpha": 3, "rank_pattern": {"any": 1}}"#;
    let file =
        std::env::temp_dir().join(format!("quire-lora-{}-{}", std::process::id(), rng.random::<u64>()));
    safetensors::save(&tensors, &file).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let weights = LoraWeights::from_bytes(config.as_bytes(), Ok(bytes), targets, MAX_RANK, None).unwrap();
    let digest = weights.digest().to_owned();
    Adapter::new("random", &digest, weights)
}

#[test]
fn a_runner_without_room_for_adapters_takes_none() {
    let with = runner("llama-tied-linear");
    let adapter = adapter(&with, "all-rslora");
    for max_rank in [None, Some(4)] {
        let config = RunnerConfig {
            max_num_seqs: 1,
            max_num_batched_tokens: 8,
            max_model_len: 8,
            block_size: BLOCK_SIZE,
            num_blocks: 9,
        };
        let runner = load_runner(&fixtures().join("llama-tied-linear"), CpuOptions::default(), config);
        let mut runner = match max_rank {
            Some(rank) => runner.with_adapters(rank).unwrap(),
            None => runner,
        };
        let mut sequence = Sequence::new(0, 1, &[1, 2], SamplingParams::default());
        sequence.adapter = Some(adapter.clone());
        let mut planner = Planner::new(BLOCK_SIZE, (1..9).collect());
        planner.begin();
        planner.add(&mut sequence, 2);
        let error = runner.submit(&planner.plan).expect_err("the adapter has rank 5");
        assert!(error.reason.contains("all-rslora"), "{}", error.reason);
    }
}

/// Whatever is in the files: an error that names what is wrong, or an adapter; never a panic.
#[test]
fn damaged_files_are_errors() {
    let runner = runner("llama-tied-linear");
    let dir = fixtures().join("lora/some-patterns");
    let config = std::fs::read(dir.join("adapter_config.json")).unwrap();
    let weights = std::fs::read(dir.join("adapter_model.safetensors")).unwrap();
    let header_len = 8 + u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let rng = &mut StdRng::seed_from_u64(7);
    let mut num_errors = 0;
    for round in 0..3_000 {
        let (mut config, mut weights) = (config.clone(), weights.clone());
        match round % 3 {
            0 => weights.truncate(rng.random_range(0..weights.len())),
            1 => (0..3).for_each(|_| weights[rng.random_range(0..header_len)] = rng.random()),
            _ => {
                let at = rng.random_range(0..config.len());
                config[at] = b"0123456789,:{}[]\"-e. "[rng.random_range(0..21)];
            }
        }
        let read = LoraWeights::from_bytes(&config, Ok(weights), runner.lora_targets(), MAX_RANK, None);
        num_errors += usize::from(read.is_err_and(|error| !error.to_string().is_empty()));
    }
    assert!(num_errors > 2_000, "{num_errors}");
}

#[test]
fn what_does_not_fit_the_model_is_named() {
    let llama = runner("llama-tied-linear");
    let qwen = runner("qwen3-sharded");
    let read = |runner: &Runner<CpuBackend>, name: &str, most| {
        let dir = fixtures().join("lora").join(name);
        LoraWeights::read(&dir, runner.lora_targets(), most, None).expect_err("it does not fit")
    };
    // Of another model with layers of the same names.
    let error = read(&qwen, "all-rslora", MAX_RANK);
    assert!(matches!(&error, LoraError::Shape { found, .. } if found == &[5, 34]), "{error}");
    assert!(error.to_string().contains("mlp.down_proj.lora_A.weight"), "{error}");
    let error = read(&llama, "all-rslora", 4).to_string();
    assert_eq!(error, "LoRA rank 5 is greater than max_lora_rank 4.");
    let error = read(&llama, "some-patterns", 2).to_string();
    assert_eq!(error, "LoRA rank 3 is greater than max_lora_rank 2.");
    let error = read(&llama, "nothing", MAX_RANK);
    assert!(matches!(error, LoraError::Missing { .. }), "{error}");
    let mut few = llama.lora_targets().clone();
    few.restrict_to(&["q_proj".into(), "v_proj".into()]).unwrap();
    let dir = fixtures().join("lora/some-patterns");
    let error = LoraWeights::read(&dir, &few, MAX_RANK, None).unwrap_err().to_string();
    assert!(error.contains("mlp.down_proj") && error.contains("they can change q_proj, v_proj"), "{error}");
    assert_eq!(few.restrict_to(&["query".into()]), Err("query".into()));
}
