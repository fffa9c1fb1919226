//! Outputs that follow grammars, through the production scheduler and a real runner: the same tokens whether each
//! one is sampled or those that must come are taken at once, alone or in company, in chunks, from cached
//! prefixes and after preemptions. And a grammar that fails, fails its own request.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use quire_cpu::{CpuBackend, CpuOptions};
use quire_model::Dtype;
use quire_scheduler::sim::ToyGrammar;
use quire_scheduler::{
    FinishReason, Grammar, GrammarError, GrammarMatcher, ModelRunner, NOTHING_LEFT, Request, RequestId,
    SamplingParams, Scheduler, SchedulerConfig, SchedulingPolicy, TokenId,
};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use support::any_batch::{MAX_LEN, VOCAB, make_runner, random_spec};

const NUM_SEEDS: u64 = 150;
const EOS: TokenId = 0;

/// What each request generated, and how it ended.
type Results = BTreeMap<RequestId, (Vec<TokenId>, FinishReason)>;

/// Counts over a whole test, which must have met what it is about.
#[derive(Debug, Default)]
struct Seen {
    forced: usize,
    preempted: usize,
    cached: usize,
    ended: usize,
    stuck: usize,
}

fn config(block_size: usize, num_blocks: u32, max_num_batched_tokens: u32) -> SchedulerConfig {
    SchedulerConfig {
        max_num_seqs: 8,
        max_num_batched_tokens,
        max_model_len: MAX_LEN as u32,
        block_size: block_size as u32,
        num_blocks,
        enable_prefix_caching: true,
        enable_kv_events: false,
        policy: SchedulingPolicy::Fcfs,
        long_prefill_token_threshold: 0,
        priority_ageing_us: 0,
    }
}

/// Serves the requests to their ends.
fn serve(
    runner: &mut dyn ModelRunner,
    config: SchedulerConfig,
    requests: Vec<Request>,
    seen: &mut Seen,
) -> Results {
    let mut scheduler = Scheduler::new(config).unwrap();
    let mut tokens: BTreeMap<RequestId, Vec<TokenId>> = BTreeMap::new();
    let mut results = Results::new();
    requests.into_iter().for_each(|request| scheduler.add(request));
    while scheduler.has_unfinished() {
        let plan = scheduler.schedule(0).unwrap();
        let ticket = runner.submit(&plan).unwrap();
        let out = scheduler.update(plan, runner.collect(ticket).as_ref().map(|output| *output));
        scheduler.check_invariants().unwrap();
        for update in out.updates {
            let new = &out.tokens[update.tokens.start as usize..update.tokens.end as usize];
            seen.forced += new.len().saturating_sub(1);
            seen.cached += update.first_scheduled.map_or(0, |first| first.num_cached_tokens as usize);
            tokens.entry(update.id).or_default().extend(new);
            if let Some(finish) = update.finish {
                seen.ended += usize::from(matches!(finish, FinishReason::Eos(_)));
                seen.stuck += usize::from(matches!(finish, FinishReason::Error(_)));
                results.insert(update.id, (tokens.remove(&update.id).unwrap_or_default(), finish));
            }
        }
        seen.preempted += out.preemptions.len();
    }
    results
}

fn request(id: u64, prompt: &[TokenId], sampling: SamplingParams) -> Request {
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

#[test]
fn invariant_8_grammars_give_the_same_tokens_in_any_batch_forced_or_sampled() {
    let mut seen = Seen::default();
    for seed in 0..NUM_SEEDS {
        let rng = &mut StdRng::seed_from_u64(seed);
        let spec = random_spec(rng, 1, &[4, 8]);
        let block_size = [1, 3, 4, 16][rng.random_range(0..4)];
        let runner = || {
            let options = CpuOptions { num_threads: Some(1), isa: None };
            make_runner(CpuBackend::new(options).unwrap(), &spec, Dtype::F32, block_size)
        };
        let requests = random_requests(rng);
        let roomy = config(block_size, 1 + 10 * MAX_LEN.div_ceil(block_size) as u32, 200);
        let mut alone = Results::new();
        for request in &requests {
            let mut request = request.clone();
            // With log-probabilities each token is sampled, forced or not.
            Arc::make_mut(&mut request.sampling).logprobs = Some(0);
            let mut sampled_only = Seen::default();
            alone.extend(serve(&mut runner(), roomy.clone(), vec![request], &mut sampled_only));
            assert_eq!(sampled_only.forced, 0, "seed {seed}");
        }
        let least = 1 + MAX_LEN.div_ceil(block_size) as u32;
        let (num_blocks, budget) = (rng.random_range(least..3 * least), rng.random_range(8..40));
        let mixed = serve(&mut runner(), config(block_size, num_blocks, budget), requests, &mut seen);
        assert_eq!(alone, mixed, "seed {seed}");
        for (_, finish) in alone.values() {
            let FinishReason::Error(reason) = finish else { continue };
            assert!(&**reason == NOTHING_LEFT || &**reason == ToyGrammar::GIVES_UP, "seed {seed}: {reason}");
        }
    }
    println!("{seen:?}");
    let met =
        seen.forced > 1000 && seen.preempted > 50 && seen.cached > 1000 && seen.ended > 50 && seen.stuck > 20;
    assert!(met, "{seen:?}");
}

/// Which call of the matcher goes wrong, and how.
#[derive(Debug, Clone, Copy)]
enum Wrong {
    FirstMask,
    LaterMask,
    Token,
    Forced,
    ForcedToken(TokenId),
    Panic,
}

/// Allows everything until its third token.
#[derive(Debug)]
struct Spoilt {
    wrong: Wrong,
    num_accepted: usize,
}

impl GrammarMatcher for Spoilt {
    fn fill_mask(&mut self, _: &mut [u32]) -> Result<bool, GrammarError> {
        match (self.wrong, self.num_accepted) {
            (Wrong::FirstMask, _) | (Wrong::LaterMask, 3) => Err(GrammarError("spoilt mask".into())),
            (Wrong::Panic, 3) => panic!("spoilt panic"),
            _ => Ok(false),
        }
    }

    fn accept(&mut self, _: TokenId) -> Result<(), GrammarError> {
        self.num_accepted += 1;
        match (self.wrong, self.num_accepted) {
            (Wrong::Token, 3) => Err(GrammarError("spoilt token".into())),
            _ => Ok(()),
        }
    }

    fn take_forced(&mut self, out: &mut Vec<TokenId>) -> Result<(), GrammarError> {
        match (self.wrong, self.num_accepted) {
            (Wrong::Forced, 3) => return Err(GrammarError("spoilt force".into())),
            (Wrong::ForcedToken(token), 3) => out.push(token),
            _ => {}
        }
        Ok(())
    }
}

#[test]
fn invariant_12_a_grammar_that_fails_fails_its_request_alone() {
    let rng = &mut StdRng::seed_from_u64(1);
    let spec = random_spec(rng, 1, &[4]);
    let mut runner = make_runner(CpuBackend::new(CpuOptions::default()).unwrap(), &spec, Dtype::F32, 4);
    let greedy =
        |grammar| SamplingParams { temperature: 0.0, max_tokens: 9, grammar, ..SamplingParams::default() };
    let spoilt = |wrong| Grammar::new(move || Box::new(Spoilt { wrong, num_accepted: 0 }));
    let cases = [
        (spoilt(Wrong::FirstMask), 0, "spoilt mask"),
        (spoilt(Wrong::LaterMask), 3, "spoilt mask"),
        (spoilt(Wrong::Token), 2, "spoilt token"),
        (spoilt(Wrong::Forced), 2, "spoilt force"),
        (spoilt(Wrong::ForcedToken(VOCAB as TokenId)), 2, "the grammar forces token 61 of 61"),
        (spoilt(Wrong::Panic), 3, "the grammar's matcher panicked: spoilt panic"),
        (Grammar::new(|| panic!("no start")), 0, "the grammar's matcher panicked: no start"),
    ];
    let mut seen = Seen::default();
    let expected =
        serve(&mut runner, config(4, 200, 100), vec![request(1, &[5, 6], greedy(None))], &mut seen);
    let mut requests: Vec<Request> = cases
        .iter()
        .zip(2..)
        .map(|((grammar, ..), id)| request(id, &[5, 6], greedy(Some(grammar.clone()))))
        .collect();
    requests.push(request(1, &[5, 6], greedy(None)));
    let results = serve(&mut runner, config(4, 200, 100), requests, &mut seen);
    assert_eq!(results[&RequestId(1)], expected[&RequestId(1)]);
    for ((_, num_tokens, reason), id) in cases.iter().zip(2..) {
        let (tokens, finish) = &results[&RequestId(id)];
        assert_eq!(*finish, FinishReason::Error((*reason).into()));
        assert_eq!(tokens[..], expected[&RequestId(1)].0[..*num_tokens], "{reason}");
    }
}

/// Everything but one token may come, and then that one must.
#[derive(Debug)]
struct ThenSeven(bool);

impl GrammarMatcher for ThenSeven {
    fn fill_mask(&mut self, mask: &mut [u32]) -> Result<bool, GrammarError> {
        mask.fill(if self.0 { 0 } else { u32::MAX });
        mask[0] = if self.0 { 1 << 7 } else { !(1 << 7) };
        Ok(true)
    }

    fn accept(&mut self, token: TokenId) -> Result<(), GrammarError> {
        assert_eq!(token == 7, self.0);
        self.0 = !self.0;
        Ok(())
    }

    fn take_forced(&mut self, out: &mut Vec<TokenId>) -> Result<(), GrammarError> {
        if self.0 {
            out.push(7);
            self.0 = false;
        }
        Ok(())
    }
}

#[test]
fn a_forced_token_costs_no_step() {
    let rng = &mut StdRng::seed_from_u64(1);
    let spec = random_spec(rng, 1, &[4]);
    let mut runner = make_runner(CpuBackend::new(CpuOptions::default()).unwrap(), &spec, Dtype::F32, 4);
    let grammar = Some(Grammar::new(|| Box::new(ThenSeven(false))));
    let mut scheduler = Scheduler::new(config(4, 100, 100)).unwrap();
    scheduler.add(request(
        1,
        &[5, 6],
        SamplingParams { max_tokens: 20, grammar, ..SamplingParams::default() },
    ));
    let mut num_steps = 0;
    while scheduler.has_unfinished() {
        let plan = scheduler.schedule(0).unwrap();
        assert_eq!(plan.rows[0].num_tokens, 2, "the prompt, then each token with the one forced behind it");
        let ticket = runner.submit(&plan).unwrap();
        let out = scheduler.update(plan, Ok(runner.collect(ticket).unwrap()));
        assert_eq!((out.tokens.len(), out.tokens[1]), (2, 7));
        num_steps += 1;
    }
    assert_eq!(num_steps, 10);
}
