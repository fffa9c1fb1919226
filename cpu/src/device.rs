//! [`CpuBackend`]: the threads and the memory that all operations work with.

use std::ops::Range;

use quire_model::{
    AttentionShape, BackendError, KvDtype, NormSpan, QkNorm, RowResult, SamplerScratch, StepInputs,
    StepLimits,
};

use crate::attention_step::AttentionMemory;
use crate::elementwise::norm_spans;
use crate::lanes::{Element, Isa};
use crate::linear::UnpackScratch;
use crate::lora::LoraBatch;
use crate::moe::MoeScratch;
use crate::pool::Pool;
use crate::shared::SharedSlice;
use crate::weight::CpuWeight;

/// How a backend uses the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads that compute, the caller's among them; `None` = as many as the process may use.
    pub num_threads: Option<usize>,
    /// Instruction set; `None` = the best there is. Results do not depend on it.
    pub isa: Option<Isa>,
}

/// The CPU as a device.
pub struct CpuBackend {
    pub(crate) pool: Pool,
    pub(crate) isa: Isa,
    pub(crate) kv_dtype: KvDtype,
    pub(crate) int8_activations: bool,
    pub(crate) num_integer_matrices: usize,
    pub(crate) limits: StepLimits,
    pub(crate) step: StepInputs,
    /// `[group][slot][max_blocks_per_seq]`.
    pub(crate) block_tables: Vec<u32>,
    /// `[slot]` the token last sampled.
    pub(crate) last_tokens: Vec<u32>,
    pub(crate) scratch: Vec<WorkerScratch>,
    pub(crate) unpacked: UnpackScratch,
    pub(crate) results: Vec<RowResult>,
    /// Results of the step; the rest of `results` is memory for later steps.
    pub(crate) num_results: usize,
    /// Vectors of the step.
    pub(crate) pooled: Vec<f32>,
    pub(crate) moe: MoeScratch,
    pub(crate) attention: AttentionMemory,
    pub(crate) lora: LoraBatch,
}

/// Memory of one thread.
pub(crate) struct WorkerScratch {
    pub(crate) sampler: SamplerScratch,
}

/// Numbers touched below which an operation stays on the caller's thread.
pub(crate) const MIN_WORK_PER_CHUNK: usize = 32_768;

impl CpuBackend {
    /// Starts the threads.
    pub fn new(options: CpuOptions) -> Result<Self, BackendError> {
        let available = Isa::available();
        let isa = options.isa.unwrap_or(available[0]);
        if !available.contains(&isa) {
            return Err(error(format!("this machine has no {isa:?}; it has {available:?}")));
        }
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let num_threads = options.num_threads.unwrap_or_else(cores).max(1);
        let pool =
            Pool::new(num_threads).map_err(|e| error(format!("cannot start {num_threads} threads: {e}")))?;
        Ok(Self {
            pool,
            isa,
            kv_dtype: KvDtype::F32,
            int8_activations: false,
            num_integer_matrices: 0,
            limits: StepLimits {
                max_num_seqs: 0,
                max_num_batched_tokens: 0,
                max_blocks_per_seq: 0,
                block_size: 1,
                max_logits_rows: 0,
                vocab_size: 0,
                heads_per_group: 0,
                num_kv_groups: 1,
            },
            step: StepInputs::default(),
            block_tables: Vec::new(),
            last_tokens: Vec::new(),
            scratch: Vec::new(),
            unpacked: UnpackScratch::default(),
            results: Vec::new(),
            num_results: 0,
            pooled: Vec::new(),
            moe: MoeScratch::default(),
            attention: AttentionMemory::default(),
            lora: LoraBatch::default(),
        })
    }

    /// The same, with keys and values kept as `dtype`; else they are f32.
    pub fn with_kv_dtype(self, dtype: KvDtype) -> Self {
        Self { kv_dtype: dtype, ..self }
    }

    /// The same, with activations rounded to 8 bits for products by packed integers that are loaded from now on: with
    /// a scale for each 32, anew for each product. Else activations are f32.
    pub fn with_int8_activations(self, int8_activations: bool) -> Self {
        Self { int8_activations, ..self }
    }

    /// Matrices loaded so that rounded activations are multiplied by them as integers.
    pub fn num_integer_matrices(&self) -> usize {
        self.num_integer_matrices
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Calls `f(row)` for every row, several rows a chunk; `row_work` is the cost of one.
    pub(crate) fn for_rows(&mut self, rows: usize, row_work: usize, f: impl Fn(usize) + Sync) {
        let per_chunk = (MIN_WORK_PER_CHUNK / row_work.max(1)).max(1);
        self.pool.run(rows.div_ceil(per_chunk), &|_, chunk| {
            (chunk * per_chunk..rows.min((chunk + 1) * per_chunk)).for_each(&f);
        });
    }

    /// Norm of the queries and keys of the step's tokens.
    pub(crate) fn norm_heads(
        &mut self,
        shape: &AttentionShape,
        norm: &QkNorm<'_, CpuWeight>,
        qkv: &mut [f32],
    ) {
        let (isa, qkv) = (self.isa, SharedSlice::new(qkv));
        let (q, kv) = (shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim);
        let width = |all: usize| if norm.span == NormSpan::Whole { all } else { shape.head_dim };
        self.for_rows(self.step.num_tokens(), q + kv, |row| {
            // SAFETY: each row is computed once.
            #[allow(unsafe_code)]
            let qkv = unsafe { row_of(&qkv, row, q + 2 * kv) };
            let (queries, rest) = qkv.split_at_mut(q);
            norm_spans(isa, norm.kind, width(q), queries, norm.q_weight.f32(), norm.eps);
            norm_spans(isa, norm.kind, width(kv), &mut rest[..kv], norm.k_weight.f32(), norm.eps);
        });
    }

    /// Writes to all of a new buffer, so that the system provides its pages now: a machine without the memory
    /// fails at the start, not under load, and a server's memory does not grow while it serves.
    pub(crate) fn touch<T: Element>(&mut self, buffer: &mut [T]) {
        let len = buffer.len();
        let shared = SharedSlice::new(buffer);
        self.pool.run(len.div_ceil(TOUCH_CHUNK_LEN), &|_, chunk| {
            let first = chunk * TOUCH_CHUNK_LEN;
            // SAFETY: each chunk is handed to one thread once, and chunks do not overlap.
            #[allow(unsafe_code)]
            unsafe { shared.part(first, TOUCH_CHUNK_LEN.min(len - first)) }.fill(T::default());
        });
    }
}

/// Elements that a thread takes at a time where rows mean nothing.
pub(crate) const ELEMENT_CHUNK: usize = 4096;

pub(crate) fn chunk_of(len: usize, chunk: usize) -> Range<usize> {
    chunk * ELEMENT_CHUNK..len.min((chunk + 1) * ELEMENT_CHUNK)
}

/// Elements of a new buffer that a thread fills at a time: some MiB.
const TOUCH_CHUNK_LEN: usize = 1 << 20;

pub(crate) fn error(reason: String) -> BackendError {
    BackendError { device: "cpu", reason, fatal: false }
}

/// One row of an output that rows are computed into in parallel.
///
/// # Safety
/// As [`SharedSlice::part`]: each row at most once at a time.
#[allow(unsafe_code, clippy::mut_from_ref)]
pub(crate) unsafe fn row_of<'a>(out: &'a SharedSlice<'_, f32>, row: usize, width: usize) -> &'a mut [f32] {
    // SAFETY: rows do not overlap, and the caller has each only once.
    unsafe { out.part(row * width, width) }
}
