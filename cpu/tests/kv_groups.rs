//! Layers with a window give back the blocks that fell out of it, and nobody can tell by the results: the production
//! scheduler over real models, with groups of layers in pools too small to keep everything, against the same models
//! with room for all.

mod support;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{Device, safetensors};
use quire_cpu::{CpuBackend, CpuOptions};
use quire_model::{Checkpoint, Dtype, KvGroups, Model, ModelSpec, Runner, RunnerConfig};
use quire_scheduler::{
    ALL_LOGPROBS, ModelRunner, Request, RequestId, SamplingParams, Scheduler, SchedulerConfig, TokenId,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::any_batch::{MAX_LEN, VOCAB, random_spec};
use support::grammars::{config, request};

/// Of one log-probability that was told: position, token, and the bits of all alternatives.
type Told = (u32, TokenId, Vec<(TokenId, u32)>);
type Trace = BTreeMap<RequestId, Vec<Told>>;

/// Counts of what the tests are about.
#[derive(Debug, Default)]
struct Seen {
    /// Blocks that running requests had given back.
    freed: usize,
    /// Requests that began with a window of cached blocks and nothing before it.
    window_hits: usize,
    preempted: usize,
    /// Blocks held at once, at most.
    most_held: u32,
}

fn runner(
    spec: &ModelSpec,
    checkpoint: &Checkpoint,
    limits: &SchedulerConfig,
    groups: KvGroups,
) -> Runner<CpuBackend> {
    let mut backend = CpuBackend::new(CpuOptions { num_threads: Some(2), isa: None }).unwrap();
    let model = Model::load(&mut backend, spec.clone(), checkpoint, &mut |_| {}).unwrap();
    let config = RunnerConfig {
        max_num_seqs: limits.max_num_seqs as usize,
        max_num_batched_tokens: limits.max_num_batched_tokens as usize,
        max_model_len: limits.max_model_len as usize,
        block_size: limits.block_size as usize,
        num_blocks: limits.num_blocks as usize,
    };
    Runner::with_kv_groups(backend, model, config, groups).unwrap()
}

/// Serves the requests to their ends and returns all log-probabilities that were told.
fn serve(
    runner: &mut dyn ModelRunner,
    config: SchedulerConfig,
    requests: &[Request],
    seen: &mut Seen,
) -> Trace {
    let mut scheduler = Scheduler::new(config).unwrap();
    let num_groups = scheduler.kv().groups().len();
    requests.iter().for_each(|request| scheduler.add(request.clone()));
    let (mut trace, mut given) = (Trace::new(), BTreeMap::<RequestId, usize>::new());
    let mut in_flight = VecDeque::new();
    while let Some(plan) = scheduler.schedule(0) {
        for admitted in &plan.admitted {
            let blocks = &admitted.block_ids;
            assert!(blocks.len().is_multiple_of(num_groups));
            seen.window_hits += usize::from(blocks.iter().any(|block| block.is_null()));
            given.insert(admitted.id, blocks.iter().filter(|block| !block.is_null()).count());
        }
        for row in &plan.rows {
            *given.get_mut(&row.id).unwrap() += row.new_blocks.len();
        }
        let stats = scheduler.stats();
        let held = stats.num_blocks_total - stats.num_blocks_free;
        seen.most_held = seen.most_held.max(held);
        if let ([row], 1) = (&plan.rows[..], stats.num_running) {
            seen.freed += given[&row.id] - held as usize;
        }
        let ticket = runner.submit(&plan).unwrap();
        in_flight.push_back((plan, ticket));
        let (plan, ticket) = in_flight.pop_front().unwrap();
        let out = scheduler.update(plan, Ok(runner.collect(ticket).unwrap()));
        scheduler.check_invariants().unwrap();
        for update in &out.updates {
            for told in &out.logprobs[update.logprobs.start as usize..update.logprobs.end as usize] {
                let top = &out.top[told.top.start as usize..told.top.end as usize];
                let top = top.iter().map(|(token, logprob)| (*token, logprob.to_bits())).collect();
                trace.entry(update.id).or_default().push((told.position, told.token, top));
            }
        }
        seen.preempted += out.preemptions.len();
    }
    assert_eq!(scheduler.stats().num_blocks_free, scheduler.stats().num_blocks_total);
    trace
}

/// The same model with one group and room for everything.
fn serve_alone(spec: &ModelSpec, checkpoint: &Checkpoint, requests: &[Request]) -> Trace {
    let num_blocks = 1 + 9 * spec.max_position_embeddings.div_ceil(4) as u32;
    let max_model_len = spec.max_position_embeddings as u32;
    let limits = SchedulerConfig { max_model_len, ..config(4, num_blocks, 200) };
    let mut runner = runner(spec, checkpoint, &limits, KvGroups::one(spec));
    let mut trace = Trace::new();
    for request in requests {
        trace.extend(serve(&mut runner, limits.clone(), std::slice::from_ref(request), &mut Seen::default()));
    }
    trace
}

/// The smallest pool there can be for steps of so many tokens, and `spare` blocks.
fn tight(
    groups: &KvGroups,
    max_model_len: u32,
    block_size: usize,
    step_tokens: u32,
    spare: u32,
) -> SchedulerConfig {
    let mut limits = SchedulerConfig {
        max_model_len,
        kv_groups: groups.groups().to_vec(),
        ..config(block_size, 0, step_tokens)
    };
    limits.num_blocks = 1 + limits.blocks_per_sequence() + spare;
    limits
}

/// Requests of which several begin alike; some want the log-probabilities of their prompts.
fn random_requests(rng: &mut StdRng, vocab: usize, longest: usize) -> Vec<Request> {
    let stem: Vec<TokenId> = (0..longest).map(|_| rng.random_range(0..vocab as TokenId)).collect();
    let draw = |id, rng: &mut StdRng| {
        let mut prompt = stem[..rng.random_range(1..longest)].to_vec();
        prompt.extend((0..rng.random_range(0..6)).map(|_| rng.random_range(0..vocab as TokenId)));
        let sampling = SamplingParams {
            temperature: [0.0, 1.0][rng.random_range(0..2)],
            seed: rng.random(),
            max_tokens: rng.random_range(1..20),
            ignore_eos: true,
            logprobs: Some(ALL_LOGPROBS),
            prompt_logprobs: rng.random_bool(0.2).then_some(ALL_LOGPROBS),
            ..SamplingParams::default()
        };
        request(id, &prompt, sampling)
    };
    (1..=rng.random_range(3..9)).map(|id| draw(id, rng)).collect()
}

#[test]
fn invariant_8_windows_that_move_on_change_no_bit() {
    let mut seen = Seen::default();
    for seed in 0..60 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let mut spec = random_spec(rng, 1, &[2, 6, 8, 17]);
        let windows = [None, Some(rng.random_range(1..12)), Some(rng.random_range(1..30))];
        let (first, num_layers, num_kinds) =
            (spec.layers[0].clone(), rng.random_range(1..8), rng.random_range(1..4));
        spec.layers = vec![first; num_layers];
        for layer in &mut spec.layers {
            layer.attention.sliding_window = windows[rng.random_range(0..num_kinds)];
        }
        let checkpoint = Checkpoint::dummy(Dtype::F32);
        let requests = random_requests(rng, VOCAB, 40);
        let alone = serve_alone(&spec, &checkpoint, &requests);
        let groups = KvGroups::by_window(&spec);
        let (block_size, step_tokens) = ([1, 3, 4, 16][rng.random_range(0..4)], rng.random_range(8..30));
        let limits = tight(&groups, MAX_LEN as u32, block_size, step_tokens, rng.random_range(0..40));
        let mut runner = runner(&spec, &checkpoint, &limits, groups);
        for _ in 0..2 {
            let mixed = serve(&mut runner, limits.clone(), &requests, &mut seen);
            assert!(alone == mixed, "seed {seed}: {alone:?}\n{mixed:?}\n{spec:?}");
        }
    }
    println!("{seen:?}");
    assert!(seen.freed > 1000 && seen.window_hits > 20 && seen.preempted > 20, "{seen:?}");
}

/// All log-probabilities that transformers gives, from blocks that are freed as the window moves on.
fn compare_with_transformers(name: &str, num_groups: usize) {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures").join(name);
    let stored = safetensors::load(dir.join("expected.safetensors"), &Device::Cpu).unwrap();
    let token_ids: Vec<TokenId> =
        stored["token_ids"].to_vec1::<i64>().unwrap().into_iter().map(|id| id as TokenId).collect();
    let expected: Vec<Vec<f32>> = stored["logprobs"].to_vec2().unwrap();
    let (spec, checkpoint) = (ModelSpec::from_dir(&dir).unwrap(), Checkpoint::open(&dir).unwrap());
    let groups = KvGroups::by_window(&spec);
    assert_eq!(groups.groups().len(), num_groups);
    let sampling = SamplingParams {
        max_tokens: 1,
        logprobs: Some(ALL_LOGPROBS),
        prompt_logprobs: Some(ALL_LOGPROBS),
        ..SamplingParams::default()
    };
    let mut seen = Seen::default();
    for (block_size, step_tokens) in [(1, 8), (4, 8), (3, 13)] {
        let limits = tight(&groups, spec.max_position_embeddings as u32, block_size, step_tokens, 0);
        let mut runner = runner(&spec, &checkpoint, &limits, groups.clone());
        let request = request(1, &token_ids, sampling.clone());
        let trace = serve(&mut runner, limits, &[request], &mut seen);
        let told = &trace[&RequestId(1)];
        assert_eq!(told.len(), token_ids.len(), "{name}");
        for (position, token, bits) in
            told.iter().flat_map(|(p, _, top)| top.iter().map(|(t, b)| (*p, *t, *b)))
        {
            let (found, wanted) = (f32::from_bits(bits), expected[position as usize - 1][token as usize]);
            let error = (found - wanted).abs();
            assert!(error < 2e-5, "{name}, position {position}, token {token}: {found} for {wanted}");
        }
    }
    assert!(seen.freed > 20, "{seen:?}");
}

#[test]
fn mistral_frees_what_fell_out_of_its_window() {
    compare_with_transformers("mistral-window", 1);
}

#[test]
fn qwen2_frees_in_the_layers_that_have_a_window() {
    compare_with_transformers("qwen2-window", 3);
}

/// A sequence of 96 tokens in a pool of 20 blocks of one token: what all of it would take is not there.
#[test]
fn memory_is_bounded_by_the_window_and_not_by_the_sequence() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/mistral-window");
    let (spec, checkpoint) = (ModelSpec::from_dir(&dir).unwrap(), Checkpoint::open(&dir).unwrap());
    let sampling = SamplingParams {
        max_tokens: 56,
        ignore_eos: true,
        logprobs: Some(ALL_LOGPROBS),
        ..SamplingParams::default()
    };
    let prompt: Vec<TokenId> = (0..40).map(|i| i * 7 % 53).collect();
    let requests =
        [Request { sampling: Arc::new(sampling), ..request(1, &prompt, SamplingParams::default()) }];
    let groups = KvGroups::by_window(&spec);
    let limits = tight(&groups, 96, 1, 8, 5);
    assert_eq!(limits.num_blocks, 1 + 15 + 5);
    let mut whole = limits.clone();
    whole.kv_groups = KvGroups::one(&spec).groups().to_vec();
    assert!(whole.validate().is_err(), "without windows it does not fit");
    let mut seen = Seen::default();
    let mut runner = runner(&spec, &checkpoint, &limits, groups);
    let trace = serve(&mut runner, limits, &requests, &mut seen);
    assert_eq!(trace[&RequestId(1)].len(), 56);
    assert!(seen.most_held <= 15, "{seen:?}");
    assert!(trace == serve_alone(&spec, &checkpoint, &requests));
}
