//! Outputs that follow grammars, through the production scheduler and a real runner: the same tokens whether each
//! one is sampled or those that must come are taken at once, alone or in company, in chunks, from cached
//! prefixes and after preemptions. And a grammar that fails, fails its own request.

mod support;

use quire_cpu::{CpuBackend, CpuOptions};
use quire_model::Dtype;
use quire_scheduler::{
    FinishReason, Grammar, GrammarError, GrammarMatcher, ModelRunner, Request, RequestId, SamplingParams,
    Scheduler, TokenId,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::any_batch::{VOCAB, make_runner, random_spec};
use support::grammars::{Seen, check_random_requests, config, request, serve};

const NUM_SEEDS: u64 = 150;

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
        check_random_requests(runner, block_size, rng, &mut seen, &format!("seed {seed}"));
    }
    println!("{seen:?}");
    assert!(seen.forced > 1000 && seen.preempted > 50 && seen.cached > 1000, "{seen:?}");
    assert!(seen.ended > 50 && seen.stuck > 20, "{seen:?}");
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
            (Wrong::FirstMask, _) | (Wrong::LaterMask, 3) => Err(GrammarError::Broken("spoilt mask".into())),
            (Wrong::Panic, 3) => panic!("spoilt panic"),
            _ => Ok(false),
        }
    }

    fn accept(&mut self, _: TokenId) -> Result<(), GrammarError> {
        self.num_accepted += 1;
        match (self.wrong, self.num_accepted) {
            (Wrong::Token, 3) => Err(GrammarError::Broken("spoilt token".into())),
            _ => Ok(()),
        }
    }

    fn take_forced(&mut self, out: &mut Vec<TokenId>) -> Result<(), GrammarError> {
        match (self.wrong, self.num_accepted) {
            (Wrong::Forced, 3) => return Err(GrammarError::Broken("spoilt force".into())),
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
