//! Properties of sampling against slow, obvious references.

use std::collections::HashMap;
use std::sync::Arc;

use quire_scheduler::{AdmittedRequest, Grammar, RequestId};

use super::*;

const VOCAB: usize = 97;

/// A slot whose request has this prompt and output.
fn slot(params: &SamplingParams, prompt: &[TokenId], output: &[TokenId]) -> Slot {
    let mut slot = Slot::default();
    let request = AdmittedRequest {
        slot: 0,
        id: RequestId(1),
        prompt_token_ids: prompt.into(),
        output_token_ids: output.to_vec(),
        sampling: Arc::new(params.clone()),
        adapter: None,
        block_ids: Vec::new(),
    };
    slot.admit(&request, VOCAB);
    slot
}

/// Reproducible logits, with ties (multiples of 1/4) where `ties`.
fn random_logits(seed: u64, ties: bool) -> Vec<f32> {
    let value = |i| 8.0 * uniform(seed, i) as f32 - 4.0;
    (0..VOCAB as u32).map(value).map(|x| if ties { (x * 4.0).round() / 4.0 } else { x }).collect()
}

fn sample(logits: &[f32], slot: &Slot) -> RowResult {
    let position = slot.tokens().len() as u32;
    let row = LogitsRow { plan_row: 0, slot: 0, position, task: LogitsTask::Sample };
    let mut result = RowResult::default();
    sample_row(&row, &mut logits.to_vec(), slot, &mut SamplerScratch::new(VOCAB), &mut result);
    result
}

/// What a full sort keeps: temperature, min-p, top-k, top-p, in this order, with probabilities renormalised.
fn reference(logits: &[f32], params: &SamplingParams) -> HashMap<TokenId, f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: f32| f64::from((logit - max) / params.temperature).exp();
    let mut entries: Vec<(TokenId, f64)> =
        logits.iter().enumerate().map(|(id, logit)| (id as TokenId, weight(*logit))).collect();
    entries.retain(|entry| entry.1 >= f64::from(params.min_p));
    entries.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if params.top_k > 0 {
        entries.truncate(params.top_k as usize);
    }
    let total: f64 = entries.iter().map(|entry| entry.1).sum();
    let mut mass = 0.0;
    let kept = entries.iter().take_while(|entry| {
        let keep = mass < f64::from(params.top_p) * total;
        mass += entry.1;
        keep
    });
    let kept: Vec<_> = kept.copied().collect();
    let total: f64 = kept.iter().map(|entry| entry.1).sum();
    kept.into_iter().map(|(token, weight)| (token, weight / total)).collect()
}

#[test]
fn draws_follow_the_filtered_softmax() {
    const DRAWS: u32 = 20_000;
    let cases =
        [(0, 1.0, 0.0), (0, 1.0, 0.05), (12, 1.0, 0.0), (0, 0.8, 0.0), (20, 0.9, 0.02), (1, 0.5, 0.0)];
    for (case, (top_k, top_p, min_p)) in cases.into_iter().enumerate() {
        let params = SamplingParams { temperature: 0.8, top_k, top_p, min_p, ..SamplingParams::default() };
        let logits = random_logits(case as u64, case % 2 == 1);
        let expected = reference(&logits, &params);
        let mut counts: HashMap<TokenId, u32> = HashMap::new();
        for seed in 0..DRAWS {
            let slot = slot(&SamplingParams { seed: u64::from(seed), ..params.clone() }, &[1], &[]);
            *counts.entry(sample(&logits, &slot).token).or_default() += 1;
        }
        assert!(
            counts.keys().all(|token| expected.contains_key(token)),
            "case {case}: a token outside the set"
        );
        // Cells that are too rare for the chi-square distribution are put together.
        let (mut statistic, mut cells, mut rare) = (0.0, 0.0, (0.0, 0.0));
        for (token, probability) in &expected {
            let wanted = probability * f64::from(DRAWS);
            let found = f64::from(counts.get(token).copied().unwrap_or(0));
            if wanted < 5.0 {
                rare = (rare.0 + wanted, rare.1 + found);
            } else {
                statistic += (found - wanted).powi(2) / wanted;
                cells += 1.0;
            }
        }
        if rare.0 > 1.0 {
            statistic += (rare.1 - rare.0).powi(2) / rare.0;
            cells += 1.0;
        }
        // Mean + 4 standard deviations of chi-square with as many degrees of freedom.
        let limit = cells + 4.0 * (2.0f64 * cells).sqrt();
        assert!(statistic < limit, "case {case}: chi-square {statistic} over {cells} cells");
    }
}

#[test]
fn kept_sets_are_those_of_a_full_sort() {
    for seed in 0..300u64 {
        let pick = |i: u32, n: usize| (uniform(seed, 1000 + i) * n as f64) as usize;
        let params = SamplingParams {
            temperature: [0.3, 1.0, 2.0][pick(0, 3)],
            top_k: [0, 1, 7, 96, 97, 500][pick(1, 6)],
            top_p: [0.05, 0.5, 0.95, 0.999][pick(2, 4)],
            min_p: [0.0, 0.01, 0.5][pick(3, 3)],
            ..SamplingParams::default()
        };
        let logits = random_logits(seed, seed % 2 == 0);
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let scaled = logits.iter().map(|logit| (logit - max) / params.temperature);
        let mut candidates: Vec<(TokenId, f32)> = scaled
            .enumerate()
            .map(|(id, x)| (id as TokenId, x))
            .filter(|e| e.1.exp() >= params.min_p)
            .collect();
        keep_top_k(&mut candidates, params.top_k as usize);
        keep_top_p(&mut candidates, params.top_p);
        let mut found: Vec<TokenId> = candidates.iter().map(|entry| entry.0).collect();
        let mut expected: Vec<TokenId> = reference(&logits, &params).into_keys().collect();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected, "seed {seed}, {params:?}");
    }
}

#[test]
fn a_nucleus_wider_than_the_first_guess() {
    // Almost uniform: a nucleus of 90 % needs nine tenths of a vocabulary far above NUCLEUS_GUESS.
    let entry = |id: u32| (id, -1e-4 * ((id * 7919) % 5000) as f32);
    let mut candidates: Vec<(TokenId, f32)> = (0..5000).map(entry).collect();
    let mut sorted = candidates.clone();
    sorted.sort_by(by_preference);
    keep_top_p(&mut candidates, 0.9);
    assert!((4000..4700).contains(&candidates.len()), "{}", candidates.len());
    assert_eq!(candidates[..], sorted[..candidates.len()]);
}

#[test]
fn greedy_takes_the_lowest_of_the_best() {
    let mut logits = vec![0.0; VOCAB];
    (logits[40], logits[13], logits[90]) = (2.5, 2.5, 2.5);
    let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    assert_eq!(sample(&logits, &slot(&params, &[1], &[])).token, 13);
}

#[test]
fn penalties_are_those_of_the_formula() {
    let (prompt, output) = ([3, 5, 5, 8], [5, 9, 9, 9]);
    let params = SamplingParams {
        repetition_penalty: 1.7,
        frequency_penalty: 0.3,
        presence_penalty: -0.4,
        ..SamplingParams::default()
    };
    // Half of the output came before a preemption, half token by token.
    let mut slot = slot(&params, &prompt, &output[..2]);
    for token in &output[2..] {
        slot.expect_token();
        slot.set_token(slot.tokens().len() - 1, *token);
    }
    let logits = random_logits(7, false);
    let mut processed = logits.clone();
    process(&mut processed, &slot, output.len()).unwrap();
    for token in 0..VOCAB as TokenId {
        let mut expected = logits[token as usize];
        if prompt.contains(&token) || output.contains(&token) {
            expected = if expected > 0.0 { expected / 1.7 } else { expected * 1.7 };
        }
        let occurrences = output.iter().filter(|t| **t == token).count() as f32;
        if occurrences > 0.0 {
            expected -= 0.3 * occurrences - 0.4;
        }
        assert!((processed[token as usize] - expected).abs() < 1e-6, "token {token}");
    }
    // The next request in the slot starts from nothing.
    slot.release();
    assert_eq!(slot.occurrences().count(), 0);
}

#[test]
fn masks_hold_in_their_order() {
    let mut logits = random_logits(3, false);
    logits[10] = 50.0;
    logits[11] = 40.0;
    logits[12] = 30.0;
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let token =
        |params: &SamplingParams, output: &[TokenId]| sample(&logits, &slot(params, &[1, 2], output)).token;

    let allowed = SamplingParams { allowed_token_ids: Some(vec![0, 11, 96, 2000]), ..greedy.clone() };
    assert_eq!(token(&allowed, &[]), 11);
    // A bias does not bring back what is not allowed, but decides among what is.
    let bias = vec![(10, 100.0), (96, 100.0)];
    assert_eq!(token(&SamplingParams { logit_bias: bias, ..allowed.clone() }, &[]), 96);
    assert_eq!(token(&SamplingParams { logit_bias: vec![(10, -60.0)], ..greedy.clone() }, &[]), 11);

    // The prompt's end is no part of a bad word; the output's is.
    let bad = SamplingParams { bad_words: vec![vec![1, 2, 10], vec![7, 10], vec![11]], ..greedy.clone() };
    assert_eq!(token(&bad, &[]), 10);
    assert_eq!(token(&bad, &[3, 7]), 12);
    assert_eq!(token(&bad, &[1, 2]), 12);

    let ends = SamplingParams {
        min_tokens: 2,
        ignore_eos: true,
        eos_token_ids: [10].into(),
        stop_token_ids: vec![11],
        ..greedy.clone()
    };
    assert_eq!(token(&ends, &[4]), 12);
    assert_eq!(token(&ends, &[4, 4]), 10);

    let nothing = SamplingParams { bad_words: vec![vec![11]], allowed_token_ids: Some(vec![11]), ..greedy };
    assert_eq!(sample(&logits, &slot(&nothing, &[1], &[])).failure, Some(RowFailure::NothingAllowed));
}

#[test]
fn logprobs_are_of_the_raw_logits_and_damage_is_reported() {
    let params = SamplingParams {
        temperature: 0.0,
        logit_bias: vec![(20, 100.0)],
        logprobs: Some(3),
        ..SamplingParams::default()
    };
    let mut logits = random_logits(11, false);
    let found = sample(&logits, &slot(&params, &[1], &[]));
    let mut top = Vec::new();
    let expected = capture_logprob(&logits, 20, 3, &mut top);
    assert_eq!((found.token, found.logprob, found.rank), (20, expected.logprob, expected.rank));
    assert_eq!(found.top, top);
    for damage in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        logits[5] = damage;
        assert_eq!(sample(&logits, &slot(&params, &[1], &[])).failure, Some(RowFailure::NotFinite));
    }
}

/// As [`slot`], under a grammar that allows these tokens next.
fn slot_under(params: &SamplingParams, allowed: &[TokenId]) -> Slot {
    let grammar = Grammar::new(|| unreachable!("its mask is given"));
    let mut slot = slot(&SamplingParams { grammar: Some(grammar), ..params.clone() }, &[1, 2], &[7]);
    let mut mask = vec![0; VOCAB.div_ceil(32)];
    allowed.iter().for_each(|token| mask[*token as usize / 32] |= 1 << (token % 32));
    slot.set_mask(Some(&mut mask));
    slot
}

#[test]
fn a_mask_is_one_more_list_of_allowed_tokens() {
    let every = |divisor: u32| (0..VOCAB as u32).filter(|t| t.is_multiple_of(divisor)).collect::<Vec<_>>();
    for seed in 0..200 {
        let logits = random_logits(seed, seed % 2 == 0);
        let params = SamplingParams {
            temperature: if seed % 3 == 0 { 0.0 } else { 0.9 },
            top_k: if seed % 5 == 0 { 4 } else { 0 },
            seed,
            min_tokens: 2,
            eos_token_ids: [0].into(),
            bad_words: vec![vec![12], vec![7, 24]],
            repetition_penalty: 1.2,
            logprobs: Some(3),
            ..SamplingParams::default()
        };
        let listed = |list| SamplingParams { allowed_token_ids: Some(list), ..params.clone() };
        let expected = sample(&logits, &slot(&listed(every(6)), &[1, 2], &[7]));
        let both = sample(&logits, &slot_under(&listed(every(3)), &every(2)));
        for found in [sample(&logits, &slot_under(&params, &every(6))), both] {
            assert_eq!(found.token, expected.token, "seed {seed}");
            // Log-probabilities are those of the raw distribution: the mask does not show.
            assert_eq!((found.logprob, found.rank), (expected.logprob, expected.rank), "seed {seed}");
            assert_eq!(found.top, expected.top, "seed {seed}");
        }
        let ends_and_bad_words = slot_under(&params, &[0, 12, 24]);
        assert_eq!(sample(&logits, &ends_and_bad_words).failure, Some(RowFailure::NothingLeftOfGrammar));
    }
}

#[test]
fn a_draw_depends_on_seed_and_place_only() {
    let logits = random_logits(5, false);
    let params = |seed| SamplingParams { seed, ..SamplingParams::default() };
    let tokens = |seed: u64| -> Vec<TokenId> {
        let output = [1; 40];
        (0..40).map(|len| sample(&logits, &slot(&params(seed), &[2, 3], &output[..len])).token).collect()
    };
    assert_eq!(tokens(1), tokens(1));
    assert_ne!(tokens(1), tokens(2));
    let first = tokens(1)[0];
    assert!(tokens(1).iter().any(|token| *token != first));
    // The prompt's length is not part of the key.
    let longer = sample(&logits, &slot(&params(1), &[9; 30], &[])).token;
    assert_eq!(longer, first);
}
