//! Speed of the CPU backend's attention beside what this machine can read and multiply in the same run: GB/s of
//! keys and values read in decode steps, GFLOP/s of prompts. Medians, because machines are shared.
//!
//!     cargo run --release -p quire-cpu --example attention [THREADS [KV_DTYPE]]
#![allow(clippy::disallowed_types, reason = "a measurement needs a clock")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use quire_cpu::{CpuBackend, CpuKvCache, CpuOptions, CpuWeight};
use quire_model::{AttentionShape, Backend, BufferRole, InputBatch, KvDtype, KvScales, StepLimits};
use quire_scheduler::kv::BlockId;
use quire_scheduler::{AdmittedRequest, RequestId, SamplingParams, ScheduledRow, SchedulerOutput};

const BLOCK_SIZE: usize = 16;
const REPEATS: usize = 9;
/// (query heads of a key-value head, key-value heads, width of a head): SmolLM 135M, Qwen2.5 0.5B, Llama 3 8B.
const SHAPES: [(usize, usize, usize); 3] = [(3, 3, 64), (7, 2, 64), (4, 8, 128)];

fn main() {
    let num_threads = std::env::args().nth(1).map(|count| count.parse().expect("a number of threads"));
    let num_threads: usize =
        num_threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let dtype = std::env::args().nth(2).map_or(KvDtype::F32, |name| {
        let known = KvDtype::ALL.into_iter().find(|dtype| dtype.name() == name);
        known.unwrap_or_else(|| panic!("KV_DTYPE is one of {:?}", KvDtype::ALL.map(KvDtype::name)))
    });
    let read = on_threads(num_threads, read_bytes) / 1e9;
    let multiply = on_threads(num_threads, multiply_flops) / 1e9;
    println!(
        "{num_threads} threads, {} cache: reads {read:.1} GB/s, multiplies {multiply:.1} GFLOP/s",
        dtype.name()
    );
    for (group, num_kv_heads, head_dim) in SHAPES {
        println!("group {group}, {num_kv_heads} key-value heads of {head_dim}");
        for (batch, context) in [(1, 128), (1, 1024), (1, 8192), (32, 128), (32, 1024)] {
            let mut case = Case::new(
                num_threads,
                dtype,
                (group, num_kv_heads, head_dim),
                &vec![(context - 1, 1); batch],
            );
            let seconds = median_seconds(|| case.attend());
            let bytes = (2 * batch * context * num_kv_heads * head_dim * bytes_of(dtype)) as f64;
            let rate = bytes / seconds / 1e9;
            println!(
                "  decode {batch:3} x {context:5}: {:9.1} us {rate:6.1} GB/s {:4.2} of reading",
                seconds * 1e6,
                rate / read
            );
        }
        for (start, len) in [(0, 128), (0, 1024), (7168, 1024)] {
            let mut case = Case::new(num_threads, dtype, (group, num_kv_heads, head_dim), &[(start, len)]);
            let seconds = median_seconds(|| case.attend());
            let pairs: usize = (start + 1..=start + len).sum();
            let rate = (4 * pairs * group * num_kv_heads * head_dim) as f64 / seconds / 1e9;
            println!(
                "  prompt {len:4} at {start:4}: {:9.1} us {rate:6.1} GFLOP/s {:4.2} of multiplying",
                seconds * 1e6,
                rate / multiply
            );
            let seconds = median_seconds(|| case.cache());
            println!("    rotated and cached: {:9.1} us", seconds * 1e6);
        }
    }
}

/// Middle of several: the machine is shared.
fn median_seconds(mut work: impl FnMut()) -> f64 {
    work();
    let mut seconds: Vec<f64> = (0..REPEATS)
        .map(|_| {
            let start = Instant::now();
            let mut times = 0;
            while start.elapsed().as_secs_f64() < 0.01 {
                work();
                times += 1;
            }
            start.elapsed().as_secs_f64() / f64::from(times)
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[REPEATS / 2]
}

/// What `work` says it did on each thread, a second, over all threads.
fn on_threads(num_threads: usize, work: fn() -> (f64, f64)) -> f64 {
    let threads: Vec<_> = (0..num_threads).map(|_| std::thread::spawn(work)).collect();
    threads
        .into_iter()
        .map(|thread| thread.join().expect("it does not panic"))
        .map(|(done, seconds)| done / seconds)
        .sum()
}

/// Bytes read from memory, and the seconds for that.
fn read_bytes() -> (f64, f64) {
    let numbers = vec![1u64; 32 << 20];
    let seconds = median_seconds(|| {
        let sum = numbers.chunks_exact(64).fold([0u64; 64], |mut sums, chunk| {
            sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum = sum.wrapping_add(*x));
            sums
        });
        black_box(sum);
    });
    ((numbers.len() * 8) as f64, seconds)
}

/// Operations of a product that stays in registers, and the seconds for them.
fn multiply_flops() -> (f64, f64) {
    const TIMES: usize = 10_000;
    let seconds = median_seconds(|| {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: this machine has it, as just seen.
            #[allow(unsafe_code)]
            unsafe {
                multiply_wide(TIMES);
            }
            return;
        }
        multiply(TIMES);
    });
    ((2 * 256 * TIMES) as f64, seconds)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
fn multiply_wide(times: usize) {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_set1_ps};
    let (x, y) = (black_box(_mm512_set1_ps(0.5)), black_box(_mm512_set1_ps(0.25)));
    let mut sums = [x; 16];
    for _ in 0..times {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(x, *sum, y);
        }
    }
    black_box(sums);
}

fn multiply(times: usize) {
    let (x, y) = (black_box(0.5f32), black_box(0.25f32));
    let mut sums = [x; 256];
    for _ in 0..times {
        sums.iter_mut().for_each(|sum| *sum = x * *sum + y);
    }
    black_box(sums);
}

fn bytes_of(dtype: KvDtype) -> usize {
    match dtype {
        KvDtype::F32 => 4,
        KvDtype::F16 | KvDtype::Bf16 => 2,
        _ => 1,
    }
}

/// A step of sequences, each with tokens computed before and tokens to compute.
struct Case {
    backend: CpuBackend,
    shape: AttentionShape,
    qkv: Vec<f32>,
    angles: CpuWeight,
    cache: CpuKvCache,
    out: Vec<f32>,
}

impl Case {
    fn new(
        threads: usize,
        dtype: KvDtype,
        shape: (usize, usize, usize),
        sequences: &[(usize, usize)],
    ) -> Self {
        let (group, num_kv_heads, head_dim) = shape;
        let num_tokens = sequences.iter().map(|(_, len)| len).sum();
        let longest = sequences.iter().map(|(start, len)| start + len).max().expect("there are some");
        let limits = StepLimits {
            max_num_seqs: sequences.len(),
            max_num_batched_tokens: num_tokens,
            max_blocks_per_seq: longest.div_ceil(BLOCK_SIZE),
            block_size: BLOCK_SIZE,
            max_logits_rows: sequences.len(),
            vocab_size: 16,
            heads_per_group: group,
            num_kv_groups: 1,
        };
        let options = CpuOptions { num_threads: Some(threads), isa: None };
        let mut backend = CpuBackend::new(options).expect("threads start").with_kv_dtype(dtype);
        let blocks = 1 + sequences.len() * limits.max_blocks_per_seq;
        let mut cache =
            backend.alloc_kv_cache(blocks * 2 * num_kv_heads * BLOCK_SIZE, head_dim).expect("memory");
        backend.prepare(&limits, &[]).expect("memory");
        let shape = AttentionShape {
            num_heads: group * num_kv_heads,
            num_kv_heads,
            head_dim,
            kv_group: 0,
            rotary_dim: head_dim,
            alibi: false,
            scale: 0.125,
            softcap: None,
            sliding_window: None,
            kv_scales: KvScales::default(),
        };
        fill(&mut backend, &shape, &limits, &mut cache, sequences.len());
        let batch = step(sequences, limits);
        backend.upload(batch.inputs(), batch.logits_rows(), batch.slots()).expect("it fits");
        let width = (shape.num_heads + 2 * num_kv_heads) * head_dim;
        let qkv = numbers(num_tokens * width);
        let out =
            backend.alloc(BufferRole::Activation, num_tokens * shape.num_heads * head_dim).expect("memory");
        let angles = vec![0.5f32.sqrt(); longest * head_dim];
        let angles = backend.load_table(&angles, head_dim).expect("memory");
        Self { backend, shape, qkv, angles, cache, out }
    }

    fn attend(&mut self) {
        self.backend
            .paged_attention(&self.shape, None, &self.qkv, &self.cache, &mut self.out)
            .expect("it can");
    }

    fn cache(&mut self) {
        let table = Some(&self.angles);
        self.backend
            .rope_and_cache(&self.shape, None, table, &mut self.qkv, &mut self.cache)
            .expect("it can");
    }
}

fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 1009) as f32 / 504.5 - 1.0).collect()
}

/// Keys and values of sequences as long as the limits allow: what was computed before.
fn fill(
    backend: &mut CpuBackend,
    shape: &AttentionShape,
    limits: &StepLimits,
    cache: &mut CpuKvCache,
    num_sequences: usize,
) {
    let len = limits.max_blocks_per_seq * BLOCK_SIZE;
    let batch = step(
        &vec![(0, len); num_sequences],
        StepLimits { max_num_batched_tokens: num_sequences * len, ..*limits },
    );
    backend.upload(batch.inputs(), batch.logits_rows(), batch.slots()).expect("it fits");
    let width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim;
    let mut qkv = numbers(num_sequences * len * width);
    backend.rope_and_cache(shape, None, None, &mut qkv, cache).expect("it can");
}

/// The step that computes `len` tokens from `start` on, of each sequence.
fn step(sequences: &[(usize, usize)], limits: StepLimits) -> InputBatch {
    let mut plan = SchedulerOutput { step: 1, ..SchedulerOutput::default() };
    for (slot, (start, len)) in sequences.iter().enumerate() {
        let (slot, id) = (slot as u32, RequestId(slot as u64));
        let blocks = (start + len).div_ceil(BLOCK_SIZE) as u32;
        let first = plan.new_block_ids.len() as u32;
        // Neighbours in a sequence are no neighbours in memory.
        let of_all = blocks * sequences.len() as u32;
        plan.new_block_ids.extend((first..first + blocks).map(|block| BlockId(1 + (block * 7919) % of_all)));
        plan.rows.push(ScheduledRow {
            slot,
            id,
            start: *start as u32,
            num_tokens: *len as u32,
            new_blocks: first..first + blocks,
            samples: true,
        });
        plan.admitted.push(AdmittedRequest {
            slot,
            id,
            prompt_token_ids: vec![1; start + len].into(),
            output_token_ids: Vec::new(),
            sampling: Arc::new(SamplingParams::default()),
            adapter: None,
            block_ids: Vec::new(),
        });
        plan.num_tokens += *len as u32;
    }
    let mut batch = InputBatch::new(limits);
    batch.apply(&plan).expect("a plan");
    batch
}
