//! Random small models and requests through the scheduler and a runner: what comes out of the CUDA backend is what
//! comes out of the CPU backend. The scheduler brings chunked prompts, prefix hits, preemption and, as the CUDA
//! backend has two steps in flight, tokens that the host does not know yet.

mod support;

use std::collections::{HashMap, VecDeque};

use quire_cpu::{CpuBackend, CpuOptions};
use quire_cuda::{CudaOptions, emulator};
use quire_model::{Backend, Checkpoint, Dtype, Model, ModelSpec, Runner, RunnerConfig};
use quire_scheduler::{
    ALL_LOGPROBS, ModelRunner, Request, RequestId, SamplingParams, Scheduler, SchedulerConfig,
    SchedulerStats, SchedulingPolicy, TokenId,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::any_batch::{MAX_LEN, VOCAB, random_sequences, random_spec};
use support::{open, options};

const MAX_SEQS: usize = 5;
const MAX_TOKENS_PER_STEP: usize = 40;

/// What became of the token at a position.
#[derive(Debug)]
struct Entry {
    position: u32,
    token: TokenId,
    logprob: f32,
    rank: u32,
    top: Vec<(TokenId, f32)>,
}

/// What a request was told.
#[derive(Debug, Default)]
struct Answer {
    tokens: Vec<TokenId>,
    logprobs: Vec<Entry>,
}

/// How far two backends may be apart: in f32 by the order of sums; in 16 bits by the roundings of activations, keys,
/// values and weights of attention between operations, which the CPU does not round. About three times (f32: fifteen
/// times) the largest difference seen.
struct Tolerance {
    /// Of log-probabilities.
    logprob: f32,
    /// A greedy token may be another if its log-probability is at most so far from the best.
    near_tie: f32,
}

/// Runs all requests to their end, with as many steps in flight as the runner takes.
fn run(
    runner: &mut dyn ModelRunner,
    config: SchedulerConfig,
    requests: &[Request],
) -> (HashMap<RequestId, Answer>, SchedulerStats) {
    let mut scheduler = Scheduler::new(config).unwrap();
    let (mut in_flight, mut answers, mut stats) =
        (VecDeque::new(), HashMap::new(), SchedulerStats::default());
    // Some come while others are running.
    let mut coming = requests.iter().cloned();
    scheduler.add(coming.next().unwrap());
    loop {
        scheduler_takes(&mut scheduler, &mut coming);
        while in_flight.len() < runner.max_in_flight() {
            let Some(plan) = scheduler.schedule(0) else { break };
            let ticket = runner.submit(&plan).unwrap();
            in_flight.push_back((plan, ticket));
        }
        let Some((plan, ticket)) = in_flight.pop_front() else { break };
        let out = scheduler.update(plan, Ok(runner.collect(ticket).unwrap()));
        stats = out.stats;
        for update in &out.updates {
            let answer: &mut Answer = answers.entry(update.id).or_default();
            answer.tokens.extend(&out.tokens[update.tokens.start as usize..update.tokens.end as usize]);
            let logprobs = &out.logprobs[update.logprobs.start as usize..update.logprobs.end as usize];
            answer.logprobs.extend(logprobs.iter().map(|entry| Entry {
                position: entry.position,
                token: entry.token,
                logprob: entry.logprob,
                rank: entry.rank,
                top: out.top[entry.top.start as usize..entry.top.end as usize].to_vec(),
            }));
        }
    }
    assert!(!scheduler.has_unfinished());
    (answers, stats)
}

fn scheduler_takes(scheduler: &mut Scheduler, coming: &mut dyn Iterator<Item = Request>) {
    coming.take(2).for_each(|request| scheduler.add(request));
}

fn make_runner<B: Backend>(
    mut backend: B,
    spec: &ModelSpec,
    dtype: Dtype,
    config: &SchedulerConfig,
) -> Runner<B> {
    let model = Model::load(&mut backend, spec.clone(), &Checkpoint::dummy(dtype), &mut |_| {}).unwrap();
    let config = RunnerConfig {
        max_num_seqs: MAX_SEQS,
        max_num_batched_tokens: MAX_TOKENS_PER_STEP,
        max_model_len: MAX_LEN,
        block_size: config.block_size as usize,
        num_blocks: config.num_blocks as usize,
    };
    Runner::new(backend, model, config).unwrap()
}

/// So few blocks that running requests take them from each other.
fn scheduler_config(block_size: usize) -> SchedulerConfig {
    SchedulerConfig {
        max_num_seqs: MAX_SEQS as u32,
        max_num_batched_tokens: MAX_TOKENS_PER_STEP as u32,
        max_model_len: MAX_LEN as u32,
        block_size: block_size as u32,
        num_blocks: 1 + (2 * MAX_LEN).div_ceil(block_size) as u32,
        kv_groups: vec![quire_scheduler::kv::KvGroup::FULL],
        enable_prefix_caching: true,
        enable_kv_events: false,
        policy: SchedulingPolicy::Fcfs,
        long_prefill_token_threshold: 0,
        priority_ageing_us: 0,
        whole_prompts: false,
        max_loras: 4,
        adapter_patience_us: 0,
    }
}

/// Requests of which several begin alike; plainly greedy ones, or with all kinds of parameters.
fn random_requests(rng: &mut StdRng, all_greedy: bool) -> Vec<Request> {
    let sequences: Vec<_> = (0..2).flat_map(|_| random_sequences(rng)).collect();
    let request = |(index, sequence): (usize, support::Sequence)| {
        let mut sampling =
            SamplingParams { max_tokens: rng.random_range(1..15), ..(*sequence.sampling).clone() };
        if all_greedy || rng.random_bool(0.4) {
            let SamplingParams { max_tokens, seed, .. } = sampling;
            sampling = SamplingParams { temperature: 0.0, max_tokens, seed, ..SamplingParams::default() };
        }
        sampling.logprobs = [None, Some(0), Some(5), Some(ALL_LOGPROBS)][rng.random_range(0..4)];
        sampling.prompt_logprobs = [None, None, Some(0), Some(3)][rng.random_range(0..4)];
        Request {
            id: RequestId(index as u64),
            prompt_token_ids: sequence.prompt.clone(),
            sampling: sampling.into(),
            priority: 0,
            arrival_us: index as u64,
            adapter: None,
            cache_salt: None,
            bypass_prefix_cache: false,
        }
    };
    sequences.into_iter().enumerate().map(request).collect()
}

/// The same requests, told everything.
fn with_all_logprobs(requests: &[Request]) -> Vec<Request> {
    let told = |request: &Request| {
        let all = Some(ALL_LOGPROBS);
        let prompt_logprobs = request.sampling.prompt_logprobs.and(all);
        let sampling = SamplingParams { logprobs: all, prompt_logprobs, ..(*request.sampling).clone() };
        Request { sampling: sampling.into(), ..request.clone() }
    };
    requests.iter().map(told).collect()
}

/// The log-probability of a token among all.
fn logprob_of(entry: &Entry, token: TokenId) -> f32 {
    entry.top.iter().find(|(other, _)| *other == token).expect("all are there").1
}

/// Whether the token, which is not `oracle`'s, is as good within the tolerance: only known without penalties.
fn is_near_tie(request: &Request, oracle: &Entry, token: TokenId, tolerance: &Tolerance) -> bool {
    let SamplingParams { temperature, repetition_penalty, frequency_penalty, presence_penalty, .. } =
        *request.sampling;
    let is_plain = (temperature, repetition_penalty) == (0.0, 1.0)
        && (frequency_penalty, presence_penalty) == (0.0, 0.0);
    is_plain && oracle.logprob - logprob_of(oracle, token) <= tolerance.near_tie
}

/// Compares up to the first token that is a near tie; gives the number of tokens compared.
fn compare(request: &Request, found: &Answer, oracle: &Answer, tolerance: &Tolerance, what: &str) -> usize {
    let prompt_len = request.prompt_token_ids.len();
    assert_eq!(found.tokens.len(), oracle.tokens.len(), "{what}");
    let by_position: HashMap<u32, &Entry> =
        oracle.logprobs.iter().map(|entry| (entry.position, entry)).collect();
    let mut num_equal = 0;
    for (index, (found, expected)) in found.tokens.iter().zip(&oracle.tokens).enumerate() {
        if found != expected {
            let entry = by_position[&((prompt_len + index) as u32)];
            let near = is_near_tie(request, entry, *found, tolerance);
            assert!(near, "{what}, output token {index}: {found} for {expected}");
            break;
        }
        num_equal += 1;
    }
    let (prompt, output) = (request.sampling.prompt_logprobs, request.sampling.logprobs);
    let expected_len = prompt.map_or(0, |_| prompt_len - 1) + output.map_or(0, |_| found.tokens.len());
    assert_eq!(found.logprobs.len(), expected_len, "{what}: log-probabilities");
    for entry in &found.logprobs {
        let position = entry.position as usize;
        let num_top = if position < prompt_len { prompt } else { output }.unwrap();
        if position < prompt_len + num_equal {
            let what = format!("{what}, position {position}");
            compare_logprobs(entry, by_position[&entry.position], num_top, tolerance.logprob, &what);
        }
    }
    num_equal
}

fn compare_logprobs(found: &Entry, oracle: &Entry, num_top: u32, tolerance: f32, what: &str) {
    assert_eq!(found.token, oracle.token, "{what}");
    let close = |logprob: f32, token| (logprob - logprob_of(oracle, token)).abs() <= tolerance;
    assert!(close(found.logprob, found.token), "{what}: {} for {}", found.logprob, oracle.logprob);
    let above = |limit: f32| oracle.top.iter().filter(|(_, logprob)| *logprob > limit).count() as u32;
    let ranks = 1 + above(oracle.logprob + 2.0 * tolerance)..=1 + above(oracle.logprob - 2.0 * tolerance);
    assert!(ranks.contains(&found.rank), "{what}: rank {} of {ranks:?}", found.rank);
    assert_eq!(found.top.len(), (num_top as usize).min(VOCAB), "{what}");
    assert!(found.top.iter().all(|(token, logprob)| close(*logprob, *token)), "{what}: {:?}", found.top);
    assert!(found.top.is_sorted_by(|a, b| a.1 >= b.1), "{what}: {:?}", found.top);
}

/// Models of elements of `dtype` with such heads and blocks.
fn check(dtype: Dtype, num_seeds: u64, head_dims: &[usize], block_sizes: &[usize], tolerance: &Tolerance) {
    let (mut num_compared, mut num_tokens) = (0, 0);
    let (mut preemptions, mut hits) = (0, 0);
    for seed in 0..num_seeds {
        let rng = &mut StdRng::seed_from_u64(seed);
        let mut spec = random_spec(rng, 8, head_dims);
        for attention in spec.layers.iter_mut().map(|layer| &mut layer.attention) {
            if dtype == Dtype::F32 || attention.qk_norm.is_none() {
                continue;
            }
            // Normalised heads are long: a larger scale would let 16-bit roundings choose the token to attend to.
            attention.scale = (attention.head_dim as f32).sqrt().recip();
        }
        let config = scheduler_config(block_sizes[rng.random_range(0..block_sizes.len())]);
        let requests = random_requests(rng, dtype != Dtype::F32);
        let cpu = CpuBackend::new(CpuOptions { num_threads: Some(1), isa: None }).unwrap();
        let mut oracle = make_runner(cpu, &spec, dtype, &config);
        let (expected, _) = run(&mut oracle, config.clone(), &with_all_logprobs(&requests));
        let graphs = seed % 2 == 0;
        let mut runner = make_runner(open(CudaOptions { graphs, ..options(dtype) }), &spec, dtype, &config);
        let (found, stats) = run(&mut runner, config.clone(), &requests);
        preemptions += stats.preemptions_total;
        hits += stats.prefix_cache_hits_total;
        for request in &requests {
            let what =
                format!("{dtype:?}, seed {seed}, graphs: {graphs}, {:?}, {config:?}, {spec:?}", request.id);
            num_compared += compare(request, &found[&request.id], &expected[&request.id], tolerance, &what);
            num_tokens += expected[&request.id].tokens.len();
        }
    }
    println!(
        "{dtype:?}: {num_compared} of {num_tokens} tokens compared, {preemptions} preemptions, {hits} prefix hits"
    );
    assert!(
        num_compared * 100 >= num_tokens * 80,
        "near ties cut off too much: {num_compared} of {num_tokens}"
    );
    let recorded = emulator::is_device_real() || emulator::count("cuGraphLaunch") > 0;
    assert!(preemptions > 0 && hits > 0 && recorded);
}

#[test]
fn f32_models_give_the_cpus_tokens_and_logprobs() {
    let tolerance = Tolerance { logprob: 2e-5, near_tie: 2e-5 };
    check(Dtype::F32, 16, &[8, 24, 32, 48], &[4, 16, 32], &tolerance);
}

#[test]
fn bf16_models_give_the_cpus_tokens_and_logprobs() {
    let tolerance = Tolerance { logprob: 0.02, near_tie: 0.02 };
    check(Dtype::Bf16, 16, &[16, 32, 64, 96, 128], &[4, 16, 32], &tolerance);
}

#[test]
fn f16_models_give_the_cpus_tokens_and_logprobs() {
    let tolerance = Tolerance { logprob: 0.004, near_tie: 0.004 };
    check(Dtype::F16, 12, &[16, 32, 64, 96, 128], &[4, 16, 32], &tolerance);
}
