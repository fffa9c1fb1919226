//! Plans made before the results of the plan before are in.

mod common;

use common::*;
use quire_scheduler::*;

/// Keeps `depth` plans in flight until everybody has ended; returns the rows planned in each step.
fn run_ahead(driver: &mut Driver, depth: usize) -> Vec<Vec<(u64, u32, u32)>> {
    let mut in_flight = std::collections::VecDeque::new();
    let mut seen = Vec::new();
    loop {
        while in_flight.len() < depth {
            let Some(plan) = driver.schedule() else { break };
            seen.push(rows(&plan));
            in_flight.push_back(plan);
        }
        match in_flight.pop_front() {
            Some(plan) => drop(driver.finish(plan)),
            None => break,
        }
    }
    driver.drain();
    assert!(!driver.scheduler.has_unfinished());
    seen
}

#[test]
fn a_row_is_planned_for_a_token_that_is_not_known_yet() {
    let mut driver = Driver::new(config());
    driver.add([request(1, 5, 4)]);
    let first = driver.schedule().unwrap();
    let second = driver.schedule().unwrap();
    assert_eq!((rows(&first), rows(&second)), (vec![(1, 0, 5)], vec![(1, 5, 1)]));
    assert!(second.rows[0].samples);
    driver.finish(first);
    assert_eq!(driver.heard.tokens[&1], [501_005]);
    driver.finish(second);
    assert_eq!(driver.heard.tokens[&1], [501_005, 501_006]);
}

#[test]
fn nothing_is_planned_beyond_max_tokens_or_max_model_len() {
    let mut driver = Driver::new(config());
    driver.add([request(1, 5, 2)]);
    assert_eq!(run_ahead(&mut driver, 2), [vec![(1, 0, 5)], vec![(1, 5, 1)]]);
    let mut driver = Driver::new(SchedulerConfig { max_model_len: 7, ..config() });
    driver.add([request(1, 5, 9)]);
    assert_eq!(run_ahead(&mut driver, 2).len(), 2);
    assert_eq!(driver.heard.tokens[&1].len(), 2);
}

#[test]
fn the_row_of_a_request_that_has_ended_is_wasted_and_its_token_dropped() {
    let mut driver = Driver::new(config());
    driver.sampler = |_, position| position;
    driver.add([with_sampling(request(1, 5, 9), |p| p.eos_token_ids = [6].into())]);
    assert_eq!(run_ahead(&mut driver, 2).len(), 3);
    assert_eq!(driver.heard.tokens[&1], [5, 6]);
    assert_eq!(driver.heard.ends[&1], FinishReason::Eos(6));
    assert_eq!(driver.free_blocks(), 100);
}

#[test]
fn any_depth_gives_the_same_tokens_in_the_same_number_of_useful_rows() {
    let requests = || (1..=9).map(|id| request(id, 3 + (id * 5 % 11) as u32, 1 + (id * 3 % 9) as u32));
    let mut heard = Vec::new();
    for depth in 1..=3 {
        let mut driver = Driver::new(SchedulerConfig { max_num_batched_tokens: 11, ..tight(9) });
        driver.add(requests());
        run_ahead(&mut driver, depth);
        heard.push((driver.heard.tokens, driver.heard.ends));
    }
    assert_eq!(heard[0], heard[1]);
    assert_eq!(heard[0], heard[2]);
}

#[test]
fn a_slot_and_blocks_are_given_away_while_a_step_in_flight_uses_them() {
    let mut driver = Driver::new(SchedulerConfig { max_num_seqs: 1, ..tight(4) });
    driver.sampler = |_, position| position;
    driver.add([with_sampling(request(1, 5, 9), |p| p.stop_token_ids = vec![5]), request(2, 15, 1)]);
    let first = driver.schedule().unwrap();
    let wasted = driver.schedule().unwrap();
    driver.finish(first);
    let next = driver.schedule().unwrap();
    assert_eq!((next.released_slots.clone(), next.admitted[0].slot), (vec![0], 0));
    assert_eq!(next.new_block_ids.len(), 4, "all blocks, those of the wasted row included");
    driver.finish(wasted);
    driver.finish(next);
    assert_eq!((driver.heard.tokens[&1].len(), driver.heard.tokens[&2].len()), (1, 1));
}

#[test]
fn only_known_tokens_are_cached() {
    let mut driver = Driver::new(config());
    driver.add([request(1, 3, 9)]);
    let plans: Vec<_> = (0..3).map(|_| driver.schedule().unwrap()).collect();
    // Position 3 is planned, which fills the first block, but its token is not known.
    assert_eq!(driver.scheduler.kv().pool().num_cached(), 0);
    plans.into_iter().for_each(|plan| drop(driver.finish(plan)));
    driver.step();
    assert_eq!(driver.scheduler.kv().pool().num_cached(), 1);
}

/// Two requests in a pool of six; returns with the second one preempted while a token of it is in flight.
fn preempted_in_flight(sampling: fn(&mut SamplingParams)) -> (Driver, SchedulerOutput, SchedulerOutput) {
    let mut driver = Driver::new(tight(6));
    driver.sampler = |_, position| position;
    driver.add([request(1, 11, 13), with_sampling(request(2, 11, 13), sampling)]);
    let mut before = driver.schedule().unwrap();
    loop {
        let plan = driver.schedule().unwrap();
        if driver.scheduler.stats().preemptions_total > 0 {
            assert_eq!((ids(&before), ids(&plan)), (vec![1, 2], vec![1]));
            return (driver, before, plan);
        }
        driver.finish(std::mem::replace(&mut before, plan));
    }
}

#[test]
fn the_late_token_of_a_preempted_request_is_kept() {
    let (mut driver, before, plan) = preempted_in_flight(|_| {});
    let known = driver.heard.tokens[&2].len();
    assert!(driver.scheduler.abort(RequestId(1)));
    assert!(driver.schedule().is_none(), "there is room for it now, but its sequence is not known yet");
    driver.finish(before);
    assert_eq!(driver.heard.tokens[&2].len(), known + 1);
    driver.finish(plan);
}

#[test]
fn a_preempted_request_can_end_by_its_late_token() {
    let (mut driver, before, plan) = preempted_in_flight(|p| p.stop_token_ids = vec![12]);
    assert!(!driver.heard.ends.contains_key(&2));
    driver.finish(before);
    assert_eq!(driver.heard.ends[&2], FinishReason::StopToken(12));
    driver.finish(plan);
    assert_eq!(driver.scheduler.stats().num_waiting_capacity, 0);
}

#[test]
fn the_late_token_of_a_request_that_was_preempted_and_aborted_is_dropped() {
    let (mut driver, before, plan) = preempted_in_flight(|_| {});
    let known = driver.heard.tokens[&2].len();
    assert!(driver.scheduler.abort(RequestId(2)));
    driver.finish(before);
    assert_eq!((driver.heard.tokens[&2].len(), &driver.heard.ends[&2]), (known, &FinishReason::Abort));
    driver.finish(plan);
}

#[test]
#[should_panic(expected = "collected before an earlier one")]
fn results_out_of_order_are_a_defect_of_the_caller() {
    let mut driver = Driver::new(config());
    driver.add([request(1, 5, 4)]);
    let _first = driver.schedule().unwrap();
    let second = driver.schedule().unwrap();
    driver.finish(second);
}
