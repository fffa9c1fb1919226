//! Speed of matrix products by weights of each kind, beside what this machine could do at most, measured in the same
//! run: so that it shows where the next factor is.
//!
//!     cargo run --release -p quire-cpu --example products [THREADS]
//!
//! A product of `m` rows counts 2mnk operations, and reads each weight once. With few rows the ceiling is the
//! bandwidth, with many it is the arithmetic. Kinds with packed weights run with activations of 8 bits. Weights are
//! as many copies as do not fit into caches, taken in turn. Each figure is the median of several measurements.
#![allow(clippy::disallowed_types, reason = "a measurement needs a clock")]
#![allow(unsafe_code, reason = "ceilings are instructions")]

use std::hint::black_box;
use std::time::Instant;

use quire_cpu::{CpuBackend, CpuOptions, CpuWeight};
use quire_model::ggml::{self, GgmlType};
use quire_model::quantization::{AtLoad, GgmlRows, PackedRows, quantize};
use quire_model::{Backend, BufferRole, Checkpoint, Dtype};

const REPEATS: usize = 5;
const REPEAT_SECONDS: f64 = 0.03;
/// Of all copies of a weight: more than caches hold.
const WEIGHTS_BYTES: usize = 160 << 20;
const MAX_COPIES: usize = 64;
/// `[n][k]`.
const SHAPES: [(usize, usize); 5] = [(576, 1536), (1536, 576), (896, 4864), (4864, 896), (49152, 576)];
const KINDS: [&str; 5] = ["f32", "bf16", "int8", "q8_0", "q4_0"];

fn main() {
    let num_threads = std::env::args().nth(1).map(|count| count.parse().expect("a number of threads"));
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = num_threads.unwrap_or_else(cores);
    println!("{threads} threads, at most:");
    println!("  {:8.1} GB/s read", ceiling(threads, read));
    println!("  {:8.1} GFLOP/s of f32 multiply-add (0 = not measured here)", ceiling(threads, multiply_add));
    println!("  {:8.1} GOP/s of int8 (VNNI; 0 = not here)", ceiling(threads, dot_products));
    println!("{:>6} {:>6} {:>5} {:>5} {:>9} {:>7}", "n", "k", "kind", "m", "GOP/s", "GB/s");
    for (n, k) in SHAPES {
        for kind in KINDS {
            let mut backend =
                CpuBackend::new(CpuOptions { num_threads, isa: None }).unwrap().with_int8_activations(true);
            let first = weight(&mut backend, kind, n, k);
            let copies = (WEIGHTS_BYTES / first.bytes()).clamp(1, MAX_COPIES);
            let mut weights = vec![first];
            weights.extend((1..copies).map(|_| weight(&mut backend, kind, n, k)));
            for m in [1, 4, 32, 256] {
                let seconds = product_seconds(&mut backend, &weights, m, n, k);
                let (operations, bytes) = (2.0 * (m * n * k) as f64, weights[0].bytes() as f64);
                let (speed, bandwidth) = (operations / seconds / 1e9, bytes / seconds / 1e9);
                println!("{n:6} {k:6} {kind:>5} {m:5} {speed:9.1} {bandwidth:7.1}");
            }
        }
    }
}

fn weight(backend: &mut CpuBackend, kind: &str, n: usize, k: usize) -> CpuWeight {
    let dtype = if kind == "bf16" { Dtype::Bf16 } else { Dtype::F32 };
    let checkpoint = Checkpoint::dummy(dtype);
    let tensor = checkpoint.tensor("weight", &[n, k]).unwrap();
    match kind {
        "int8" => backend.load_packed(quantize(&tensor, AtLoad::Int8).unwrap().unwrap()).unwrap(),
        "q8_0" => backend.load_packed(quantize(&tensor, AtLoad::Q8_0).unwrap().unwrap()).unwrap(),
        "q4_0" => {
            let bytes = tensor.bytes();
            let values: Vec<f32> =
                bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            let blocks = ggml::quantize(&values, k, GgmlType::Q4_0).unwrap();
            let rows = PackedRows::Ggml(GgmlRows::new(GgmlType::Q4_0, k, blocks).unwrap());
            backend.load_packed(rows.into()).unwrap()
        }
        _ => backend.load(&[tensor]).unwrap(),
    }
}

fn product_seconds(backend: &mut CpuBackend, weights: &[CpuWeight], m: usize, n: usize, k: usize) -> f64 {
    let mut x = backend.alloc(BufferRole::Activation, m * k).unwrap();
    x.iter_mut().enumerate().for_each(|(i, x)| *x = (i % 13) as f32 * 0.1 - 0.6);
    let mut out = backend.alloc(BufferRole::Activation, m * n).unwrap();
    let mut next = weights.iter().cycle();
    median_seconds(|| backend.linear(m, &x, next.next().unwrap(), None, &mut out).unwrap())
}

fn median_seconds(mut work: impl FnMut()) -> f64 {
    work();
    let mut found: [f64; REPEATS] = std::array::from_fn(|_| {
        let (start, mut times) = (Instant::now(), 0);
        while times == 0 || start.elapsed().as_secs_f64() < REPEAT_SECONDS {
            work();
            times += 1;
        }
        start.elapsed().as_secs_f64() / f64::from(times)
    });
    found.sort_by(f64::total_cmp);
    found[REPEATS / 2]
}

/// In billions a second, of all threads at once, the best of several. `work` gives how many of them it did.
fn ceiling(threads: usize, work: fn(&[u64]) -> u64) -> f64 {
    let memory: Vec<Vec<u64>> = (0..threads).map(|_| vec![1; WEIGHTS_BYTES / 8]).collect();
    let once = || {
        let start = Instant::now();
        let done: u64 = std::thread::scope(|scope| {
            let started: Vec<_> = memory.iter().map(|memory| scope.spawn(|| work(memory))).collect();
            started.into_iter().map(|thread| thread.join().expect("a measurement")).sum()
        });
        done as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    (0..REPEATS).map(|_| once()).fold(0.0, f64::max)
}

fn read(memory: &[u64]) -> u64 {
    let sums = memory
        .as_chunks::<32>()
        .0
        .iter()
        .fold([0u64; 32], |sums, values| std::array::from_fn(|i| sums[i].wrapping_add(values[i])));
    black_box(sums);
    size_of_val(memory) as u64
}

const ROUNDS: u64 = 5_000_000;
/// Independent sums: more than the latency of an instruction hides.
#[cfg(target_arch = "x86_64")]
const SUMS: usize = 12;

#[cfg(target_arch = "x86_64")]
fn multiply_add(_: &[u64]) -> u64 {
    use std::arch::x86_64::*;
    #[target_feature(enable = "avx512f")]
    fn wide() -> u64 {
        let (mut sums, x) = ([_mm512_set1_ps(1.0); SUMS], black_box(_mm512_set1_ps(0.5)));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(x, x, *sum);
            }
        }
        black_box(sums);
        ROUNDS * SUMS as u64 * 32
    }
    #[target_feature(enable = "avx2,fma")]
    fn narrow() -> u64 {
        let (mut sums, x) = ([_mm256_set1_ps(1.0); SUMS], black_box(_mm256_set1_ps(0.5)));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(x, x, *sum);
            }
        }
        black_box(sums);
        ROUNDS * SUMS as u64 * 16
    }
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has the instructions.
        return unsafe { wide() };
    }
    if is_x86_feature_detected!("fma") && is_x86_feature_detected!("avx2") {
        // SAFETY: likewise.
        return unsafe { narrow() };
    }
    0
}

#[cfg(target_arch = "x86_64")]
fn dot_products(_: &[u64]) -> u64 {
    use std::arch::x86_64::*;
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn wide() -> u64 {
        let (mut sums, x) = ([_mm512_set1_epi32(1); SUMS], black_box(_mm512_set1_epi8(3)));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, x, x);
            }
        }
        black_box(sums);
        ROUNDS * SUMS as u64 * 128
    }
    // SAFETY: only where the processor says that it has them.
    if is_x86_feature_detected!("avx512vnni") { unsafe { wide() } } else { 0 }
}

#[cfg(not(target_arch = "x86_64"))]
fn multiply_add(_: &[u64]) -> u64 {
    0
}

#[cfg(not(target_arch = "x86_64"))]
fn dot_products(_: &[u64]) -> u64 {
    0
}
