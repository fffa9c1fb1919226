//! Steps and rows that fail: who ends, who lives on, and what must not be hit afterwards.

mod common;

use common::*;
use quire_scheduler::kv::KvEvent;
use quire_scheduler::*;

fn error(end: &FinishReason) -> &str {
    match end {
        FinishReason::Error(reason) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn invariant_6_a_failed_step_ends_its_requests_and_no_others() {
    let mut driver = Driver::new(SchedulerConfig { max_num_seqs: 2, ..config() });
    driver.add((1..=4).map(|id| request(id, 6, 3)));
    let plan = driver.schedule().unwrap();
    let step = plan.step;
    driver.finish_with(plan, Err(&failure(step)));
    assert_eq!(driver.heard.ends.len(), 2);
    assert_eq!(error(&driver.heard.ends[&1]), "the device fell over");
    assert_eq!(driver.free_blocks(), 100);
    driver.run();
    assert_eq!(driver.heard.ends[&3], FinishReason::Length);
    assert_eq!(driver.heard.ends[&4], FinishReason::Length);
}

#[test]
fn what_a_failed_step_should_have_written_is_not_hit() {
    let mut driver = Driver::new(SchedulerConfig { enable_kv_events: true, ..config() });
    let prompt: Vec<u32> = (0..12).collect();
    driver.add([with_prompt(1, prompt.clone(), 5)]);
    let plan = driver.schedule().unwrap();
    driver.finish_with(plan, Err(&failure(1)));
    let [KvEvent::Stored { block_hashes: stored, .. }, KvEvent::Removed { block_hashes: removed, .. }] =
        &driver.heard.events[..]
    else {
        panic!("{:?}", driver.heard.events)
    };
    assert_eq!((stored.len(), stored), (3, removed));
    driver.add([with_prompt(2, prompt, 1)]);
    driver.run();
    assert_eq!(driver.heard.cached[&2], 0);
}

#[test]
fn what_was_written_before_can_still_be_hit() {
    let mut driver = Driver::new(config());
    let prompt: Vec<u32> = (0..12).collect();
    driver.add([with_prompt(1, prompt.clone(), 5)]);
    driver.step();
    let plan = driver.schedule().unwrap();
    driver.finish_with(plan, Err(&failure(2)));
    driver.add([with_prompt(2, prompt, 1)]);
    driver.run();
    assert_eq!(driver.heard.cached[&2], 8);
}

#[test]
fn a_failed_step_takes_with_it_the_step_planned_after_it() {
    let mut driver = Driver::new(SchedulerConfig { max_num_batched_tokens: 12, ..config() });
    let prompt: Vec<u32> = (0..12).collect();
    driver.add([with_prompt(1, prompt.clone(), 5), with_prompt(2, prompt, 5), request(3, 20, 1)]);
    let first = driver.schedule().unwrap();
    let second = driver.schedule().unwrap();
    assert_eq!(ids(&second), [1, 2, 3], "the second hits what the first step was to fill");
    driver.finish_with(first, Err(&failure(1)));
    assert_eq!(driver.heard.ends.len(), 3);
    // The later step's results come in, whatever they are, and say nothing.
    let third = {
        driver.add([request(4, 3, 2)]);
        driver.schedule().unwrap()
    };
    assert!(driver.finish(second).updates.is_empty());
    driver.finish(third);
    driver.run();
    assert_eq!(driver.heard.ends[&4], FinishReason::Length);
    assert_eq!(driver.free_blocks(), 100);
}

#[test]
fn a_step_that_was_written_off_does_no_harm_by_failing_too() {
    let mut driver = Driver::new(config());
    driver.add([request(1, 5, 9)]);
    let first = driver.schedule().unwrap();
    let second = driver.schedule().unwrap();
    driver.finish_with(first, Err(&failure(1)));
    driver.add([request(2, 5, 3)]);
    let third = driver.schedule().unwrap();
    driver.finish_with(second, Err(&failure(2)));
    driver.finish(third);
    driver.run();
    assert_eq!(driver.heard.ends[&2], FinishReason::Length);
}

#[test]
fn a_plan_that_is_refused_may_be_reported_before_an_earlier_one() {
    let mut driver = Driver::new(config());
    driver.add([request(1, 5, 9)]);
    let first = driver.schedule().unwrap();
    driver.add([request(2, 5, 9)]);
    let second = driver.schedule().unwrap();
    driver.finish_with(second, Err(&failure(2)));
    assert_eq!(driver.heard.ends.len(), 2);
    assert!(driver.finish(first).updates.is_empty());
    assert_eq!(driver.free_blocks(), 100);
}

#[test]
fn a_request_preempted_in_flight_ends_with_the_step() {
    let mut driver = Driver::new(tight(6));
    driver.add([request(1, 11, 13), request(2, 11, 13)]);
    let mut before = driver.schedule().unwrap();
    let plan = loop {
        let plan = driver.schedule().unwrap();
        if driver.scheduler.stats().preemptions_total > 0 {
            break plan;
        }
        driver.finish(std::mem::replace(&mut before, plan));
    };
    let step = before.step;
    driver.finish_with(before, Err(&failure(step)));
    assert_eq!(driver.heard.ends.len(), 2);
    assert!(driver.finish(plan).updates.is_empty());
    assert_eq!(driver.free_blocks(), 6);
}

#[test]
fn invariant_12_a_failed_row_ends_its_request_alone_and_leaves_nothing_to_hit() {
    let mut driver = Driver::new(config());
    let prompt: Vec<u32> = (0..12).collect();
    driver.add([with_prompt(1, prompt.clone(), 3), request(2, 6, 3), request(3, 6, 3)]);
    driver.step();
    let plan = driver.schedule().unwrap();
    let mut answer = driver.answer(&plan);
    answer.failed_rows.push((0, FinishReason::Error("logits are not numbers".into())));
    driver.finish_with(plan, Ok(&answer));
    assert_eq!(error(&driver.heard.ends[&1]), "logits are not numbers");
    assert_eq!(driver.heard.tokens[&1].len(), 1, "the token of the failed row is dropped");
    driver.run();
    assert_eq!(driver.heard.tokens[&2], [502_006, 502_007, 502_008]);
    assert_eq!(driver.heard.tokens[&3], [503_006, 503_007, 503_008]);
    driver.add([with_prompt(4, prompt, 1)]);
    driver.run();
    assert_eq!(driver.heard.cached[&4], 0, "what the failed request computed is suspect");
}

#[test]
fn a_failed_row_leaves_alone_what_it_only_read() {
    let mut driver = Driver::new(config());
    let prompt: Vec<u32> = (0..12).collect();
    driver.add([with_prompt(1, prompt.clone(), 1)]);
    driver.run();
    driver.add([with_prompt(2, prompt.clone(), 1)]);
    let plan = driver.schedule().unwrap();
    let mut answer = driver.answer(&plan);
    answer.failed_rows.push((0, FinishReason::Error("logits are not numbers".into())));
    driver.finish_with(plan, Ok(&answer));
    driver.add([with_prompt(3, prompt, 1)]);
    driver.run();
    assert_eq!(driver.heard.cached[&3], 8);
}

#[test]
fn a_runner_that_gives_too_few_tokens_fails_its_step() {
    let mut driver = Driver::new(config());
    driver.add([request(1, 6, 3), request(2, 6, 3)]);
    let plan = driver.schedule().unwrap();
    let mut answer = driver.answer(&plan);
    answer.sampled.pop();
    driver.finish_with(plan, Ok(&answer));
    assert!(error(&driver.heard.ends[&1]).contains("1 tokens for 2 rows"));
    assert_eq!(driver.heard.ends.len(), 2);
}
