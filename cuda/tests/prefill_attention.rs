//! Prefill attention over random ragged batches: against sums in f64, and against itself in other company.
#![cfg(feature = "emulator")]

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use half::{bf16, f16};
use quire_cuda::driver::{Context, DeviceMemory, Stream};
use quire_cuda::prefill_attention::{AttentionOperands, PrefillAttention, PrefillKernel, TUNED_HEAD_DIMS};
use quire_cuda::{Kernels, KvStrides, StepPointers, emulator};
use quire_model::{AttentionShape, Dtype, KvScales, StepLimits};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// Which functions the stand-in gives is a matter of the process, so tests take turns.
static TURN: Mutex<()> = Mutex::new(());

struct Device {
    context: Arc<Context>,
    stream: Stream,
    kernels: Kernels,
    _turn: MutexGuard<'static, ()>,
}

impl Device {
    fn open() -> Self {
        Self::with_mistakes(false)
    }

    /// With those kernels that have one with a mistake in it, or with those that are to be right.
    fn with_mistakes(planted: bool) -> Self {
        let turn = TURN.lock().unwrap_or_else(|broken| broken.into_inner());
        emulator::use_stand_in();
        emulator::plant_mistakes(planted);
        let context = Context::new(0).unwrap();
        let stream = Stream::new(&context).unwrap();
        let kernels = Kernels::open(&context, None).unwrap();
        Self { context, stream, kernels, _turn: turn }
    }

    fn alloc(&self, bytes: usize) -> DeviceMemory {
        DeviceMemory::alloc(&self.context, bytes).unwrap()
    }

    fn write_words(&self, to: &DeviceMemory, words: &[u32]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.stream.write_bytes(to.address(), &bytes).unwrap();
    }
}

#[derive(Debug, Clone, Copy)]
struct Case {
    dtype: Dtype,
    shape: AttentionShape,
    block_size: usize,
    min_q_len: usize,
}

impl Case {
    /// One that tuned kernels exist for.
    fn tuned(rng: &mut StdRng) -> Self {
        let heads_per_group = [1, 2, 3, 4, 5, 6, 7, 8, 16][rng.random_range(0..9)];
        let num_kv_heads = rng.random_range(1..=if heads_per_group > 4 { 1 } else { 2 });
        let head_dim: usize = TUNED_HEAD_DIMS[rng.random_range(0..TUNED_HEAD_DIMS.len())];
        let shape = AttentionShape {
            num_heads: heads_per_group * num_kv_heads,
            num_kv_heads,
            head_dim,
            rotary_dim: head_dim,
            alibi: false,
            kv_group: 0,
            kv_scales: KvScales::default(),
            scale: (head_dim as f32).powf(-0.5),
            softcap: rng.random_bool(0.3).then(|| [5.0, 50.0][rng.random_range(0..2)]),
            sliding_window: rng.random_bool(0.3).then(|| rng.random_range(1..200)),
        };
        let dtype = [Dtype::Bf16, Dtype::F16][rng.random_range(0..2)];
        let block_size = [16, 32, 48][rng.random_range(0..3)];
        Self { dtype, shape, block_size, min_q_len: rng.random_range(1..=2) }
    }

    /// One for the plain kernels only.
    fn plain(rng: &mut StdRng) -> Self {
        let mut case = Self::tuned(rng);
        case.dtype = [Dtype::F32, Dtype::Bf16, Dtype::F16][rng.random_range(0..3)];
        case.shape.head_dim = rng.random_range(1..=256);
        case.block_size = rng.random_range(1..=40);
        case
    }

    fn group(&self) -> usize {
        self.shape.num_heads / self.shape.num_kv_heads
    }

    fn seen(&self, position: usize) -> Range<usize> {
        let end = position + 1;
        end.saturating_sub(self.shape.sliding_window.map_or(end, |window| window as usize))..end
    }

    /// Half the distance of two neighbours of 1, as the elements' type has them.
    fn unit(&self) -> f64 {
        match self.dtype {
            Dtype::F32 => 2f64.powi(-24),
            Dtype::Bf16 => 2f64.powi(-8),
            Dtype::F16 => 2f64.powi(-11),
        }
    }

    fn bytes_of(self, values: &[f32]) -> Vec<u8> {
        match self.dtype {
            Dtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Dtype::Bf16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        }
    }

    fn values_of(self, bytes: &[u8]) -> Vec<f32> {
        let halves = || bytes.as_chunks().0.iter();
        match self.dtype {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::Bf16 => halves().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::F16 => halves().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        }
    }
}

/// A request, token by token: queries `[tokens][heads][head_dim]`, keys and values `[tokens][kv_heads][head_dim]`, all
/// values of the elements' type.
struct Sequence {
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Sequence {
    fn random(rng: &mut StdRng, case: &Case, len: usize) -> Self {
        let AttentionShape { num_heads, num_kv_heads, head_dim, .. } = case.shape;
        // Large queries make sharp weights, which show a wrong key best.
        let sharpness = [1.0, 4.0][rng.random_range(0..2)];
        let mut random = |heads: usize, factor: f32| -> Vec<f32> {
            let values = (0..len * heads * head_dim).map(|_| factor * rng.random_range(-1.7_f32..1.7));
            case.values_of(&case.bytes_of(&values.collect::<Vec<_>>()))
        };
        Self {
            queries: random(num_heads, sharpness),
            keys: random(num_kv_heads, 1.0),
            values: random(num_kv_heads, 1.0),
        }
    }
}

/// A row of a step: `len` new tokens from position `start` on.
#[derive(Clone, Copy)]
struct Row<'a> {
    sequence: &'a Sequence,
    start: usize,
    len: usize,
}

impl Row<'_> {
    fn end(&self) -> usize {
        self.start + self.len
    }
}

/// Memory for steps of up to `MAX_ROWS` rows, at addresses that stay.
struct Arena<'d> {
    device: &'d Device,
    case: Case,
    attention: PrefillAttention,
    counts: DeviceMemory,
    row_slots: DeviceMemory,
    row_starts: DeviceMemory,
    row_positions: DeviceMemory,
    block_tables: DeviceMemory,
    qkv: DeviceMemory,
    kv_cache: DeviceMemory,
    out: DeviceMemory,
}

const MAX_ROWS: usize = 6;
const MAX_TOKENS: usize = 400;
const MAX_CONTEXT: usize = 520;
const POISON: u8 = 0xff;

impl<'d> Arena<'d> {
    fn new(device: &'d Device, case: Case) -> Self {
        let AttentionShape { num_heads, num_kv_heads, head_dim, .. } = case.shape;
        let limits = StepLimits {
            max_num_seqs: MAX_ROWS,
            max_num_batched_tokens: MAX_TOKENS,
            max_blocks_per_seq: MAX_CONTEXT.div_ceil(case.block_size),
            block_size: case.block_size,
            max_logits_rows: MAX_ROWS,
            vocab_size: 1,
            heads_per_group: case.group(),
            num_kv_groups: 1,
        };
        let attention =
            PrefillAttention::new(&device.context, &device.kernels, &limits, case.dtype, case.min_q_len)
                .unwrap();
        let elements = |len: usize| device.alloc(len * case.dtype.bytes());
        let block_len = 2 * num_kv_heads * case.block_size * head_dim;
        Self {
            device,
            case,
            attention,
            counts: device.alloc(32),
            row_slots: device.alloc(4 * MAX_ROWS),
            row_starts: device.alloc(4 * (MAX_ROWS + 1)),
            row_positions: device.alloc(4 * MAX_ROWS),
            block_tables: device.alloc(4 * (MAX_ROWS + 1) * limits.max_blocks_per_seq),
            qkv: elements(MAX_TOKENS * (num_heads + 2 * num_kv_heads) * head_dim),
            kv_cache: elements((1 + MAX_ROWS * limits.max_blocks_per_seq) * block_len),
            out: elements(MAX_TOKENS * num_heads * head_dim),
        }
    }

    fn step(&self) -> StepPointers {
        StepPointers {
            counts: self.counts.address(),
            token_ids: 0,
            positions: 0,
            token_slots: 0,
            row_slots: self.row_slots.address(),
            row_starts: self.row_starts.address(),
            row_positions: self.row_positions.address(),
            logits_tokens: 0,
            block_tables: self.block_tables.address(),
            block_table_stride: self.max_blocks() as i64,
        }
    }

    fn max_blocks(&self) -> usize {
        MAX_CONTEXT.div_ceil(self.case.block_size)
    }

    /// Writes a step with the rows' keys and values in blocks and slots taken at random. What no row owns is full of
    /// NaN, of blocks that do not exist in the case of tables.
    fn write(&self, rng: &mut StdRng, rows: &[Row]) {
        let AttentionShape { num_heads, num_kv_heads, head_dim, .. } = self.case.shape;
        let element_bytes = self.case.dtype.bytes();
        let kv = KvStrides::new(num_kv_heads, self.case.block_size, head_dim);
        let mut blocks: Vec<u32> = (1..=(MAX_ROWS * self.max_blocks()) as u32).collect();
        blocks.shuffle(rng);
        let mut slots: Vec<u32> = (0..MAX_ROWS as u32).collect();
        slots.shuffle(rng);
        let mut tables = vec![u32::MAX; (MAX_ROWS + 1) * self.max_blocks()];
        let mut cache = vec![POISON; self.kv_cache.len()];
        let mut qkv = vec![POISON; self.qkv.len()];
        let put = |to: &mut [u8], at: usize, values: &[f32]| {
            let bytes = self.case.bytes_of(values);
            to[at * element_bytes..][..bytes.len()].copy_from_slice(&bytes);
        };
        let mut starts = vec![0];
        for (row, slot) in rows.iter().zip(&slots) {
            let table = &mut tables[*slot as usize * self.max_blocks()..];
            for entry in &mut table[..row.end().div_ceil(self.case.block_size)] {
                *entry = blocks.pop().unwrap();
            }
            for (position, head) in (0..row.end()).flat_map(|p| (0..num_kv_heads).map(move |h| (p, h))) {
                let block = table[position / self.case.block_size] as usize;
                let token = position % self.case.block_size;
                let at = block * kv.block as usize + head * kv.head as usize + token * kv.token as usize;
                let from = (position * num_kv_heads + head) * head_dim;
                put(&mut cache, at, &row.sequence.keys[from..][..head_dim]);
                put(&mut cache, at + kv.plane as usize, &row.sequence.values[from..][..head_dim]);
            }
            let first = *starts.last().unwrap() as usize;
            for token in 0..row.len {
                let from = (row.start + token) * num_heads * head_dim;
                let at = (first + token) * (num_heads + 2 * num_kv_heads) * head_dim;
                put(&mut qkv, at, &row.sequence.queries[from..][..num_heads * head_dim]);
            }
            starts.push((first + row.len) as u32);
        }
        let device = self.device;
        device.write_words(&self.counts, &[*starts.last().unwrap(), rows.len() as u32]);
        device.write_words(&self.row_slots, &slots[..rows.len()]);
        device.write_words(&self.row_starts, &starts);
        device.write_words(&self.row_positions, &rows.iter().map(|row| row.start as u32).collect::<Vec<_>>());
        device.write_words(&self.block_tables, &tables);
        device.stream.write_bytes(self.kv_cache.address(), &cache).unwrap();
        device.stream.write_bytes(self.qkv.address(), &qkv).unwrap();
        device.stream.fill(self.out.address(), POISON, self.out.len()).unwrap();
    }

    fn plan(&self) {
        self.attention.plan(&self.device.stream, self.step()).unwrap();
    }

    fn launch(&self, rows: &[Row], kernel: PrefillKernel) {
        let ends: Vec<u32> =
            rows.iter().scan(0, |end, row| Some(*end + row.len as u32).inspect(|e| *end = *e)).collect();
        let grid = self.attention.grid(&ends, rows.len());
        let operands = AttentionOperands {
            qkv: self.qkv.address(),
            kv_cache: self.kv_cache.address(),
            out: self.out.address(),
        };
        self.attention
            .launch(&self.device.stream, self.step(), grid, &self.case.shape, operands, kernel)
            .unwrap();
    }

    /// Of each row `[len][heads][head_dim]`.
    fn read(&self, rows: &[Row]) -> Vec<Vec<f32>> {
        let mut bytes = vec![0; self.out.len()];
        self.device.stream.read_bytes(self.out.address(), &mut bytes).unwrap();
        let mut elements = self.case.values_of(&bytes).into_iter();
        let width = self.case.shape.num_heads * self.case.shape.head_dim;
        rows.iter().map(|row| elements.by_ref().take(row.len * width).collect()).collect()
    }

    fn attend(&self, rng: &mut StdRng, rows: &[Row], kernel: PrefillKernel) -> Vec<Vec<f32>> {
        self.write(rng, rows);
        self.plan();
        self.launch(rows, kernel);
        self.read(rows)
    }
}

/// What is wrong with a row's result, if something is.
///
/// The bound on the error has a term for each rounding: of the weights to the elements' type, before they meet the
/// values; of the result; of the sums and exponents in f32 (an exponent of about 100 has an error of 1e-5, and so
/// the weight, relatively); and of weights that are subnormal numbers in f16.
fn difference(case: &Case, row: &Row, got: &[f32], kernel: PrefillKernel) -> Option<String> {
    let AttentionShape { num_heads, num_kv_heads, head_dim, scale, softcap, .. } = case.shape;
    let Sequence { queries, keys, values, .. } = row.sequence;
    let weight_unit = if kernel == PrefillKernel::Plain { 0.0 } else { case.unit() };
    for (index, got) in got.chunks_exact(head_dim).enumerate() {
        let (position, head) = (row.start + index / num_heads, index % num_heads);
        let query = &queries[(position * num_heads + head) * head_dim..][..head_dim];
        let at = |key: usize| (key * num_kv_heads + head / case.group()) * head_dim;
        let seen = case.seen(position);
        let scores = seen.clone().map(|key| {
            let key = &keys[at(key)..][..head_dim];
            let product: f64 = query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
            let score = product * f64::from(scale);
            softcap.map(f64::from).map_or(score, |cap| cap * (score / cap).tanh())
        });
        let scores: Vec<f64> = scores.collect();
        let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - greatest).exp()).sum();
        // Weighted means of the values and of their sizes.
        let mut means = vec![(0.0, 0.0); head_dim];
        for (score, key) in scores.iter().zip(seen.clone()) {
            let weight = (score - greatest).exp() / sum;
            for (mean, value) in means.iter_mut().zip(&values[at(key)..]) {
                mean.0 += weight * f64::from(*value);
                mean.1 += weight * f64::from(value.abs());
            }
        }
        let subnormal = if case.dtype == Dtype::F16 { seen.len() as f64 * 2f64.powi(-24) } else { 0.0 };
        for (d, (got, (expected, size))) in got.iter().zip(means).enumerate() {
            let tolerance = (weight_unit + 2e-5) * size + case.unit() * expected.abs() + subnormal + 1e-7;
            let error = (f64::from(*got) - expected).abs();
            if error.is_nan() || error > tolerance {
                let place = format!("position {position}, head {head}, dimension {d}");
                return Some(format!("{place}: {got}, but {expected} ± {tolerance} is right; {case:?}"));
            }
        }
    }
    None
}

/// Rows of 1 to 200 tokens over 0 to 300 cached ones, of sequences that may go on behind them. Heads multiply work.
fn random_rows<'a>(rng: &mut StdRng, case: &Case, sequences: &'a mut Vec<Sequence>) -> Vec<Row<'a>> {
    let longest = (500 / case.shape.num_heads + 2).min(200);
    let spans: Vec<(usize, usize)> = (0..rng.random_range(1..=MAX_ROWS))
        .map(|_| {
            let longest = if rng.random_bool(0.6) { longest } else { 3 };
            let len = rng.random_range(1..=longest);
            (if rng.random_bool(0.5) { rng.random_range(0..=300) } else { 0 }, len)
        })
        .scan(MAX_TOKENS, |left, (start, len)| {
            *left = left.checked_sub(len)?;
            Some((start, len))
        })
        .collect();
    for (start, len) in &spans {
        let behind = rng.random_range(0..5);
        sequences.push(Sequence::random(rng, case, start + len + behind));
    }
    let row = |(sequence, (start, len)): (&'a Sequence, &(usize, usize))| Row {
        sequence,
        start: *start,
        len: *len,
    };
    sequences.iter().zip(&spans).map(row).collect()
}

/// The first difference over many random steps.
fn search(
    device: &Device,
    seeds: Range<u64>,
    kernel: PrefillKernel,
    case: fn(&mut StdRng) -> Case,
) -> Option<String> {
    seeds.into_iter().find_map(|seed| {
        let rng = &mut StdRng::seed_from_u64(seed);
        let case = case(rng);
        let mut sequences = Vec::new();
        let rows = random_rows(rng, &case, &mut sequences);
        let results = Arena::new(device, case).attend(rng, &rows, kernel);
        let wrong = rows.iter().zip(&results).find_map(|(row, got)| match row.len < case.min_q_len {
            true => got.iter().any(|x| !x.is_nan()).then(|| "a row that is not ours was written".to_owned()),
            false => difference(&case, row, got, kernel),
        });
        wrong.map(|what| format!("seed {seed}: {what}"))
    })
}

#[test]
fn tuned_kernels_are_right() {
    assert_eq!(search(&Device::open(), 0..60, PrefillKernel::Best, Case::tuned), None);
}

#[test]
fn plain_kernels_are_right() {
    assert_eq!(search(&Device::open(), 0..16, PrefillKernel::Plain, Case::plain), None);
}

#[test]
fn shapes_without_a_tuned_kernel_get_the_plain_one() {
    assert_eq!(search(&Device::open(), 100..108, PrefillKernel::Best, Case::plain), None);
}

#[test]
fn a_mistake_in_the_page_walk_is_seen() {
    let wrong = search(&Device::with_mistakes(true), 0..60, PrefillKernel::Best, Case::tuned);
    assert!(wrong.is_some(), "the comparison lets everything pass");
}

/// A row's result, bit for bit, must be what the whole of its tokens gave: in pieces of any length, in any company,
/// in any blocks.
#[test]
fn results_depend_on_nothing_but_the_sequence() {
    let device = Device::open();
    for seed in 0..32 {
        let rng = &mut StdRng::seed_from_u64(1000 + seed);
        // The plain kernels take long.
        let kernel = if seed % 8 == 7 { PrefillKernel::Plain } else { PrefillKernel::Best };
        let case = Case { min_q_len: 1, ..Case::tuned(rng) };
        let mut sequences = Vec::new();
        let rows = random_rows(rng, &case, &mut sequences);
        let arena = Arena::new(&device, case);
        let whole = arena.attend(rng, &rows, kernel);
        let width = case.shape.num_heads * case.shape.head_dim;
        let mut start = rows[0].start;
        while start < rows[0].end() {
            // A third of the pieces are one token, as in decoding.
            let longest = if rng.random_bool(0.3) { 1 } else { rows[0].end() - start };
            let len = rng.random_range(1..=longest);
            let piece = Row { start, len, ..rows[0] };
            let mut company: Vec<Row> = rows[1..].iter().copied().filter(|_| rng.random_bool(0.5)).collect();
            let place = rng.random_range(0..=company.len());
            company.insert(place, piece);
            let got = &arena.attend(rng, &company, kernel)[place];
            let expected = &whole[0][(start - rows[0].start) * width..][..piece.len * width];
            let differs = got.iter().zip(expected).position(|(a, b)| a.to_bits() != b.to_bits());
            assert_eq!(differs, None, "seed {seed}: tokens {start}..{} of {case:?}", piece.end());
            start = piece.end();
        }
    }
}

/// A recorded launch serves later steps of as many rows of one token, with the plan made outside.
#[test]
fn recorded_decode_steps_can_be_repeated() {
    let device = Device::open();
    for seed in 0..10 {
        let rng = &mut StdRng::seed_from_u64(2000 + seed);
        let case = Case { min_q_len: 1, ..Case::tuned(rng) };
        let arena = Arena::new(&device, case);
        let sequences: Vec<Sequence> =
            (0..MAX_ROWS).map(|_| Sequence::random(rng, &case, MAX_CONTEXT)).collect();
        let mut rows = || -> Vec<Row> {
            let row = |sequence| Row { sequence, start: rng.random_range(0..MAX_CONTEXT), len: 1 };
            sequences.iter().map(row).collect()
        };
        let (first, second) = (rows(), rows());
        arena.write(rng, &first);
        arena.plan();
        device.stream.begin_capture().unwrap();
        arena.launch(&first, PrefillKernel::Best);
        let graph = device.stream.end_capture().unwrap();
        for rows in [second, first] {
            arena.write(rng, &rows);
            arena.plan();
            device.stream.launch_graph(&graph).unwrap();
            for (row, got) in rows.iter().zip(arena.read(&rows)) {
                assert_eq!(difference(&case, row, &got, PrefillKernel::Best), None, "seed {seed}");
            }
        }
    }
}

#[test]
fn what_the_kernels_cannot_do_is_refused() {
    let device = Device::open();
    let case = Case { min_q_len: 1, ..Case::tuned(&mut StdRng::seed_from_u64(0)) };
    let arena = Arena::new(&device, case);
    let grid = arena.attention.grid(&[1], 1);
    let operands = AttentionOperands { qkv: 0, kv_cache: 0, out: 0 };
    let refused = |change: fn(&mut AttentionShape)| {
        let mut shape = case.shape;
        change(&mut shape);
        let (stream, step) = (&device.stream, arena.step());
        let result = arena.attention.launch(stream, step, grid, &shape, operands, PrefillKernel::Best);
        result.unwrap_err().reason
    };
    assert!(refused(|shape| shape.head_dim = 257).contains("257"));
    assert!(refused(|shape| shape.num_heads += 1).contains("groups"));
    assert!(refused(|shape| shape.sliding_window = Some(0)).contains("window"));
    assert!(refused(|shape| shape.scale = 0.0).contains("scale"));
}
