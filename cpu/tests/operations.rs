//! Each operation of the CPU backend against candle's tensors, on odd sizes, random numbers and every
//! instruction set of this machine.

use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};
use quire_cpu::{CpuBackend, CpuOptions, CpuWeight, Isa};
use quire_model::{
    Activation, AttentionShape, Backend, BufferRole, Dtype, InputBatch, KvOfToken, KvScales, NormKind,
    NormSpan, QkNorm, RopeScaling, RopeSpec, StepLimits, TensorData, TensorView, rope_table,
};
use quire_scheduler::kv::BlockId;
use quire_scheduler::{AdmittedRequest, RequestId, SamplingParams, ScheduledRow, SchedulerOutput};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const CPU: &Device = &Device::Cpu;
const TOLERANCE: f32 = 2e-5;

fn random(rng: &mut StdRng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, CPU).unwrap()
}

/// Loads values as a weight stored in `dtype`, and gives them back as rounded to it.
fn load(backend: &mut CpuBackend, values: &[f32], shape: &[usize], dtype: Dtype) -> (CpuWeight, Tensor) {
    let (candle_dtype, data): (_, Vec<u8>) = match dtype {
        Dtype::F32 => (DType::F32, values.iter().flat_map(|x| x.to_le_bytes()).collect()),
        Dtype::Bf16 => {
            (DType::BF16, values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect())
        }
        Dtype::F16 => {
            (DType::F16, values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect())
        }
    };
    let rounded = tensor(values, shape).to_dtype(candle_dtype).unwrap().to_dtype(DType::F32).unwrap();
    let view = TensorView { dtype, shape: shape.to_vec(), data: TensorData::Stored(data.into()) };
    (backend.load(&[view]).unwrap(), rounded)
}

fn buffer(backend: &mut CpuBackend, values: &[f32]) -> Vec<f32> {
    let mut buffer = backend.alloc(BufferRole::Activation, values.len()).unwrap();
    buffer.copy_from_slice(values);
    buffer
}

fn assert_close(found: &[f32], expected: &Tensor, what: &str) {
    let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let limit = TOLERANCE * (1.0 + expected.abs());
        assert!((found - expected).abs() < limit, "{what}, element {index}: {found} for {expected}");
    }
}

/// Runs `check` for seeds and instruction sets.
fn for_all(check: impl Fn(&mut CpuBackend, &mut StdRng, &str)) {
    for isa in Isa::available() {
        for seed in 0..40 {
            let options = CpuOptions { num_threads: Some(2), isa: Some(isa) };
            let mut backend = CpuBackend::new(options).unwrap();
            check(&mut backend, &mut StdRng::seed_from_u64(seed), &format!("{isa:?}, seed {seed}"));
        }
    }
}

fn norm(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    let mean = x.sqr().unwrap().mean_keepdim(D::Minus1).unwrap();
    let scale = (mean + eps).unwrap().sqrt().unwrap();
    x.broadcast_div(&scale).unwrap().broadcast_mul(weight).unwrap()
}

#[test]
fn linear_is_candles_matmul() {
    for_all(|backend, rng, what| {
        let (rows, n, k) = (rng.random_range(1..14), rng.random_range(1..300), rng.random_range(1..200));
        let dtype = [Dtype::F32, Dtype::Bf16, Dtype::F16][rng.random_range(0..3)];
        let (weight, w) = load(backend, &random(rng, n * k), &[n, k], dtype);
        let (bias, b) = load(backend, &random(rng, n), &[n], dtype);
        let x = random(rng, rows * k);
        let mut out = buffer(backend, &vec![9.0; rows * n]);
        let product = tensor(&x, &[rows, k]).matmul(&w.t().unwrap()).unwrap();
        let what = format!("{what}, {rows}x{k} by {n}, {dtype:?}");
        backend.linear(rows, &x, &weight, None, &mut out).unwrap();
        assert_close(&out, &product, &what);
        backend.linear(rows, &x, &weight, Some(&bias), &mut out).unwrap();
        assert_close(&out, &product.broadcast_add(&b).unwrap(), &what);
    });
}

#[test]
fn linear_gives_a_row_the_same_bits_in_any_company() {
    for seed in 0..20 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let (rows, n, k) = (rng.random_range(2..14), rng.random_range(1..900), rng.random_range(1..200));
        let (x, w) = (random(rng, rows * k), random(rng, n * k));
        let mut all: Vec<Vec<u32>> = Vec::new();
        for isa in Isa::available() {
            let mut backend = CpuBackend::new(CpuOptions { num_threads: Some(3), isa: Some(isa) }).unwrap();
            let (weight, _) = load(&mut backend, &w, &[n, k], Dtype::Bf16);
            let mut together = vec![0.0; rows * n];
            backend.linear(rows, &x, &weight, None, &mut together).unwrap();
            let mut alone = vec![0.0; n];
            for row in 0..rows {
                backend.linear(1, &x[row * k..][..k].to_vec(), &weight, None, &mut alone).unwrap();
                let bits = |values: &[f32]| -> Vec<u32> { values.iter().map(|x| x.to_bits()).collect() };
                assert_eq!(bits(&alone), bits(&together[row * n..][..n]), "seed {seed}, {isa:?}, row {row}");
            }
            all.push(together.iter().map(|x| x.to_bits()).collect());
        }
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "seed {seed}: instruction sets differ");
    }
}

#[test]
fn norms_and_activation_are_candles() {
    for_all(|backend, rng, what| {
        let (rows, width) = (rng.random_range(1..9), rng.random_range(1..150));
        let (x, residual) = (random(rng, rows * width), random(rng, rows * width));
        let (weight, w) = load(backend, &random(rng, width), &[width], Dtype::Bf16);
        let shape = [rows, width];
        let mut out = buffer(backend, &vec![9.0; rows * width]);
        backend.rms_norm(rows, &x, &weight, 1e-5, &mut out).unwrap();
        assert_close(&out, &norm(&tensor(&x, &shape), &w, 1e-5), what);

        let mut sum = buffer(backend, &residual);
        backend.add_rms_norm(rows, &x, &mut sum, &weight, 1e-5, &mut out).unwrap();
        let expected = (tensor(&x, &shape) + tensor(&residual, &shape)).unwrap();
        assert_close(&sum, &expected, what);
        assert_close(&out, &norm(&expected, &w, 1e-5), what);

        let gate_up: Vec<f32> = random(rng, rows * width * 2).iter().map(|x| x * 30.0).collect();
        let halves = tensor(&gate_up, &[rows, 2 * width]);
        let (gate, up) = (halves.narrow(1, 0, width).unwrap(), halves.narrow(1, width, width).unwrap());
        backend.activate(rows, width, Activation::Silu, true, &gate_up, &mut out).unwrap();
        assert_close(&out, &(gate.silu().unwrap() * up).unwrap(), what);
    });
}

/// One step of several sequences, computed from scratch: rows, their lengths, and the table of their blocks.
fn prefill_batch(lens: &[usize], limits: StepLimits, rng: &mut StdRng) -> InputBatch {
    let mut plan = SchedulerOutput { step: 1, ..SchedulerOutput::default() };
    let mut blocks: Vec<u32> = (1..200).collect();
    rand::seq::SliceRandom::shuffle(&mut blocks[..], rng);
    for (slot, len) in lens.iter().enumerate() {
        let (slot, id) = (slot as u32, RequestId(slot as u64));
        let first = plan.new_block_ids.len() as u32;
        let needed = len.div_ceil(limits.block_size);
        plan.new_block_ids.extend(blocks.drain(..needed).map(BlockId));
        plan.rows.push(ScheduledRow {
            slot,
            id,
            start: 0,
            num_tokens: *len as u32,
            new_blocks: first..first + needed as u32,
            samples: true,
        });
        plan.admitted.push(AdmittedRequest {
            slot,
            id,
            prompt_token_ids: (0..*len as u32).map(|i| i % limits.vocab_size as u32).collect(),
            output_token_ids: Vec::new(),
            sampling: Arc::new(SamplingParams::default()),
            adapter: None,
            block_ids: Vec::new(),
        });
        plan.num_tokens += *len as u32;
    }
    let mut batch = InputBatch::new(limits);
    batch.apply(&plan).unwrap();
    batch
}

fn upload(backend: &mut CpuBackend, batch: &InputBatch) {
    backend.upload(batch.inputs(), batch.logits_rows(), batch.slots()).unwrap();
}

#[test]
fn rotation_and_attention_are_candles() {
    for_all(|backend, rng, what| {
        let num_kv_heads = rng.random_range(1..4);
        let head_dim = 2 * rng.random_range(1..25);
        let shape = AttentionShape {
            num_heads: num_kv_heads * rng.random_range(1..4),
            num_kv_heads,
            head_dim,
            rotary_dim: 2 * rng.random_range(1..=head_dim / 2),
            alibi: false,
            kv_group: 0,
            kv_scales: KvScales::default(),
            scale: rng.random_range(0.1..3.0),
            softcap: rng.random_bool(0.5).then_some(1.5),
            sliding_window: rng.random_bool(0.5).then(|| rng.random_range(1..30)),
        };
        let lens: Vec<usize> = (0..3).map(|_| rng.random_range(1..40)).collect();
        let num_tokens = lens.iter().sum();
        let limits = StepLimits {
            max_num_seqs: 3,
            max_num_batched_tokens: num_tokens,
            max_blocks_per_seq: 40,
            block_size: rng.random_range(1..20),
            max_logits_rows: 3,
            vocab_size: 11,
            heads_per_group: shape.num_heads / num_kv_heads,
            num_kv_groups: 1,
        };
        backend.prepare(&limits, &[]).unwrap();
        upload(backend, &prefill_batch(&lens, limits, rng));

        let row_len = (shape.num_heads + 2 * num_kv_heads) * shape.head_dim;
        let qkv = random(rng, num_tokens * row_len);
        let rope =
            RopeSpec { dim: shape.rotary_dim, theta: 100.0, scaling: RopeScaling::None, interleaved: false };
        let table = rope_table(&rope, 40, 40);
        let (weight, table) = load(backend, &table, &[40, shape.rotary_dim], Dtype::F32);
        let kept = KvOfToken { num_kv_heads, head_dim: shape.head_dim, has_values: true };
        let vectors = 200 * kept.vectors() * limits.block_size;
        let mut cache = backend.alloc_kv_cache(vectors, shape.head_dim).unwrap();
        let mut rotated = buffer(backend, &qkv);
        let mut out = buffer(backend, &vec![9.0; num_tokens * shape.num_heads * shape.head_dim]);
        backend.rope_and_cache(&shape, None, Some(&weight), &mut rotated, &mut cache).unwrap();
        backend.paged_attention(&shape, None, &rotated, &cache, &mut out).unwrap();

        let mut first = 0;
        let width = shape.num_heads * shape.head_dim;
        for len in lens {
            let own = tensor(&qkv[first * row_len..][..len * row_len], &[len, row_len]);
            let expected = reference_attention(&shape, &own, &table.narrow(0, 0, len).unwrap());
            assert_close(&out[first * width..][..len * width], &expected, &format!("{what}, {shape:?}"));
            first += len;
        }
    });
}

/// The textbook's attention over one whole sequence, `[len][heads * head_dim]`.
fn reference_attention(shape: &AttentionShape, qkv: &Tensor, table: &Tensor) -> Tensor {
    let (len, half) = (qkv.dim(0).unwrap(), shape.rotary_dim / 2);
    let heads = |first: usize, count: usize| {
        let width = shape.head_dim;
        let part = qkv.narrow(1, first * width, count * width).unwrap().reshape((len, count, width)).unwrap();
        part.transpose(0, 1).unwrap().contiguous().unwrap()
    };
    let (cos, sin) = (table.narrow(1, 0, half).unwrap(), table.narrow(1, half, half).unwrap());
    let rotate = |x: Tensor| {
        let (a, b) = (x.narrow(2, 0, half).unwrap(), x.narrow(2, half, half).unwrap());
        let times = |x: &Tensor, y: &Tensor| x.broadcast_mul(y).unwrap();
        let low = (times(&a, &cos) - times(&b, &sin)).unwrap();
        let rest = x.narrow(2, 2 * half, shape.head_dim - 2 * half).unwrap();
        Tensor::cat(&[low, (times(&b, &cos) + times(&a, &sin)).unwrap(), rest], 2)
            .unwrap()
            .contiguous()
            .unwrap()
    };
    let group = shape.num_heads / shape.num_kv_heads;
    let spread = |x: Tensor| {
        let index: Vec<u32> = (0..shape.num_heads).map(|head| (head / group) as u32).collect();
        x.index_select(&Tensor::new(index, CPU).unwrap(), 0).unwrap()
    };
    let query = rotate(heads(0, shape.num_heads));
    let key = spread(rotate(heads(shape.num_heads, shape.num_kv_heads)));
    let value = spread(heads(shape.num_heads + shape.num_kv_heads, shape.num_kv_heads));
    let mut scores = (query.matmul(&key.transpose(1, 2).unwrap()).unwrap() * f64::from(shape.scale)).unwrap();
    if let Some(cap) = shape.softcap.map(f64::from) {
        scores = ((scores / cap).unwrap().tanh().unwrap() * cap).unwrap();
    }
    let window = shape.sliding_window.map_or(len, |window| window as usize);
    let mask: Vec<f32> = (0..len * len)
        .map(|i| (i / len, i % len))
        .map(|(from, to)| if to <= from && to + window > from { 0.0 } else { f32::NEG_INFINITY })
        .collect();
    let scores = scores.broadcast_add(&tensor(&mask, &[len, len])).unwrap();
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1).unwrap()).unwrap().exp().unwrap();
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1).unwrap()).unwrap();
    weights.matmul(&value).unwrap().transpose(0, 1).unwrap().contiguous().unwrap()
}

#[test]
fn head_norms_touch_queries_and_keys_only() {
    for_all(|backend, rng, what| {
        let (rows, num_kv_heads, head_dim) =
            (rng.random_range(1..5), rng.random_range(1..4), 2 * rng.random_range(1..20));
        let num_heads = num_kv_heads * rng.random_range(1..4);
        let shape = AttentionShape {
            num_heads,
            num_kv_heads,
            head_dim,
            rotary_dim: head_dim,
            alibi: false,
            kv_group: 0,
            kv_scales: KvScales::default(),
            scale: 1.0,
            softcap: None,
            sliding_window: None,
        };
        let limits = StepLimits {
            max_num_seqs: 1,
            max_num_batched_tokens: rows,
            max_blocks_per_seq: 2,
            block_size: 4,
            max_logits_rows: 1,
            vocab_size: 11,
            heads_per_group: num_heads / num_kv_heads,
            num_kv_groups: 1,
        };
        backend.prepare(&limits, &[]).unwrap();
        upload(backend, &prefill_batch(&[rows], limits, rng));
        let total = num_heads + 2 * num_kv_heads;
        let qkv = random(rng, rows * total * head_dim);
        let (q_weight, q) = load(backend, &random(rng, head_dim), &[head_dim], Dtype::F32);
        let (k_weight, k) = load(backend, &random(rng, head_dim), &[head_dim], Dtype::F32);
        // Cosines of 1 and sines of 0: a rotation that changes nothing.
        let table: Vec<f32> = (0..8 * head_dim).map(|i| f32::from(i % head_dim < head_dim / 2)).collect();
        let table = backend.load_table(&table, head_dim).unwrap();
        let mut cache = backend.alloc_kv_cache(200 * 2 * num_kv_heads * 4, head_dim).unwrap();
        let mut out = buffer(backend, &qkv);
        let norms = QkNorm {
            kind: NormKind::Rms,
            span: NormSpan::Head,
            q_weight: &q_weight,
            k_weight: &k_weight,
            eps: 1e-6,
        };
        backend.rope_and_cache(&shape, Some(norms), Some(&table), &mut out, &mut cache).unwrap();
        let heads = tensor(&qkv, &[rows, total, head_dim]);
        let queries = norm(&heads.narrow(1, 0, num_heads).unwrap(), &q, 1e-6);
        let keys = norm(&heads.narrow(1, num_heads, num_kv_heads).unwrap(), &k, 1e-6);
        let values = heads.narrow(1, num_heads + num_kv_heads, num_kv_heads).unwrap();
        assert_close(&out, &Tensor::cat(&[queries, keys, values], 1).unwrap(), what);
    });
}

#[test]
fn a_token_that_the_host_does_not_know_yet_is_embedded_all_the_same() {
    let limits = StepLimits {
        max_num_seqs: 3,
        max_num_batched_tokens: 16,
        max_blocks_per_seq: 4,
        block_size: 4,
        max_logits_rows: 3,
        vocab_size: 11,
        heads_per_group: 1,
        num_kv_groups: 1,
    };
    let rng = &mut StdRng::seed_from_u64(1);
    let mut backend = CpuBackend::new(CpuOptions::default()).unwrap();
    backend.prepare(&limits, &[]).unwrap();
    let mut batch = prefill_batch(&[5, 2, 3], limits, rng);
    upload(&mut backend, &batch);
    let mut logits = buffer(&mut backend, &[0.0; 33]);
    for (row, token) in [(0, 7), (1, 3), (2, 9)] {
        logits[row * 11 + token] = 90.0;
    }
    backend.sample(&mut logits, batch.logits_rows(), batch.slots()).unwrap();
    batch.expect_tokens();
    // The next step is handed over before the first is collected.
    let row = |slot: u32, start| ScheduledRow {
        slot,
        id: RequestId(u64::from(slot)),
        start,
        num_tokens: 1,
        new_blocks: 0..0,
        samples: true,
    };
    let plan = SchedulerOutput {
        step: 2,
        rows: vec![row(2, 3), row(0, 5)],
        num_tokens: 2,
        ..SchedulerOutput::default()
    };
    batch.apply(&plan).unwrap();
    upload(&mut backend, &batch);
    let (table, rows) = load(&mut backend, &random(rng, 11 * 5), &[11, 5], Dtype::F16);
    let mut out = buffer(&mut backend, &[0.0; 10]);
    backend.embed(&table, &mut out).unwrap();
    let expected = rows.index_select(&Tensor::new(&[9u32, 7], CPU).unwrap(), 0).unwrap();
    assert_close(&out, &expected, "embedding");
}
