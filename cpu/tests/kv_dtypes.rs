//! What is lost by keeping keys and values in fewer bits: no more than rounding each of them once.

mod support;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor, safetensors};
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

/// Keys and values that are larger or smaller by powers of two, and queries and outputs that make up for it, are the
/// same model. FP8 could not hold them without the scales that say so.
#[test]
fn scales_of_a_checkpoint_bring_keys_and_values_into_range() {
    for (name, key, value) in [("llama-bias-llama3", 18, 17), ("mistral-window", -19, 18), ("phi4", 18, -20)]
    {
        for dtype in [KvDtype::F32, KvDtype::Fp8E4m3, KvDtype::Fp8E5m2] {
            let dir = fixture(name);
            let plain = logprobs(name, dtype);
            for (scaled, same) in [(true, true), (false, dtype == KvDtype::F32)] {
                let checkpoint = with_larger_kv(&dir, [key, value].map(|power| 2f64.powi(power)), scaled);
                let found = logprobs_of(&dir, &checkpoint, dtype);
                assert_eq!(found == plain, same, "{name}, {}, with scales: {scaled}", dtype.name());
            }
        }
    }
}

/// Also where weights are quantised, of which scales of outputs say nothing elsewhere.
#[test]
fn scales_are_found_by_every_name_that_checkpoints_have() {
    const NAMES: [[&str; 2]; 6] = [
        ["k_scale", "v_scale"],
        ["attn.k_scale", "attn.v_scale"],
        ["k_proj.k_scale", "v_proj.v_scale"],
        ["k_proj.output_scale", "v_proj.output_scale"],
        ["qkv_proj.k_scale", "qkv_proj.v_scale"],
        ["kv_scale", "kv_scale"],
    ];
    for name in ["llama-bias-llama3", "gptq-int8-rows"] {
        let dir = fixture(name);
        let tensors = safetensors::load(dir.join("model.safetensors"), &Device::Cpu).unwrap();
        let layers = ModelSpec::from_dir(&dir).unwrap().layers.len();
        let found = NAMES.map(|names| {
            let mut tensors = tensors.clone();
            for (layer, name) in (0..layers).flat_map(|layer| names.map(|name| (layer, name))) {
                let scale = Tensor::new(3.0f32, &Device::Cpu).unwrap();
                tensors.insert(format!("model.layers.{layer}.self_attn.{name}"), scale);
            }
            logprobs_of(&dir, &checkpoint_of(&tensors), KvDtype::Fp8E4m3)
        });
        let without = logprobs(name, KvDtype::Fp8E4m3);
        for (found_by, names) in found.iter().zip(NAMES) {
            assert!(*found_by == found[0] && *found_by != without, "{name}: {names:?}");
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

/// The fixture's weights with keys and values times `factors`, which nothing else shows; with the scales that a
/// checkpoint would have for FP8, or without.
fn with_larger_kv(dir: &Path, [key, value]: [f64; 2], scaled: bool) -> Checkpoint {
    let mut tensors = safetensors::load(dir.join("model.safetensors"), &Device::Cpu).unwrap();
    let spec = ModelSpec::from_dir(dir).unwrap();
    for (index, layer) in spec.layers.iter().enumerate() {
        let attention = format!("model.layers.{index}.self_attn");
        let [q_rows, kv_rows] = [layer.attention.num_heads, layer.attention.num_kv_heads]
            .map(|heads| heads * layer.attention.head_dim);
        for kind in ["weight", "bias"] {
            for (part, factor) in [("q", 1.0 / key), ("k", key), ("v", value)] {
                if let Some(tensor) = tensors.get_mut(&format!("{attention}.{part}_proj.{kind}")) {
                    *tensor = (&*tensor * factor).unwrap();
                }
            }
            if let Some(tensor) = tensors.get_mut(&format!("{attention}.qkv_proj.{kind}")) {
                let part = |at, len, factor: f64| (tensor.narrow(0, at, len).unwrap() * factor).unwrap();
                let (q, k) = (part(0, q_rows, 1.0 / key), part(q_rows, kv_rows, key));
                *tensor = Tensor::cat(&[q, k, part(q_rows + kv_rows, kv_rows, value)], 0).unwrap();
            }
        }
        let output = tensors.get_mut(&format!("{attention}.o_proj.weight")).unwrap();
        *output = (&*output / value).unwrap();
        for (name, scale) in [("k_scale", key), ("v_scale", value)] {
            if scaled {
                let scale = Tensor::new(scale as f32, &Device::Cpu).unwrap();
                tensors.insert(format!("{attention}.{name}"), scale);
            }
        }
    }
    checkpoint_of(&tensors)
}

fn checkpoint_of(tensors: &HashMap<String, Tensor>) -> Checkpoint {
    let name = format!("quire-kv-scales-{}-{:?}", std::process::id(), std::thread::current().id());
    let file = std::env::temp_dir().join(name);
    safetensors::save(tensors, &file).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    std::fs::remove_file(file).unwrap();
    Checkpoint::from_bytes(bytes).unwrap()
}

/// All log-probabilities of a fixture's tokens.
fn logprobs(name: &str, dtype: KvDtype) -> Vec<f32> {
    let dir = fixture(name);
    logprobs_of(&dir, &Checkpoint::open(&dir).unwrap(), dtype)
}

/// The same with other weights.
fn logprobs_of(dir: &Path, checkpoint: &Checkpoint, dtype: KvDtype) -> Vec<f32> {
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
    let spec = ModelSpec::from_dir(dir).unwrap();
    let model = Model::load(&mut backend, spec, checkpoint, &mut |_| {}).unwrap();
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
