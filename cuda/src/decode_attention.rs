//! [`DecodeAttention`]: attention of rows of one token, by kernels/decode_attention.cu.
//!
//! The grid of the tuned kernel is as many blocks as the GPU runs at the same time, whatever the step: the device
//! itself finds which part of the work is whose, from a plan that one kernel makes a step. So a launch can be
//! recorded once and repeated for rows of any length.

use std::sync::Arc;

use quire_model::{AttentionShape, BackendError, Dtype, StepLimits};

use crate::driver::{Context, CudaError, DeviceMemory, Function, Stream};
use crate::kernels::{KernelError, Kernels};
use crate::prefill_attention::{AttentionOperands, BLOCK_SIZE_MULTIPLE, MAX_HEAD_DIM, TUNED_HEAD_DIMS};
use crate::refusal::refusal;
use crate::small_kernels::{KvStrides, suffix};
use crate::step::StepPointers;

/// The kernels, and all memory that they need besides their operands.
#[derive(Debug)]
pub struct DecodeAttention {
    plan: Function,
    /// By [`TUNED_HEAD_DIMS`]; none for element types that they do not exist for.
    tuned: Vec<TunedKernel>,
    plain: Function,
    plans: [Plan; NUM_PLANS],
    /// Partial results of rows that several blocks work on; see `partial_of` in the kernel.
    partials: DeviceMemory,
    /// A counter a block, 0 between launches.
    arrivals: DeviceMemory,
    num_sms: u32,
    block_size: usize,
    max_tiles: usize,
}

/// Which kernels to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeKernel {
    /// The fast one where there is one for the shape.
    Best,
    /// The simple one, which takes every shape.
    Plain,
}

/// What there is for one width of heads.
#[derive(Debug)]
struct TunedKernel {
    head_dim: usize,
    uncapped: Function,
    capped: Function,
    blocks_per_sm: u32,
}

/// Where the work of rows lies, if each token sees `window` tokens.
#[derive(Debug)]
struct Plan {
    _memory: DeviceMemory,
    pointers: PlanPointers,
    /// Of the plan made last in this step.
    window: Option<u64>,
}

/// Models have layers with a sliding window and layers without. Were there more kinds, they would take turns.
const NUM_PLANS: usize = 2;
/// No window, to the kernels.
const UNLIMITED_WINDOW: u64 = u64::MAX;

// As in the kernels.
const TILE_TOKENS: usize = 64;
const SUB_TOKENS: usize = 16;
const TILE_HEADS: usize = 16;
const STAGES: usize = 3;
const PLAN_THREADS: u32 = 256;
const PLAIN_THREADS: u32 = 256;
const ROW_BYTES: usize = 16;
const WARP: usize = 32;

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct PlanPointers {
    counts: u64,
    tile_starts: u64,
    rows: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct PlanDecodeAttentionParams {
    step: StepPointers,
    plan: PlanPointers,
    window: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct DecodeAttentionParams {
    plan: PlanPointers,
    qkv: u64,
    kv_cache: u64,
    out: u64,
    block_tables: u64,
    partials: u64,
    arrivals: u64,
    block_table_stride: i64,
    qkv_stride: i64,
    out_stride: i64,
    kv: KvStrides,
    num_kv_heads: u32,
    heads_per_group: u32,
    head_tiles: u32,
    block_size: u32,
    power_factor: f32,
    exp2_factor: f32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct DecodeAttentionPlainParams {
    step: StepPointers,
    qkv: u64,
    kv_cache: u64,
    out: u64,
    qkv_stride: i64,
    out_stride: i64,
    kv: KvStrides,
    window: u64,
    heads_per_group: u32,
    head_dim: u32,
    block_size: u32,
    scale: f32,
    softcap: f32,
    unused: u32,
}

const _: () = {
    assert!(size_of::<PlanDecodeAttentionParams>() == 112);
    assert!(size_of::<DecodeAttentionParams>() == 152);
    assert!(size_of::<DecodeAttentionPlainParams>() == 184);
};

impl DecodeAttention {
    /// For steps within `limits` and elements of type `dtype`, on `num_sms` multiprocessors.
    pub fn new(
        context: &Arc<Context>,
        stream: &Stream,
        kernels: &Kernels,
        limits: &StepLimits,
        num_sms: u32,
        dtype: Dtype,
    ) -> Result<Self, BackendError> {
        let tuned = tuned_kernels(kernels, dtype)?;
        let arrivals = DeviceMemory::alloc(context, arrivals_bytes(num_sms, dtype))?;
        stream.fill(arrivals.address(), 0, arrivals.len())?;
        Ok(Self {
            plan: kernels.function("plan_decode_attention")?,
            tuned,
            plain: kernels.function(&format!("decode_attention_plain_{}", suffix(dtype)))?,
            plans: [Plan::new(context, limits)?, Plan::new(context, limits)?],
            partials: DeviceMemory::alloc(context, partials_bytes(num_sms, dtype))?,
            arrivals,
            num_sms,
            block_size: limits.block_size,
            max_tiles: max_tiles(limits),
        })
    }

    /// Bytes on the device that [`Self::new`] allocates.
    pub fn scratch_bytes(limits: &StepLimits, num_sms: u32, dtype: Dtype) -> usize {
        NUM_PLANS * Plan::bytes(limits) + partials_bytes(num_sms, dtype) + arrivals_bytes(num_sms, dtype)
    }

    /// To be called when a step, or the recording of one, begins: plans of the step before are void.
    pub fn begin_step(&mut self) {
        for plan in &mut self.plans {
            plan.window = None;
        }
    }

    /// Attention of one layer, for the rows of one token among the step's `num_rows`; others are left alone. The
    /// step's first launch for a window also plans the work.
    pub fn launch(
        &mut self,
        stream: &Stream,
        step: StepPointers,
        num_rows: usize,
        shape: &AttentionShape,
        operands: AttentionOperands,
        kernel: DecodeKernel,
    ) -> Result<(), BackendError> {
        check(shape)?;
        if num_rows == 0 {
            return Ok(());
        }
        if kernel == DecodeKernel::Best
            && let Some(index) = self.tuned_index(shape)
        {
            let plan = self.planned(stream, step, shape)?;
            let params = self.tuned_params(step, plan, shape, operands);
            let tuned = &self.tuned[index];
            let function = if shape.softcap.is_some() { &tuned.capped } else { &tuned.uncapped };
            let grid = [self.num_sms * tuned.blocks_per_sm, 1, 1];
            let (threads, shared_bytes) = (threads(tuned.head_dim), shared_bytes(tuned.head_dim));
            return Ok(stream.launch(function, grid, threads, shared_bytes, &params)?);
        }
        let params = self.plain_params(step, shape, operands);
        let shared_bytes = 4 * (PLAIN_THREADS + PLAIN_THREADS / WARP as u32 + shape.head_dim as u32);
        let grid = [num_rows as u32, shape.num_heads as u32, 1];
        Ok(stream.launch(&self.plain, grid, PLAIN_THREADS, shared_bytes, &params)?)
    }

    /// The tuned kernel that serves this shape.
    fn tuned_index(&self, shape: &AttentionShape) -> Option<usize> {
        let index = self.tuned.iter().position(|tuned| tuned.head_dim == shape.head_dim)?;
        // The kernel counts units of work in 32 bits.
        let units = self.max_tiles * shape.num_kv_heads * head_tiles(shape);
        let fits = self.block_size.is_multiple_of(BLOCK_SIZE_MULTIPLE) && units < 1 << 31;
        fits.then_some(index)
    }

    /// The plan for the shape's window, made now if this step has none yet.
    fn planned(
        &mut self,
        stream: &Stream,
        step: StepPointers,
        shape: &AttentionShape,
    ) -> Result<PlanPointers, CudaError> {
        let window = window(shape);
        if let Some(plan) = self.plans.iter().find(|plan| plan.window == Some(window)) {
            return Ok(plan.pointers);
        }
        // The least recent is last.
        self.plans.rotate_right(1);
        let plan = &mut self.plans[0];
        let params = PlanDecodeAttentionParams { step, plan: plan.pointers, window };
        let shared_bytes = PLAN_THREADS / WARP as u32 * 4;
        stream.launch(&self.plan, [1, 1, 1], PLAN_THREADS, shared_bytes, &params)?;
        plan.window = Some(window);
        Ok(plan.pointers)
    }

    fn tuned_params(
        &self,
        step: StepPointers,
        plan: PlanPointers,
        shape: &AttentionShape,
        operands: AttentionOperands,
    ) -> DecodeAttentionParams {
        let log2_e = std::f32::consts::LOG2_E;
        let (power_factor, exp2_factor) = match shape.softcap {
            Some(cap) => (2.0 * shape.scale / cap * log2_e, cap * log2_e),
            None => (0.0, shape.scale * log2_e),
        };
        DecodeAttentionParams {
            plan,
            qkv: operands.qkv,
            kv_cache: operands.kv_cache,
            out: operands.out,
            block_tables: step.block_tables,
            partials: self.partials.address(),
            arrivals: self.arrivals.address(),
            block_table_stride: step.block_table_stride,
            qkv_stride: qkv_stride(shape),
            out_stride: out_stride(shape),
            kv: KvStrides::new(shape.num_kv_heads, self.block_size, shape.head_dim),
            num_kv_heads: shape.num_kv_heads as u32,
            heads_per_group: heads_per_group(shape) as u32,
            head_tiles: head_tiles(shape) as u32,
            block_size: self.block_size as u32,
            power_factor,
            exp2_factor,
        }
    }

    fn plain_params(
        &self,
        step: StepPointers,
        shape: &AttentionShape,
        operands: AttentionOperands,
    ) -> DecodeAttentionPlainParams {
        DecodeAttentionPlainParams {
            step,
            qkv: operands.qkv,
            kv_cache: operands.kv_cache,
            out: operands.out,
            qkv_stride: qkv_stride(shape),
            out_stride: out_stride(shape),
            kv: KvStrides::new(shape.num_kv_heads, self.block_size, shape.head_dim),
            window: window(shape),
            heads_per_group: heads_per_group(shape) as u32,
            head_dim: shape.head_dim as u32,
            block_size: self.block_size as u32,
            scale: shape.scale,
            softcap: shape.softcap.unwrap_or(0.0),
            unused: 0,
        }
    }
}

impl Plan {
    fn new(context: &Arc<Context>, limits: &StepLimits) -> Result<Self, CudaError> {
        let memory = DeviceMemory::alloc(context, Self::bytes(limits))?;
        // Rows are read 16 bytes at a time, so they come first.
        let rows = memory.address();
        let tile_starts = rows + (limits.max_num_seqs * ROW_BYTES) as u64;
        let counts = tile_starts + (limits.max_num_seqs as u64 + 1) * 4;
        Ok(Self { _memory: memory, pointers: PlanPointers { counts, tile_starts, rows }, window: None })
    }

    /// Rows, where the tiles of each begin and of the last end, and three counts.
    fn bytes(limits: &StepLimits) -> usize {
        limits.max_num_seqs * ROW_BYTES + (limits.max_num_seqs + 1) * 4 + 3 * 4
    }
}

/// What the kernels cannot do, in words.
fn check(shape: &AttentionShape) -> Result<(), BackendError> {
    let &AttentionShape { num_heads, num_kv_heads, head_dim, .. } = shape;
    let is_positive = |x: f32| x > 0.0 && x.is_finite();
    let reason = if !(1..=MAX_HEAD_DIM).contains(&head_dim) {
        format!("head_dim {head_dim} is not among 1 to {MAX_HEAD_DIM}")
    } else if num_kv_heads == 0 || num_heads % num_kv_heads != 0 {
        format!("{num_heads} query heads are no multiple of {num_kv_heads} key-value heads")
    } else if !is_positive(shape.scale) || !shape.softcap.is_none_or(is_positive) {
        format!("scale {} and soft cap {:?} of attention must be positive", shape.scale, shape.softcap)
    } else if shape.sliding_window == Some(0) {
        "a sliding window of 0 tokens hides a token from itself".to_owned()
    } else {
        return Ok(());
    };
    Err(refusal(reason))
}

/// One for each of [`TUNED_HEAD_DIMS`], or none.
fn tuned_kernels(kernels: &Kernels, dtype: Dtype) -> Result<Vec<TunedKernel>, KernelError> {
    let one = |&head_dim: &usize| {
        let capped = kernels.function(&format!("decode_attention_softcap_{}_d{head_dim}", suffix(dtype)))?;
        let uncapped = kernels.function(&format!("decode_attention_{}_d{head_dim}", suffix(dtype)))?;
        let mut blocks_per_sm = max_blocks_per_sm(head_dim);
        for function in [&capped, &uncapped] {
            function.allow_shared_bytes(shared_bytes(head_dim))?;
            let resident = function.blocks_per_sm(threads(head_dim), shared_bytes(head_dim))?;
            blocks_per_sm = blocks_per_sm.min(resident);
        }
        Ok(TunedKernel { head_dim, uncapped, capped, blocks_per_sm: blocks_per_sm.max(1) })
    };
    if is_tuned(dtype) { TUNED_HEAD_DIMS.iter().map(one).collect() } else { Ok(Vec::new()) }
}

/// Products of 16-bit numbers only.
fn is_tuned(dtype: Dtype) -> bool {
    dtype.bytes() == 2
}

/// As `Layout` in the kernel.
fn num_warps(head_dim: usize) -> usize {
    if head_dim <= 128 { 4 } else { 2 }
}

fn max_blocks_per_sm(head_dim: usize) -> u32 {
    if head_dim <= 64 { 4 } else { 2 }
}

fn threads(head_dim: usize) -> u32 {
    (num_warps(head_dim) * WARP) as u32
}

/// The rings of a block's warps: keys and values of 2 bytes.
fn shared_bytes(head_dim: usize) -> u32 {
    (num_warps(head_dim) * STAGES * 2 * SUB_TOKENS * head_dim * 2) as u32
}

/// Two partial results for each block of the largest grid.
fn partials_bytes(num_sms: u32, dtype: Dtype) -> usize {
    let floats = |&head_dim: &usize| 2 * max_blocks_per_sm(head_dim) as usize * TILE_HEADS * (head_dim + 4);
    if !is_tuned(dtype) {
        return 0;
    }
    num_sms as usize * 4 * TUNED_HEAD_DIMS.iter().map(floats).max().unwrap_or(0)
}

fn arrivals_bytes(num_sms: u32, dtype: Dtype) -> usize {
    let blocks = TUNED_HEAD_DIMS.map(max_blocks_per_sm).into_iter().max().unwrap_or(0);
    if is_tuned(dtype) { (num_sms * blocks) as usize * 4 } else { 0 }
}

/// Tiles of all rows of a step at most.
fn max_tiles(limits: &StepLimits) -> usize {
    limits.max_num_seqs * (limits.max_blocks_per_seq * limits.block_size).div_ceil(TILE_TOKENS)
}

fn window(shape: &AttentionShape) -> u64 {
    shape.sliding_window.map_or(UNLIMITED_WINDOW, u64::from)
}

fn heads_per_group(shape: &AttentionShape) -> usize {
    shape.num_heads / shape.num_kv_heads
}

fn head_tiles(shape: &AttentionShape) -> usize {
    heads_per_group(shape).div_ceil(TILE_HEADS)
}

fn qkv_stride(shape: &AttentionShape) -> i64 {
    ((shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim) as i64
}

fn out_stride(shape: &AttentionShape) -> i64 {
    (shape.num_heads * shape.head_dim) as i64
}
