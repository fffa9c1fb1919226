//! Speed of the CPU backend on this machine: `linear` beside candle's matmul in the same run, and tokens a
//! second of the demo model.
//!
//!     cargo run --release -p quire-cpu --example bench [THREADS]
#![allow(clippy::disallowed_types, reason = "a measurement needs a clock")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use quire_cpu::{CpuBackend, CpuOptions};
use quire_model::{Backend, BufferRole, Checkpoint, Dtype, Model, ModelSpec, Runner, RunnerConfig};
use quire_scheduler::kv::BlockId;
use quire_scheduler::{
    AdmittedRequest, ModelRunner, RequestId, SamplingParams, ScheduledRow, SchedulerOutput,
};

const REPEATS: usize = 7;

fn main() {
    let num_threads = std::env::args().nth(1).map(|count| count.parse().expect("a number of threads"));
    let options = CpuOptions { num_threads, isa: None };
    for batch in [1, 8, 64] {
        let runs = (0..REPEATS).map(|_| decode_tokens_per_second(options, batch));
        println!("pebble decode, batch {batch}: {:.0} tokens/s", runs.fold(0.0, f64::max));
    }
    println!(
        "linear, bf16 weights, GFLOP/s; candle's matmul with f32 and with bf16 weights; ratio to the better"
    );
    for (n, k) in [(768, 192), (2048, 192), (1024, 1024), (4096, 4096)] {
        for m in [1, 4, 64, 256] {
            let work = 2.0 * (m * n * k) as f64 / 1e9;
            let ours = linear_seconds(options, m, n, k);
            let [f32, bf16] = [DType::F32, DType::BF16].map(|dtype| candle_seconds(dtype, m, n, k));
            println!(
                "m {m:4} n {n:5} k {k:5}: {:7.1}  candle {:7.1} {:7.1}  ratio {:.2}",
                work / ours,
                work / f32,
                work / bf16,
                f32.min(bf16) / ours
            );
        }
    }
}

/// Best of several: the machine is shared.
fn best_seconds(mut work: impl FnMut()) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..REPEATS {
        let start = Instant::now();
        let mut times = 0;
        while start.elapsed().as_secs_f64() < 0.02 {
            work();
            times += 1;
        }
        best = best.min(start.elapsed().as_secs_f64() / f64::from(times));
    }
    best
}

fn linear_seconds(options: CpuOptions, m: usize, n: usize, k: usize) -> f64 {
    let mut backend = CpuBackend::new(options).unwrap();
    let tensor = Checkpoint::dummy(Dtype::Bf16);
    let weight = backend.load(&[tensor.tensor("weight", &[n, k]).unwrap()]).unwrap();
    let mut x = backend.alloc(BufferRole::Activation, m * k).unwrap();
    x.iter_mut().enumerate().for_each(|(i, x)| *x = (i % 13) as f32 * 0.1 - 0.6);
    let mut out = backend.alloc(BufferRole::Activation, m * n).unwrap();
    best_seconds(|| backend.linear(m, &x, &weight, None, &mut out).unwrap())
}

fn candle_seconds(dtype: DType, m: usize, n: usize, k: usize) -> f64 {
    let x = Tensor::ones((m, k), dtype, &Device::Cpu).unwrap();
    let weight = Tensor::ones((n, k), dtype, &Device::Cpu).unwrap().t().unwrap();
    best_seconds(|| drop(x.matmul(&weight).unwrap()))
}

const PROMPT_LEN: u32 = 32;
const STEPS: u32 = 64;
const BLOCK_SIZE: u32 = 16;

fn decode_tokens_per_second(options: CpuOptions, batch: u32) -> f64 {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../assets/pebble/model");
    let mut backend = CpuBackend::new(options).unwrap();
    let spec = ModelSpec::from_dir(&dir).unwrap();
    let model = Model::load(&mut backend, spec, &Checkpoint::open(&dir).unwrap(), &mut |_| {}).unwrap();
    let blocks_per_seq = (PROMPT_LEN + STEPS).div_ceil(BLOCK_SIZE);
    let config = RunnerConfig {
        max_num_seqs: batch as usize,
        max_num_batched_tokens: (batch * PROMPT_LEN) as usize,
        max_model_len: 512,
        block_size: BLOCK_SIZE as usize,
        num_blocks: (batch * blocks_per_seq + 1) as usize,
    };
    let mut runner = Runner::new(backend, model, config).unwrap();
    let mut plan = SchedulerOutput::default();
    let mut start = None;
    for step in 0..STEPS {
        make_plan(&mut plan, step, batch, blocks_per_seq);
        // The first step is the prefill.
        if step == 1 {
            start = Some(Instant::now());
        }
        let ticket = runner.submit(&plan).unwrap();
        runner.collect(ticket).unwrap();
    }
    f64::from((STEPS - 1) * batch) / start.unwrap().elapsed().as_secs_f64()
}

fn make_plan(plan: &mut SchedulerOutput, step: u32, batch: u32, blocks_per_seq: u32) {
    plan.step = u64::from(step) + 1;
    plan.rows.clear();
    plan.admitted.clear();
    plan.new_block_ids.clear();
    for slot in 0..batch {
        let id = RequestId(u64::from(slot));
        if step == 0 {
            plan.admitted.push(AdmittedRequest {
                slot,
                id,
                prompt_token_ids: (0..PROMPT_LEN).map(|i| 100 + (slot * 7 + i) % 1000).collect(),
                output_token_ids: Vec::new(),
                sampling: Arc::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() }),
                adapter: None,
                block_ids: Vec::new(),
            });
            plan.new_block_ids.extend((0..blocks_per_seq).map(|b| BlockId(1 + slot * blocks_per_seq + b)));
        }
        let first = if step == 0 { slot * blocks_per_seq } else { 0 };
        let new_blocks = if step == 0 { first..first + blocks_per_seq } else { 0..0 };
        let (start, num_tokens) = if step == 0 { (0, PROMPT_LEN) } else { (PROMPT_LEN + step - 1, 1) };
        plan.rows.push(ScheduledRow { slot, id, start, num_tokens, new_blocks, samples: true });
    }
    plan.num_tokens = plan.rows.iter().map(|row| row.num_tokens).sum();
}
