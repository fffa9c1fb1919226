//! Grammars on the CUDA backend: masks that come between the forward pass and sampling, tokens that must come, and rows
//! that wait for their token while others have two steps in flight. The same tokens as token by token, alone.

mod support;

use quire_cuda::CudaOptions;
use quire_model::Dtype;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::any_batch::{make_runner, random_spec};
use support::grammars::{Seen, check_random_requests};
use support::{open, options};

const NUM_SEEDS: u64 = 24;

#[test]
fn invariant_8_grammars_on_the_gpu_same_tokens_in_any_batch() {
    let mut seen = Seen::default();
    for seed in 0..NUM_SEEDS {
        let rng = &mut StdRng::seed_from_u64(seed);
        let spec = random_spec(rng, 8, &[8, 24, 32]);
        let block_size = [4, 16][rng.random_range(0..2)];
        let graphs = rng.random_bool(0.7);
        let options = || CudaOptions { batch_invariant: true, graphs, ..options(Dtype::F32) };
        let runner = || make_runner(open(options()), &spec, Dtype::F32, block_size);
        check_random_requests(runner, block_size, rng, &mut seen, &format!("seed {seed}, graphs: {graphs}"));
    }
    println!("{seen:?}");
    assert!(seen.forced > 100 && seen.preempted > 2 && seen.cached > 100 && seen.ended > 10, "{seen:?}");
}
