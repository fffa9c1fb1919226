//! Kernels that no operation of the trait shows whole: dummy weights bit for bit, LayerNorm against f64, copies of
//! blocks of the KV cache.

mod support;

use std::sync::Arc;

use half::{bf16, f16};
use quire_cuda::Kernels;
use quire_cuda::driver::{Context, DeviceMemory, Stream};
use quire_model::{DUMMY_HALF_WIDTH, Dtype, DummyTensor};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use support::{DTYPES, round, to_bytes, unit_roundoff};

struct Device {
    context: Arc<Context>,
    stream: Stream,
    kernels: Kernels,
}

impl Device {
    fn open() -> Self {
        quire_cuda::emulator::use_stand_in();
        let context = quire_cuda::open_gpu(0).unwrap();
        let stream = Stream::new(&context).unwrap();
        let kernels = Kernels::open(&context, None).unwrap();
        Self { context, stream, kernels }
    }

    fn array(&self, bytes: &[u8]) -> DeviceMemory {
        let memory = DeviceMemory::alloc(&self.context, bytes.len()).unwrap();
        self.stream.write_bytes(memory.address(), bytes).unwrap();
        memory
    }

    fn bytes(&self, memory: &DeviceMemory) -> Vec<u8> {
        let mut bytes = vec![0; memory.len()];
        self.stream.read_bytes(memory.address(), &mut bytes).unwrap();
        bytes
    }

    fn values(&self, dtype: Dtype, memory: &DeviceMemory) -> Vec<f32> {
        let bytes = self.bytes(memory);
        let halves = || bytes.as_chunks().0.iter().map(|pair| u16::from_le_bytes(*pair));
        match dtype {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect(),
            Dtype::Bf16 => halves().map(|bits| bf16::from_bits(bits).to_f32()).collect(),
            Dtype::F16 => halves().map(|bits| f16::from_bits(bits).to_f32()).collect(),
        }
    }

    fn launch<P: Copy>(&self, name: &str, blocks: u32, threads: u32, shared_bytes: u32, params: &P) {
        let function = self.kernels.function(name).unwrap();
        self.stream.launch(&function, [blocks, 1, 1], threads, shared_bytes, params).unwrap();
    }
}

fn suffix(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "f32",
        Dtype::Bf16 => "bf16",
        Dtype::F16 => "f16",
    }
}

/// As in kernels/fill_dummy.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct FillDummyParams {
    out: u64,
    count: i64,
    seed_low: u32,
    seed_high: u32,
    centre: f32,
    half_width: f32,
}

#[test]
fn dummy_weights_are_the_hosts_bit_for_bit() {
    let device = Device::open();
    for dtype in DTYPES {
        for seed in 0..20 {
            let rng = &mut StdRng::seed_from_u64(seed);
            let suffix_of_name = if rng.random_bool(0.3) { "norm.weight" } else { "weight" };
            let tensor = DummyTensor::new(&format!("layers.{seed}.{suffix_of_name}"));
            let count = rng.random_range(1..5000);
            let expected: Vec<f32> = tensor.values(count).collect();
            // Behind the tensor there is another's place; and it need not begin where a vector may.
            let (first, canary) = (rng.random_range(0..3), vec![0x5a; 64]);
            let bytes = [vec![0x5a; first * dtype.bytes()], to_bytes(dtype, &expected), canary].concat();
            let memory = device.array(&vec![0x5a; bytes.len()]);
            let params = FillDummyParams {
                out: memory.address() + (first * dtype.bytes()) as u64,
                count: count as i64,
                seed_low: tensor.seed as u32,
                seed_high: (tensor.seed >> 32) as u32,
                centre: tensor.centre,
                half_width: DUMMY_HALF_WIDTH,
            };
            // Fewer threads than elements, so that each goes round; and more.
            let blocks = rng.random_range(1..6);
            device.launch(&format!("fill_dummy_{}", suffix(dtype)), blocks, 256, 0, &params);
            assert!(device.bytes(&memory) == bytes, "{dtype:?}, seed {seed}, {count} elements");
        }
    }
}

/// As in kernels/norm.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct NormParams {
    x: u64,
    residual: u64,
    weight: u64,
    bias: u64,
    out: u64,
    width: i32,
    eps: f32,
}

fn layer_norm(row: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f64) -> Vec<f64> {
    let row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
    let mean = row.iter().sum::<f64>() / row.len() as f64;
    let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / row.len() as f64;
    let scale = 1.0 / (variance + eps).sqrt();
    let bias = |i: usize| bias.map_or(0.0, |bias| f64::from(bias[i]));
    row.iter().enumerate().map(|(i, x)| (x - mean) * scale * f64::from(weight[i]) + bias(i)).collect()
}

#[test]
fn layer_norm_is_the_textbooks() {
    let device = Device::open();
    for dtype in DTYPES {
        for seed in 0..30 {
            let rng = &mut StdRng::seed_from_u64(seed);
            let (rows, width) = (rng.random_range(1..6), 8 * rng.random_range(1..80));
            // A mean far from 0 is what a variance by sums of squares would fail on.
            let offset = rng.random_range(-8.0..8.0);
            let mut random = |len, dtype, offset: f32| -> Vec<f32> {
                (0..len).map(|_| round(dtype, offset + rng.random_range(-1.0..1.0))).collect()
            };
            let x = random(rows * width, dtype, 0.0);
            let residual = random(rows * width, Dtype::F32, offset);
            let (weight, bias) = (random(width, dtype, 0.0), random(width, dtype, 0.0));
            let (has_x, has_bias) = (rng.random_bool(0.5), rng.random_bool(0.5));
            let sums: Vec<f32> = match has_x {
                true => residual.iter().zip(&x).map(|(a, b)| a + b).collect(),
                false => residual.clone(),
            };
            let arrays = [&x, &weight, &bias].map(|values| device.array(&to_bytes(dtype, values)));
            let on_device = device.array(&to_bytes(Dtype::F32, &residual));
            let out = device.array(&vec![0xff; rows * width * dtype.bytes()]);
            let params = NormParams {
                x: if has_x { arrays[0].address() } else { 0 },
                residual: on_device.address(),
                weight: arrays[1].address(),
                bias: if has_bias { arrays[2].address() } else { 0 },
                out: out.address(),
                width: width as i32,
                eps: 1e-5,
            };
            let shared_bytes = 4 * (32 + width) as u32;
            device.launch(&format!("layer_norm_{}", suffix(dtype)), rows as u32, 64, shared_bytes, &params);
            let what = format!("{dtype:?}, seed {seed}, {rows} rows of {width}");
            assert_eq!(device.values(Dtype::F32, &on_device), sums, "{what}");
            let found = device.values(dtype, &out);
            for (row, sums) in sums.chunks(width).enumerate() {
                let expected = layer_norm(sums, &weight, has_bias.then_some(&bias), 1e-5);
                for (found, expected) in found[row * width..].iter().zip(expected) {
                    let limit = f64::from(unit_roundoff(dtype)) * expected.abs() + 2e-5;
                    assert!((f64::from(*found) - expected).abs() <= limit, "{what}: {found} for {expected}");
                }
            }
        }
    }
}

/// As in kernels/gather.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct CopyBlocksParams {
    pairs: u64,
    kv_cache: u64,
    block_bytes: i64,
}

#[test]
fn blocks_are_copied_whole_and_others_left_alone() {
    let device = Device::open();
    for seed in 0..40 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let (num_blocks, block_bytes) = (rng.random_range(2..30), 16 * rng.random_range(1..200));
        let mut bytes: Vec<u8> = (0..num_blocks * block_bytes).map(|_| rng.random()).collect();
        let cache = device.array(&bytes);
        // Targets are all different and no sources; a source may be copied several times.
        let mut blocks: Vec<usize> = (0..num_blocks).collect();
        blocks.shuffle(rng);
        let (from, to) = blocks.split_at(rng.random_range(1..num_blocks));
        let pairs: Vec<[usize; 2]> =
            to.iter().map(|to| [from[rng.random_range(0..from.len())], *to]).collect();
        let words: Vec<u8> = pairs.as_flattened().iter().flat_map(|id| (*id as u32).to_le_bytes()).collect();
        let words = device.array(&words);
        let params = CopyBlocksParams {
            pairs: words.address(),
            kv_cache: cache.address(),
            block_bytes: block_bytes as i64,
        };
        device.launch("copy_blocks", pairs.len() as u32, 128, 0, &params);
        for [from, to] in pairs {
            bytes.copy_within(from * block_bytes..(from + 1) * block_bytes, to * block_bytes);
        }
        assert!(device.bytes(&cache) == bytes, "seed {seed}, blocks of {block_bytes} bytes");
    }
}
