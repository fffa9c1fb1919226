//! Packed weights as their tools store them, with something wrong: the error names the tensor, and nothing panics.

use std::collections::BTreeMap;

use quire_model::quantization::{read_experts, read_matrix};
use quire_model::{Checkpoint, MatrixView, ModelError, Quantization, philox4x32};
use serde_json::{Value, json};

const ROWS: usize = 16;
const COLUMNS: usize = 64;

#[derive(Clone)]
struct Tensor {
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

type Tensors = BTreeMap<String, Tensor>;

fn element_bytes(dtype: &str) -> usize {
    match dtype {
        "I64" => 8,
        "I32" | "F32" => 4,
        "BF16" | "F16" => 2,
        _ => 1,
    }
}

/// A tensor of pseudo-random bytes below 60, which are small numbers in every type.
fn tensor(dtype: &'static str, shape: &[usize]) -> Tensor {
    let len = shape.iter().product::<usize>() * element_bytes(dtype);
    let bytes = (0..len as u32).map(|i| (philox4x32([i, 0, 0, 0], [7, 7])[0] % 60) as u8).collect();
    Tensor { dtype, shape: shape.to_vec(), bytes }
}

fn integers(values: impl IntoIterator<Item = i32>) -> Tensor {
    let bytes: Vec<u8> = values.into_iter().flat_map(i32::to_le_bytes).collect();
    Tensor { dtype: "I32", shape: vec![bytes.len() / 4], bytes }
}

fn text(text: &str) -> Tensor {
    Tensor { dtype: "U8", shape: vec![text.len()], bytes: text.as_bytes().to_vec() }
}

fn checkpoint(tensors: &Tensors) -> Checkpoint {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, Tensor { dtype, shape, bytes }) in tensors {
        let first = data.len();
        data.extend(bytes);
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [first, data.len()]});
        header.insert(name.clone(), entry);
    }
    let header = Value::Object(header).to_string().into_bytes();
    Checkpoint::from_bytes([&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()).unwrap()
}

/// What config.json says, and the tensors of one module, of each format.
fn formats() -> Vec<(Value, Tensors)> {
    let of = |config: Value, tensors: &[(&str, Tensor)]| {
        let named = tensors.iter().map(|(suffix, tensor)| (format!("m.{suffix}"), tensor.clone()));
        (config, named.collect())
    };
    let state = json!({
        "quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [ROWS, COLUMNS],
        "nested_blocksize": 256, "nested_offset": 0.1,
    });
    let compressed = |format: &str| json!({"quant_method": "compressed-tensors", "format": format});
    vec![
        of(
            json!({"quant_method": "gptq", "bits": 4, "group_size": 32}),
            &[
                ("qweight", tensor("I32", &[COLUMNS / 8, ROWS])),
                ("qzeros", tensor("I32", &[2, ROWS / 8])),
                ("scales", tensor("F16", &[2, ROWS])),
                ("g_idx", integers((0..COLUMNS as i32).map(|column| (column * 7) % 2))),
            ],
        ),
        of(
            json!({"quant_method": "awq", "bits": 4, "group_size": 32}),
            &[
                ("qweight", tensor("I32", &[COLUMNS, ROWS / 8])),
                ("qzeros", tensor("I32", &[2, ROWS / 8])),
                ("scales", tensor("F16", &[2, ROWS])),
            ],
        ),
        of(
            json!({"quant_method": "fp8", "weight_block_size": [8, 40]}),
            &[("weight", tensor("F8_E4M3", &[ROWS, COLUMNS])), ("weight_scale_inv", tensor("F32", &[2, 2]))],
        ),
        of(
            compressed("pack-quantized"),
            &[
                ("weight_packed", tensor("I32", &[ROWS, COLUMNS / 8])),
                ("weight_scale", tensor("BF16", &[ROWS, 2])),
                ("weight_zero_point", tensor("I32", &[ROWS / 8, 2])),
                ("weight_shape", integers([ROWS as i32, COLUMNS as i32])),
                ("weight_g_idx", integers((0..COLUMNS as i32).map(|column| column % 2))),
            ],
        ),
        of(
            compressed("int-quantized"),
            &[
                ("weight", tensor("I8", &[ROWS, COLUMNS])),
                ("weight_scale", tensor("F32", &[ROWS, 1])),
                ("weight_zero_point", tensor("I8", &[ROWS, 1])),
            ],
        ),
        of(
            compressed("nvfp4-pack-quantized"),
            &[
                ("weight_packed", tensor("U8", &[ROWS, COLUMNS / 2])),
                ("weight_scale", tensor("F8_E4M3", &[ROWS, COLUMNS / 16])),
                ("weight_global_scale", tensor("F32", &[1])),
            ],
        ),
        of(
            json!({"quant_method": "bitsandbytes", "load_in_4bit": true}),
            &[
                ("weight", tensor("U8", &[ROWS * COLUMNS / 2, 1])),
                ("weight.absmax", tensor("U8", &[ROWS * COLUMNS / 64])),
                ("weight.quant_map", tensor("F32", &[16])),
                ("weight.nested_absmax", tensor("F32", &[1])),
                ("weight.nested_quant_map", tensor("F32", &[256])),
                ("weight.quant_state.bitsandbytes__nf4", text(&state.to_string())),
            ],
        ),
        of(
            json!({"quant_method": "bitsandbytes", "load_in_8bit": true}),
            &[("weight", tensor("I8", &[ROWS, COLUMNS])), ("SCB", tensor("F32", &[ROWS]))],
        ),
    ]
}

fn read(config: &Value, tensors: &Tensors) -> Result<Vec<f32>, ModelError> {
    let quantization = Quantization::from_config(Some(config)).unwrap();
    let checkpoint = checkpoint(tensors);
    let mut used = Vec::new();
    let mut tell = |name: &str| used.push(name.to_owned());
    let matrix = read_matrix(&checkpoint, &quantization, "m", (ROWS, COLUMNS), false, &mut tell)?;
    let MatrixView::Packed(matrix) = matrix else { panic!("{config}: not packed") };
    assert_eq!((matrix.rows(), matrix.columns()), (ROWS, COLUMNS));
    Ok(matrix.dequantize())
}

/// Tensors that may be absent, each with what their absence means.
const OPTIONAL: [&str; 7] = [
    "m.g_idx",
    "m.weight_zero_point",
    "m.weight_shape",
    "m.weight_g_idx",
    "m.SCB",
    "m.weight.nested_absmax",
    "m.weight.quant_state.bitsandbytes__nf4",
];

#[test]
fn a_tensor_that_is_missing_or_of_another_shape_or_type_is_named() {
    for (config, tensors) in formats() {
        let whole = read(&config, &tensors).unwrap();
        assert_eq!(whole.len(), ROWS * COLUMNS, "{config}");
        for name in tensors.keys() {
            let complains = |changed: &Tensors, what: &str| {
                let error =
                    read(&config, changed).expect_err(&format!("{config}, {name} {what}")).to_string();
                // A wrong tensor may be found by another that it should agree with.
                assert!(error.contains("m."), "{config}, {name} {what}: {error}");
            };
            let mut changed = tensors.clone();
            changed.remove(name);
            // One that says what kind of module it is makes another kind of it; that one is not there either.
            if !OPTIONAL.contains(&name.as_str()) && name != "m.qweight" && name != "m.weight_packed" {
                complains(&changed, "missing");
            }
            for dimension in 0..tensors[name].shape.len() {
                for size in [0, 1, 3, tensors[name].shape[dimension] + 1] {
                    let mut shape = tensors[name].shape.clone();
                    let is_scalar = shape.iter().product::<usize>() == 1
                        || size == 1 && (name.ends_with("scale") || name.ends_with("zero_point"));
                    if shape[dimension] == size || is_scalar || name.ends_with("nf4") {
                        continue;
                    }
                    shape[dimension] = size;
                    let mut changed = tensors.clone();
                    changed.insert(name.clone(), tensor(tensors[name].dtype, &shape));
                    complains(&changed, &format!("of shape {shape:?}"));
                }
            }
            let mut changed = tensors.clone();
            let shape = &tensors[name].shape;
            changed.insert(name.clone(), tensor("BOOL", shape));
            if name != "m.weight" && !name.ends_with("weight_packed") {
                complains(&changed, "of another type");
            }
        }
    }
}

#[test]
fn groups_that_do_not_exist_are_refused() {
    let formats = formats();
    for (name, format) in [("m.g_idx", 0), ("m.weight_g_idx", 3)] {
        for group in [2, -2, i32::MAX, i32::MIN] {
            let (config, mut tensors) = formats[format].clone();
            tensors.insert(
                name.into(),
                integers((0..COLUMNS).map(|column| if column == 5 { group } else { 0 })),
            );
            let error = read(&config, &tensors).unwrap_err().to_string();
            assert!(error.contains("\"m."), "{name}: {error}");
        }
    }
}

#[test]
fn a_quant_state_that_lies_is_refused() {
    let (config, tensors) = formats().swap_remove(6);
    for state in [
        "",
        "{",
        "[]",
        "\u{0}",
        r#"{"quant_type": "nf4"}"#,
        r#"{"quant_type": "nf4", "blocksize": 0, "shape": [16, 64]}"#,
        r#"{"quant_type": "nf4", "blocksize": -64, "shape": [16, 64]}"#,
        r#"{"quant_type": "nf4", "blocksize": 18446744073709551615, "shape": [16, 64]}"#,
        r#"{"quant_type": "nf4", "blocksize": 64, "shape": [64, 16]}"#,
        r#"{"quant_type": "int3", "blocksize": 64, "shape": [16, 64]}"#,
        r#"{"quant_type": "nf4", "blocksize": 64, "shape": [16, 64], "nested_blocksize": 0}"#,
    ] {
        let mut changed = tensors.clone();
        changed.insert("m.weight.quant_state.bitsandbytes__nf4".into(), text(state));
        let error = read(&config, &changed).expect_err(state).to_string();
        assert!(error.contains("\"m.weight."), "{state}: {error}");
    }
}

#[test]
fn experts_of_gpt_oss_must_be_whole() {
    let tensors: Tensors =
        [("e_blocks", tensor("U8", &[3, ROWS, 2, 16])), ("e_scales", tensor("U8", &[3, ROWS, 2]))]
            .map(|(name, tensor)| (name.to_owned(), tensor))
            .into();
    let read = |tensors: &Tensors| {
        let checkpoint = checkpoint(tensors);
        read_experts(&checkpoint, "e", 3, (ROWS, COLUMNS), &mut |_| ())
    };
    assert_eq!(read(&tensors).unwrap().unwrap().rows(), 3 * ROWS);
    for (name, wrong) in [
        ("e_blocks", tensor("U8", &[3, ROWS, 2, 15])),
        ("e_blocks", tensor("I32", &[3, ROWS, 2, 16])),
        ("e_scales", tensor("U8", &[3, ROWS])),
        ("e_scales", tensor("F32", &[3, ROWS, 2])),
    ] {
        let mut changed = tensors.clone();
        changed.insert(name.into(), wrong);
        assert!(read(&changed).unwrap_err().to_string().contains(name));
    }
    let mut changed = tensors.clone();
    changed.remove("e_scales");
    assert!(read(&changed).unwrap_err().to_string().contains("e_scales"));
    changed.remove("e_blocks");
    assert!(read(&changed).unwrap().is_none());
}

#[test]
fn what_is_not_supported_is_refused_with_what_is() {
    for (config, word) in [
        (json!({"quant_method": "hqq"}), "hqq"),
        (json!({"quant_method": 4}), "quant_method"),
        (json!({}), "quant_method"),
        (json!({"quant_method": "gptq", "bits": 5}), "bits"),
        (json!({"quant_method": "gptq", "bits": 4, "group_size": 0}), "group_size"),
        (json!({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}), "marlin"),
        (json!({"quant_method": "awq", "bits": 4, "version": "gemv"}), "gemv"),
        (json!({"quant_method": "fp8", "fmt": "e5m2"}), "e5m2"),
        (json!({"quant_method": "fp8", "weight_block_size": [128]}), "weight_block_size"),
        (json!({"quant_method": "fp8", "weight_block_size": [0, 128]}), "weight_block_size"),
        (json!({"quant_method": "modelopt", "quant_algo": "NVFP4"}), "NVFP4"),
        (json!({"quant_method": "compressed-tensors", "format": "marlin-24"}), "marlin-24"),
        (
            json!({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}}),
            "24",
        ),
    ] {
        let error = Quantization::from_config(Some(&config)).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("quantization_config"), "{config}: {error}");
    }
    let gptq = Quantization::from_config(Some(&json!({"quant_method": "gptq", "bits": 4}))).unwrap();
    assert_eq!(gptq.clone().asked_for("gptq_marlin").unwrap(), gptq);
    for (stored, flag, word) in [(gptq, "int8", "gptq"), (Quantization::None, "awq", "int8, fp8, nf4")] {
        let error = stored.asked_for(flag).unwrap_err().to_string();
        assert!(error.contains("--quantization") && error.contains(word), "{error}");
    }
}
