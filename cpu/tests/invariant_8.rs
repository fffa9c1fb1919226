//! Invariant 8: the same request gives the same bits whatever else is in the batch, however its prompt is cut
//! into steps, whichever blocks it gets, whether its prefix was cached, and after preemption. Also on every
//! instruction set and with any number of threads.

mod support;

use quire_cpu::{CpuBackend, CpuOptions, Isa};
use quire_model::{Dtype, KvDtype};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::any_batch::{
    Trace, assert_same_bits, make_runner, random_sequences, random_spec, run_alone, run_mixed,
};

const NUM_SEEDS: u64 = 60;

#[test]
fn invariant_8_same_bits_in_any_batch() {
    let head_dims: Vec<usize> = (2..40).step_by(2).collect();
    for seed in 0..NUM_SEEDS {
        let rng = &mut StdRng::seed_from_u64(seed);
        let spec = random_spec(rng, 1, &head_dims);
        let dtype = [Dtype::F32, Dtype::Bf16, Dtype::F16][rng.random_range(0..3)];
        let block_size = [1, 3, 4, 16][rng.random_range(0..4)];
        let kv_dtype = KvDtype::ALL[seed as usize % KvDtype::ALL.len()];
        let runner = |options| {
            let backend = CpuBackend::new(options).unwrap().with_kv_dtype(kv_dtype);
            make_runner(backend, &spec, dtype, block_size)
        };
        let sequences = random_sequences(rng);
        let mut alone = Trace::new();
        for sequence in &sequences {
            let mut runner = runner(CpuOptions { num_threads: Some(1), isa: None });
            run_alone(&mut runner, block_size, sequence.clone(), &mut alone);
        }
        for _ in 0..2 {
            let isas = Isa::available();
            let isa = Some(isas[rng.random_range(0..isas.len())]);
            let num_threads = Some(rng.random_range(1..4));
            let mut runner = runner(CpuOptions { num_threads, isa });
            let mixed = run_mixed(&mut runner, block_size, sequences.clone(), rng);
            assert_same_bits(&alone, &mixed, &format!("seed {seed}, {isa:?}, {kv_dtype:?}, {spec:?}"));
        }
    }
}
