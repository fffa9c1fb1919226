//! Decode attention against attention computed in f64 from the same numbers: random ragged steps, in memory that is
//! poisoned wherever the kernels have no business. Then what a comparison of results does not show: that results
//! repeat bit for bit, that a recorded launch serves other lengths, and that a planted mistake is found.

use std::sync::{Arc, Mutex, MutexGuard};

use half::{bf16, f16};
use quire_cuda::Kernels;
use quire_cuda::StepPointers;
use quire_cuda::decode_attention::{DecodeAttention, DecodeKernel};
use quire_cuda::driver::{Context, DeviceMemory, Stream};
use quire_cuda::prefill_attention::AttentionOperands;
use quire_model::{AttentionShape, Dtype, KvScales, StepLimits};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// NaN in every type of number, and no block or slot in integers.
const POISON: u8 = 0xff;
const GROUPS: [usize; 14] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 24, 32];
const TUNED_HEAD_DIMS: [usize; 5] = [32, 64, 96, 128, 256];

struct Device {
    context: Arc<Context>,
    stream: Stream,
    kernels: Kernels,
    // Whether mistakes are planted is one setting for the process.
    _alone: MutexGuard<'static, ()>,
}

/// A row of a step: its new tokens, and the position of the first.
#[derive(Debug, Clone, Copy)]
struct Row {
    slot: usize,
    position: usize,
    num_tokens: usize,
}

/// One layer's attention in one step.
#[derive(Debug, Clone)]
struct Case {
    dtype: Dtype,
    shape: AttentionShape,
    block_size: usize,
    max_blocks_per_seq: usize,
    num_slots: usize,
    num_sms: u32,
    kernel: DecodeKernel,
    rows: Vec<Row>,
}

/// What the case reads: rounded to its type, NaN where nothing may be read.
struct Numbers {
    /// `[T][q heads | k heads | v heads][head_dim]`.
    qkv: Vec<f32>,
    /// As in the contract of the cache.
    kv_cache: Vec<f32>,
    /// `[slots + 1][max_blocks_per_seq]`.
    block_tables: Vec<u32>,
}

/// The case's operands on the device.
struct Operands {
    step: StepPointers,
    qkv: DeviceMemory,
    kv_cache: DeviceMemory,
    out: DeviceMemory,
    _arrays: DeviceMemory,
}

impl Device {
    fn open() -> Self {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        #[cfg(feature = "emulator")]
        {
            quire_cuda::emulator::use_stand_in();
            quire_cuda::emulator::plant_mistakes(false);
        }
        let context = Context::new(0).unwrap();
        let kernels = Kernels::open(&context, None).unwrap();
        Self { stream: Stream::new(&context).unwrap(), context, kernels, _alone: alone }
    }

    fn memory(&self, bytes: &[u8]) -> DeviceMemory {
        let memory = DeviceMemory::alloc(&self.context, bytes.len()).unwrap();
        self.stream.write_bytes(memory.address(), bytes).unwrap();
        memory
    }

    fn attention(&self, case: &Case) -> DecodeAttention {
        let (context, stream) = (&self.context, &self.stream);
        let attention =
            DecodeAttention::new(context, stream, &self.kernels, &case.limits(), case.num_sms, case.dtype);
        attention.unwrap()
    }

    fn operands(&self, case: &Case, numbers: &Numbers) -> Operands {
        let (arrays, step) = self.step_arrays(case, numbers);
        Operands {
            step,
            _arrays: arrays,
            qkv: self.memory(&encode(case.dtype, &numbers.qkv)),
            kv_cache: self.memory(&encode(case.dtype, &numbers.kv_cache)),
            out: self.memory(&vec![POISON; case.out_len() * case.dtype.bytes()]),
        }
    }

    /// The step's metadata, of which attention needs these parts only.
    fn step_arrays(&self, case: &Case, numbers: &Numbers) -> (DeviceMemory, StepPointers) {
        let words = case.step_words();
        let block_tables = words.len();
        let memory = self.memory(&words_to_bytes(&[words, numbers.block_tables.clone()].concat()));
        let at = |word: usize| memory.address() + 4 * word as u64;
        let (slots, unread) = (8, 0);
        let starts = slots + case.rows.len();
        let step = StepPointers {
            counts: at(0),
            token_ids: unread,
            positions: unread,
            token_slots: unread,
            row_slots: at(slots),
            row_starts: at(starts),
            row_positions: at(starts + case.rows.len() + 1),
            logits_tokens: unread,
            block_tables: at(block_tables),
            block_table_stride: case.max_blocks_per_seq as i64,
        };
        (memory, step)
    }

    fn launch(&self, attention: &mut DecodeAttention, case: &Case, on: &Operands) {
        let operands = AttentionOperands {
            qkv: on.qkv.address(),
            kv_cache: on.kv_cache.address(),
            out: on.out.address(),
        };
        let num_rows = case.rows.len();
        attention.launch(&self.stream, on.step, num_rows, &case.shape, operands, case.kernel).unwrap();
    }

    fn read(&self, memory: &DeviceMemory) -> Vec<u8> {
        let mut bytes = vec![0; memory.len()];
        self.stream.read_bytes(memory.address(), &mut bytes).unwrap();
        bytes
    }

    /// Launches twice, the second time over scratch memory as the first left it, and gives the result of both.
    fn run(&self, case: &Case, numbers: &Numbers) -> Vec<u8> {
        let operands = self.operands(case, numbers);
        let mut attention = self.attention(case);
        self.launch(&mut attention, case, &operands);
        let first = self.read(&operands.out);
        self.stream.fill(operands.out.address(), POISON, operands.out.len()).unwrap();
        attention.begin_step();
        self.launch(&mut attention, case, &operands);
        assert!(first == self.read(&operands.out), "not the same twice: {case:?}");
        first
    }
}

impl Case {
    /// A step of up to six rows, most of one token, some of them padding.
    fn random(
        rng: &mut StdRng,
        dtype: Dtype,
        kernel: DecodeKernel,
        head_dim: usize,
        block_size: usize,
    ) -> Self {
        let max_len = if rng.random_bool(0.25) { 700 } else { 150 };
        let num_kv_heads = rng.random_range(1..=3);
        let num_heads = num_kv_heads * GROUPS[rng.random_range(0..GROUPS.len())];
        let shape = AttentionShape {
            num_heads,
            num_kv_heads,
            head_dim,
            rotary_dim: head_dim,
            alibi: false,
            kv_group: 0,
            kv_scales: KvScales::default(),
            scale: rng.random_range(0.5..2.0) / (head_dim as f32).sqrt(),
            softcap: rng.random_bool(0.5).then(|| rng.random_range(1.0..5.0)),
            sliding_window: rng.random_bool(0.5).then(|| rng.random_range(1..200)),
        };
        let num_slots = rng.random_range(1..=8);
        let mut slots: Vec<usize> = (0..num_slots).collect();
        slots.shuffle(rng);
        let num_rows = rng.random_range(1..=num_slots.min(6));
        let row = |slot: &usize| match rng.random_range(0..8) {
            0 => Row { slot: num_slots, position: 0, num_tokens: 1 },
            1 => Row {
                slot: *slot,
                position: rng.random_range(0..max_len),
                num_tokens: rng.random_range(2..5),
            },
            _ => Row { slot: *slot, position: rng.random_range(0..max_len), num_tokens: 1 },
        };
        let rows = slots[..num_rows].iter().map(row).collect();
        let max_blocks_per_seq = (max_len + 5).div_ceil(block_size) + rng.random_range(0..3);
        let num_sms = rng.random_range(1..=12);
        Self { dtype, shape, block_size, max_blocks_per_seq, num_slots, num_sms, kernel, rows }
    }

    fn limits(&self) -> StepLimits {
        StepLimits {
            max_num_seqs: self.num_slots,
            max_num_batched_tokens: self.num_tokens(),
            max_blocks_per_seq: self.max_blocks_per_seq,
            block_size: self.block_size,
            max_logits_rows: self.num_slots,
            vocab_size: 1,
            heads_per_group: self.shape.num_heads / self.shape.num_kv_heads,
            num_kv_groups: 1,
        }
    }

    fn num_tokens(&self) -> usize {
        self.rows.iter().map(|row| row.num_tokens).sum()
    }

    fn qkv_width(&self) -> usize {
        (self.shape.num_heads + 2 * self.shape.num_kv_heads) * self.shape.head_dim
    }

    fn out_width(&self) -> usize {
        self.shape.num_heads * self.shape.head_dim
    }

    fn out_len(&self) -> usize {
        self.num_tokens() * self.out_width()
    }

    /// Positions that a row's last token sees.
    fn seen(&self, row: Row) -> std::ops::Range<usize> {
        let end = row.position + row.num_tokens;
        self.shape.sliding_window.map_or(0, |window| end.saturating_sub(window as usize))..end
    }

    /// Each row with its first token.
    fn rows_with_tokens(&self) -> impl Iterator<Item = (Row, usize)> {
        let starts = self.rows.iter().scan(0, |next, row| {
            *next += row.num_tokens;
            Some(*next - row.num_tokens)
        });
        self.rows.iter().copied().zip(starts)
    }

    /// Counts, slots, starts and positions of the rows.
    fn step_words(&self) -> Vec<u32> {
        let mut words = vec![u32::MAX; 8];
        (words[0], words[1]) = (self.num_tokens() as u32, self.rows.len() as u32);
        words.extend(self.rows.iter().map(|row| row.slot as u32));
        words.extend(self.rows_with_tokens().map(|(_, token)| token as u32));
        words.push(self.num_tokens() as u32);
        words.extend(self.rows.iter().map(|row| row.position as u32));
        words
    }

    /// Where the element `i` of a key (`plane` 0) or value (1) lies.
    fn place(&self, block: u32, plane: usize, head: usize, token: usize, i: usize) -> usize {
        let plane = 2 * block as usize + plane;
        ((plane * self.shape.num_kv_heads + head) * self.block_size + token) * self.shape.head_dim + i
    }
}

impl Numbers {
    /// Blocks are scattered; only queries, the seen keys and values and their table entries are not poison.
    fn random(rng: &mut StdRng, case: &Case) -> Self {
        let AttentionShape { num_heads, num_kv_heads, head_dim, .. } = case.shape;
        let entries: usize = case.rows.iter().map(|row| case.seen(*row).end.div_ceil(case.block_size)).sum();
        let mut blocks: Vec<u32> = (1..entries as u32 + 1).collect();
        blocks.shuffle(rng);
        let block_len = 2 * num_kv_heads * case.block_size * head_dim;
        let mut kv_cache = vec![f32::NAN; (entries + 1) * block_len];
        let mut block_tables = vec![u32::MAX; (case.num_slots + 1) * case.max_blocks_per_seq];
        let mut number = |wide: f32| round(case.dtype, rng.random_range(-wide..wide));
        for row in &case.rows {
            for position in case.seen(*row) {
                let entry = row.slot * case.max_blocks_per_seq + position / case.block_size;
                if row.slot == case.num_slots {
                    block_tables[entry] = 0;
                } else if block_tables[entry] == u32::MAX {
                    block_tables[entry] = blocks.pop().expect("a block for each entry");
                }
                for (plane, head) in (0..2 * num_kv_heads).map(|i| (i % 2, i / 2)) {
                    let token = position % case.block_size;
                    let at = case.place(block_tables[entry], plane, head, token, 0);
                    kv_cache[at..][..head_dim].fill_with(|| number(2.0));
                }
            }
        }
        let mut qkv = vec![f32::NAN; case.num_tokens() * case.qkv_width()];
        for token in qkv.chunks_exact_mut(case.qkv_width()) {
            token[..num_heads * head_dim].fill_with(|| number(2.0));
        }
        Self { qkv, kv_cache, block_tables }
    }
}

/// Attention of one query head of a row of one token: the result, and the weighted mean of the values' magnitudes,
/// which errors are relative to.
fn reference(case: &Case, numbers: &Numbers, row: Row, token: usize, head: usize) -> Vec<(f64, f64)> {
    let AttentionShape { num_heads, num_kv_heads, head_dim, scale, softcap, .. } = case.shape;
    let query = &numbers.qkv[token * case.qkv_width() + head * head_dim..][..head_dim];
    let kv_head = head / (num_heads / num_kv_heads);
    let vector = |plane: usize, position: usize| {
        let block = numbers.block_tables[row.slot * case.max_blocks_per_seq + position / case.block_size];
        &numbers.kv_cache[case.place(block, plane, kv_head, position % case.block_size, 0)..][..head_dim]
    };
    let score = |position: usize| {
        let products = query.iter().zip(vector(0, position)).map(|(q, k)| f64::from(*q) * f64::from(*k));
        let score = products.sum::<f64>() * f64::from(scale);
        softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
    };
    let scores: Vec<f64> = case.seen(row).map(score).collect();
    let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|score| (score - greatest).exp()).sum();
    let mut out = vec![(0.0, 0.0); head_dim];
    for (score, position) in scores.iter().zip(case.seen(row)) {
        let weight = (score - greatest).exp() / sum;
        for (out, value) in out.iter_mut().zip(vector(1, position)) {
            out.0 += weight * f64::from(*value);
            out.1 += weight * f64::from(value.abs());
        }
    }
    out
}

/// The greatest error as a multiple of what is allowed, infinite for a NaN or a token that is not the kernel's.
///
/// Weights, at most 1, are rounded to the element type before they meet the values, and so is the result: each adds
/// at most one unit roundoff of the values' mean magnitude. Sums and exponentials in f32 add the rest; the scores'
/// own error grows with their size, which the random numbers keep below some tens.
fn error(case: &Case, numbers: &Numbers, out: &[u8]) -> f64 {
    let out = decode(case.dtype, out);
    let roundoff = match case.dtype {
        Dtype::Bf16 => 2.0_f64.powi(-8),
        Dtype::F16 => 2.0_f64.powi(-11),
        Dtype::F32 => 0.0,
    };
    let allowed = 2.0 * roundoff + 2e-5;
    let mut worst: f64 = 0.0;
    for (row, token) in case.rows_with_tokens() {
        let results = &out[token * case.out_width()..][..row.num_tokens * case.out_width()];
        if row.num_tokens != 1 {
            if !results.iter().all(|x| x.is_nan()) {
                return f64::INFINITY;
            }
            continue;
        }
        for (head, results) in results.chunks_exact(case.shape.head_dim).enumerate() {
            for (result, (expected, magnitude)) in
                results.iter().zip(reference(case, numbers, row, token, head))
            {
                let error = (f64::from(*result) - expected).abs() / (allowed * magnitude);
                worst = worst.max(if error.is_nan() { f64::INFINITY } else { error });
            }
        }
    }
    worst
}

fn check(device: &Device, rng: &mut StdRng, seed: u64, case: &Case) {
    let numbers = Numbers::random(rng, case);
    let error = error(case, &numbers, &device.run(case, &numbers));
    assert!(error <= 1.0, "seed {seed}: {error} of what is allowed: {case:?}");
}

fn round(dtype: Dtype, x: f32) -> f32 {
    match dtype {
        Dtype::F32 => x,
        Dtype::Bf16 => bf16::from_f32(x).to_f32(),
        Dtype::F16 => f16::from_f32(x).to_f32(),
    }
}

fn encode(dtype: Dtype, numbers: &[f32]) -> Vec<u8> {
    let bytes = |x: &f32| match dtype {
        Dtype::F32 => x.to_le_bytes().to_vec(),
        Dtype::Bf16 => bf16::from_f32(*x).to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f32(*x).to_le_bytes().to_vec(),
    };
    numbers.iter().flat_map(bytes).collect()
}

fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let number = |b: &[u8]| match dtype {
        Dtype::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        Dtype::Bf16 => bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        Dtype::F16 => f16::from_le_bytes([b[0], b[1]]).to_f32(),
    };
    bytes.chunks_exact(dtype.bytes()).map(number).collect()
}

fn words_to_bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn tuned_kernels_are_right() {
    let device = Device::open();
    for seed in 0..16 {
        let mut rng = StdRng::seed_from_u64(seed);
        for dtype in [Dtype::Bf16, Dtype::F16] {
            for head_dim in TUNED_HEAD_DIMS {
                let block_size = 16 * rng.random_range(1..=4);
                let case = Case::random(&mut rng, dtype, DecodeKernel::Best, head_dim, block_size);
                check(&device, &mut rng, seed, &case);
            }
        }
    }
}

#[test]
fn plain_kernels_are_right() {
    let device = Device::open();
    for seed in 0..16 {
        let mut rng = StdRng::seed_from_u64(seed);
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            let (head_dim, block_size) = (rng.random_range(1..=256), rng.random_range(1..=40));
            let case = Case::random(&mut rng, dtype, DecodeKernel::Plain, head_dim, block_size);
            check(&device, &mut rng, seed, &case);
        }
    }
}

#[test]
fn the_best_kernel_is_right_where_there_is_no_tuned_one() {
    let device = Device::open();
    let cases = [(Dtype::Bf16, 40, 16), (Dtype::F16, 64, 24), (Dtype::F32, 128, 16), (Dtype::Bf16, 128, 1)];
    for (seed, (dtype, head_dim, block_size)) in (0..).zip(cases) {
        let mut rng = StdRng::seed_from_u64(seed);
        let case = Case::random(&mut rng, dtype, DecodeKernel::Best, head_dim, block_size);
        check(&device, &mut rng, seed, &case);
    }
}

/// More rows than the planner has threads and than a warp has lanes, and one that is much longer than all others.
#[test]
fn many_rows() {
    let device = Device::open();
    for (seed, num_rows) in [(1, 33), (2, 300), (3, 1025)] {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut case = Case::random(&mut rng, Dtype::Bf16, DecodeKernel::Best, 32, 16);
        let mut row = |slot| {
            let num_tokens = if rng.random_bool(0.1) { 2 } else { 1 };
            Row { slot, position: rng.random_range(0..20), num_tokens }
        };
        case.rows = (0..num_rows).map(&mut row).collect();
        case.rows[num_rows / 2] = Row { slot: num_rows / 2, position: 5000, num_tokens: 1 };
        case.num_slots = num_rows;
        case.max_blocks_per_seq = 5001_usize.div_ceil(16);
        (case.shape.num_heads, case.shape.num_kv_heads) = (2, 1);
        check(&device, &mut rng, seed, &case);
    }
}

/// One row and head, cut into as many parts as there may be.
#[test]
fn a_long_row_on_many_multiprocessors() {
    let device = Device::open();
    for (seed, position) in [(1, 1983), (2, 1984), (3, 4095), (4, 3000)] {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut case = Case::random(&mut rng, Dtype::F16, DecodeKernel::Best, 64, 32);
        case.rows = vec![Row { slot: 0, position, num_tokens: 1 }];
        case.max_blocks_per_seq = 128;
        case.num_sms = 40;
        (case.shape.num_heads, case.shape.num_kv_heads) = (3, 1);
        case.shape.sliding_window = None;
        check(&device, &mut rng, seed, &case);
    }
}

#[test]
fn a_recorded_launch_serves_rows_of_other_lengths() {
    let device = Device::open();
    for seed in 0..10 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut case = Case::random(&mut rng, Dtype::Bf16, DecodeKernel::Best, 64, 16);
        let window = case.shape.sliding_window.take();
        let numbers = Numbers::random(&mut rng, &case);
        case.shape.sliding_window = window;
        let operands = device.operands(&case, &numbers);
        let mut attention = device.attention(&case);
        device.stream.begin_capture().unwrap();
        attention.begin_step();
        device.launch(&mut attention, &case, &operands);
        let graph = device.stream.end_capture().unwrap();
        for _ in 0..3 {
            // Shorter, so that what is seen is there.
            case.rows.iter_mut().for_each(|row| row.position -= rng.random_range(0..=row.position / 2));
            device.stream.write_bytes(operands.step.counts, &words_to_bytes(&case.step_words())).unwrap();
            device.stream.launch_graph(&graph).unwrap();
            let error = error(&case, &numbers, &device.read(&operands.out));
            assert!(error <= 1.0, "seed {seed}: {error} of what is allowed: {case:?}");
        }
    }
}

/// Layers with and without a window take turns, as in a step of a model; three kinds are one more than plans are
/// kept for.
#[test]
fn layers_of_different_windows_share_a_step() {
    let device = Device::open();
    let mut rng = StdRng::seed_from_u64(1);
    let mut case = Case::random(&mut rng, Dtype::Bf16, DecodeKernel::Best, 32, 16);
    case.shape.sliding_window = None;
    let numbers = Numbers::random(&mut rng, &case);
    let operands = device.operands(&case, &numbers);
    let mut attention = device.attention(&case);
    for window in [None, Some(20), None, Some(70), Some(20), None] {
        case.shape.sliding_window = window;
        device.launch(&mut attention, &case, &operands);
        let error = error(&case, &numbers, &device.read(&operands.out));
        assert!(error <= 1.0, "window {window:?}: {error} of what is allowed: {case:?}");
    }
}

#[test]
fn shapes_that_no_kernel_takes_are_refused() {
    let device = Device::open();
    let case = Case::random(&mut StdRng::seed_from_u64(1), Dtype::Bf16, DecodeKernel::Best, 64, 16);
    let numbers = Numbers::random(&mut StdRng::seed_from_u64(1), &case);
    let on = device.operands(&case, &numbers);
    let mut attention = device.attention(&case);
    let good = case.shape;
    let bad = [
        (AttentionShape { head_dim: 257, ..good }, "head_dim 257"),
        (AttentionShape { num_heads: 5, num_kv_heads: 2, ..good }, "no multiple of 2"),
        (AttentionShape { sliding_window: Some(0), ..good }, "window of 0"),
        (AttentionShape { softcap: Some(0.0), ..good }, "soft cap Some(0.0)"),
    ];
    for (shape, what) in bad {
        let operands = AttentionOperands {
            qkv: on.qkv.address(),
            kv_cache: on.kv_cache.address(),
            out: on.out.address(),
        };
        let result = attention.launch(&device.stream, on.step, 1, &shape, operands, DecodeKernel::Best);
        let reason = result.unwrap_err().reason;
        assert!(reason.contains(what), "{reason}");
    }
}

/// The page walk of these kernels is off by one: every row of more than one block must show it.
#[cfg(feature = "emulator")]
#[test]
fn a_planted_mistake_is_found() {
    let device = Device::open();
    quire_cuda::emulator::plant_mistakes(true);
    for seed in 0..5 {
        let mut rng = StdRng::seed_from_u64(seed);
        for head_dim in TUNED_HEAD_DIMS {
            let mut case = Case::random(&mut rng, Dtype::Bf16, DecodeKernel::Best, head_dim, 16);
            case.shape.sliding_window = None;
            case.rows = vec![Row { slot: 0, position: rng.random_range(16..150), num_tokens: 1 }];
            let numbers = Numbers::random(&mut rng, &case);
            let error = error(&case, &numbers, &device.run(&case, &numbers));
            assert!(error > 1.0, "seed {seed}: {error} of what is allowed: {case:?}");
        }
    }
}
