//! Log-probabilities on their way through the scheduler: whose, which positions, never twice.

mod common;

use common::*;
use quire_scheduler::*;

fn entry(row: u32, position: u32, token: TokenId, top: std::ops::Range<u32>) -> TokenLogprob {
    TokenLogprob { row, position, token, logprob: -0.5, rank: 1, top }
}

/// What a runner gives for rows of requests that all ask for everything, with one alternative a position.
fn answer(driver: &Driver, plan: &SchedulerOutput, prompt_len: u32) -> ModelRunnerOutput {
    let mut answer = driver.answer(plan);
    for (at, row) in plan.rows.iter().enumerate() {
        let end = row.start + row.num_tokens;
        let sampled = (row.samples && end >= prompt_len).then_some(end);
        for position in (row.start + 1..=end).filter(|&p| p < prompt_len).chain(sampled) {
            let top = answer.top.len() as u32;
            answer.top.push((position, -0.5));
            answer.logprobs.push(entry(at as u32, position, position, top..top + 1));
        }
    }
    answer
}

fn asks(request: Request) -> Request {
    with_sampling(request, |p| (p.logprobs, p.prompt_logprobs) = (Some(1), Some(1)))
}

/// Positions told to each request, in order.
fn positions(out: &StepOutputs, id: u64) -> Vec<u32> {
    let update = out.updates.iter().find(|update| update.id.0 == id);
    let range = update.map_or(0..0, |update| update.logprobs.start as usize..update.logprobs.end as usize);
    out.logprobs[range].iter().map(|entry| entry.position).collect()
}

#[test]
fn prompt_positions_come_chunk_by_chunk_and_then_each_token() {
    let mut driver = Driver::new(SchedulerConfig { max_num_batched_tokens: 8, ..config() });
    driver.add([asks(request(1, 10, 2))]);
    let mut seen = Vec::new();
    while let Some(plan) = driver.schedule() {
        let answer = answer(&driver, &plan, 10);
        seen.push(positions(&driver.finish_with(plan, Ok(&answer)), 1));
    }
    assert_eq!(seen, [vec![1, 2, 3, 4, 5, 6, 7, 8], vec![9, 10], vec![11]]);
}

#[test]
fn rows_and_alternatives_are_renumbered_when_others_are_dropped() {
    let mut driver = Driver::new(config());
    driver.add([asks(request(1, 3, 2)), asks(request(2, 2, 2))]);
    let plan = driver.schedule().unwrap();
    let answer = answer(&driver, &plan, 3);
    driver.scheduler.abort(RequestId(1));
    let out = driver.finish_with(plan, Ok(&answer));
    assert_eq!(out.updates.iter().map(|update| update.id.0).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(positions(&out, 1), []);
    for entry in &out.logprobs {
        assert_eq!(entry.row, 1);
        assert_eq!(out.top[entry.top.start as usize].0, entry.position, "alternatives of another position");
    }
}

#[test]
fn after_a_preemption_nothing_is_told_twice_and_nothing_is_missing() {
    let mut driver = Driver::new(tight(6));
    driver.add([request(1, 8, 12), asks(request(2, 8, 12))]);
    let (mut told, mut restarted) = (Vec::new(), false);
    while let Some(plan) = driver.schedule() {
        restarted |= plan.admitted.iter().any(|entry| entry.id.0 == 2 && !entry.output_token_ids.is_empty());
        assert!(plan.admitted.iter().all(|entry| entry.block_ids.is_empty()), "all of it is computed again");
        let mut answer = answer(&driver, &plan, 8);
        answer.logprobs.retain(|entry| plan.rows[entry.row as usize].id.0 == 2);
        told.extend(positions(&driver.finish_with(plan, Ok(&answer)), 2));
    }
    assert!(restarted);
    assert_eq!(told, (1..20).collect::<Vec<_>>());
}
