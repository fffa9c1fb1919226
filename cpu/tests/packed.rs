//! Products by packed weights: bit for bit those by the dequantised matrix, for every format, on every
//! instruction set, for any number of rows; and so are rows of packed embeddings.

mod support;

use quire_cpu::{CpuBackend, CpuOptions, Isa};
use quire_model::ggml::{self, GgmlType};
use quire_model::quantization::{
    AtLoad, DECODE_ALIGNMENT, GgmlRows, PackedRows, quantize, read_experts, read_matrix,
};
use quire_model::{Backend, Dtype, MatrixView, PackedMatrix, Quantization, TensorData, TensorView};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use support::safetensors::Tensors;

/// How weights are stored: the names of formats that [`random_matrix`] makes.
const FORMATS: &[&str] = &[
    "gptq 4",
    "gptq 8",
    "gptq 3",
    "gptq 2",
    "gptq act-order",
    "awq",
    "fp8 tensor",
    "fp8 rows",
    "fp8 blocks",
    "pack 4",
    "pack 8",
    "pack asymmetric",
    "int8 rows",
    "int8 groups",
    "mxfp4",
    "nvfp4",
    "mxfp4 experts",
    "nf4",
    "nf4 nested",
    "bnb int8",
    "load int8",
    "load fp8",
    "load nf4",
    "load q8_0",
    "load q4_k",
];

/// A matrix of random contents in that format, read from a checkpoint as any other.
fn random_matrix(rng: &mut StdRng, format: &str) -> PackedMatrix {
    let mut tensors = Tensors::default();
    let rows = rng.random_range(1..10usize) * 8;
    let group = [32, 64, 128][rng.random_range(0..3)];
    let columns = group * rng.random_range(1..5usize);
    let groups = columns / group;
    let (method, config) = format.split_once(' ').unwrap_or((format, ""));
    if method == "mxfp4" && config == "experts" {
        tensors.bytes(rng, "m_blocks", "U8", &[3, rows, columns / 32, 16]);
        tensors.exponents(rng, "m_scales", &[3, rows, columns / 32]);
        return read_experts(&tensors.checkpoint(), "m", 3, (rows, columns), &mut |_| ()).unwrap().unwrap();
    }
    let json = match method {
        "gptq" => {
            let bits = config.parse().unwrap_or(4usize);
            tensors.bytes(rng, "m.qweight", "I32", &[columns * bits / 32, rows]);
            tensors.bytes(rng, "m.qzeros", "I32", &[groups, (rows * bits).div_ceil(32)]);
            tensors.floats(rng, "m.scales", "F16", &[groups, rows]);
            let index = (0..columns).map(|_| rng.random_range(0..groups) as i32);
            if config == "act-order" {
                tensors.add("m.g_idx", "I32", &[columns], index.flat_map(i32::to_le_bytes).collect());
            }
            json!({"quant_method": "gptq", "bits": bits, "group_size": group})
        }
        "awq" => {
            tensors.bytes(rng, "m.qweight", "I32", &[columns, rows / 8]);
            tensors.bytes(rng, "m.qzeros", "I32", &[groups, rows / 8]);
            tensors.floats(rng, "m.scales", "F16", &[groups, rows]);
            json!({"quant_method": "awq", "bits": 4, "group_size": group})
        }
        "fp8" => {
            tensors.finite_e4m3(rng, "m.weight", &[rows, columns]);
            let (name, shape) = match config {
                "tensor" => ("m.weight_scale", vec![]),
                "rows" => ("m.weight_scale", vec![rows, 1]),
                _ => ("m.weight_scale_inv", vec![rows.div_ceil(24), columns.div_ceil(40)]),
            };
            let dtype = ["F32", "BF16"][rng.random_range(0..2)];
            tensors.floats(rng, name, dtype, &shape);
            json!({"quant_method": "fp8", "weight_block_size": (config == "blocks").then_some([24, 40])})
        }
        "pack" => {
            let bits = config.parse().unwrap_or(4usize);
            tensors.bytes(rng, "m.weight_packed", "I32", &[rows, columns * bits / 32]);
            tensors.floats(rng, "m.weight_scale", "BF16", &[rows, groups]);
            if config == "asymmetric" {
                tensors.bytes(rng, "m.weight_zero_point", "I32", &[(rows * bits).div_ceil(32), groups]);
            }
            json!({"quant_method": "compressed-tensors", "format": "pack-quantized"})
        }
        "int8" => {
            let groups = if config == "rows" { 1 } else { groups };
            tensors.bytes(rng, "m.weight", "I8", &[rows, columns]);
            tensors.floats(rng, "m.weight_scale", "F32", &[rows, groups]);
            tensors.bytes(rng, "m.weight_zero_point", "I8", &[rows, groups]);
            json!({"quant_method": "compressed-tensors", "format": "int-quantized"})
        }
        "mxfp4" => {
            tensors.bytes(rng, "m.weight_packed", "U8", &[rows, columns / 2]);
            tensors.exponents(rng, "m.weight_scale", &[rows, columns / 32]);
            json!({"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"})
        }
        "nvfp4" => {
            tensors.bytes(rng, "m.weight_packed", "U8", &[rows, columns / 2]);
            tensors.finite_e4m3(rng, "m.weight_scale", &[rows, columns / 16]);
            tensors.floats(rng, "m.weight_global_scale", "F32", &[1]);
            json!({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"})
        }
        "bnb" => {
            tensors.bytes(rng, "m.weight", "I8", &[rows, columns]);
            tensors.floats(rng, "m.SCB", "F32", &[rows]);
            json!({"quant_method": "bitsandbytes"})
        }
        "nf4" => {
            tensors.nf4(rng, "m", [rows, columns], config == "nested");
            json!({"quant_method": "bitsandbytes"})
        }
        _ => {
            let dtype = ["F32", "BF16", "F16"][rng.random_range(0..3)];
            tensors.floats(rng, "m.weight", dtype, &[rows, columns]);
            json!(null)
        }
    };
    let mut quantization = Quantization::from_config(Some(&json)).unwrap();
    if method == "load" {
        quantization = quantization.asked_for(config).unwrap();
    }
    let checkpoint = tensors.checkpoint();
    match read_matrix(&checkpoint, &quantization, "m", (rows, columns), false, &mut |_| ()).unwrap() {
        MatrixView::Packed(matrix) => matrix,
        MatrixView::Plain(_) => panic!("{format} is not packed"),
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn as_tensor(matrix: &PackedMatrix) -> TensorView<'static> {
    let bytes: Vec<u8> = matrix.dequantize().iter().flat_map(|value| value.to_le_bytes()).collect();
    let shape = vec![matrix.rows(), matrix.columns()];
    TensorView { dtype: Dtype::F32, shape, data: TensorData::Stored(bytes.into()) }
}

#[test]
fn products_by_packed_weights_are_bit_for_bit_those_by_the_dequantised_matrix() {
    for isa in Isa::available() {
        for seed in 0..4 {
            let mut rng = StdRng::seed_from_u64(seed);
            let rng = &mut rng;
            let mut backend = CpuBackend::new(CpuOptions { num_threads: Some(2), isa: Some(isa) }).unwrap();
            for format in FORMATS {
                let matrix = random_matrix(rng, format);
                let what =
                    format!("{format}, {isa:?}, seed {seed}, {} x {}", matrix.rows(), matrix.columns());
                let (n, k) = (matrix.rows(), matrix.columns());
                let plain = backend.load(&[as_tensor(&matrix)]).unwrap();
                let packed = backend.load_packed(matrix).unwrap();
                for rows in [1, 2, 3, rng.random_range(4..30)] {
                    let x: Vec<f32> = (0..rows * k).map(|_| rng.random_range(-1.0..1.0)).collect();
                    let (mut found, mut expected) = (vec![f32::NAN; rows * n], vec![0.0; rows * n]);
                    backend.linear(rows, &x, &packed, None, &mut found).unwrap();
                    backend.linear(rows, &x, &plain, None, &mut expected).unwrap();
                    assert!(expected.iter().all(|value| value.is_finite()), "{what}");
                    assert_eq!(bits(&found), bits(&expected), "{what}, {rows} rows");
                }
            }
        }
    }
}

/// Those of [`FORMATS`] that stay f32 under 8-bit activations.
const NO_INTEGERS: &[&str] = &[
    "fp8 tensor",
    "fp8 rows",
    "fp8 blocks",
    "mxfp4",
    "nvfp4",
    "mxfp4 experts",
    "nf4",
    "nf4 nested",
    "load fp8",
    "load nf4",
];

/// Those that are integers if there is one group in a row, or if blocks of 256 do not divide it.
const SOMETIMES_INTEGERS: &[&str] = &["gptq act-order", "load q4_k"];

fn int8_backend(isa: Isa) -> CpuBackend {
    let options = CpuOptions { num_threads: Some(2), isa: Some(isa) };
    CpuBackend::new(options).unwrap().with_int8_activations(true)
}

/// Of each format, some with rows that are no whole panels; and integers of any number of columns, GGUF's blocks.
fn integer_matrices(rng: &mut StdRng) -> Vec<(String, PackedMatrix)> {
    let mut found = Vec::new();
    for format in FORMATS {
        let matrix = random_matrix(rng, format);
        let rows: Vec<usize> = (0..rng.random_range(1..150)).map(|row| row % matrix.rows()).collect();
        found.push((format.to_string(), matrix.select_rows(&rows)));
    }
    let mut values = |rows: usize, columns: usize| {
        let bytes = (0..rows * columns)
            .flat_map(|_| rng.random_range(-1.0f32..1.0).to_le_bytes())
            .collect::<Vec<_>>();
        TensorView { dtype: Dtype::F32, shape: vec![rows, columns], data: TensorData::Stored(bytes.into()) }
    };
    for (rows, columns) in [(1, 1), (17, 31), (33, 33), (50, 95), (65, 300)] {
        let matrix = quantize(&values(rows, columns), AtLoad::Int8).unwrap().unwrap();
        found.push((format!("int8 of {columns} columns"), matrix));
    }
    for kind in [GgmlType::Q4_0, GgmlType::Q5_0, GgmlType::Q8_0] {
        let values: Vec<f32> = (0..37 * 160).map(|_| rng.random_range(-1.0..1.0)).collect();
        let bytes = ggml::quantize(&values, 160, kind).unwrap();
        let rows = PackedRows::Ggml(GgmlRows::new(kind, 160, bytes).unwrap());
        found.push((kind.name().into(), rows.into()));
    }
    let stacked = found[found.len() - 3..].iter().map(|(_, matrix)| matrix.clone()).collect();
    found.push(("blocks of several types".into(), PackedMatrix::stack(stacked)));
    found
}

/// What 8-bit activations are: multiples of a 127th of the greatest of 32.
fn rounded_row(x: &[f32]) -> Vec<f64> {
    let block = |block: &[f32]| {
        let greatest = block.iter().fold(0.0f32, |greatest, x| greatest.max(x.abs())).max(1e-30);
        let round = |x: &f32| (x * (127.0 / greatest)).round_ties_even();
        block.iter().map(|x| f64::from(round(x)) * f64::from(greatest / 127.0)).collect::<Vec<_>>()
    };
    x.chunks(32).flat_map(block).collect()
}

#[test]
fn products_of_integers_are_those_of_rounded_activations() {
    for isa in Isa::available() {
        for seed in 0..4 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut backend = int8_backend(isa);
            for (format, matrix) in integer_matrices(&mut rng) {
                let (n, k) = (matrix.rows(), matrix.columns());
                let what = format!("{format}, {isa:?}, seed {seed}, {n} x {k}");
                let weights = matrix.dequantize();
                let exact = matrix.integer_form().is_none();
                assert!(
                    exact == NO_INTEGERS.contains(&&*format) || SOMETIMES_INTEGERS.contains(&&*format),
                    "{what}"
                );
                let weight = backend.load_packed(matrix).unwrap();
                let bias: Vec<f32> = (0..n).map(|_| rng.random_range(-1.0..1.0)).collect();
                let bias_weight = backend.load_table(&bias, n).unwrap();
                let rows = rng.random_range(1..20);
                let mut x: Vec<f32> = (0..rows * k).map(|_| rng.random_range(-1.0..1.0)).collect();
                x[..k.min(40)].fill(0.0);
                let mut found = vec![f32::NAN; rows * n];
                backend.linear(rows, &x, &weight, Some(&bias_weight), &mut found).unwrap();
                for (x, found) in x.chunks_exact(k).zip(found.chunks_exact(n)) {
                    let x: Vec<f64> =
                        if exact { x.iter().map(|x| f64::from(*x)).collect() } else { rounded_row(x) };
                    for ((w, bias), found) in weights.chunks_exact(k).zip(&bias).zip(found) {
                        let products = || w.iter().zip(&x).map(|(w, x)| f64::from(*w) * x);
                        let size: f64 = 1.0 + products().map(f64::abs).sum::<f64>();
                        let error = (products().sum::<f64>() + f64::from(*bias) - f64::from(*found)).abs();
                        assert!(error < 2e-5 * size, "{what}: {found} is off by {error} of {size}");
                    }
                }
            }
        }
    }
}

#[test]
fn products_of_integers_are_the_same_bits_on_every_instruction_set_for_any_number_of_rows() {
    for seed in 0..3 {
        let matrices = integer_matrices(&mut StdRng::seed_from_u64(seed));
        for (format, matrix) in matrices {
            let (n, k) = (matrix.rows(), matrix.columns());
            let mut rng = StdRng::seed_from_u64(seed);
            let x: Vec<f32> = (0..300 * k).map(|_| rng.random_range(-1.0..1.0)).collect();
            let mut expected: Option<Vec<u32>> = None;
            for isa in Isa::available() {
                let mut backend = int8_backend(isa);
                let weight = backend.load_packed(matrix.clone()).unwrap();
                for rows in [300, 1, 2, 3, 4, 7, 8, 15, 32, 40] {
                    let mut found = vec![f32::NAN; rows * n];
                    backend.linear(rows, &x, &weight, None, &mut found).unwrap();
                    let expected = expected.get_or_insert_with(|| bits(&found));
                    let what = format!("{format}, {isa:?}, {rows} rows, seed {seed}, {n} x {k}");
                    assert_eq!(bits(&found), expected[..rows * n], "{what}");
                }
            }
        }
    }
}

#[test]
fn activations_that_are_not_finite_give_no_finite_product() {
    for isa in Isa::available() {
        let mut backend = int8_backend(isa);
        let matrix = random_matrix(&mut StdRng::seed_from_u64(1), "int8 rows");
        let (n, k) = (matrix.rows(), matrix.columns());
        let weight = backend.load_packed(matrix).unwrap();
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![1.0; k];
            x[k / 2] = value;
            let mut found = vec![0.0; n];
            backend.linear(1, &x, &weight, None, &mut found).unwrap();
            assert!(found.iter().all(|found| !found.is_finite()), "{isa:?}, {value}: {found:?}");
        }
    }
}

#[test]
fn rows_of_integer_embeddings_are_those_of_the_dequantised_matrix() {
    let mut backend = int8_backend(Isa::available()[0]);
    for (format, matrix) in integer_matrices(&mut StdRng::seed_from_u64(3)) {
        let (all, columns) = (matrix.dequantize(), matrix.columns());
        let weight = backend.load_packed(matrix).unwrap();
        for (row, expected) in all.chunks_exact(columns).enumerate() {
            let mut found = vec![f32::NAN; columns];
            weight.read_row(row, &mut found);
            let greatest = expected.iter().fold(1e-6f32, |greatest, weight| greatest.max(weight.abs()));
            let near = found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-5 * greatest);
            assert!(near, "{format}, row {row}");
        }
    }
}

#[test]
fn rows_and_parts_of_rows_are_what_they_are_wherever_they_stand() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let rng = &mut rng;
        for format in FORMATS {
            let matrix = random_matrix(rng, format);
            let (all, columns) = (matrix.dequantize(), matrix.columns());
            let row_of = |row: usize| &all[row * columns..(row + 1) * columns];
            let first = rng.random_range(0..=columns / DECODE_ALIGNMENT) * DECODE_ALIGNMENT;
            let last = columns.min(first + DECODE_ALIGNMENT);
            let mut part = vec![0.0; last - first];
            matrix.decode_row(matrix.rows() - 1, first..last, &mut part);
            assert_eq!(bits(&part), bits(&row_of(matrix.rows() - 1)[first..last]), "{format}, seed {seed}");

            let rows: Vec<usize> = (0..10).map(|_| rng.random_range(0..matrix.rows())).collect();
            let selected = matrix.select_rows(&rows);
            let expected: Vec<f32> = rows.iter().flat_map(|row| row_of(*row)).copied().collect();
            assert_eq!(bits(&selected.dequantize()), bits(&expected), "{format}, seed {seed}");

            // Of several forms one below the other, and of these again some rows.
            let mut other = MatrixView::Plain(as_tensor(&selected)).into_packed();
            other = PackedMatrix::stack(vec![matrix.clone(), other, matrix.clone()]);
            assert_eq!(other.rows(), 2 * matrix.rows() + 10);
            let stacked = [&all[..], &expected, &all].concat();
            assert_eq!(bits(&other.dequantize()), bits(&stacked), "{format}, seed {seed}");
            let rows: Vec<usize> = (0..30).map(|_| rng.random_range(0..other.rows())).collect();
            let expected: Vec<f32> =
                rows.iter().flat_map(|row| &stacked[row * columns..(row + 1) * columns]).copied().collect();
            assert_eq!(
                bits(&other.select_rows(&rows).dequantize()),
                bits(&expected),
                "{format}, seed {seed}"
            );
        }
    }
}
