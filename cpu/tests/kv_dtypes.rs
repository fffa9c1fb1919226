//! What is lost by keeping keys and values in fewer bits: no more than rounding each of them once.

mod support;

use std::path::PathBuf;

use candle_core::{Device, safetensors};
use quire_cpu::{CpuBackend, CpuOptions};
use quire_model::{Checkpoint, KvDtype, KvLayout, Model, ModelSpec, Runner, RunnerConfig};
use quire_scheduler::{ALL_LOGPROBS, SamplingParams, TokenId};
use support::{Planner, Sequence};

/// How far one rounding takes a number, as a share of it; for int8, of the greatest beside it.
fn unit_roundoff(dtype: KvDtype) -> f32 {
    match dtype {
        KvDtype::F32 => 0.0,
        KvDtype::F16 => 2f32.powi(-11),
        KvDtype::Bf16 | KvDtype::Int8PerTokenHead => 2f32.powi(-8),
        KvDtype::Fp8E4m3 | KvDtype::Fp8PerTokenHead => 2f32.powi(-4),
        KvDtype::Fp8E5m2 => 2f32.powi(-3),
    }
}

/// How far that takes a log-probability of these models, whose weights are large: by what was seen, and half as much
/// again.
const AMPLIFICATION: f32 = 60.0;

#[test]
fn fewer_bits_lose_no_more_than_their_rounding() {
    for name in ["llama-bias-llama3", "llama-tied-linear", "mistral-window", "qwen2-window", "qwen3-sharded"]
    {
        let exact = logprobs(name, KvDtype::F32);
        for dtype in KvDtype::ALL {
            let found = logprobs(name, dtype);
            let errors = exact.iter().zip(&found).map(|(a, b)| (a - b).abs());
            let (worst, allowed) = (errors.fold(0.0, f32::max), AMPLIFICATION * unit_roundoff(dtype));
            assert!(worst <= allowed, "{name}, {}: off by {worst}, allowed {allowed}", dtype.name());
            assert_eq!(worst > 0.0, dtype != KvDtype::F32, "{name}, {}: is it in use?", dtype.name());
        }
    }
}

#[test]
fn a_block_is_as_large_as_its_numbers_and_scales() {
    let spec = ModelSpec::from_dir(&fixture("qwen2-window")).unwrap();
    let layout = KvLayout::new(&spec, 16);
    let f32_bytes = layout.block_bytes(KvDtype::F32);
    assert_eq!(layout.block_bytes(KvDtype::Bf16) * 2, f32_bytes);
    assert_eq!(layout.block_bytes(KvDtype::Fp8E5m2) * 4, f32_bytes);
    let scales = layout.block_bytes(KvDtype::Int8PerTokenHead) - f32_bytes / 4;
    assert_eq!(scales, f32_bytes / layout.layers[0].head_dim);
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures").join(name)
}

/// All log-probabilities of a fixture's tokens.
fn logprobs(name: &str, dtype: KvDtype) -> Vec<f32> {
    let dir = fixture(name);
    let stored = safetensors::load(dir.join("expected.safetensors"), &Device::Cpu).unwrap();
    let token_ids: Vec<TokenId> =
        stored["token_ids"].to_vec1::<i64>().unwrap().into_iter().map(|id| id as TokenId).collect();
    let config = RunnerConfig {
        max_num_seqs: 3,
        max_num_batched_tokens: 7,
        max_model_len: 64,
        block_size: 4,
        num_blocks: 20,
    };
    let mut backend = CpuBackend::new(CpuOptions::default()).unwrap().with_kv_dtype(dtype);
    let spec = ModelSpec::from_dir(&dir).unwrap();
    let model = Model::load(&mut backend, spec, &Checkpoint::open(&dir).unwrap(), &mut |_| {}).unwrap();
    let mut runner = Runner::new(backend, model, config).unwrap();
    let sampling = SamplingParams {
        logprobs: Some(ALL_LOGPROBS),
        prompt_logprobs: Some(ALL_LOGPROBS),
        ..SamplingParams::default()
    };
    let mut planner = Planner::new(config.block_size, (1..20).collect());
    let mut sequences = [Sequence::new(1, 5, &token_ids, sampling)];
    let mut found = Vec::new();
    while sequences[0].computed < token_ids.len() {
        planner.begin();
        let left = token_ids.len() - sequences[0].computed;
        planner.add(&mut sequences[0], left.min(config.max_num_batched_tokens));
        let output = planner.run(&mut runner, &mut sequences);
        assert!(output.failed_rows.is_empty(), "{:?}", output.failed_rows);
        for position in &output.logprobs {
            let mut top = output.top[position.top.start as usize..position.top.end as usize].to_vec();
            top.sort_by_key(|(token, _)| *token);
            found.extend(top.into_iter().map(|(_, logprob)| logprob));
        }
    }
    found
}
