//! Pooled models: tiny random encoders and decoders against transformers, and the same bits in any company. The
//! files are made by model/tests/fixtures/make_pooling_fixtures.py.

mod support;

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{Device, Tensor, safetensors};
use quire_cpu::{CpuBackend, CpuOptions, Isa};
use quire_model::{
    Activation, AttentionSpec, Checkpoint, DenseSpec, Dtype, LayerSpec, LmHead, MlpSpec, Model, ModelSpec,
    NormKind, NormSpec, Norms, Pooling, Positions, Runner, RunnerConfig,
};
use quire_scheduler::{RequestId, SamplingParams, TokenId};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use support::any_batch::{MAX_LEN, VOCAB, make_runner, random_spec};
use support::{Planner, Sequence};

/// Both sides compute in f32; only the order of sums differs.
const TOLERANCE: f32 = 2e-5;
const POOLINGS: [Pooling; 3] = [Pooling::Last, Pooling::Cls, Pooling::Mean];
const BLOCK_SIZE: usize = 4;
const MAX_STEP: usize = 200;

/// The vector of each request, by id.
type Vectors = HashMap<RequestId, Vec<f32>>;

#[test]
fn bert_as_transformers_has_it() {
    compare("bert-sentences");
}

#[test]
fn roberta_counts_positions_from_its_padding_on() {
    compare("roberta");
}

#[test]
fn decoders_as_transformers_has_them() {
    compare("llama-bias-llama3");
    compare("qwen2-window");
}

#[test]
fn classifiers_as_transformers_has_them() {
    compare_labels("bert-pairs", Pooling::Cls);
    compare_labels("roberta-classes", Pooling::Cls);
    compare_labels("qwen2-classes", Pooling::Last);
}

/// The logits of all prompts of a fixture, of which some are two texts.
fn compare_labels(name: &str, pooling: Pooling) {
    let (stored, mut runner, spec) = fixture(name, "labels.safetensors");
    let mut sequences = Vec::new();
    for number in 0..4 {
        let ids = token_ids(&stored, number);
        let types: Vec<i64> = stored[&format!("type_ids.{number}")].to_vec1().unwrap();
        let second_text_start = types.iter().position(|of| *of == 1).map(|at| at as u32);
        let sampling =
            SamplingParams { pooling: Some(pooling), second_text_start, ..SamplingParams::default() };
        sequences.push(Sequence::new(number, u64::from(number), &ids, sampling));
    }
    let found = run(&mut runner, sequences, spec.causal, &mut StdRng::seed_from_u64(1));
    for number in 0..4 {
        let expected: Vec<f32> = stored[&format!("logits.{number}")].to_vec1().unwrap();
        let found = &found[&RequestId(number)];
        assert_eq!((found.len(), found.len()), (expected.len(), spec.classifier.unwrap().num_labels));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < TOLERANCE, "{name}, {number}: {found} for {expected}");
        }
    }
}

/// What transformers gave, and a runner of the same model.
fn fixture(name: &str, file: &str) -> (HashMap<String, Tensor>, Runner<CpuBackend>, ModelSpec) {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures").join(name);
    let stored = safetensors::load(dir.join(file), &Device::Cpu).unwrap();
    let spec = ModelSpec::from_dir(&dir).unwrap().for_pooling();
    let mut backend = CpuBackend::new(CpuOptions::default()).unwrap();
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let config = RunnerConfig {
        max_num_seqs: 12,
        max_num_batched_tokens: MAX_STEP,
        max_model_len: spec.max_position_embeddings.min(40),
        block_size: BLOCK_SIZE,
        num_blocks: 200,
    };
    let model = Model::load(&mut backend, spec.clone(), &checkpoint, &mut |_| {}).unwrap();
    (stored, Runner::new(backend, model, config).unwrap(), spec)
}

fn token_ids(stored: &HashMap<String, Tensor>, number: u32) -> Vec<TokenId> {
    let ids: Vec<i64> = stored[&format!("token_ids.{number}")].to_vec1().unwrap();
    ids.into_iter().map(|id| id as TokenId).collect()
}

/// All prompts of a fixture in one step after another, by every pooling, against the stored hidden states.
fn compare(name: &str) {
    let (stored, mut runner, spec) = fixture(name, "pooled.safetensors");
    let (width, causal) = (spec.hidden_size, spec.causal);
    let mut sequences = Vec::new();
    let mut expected = Vectors::new();
    for number in 0..4 {
        let ids = token_ids(&stored, number);
        let hidden: Vec<Vec<f32>> = stored[&format!("hidden.{number}")].to_vec2().unwrap();
        for pooling in POOLINGS {
            let slot = sequences.len() as u32;
            sequences.push(sequence(slot, &ids, pooling));
            expected.insert(RequestId(u64::from(slot)), pool(&hidden, pooling));
        }
    }
    let found = run(&mut runner, sequences, causal, &mut StdRng::seed_from_u64(1));
    for (id, expected) in expected {
        assert_eq!(found[&id].len(), width, "{name}");
        for (found, expected) in found[&id].iter().zip(&expected) {
            assert!((found - expected).abs() < TOLERANCE, "{name}, {id:?}: {found} for {expected}");
        }
    }
}

fn sequence(slot: u32, prompt: &[TokenId], pooling: Pooling) -> Sequence {
    let sampling = SamplingParams { pooling: Some(pooling), ..SamplingParams::default() };
    Sequence::new(slot, u64::from(slot), prompt, sampling)
}

fn pool(hidden: &[Vec<f32>], pooling: Pooling) -> Vec<f32> {
    match pooling {
        Pooling::Last => hidden[hidden.len() - 1].clone(),
        Pooling::Cls => hidden[0].clone(),
        Pooling::Mean => {
            let sum = |i| hidden.iter().map(|token| f64::from(token[i])).sum::<f64>();
            (0..hidden[0].len()).map(|i| (sum(i) / hidden.len() as f64) as f32).collect()
        }
    }
}

/// Random company and, where they may be cut, random cuts, until all have their vectors.
fn run(
    runner: &mut Runner<CpuBackend>,
    mut sequences: Vec<Sequence>,
    may_cut: bool,
    rng: &mut StdRng,
) -> Vectors {
    let mut planner = Planner::new(BLOCK_SIZE, (1..200).collect());
    let mut vectors = Vectors::new();
    while vectors.len() < sequences.len() {
        planner.begin();
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        order.shuffle(rng);
        for index in order {
            let left = sequences[index].len() - sequences[index].computed;
            let room = MAX_STEP - planner.plan.num_tokens as usize;
            if left == 0 || left > room || rng.random_bool(0.3) {
                continue;
            }
            if sequences[index].admitted && rng.random_bool(0.2) {
                // Preempted: it starts over.
                planner.release(&mut sequences[index]);
                continue;
            }
            let num_tokens = if may_cut { rng.random_range(1..=left) } else { left };
            planner.add(&mut sequences[index], num_tokens);
        }
        if planner.plan.rows.is_empty() {
            continue;
        }
        let output = planner.run(runner, &mut sequences);
        assert!(output.failed_rows.is_empty() && output.sampled.is_empty(), "{:?}", output.failed_rows);
        let ended = |row: &&quire_scheduler::ScheduledRow| {
            let sequence = sequences.iter().find(|sequence| sequence.id == row.id).unwrap();
            (row.start + row.num_tokens) as usize == sequence.len()
        };
        let ended: Vec<RequestId> = planner.plan.rows.iter().filter(ended).map(|row| row.id).collect();
        let width = output.pooled.len() / ended.len().max(1);
        for (id, vector) in ended.into_iter().zip(output.pooled.chunks_exact(width.max(1))) {
            assert!(vectors.insert(id, vector.to_vec()).is_none(), "{id:?} has two vectors");
        }
    }
    vectors
}

/// An encoder of odd sizes.
fn random_encoder(rng: &mut StdRng) -> ModelSpec {
    let spec = random_spec(rng, 1, &[1, 2, 5, 16, 19, 33]);
    let LayerSpec { attention, mlp } = &spec.layers[0];
    let layer = LayerSpec {
        attention: AttentionSpec {
            num_kv_heads: attention.num_heads,
            rope: None,
            qk_norm: None,
            sliding_window: None,
            ..attention.clone()
        },
        mlp: MlpSpec::Dense(DenseSpec {
            activation: Activation::Gelu,
            gated: false,
            ..*mlp.dense().unwrap()
        }),
    };
    ModelSpec {
        architecture: "BertModel".into(),
        norm: NormSpec { kind: NormKind::Layer, bias: true, ..spec.norm },
        norms: Norms::OfSum,
        positions: Positions::Learned { rows: MAX_LEN + 2, first: 2, types: rng.random_range(1..3) },
        causal: false,
        layers: vec![layer; rng.random_range(1..4)],
        lm_head: LmHead::None,
        ..spec
    }
}

#[test]
fn invariant_8_pooled_vectors_have_the_same_bits_in_any_batch() {
    for seed in 0..40 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let spec = match seed % 2 {
            0 => random_encoder(rng),
            _ => random_spec(rng, 1, &[2, 6, 16, 34]).for_pooling(),
        };
        let dtype = [Dtype::F32, Dtype::Bf16, Dtype::F16][rng.random_range(0..3)];
        let runner = |options| make_runner(CpuBackend::new(options).unwrap(), &spec, dtype, BLOCK_SIZE);
        let draw = |rng: &mut StdRng, slot: u32| {
            let len = rng.random_range(1..MAX_LEN);
            let prompt: Vec<TokenId> = (0..len).map(|_| rng.random_range(0..VOCAB as TokenId)).collect();
            sequence(slot, &prompt, POOLINGS[rng.random_range(0..3)])
        };
        let count = rng.random_range(2..6);
        let sequences: Vec<Sequence> = (0..count).map(|slot| draw(rng, slot)).collect();
        let mut alone = Vectors::new();
        for sequence in &sequences {
            let mut runner = runner(CpuOptions { num_threads: Some(1), isa: None });
            alone.extend(run(&mut runner, vec![sequence.clone()], false, rng));
        }
        let isas = Isa::available();
        let isa = Some(isas[rng.random_range(0..isas.len())]);
        let mut runner = runner(CpuOptions { num_threads: Some(rng.random_range(1..4)), isa });
        let mixed = run(&mut runner, sequences, spec.causal, rng);
        for (id, vector) in alone {
            let bits = |vector: &[f32]| vector.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&vector), bits(&mixed[&id]), "seed {seed}, {id:?}, {isa:?}, {spec:?}");
        }
    }
}
