//! Weights that do not fit are refused when they are loaded, by name.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, safetensors};
use quire_cpu::{CpuBackend, CpuOptions};
use quire_model::{Checkpoint, Dtype, Model, ModelError, ModelSpec, Progress, Runner, RunnerConfig};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures").join(name)
}

fn load(spec: ModelSpec, checkpoint: &Checkpoint) -> Result<Model<CpuBackend>, ModelError> {
    let mut backend = CpuBackend::new(CpuOptions { num_threads: Some(1), isa: None }).unwrap();
    Model::load(&mut backend, spec, checkpoint, &mut |_| {})
}

/// Loads the fixture after `change` to its tensors.
fn load_changed(change: impl FnOnce(&mut HashMap<String, Tensor>)) -> Result<Model<CpuBackend>, ModelError> {
    let dir = fixture("llama-tied-linear");
    let mut tensors = safetensors::load(dir.join("model.safetensors"), &Device::Cpu).unwrap();
    change(&mut tensors);
    let scratch = tempfile(&format!("{:?}", std::thread::current().id()));
    safetensors::save(&tensors, scratch.join("model.safetensors")).unwrap();
    let result = load(ModelSpec::from_dir(&dir).unwrap(), &Checkpoint::open(&scratch).unwrap());
    std::fs::remove_dir_all(scratch).unwrap();
    result
}

/// A directory of its own.
fn tempfile(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("quire-checkpoint-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn zeros(shape: &[usize], dtype: DType) -> Tensor {
    Tensor::zeros(shape, dtype, &Device::Cpu).unwrap()
}

#[test]
fn a_tensor_that_is_missing_unknown_or_misshapen_is_named() {
    let norm = "model.layers.1.input_layernorm.weight";
    assert!(load_changed(|_| ()).is_ok());
    let missing = load_changed(|tensors| drop(tensors.remove(norm)));
    assert!(matches!(missing, Err(ModelError::MissingTensor { name }) if name == norm));
    let unknown = load_changed(|tensors| {
        tensors.insert("model.layers.0.self_attn.q_proj.bias".into(), zeros(&[24], DType::F32));
    });
    assert!(
        matches!(unknown, Err(ModelError::UnmappedTensors { count: 1, example }) if example.contains("q_proj.bias"))
    );
    let misshapen = load_changed(|tensors| drop(tensors.insert(norm.into(), zeros(&[25], DType::BF16))));
    assert!(matches!(misshapen, Err(ModelError::Shape { name, found, .. }) if name == norm && found == [25]));
    let integers = load_changed(|tensors| drop(tensors.insert(norm.into(), zeros(&[24], DType::I64))));
    assert!(
        matches!(integers, Err(ModelError::TensorDtype { name, found }) if name == norm && found == "I64")
    );
}

/// Each row of a fused projection is read in its own type (the numbers: `packed.rs`).
#[test]
fn stacked_matrices_need_not_be_of_one_type() {
    let mixed = load_changed(|tensors| {
        tensors.insert("model.layers.0.mlp.up_proj.weight".into(), zeros(&[34, 24], DType::F32));
    });
    assert!(mixed.is_ok());
}

#[test]
fn copies_of_what_follows_from_the_rest_are_accepted() {
    let loaded = load_changed(|tensors| {
        let embedding = tensors["model.embed_tokens.weight"].copy().unwrap();
        tensors.insert("lm_head.weight".into(), embedding);
        tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), zeros(&[3], DType::F32));
    });
    assert!(loaded.is_ok());
}

#[test]
fn damaged_and_absent_files_are_told_apart() {
    let dir = tempfile("damaged");
    assert!(matches!(Checkpoint::open(&dir), Err(ModelError::NoWeights { dir: named, .. }) if named == dir));
    let index = |file: &str| format!(r#"{{"weight_map": {{"a": "{file}"}}}}"#);
    for text in ["{".to_string(), "{}".into(), index("../outside.safetensors"), index("/etc/passwd")] {
        std::fs::write(dir.join("model.safetensors.index.json"), text).unwrap();
        assert!(matches!(Checkpoint::open(&dir), Err(ModelError::Malformed { .. })));
    }
    std::fs::write(dir.join("model.safetensors.index.json"), index("gone.safetensors")).unwrap();
    assert!(
        matches!(Checkpoint::open(&dir), Err(ModelError::Malformed { reason, .. }) if reason.contains("gone.safetensors"))
    );
    std::fs::write(dir.join("model.safetensors"), b"not a safetensors file").unwrap();
    assert!(matches!(Checkpoint::open(&dir), Err(ModelError::Malformed { .. })));
    std::fs::remove_dir_all(dir).unwrap();
    assert!(matches!(Checkpoint::from_bytes(&b"short"[..]), Err(ModelError::Malformed { .. })));
}

#[test]
fn the_number_of_parameters_is_that_of_the_stored_elements() {
    for name in ["llama-bias-llama3", "llama-tied-linear", "mistral-window", "qwen2-window"] {
        let tensors = safetensors::load(fixture(name).join("model.safetensors"), &Device::Cpu).unwrap();
        let stored: usize = tensors.values().map(Tensor::elem_count).sum();
        assert_eq!(ModelSpec::from_dir(&fixture(name)).unwrap().num_parameters(), stored, "{name}");
    }
}

#[test]
fn a_file_in_memory_is_as_good_as_one_on_disk() {
    let dir = fixture("mistral-window");
    let bytes: &'static [u8] = std::fs::read(dir.join("model.safetensors")).unwrap().leak();
    let (mapped, memory) = (Checkpoint::open(&dir).unwrap(), Checkpoint::from_bytes(bytes).unwrap());
    assert_eq!(mapped.names(), memory.names());
    for name in mapped.names() {
        let shape = safetensors::load_buffer(bytes, &Device::Cpu).unwrap()[&name].dims().to_vec();
        assert_eq!(
            mapped.tensor(&name, &shape).unwrap().bytes(),
            memory.tensor(&name, &shape).unwrap().bytes()
        );
    }
}

#[test]
fn dummy_weights_depend_on_names_and_loading_reports_progress() {
    let spec = ModelSpec::from_dir(&fixture("qwen3-sharded")).unwrap();
    let dummy = Checkpoint::dummy(Dtype::F32);
    let values = |name: &str| dummy.tensor(name, &[1000]).unwrap().bytes().into_owned();
    assert_eq!(values("a.weight"), values("a.weight"));
    assert_ne!(values("a.weight"), values("b.weight"));

    let mut backend = CpuBackend::new(CpuOptions { num_threads: Some(1), isa: None }).unwrap();
    let mut seen: Vec<Progress> = Vec::new();
    let report = &mut |progress| seen.push(progress);
    Model::load(&mut backend, spec, &Checkpoint::dummy(Dtype::Bf16), report).unwrap();
    assert_eq!(seen.iter().map(|p| p.layers).collect::<Vec<_>>(), [1, 2]);
    assert!(seen[0].loaded_bytes < seen[1].loaded_bytes);
}

#[test]
fn sizes_that_contradict_the_model_are_refused() {
    let good = RunnerConfig {
        max_num_seqs: 2,
        max_num_batched_tokens: 8,
        max_model_len: 96,
        block_size: 4,
        num_blocks: 9,
    };
    let cases = [
        (RunnerConfig { max_num_seqs: 0, ..good }, "max_num_seqs"),
        (RunnerConfig { max_num_batched_tokens: 0, ..good }, "max_num_batched_tokens"),
        (RunnerConfig { max_model_len: 97, ..good }, "max_model_len"),
        (RunnerConfig { block_size: 0, ..good }, "block_size"),
        (RunnerConfig { num_blocks: 1, ..good }, "num_blocks"),
    ];
    let runner = |config| -> Result<Runner<CpuBackend>, ModelError> {
        let dir: &Path = &fixture("qwen2-window");
        let model = load(ModelSpec::from_dir(dir)?, &Checkpoint::open(dir)?)?;
        Runner::new(CpuBackend::new(CpuOptions { num_threads: Some(1), isa: None })?, model, config)
    };
    assert!(runner(good).is_ok());
    for (config, named) in cases {
        assert!(matches!(runner(config), Err(ModelError::Limit { field, .. }) if field == named), "{named}");
    }
}
