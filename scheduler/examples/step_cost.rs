//! What the scheduler itself costs: time of a `schedule` + `update` pair at steady decode, and of admission.
//!
//! `cargo run --release -p quire-scheduler --example step_cost`
#![allow(clippy::disallowed_types, reason = "a measurement needs a clock")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use quire_scheduler::kv::KvGroup;
use quire_scheduler::sim::{SimFailures, SimModel, SimRunner, SimRunnerConfig};
use quire_scheduler::{
    ModelRunner, Request, RequestId, SamplingParams, Scheduler, SchedulerConfig, SchedulingPolicy,
};

const PROMPT_LEN: u32 = 500;
const OUTPUT_LEN: u32 = 2000;

fn main() {
    println!("rows | schedule us | runner us | update us | schedule+update ns/row | admission us/request");
    for rows in [1, 16, 64, 256, 1024] {
        measure(rows);
    }
}

fn measure(rows: u32) {
    let config = SchedulerConfig {
        max_num_seqs: rows,
        max_num_batched_tokens: rows * PROMPT_LEN,
        max_model_len: PROMPT_LEN + OUTPUT_LEN,
        block_size: 16,
        num_blocks: rows * (PROMPT_LEN + OUTPUT_LEN).div_ceil(16) + 1,
        kv_groups: vec![KvGroup::FULL],
        enable_prefix_caching: true,
        enable_kv_events: false,
        policy: SchedulingPolicy::Fcfs,
        long_prefill_token_threshold: 0,
        priority_ageing_us: 0,
        whole_prompts: false,
        max_loras: 4,
        adapter_patience_us: 0,
    };
    let mut scheduler = Scheduler::new(config).expect("the limits are valid");
    let mut runner = SimRunner::new(SimRunnerConfig {
        model: SimModel { seed: 1, vocab: 0..50_000 },
        max_num_seqs: rows,
        max_in_flight: 1,
        cost: None,
        check: None,
        failures: SimFailures::default(),
    });
    let sampling = Arc::new(SamplingParams { max_tokens: OUTPUT_LEN, ..SamplingParams::default() });
    let begin = Instant::now();
    for id in 0..rows {
        scheduler.add(Request {
            id: RequestId(u64::from(id)),
            prompt_token_ids: (0..PROMPT_LEN).map(|i| id * PROMPT_LEN + i).collect(),
            sampling: sampling.clone(),
            priority: 0,
            arrival_us: 0,
            adapter: None,
            cache_salt: None,
            bypass_prefix_cache: false,
        });
    }
    let mut spent = [Duration::ZERO; 3];
    let mut admission = Duration::ZERO;
    let mut steps = 0;
    while let Some(plan) = {
        let begin = Instant::now();
        let plan = scheduler.schedule(0);
        spent[0] += begin.elapsed();
        plan
    } {
        if steps == 0 {
            admission = begin.elapsed();
            spent[0] = Duration::ZERO;
        }
        steps += 1;
        let begin = Instant::now();
        let ticket = runner.submit(&plan).expect("nothing is injected");
        let results = runner.collect(ticket).expect("nothing is injected");
        spent[1] += begin.elapsed();
        let begin = Instant::now();
        let outputs = scheduler.update(plan, Ok(results));
        std::hint::black_box(&outputs);
        spent[2] += begin.elapsed();
    }
    let us = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(steps);
    println!(
        "{rows:4} | {:11.2} | {:9.2} | {:9.2} | {:22.1} | {:.1}",
        us(spent[0]),
        us(spent[1]),
        us(spent[2]),
        (us(spent[0]) + us(spent[2])) * 1e3 / f64::from(rows),
        admission.as_secs_f64() * 1e6 / f64::from(rows),
    );
}
