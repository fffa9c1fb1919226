//! Sampling on the device against the host's rule, `sample_row`: random requests, and each thing that only a
//! device with state of its own can get wrong.

mod device;
mod reference;
mod requests;

use device::Device;
use quire_model::{LogitsRow, RowFailure};
use quire_scheduler::kv::BlockId;
use quire_scheduler::{
    ALL_LOGPROBS, AdmittedRequest, RequestId, SamplingParams, ScheduledRow, SchedulerOutput,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use requests::{Play, random_logits};

fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, ..SamplingParams::default() }
}

/// A plan of one row a request, all of whose tokens are computed, for requests that enter slots 0, 1, 2...
fn admit_all(step: u64, requests: Vec<(SamplingParams, Vec<u32>, Vec<u32>)>) -> SchedulerOutput {
    let mut plan = SchedulerOutput { step, ..SchedulerOutput::default() };
    for (slot, (params, prompt, output)) in (0..).zip(requests) {
        let (id, len) = (RequestId(1000 * step + u64::from(slot)), (prompt.len() + output.len()) as u32);
        plan.rows.push(ScheduledRow { slot, id, start: 0, num_tokens: len, new_blocks: 0..0, samples: true });
        plan.admitted.push(AdmittedRequest {
            slot,
            id,
            prompt_token_ids: prompt.into(),
            output_token_ids: output,
            sampling: params.into(),
            adapter: None,
            block_ids: vec![BlockId(1); len as usize / 16 + 8],
        });
    }
    plan
}

/// The next token of each of the same requests.
fn next(step: u64, before: &SchedulerOutput) -> SchedulerOutput {
    let mut plan = SchedulerOutput { step, rows: before.rows.clone(), ..SchedulerOutput::default() };
    for row in &mut plan.rows {
        (row.start, row.num_tokens) = (row.start + row.num_tokens, 1);
    }
    plan
}

/// Logits that fall from the first of `tokens` to the last, which are all above the rest.
fn prefer(vocab_size: usize, tokens: &[u32]) -> Vec<f32> {
    let mut logits = vec![-20.0; vocab_size];
    for (place, token) in tokens.iter().enumerate() {
        logits[*token as usize] = 10.0 - place as f32;
    }
    logits
}

/// Many random requests in slots that change hands, with up to two steps in flight.
fn play(vocab_size: usize, steps: u32, seeds: std::ops::Range<u64>) {
    let (mut rows, mut different) = (0, 0);
    for seed in seeds {
        let mut play = Play::new(Device::new(4, 6, vocab_size), seed);
        for _ in 0..steps {
            play.step();
        }
        play.finish();
        rows += play.device.num_rows;
        different += play.device.num_different_draws;
    }
    println!("vocabulary of {vocab_size}: {rows} rows, {different} draws differ within the last places");
    assert!(different * 1000 <= rows, "{different} draws of {rows} differ");
}

#[test]
fn random_requests_small_vocabulary() {
    play(61, 60, 0..20);
}

#[test]
fn random_requests_middle_vocabularies() {
    play(2048, 30, 100..104);
    play(5003, 30, 200..203);
}

#[test]
fn random_requests_several_parts_and_a_large_vocabulary() {
    play(20_001, 12, 300..302);
    play(131_072, 3, 400..401);
}

#[test]
fn a_row_of_nan_fails_alone() {
    let vocab_size = 500;
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut device = Device::new(3, 3, vocab_size);
        let all = vec![(greedy(), vec![1], vec![]); 3];
        device.submit(admit_all(1, all), |row: &LogitsRow| {
            let mut logits = prefer(vocab_size, &[40 + row.slot]);
            if row.slot == 1 {
                logits[499] = bad;
            }
            logits
        });
        let results = device.collect("one bad row");
        assert_eq!(results[1].failure, Some(RowFailure::NotFinite));
        assert_eq!((results[0].token, results[2].token), (40, 42));
        let tokens = device.last_tokens();
        assert_eq!((tokens[0], tokens[2]), (40, 42));
        assert!((tokens[1] as usize) < vocab_size, "what follows reads the embedding of this token");
    }
}

#[test]
fn bad_words_whose_last_known_token_is_in_flight() {
    let vocab_size = 61;
    let with = |bad_words: Vec<Vec<u32>>| SamplingParams { bad_words, ..greedy() };
    let mut device = Device::new(4, 4, vocab_size);
    let requests = vec![
        (with(vec![vec![7, 9]]), vec![1], vec![]),
        (with(vec![vec![8, 9]]), vec![1], vec![]),
        (with(vec![vec![5, 7, 9], vec![4, 7, 9]]), vec![1], vec![5]),
        (with(vec![vec![5, 7, 9]]), vec![1, 5], vec![]),
    ];
    let first = admit_all(1, requests);
    let second = next(2, &first);
    device.submit(first, |_| prefer(vocab_size, &[7, 3]));
    device.submit(second, |_| prefer(vocab_size, &[9, 3]));
    assert!(device.collect("the word begins").iter().all(|result| result.token == 7));
    let tokens: Vec<u32> = device.collect("the word would end").iter().map(|result| result.token).collect();
    assert_eq!(tokens, [3, 9, 3, 9]);
}

#[test]
fn penalties_count_tokens_that_are_still_in_flight() {
    let vocab_size = 61;
    let params = SamplingParams { frequency_penalty: 2.0, ..greedy() };
    let mut device = Device::new(1, 1, vocab_size);
    let mut plan = admit_all(1, vec![(params, vec![1], vec![])]);
    let mut tokens = Vec::new();
    for step in 2..8 {
        // Token 7 is ahead of 8 by 1, and falls behind whenever it is chosen.
        device.submit(plan.clone(), |_| prefer(vocab_size, &[7, 8]));
        plan = next(step, &plan);
        if device.num_in_flight() == 2 {
            tokens.push(device.collect("counting")[0].token);
        }
    }
    tokens.push(device.collect("counting")[0].token);
    assert_eq!(tokens, [7, 8, 7, 8, 7, 8]);
}

#[test]
fn a_slot_forgets_the_request_before() {
    let vocab_size = 61;
    let everything = SamplingParams {
        frequency_penalty: 2.0,
        repetition_penalty: 2.0,
        logit_bias: vec![(7, -50.0)],
        allowed_token_ids: Some(vec![3, 7, 8]),
        bad_words: vec![vec![8]],
        min_tokens: 16,
        eos_token_ids: [3].into(),
        ..greedy()
    };
    let with_penalties = SamplingParams { frequency_penalty: 0.5, ..greedy() };
    for second in [greedy(), with_penalties] {
        let mut device = Device::new(1, 1, vocab_size);
        device.submit(admit_all(1, vec![(everything.clone(), vec![1, 9], vec![9])]), |_| {
            prefer(vocab_size, &[9, 8, 3, 7])
        });
        assert_eq!(device.collect("the first request")[0].token, 7);
        let mut plan = admit_all(2, vec![(second, vec![1], vec![])]);
        plan.released_slots.push(0);
        device.submit(plan, |_| prefer(vocab_size, &[9, 8, 3, 7]));
        assert_eq!(device.collect("the second request")[0].token, 9);
    }
}

#[test]
fn long_prompts_with_penalties_take_several_entries() {
    let vocab_size = 5003;
    let mut rng = StdRng::seed_from_u64(1);
    let params =
        SamplingParams { repetition_penalty: 1.5, frequency_penalty: 0.1, ..SamplingParams::default() };
    let mut tokens = |count| (0..count).map(|_| rng.random_range(0..vocab_size as u32)).collect::<Vec<_>>();
    let requests = vec![
        (params.clone(), tokens(3), tokens(2)),
        (params.clone(), tokens(30_000), tokens(10_000)),
        (params, tokens(5000), vec![]),
    ];
    let mut device = Device::with_tokens(50_000, 3, 3, vocab_size);
    let mut plan = admit_all(1, requests);
    for step in 2..4 {
        device.submit(plan.clone(), |_| random_logits(&mut StdRng::seed_from_u64(step), vocab_size));
        plan = next(step, &plan);
        device.collect("long prompts");
    }
}

#[test]
fn wide_rows_come_from_the_host() {
    let vocab_size = 777;
    for count in [64, 65, 776, ALL_LOGPROBS] {
        let params = SamplingParams {
            logprobs: Some(count),
            prompt_logprobs: Some(count),
            logit_bias: vec![(5, 3.0), (6, -3.0)],
            ..SamplingParams::default()
        };
        let other = SamplingParams { logprobs: Some(2), ..greedy() };
        // More rows than one launch holds.
        let mut device = Device::new(2, 2, vocab_size);
        let plan = admit_all(1, vec![(params, vec![1, 2, 3, 4], vec![]), (other, vec![1], vec![])]);
        let mut rng = StdRng::seed_from_u64(u64::from(count));
        device.submit(plan, |_| random_logits(&mut rng, vocab_size));
        let results = device.collect("wide");
        assert_eq!(results.iter().map(|result| result.top.len()).max(), Some(777.min(count as usize)));
    }
}

#[test]
fn a_row_is_the_same_in_every_batch() {
    let vocab_size = 5003;
    let mut rng = StdRng::seed_from_u64(9);
    let logits = random_logits(&mut rng, vocab_size);
    let params = SamplingParams { logprobs: Some(5), top_p: 0.9, seed: 3, ..SamplingParams::default() };
    let mut alone = Device::new(1, 1, vocab_size);
    alone.submit(admit_all(1, vec![(params.clone(), vec![1], vec![])]), |_| logits.clone());
    let expected = alone.collect("alone").remove(0);
    for place in 0..3 {
        let mut device = Device::new(3, 3, vocab_size);
        let plan = admit_all(1, vec![(params.clone(), vec![1], vec![]); 3]);
        device.submit(plan, |row: &LogitsRow| match row.slot == place {
            true => logits.clone(),
            false => random_logits(&mut rng, vocab_size),
        });
        let found = device.collect("together").remove(place as usize);
        assert_eq!((found.token, found.logprob.to_bits()), (expected.token, expected.logprob.to_bits()));
        assert_eq!(found.top, expected.top);
    }
}
