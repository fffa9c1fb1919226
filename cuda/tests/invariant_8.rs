//! Invariant 8 on the CUDA backend that was asked for it: the same request gives the same bits whatever else is in
//! the batch, however its prompt is cut into steps, whichever blocks it gets, whether its prefix was cached, after
//! preemption, and whether its steps are recorded graphs with padding or not.

mod support;

use quire_cuda::CudaOptions;
use quire_model::Dtype;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::any_batch::{
    Trace, assert_same_bits, make_runner, random_sequences, random_spec, run_alone, run_mixed,
};
use support::{open, options};

/// Models of elements of `dtype` whose heads and blocks are of one of these sizes.
fn check(dtype: Dtype, num_seeds: u64, head_dims: &[usize], block_sizes: &[usize]) {
    for seed in 0..num_seeds {
        let rng = &mut StdRng::seed_from_u64(seed);
        let spec = random_spec(rng, 8, head_dims);
        let block_size = block_sizes[rng.random_range(0..block_sizes.len())];
        let sequences = random_sequences(rng);
        let runner = |graphs| {
            let options = CudaOptions { batch_invariant: true, graphs, ..options(dtype) };
            make_runner(open(options), &spec, dtype, block_size)
        };
        let (mut alone, graphs) = (Trace::new(), rng.random_bool(0.5));
        let mut lonely = runner(graphs);
        for sequence in &sequences {
            run_alone(&mut lonely, block_size, sequence.clone(), &mut alone);
        }
        for graphs in [!graphs, graphs] {
            let mixed = run_mixed(&mut runner(graphs), block_size, sequences.clone(), rng);
            let what = format!("{dtype:?}, seed {seed}, block size {block_size}, graphs: {graphs}, {spec:?}");
            assert_same_bits(&alone, &mixed, &what);
        }
    }
}

#[test]
fn invariant_8_on_the_gpu_same_bits_in_any_batch_bf16() {
    check(Dtype::Bf16, 12, &[32, 64, 96], &[16, 32]);
}

#[test]
fn invariant_8_on_the_gpu_same_bits_in_any_batch_f32() {
    check(Dtype::F32, 12, &[8, 24, 32], &[4, 16]);
}
