//! The priority policy: order, victims, ageing.

mod common;

use common::*;
use quire_scheduler::sim::Rng;
use quire_scheduler::*;

fn config_with(ageing_us: u64, num_blocks: u32) -> SchedulerConfig {
    SchedulerConfig {
        policy: SchedulingPolicy::Priority,
        priority_ageing_us: ageing_us,
        max_num_seqs: 4,
        ..tight(num_blocks)
    }
}

fn ranked(id: u64, priority: i32, arrival_us: u64) -> Request {
    Request { priority, arrival_us, ..request(id, 4, 2) }
}

/// The order in which these are admitted, one at a time.
fn order(config: SchedulerConfig, requests: impl IntoIterator<Item = Request>) -> Vec<u64> {
    let mut driver = Driver::new(SchedulerConfig { max_num_seqs: 1, ..config });
    driver.add(requests);
    let mut order = Vec::new();
    while let Some(plan) = driver.step() {
        order.extend(plan.admitted.iter().map(|entry| entry.id.0));
    }
    order
}

#[test]
fn lower_priority_values_first_then_arrival_then_id() {
    let requests = [
        ranked(1, 5, 1),
        ranked(2, -1, 9),
        ranked(3, 0, 4),
        ranked(4, 0, 3),
        ranked(6, 0, 4),
        ranked(5, 0, 4),
    ];
    assert_eq!(order(config_with(0, 10), requests.clone()), [2, 4, 3, 5, 6, 1]);
    let fcfs = SchedulerConfig { policy: SchedulingPolicy::Fcfs, ..config_with(0, 10) };
    assert_eq!(order(fcfs, requests), [1, 2, 3, 4, 6, 5], "FCFS: as they were added");
}

#[test]
fn age_makes_up_for_priority() {
    // One step of priority for every 100 us: 3 steps are worth 300 us.
    let requests = [ranked(1, 3, 0), ranked(2, 0, 299), ranked(3, 0, 301), ranked(4, 0, 300)];
    assert_eq!(order(config_with(100, 10), requests.clone()), [2, 1, 4, 3]);
    assert_eq!(order(config_with(0, 10), requests), [2, 4, 3, 1]);
}

#[test]
fn extreme_values_do_not_overflow() {
    let requests = [ranked(1, i32::MAX, u64::MAX), ranked(2, i32::MIN, u64::MAX), ranked(3, i32::MAX, 0)];
    assert_eq!(order(config_with(u64::MAX, 10), requests), [2, 3, 1]);
}

#[test]
fn only_those_behind_are_preempted_and_the_least_important_first() {
    let mut driver = Driver::new(config_with(0, 10));
    let long = |id, len, priority| Request { priority, ..request(id, len, 20) };
    // The second would be cheaper (13 tokens for 4 blocks, not 12 for 3), but the third matters less.
    driver.add([long(1, 12, 0), long(2, 13, 1), long(3, 12, 7)]);
    driver.run();
    let victims: Vec<u64> = driver.heard.preemptions.iter().map(|preemption| preemption.id.0).collect();
    assert_eq!(victims[0], 3);
    assert!(!victims.contains(&1), "{victims:?}");
    assert_eq!(driver.heard.ends.len(), 3);
}

#[test]
fn an_important_late_comer_takes_blocks_from_an_unimportant_early_one() {
    let mut driver = Driver::new(config_with(0, 6));
    driver.add([Request { priority: 9, ..request(1, 8, 12) }]);
    driver.step();
    driver.add([Request { priority: 0, ..request(2, 8, 12) }]);
    driver.run();
    assert!(!driver.heard.preemptions.is_empty());
    assert!(driver.heard.preemptions.iter().all(|preemption| preemption.id.0 == 1));
}

#[test]
fn the_one_in_need_goes_itself_if_all_others_are_ahead_of_it() {
    let mut driver = Driver::new(config_with(0, 6));
    driver.add([Request { priority: 9, ..request(1, 8, 12) }]);
    driver.step();
    // Takes a block later than the first does, so the first is the one in need.
    driver.add([Request { priority: 0, ..request(2, 7, 10) }]);
    driver.run();
    assert_eq!(driver.heard.preemptions[0].id.0, 1);
    assert_eq!(driver.heard.ends.len(), 2);
}

/// An unimportant request under an endless stream of important ones. Returns the step in which it ended.
fn ends_after(ageing_us: u64, num_steps: u64) -> Option<u64> {
    let mut driver = Driver::new(config_with(ageing_us, 6));
    driver.add([Request { priority: 10, ..request(1, 8, 8) }]);
    for step in 2..num_steps {
        driver.add([Request { priority: 0, arrival_us: driver.now_us, ..request(step, 8, 8) }]);
        driver.step();
        if driver.heard.ends.contains_key(&1) {
            return Some(step);
        }
    }
    None
}

#[test]
fn ageing_ends_starvation() {
    assert_eq!(ends_after(0, 1500), None, "without ageing it starves: that is what strict priority means");
    let step = ends_after(10, 1500).expect("with ageing it ends");
    assert!(step < 600, "step {step}");
}

#[test]
fn a_random_blast_of_priorities_leaks_nothing_and_loses_nobody() {
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        let mut driver = Driver::new(config_with(if seed % 2 == 0 { 0 } else { 50 }, rng.between(4, 12)));
        let most = driver.scheduler.stats().num_blocks_total * BLOCK - 1;
        let mut id = 0;
        for _ in 0..200 {
            for _ in 0..rng.below(3) {
                id += 1;
                let len = rng.between(1, most);
                let request = request(id, len, rng.between(1, most + 1 - len));
                driver.add([Request { priority: rng.between(0, 4) as i32, ..request }]);
            }
            if id > 0 && rng.percent(10) {
                driver.scheduler.abort(RequestId(1 + u64::from(rng.below(id as u32))));
            }
            driver.step();
        }
        driver.run();
        let stats = driver.scheduler.stats();
        assert_eq!(driver.heard.ends.len() as u64, id, "seed {seed}");
        assert_eq!(stats.num_blocks_free, stats.num_blocks_total, "seed {seed}");
    }
}
