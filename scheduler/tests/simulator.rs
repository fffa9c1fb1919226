//! The production scheduler, driven through hundreds of seeded lives.
//!
//! One seed alone: `QUIRE_SIM_SEED=7 cargo test --release -p quire-scheduler --test simulator`. More of them:
//! `QUIRE_SIM_SEEDS=20000`.
#![allow(clippy::disallowed_types, reason = "the threads of a test share a sum")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use quire_scheduler::sim::{SimReport, simulate};

const NUM_SEEDS: u64 = 520;
const STEPS_PER_SEED: u64 = 2_000;

fn run(seed: u64) -> SimReport {
    simulate(seed, STEPS_PER_SEED).unwrap_or_else(|failure| {
        panic!(
            "{failure}\n  again: QUIRE_SIM_SEED={seed} cargo test --release -p quire-scheduler --test simulator"
        )
    })
}

/// Invariants 5 (blocks), 6 (every request ends once) and 8 (tokens do not depend on company), in each of
/// more than a million steps.
#[test]
fn invariant_5_6_8_hold_in_every_step_of_every_life() {
    if let Ok(seed) = std::env::var("QUIRE_SIM_SEED") {
        println!("{:#?}", run(seed.parse().expect("QUIRE_SIM_SEED is a number")));
        return;
    }
    let num_seeds =
        std::env::var("QUIRE_SIM_SEEDS").map_or(NUM_SEEDS, |seeds| seeds.parse().expect("a number"));
    let next = AtomicU64::new(0);
    let total = Mutex::new(SimReport::default());
    let worker = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= num_seeds {
                return;
            }
            let report = run(seed);
            let mut total = total.lock().unwrap();
            total.steps += report.steps;
            total.trace ^= report.trace;
            total.finished += report.finished;
            total.aborted += report.aborted;
            total.failed += report.failed;
            total.preempted += report.preempted;
            total.cache_hits += report.cache_hits;
            total.deferrals += report.deferrals;
            total.skipped += report.skipped;
            total.window_hits += report.window_hits;
            total.forced += report.forced;
            total.stuck += report.stuck;
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(worker);
        }
    });
    let total = total.into_inner().unwrap();
    println!("{num_seeds} seeds: {total:?}");
    assert!(total.steps >= 1_000_000, "only {} steps", total.steps);
    // A simulation in which nothing happens proves nothing.
    assert!(total.finished > 100_000, "{total:?}");
    assert!(total.aborted > 1_000 && total.failed > 1_000, "{total:?}");
    assert!(total.preempted > 10_000, "{total:?}");
    assert!(total.skipped > 1_000_000 && total.window_hits > 10_000, "{total:?}");
    assert!(total.forced > 10_000 && total.stuck > 1_000, "{total:?}");
    assert!(total.cache_hits > 100_000 && total.deferrals > 1_000, "{total:?}");
}

#[test]
fn invariant_2_same_seed_same_trace() {
    for seed in 1000..1020 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
    assert_ne!(run(1000).trace, run(1001).trace);
}
