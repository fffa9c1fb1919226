//! The simulated runner itself: a check that cannot fail proves nothing, so each kind of wrong plan is shown
//! to be found. And both of its modes give the same tokens.
#![allow(clippy::disallowed_types, reason = "whether a simulated device takes its time")]

mod common;

use std::collections::BTreeMap;

use common::*;
use quire_scheduler::kv::{BlockId, KvGroup};
use quire_scheduler::sim::*;
use quire_scheduler::*;

fn runner_config(check: bool) -> SimRunnerConfig {
    SimRunnerConfig {
        model: SimModel { seed: 7, vocab: 100..200 },
        max_num_seqs: 8,
        max_in_flight: 2,
        cost: None,
        check: check.then_some(SimCheck {
            num_blocks: 101,
            block_size: BLOCK,
            kv_groups: vec![KvGroup::FULL],
        }),
        failures: SimFailures::default(),
    }
}

/// Serves requests to the end, with two plans in flight.
fn serve(runner: &mut SimRunner, requests: Vec<Request>) -> BTreeMap<u64, Vec<TokenId>> {
    let mut driver = Driver::new(config());
    driver.add(requests);
    let mut in_flight = std::collections::VecDeque::new();
    loop {
        while in_flight.len() < runner.max_in_flight() {
            let Some(plan) = driver.schedule() else { break };
            let ticket = runner.submit(&plan).expect("a plan of the scheduler is right");
            in_flight.push_back((plan, ticket));
        }
        let Some((plan, ticket)) = in_flight.pop_front() else { return driver.heard.tokens };
        let result = runner.collect(ticket).cloned();
        driver.finish_with(plan, result.as_ref());
    }
}

#[test]
fn both_modes_give_what_each_request_gives_alone() {
    let requests: Vec<_> = (1..=20).map(|id| request(id, 1 + (id * 3 % 17) as u32, 20)).collect();
    let checked = serve(&mut SimRunner::new(runner_config(true)), requests.clone());
    assert_eq!(checked, serve(&mut SimRunner::new(runner_config(false)), requests.clone()));
    for request in requests {
        let (alone, end) = runner_config(false).model.generate_alone(&request, 100);
        assert_eq!(checked[&request.id.0], alone);
        assert_eq!((alone.len(), end), (20, FinishReason::Length));
        assert!(alone.iter().all(|token| (100..200).contains(token)));
    }
}

/// Runs a request's prefill, then lets `spoil` change the plan of its first decode.
fn complaint(spoil: fn(&mut SchedulerOutput)) -> String {
    let mut driver = Driver::new(config());
    let mut runner = SimRunner::new(runner_config(true));
    driver.add([request(1, 8, 9), request(2, 6, 9)]);
    let plan = driver.schedule().unwrap();
    let ticket = runner.submit(&plan).unwrap();
    let result = runner.collect(ticket).cloned();
    driver.finish_with(plan, result.as_ref());
    let mut plan = driver.schedule().unwrap();
    spoil(&mut plan);
    let error = runner.submit(&plan).expect_err("a wrong plan is found");
    assert!(error.fatal);
    error.reason.to_string()
}

#[test]
fn wrong_plans_are_found() {
    let own = |plan: &mut SchedulerOutput| plan.new_block_ids[0] = BlockId(4);
    assert!(complaint(own).contains("does not hold position"), "another's block is overwritten");
    assert!(complaint(|plan| plan.new_block_ids[0] = BlockId(0)).contains("does not exist"));
    assert!(complaint(|plan| plan.rows[0].new_blocks = 0..0).contains("has no block"));
    assert!(complaint(|plan| plan.rows[0].start += 1).contains("computes 9..10 of 9"));
    assert!(complaint(|plan| plan.rows[0].samples = false).contains("samples = false"));
    assert!(complaint(|plan| plan.rows[0].num_tokens = 0).contains("computes 8..8"));
    assert!(complaint(|plan| plan.rows[0].slot = 1).contains("holds request 2, not 1"));
    assert!(complaint(|plan| plan.rows[0].slot = 5).contains("slot 5 has a row, but is empty"));
    assert!(complaint(|plan| plan.released_slots.push(3)).contains("nobody is in it"));
    let twice = |plan: &mut SchedulerOutput| {
        plan.admitted.push(AdmittedRequest {
            slot: 0,
            id: RequestId(9),
            prompt_token_ids: [1].into(),
            output_token_ids: Vec::new(),
            sampling: SamplingParams::default().into(),
            adapter: None,
            block_ids: Vec::new(),
        });
    };
    assert!(complaint(twice).contains("not free"));
}

#[test]
fn a_false_hit_is_found() {
    let mut driver = Driver::new(config());
    let mut runner = SimRunner::new(runner_config(true));
    driver.add([request(1, 9, 1)]);
    let plan = driver.schedule().unwrap();
    runner.submit(&plan).unwrap();
    driver.finish(plan);
    // The same tokens from another adapter: the blocks of the first are not for it.
    driver.add([Request { id: RequestId(2), ..request(1, 9, 1) }]);
    let mut plan = driver.schedule().unwrap();
    assert_eq!(plan.admitted[0].block_ids.len(), 2);
    plan.admitted[0].adapter = Some(Adapter::new("other", "other", ()));
    let error = runner.submit(&plan).expect_err("a wrong hit is found");
    assert!(error.reason.contains("does not hold position 0"), "{}", error.reason);
}

#[test]
fn time_is_added_up_by_the_cost_model_or_waited_for() {
    let serve_for = |sleep| {
        let cost = Some(StepCost { step_us: 500.0, token_us: 10.0, sleep });
        let mut runner = SimRunner::new(SimRunnerConfig { cost, max_in_flight: 1, ..runner_config(false) });
        let begin = std::time::Instant::now();
        serve(&mut runner, vec![request(1, 10, 5)]);
        (runner.simulated_us(), begin.elapsed().as_secs_f64() * 1e6)
    };
    // Five steps, 14 tokens.
    assert_eq!(serve_for(false).0, 2640.0);
    let (simulated, real) = serve_for(true);
    assert!(simulated == 2640.0 && real >= 2640.0, "{real}");
}

#[test]
fn failures_happen_as_often_as_told() {
    let failures = SimFailures { submit: 10_000, ..SimFailures::default() };
    let mut runner = SimRunner::new(SimRunnerConfig { failures, ..runner_config(false) });
    let mut driver = Driver::new(config());
    driver.add([request(1, 4, 4)]);
    let error = runner.submit(&driver.schedule().unwrap()).unwrap_err();
    assert!(!error.fatal && error.step == 1);
}
