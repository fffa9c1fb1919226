//! Tokens that a grammar forces: how the scheduler goes on with them, and that they are what the masks alone
//! would have given.

mod common;

use std::sync::Arc;

use common::*;
use quire_scheduler::sim::{Rng, ToyGrammar};
use quire_scheduler::*;

const VOCAB: u32 = 40;

fn toy(seed: u64) -> ToyGrammar {
    ToyGrammar { seed, vocab_size: VOCAB, eos: 0, failures: 0 }
}

fn with_grammar(request: Request) -> Request {
    with_sampling(request, |p| p.grammar = Some(toy(1).grammar()))
}

/// The answer to a plan whose rows `forced` says of what follows their token.
fn answer_with(driver: &Driver, plan: &SchedulerOutput, forced: &[(u32, &[TokenId])]) -> ModelRunnerOutput {
    let mut answer = driver.answer(plan);
    for (row, tokens) in forced {
        let from = answer.forced.len() as u32;
        answer.forced.extend_from_slice(tokens);
        answer.forced_rows.push((*row, from..answer.forced.len() as u32));
    }
    answer
}

fn finish_with_forced(
    driver: &mut Driver,
    plan: SchedulerOutput,
    forced: &[(u32, &[TokenId])],
) -> StepOutputs {
    let answer = answer_with(driver, &plan, forced);
    driver.finish_with(plan, Ok(&answer))
}

#[test]
fn forced_tokens_are_tokens_left_to_compute() {
    let mut driver = Driver::new(SchedulerConfig { max_num_batched_tokens: 8, ..config() });
    driver.add([with_grammar(request(1, 5, 30)), request(2, 2, 30)]);
    let plan = driver.schedule().unwrap();
    let out = finish_with_forced(&mut driver, plan, &[(0, &[20, 21, 22, 23, 24, 25, 26, 27, 28, 29])]);
    assert_eq!(out.tokens, [501_005, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 502_002]);
    // Eleven tokens in pieces of what the budget leaves, and only the last piece samples.
    let plan = driver.step().unwrap();
    assert_eq!(rows(&plan), [(1, 5, 8)]);
    assert!(!plan.rows[0].samples);
    let plan = driver.step().unwrap();
    assert_eq!(rows(&plan), [(1, 13, 3), (2, 2, 1)]);
    assert!(plan.rows[0].samples);
    assert_eq!(rows(&driver.step().unwrap()), [(1, 16, 1), (2, 3, 1)]);
}

/// Of a request's parameters.
type Change = fn(&mut SamplingParams);

#[test]
fn forced_tokens_stop_the_request_as_sampled_ones_do() {
    let ends: [(Change, &[TokenId], FinishReason); 5] = [
        (|p| p.eos_token_ids = [22].into(), &[20, 21, 22], FinishReason::Eos(22)),
        (|p| p.stop_token_ids = vec![21], &[20, 21], FinishReason::StopToken(21)),
        (|p| p.max_tokens = 3, &[20, 21], FinishReason::Length),
        (
            |p| (p.eos_token_ids, p.stop_token_ids, p.ignore_eos) = ([21].into(), vec![23], true),
            &[20, 21, 22, 23],
            FinishReason::StopToken(23),
        ),
        (
            |p| (p.eos_token_ids, p.min_tokens, p.max_tokens) = ([20].into(), 3, 5),
            &[20, 21, 22, 23],
            FinishReason::Length,
        ),
    ];
    for (change, taken, end) in ends {
        let mut driver = Driver::new(config());
        driver.add([with_sampling(with_grammar(request(1, 5, 30)), change)]);
        let plan = driver.schedule().unwrap();
        let out = finish_with_forced(&mut driver, plan, &[(0, &[20, 21, 22, 23, 24])]);
        assert_eq!(out.tokens, [&[501_005], taken].concat());
        assert_eq!(out.updates.len(), 1);
        assert_eq!(driver.heard.ends[&1], end);
        assert_eq!(driver.free_blocks(), 100);
    }
}

#[test]
fn a_grammar_is_not_planned_for_while_its_token_is_not_known() {
    let mut driver = Driver::new(config());
    driver.add([with_grammar(request(1, 5, 9)), request(2, 5, 9)]);
    let first = driver.schedule().unwrap();
    let second = driver.schedule().unwrap();
    assert_eq!((ids(&first), ids(&second)), (vec![1, 2], vec![2]));
    finish_with_forced(&mut driver, first, &[(0, &[20, 21])]);
    let third = driver.schedule().unwrap();
    assert_eq!(rows(&third), [(1, 5, 3), (2, 6, 1)]);
    driver.finish(second);
    driver.finish(third);
    // Alone, it waits: there is nothing to plan.
    let mut driver = Driver::new(config());
    driver.add([with_grammar(request(1, 5, 9))]);
    let first = driver.schedule().unwrap();
    assert!(driver.schedule().is_none());
    driver.finish(first);
    assert_eq!(rows(&driver.schedule().unwrap()), [(1, 5, 1)]);
}

#[test]
fn forced_tokens_fill_blocks_that_others_hit() {
    let mut driver = Driver::new(config());
    driver.add([with_grammar(with_prompt(1, vec![1, 2, 3], 20))]);
    driver.sampler = |_, position| position;
    let plan = driver.schedule().unwrap();
    finish_with_forced(&mut driver, plan, &[(0, &[20, 21, 22, 23])]);
    driver.step();
    driver.add([with_prompt(2, vec![1, 2, 3, 3, 20, 21, 22, 23, 24], 1)]);
    driver.step();
    assert_eq!(driver.heard.cached[&2], 8);
}

#[test]
fn the_late_tokens_of_a_preempted_request_are_kept_also_the_forced_ones() {
    let mut driver = Driver::new(tight(6));
    driver.add([request(1, 12, 12), with_grammar(request(2, 11, 13))]);
    let before = driver.schedule().unwrap();
    let plan = driver.schedule().unwrap();
    assert_eq!((ids(&before), ids(&plan)), (vec![1, 2], vec![1]));
    assert_eq!(driver.scheduler.stats().preemptions_total, 1);
    finish_with_forced(&mut driver, before, &[(1, &[20, 21])]);
    assert_eq!(driver.heard.tokens[&2], [502_011, 20, 21]);
    driver.finish(plan);
    driver.run();
    assert_eq!((driver.heard.tokens[&2].len(), &driver.heard.ends[&2]), (13, &FinishReason::Length));
}

#[test]
fn a_runner_that_forces_nonsense_fails_the_step() {
    for (row, start, end) in [(2, 0, 1), (1, 0, 1), (0, 0, 2), (0, 1, 0)] {
        let mut driver = Driver::new(SchedulerConfig { max_num_batched_tokens: 8, ..config() });
        // The second row is a part of a prompt: it samples nothing.
        driver.add([with_grammar(request(1, 5, 9)), request(2, 5, 9)]);
        let plan = driver.schedule().unwrap();
        let mut answer = driver.answer(&plan);
        answer.forced = vec![20];
        answer.forced_rows = vec![(row, start..end)];
        driver.finish_with(plan, Ok(&answer));
        let FinishReason::Error(reason) = &driver.heard.ends[&1] else { panic!("{row} {start} {end}") };
        assert!(reason.contains("the runner forced tokens"), "{reason}");
    }
}

/// Bits of a mask, as tokens.
fn tokens_of(is_masked: bool, mask: &[u32]) -> Vec<TokenId> {
    (0..VOCAB).filter(|t| !is_masked || mask[*t as usize / 32] >> (t % 32) & 1 == 1).collect()
}

/// The same output twice: through [`Matching`], which takes what is forced or, for log-probabilities, does not; and
/// by a matcher that is only ever asked for masks.
#[test]
fn forced_tokens_are_what_masks_alone_would_have_given() {
    let (mut num_forced, mut num_dead_ends, mut num_ends) = (0, 0, 0);
    for seed in 0..3000 {
        let rng = &mut Rng::new(seed);
        let sampling = Arc::new(SamplingParams {
            max_tokens: rng.between(1, 30),
            min_tokens: rng.below(6),
            eos_token_ids: [0].into(),
            ignore_eos: true,
            bad_words: if rng.percent(30) { vec![vec![5], vec![6, 7]] } else { Vec::new() },
            allowed_token_ids: rng.percent(30).then(|| (0..VOCAB).filter(|t| t % 7 != 6).collect()),
            logprobs: rng.percent(30).then_some(0),
            ..SamplingParams::default()
        });
        let grammar = toy(seed).grammar();
        let start =
            |output: &[TokenId]| Matching::start(&grammar, &sampling, VOCAB as usize, output).unwrap();
        let (mut jumping, mut walking) = (start(&[]), Some(grammar.matcher()));
        let (mut output, mut mask) = (Vec::new(), vec![0; 2]);
        'tokens: while output.len() < sampling.max_tokens as usize {
            if rng.percent(20) {
                // A preemption. What was forced but not taken must not be forgotten.
                jumping = start(&output);
            }
            let left_by = |is_masked, mask: &[u32]| -> Vec<TokenId> {
                tokens_of(is_masked, mask).into_iter().filter(|t| !sampling.excludes(&output, *t)).collect()
            };
            let candidates = left_by(jumping.fill_mask(&mut mask).unwrap(), &mask);
            let is_masked = walking.as_mut().is_some_and(|matcher| matcher.fill_mask(&mut mask).unwrap());
            assert_eq!(candidates, left_by(is_masked, &mask), "seed {seed}, after {output:?}");
            if candidates.is_empty() {
                num_dead_ends += 1;
                break;
            }
            let token = *rng.pick(&candidates);
            let mut forced = Vec::new();
            jumping.accept(token).unwrap();
            if rng.percent(80) {
                // Else a preemption comes in between.
                jumping.take_forced(&mut forced);
            }
            assert!(sampling.logprobs.is_none() || forced.is_empty(), "seed {seed}");
            num_forced += forced.len();
            for token in [vec![token], forced].concat() {
                let is_masked = walking.as_mut().is_some_and(|matcher| matcher.fill_mask(&mut mask).unwrap());
                let allowed = tokens_of(is_masked, &mask);
                assert!(allowed.contains(&token), "seed {seed}: {token} after {output:?}");
                assert!(!sampling.excludes(&output, token), "seed {seed}: {token} after {output:?}");
                if let Some(matcher) = &mut walking {
                    matcher.accept(token).unwrap();
                }
                walking = walking.filter(|_| token != 0);
                num_ends += u32::from(token == 0);
                output.push(token);
                if output.len() == sampling.max_tokens as usize {
                    break 'tokens;
                }
            }
        }
    }
    assert!(
        num_forced > 1000 && num_dead_ends > 100 && num_ends > 100,
        "{num_forced} {num_dead_ends} {num_ends}"
    );
}

/// Forces two tokens after each of the model's, though its masks would allow others: as a grammar over text does, whose
/// forced text could be cut into tokens in several ways.
#[derive(Debug)]
struct OneWayOfMany(usize);

impl GrammarMatcher for OneWayOfMany {
    fn fill_mask(&mut self, _: &mut [u32]) -> Result<bool, GrammarError> {
        Ok(false)
    }

    fn accept(&mut self, _: TokenId) -> Result<(), GrammarError> {
        self.0 += 1;
        Ok(())
    }

    fn take_forced(&mut self, out: &mut Vec<TokenId>) -> Result<(), GrammarError> {
        if self.0.is_multiple_of(3) {
            out.extend([1, 2]);
            self.0 += 2;
        }
        Ok(())
    }
}

#[test]
fn what_is_forced_comes_whether_it_is_taken_at_once_or_not() {
    let grammar = Grammar::new(|| Box::new(OneWayOfMany(0)));
    let expected: Vec<TokenId> = [1, 2, 9].repeat(4);
    for seed in 0..200 {
        let rng = &mut Rng::new(seed);
        let logprobs = rng.percent(30).then_some(0);
        let sampling = Arc::new(SamplingParams { logprobs, ..SamplingParams::default() });
        let start =
            |output: &[TokenId]| Matching::start(&grammar, &sampling, VOCAB as usize, output).unwrap();
        let (mut matching, mut output, mut mask) = (start(&[]), Vec::new(), vec![0; 2]);
        while output.len() < expected.len() {
            if rng.percent(20) {
                matching = start(&output);
            }
            // The model would always like 9.
            let allowed = tokens_of(matching.fill_mask(&mut mask).unwrap(), &mask);
            let token = if allowed.contains(&9) { 9 } else { allowed[0] };
            matching.accept(token).unwrap();
            output.push(token);
            if rng.percent(70) {
                matching.take_forced(&mut output);
            }
        }
        assert!(expected.starts_with(&output[..expected.len()]), "seed {seed}: {output:?}");
    }
}
