//! Each operation of the CUDA backend against the CPU backend's, from the same random inputs: numbers rounded to the
//! element type before both get them. Outputs are full of NaN beforehand and longer than needed, and compared as a
//! whole, so that what an operation must not touch is seen too.

mod support;

use quire_cpu::{CpuBackend, CpuKvCache, CpuOptions, CpuWeight};
use quire_cuda::{CudaBackend, CudaBuffer, CudaOptions, CudaWeight};
use quire_model::{
    Activation, AttentionShape, Backend, BufferRole, Dtype, InputBatch, KvLayout, KvOfToken, KvScales,
    LinearShape, LogitsRow, LogitsTask, NormKind, NormSpan, QkNorm, RopeScaling, RopeSpec, Slot, StepLimits,
    TensorData, TensorView, rope_table,
};
use quire_scheduler::SamplingParams;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::{DTYPES, Planner, Sequence, open, options, round, to_bytes, unit_roundoff};

/// Two f32 results of different order; as in the CPU backend's own tests.
const F32_TOLERANCE: f32 = 2e-5;
/// Below f16's normal numbers, rounding changes up to this.
const F16_SMALLEST: f32 = 1.0 / (1 << 25) as f32;
/// Elements behind each output that must stay what they are.
const SPARE: usize = 24;

/// The device under test and its oracle.
struct Devices {
    dtype: Dtype,
    cuda: CudaBackend,
    cpu: CpuBackend,
}

/// One array on both.
struct Pair {
    cuda: CudaBuffer,
    cpu: Vec<f32>,
}

impl Devices {
    fn new(options: CudaOptions) -> Self {
        let cpu = CpuBackend::new(CpuOptions { num_threads: Some(1), isa: None }).unwrap();
        Self { dtype: options.dtype, cuda: open(options), cpu }
    }

    fn prepare(&mut self, limits: &StepLimits, linears: &[LinearShape]) {
        self.cuda.prepare(limits, linears).unwrap();
        self.cpu.prepare(limits, linears).unwrap();
    }

    fn upload(&mut self, batch: &InputBatch, rows: &[LogitsRow], slots: &[Slot]) {
        self.cuda.upload(batch.inputs(), rows, slots).unwrap();
        self.cpu.upload(batch.inputs(), rows, slots).unwrap();
    }

    fn collect(&mut self) {
        self.cuda.end_step().unwrap();
        self.cuda.collect().unwrap();
        self.cpu.end_step().unwrap();
        self.cpu.collect().unwrap();
    }

    fn weight(&mut self, values: &[f32], shape: &[usize]) -> (CudaWeight, CpuWeight) {
        let bytes = to_bytes(self.dtype, values);
        let data = || TensorData::Stored(bytes.clone().into());
        let view = || TensorView { dtype: self.dtype, shape: shape.to_vec(), data: data() };
        (self.cuda.load(&[view()]).unwrap(), self.cpu.load(&[view()]).unwrap())
    }

    /// The values as the role's type holds them, then [`SPARE`] times NaN.
    fn buffer(&mut self, role: BufferRole, values: &[f32]) -> Pair {
        let len = values.len() + SPARE;
        let mut cuda = self.cuda.alloc(role, len).unwrap();
        let dtype = cuda.dtype();
        let mut cpu: Vec<f32> = values.iter().map(|value| round(dtype, *value)).collect();
        cpu.resize(len, f32::NAN);
        self.cuda.write(&mut cuda, &cpu).unwrap();
        Pair { cuda, cpu }
    }

    fn output(&mut self, role: BufferRole, len: usize) -> Pair {
        self.buffer(role, &vec![f32::NAN; len])
    }

    /// Compares the whole arrays, and gives the oracle the device's: what follows begins with the same numbers.
    /// They may differ by one rounding to the type, by the order of f32 sums, and by `extra`.
    fn assert_close(&self, pair: &mut Pair, extra: f32, what: &str) {
        let found = self.cuda.read(&pair.cuda).unwrap();
        assert_eq!(found.len(), pair.cpu.len());
        let unit = unit_roundoff(pair.cuda.dtype());
        for (index, (found, expected)) in found.iter().zip(&pair.cpu).enumerate() {
            let limit = unit * expected.abs() + F32_TOLERANCE * (1.0 + expected.abs()) + F16_SMALLEST + extra;
            let close = (found - expected).abs() <= limit || found.is_nan() && expected.is_nan();
            assert!(close, "{what}, element {index}: {found} for {expected} +- {limit}");
        }
        pair.cpu = found;
    }

    fn assert_equal(&self, pair: &Pair, what: &str) {
        let bits = |values: &[f32]| -> Vec<u32> { values.iter().map(|value| value.to_bits()).collect() };
        assert_eq!(bits(&self.cuda.read(&pair.cuda).unwrap()), bits(&pair.cpu), "{what}");
    }
}

fn random(rng: &mut StdRng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// Runs `check` for all element types and so many seeds.
fn for_all(num_seeds: u64, check: impl Fn(&mut Devices, &mut StdRng, &str)) {
    for dtype in DTYPES {
        let mut devices = Devices::new(options(dtype));
        for seed in 0..num_seeds {
            let what = format!("{dtype:?}, seed {seed}");
            check(&mut devices, &mut StdRng::seed_from_u64(seed), &what);
        }
    }
}

#[test]
fn norms_and_activation_are_the_cpus() {
    for_all(60, |devices, rng, what| {
        // A thread has eight elements at a time: also rows of more than all threads can take at once.
        let long = rng.random_bool(0.1);
        let width = 8 * if long { rng.random_range(500..700) } else { rng.random_range(1..60) };
        let rows = if long { 2 } else { rng.random_range(1..9) };
        let (weight, w) = devices.weight(&random(rng, width), &[width]);
        let x = devices.buffer(BufferRole::Activation, &random(rng, rows * width));
        let mut residual = devices.buffer(BufferRole::Residual, &random(rng, rows * width));
        let mut out = devices.output(BufferRole::Activation, rows * width);
        devices.cuda.rms_norm(rows, &residual.cuda, &weight, 1e-5, &mut out.cuda).unwrap();
        devices.cpu.rms_norm(rows, &residual.cpu, &w, 1e-5, &mut out.cpu).unwrap();
        devices.assert_close(&mut out, 0.0, what);
        devices.assert_equal(&residual, what);

        devices.cuda.add_rms_norm(rows, &x.cuda, &mut residual.cuda, &weight, 1e-5, &mut out.cuda).unwrap();
        devices.cpu.add_rms_norm(rows, &x.cpu, &mut residual.cpu, &w, 1e-5, &mut out.cpu).unwrap();
        devices.assert_close(&mut out, 0.0, what);
        devices.assert_equal(&residual, what);

        let gate_up: Vec<f32> = random(rng, rows * width * 2).iter().map(|x| x * 30.0).collect();
        let gate_up = devices.buffer(BufferRole::Activation, &gate_up);
        let mut out = devices.output(BufferRole::Activation, rows * width);
        devices.cuda.activate(rows, width, Activation::Silu, true, &gate_up.cuda, &mut out.cuda).unwrap();
        devices.cpu.activate(rows, width, Activation::Silu, true, &gate_up.cpu, &mut out.cpu).unwrap();
        devices.assert_close(&mut out, 0.0, what);
    });
}

#[test]
fn linear_is_the_cpus() {
    for_all(30, |devices, rng, what| {
        let (rows, k) = (rng.random_range(1..14), 8 * rng.random_range(1..25));
        let (output, n) = match rng.random_bool(0.5) {
            true => (BufferRole::Activation, 8 * rng.random_range(1..30)),
            // Vocabularies have any size.
            false => (BufferRole::Logits, rng.random_range(1..250)),
        };
        let has_bias = output == BufferRole::Activation && rng.random_bool(0.5);
        let shape = LinearShape { n, k, has_bias, output, max_rows: rows };
        devices.prepare(&limits(8, 1, 16, 1), &[shape]);
        let x = devices.buffer(BufferRole::Activation, &random(rng, rows * k));
        let (weight, w) = devices.weight(&random(rng, n * k), &[n, k]);
        let (bias, b) = devices.weight(&random(rng, n), &[n]);
        let mut out = devices.output(output, rows * n);
        let (bias, b) = if has_bias { (Some(&bias), Some(&b)) } else { (None, None) };
        devices.cuda.linear(rows, &x.cuda, &weight, bias, &mut out.cuda).unwrap();
        devices.cpu.linear(rows, &x.cpu, &w, b, &mut out.cpu).unwrap();
        // Sums of up to 200 products below 1, in any order.
        devices.assert_close(&mut out, 2e-5, &format!("{what}, {rows} rows, {shape:?}"));
    });
}

fn limits(max_num_seqs: usize, block_size: usize, tokens: usize, heads_per_group: usize) -> StepLimits {
    StepLimits {
        max_num_seqs,
        max_num_batched_tokens: tokens,
        max_blocks_per_seq: MAX_LEN.div_ceil(block_size),
        block_size,
        max_logits_rows: max_num_seqs,
        vocab_size: VOCAB,
        heads_per_group,
        num_kv_groups: 1,
    }
}

const VOCAB: usize = 37;
const MAX_LEN: usize = 200;
const MAX_SEQS: usize = 5;

/// Sequences that are computed in random pieces of random steps; one that is done makes room for another.
struct Steps {
    planner: Planner,
    sequences: Vec<Sequence>,
    batch: InputBatch,
    max_tokens: usize,
    next_id: u64,
}

impl Steps {
    fn new(limits: StepLimits, num_blocks: usize) -> Self {
        Self {
            planner: Planner::new(limits.block_size, (1..num_blocks as u32).rev().collect()),
            sequences: Vec::new(),
            batch: InputBatch::new(limits),
            max_tokens: limits.max_num_batched_tokens,
            next_id: 0,
        }
    }

    /// Plans a step of at least one row.
    fn next(&mut self, rng: &mut StdRng) {
        self.planner.begin();
        for slot in 0..MAX_SEQS {
            match self.sequences.get(slot) {
                None => {
                    let sequence = self.sequence(slot, rng);
                    self.sequences.push(sequence);
                }
                Some(sequence) if sequence.computed == sequence.len() => {
                    self.planner.release(&mut self.sequences[slot]);
                    self.sequences[slot] = self.sequence(slot, rng);
                }
                Some(_) => {}
            }
        }
        let mut room = self.max_tokens;
        rand::seq::SliceRandom::shuffle(&mut self.sequences[..], rng);
        for sequence in &mut self.sequences {
            let most = (sequence.len() - sequence.computed).min(room);
            if most > 0 && (room == self.max_tokens || rng.random_bool(0.8)) {
                let count = if rng.random_bool(0.5) { 1 } else { rng.random_range(1..=most) };
                self.planner.add(sequence, count);
                room -= count;
            }
        }
        self.sequences.sort_by_key(|sequence| sequence.slot);
        self.batch.apply(&self.planner.plan).unwrap();
    }

    fn sequence(&mut self, slot: usize, rng: &mut StdRng) -> Sequence {
        self.next_id += 1;
        let len = if rng.random_bool(0.2) { MAX_LEN } else { rng.random_range(1..60) };
        let prompt: Vec<u32> = (0..len).map(|_| rng.random_range(0..VOCAB as u32)).collect();
        let prompt_logprobs = rng.random_bool(0.5).then_some(0);
        let params = SamplingParams { temperature: 0.0, prompt_logprobs, ..SamplingParams::default() };
        Sequence::new(slot as u32, self.next_id, &prompt, params)
    }

    fn num_tokens(&self) -> usize {
        self.batch.inputs().num_tokens()
    }
}

#[test]
fn embedding_and_gather_are_the_cpus() {
    for_all(15, |devices, rng, what| {
        let limits = limits(MAX_SEQS, 16, 80, 1);
        devices.prepare(&limits, &[]);
        let mut steps = Steps::new(limits, 14 * MAX_SEQS);
        let width = 8 * rng.random_range(1..40);
        let (table, rows) = devices.weight(&random(rng, VOCAB * width), &[VOCAB, width]);
        for _ in 0..4 {
            steps.next(rng);
            devices.upload(&steps.batch, &[], steps.batch.slots());
            let num_tokens = steps.num_tokens();
            let mut out = devices.output(BufferRole::Residual, num_tokens * width);
            devices.cuda.embed(&table, &mut out.cuda).unwrap();
            devices.cpu.embed(&rows, &mut out.cpu).unwrap();
            devices.assert_equal(&out, what);

            let num_logits = steps.batch.logits_rows().len();
            if num_logits > 0 {
                let first = rng.random_range(0..num_logits);
                let range = first..rng.random_range(first + 1..=num_logits);
                let x = devices.buffer(BufferRole::Activation, &random(rng, num_tokens * width));
                let mut out = devices.output(BufferRole::Activation, range.len() * width);
                devices.cuda.gather(range.clone(), width, &x.cuda, &mut out.cuda).unwrap();
                devices.cpu.gather(range, width, &x.cpu, &mut out.cpu).unwrap();
                devices.assert_equal(&out, what);
            }
            devices.collect();
        }
    });
}

#[test]
fn tokens_that_the_host_does_not_know_yet_are_embedded_all_the_same() {
    for_all(10, |devices, rng, what| {
        let limits = limits(MAX_SEQS, 16, 80, 1);
        devices.prepare(&limits, &[]);
        let mut planner = Planner::new(16, (1..14 * MAX_SEQS as u32).collect());
        let mut batch = InputBatch::new(limits);
        let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let mut sequences: Vec<Sequence> = (0..MAX_SEQS as u32)
            .map(|slot| Sequence::new(slot, u64::from(slot), &[1, 2, 3], greedy.clone()))
            .collect();
        planner.begin();
        for sequence in &mut sequences {
            planner.add(sequence, 3);
        }
        let width = 24;
        let (table, rows) = devices.weight(&random(rng, VOCAB * width), &[VOCAB, width]);
        for step in 0..4 {
            batch.apply(&planner.plan).unwrap();
            devices.upload(&batch, batch.logits_rows(), batch.slots());
            let placeholders = batch.inputs().token_ids().iter().filter(|word| **word >> 31 == 1).count();
            assert_eq!(placeholders, if step == 0 { 0 } else { planner.plan.rows.len() }, "{what}");
            let mut out = devices.output(BufferRole::Residual, batch.inputs().num_tokens() * width);
            devices.cuda.embed(&table, &mut out.cuda).unwrap();
            devices.cpu.embed(&rows, &mut out.cpu).unwrap();
            devices.assert_equal(&out, what);

            let logits = random(rng, planner.plan.rows.len() * VOCAB);
            let mut logits = devices.buffer(BufferRole::Logits, &logits);
            devices.cuda.sample(&mut logits.cuda, batch.logits_rows(), batch.slots()).unwrap();
            devices.cpu.sample(&mut logits.cpu, batch.logits_rows(), batch.slots()).unwrap();
            assert!(batch.logits_rows().iter().all(|row| row.task == LogitsTask::Sample));
            devices.collect();
            batch.expect_tokens();
            // The next step comes without the tokens having been told to the batch.
            planner.begin();
            for sequence in &mut sequences {
                sequence.output.resize(sequence.computed - 2, 0);
            }
            let start = rng.random_range(0..sequences.len());
            for sequence in &mut sequences[start..] {
                planner.add(sequence, 1);
            }
            sequences.drain(..start);
        }
    });
}

fn head_norm<'a, W>(q_weight: &'a W, k_weight: &'a W) -> QkNorm<'a, W> {
    QkNorm { kind: NormKind::Rms, span: NormSpan::Head, q_weight, k_weight, eps: 1e-6 }
}

fn random_shape(rng: &mut StdRng, head_dim: usize) -> AttentionShape {
    let num_kv_heads = rng.random_range(1..3);
    AttentionShape {
        num_heads: num_kv_heads * rng.random_range(1..5),
        num_kv_heads,
        head_dim,
        rotary_dim: head_dim,
        alibi: false,
        kv_group: 0,
        kv_scales: KvScales::default(),
        scale: rng.random_range(0.1..3.0),
        softcap: rng.random_bool(0.4).then_some(1.5),
        sliding_window: rng.random_bool(0.5).then(|| rng.random_range(1..100)),
    }
}

/// Rotation, cache and attention over several steps of prefill and decode rows.
fn check_attention(devices: &mut Devices, rng: &mut StdRng, shape: &AttentionShape, block_size: usize) {
    let (head_dim, num_kv_heads) = (shape.head_dim, shape.num_kv_heads);
    let what = format!("{:?}, block size {block_size}, {shape:?}", devices.dtype);
    let limits = limits(MAX_SEQS, block_size, 90, shape.num_heads / num_kv_heads);
    devices.prepare(&limits, &[]);
    let num_blocks = 1 + MAX_SEQS * limits.max_blocks_per_seq;
    let mut steps = Steps::new(limits, num_blocks);
    let rope = RopeSpec { dim: head_dim, theta: 100.0, scaling: RopeScaling::None, interleaved: false };
    let positions = limits.max_blocks_per_seq * block_size;
    let table = rope_table(&rope, positions, positions);
    let table = (
        devices.cuda.load_table(&table, head_dim).unwrap(),
        devices.cpu.load_table(&table, head_dim).unwrap(),
    );
    let qk_norm = rng.random_bool(0.5);
    let q_weight = devices.weight(&random(rng, head_dim), &[head_dim]);
    let k_weight = devices.weight(&random(rng, head_dim), &[head_dim]);
    let layout =
        KvLayout { layers: vec![KvOfToken { num_kv_heads, head_dim, has_values: true }], block_size };
    // Nothing may depend on what nobody wrote.
    let mut cache = devices.output(BufferRole::Activation, num_blocks * layout.block_len(0));
    let mut cpu_cache = CpuKvCache::of_f32(cache.cpu.clone());
    let row_len = (shape.num_heads + 2 * num_kv_heads) * head_dim;
    for step in 0..5 {
        let what = format!("{what}, step {step}");
        steps.next(rng);
        devices.upload(&steps.batch, &[], steps.batch.slots());
        let num_tokens = steps.num_tokens();
        let mut qkv = devices.buffer(BufferRole::Activation, &random(rng, num_tokens * row_len));
        let cuda_norm = qk_norm.then(|| head_norm(&q_weight.0, &k_weight.0));
        devices
            .cuda
            .rope_and_cache(shape, cuda_norm, Some(&table.0), &mut qkv.cuda, &mut cache.cuda)
            .unwrap();
        let cpu_norm = qk_norm.then(|| head_norm(&q_weight.1, &k_weight.1));
        devices.cpu.rope_and_cache(shape, cpu_norm, Some(&table.1), &mut qkv.cpu, &mut cpu_cache).unwrap();
        cache.cpu = cpu_cache.as_f32().unwrap().to_vec();
        devices.assert_close(&mut qkv, 0.0, &format!("{what}, rotation, norms: {qk_norm}"));
        devices.assert_close(&mut cache, 0.0, &format!("{what}, cache, norms: {qk_norm}"));
        cpu_cache = CpuKvCache::of_f32(cache.cpu.clone());

        let mut out = devices.output(BufferRole::Activation, num_tokens * shape.num_heads * head_dim);
        devices.cuda.paged_attention(shape, None, &qkv.cuda, &cache.cuda, &mut out.cuda).unwrap();
        devices.cpu.paged_attention(shape, None, &qkv.cpu, &cpu_cache, &mut out.cpu).unwrap();
        // The tuned kernels round each weight to the type: with values up to 1, and weights that add up to 1 before
        // and after division by the sum of rounded or exact weights, that is at most twice the unit.
        let extra = 2.0 * unit_roundoff(devices.dtype);
        devices.assert_close(&mut out, extra, &format!("{what}, attention"));
        devices.collect();
    }
}

#[test]
fn rotation_and_attention_of_plain_kernels_are_the_cpus() {
    for_all(10, |devices, rng, _| {
        let head_dim = [4, 8, 20, 24, 40, 64, 80, 136][rng.random_range(0..8)];
        let shape = random_shape(rng, head_dim);
        let block_size = [1, 3, 4, 8, 16][rng.random_range(0..5)];
        check_attention(devices, rng, &shape, block_size);
    });
}

#[test]
fn rotation_and_attention_of_tuned_kernels_are_the_cpus() {
    for dtype in [Dtype::Bf16, Dtype::F16] {
        for batch_invariant in [false, true] {
            let mut devices = Devices::new(CudaOptions { batch_invariant, ..options(dtype) });
            for seed in 0..8 {
                let rng = &mut StdRng::seed_from_u64(seed);
                let head_dim = [32, 64, 96, 128, 256][seed as usize % 5];
                let shape = random_shape(rng, head_dim);
                let block_size = [16, 32, 48][rng.random_range(0..3)];
                check_attention(&mut devices, rng, &shape, block_size);
            }
        }
    }
}

#[test]
fn heads_of_an_odd_number_of_pairs_are_refused() {
    for_all(1, |devices, rng, _| {
        let shape = AttentionShape { num_heads: 4, num_kv_heads: 4, ..random_shape(rng, 6) };
        devices.prepare(&limits(MAX_SEQS, 16, 90, 1), &[]);
        let table = devices.cuda.load_table(&[0.0; 60], 6).unwrap();
        let mut qkv = devices.output(BufferRole::Activation, 72);
        let mut cache = devices.output(BufferRole::Activation, 768);
        let result = devices.cuda.rope_and_cache(&shape, None, Some(&table), &mut qkv.cuda, &mut cache.cuda);
        assert!(result.unwrap_err().to_string().contains("head_dim is 6"));
    });
}
