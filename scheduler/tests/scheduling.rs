//! What a step computes and for whom: order, budgets, chunks, stops, aborts, refusals.

mod common;

use common::*;
use quire_scheduler::*;

#[test]
fn requests_are_admitted_in_order_and_decode_one_token_a_step() {
    let mut driver = Driver::new(config());
    driver.add([request(1, 5, 3), request(2, 9, 2), request(3, 1, 1)]);
    assert_eq!(rows(&driver.step().unwrap()), [(1, 0, 5), (2, 0, 9), (3, 0, 1)]);
    assert_eq!(rows(&driver.step().unwrap()), [(1, 5, 1), (2, 9, 1)]);
    assert_eq!(rows(&driver.step().unwrap()), [(1, 6, 1)]);
    assert!(driver.step().is_none());
    assert_eq!(driver.heard.tokens[&1], [501_005, 501_006, 501_007]);
    assert_eq!(driver.heard.tokens[&3], [503_001]);
    assert!(driver.heard.ends.values().all(|end| *end == FinishReason::Length));
}

#[test]
fn a_prompt_longer_than_the_budget_is_computed_in_chunks() {
    let mut driver = Driver::new(SchedulerConfig { max_num_batched_tokens: 10, ..config() });
    driver.add([request(1, 24, 1), request(2, 4, 2)]);
    let first = driver.step().unwrap();
    assert_eq!(rows(&first), [(1, 0, 10)]);
    assert!(!first.rows[0].samples);
    assert!(driver.heard.tokens[&1].is_empty(), "the first update says when it was scheduled, no more");
    assert_eq!(rows(&driver.step().unwrap()), [(1, 10, 10)]);
    let last = driver.step().unwrap();
    assert_eq!(rows(&last), [(1, 20, 4), (2, 0, 4)]);
    assert!(last.rows.iter().all(|row| row.samples));
    assert_eq!(driver.heard.ends[&1], FinishReason::Length);
}

#[test]
fn decodes_and_chunks_share_a_step() {
    let mut driver = Driver::new(SchedulerConfig { max_num_batched_tokens: 16, ..config() });
    driver.add([request(1, 4, 9)]);
    driver.step();
    driver.add([request(2, 30, 1)]);
    assert_eq!(rows(&driver.step().unwrap()), [(1, 4, 1), (2, 0, 15)]);
    assert_eq!(rows(&driver.step().unwrap()), [(1, 5, 1), (2, 15, 15)]);
}

#[test]
fn invariant_4_a_plan_is_rows_of_tokens_left_to_compute_whatever_their_kind() {
    let mut driver = Driver::new(SchedulerConfig { max_num_batched_tokens: 12, ..config() });
    driver.add([request(1, 3, 20), request(2, 20, 20), request(3, 7, 20)]);
    let mut computed = 0;
    while let Some(plan) = driver.step() {
        assert!(plan.num_tokens <= 12);
        assert_eq!(plan.num_tokens, plan.rows.iter().map(|row| row.num_tokens).sum::<u32>());
        computed += plan.num_tokens;
    }
    // Each token once, but for the last ones, of which nothing follows.
    assert_eq!(computed, (3 + 20 + 7) + 3 * (20 - 1));
}

#[test]
fn no_more_than_max_num_seqs_run_and_slots_stay_dense() {
    let mut driver = Driver::new(SchedulerConfig { max_num_seqs: 3, ..config() });
    driver.add((1..=7).map(|id| request(id, 2, if id == 2 { 1 } else { 4 })));
    let slots = |plan: &SchedulerOutput| plan.rows.iter().map(|row| row.slot).collect::<Vec<_>>();
    let first = driver.step().unwrap();
    assert_eq!((ids(&first), slots(&first)), (vec![1, 2, 3], vec![0, 1, 2]));
    let second = driver.step().unwrap();
    assert_eq!(second.released_slots, [1]);
    assert_eq!((ids(&second), slots(&second)), (vec![1, 3, 4], vec![0, 2, 1]));
    driver.run();
    assert_eq!(driver.heard.ends.len(), 7);
}

#[test]
fn long_prefill_threshold_holds_in_company_and_not_alone() {
    let config = SchedulerConfig { long_prefill_token_threshold: 6, ..config() };
    let mut driver = Driver::new(config.clone());
    driver.add([request(1, 20, 1), request(2, 20, 1)]);
    assert_eq!(rows(&driver.step().unwrap()), [(1, 0, 6), (2, 0, 6)]);
    let mut driver = Driver::new(config);
    driver.add([request(1, 20, 1)]);
    assert_eq!(rows(&driver.step().unwrap()), [(1, 0, 20)]);
}

#[test]
fn a_request_that_does_not_fit_holds_up_those_behind_it() {
    let mut driver = Driver::new(tight(6));
    driver.add([request(1, 12, 4)]);
    driver.step();
    driver.add([request(2, 16, 1), request(3, 2, 1)]);
    assert_eq!(ids(&driver.step().unwrap()), [1]);
    assert_eq!(driver.scheduler.stats().num_waiting_capacity, 2);
    driver.run();
    assert_eq!(driver.heard.ends.len(), 3);
    assert!(driver.heard.preemptions.is_empty());
}

#[test]
fn admission_needs_room_for_the_whole_prompt_not_for_its_first_chunk() {
    let mut driver = Driver::new(SchedulerConfig { long_prefill_token_threshold: 4, ..tight(8) });
    // Each alone fits; both at once do not, though their first chunks would.
    driver.add([request(1, 24, 1), request(2, 24, 1)]);
    assert_eq!(ids(&driver.step().unwrap()), [1]);
    driver.run();
    assert!(driver.heard.preemptions.is_empty());
}

#[test]
fn stops_are_checked_in_order_and_never_before_min_tokens() {
    let ends_with = |change: fn(&mut SamplingParams)| {
        let mut driver = Driver::new(config());
        driver.sampler = |_, position| position;
        driver.add([with_sampling(request(1, 3, 10), change)]);
        driver.run();
        (driver.heard.tokens[&1].len(), driver.heard.ends[&1].clone())
    };
    assert_eq!(ends_with(|_| {}), (10, FinishReason::Length));
    assert_eq!(ends_with(|p| p.eos_token_ids = [5].into()), (3, FinishReason::Eos(5)));
    assert_eq!(ends_with(|p| p.stop_token_ids = vec![4, 6]), (2, FinishReason::StopToken(4)));
    let both = |p: &mut SamplingParams| (p.eos_token_ids, p.stop_token_ids) = ([5].into(), vec![5]);
    assert_eq!(ends_with(both), (3, FinishReason::Eos(5)));
    let ignored = |p: &mut SamplingParams| (p.eos_token_ids, p.ignore_eos) = ([5].into(), true);
    assert_eq!(ends_with(ignored), (10, FinishReason::Length));
    let ignored_but_stop = |p: &mut SamplingParams| {
        (p.eos_token_ids, p.ignore_eos, p.stop_token_ids) = ([5].into(), true, vec![5]);
    };
    assert_eq!(ends_with(ignored_but_stop), (3, FinishReason::StopToken(5)));
    let at_last = |p: &mut SamplingParams| (p.eos_token_ids, p.max_tokens) = ([5].into(), 3);
    assert_eq!(ends_with(at_last), (3, FinishReason::Eos(5)));
    let too_early = |p: &mut SamplingParams| (p.stop_token_ids, p.min_tokens) = (vec![4, 6], 3);
    assert_eq!(ends_with(too_early), (4, FinishReason::StopToken(6)));
}

#[test]
fn a_sequence_ends_at_max_model_len_even_below_min_tokens() {
    let mut driver = Driver::new(SchedulerConfig { max_model_len: 10, ..config() });
    driver.add([with_sampling(request(1, 7, 50), |p| p.min_tokens = 50)]);
    driver.run();
    assert_eq!(driver.heard.tokens[&1].len(), 3);
    assert_eq!(driver.heard.ends[&1], FinishReason::Length);
}

#[test]
fn invariant_6_every_request_ends_once_wherever_it_is_aborted() {
    let mut driver = Driver::new(SchedulerConfig { max_num_seqs: 2, ..config() });
    driver.add([request(1, 6, 9), request(2, 6, 9), request(3, 6, 9)]);
    // Running, with its step in flight.
    let plan = driver.schedule().unwrap();
    assert!(driver.scheduler.abort(RequestId(1)));
    assert!(!driver.scheduler.abort(RequestId(1)), "it has ended");
    driver.finish(plan);
    assert!(driver.heard.tokens[&1].is_empty(), "the late token is dropped");
    assert_eq!(driver.heard.cached[&1], 0, "it had been scheduled");
    // Waiting, then running between steps.
    assert!(driver.scheduler.abort(RequestId(3)));
    assert!(driver.scheduler.abort(RequestId(2)));
    assert!(!driver.scheduler.has_unfinished());
    driver.drain();
    assert!(driver.scheduler.take_outputs().is_none());
    assert!(!driver.scheduler.abort(RequestId(77)), "unknown");
    assert_eq!(driver.heard.ends.values().collect::<Vec<_>>(), [&FinishReason::Abort; 3]);
    assert_eq!(driver.free_blocks(), 100);
}

#[test]
fn end_all_ends_everybody_for_the_same_reason() {
    let mut driver = Driver::new(SchedulerConfig { max_num_seqs: 2, ..config() });
    driver.add((1..=4).map(|id| request(id, 6, 9)));
    driver.step();
    let lost = FinishReason::Error("the device is lost".into());
    driver.scheduler.end_all(&lost);
    driver.scheduler.check_invariants().unwrap();
    driver.drain();
    assert_eq!(driver.heard.ends.values().collect::<Vec<_>>(), [&lost; 4]);
    assert!(!driver.scheduler.has_unfinished());
    assert_eq!(driver.free_blocks(), 100);
}

#[test]
fn invariant_12_what_can_never_run_is_refused_and_harms_nobody() {
    let mut driver = Driver::new(config());
    driver.add([request(1, 0, 5), request(2, 100, 5), request(3, 99, 5), request(4, 3, 1)]);
    driver.run();
    let reason = |id| match &driver.heard.ends[&id] {
        FinishReason::Error(text) => text.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(reason(1).contains("empty"));
    assert!(reason(2).contains("100 tokens") && reason(2).contains("99 tokens or fewer"));
    assert_eq!(driver.heard.tokens[&3].len(), 1, "the longest prompt leaves room for one token");
    assert_eq!(driver.heard.tokens[&4].len(), 1);
}

#[test]
fn first_scheduled_is_told_once_with_its_time() {
    let mut driver = Driver::new(SchedulerConfig { max_num_seqs: 1, ..config() });
    driver.add([request(1, 4, 2), request(2, 4, 2)]);
    let mut told = Vec::new();
    while let Some(plan) = driver.schedule() {
        for update in driver.finish(plan).updates {
            told.extend(update.first_scheduled.map(|first| (update.id.0, first.at_us)));
        }
    }
    assert_eq!(told, [(1, 1), (2, 3)]);
}

#[test]
fn stats_count_what_is_there() {
    let mut driver = Driver::new(SchedulerConfig { max_num_seqs: 2, ..config() });
    driver.add((1..=3).map(|id| request(id, 6, 9)));
    let plan = driver.schedule().unwrap();
    let stats = driver.finish(plan).stats;
    assert_eq!((stats.num_running, stats.num_waiting_capacity, stats.num_waiting_deferred), (2, 1, 0));
    assert_eq!((stats.num_blocks_total, stats.num_blocks_free), (100, 96));
    assert_eq!((stats.num_scheduled_tokens, stats.prompt_tokens_computed_total), (12, 12));
    driver.step();
    assert_eq!(driver.scheduler.stats().prompt_tokens_computed_total, 12, "decodes are not prompt tokens");
    assert!((driver.scheduler.kv().usage() - 0.04).abs() < 1e-9);
}

#[test]
fn limits_that_contradict_each_other_are_refused_by_name() {
    let refused = |change: fn(&mut SchedulerConfig)| {
        let mut config = config();
        change(&mut config);
        Scheduler::new(config).expect_err("must be refused").to_string()
    };
    assert!(refused(|c| c.block_size = 0).contains("block_size"));
    assert!(refused(|c| c.max_num_seqs = 0).contains("max_num_seqs"));
    assert!(refused(|c| c.max_num_batched_tokens = 0).contains("max_num_batched_tokens"));
    assert!(refused(|c| c.max_num_batched_tokens = 7).contains("max_num_seqs (8)"));
    assert!(refused(|c| c.max_model_len = 1).contains("max_model_len is 1"));
    assert!(refused(|c| c.num_blocks = 25).contains("needs 25"));
    assert!(refused(|c| c.long_prefill_token_threshold = 101).contains("long_prefill_token_threshold"));
    assert!(refused(|c| c.priority_ageing_us = 1).contains("priority_ageing_us"));
    let events = |c: &mut SchedulerConfig| (c.enable_prefix_caching, c.enable_kv_events) = (false, true);
    assert!(refused(events).contains("enable_kv_events"));
}

#[test]
fn invariant_2_same_calls_same_plan() {
    let plans = || {
        let mut driver = Driver::new(SchedulerConfig { max_num_batched_tokens: 20, ..tight(12) });
        let mut seen = Vec::new();
        for round in 0..60u64 {
            driver.add([request(round + 1, 1 + (round * 7 % 23) as u32, 1 + (round * 5 % 11) as u32)]);
            if round % 9 == 4 {
                driver.scheduler.abort(RequestId(round / 2));
            }
            seen.extend(driver.step().map(|plan| format!("{plan:?}")));
        }
        driver.run();
        (seen, driver.heard.ends, driver.heard.preemptions)
    };
    let (first, second) = (plans(), plans());
    assert_eq!(first, second);
    assert!(!first.2.is_empty(), "the workload is meant to preempt");
}

#[test]
fn invariant_5_blocks_balance_and_all_come_back() {
    let mut driver = Driver::new(tight(10));
    driver.add((1..=30).map(|id| request(id, 1 + (id * 7 % 19) as u32, 1 + (id * 5 % 13) as u32)));
    // The driver recounts every block before and after each step.
    driver.run();
    let stats = driver.scheduler.stats();
    assert_eq!((stats.num_blocks_free, stats.num_running), (10, 0));
    assert_eq!(driver.heard.ends.len(), 30);
}

#[test]
fn invariant_7_a_plan_is_bounded_however_many_wait() {
    let mut driver =
        Driver::new(SchedulerConfig { max_num_seqs: 5, max_num_batched_tokens: 20, ..tight(60) });
    driver.add((1..=200).map(|id| request(id, 1 + (id * 13 % 60) as u32, 1 + (id * 5 % 40) as u32)));
    let mut fullest = 0;
    while let Some(plan) = driver.step() {
        assert!(plan.rows.len() <= 5 && plan.num_tokens <= 20);
        assert!(plan.rows.iter().all(|row| row.slot < 5));
        assert!(driver.scheduler.stats().num_running <= 5);
        fullest = fullest.max(plan.rows.len());
    }
    assert_eq!((fullest, driver.heard.ends.len()), (5, 200));
}

/// No allocation for a row or a token: a plan's buffers come back with `update` and are used again.
#[test]
fn invariant_1_plan_buffers_are_reused() {
    let mut driver = Driver::new(config());
    driver.add((1..=8).map(|id| request(id, 4, 80)));
    driver.step();
    let buffers = |plan: &SchedulerOutput| (plan.rows.as_ptr(), plan.new_block_ids.as_ptr());
    let plan = driver.schedule().unwrap();
    let first = buffers(&plan);
    driver.finish(plan);
    for _ in 0..60 {
        let plan = driver.schedule().unwrap();
        assert_eq!(buffers(&plan), first);
        driver.finish(plan);
    }
}
