//! The kernels of the straight line between products and attention: their parameters, mirrored from
//! kernels/*.cu, and their launches.

use quire_model::Dtype;

use crate::driver::{CudaError, Function, Stream};
use crate::kernels::{KernelError, Kernels};
use crate::step::StepPointers;

/// The functions for one element type of activations.
#[derive(Debug)]
pub(crate) struct SmallKernels {
    embed: Function,
    rms_norm: Function,
    rope_and_cache: Function,
    silu_mul: Function,
    gather: Function,
    fill_dummy: Function,
}

/// Mirrors of the kernels' parameters; the kernels say what they mean.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct EmbedParams {
    pub(crate) step: StepPointers,
    pub(crate) table: u64,
    pub(crate) out: u64,
    pub(crate) width: i32,
    pub(crate) unused: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormParams {
    pub(crate) x: u64,
    pub(crate) residual: u64,
    pub(crate) weight: u64,
    pub(crate) bias: u64,
    pub(crate) out: u64,
    pub(crate) width: i32,
    pub(crate) eps: f32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct RopeParams {
    pub(crate) step: StepPointers,
    pub(crate) qkv: u64,
    pub(crate) kv_cache: u64,
    pub(crate) table: u64,
    pub(crate) q_weight: u64,
    pub(crate) k_weight: u64,
    pub(crate) kv: KvStrides,
    pub(crate) num_heads: i32,
    pub(crate) num_kv_heads: i32,
    pub(crate) head_dim: i32,
    pub(crate) block_size: i32,
    pub(crate) eps: f32,
    pub(crate) unused: i32,
}

/// Distances in a layer's cache, in elements.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvStrides {
    /// From block to block.
    pub block: i64,
    /// From a block's keys to its values.
    pub plane: i64,
    /// From head to head.
    pub head: i64,
    /// From token to token.
    pub token: i64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct SiluMulParams {
    pub(crate) gate_up: u64,
    pub(crate) out: u64,
    pub(crate) width: i32,
    pub(crate) unused: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct GatherParams {
    pub(crate) step: StepPointers,
    pub(crate) x: u64,
    pub(crate) out: u64,
    pub(crate) first_row: i32,
    pub(crate) row_bytes: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct FillDummyParams {
    pub(crate) out: u64,
    pub(crate) count: i64,
    pub(crate) seed_low: u32,
    pub(crate) seed_high: u32,
    pub(crate) centre: f32,
    pub(crate) half_width: f32,
}

const _: () = {
    assert!(size_of::<EmbedParams>() == 104);
    assert!(size_of::<NormParams>() == 48);
    assert!(size_of::<RopeParams>() == 176);
    assert!(size_of::<SiluMulParams>() == 24);
    assert!(size_of::<GatherParams>() == 104);
    assert!(size_of::<FillDummyParams>() == 32);
};

impl KvStrides {
    /// `[block][K | V][kv_head][token in block][head_dim]`.
    pub fn new(num_kv_heads: usize, block_size: usize, head_dim: usize) -> Self {
        let (heads, tokens, dim) = (num_kv_heads as i64, block_size as i64, head_dim as i64);
        Self { block: 2 * heads * tokens * dim, plane: heads * tokens * dim, head: tokens * dim, token: dim }
    }
}

/// How names of kernels end, by the element type.
pub(crate) fn suffix(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "f32",
        Dtype::Bf16 => "bf16",
        Dtype::F16 => "f16",
    }
}

/// Elements that a thread of an elementwise kernel handles at a time.
const ELEMENTS_PER_THREAD: usize = 8;
const WARP: usize = 32;
/// Warps of a block that rotates heads.
const ROPE_WARPS: usize = 4;
const MAX_THREADS: usize = 512;
const FILL_BLOCKS: u32 = 2048;

impl SmallKernels {
    pub(crate) fn new(kernels: &Kernels, dtype: Dtype) -> Result<Self, KernelError> {
        let typed = |name: &str| kernels.function(&format!("{name}_{}", suffix(dtype)));
        let rms_norm = typed("rms_norm")?;
        Ok(Self {
            embed: typed("embed")?,
            rms_norm,
            rope_and_cache: typed("rope_and_cache")?,
            silu_mul: typed("silu_mul")?,
            gather: kernels.function("gather")?,
            fill_dummy: typed("fill_dummy")?,
        })
    }

    pub(crate) fn embed(
        &self,
        stream: &Stream,
        tokens: usize,
        params: &EmbedParams,
    ) -> Result<(), CudaError> {
        let threads = row_threads(params.width as usize);
        stream.launch(&self.embed, [tokens as u32, 1, 1], threads, 0, params)
    }

    pub(crate) fn rms_norm(
        &self,
        stream: &Stream,
        rows: usize,
        params: &NormParams,
    ) -> Result<(), CudaError> {
        let width = params.width as usize;
        let shared = norm_shared_bytes(width);
        stream.launch(&self.rms_norm, [rows as u32, 1, 1], row_threads(width), shared, params)
    }

    /// Permits rows of that width, which are kept in shared memory.
    pub(crate) fn allow_norm_width(&self, width: usize) -> Result<(), CudaError> {
        self.rms_norm.allow_shared_bytes(norm_shared_bytes(width))
    }

    pub(crate) fn rope_and_cache(
        &self,
        stream: &Stream,
        tokens: usize,
        params: &RopeParams,
    ) -> Result<(), CudaError> {
        let heads = (params.num_heads + 2 * params.num_kv_heads) as usize;
        let grid = [tokens as u32, heads.div_ceil(ROPE_WARPS) as u32, 1];
        stream.launch(&self.rope_and_cache, grid, (WARP * ROPE_WARPS) as u32, 0, params)
    }

    pub(crate) fn silu_mul(
        &self,
        stream: &Stream,
        rows: usize,
        params: &SiluMulParams,
    ) -> Result<(), CudaError> {
        let width = params.width as usize;
        let threads = row_threads(width).min(256);
        let blocks = width.div_ceil(ELEMENTS_PER_THREAD * threads as usize);
        stream.launch(&self.silu_mul, [rows as u32, blocks as u32, 1], threads, 0, params)
    }

    pub(crate) fn gather(
        &self,
        stream: &Stream,
        rows: usize,
        params: &GatherParams,
    ) -> Result<(), CudaError> {
        let threads = (params.row_bytes as usize / 16).next_multiple_of(WARP).min(256);
        stream.launch(&self.gather, [rows as u32, 1, 1], threads as u32, 0, params)
    }

    pub(crate) fn fill_dummy(&self, stream: &Stream, params: &FillDummyParams) -> Result<(), CudaError> {
        let needed = (params.count as u64).div_ceil(4 * 256).min(u64::from(FILL_BLOCKS)) as u32;
        stream.launch(&self.fill_dummy, [needed.max(1), 1, 1], 256, 0, params)
    }
}

/// Threads of a block that computes a row: one for each vector of elements, in full warps.
fn row_threads(width: usize) -> u32 {
    width.div_ceil(ELEMENTS_PER_THREAD).next_multiple_of(WARP).min(MAX_THREADS) as u32
}

fn norm_shared_bytes(width: usize) -> u32 {
    ((WARP + width) * size_of::<f32>()) as u32
}
