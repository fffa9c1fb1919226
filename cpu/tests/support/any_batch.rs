//! Invariant 8 as a property of any backend: random small models and requests, and the ways to run them whose results
//! must be the same bits.

use std::collections::{HashMap, HashSet};

use quire_model::{
    Activation, AttentionSpec, Backend, Checkpoint, DenseSpec, Dtype, LayerSpec, LmHead, MlpSpec, Model,
    ModelSpec, NormKind, NormSpan, NormSpec, Norms, Positions, QkNormSpec, RopeScaling, RopeSpec, Runner,
    RunnerConfig, Scales,
};
use quire_scheduler::{ALL_LOGPROBS, ModelRunner, ModelRunnerOutput, RequestId, SamplingParams, TokenId};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::{Planner, Sequence};

/// Longest sequence.
pub(crate) const MAX_LEN: usize = 64;
/// No power of two, no multiple of anything.
pub(crate) const VOCAB: usize = 61;

/// Per request: for each output token, the token, its rank, and the bits of all log-probabilities.
pub(crate) type Trace = HashMap<RequestId, Vec<(TokenId, u32, Vec<(TokenId, u32)>)>>;

/// A model whose rows are multiples of `width_multiple`, with one of these widths of heads.
pub(crate) fn random_spec(rng: &mut StdRng, width_multiple: usize, head_dims: &[usize]) -> ModelSpec {
    let num_kv_heads = rng.random_range(1..4);
    let head_dim = head_dims[rng.random_range(0..head_dims.len())];
    let scaling = match rng.random_range(0..3) {
        0 => RopeScaling::None,
        1 => RopeScaling::Linear { factor: 2.0 },
        _ => RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 16.0,
        },
    };
    let num_layers = rng.random_range(1..4);
    let mlp = MlpSpec::Dense(DenseSpec {
        intermediate_size: rng.random_range(3..90usize).next_multiple_of(width_multiple),
        activation: Activation::Silu,
        gated: true,
        bias: rng.random_bool(0.5),
    });
    let attention = AttentionSpec {
        num_heads: num_kv_heads * rng.random_range(1..5),
        num_kv_heads,
        head_dim,
        latent: None,
        rope: Some(0),
        qkv_bias: rng.random_bool(0.5),
        output_bias: rng.random_bool(0.5),
        qk_norm: rng.random_bool(0.5).then_some(QkNormSpec { kind: NormKind::Rms, span: NormSpan::Head }),
        // Dummy weights are small; a large scale makes attention choose.
        scale: rng.random_range(0.1..30.0),
        softcap: rng.random_bool(0.3).then_some(2.0),
        sliding_window: None,
        sinks: false,
    };
    let mut layer = || {
        let sliding_window = rng.random_bool(0.4).then(|| rng.random_range(1..20));
        LayerSpec { attention: AttentionSpec { sliding_window, ..attention.clone() }, mlp: mlp.clone() }
    };
    let layers = (0..num_layers).map(|_| layer()).collect();
    ModelSpec {
        // Its weights' names.
        architecture: "LlamaForCausalLM".into(),
        dtype: Dtype::F32,
        vocab_size: VOCAB,
        hidden_size: rng.random_range(3..70usize).next_multiple_of(width_multiple),
        max_position_embeddings: MAX_LEN,
        norm: NormSpec { kind: NormKind::Rms, eps: 1e-5, bias: false, offset: 0.0 },
        norms: Norms::Before,
        positions: Positions::Rotary(vec![RopeSpec {
            dim: head_dim,
            theta: 100.0,
            scaling,
            interleaved: false,
        }]),
        causal: true,
        layers,
        scales: Scales::default(),
        lm_head: if rng.random_bool(0.5) { LmHead::Tied } else { LmHead::Own },
        lm_head_bias: false,
        quantization: Default::default(),
        classifier: None,
        eos_token_ids: vec![0],
    }
}

/// Requests of which several begin alike.
pub(crate) fn random_sequences(rng: &mut StdRng) -> Vec<Sequence> {
    let stem: Vec<TokenId> = (0..40).map(|_| rng.random_range(0..VOCAB as TokenId)).collect();
    let count = rng.random_range(2..7);
    (0..count)
        .map(|index| {
            let mut prompt = stem[..rng.random_range(1..40)].to_vec();
            prompt.extend((0..rng.random_range(0..10)).map(|_| rng.random_range(0..VOCAB as TokenId)));
            let sampling = SamplingParams {
                temperature: [0.0, 0.5, 1.5][rng.random_range(0..3)],
                top_k: [0, 5, 20][rng.random_range(0..3)],
                top_p: [1.0, 0.7][rng.random_range(0..2)],
                min_p: [0.0, 0.1][rng.random_range(0..2)],
                repetition_penalty: [1.0, 1.3][rng.random_range(0..2)],
                frequency_penalty: [0.0, 0.5][rng.random_range(0..2)],
                presence_penalty: [0.0, 0.25][rng.random_range(0..2)],
                seed: rng.random(),
                max_tokens: rng.random_range(1..9),
                logprobs: Some(ALL_LOGPROBS),
                ..SamplingParams::default()
            };
            Sequence::new(index, u64::from(index) + 100, &prompt, sampling)
        })
        .collect()
}

/// A runner of that model with dummy weights stored in `dtype`.
pub(crate) fn make_runner<B: Backend>(
    mut backend: B,
    spec: &ModelSpec,
    dtype: Dtype,
    block_size: usize,
) -> Runner<B> {
    let model = Model::load(&mut backend, spec.clone(), &Checkpoint::dummy(dtype), &mut |_| {}).unwrap();
    let config = RunnerConfig {
        max_num_seqs: 8,
        max_num_batched_tokens: 200,
        max_model_len: MAX_LEN,
        block_size,
        num_blocks: num_blocks(block_size),
    };
    Runner::new(backend, model, config).unwrap()
}

/// Enough for all requests, though those that were ever shared are never given out again.
fn num_blocks(block_size: usize) -> usize {
    1 + 20 * MAX_LEN.div_ceil(block_size)
}

/// Fails if a request's tokens, ranks or log-probabilities are not the same bits.
pub(crate) fn assert_same_bits(expected: &Trace, found: &Trace, what: &str) {
    assert_eq!(expected.len(), found.len(), "{what}");
    for (id, expected) in expected {
        let found = &found[id];
        assert_eq!(expected.len(), found.len(), "{what}");
        for (index, (expected, found)) in expected.iter().zip(found).enumerate() {
            let place = format!("{id:?}, output token {index}, {what}");
            assert_eq!(expected.2, found.2, "logprobs differ: {place}");
            assert_eq!(expected, found, "{place}");
        }
    }
}

fn record(output: &ModelRunnerOutput, planner: &Planner, trace: &mut Trace) {
    assert!(output.failed_rows.is_empty(), "{:?}", output.failed_rows);
    for logprob in &output.logprobs {
        let top = &output.top[logprob.top.start as usize..logprob.top.end as usize];
        let bits = top.iter().map(|(token, logprob)| (*token, logprob.to_bits())).collect();
        let id = planner.plan.rows[logprob.row as usize].id;
        trace.entry(id).or_default().push((logprob.token, logprob.rank, bits));
    }
}

fn is_done(sequence: &Sequence) -> bool {
    sequence.output.len() == sequence.sampling.max_tokens as usize
}

/// The plainest way: the whole prompt at once, then token by token, blocks in order.
pub(crate) fn run_alone(
    runner: &mut dyn ModelRunner,
    block_size: usize,
    sequence: Sequence,
    trace: &mut Trace,
) {
    let mut planner = Planner::new(block_size, (1..num_blocks(block_size) as u32).rev().collect());
    let mut sequences = [sequence];
    while !is_done(&sequences[0]) {
        planner.begin();
        let left = sequences[0].len() - sequences[0].computed;
        planner.add(&mut sequences[0], left);
        let output = planner.run(runner, &mut sequences);
        record(output, &planner, trace);
    }
}

/// Random company, chunks, blocks, prefix hits and preemptions, until all are done.
pub(crate) fn run_mixed(
    runner: &mut dyn ModelRunner,
    block_size: usize,
    mut sequences: Vec<Sequence>,
    rng: &mut StdRng,
) -> Trace {
    let mut blocks: Vec<u32> = (1..num_blocks(block_size) as u32).collect();
    blocks.shuffle(rng);
    let mut planner = Planner::new(block_size, blocks);
    let (mut trace, mut shared) = (Trace::new(), HashSet::new());
    while !sequences.iter().all(is_done) {
        planner.begin();
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        order.shuffle(rng);
        for index in order {
            if is_done(&sequences[index]) || rng.random_bool(0.3) {
                continue;
            }
            if sequences[index].admitted && rng.random_bool(0.1) {
                planner.release(&mut sequences[index]);
                planner.free_blocks.retain(|block| !shared.contains(block));
            }
            if !sequences[index].admitted && rng.random_bool(0.7) {
                hit_prefix(&mut sequences, index, block_size, &mut shared);
            }
            let left = sequences[index].len() - sequences[index].computed;
            let num_tokens = if rng.random_bool(0.5) { left } else { rng.random_range(1..=left) };
            planner.add(&mut sequences[index], num_tokens);
        }
        if !planner.plan.rows.is_empty() {
            let output = planner.run(runner, &mut sequences);
            record(output, &planner, &mut trace);
        }
    }
    trace
}

/// Takes over the computed full blocks that a running request has in common with this one. Blocks that were
/// ever shared are never given out again: the test counts no references.
fn hit_prefix(sequences: &mut [Sequence], index: usize, block_size: usize, shared: &mut HashSet<u32>) {
    let tokens = |s: &Sequence| -> Vec<TokenId> { s.prompt.iter().chain(&s.output).copied().collect() };
    let own = tokens(&sequences[index]);
    let same = |other: &&Sequence| other.admitted && other.adapter == sequences[index].adapter;
    let hit = sequences.iter().filter(same).map(|other| {
        let common = own.iter().zip(&tokens(other)).take_while(|(a, b)| a == b).count();
        // What this very step computes is not there yet, so at most what a sampled token follows.
        let usable = if other.computed == other.len() { 0 } else { other.computed };
        let blocks = common.min(usable).min(own.len() - 1) / block_size;
        other.blocks[..blocks].to_vec()
    });
    let blocks = hit.max_by_key(Vec::len).unwrap_or_default();
    shared.extend(&blocks);
    sequences[index].computed = blocks.len() * block_size;
    sequences[index].blocks = blocks;
}
