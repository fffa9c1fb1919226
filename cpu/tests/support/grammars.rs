//! Requests with grammars, and a scheduler and a runner that serve them to their ends.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use quire_scheduler::sim::ToyGrammar;
use quire_scheduler::{
    FinishReason, Grammar, ModelRunner, NOTHING_LEFT, Request, RequestId, SamplingParams, Scheduler,
    SchedulerConfig, SchedulingPolicy, TokenId,
};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::any_batch::{MAX_LEN, VOCAB};

const EOS: TokenId = 0;

/// What each request generated, and how it ended.
pub(crate) type Results = BTreeMap<RequestId, (Vec<TokenId>, FinishReason)>;

/// Counts over a whole test, which must have met what it is about.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) forced: usize,
    pub(crate) preempted: usize,
    pub(crate) cached: usize,
    pub(crate) ended: usize,
    pub(crate) stuck: usize,
}

/// For the runners of [`super::any_batch::make_runner`].
pub(crate) fn config(block_size: usize, num_blocks: u32, max_num_batched_tokens: u32) -> SchedulerConfig {
    SchedulerConfig {
        max_num_seqs: 8,
        max_num_batched_tokens,
        max_model_len: MAX_LEN as u32,
        block_size: block_size as u32,
        num_blocks,
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

/// Serves the requests to their ends, with as many steps in flight as the runner takes.
pub(crate) fn serve(
    runner: &mut dyn ModelRunner,
    config: SchedulerConfig,
    requests: Vec<Request>,
    seen: &mut Seen,
) -> Results {
    let mut scheduler = Scheduler::new(config).unwrap();
    let mut tokens: BTreeMap<RequestId, Vec<TokenId>> = BTreeMap::new();
    let mut results = Results::new();
    requests.into_iter().for_each(|request| scheduler.add(request));
    let mut in_flight = VecDeque::new();
    loop {
        while in_flight.len() < runner.max_in_flight() {
            let Some(plan) = scheduler.schedule(0) else { break };
            let ticket = runner.submit(&plan).unwrap();
            in_flight.push_back((plan, ticket));
        }
        let Some((plan, ticket)) = in_flight.pop_front() else { return results };
        let out = scheduler.update(plan, Ok(runner.collect(ticket).unwrap()));
        scheduler.check_invariants().unwrap();
        for update in out.updates {
            let new = &out.tokens[update.tokens.start as usize..update.tokens.end as usize];
            seen.forced += new.len().saturating_sub(1);
            seen.cached += update.first_scheduled.map_or(0, |first| first.num_cached_tokens as usize);
            tokens.entry(update.id).or_default().extend(new);
            if let Some(finish) = update.finish {
                seen.ended += usize::from(matches!(finish, FinishReason::Eos(_)));
                seen.stuck += usize::from(matches!(finish, FinishReason::Impossible(_)));
                results.insert(update.id, (tokens.remove(&update.id).unwrap_or_default(), finish));
            }
        }
        seen.preempted += out.preemptions.len();
    }
}

pub(crate) fn request(id: u64, prompt: &[TokenId], sampling: SamplingParams) -> Request {
    Request {
        id: RequestId(id),
        prompt_token_ids: prompt.into(),
        sampling: Arc::new(sampling),
        priority: 0,
        arrival_us: 0,
        adapter: None,
        cache_salt: None,
        bypass_prefix_cache: false,
    }
}

/// Requests of which several begin alike, most of them with grammars.
fn random_requests(rng: &mut StdRng) -> Vec<Request> {
    let stem: Vec<TokenId> = (0..30).map(|_| rng.random_range(0..VOCAB as TokenId)).collect();
    let toy = |seed| ToyGrammar { seed, vocab_size: VOCAB as u32, eos: EOS, failures: 3 }.grammar();
    let grammars: Vec<Grammar> = (0..3).map(|_| toy(rng.random())).collect();
    let draw = |id, rng: &mut StdRng| {
        let mut prompt = stem[..rng.random_range(1..30)].to_vec();
        prompt.extend((0..rng.random_range(0..6)).map(|_| rng.random_range(0..VOCAB as TokenId)));
        let max_tokens = rng.random_range(1..50);
        let sampling = SamplingParams {
            temperature: [0.0, 0.7, 1.5][rng.random_range(0..3)],
            top_k: [0, 5][rng.random_range(0..2)],
            min_p: [0.0, 0.1][rng.random_range(0..2)],
            repetition_penalty: [1.0, 1.3][rng.random_range(0..2)],
            frequency_penalty: [0.0, 0.5][rng.random_range(0..2)],
            seed: rng.random(),
            max_tokens,
            min_tokens: if rng.random_bool(0.3) { rng.random_range(0..=max_tokens) } else { 0 },
            ignore_eos: rng.random_bool(0.2),
            eos_token_ids: [EOS].into(),
            stop_token_ids: if rng.random_bool(0.2) { vec![1, 2] } else { Vec::new() },
            logit_bias: if rng.random_bool(0.2) { vec![(5, 100.0)] } else { Vec::new() },
            allowed_token_ids: rng
                .random_bool(0.1)
                .then(|| (0..VOCAB as u32).filter(|token| token % 9 != 8).collect()),
            bad_words: if rng.random_bool(0.1) { vec![vec![3], vec![4, 5]] } else { Vec::new() },
            grammar: rng.random_bool(0.8).then(|| grammars.choose(rng).unwrap().clone()),
            ..SamplingParams::default()
        };
        request(id, &prompt, sampling)
    };
    (1..=rng.random_range(2..10)).map(|id| draw(id, rng)).collect()
}

/// Random requests give the same whether each token is sampled, alone, or those that must come are taken at once, in
/// company, in chunks, from cached prefixes and after preemptions.
pub(crate) fn check_random_requests<R: ModelRunner>(
    make_runner: impl Fn() -> R,
    block_size: usize,
    rng: &mut StdRng,
    seen: &mut Seen,
    what: &str,
) {
    let requests = random_requests(rng);
    let roomy = config(block_size, 1 + 10 * MAX_LEN.div_ceil(block_size) as u32, 200);
    let mut alone = Results::new();
    let mut lonely = make_runner();
    for request in &requests {
        let mut request = request.clone();
        // With log-probabilities each token is sampled, forced or not.
        Arc::make_mut(&mut request.sampling).logprobs = Some(0);
        let mut sampled_only = Seen::default();
        alone.extend(serve(&mut lonely, roomy.clone(), vec![request], &mut sampled_only));
        assert_eq!(sampled_only.forced, 0, "{what}");
    }
    let least = 1 + MAX_LEN.div_ceil(block_size) as u32;
    let (num_blocks, budget) = (rng.random_range(least..3 * least), rng.random_range(8..40));
    let mixed = serve(&mut make_runner(), config(block_size, num_blocks, budget), requests, seen);
    assert_eq!(alone, mixed, "{what}");
    for (_, finish) in alone.values() {
        assert!(!matches!(finish, FinishReason::Error(_)), "{what}: {finish:?}");
        let FinishReason::Impossible(reason) = finish else { continue };
        assert!(&**reason == NOTHING_LEFT || &**reason == ToyGrammar::GIVES_UP, "{what}: {reason}");
    }
}
