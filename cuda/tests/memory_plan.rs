//! What the memory plan says, against what the driver is then asked for.

mod support;

use quire_cuda::driver::Context;
use quire_cuda::{CudaBackend, CudaOptions, MemoryPlan, open_gpu};
use quire_model::{Checkpoint, Dtype, KvLayout, Model, ModelSpec, Runner, RunnerConfig};
use support::{options, pebble};

/// What allocations are rounded up by, and the staging of weights: little beside the parts of a plan.
const SLACK_BYTES: u64 = 2 << 20;

#[test]
fn what_is_taken_is_what_was_planned() {
    quire_cuda::emulator::use_stand_in();
    let dir = pebble().join("model");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    for (dtype, max_num_seqs, max_num_batched_tokens, num_blocks) in
        [(Dtype::Bf16, 8, 64, 300), (Dtype::F32, 3, 512, 100), (Dtype::F16, 40, 1024, 2000)]
    {
        let spec = ModelSpec::from_dir(&dir).unwrap();
        let config = RunnerConfig {
            max_num_seqs,
            max_num_batched_tokens,
            max_model_len: 2048,
            block_size: 16,
            num_blocks,
        };
        let context = open_gpu(0).unwrap();
        let plan = MemoryPlan::new(&context, &spec, &config.step_limits(&spec), dtype, 0.9).unwrap();
        let free = |context: &Context| context.memory().unwrap().0;
        let before = free(&context);
        let kv_bytes = (num_blocks * KvLayout::new(&spec, 16).block_bytes(dtype.into())) as u64;

        let mut backend =
            CudaBackend::new(&context, CudaOptions { graphs: false, ..options(dtype) }).unwrap();
        let model = Model::load(&mut backend, spec, &checkpoint, &mut |_| {}).unwrap();
        let runner = Runner::new(backend, model, config).unwrap();
        let taken = before - free(&context);
        let planned = plan.weight_bytes + plan.activation_bytes + plan.scratch_bytes + kv_bytes;
        drop(runner);
        assert_eq!(free(&context), before, "not everything was given back");
        assert!(taken <= planned + SLACK_BYTES, "{dtype:?}: {taken} taken, {planned} planned: {plan}");
        assert!(planned <= taken + SLACK_BYTES, "{dtype:?}: {planned} planned, {taken} taken: {plan}");
    }
}
