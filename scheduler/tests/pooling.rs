//! Requests to be pooled: they end with their prompt, once, and leave nothing behind.

mod common;

use common::*;
use quire_scheduler::*;

fn pooled(id: u64, len: u32) -> Request {
    with_sampling(request(id, len, 0), |sampling| sampling.pooling = Some(Pooling::Mean))
}

/// What an honest runner answers to pooled rows: the request's id, twice.
fn vectors(plan: &SchedulerOutput, prompt_len: u32) -> ModelRunnerOutput {
    let ends = plan.rows.iter().filter(|row| row.start + row.num_tokens == prompt_len);
    let pooled = ends.flat_map(|row| [row.id.0 as f32; 2]).collect();
    ModelRunnerOutput { pooled, ..ModelRunnerOutput::default() }
}

/// The vector of each update that has one.
fn told(out: &StepOutputs) -> Vec<(u64, Vec<f32>, Option<FinishReason>)> {
    let vector = |update: &RequestUpdate| {
        out.pooled[update.pooled.start as usize..update.pooled.end as usize].to_vec()
    };
    out.updates.iter().map(|update| (update.id.0, vector(update), update.finish.clone())).collect()
}

#[test]
fn a_prompt_in_chunks_ends_with_its_last_one() {
    let mut driver = Driver::new(SchedulerConfig { max_num_batched_tokens: 10, ..config() });
    driver.add([pooled(1, 25)]);
    let free = driver.free_blocks();
    for (at, expected) in [(0, 10), (10, 10), (20, 5)] {
        let plan = driver.schedule().unwrap();
        assert_eq!(rows(&plan), [(1, at, expected)]);
        assert!(!plan.rows[0].samples);
        let answer = vectors(&plan, 25);
        let out = driver.finish_with(plan, Ok(&answer));
        let ends = (at == 20).then(|| (1, vec![1.0, 1.0], Some(FinishReason::Pooled)));
        assert_eq!(told(&out).into_iter().find(|(_, _, finish)| finish.is_some()), ends);
    }
    assert!(!driver.scheduler.has_unfinished());
    assert_eq!(driver.free_blocks(), free);
}

#[test]
fn nothing_is_planned_beyond_the_prompt_while_its_last_step_is_in_flight() {
    let mut driver = Driver::new(config());
    driver.add([pooled(1, 9)]);
    let plan = driver.schedule().unwrap();
    assert!(driver.schedule().is_none());
    let answer = vectors(&plan, 9);
    assert_eq!(told(&driver.finish_with(plan, Ok(&answer))).len(), 1);
}

#[test]
fn hidden_states_are_computed_and_not_looked_up() {
    let mut driver = Driver::new(config());
    driver.add([request(1, 20, 1)]);
    driver.run();
    driver.add([Request { id: RequestId(2), ..pooled(1, 20) }]);
    let plan = driver.schedule().unwrap();
    assert_eq!(rows(&plan), [(2, 0, 20)]);
}

#[test]
fn the_context_may_be_filled_to_its_last_token() {
    let mut driver = Driver::new(SchedulerConfig { max_model_len: 12, ..config() });
    driver.add([pooled(1, 12), pooled(2, 13), request(3, 12, 1)]);
    let plan = driver.schedule().unwrap();
    assert_eq!(rows(&plan), [(1, 0, 12)]);
    let answer = vectors(&plan, 12);
    driver.finish_with(plan, Ok(&answer));
    assert_eq!(driver.heard.ends[&1], FinishReason::Pooled);
    for id in [2, 3] {
        assert!(matches!(driver.heard.ends[&id], FinishReason::Error(_)), "{id}");
    }
}

#[test]
fn a_runner_that_gives_too_few_numbers_fails_its_step() {
    for wrong in [vec![], vec![1.0, 2.0, 3.0]] {
        let mut driver = Driver::new(config());
        driver.add([pooled(1, 5), pooled(2, 5)]);
        let plan = driver.schedule().unwrap();
        let answer = ModelRunnerOutput { pooled: wrong, ..ModelRunnerOutput::default() };
        driver.finish_with(plan, Ok(&answer));
        assert!(driver.heard.ends.values().all(|end| matches!(end, FinishReason::Error(_))));
        assert_eq!(driver.heard.ends.len(), 2);
    }
}

#[test]
fn prompts_that_must_be_whole_wait_for_a_step_with_room() {
    let whole = SchedulerConfig {
        max_num_batched_tokens: 40,
        max_model_len: 40,
        enable_prefix_caching: false,
        whole_prompts: true,
        ..config()
    };
    let mut driver = Driver::new(whole.clone());
    driver.add([pooled(1, 30), pooled(2, 20), pooled(3, 5)]);
    // The third would fit beside the first, but must not get ahead of the second for ever.
    for expected in [vec![(1, 0, 30)], vec![(2, 0, 20), (3, 0, 5)]] {
        let plan = driver.schedule().unwrap();
        assert_eq!(rows(&plan), expected);
        let answer = ModelRunnerOutput { pooled: vec![0.0; plan.rows.len()], ..ModelRunnerOutput::default() };
        driver.finish_with(plan, Ok(&answer));
    }
    for (field, wrong) in [
        ("max_num_batched_tokens", SchedulerConfig { max_num_batched_tokens: 39, ..whole.clone() }),
        (
            "long_prefill_token_threshold",
            SchedulerConfig { long_prefill_token_threshold: 8, ..whole.clone() },
        ),
        ("enable_prefix_caching", SchedulerConfig { enable_prefix_caching: true, ..whole }),
    ] {
        assert!(wrong.validate().unwrap_err().to_string().starts_with(field));
    }
}
