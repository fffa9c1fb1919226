//! Tokens that a grammar forces: how the scheduler goes on with them, and that they are what the masks alone
//! would have given.

mod common;

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

/// Token by token by the masks alone: the tokens that are the only ones of their masks, up to one that other
/// parameters exclude.
fn forced_by_masks(
    matching: &mut Matching,
    params: &SamplingParams,
    output: &mut Vec<TokenId>,
) -> Vec<TokenId> {
    let mut forced = Vec::new();
    let mut mask = vec![0; Matching::mask_words(VOCAB as usize)];
    while output.len() < params.max_tokens as usize && matching.fill_mask(&mut mask).unwrap() {
        let allowed: Vec<TokenId> =
            (0..VOCAB).filter(|t| mask[*t as usize / 32] >> (t % 32) & 1 == 1).collect();
        let [token] = allowed[..] else { break };
        if params.excludes(output, token) {
            break;
        }
        matching.accept(token).unwrap();
        output.push(token);
        forced.push(token);
    }
    forced
}

#[test]
fn forced_tokens_are_what_masks_alone_would_have_given() {
    let (mut num_forced, mut num_left, mut num_dead_ends, mut num_ends) = (0, 0, 0, 0);
    for seed in 0..3000 {
        let rng = &mut Rng::new(seed);
        let sampling = std::sync::Arc::new(SamplingParams {
            max_tokens: rng.between(1, 30),
            min_tokens: rng.below(6),
            eos_token_ids: [0].into(),
            ignore_eos: true,
            bad_words: if rng.percent(30) { vec![vec![5], vec![6, 7]] } else { Vec::new() },
            allowed_token_ids: rng.percent(30).then(|| (0..VOCAB).filter(|t| t % 7 != 6).collect()),
            ..SamplingParams::default()
        });
        let grammar = toy(seed).grammar();
        let start = || Matching::start(&grammar, &sampling, VOCAB as usize, &[]).unwrap();
        let (mut jumping, mut walking) = (start(), start());
        let (mut output, mut mask, mut other) = (Vec::new(), vec![0; 2], vec![0; 2]);
        while output.len() < sampling.max_tokens as usize {
            let masked = jumping.fill_mask(&mut mask).unwrap();
            assert_eq!(masked, walking.fill_mask(&mut other).unwrap(), "seed {seed}");
            let allows = |mask: &[u32], t: TokenId| !masked || mask[t as usize / 32] >> (t % 32) & 1 == 1;
            let left = |mask: &[u32]| -> Vec<TokenId> {
                (0..VOCAB).filter(|t| allows(mask, *t) && !sampling.excludes(&output, *t)).collect()
            };
            // At a dead end the masks differ, but what is left to choose from does not.
            assert_eq!(left(&mask), left(&other), "seed {seed}");
            let candidates = left(&mask);
            if candidates.is_empty() {
                num_dead_ends += 1;
                break;
            }
            let token = *rng.pick(&candidates);
            jumping.accept(token).unwrap();
            walking.accept(token).unwrap();
            output.push(token);
            num_ends += u32::from(token == 0);
            let mut forced = Vec::new();
            jumping.take_forced(&mut forced).unwrap();
            let expected = forced_by_masks(&mut start_at(&start, &output), &sampling, &mut output.clone());
            // A matcher may leave some for later: of a long run, or where a set has one member by chance.
            assert!(expected.starts_with(&forced), "seed {seed}: {forced:?} for {expected:?}");
            num_left += expected.len() - forced.len();
            for token in &forced {
                walking.accept(*token).unwrap();
            }
            output.extend(&forced);
            num_forced += forced.len();
        }
    }
    assert!(num_left * 10 < num_forced, "{num_left} of {num_forced}");
    assert!(
        num_forced > 1000 && num_dead_ends > 100 && num_ends > 100,
        "{num_forced} {num_dead_ends} {num_ends}"
    );
}

/// Another place in the same grammar, after the same output.
fn start_at(start: &dyn Fn() -> Matching, output: &[TokenId]) -> Matching {
    let mut matching = start();
    output.iter().for_each(|token| matching.accept(*token).unwrap());
    matching
}

#[test]
fn who_wants_log_probabilities_gets_no_forced_tokens() {
    let sampling = std::sync::Arc::new(SamplingParams { logprobs: Some(0), ..SamplingParams::default() });
    for seed in 0..200 {
        let mut matching = Matching::start(&toy(seed).grammar(), &sampling, VOCAB as usize, &[]).unwrap();
        let (mut mask, mut forced) = (vec![0; 2], Vec::new());
        for _ in 0..5 {
            let masked = matching.fill_mask(&mut mask).unwrap();
            let token = (1..VOCAB).find(|t| !masked || mask[*t as usize / 32] >> (t % 32) & 1 == 1);
            let Some(token) = token else { break };
            matching.accept(token).unwrap();
            matching.take_forced(&mut forced).unwrap();
        }
        assert!(forced.is_empty());
    }
}
