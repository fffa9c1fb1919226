//! The peak of a load is the model plus one tensor: as stored, and where it is converted, once more as converted.
#![cfg(target_os = "linux")]

use std::io::Write;
use std::path::Path;

use quire_cpu::{CpuBackend, CpuOptions};
use quire_model::{Checkpoint, Dtype, Model, ModelSpec};

const HIDDEN: usize = 512;
const INNER: usize = 4096;
const VOCAB: usize = 8192;
const LAYERS: usize = 4;
/// What a load takes besides: names, the allocator's reserves, the system's reading ahead.
const SLACK_BYTES: usize = 12 << 20;

/// Set where this program measures one load, in a process that has done nothing else.
const CASE: &str = "QUIRE_PEAK_MEMORY_OF";

#[test]
fn a_load_takes_the_model_and_one_tensor() {
    if let Ok(folder) = std::env::var(CASE) {
        return measure(Path::new(&folder));
    }
    for (stored, held) in
        [(Dtype::Bf16, "bf16"), (Dtype::Bf16, "f32"), (Dtype::F32, "bf16"), (Dtype::F32, "f32")]
    {
        let dir = std::env::temp_dir().join(format!("quire-peak-{}-{held}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        write_checkpoint(&dir, stored);
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let child = child.env(CASE, &dir).arg("--nocapture").output().unwrap();
        std::fs::remove_dir_all(dir).unwrap();
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    }
}

/// Loads the folder's model as the end of its name says.
fn measure(dir: &Path) {
    let held = if dir.to_str().unwrap().ends_with("bf16") { Dtype::Bf16 } else { Dtype::F32 };
    let spec = ModelSpec::from_json(&config(), None).unwrap();
    let file_bytes = std::fs::metadata(dir.join("model.safetensors")).unwrap().len() as usize;
    let stored_bytes = file_bytes / spec.num_parameters();
    let mut backend = CpuBackend::new(CpuOptions::default()).unwrap();
    let before = peak_bytes();
    let checkpoint = Checkpoint::open(dir).unwrap().converted_to(held);
    let model = Model::load(&mut backend, spec.clone(), &checkpoint, &mut |_| {}).unwrap();
    let taken = peak_bytes() - before;
    drop(model);
    // Gate and up of a layer are one matrix, and the largest.
    let largest = (2 * INNER * HIDDEN).max(VOCAB * HIDDEN);
    let converted_bytes = if stored_bytes == held.bytes() { 0 } else { held.bytes() };
    let (model, tensor) = (spec.num_parameters() * held.bytes(), largest * (stored_bytes + converted_bytes));
    assert!(taken >= model, "{taken} bytes, less than the model's {model}?");
    let what = format!("of {stored_bytes} bytes a number, held in {}", held.bytes());
    assert!(
        taken <= model + tensor + SLACK_BYTES,
        "{what}: {taken} bytes for a model of {model} and a tensor of {tensor}"
    );
}

fn config() -> String {
    format!(
        r#"{{"architectures":["LlamaForCausalLM"],"vocab_size":{VOCAB},"hidden_size":{HIDDEN},
            "intermediate_size":{INNER},"num_hidden_layers":{LAYERS},"num_attention_heads":8,
            "max_position_embeddings":64,"rms_norm_eps":1e-5,"rope_theta":10000.0,"tie_word_embeddings":false}}"#
    )
}

fn write_checkpoint(dir: &Path, dtype: Dtype) {
    let mut tensors: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_tokens.weight".into(), vec![VOCAB, HIDDEN]),
        ("lm_head.weight".into(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".into(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        ["q", "k", "v", "o"]
            .iter()
            .for_each(|name| add(&format!("self_attn.{name}_proj"), &[HIDDEN, HIDDEN]));
        ["gate", "up"].iter().for_each(|name| add(&format!("mlp.{name}_proj"), &[INNER, HIDDEN]));
        add("mlp.down_proj", &[HIDDEN, INNER]);
        ["input", "post_attention"].iter().for_each(|name| add(&format!("{name}_layernorm"), &[HIDDEN]));
    }
    let name = if dtype == Dtype::F32 { "F32" } else { "BF16" };
    let mut header = String::new();
    let mut end = 0;
    for (tensor, shape) in tensors {
        let begin = end;
        end += shape.iter().product::<usize>() * dtype.bytes();
        let comma = if header.is_empty() { '{' } else { ',' };
        header += &format!(
            r#"{comma}"{tensor}":{{"dtype":"{name}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
        );
    }
    header.push('}');
    let mut file = std::fs::File::create(dir.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let zeros = vec![0u8; 1 << 20];
    for at in (0..end).step_by(zeros.len()) {
        file.write_all(&zeros[..zeros.len().min(end - at)]).unwrap();
    }
}

fn peak_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}
