//! [`PrefillAttention`]: attention of rows of several tokens, by kernels/prefill_attention.cu.
//!
//! Once a step a kernel lists the step's tiles of work on the device, longest first; each layer then launches one
//! block for each tile and key-value head. The host knows how many tiles that makes, because it knows how many
//! tokens each row has: so the grid is exact, and for a recorded decode step it depends on the number of rows only.

use std::sync::Arc;

use quire_model::{AttentionShape, BackendError, Dtype, StepLimits};

use crate::driver::{Context, CudaError, DeviceMemory, Function, Stream};
use crate::kernels::Kernels;
use crate::refusal::refusal;
use crate::small_kernels::{KvStrides, suffix};
use crate::step::StepPointers;

/// The kernels, and the list of a step's tiles.
#[derive(Debug)]
pub struct PrefillAttention {
    plan: Function,
    /// By [`TUNED_HEAD_DIMS`]; `None` for element types that they do not exist for.
    tuned: Option<[Function; TUNED_HEAD_DIMS.len()]>,
    plain: Function,
    /// `[tiles]` of [`TILE_BYTES`], then their number.
    tiles: DeviceMemory,
    num_tiles_address: u64,
    heads_per_group: usize,
    block_size: usize,
    min_q_len: usize,
    plan_shared_bytes: u32,
}

/// How large the launches of a step are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PrefillGrid {
    /// Tokens of the step.
    pub num_tokens: usize,
    /// Tiles of the rows that are long enough; 0: there is nothing to do.
    pub num_tiles: usize,
}

/// Device addresses of what a layer's attention reads and writes, all of the type given to
/// [`PrefillAttention::new`].
#[derive(Debug, Clone, Copy)]
pub struct AttentionOperands {
    /// `[T][q heads | k heads | v heads][head_dim]`; the queries are read.
    pub qkv: u64,
    /// `[block][K | V][kv_head][token in block][head_dim]`.
    pub kv_cache: u64,
    /// `[T][heads][head_dim]`; tokens of rows that are too short are left alone.
    pub out: u64,
}

/// Which kernels to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrefillKernel {
    /// The fast one where there is one for the shape.
    Best,
    /// The simple one, which takes every shape.
    Plain,
}

/// Widths of heads that there are tuned kernels for.
pub const TUNED_HEAD_DIMS: [usize; 5] = [32, 64, 96, 128, 256];
/// The plain kernels' widest head.
pub const MAX_HEAD_DIM: usize = 256;
/// Tuned kernels need blocks of a multiple of this.
pub const BLOCK_SIZE_MULTIPLE: usize = 16;

/// Pairs of (token, head) in a tile.
const TILE_PAIRS: usize = 128;
const TILE_BYTES: usize = 20;
/// `Work` in the kernels.
const WORK_BYTES: usize = 44;
const THREADS: u32 = 128;
const PLAIN_THREADS: u32 = 32;
/// A weight for each key of a tile, and the query.
const PLAIN_SHARED_BYTES: u32 = 4 * (PLAIN_THREADS + MAX_HEAD_DIM as u32);
const PLAN_THREADS: u32 = 512;
/// No window, to the kernels: the largest that they take.
const UNLIMITED_WINDOW: u32 = i32::MAX as u32;

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct PlanPrefillParams {
    step: StepPointers,
    tiles: u64,
    num_tiles: u64,
    heads_per_group: u32,
    min_q_len: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct PrefillAttentionParams {
    step: StepPointers,
    qkv: u64,
    kv_cache: u64,
    out: u64,
    tiles: u64,
    num_tiles: u64,
    qkv_stride: i64,
    out_stride: i64,
    kv: KvStrides,
    exp2_factor: f32,
    tanh_factor: f32,
    window: u32,
    block_size: u32,
    num_heads: u32,
    num_kv_heads: u32,
    head_dim: u32,
    min_q_len: u32,
}

const _: () = {
    assert!(size_of::<PlanPrefillParams>() == 104);
    assert!(size_of::<PrefillAttentionParams>() == 200);
};

impl PrefillAttention {
    /// For steps within `limits` and elements of type `dtype`. Rows of fewer than `min_q_len` tokens are not
    /// touched: 2 leaves the rows of one token to the decode kernels, 1 takes all.
    pub fn new(
        context: &Arc<Context>,
        kernels: &Kernels,
        limits: &StepLimits,
        dtype: Dtype,
        min_q_len: usize,
    ) -> Result<Self, BackendError> {
        let plan = kernels.function("plan_prefill_attention")?;
        let plan_shared_bytes = plan_shared_bytes(limits.max_num_seqs);
        if plan_shared_bytes > context.attributes().shared_bytes_per_block_max {
            return Err(refusal(format!("max_num_seqs {} is too large for this GPU", limits.max_num_seqs)));
        }
        plan.allow_shared_bytes(plan_shared_bytes)?;
        let tiles = DeviceMemory::alloc(context, Self::scratch_bytes(limits))?;
        Ok(Self {
            plan,
            tuned: tuned_kernels(kernels, dtype)?,
            plain: kernels.function(&format!("prefill_attention_plain_{}", suffix(dtype)))?,
            num_tiles_address: tiles.address() + (max_tiles(limits) * TILE_BYTES) as u64,
            tiles,
            heads_per_group: limits.heads_per_group,
            block_size: limits.block_size,
            min_q_len,
            plan_shared_bytes,
        })
    }

    /// Bytes on the device that [`Self::new`] allocates.
    pub fn scratch_bytes(limits: &StepLimits) -> usize {
        max_tiles(limits) * TILE_BYTES + size_of::<u32>()
    }

    /// The grid of a step of `num_rows` rows. The first end at `row_ends` among the tokens, each further one, which
    /// is padding, has one token.
    pub fn grid(&self, row_ends: &[u32], num_rows: usize) -> PrefillGrid {
        let padding = num_rows - row_ends.len();
        let starts = std::iter::once(0).chain(row_ends.iter().copied());
        let lens = row_ends.iter().zip(starts).map(|(end, start)| (end - start) as usize);
        let tiles = |len: usize| match len < self.min_q_len {
            true => 0,
            false => (len * self.heads_per_group).div_ceil(TILE_PAIRS),
        };
        PrefillGrid {
            num_tokens: row_ends.last().map_or(0, |end| *end as usize) + padding,
            num_tiles: lens.map(tiles).sum::<usize>() + padding * tiles(1),
        }
    }

    /// Lists the tiles of the step that `step` describes; once a step, before the first [`Self::launch`].
    pub fn plan(&self, stream: &Stream, step: StepPointers) -> Result<(), CudaError> {
        let params = PlanPrefillParams {
            step,
            tiles: self.tiles.address(),
            num_tiles: self.num_tiles_address,
            heads_per_group: self.heads_per_group as u32,
            min_q_len: self.min_q_len as u32,
        };
        stream.launch(&self.plan, [1, 1, 1], PLAN_THREADS, self.plan_shared_bytes, &params)
    }

    /// Causal attention of one layer, for the tokens of all rows that are long enough. `grid` is [`Self::grid`] of
    /// the step.
    pub fn launch(
        &self,
        stream: &Stream,
        step: StepPointers,
        grid: PrefillGrid,
        shape: &AttentionShape,
        operands: AttentionOperands,
        kernel: PrefillKernel,
    ) -> Result<(), BackendError> {
        self.check(shape)?;
        if grid.num_tiles == 0 {
            return Ok(());
        }
        let params = self.params(step, shape, operands);
        if let (PrefillKernel::Best, Some((function, tiling))) = (kernel, self.tuned(shape)) {
            let blocks = grid.num_tiles * tiling.parts() * shape.num_kv_heads;
            stream.launch(&function, [blocks as u32, 1, 1], THREADS, tiling.shared_bytes(), &params)?;
        } else {
            let blocks = [grid.num_tokens as u32, shape.num_heads as u32, 1];
            stream.launch(&self.plain, blocks, PLAIN_THREADS, PLAIN_SHARED_BYTES, &params)?;
        }
        Ok(())
    }

    /// The tuned kernel for the shape, if there is one.
    fn tuned(&self, shape: &AttentionShape) -> Option<(Function, Tiling)> {
        let index = TUNED_HEAD_DIMS.iter().position(|head_dim| *head_dim == shape.head_dim)?;
        let fits = self.block_size.is_multiple_of(BLOCK_SIZE_MULTIPLE);
        self.tuned.filter(|_| fits).map(|tuned| (tuned[index], Tiling { head_dim: shape.head_dim }))
    }

    fn check(&self, shape: &AttentionShape) -> Result<(), BackendError> {
        let AttentionShape { num_heads, num_kv_heads, head_dim, scale, .. } = *shape;
        if head_dim > MAX_HEAD_DIM {
            return Err(refusal(format!(
                "head_dim is {head_dim}; the GPU's attention takes at most {MAX_HEAD_DIM}"
            )));
        }
        if num_kv_heads * self.heads_per_group != num_heads {
            let group = self.heads_per_group;
            return Err(refusal(format!("{num_heads} heads are not {num_kv_heads} groups of {group}")));
        }
        let is_positive = |x: f32| x > 0.0 && x.is_finite();
        if !is_positive(scale) || !shape.softcap.is_none_or(is_positive) || shape.sliding_window == Some(0) {
            return Err(refusal(format!(
                "scale, soft cap and window of attention must be positive: {shape:?}"
            )));
        }
        Ok(())
    }

    fn params(
        &self,
        step: StepPointers,
        shape: &AttentionShape,
        operands: AttentionOperands,
    ) -> PrefillAttentionParams {
        let AttentionShape { num_heads, num_kv_heads, head_dim, scale, softcap, sliding_window, .. } = *shape;
        PrefillAttentionParams {
            step,
            qkv: operands.qkv,
            kv_cache: operands.kv_cache,
            out: operands.out,
            tiles: self.tiles.address(),
            num_tiles: self.num_tiles_address,
            qkv_stride: ((num_heads + 2 * num_kv_heads) * head_dim) as i64,
            out_stride: (num_heads * head_dim) as i64,
            kv: KvStrides::new(num_kv_heads, self.block_size, head_dim),
            exp2_factor: softcap.unwrap_or(scale) * std::f32::consts::LOG2_E,
            tanh_factor: softcap.map_or(0.0, |cap| scale / cap),
            window: sliding_window.map_or(UNLIMITED_WINDOW, |window| window.min(UNLIMITED_WINDOW)),
            block_size: self.block_size as u32,
            num_heads: num_heads as u32,
            num_kv_heads: num_kv_heads as u32,
            head_dim: head_dim as u32,
            min_q_len: self.min_q_len as u32,
        }
    }
}

/// The mirror of `Tiling` in the kernels, as far as a launch depends on it.
#[derive(Debug, Clone, Copy)]
struct Tiling {
    head_dim: usize,
}

impl Tiling {
    /// Pairs that a block works on.
    fn pairs(self) -> usize {
        if self.head_dim <= 128 { TILE_PAIRS } else { TILE_PAIRS / 2 }
    }

    /// Blocks that share a tile.
    fn parts(self) -> usize {
        TILE_PAIRS / self.pairs()
    }

    /// Queries, two stages of keys and values, where segments of 16 tokens lie, the pairs' positions, the work.
    fn shared_bytes(self) -> u32 {
        let keys = if self.head_dim <= 128 { 64 } else { 32 };
        let chunks = self.head_dim / 8;
        let row_bytes = 16 * if chunks.is_multiple_of(8) { chunks } else { chunks + 1 };
        let offsets = 2 * (keys / BLOCK_SIZE_MULTIPLE) * size_of::<i64>();
        let positions = self.pairs() * size_of::<u32>();
        ((self.pairs() + 4 * keys) * row_bytes + offsets + positions + WORK_BYTES) as u32
    }
}

fn tuned_kernels(
    kernels: &Kernels,
    dtype: Dtype,
) -> Result<Option<[Function; TUNED_HEAD_DIMS.len()]>, BackendError> {
    if dtype == Dtype::F32 {
        return Ok(None);
    }
    let mut functions = Vec::new();
    for head_dim in TUNED_HEAD_DIMS {
        let function = kernels.function(&format!("prefill_attention_{}_d{head_dim}", suffix(dtype)))?;
        function.allow_shared_bytes(Tiling { head_dim }.shared_bytes())?;
        functions.push(function);
    }
    Ok(functions.try_into().ok())
}

/// A row's tiles are full but for the last.
fn max_tiles(limits: &StepLimits) -> usize {
    limits.max_num_batched_tokens * limits.heads_per_group / TILE_PAIRS + limits.max_num_seqs
}

/// A word for each warp, and three for each row.
fn plan_shared_bytes(max_num_seqs: usize) -> u32 {
    PLAN_THREADS / 32 * 4 + 12 * max_num_seqs as u32
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    const LIMITS: StepLimits = StepLimits {
        max_num_seqs: 700,
        max_num_batched_tokens: 20_000,
        max_blocks_per_seq: 1,
        block_size: 16,
        max_logits_rows: 1,
        vocab_size: 1,
        heads_per_group: 7,
        num_kv_groups: 1,
    };

    struct Row {
        slot: u32,
        position: usize,
        len: usize,
    }

    /// Whatever the rows, every pair of a long enough row is in one tile, and tiles with more keys come first.
    #[test]
    fn plan_lists_all_tiles_longest_first() {
        crate::emulator::use_stand_in();
        let context = Context::new(0).unwrap();
        let stream = Stream::new(&context).unwrap();
        let kernels = Kernels::open(&context, None).unwrap();
        for seed in 0..40 {
            let rng = &mut StdRng::seed_from_u64(seed);
            let min_q_len = rng.random_range(1..=2);
            let attention =
                PrefillAttention::new(&context, &kernels, &LIMITS, Dtype::Bf16, min_q_len).unwrap();
            // More rows than the planner has threads, now and then; long ones and short ones.
            let num_rows = [1, 3, 20, LIMITS.max_num_seqs][rng.random_range(0..4)];
            let longest = LIMITS.max_num_batched_tokens / num_rows;
            let rows: Vec<Row> = (0..num_rows)
                .map(|_| {
                    let farthest = [0, 70, 5000][rng.random_range(0..3)];
                    let longest = [1, 3, longest][rng.random_range(0..3)];
                    let (position, len) = (rng.random_range(0..=farthest), rng.random_range(1..=longest));
                    Row { slot: rng.random_range(0..700), position, len }
                })
                .collect();
            let tiles = planned(&stream, &attention, &rows);
            assert_eq!(tiles, expected(&rows, min_q_len), "seed {seed}");
        }
    }

    /// The device's tiles: slot, first token of the row, its position, pairs of the row, first pair.
    fn planned(stream: &Stream, attention: &PrefillAttention, rows: &[Row]) -> Vec<[u32; 5]> {
        let upload = |words: Vec<u32>| {
            let memory = DeviceMemory::alloc(stream.context(), 4 * words.len()).unwrap();
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            stream.write_bytes(memory.address(), &bytes).unwrap();
            memory
        };
        let ends = rows.iter().scan(0, |end, row| {
            *end += row.len as u32;
            Some(*end)
        });
        let ends: Vec<u32> = ends.collect();
        let counts = upload(vec![ends[rows.len() - 1], rows.len() as u32]);
        let row_slots = upload(rows.iter().map(|row| row.slot).collect());
        let row_starts = upload(std::iter::once(0).chain(ends.iter().copied()).collect());
        let row_positions = upload(rows.iter().map(|row| row.position as u32).collect());
        let step = StepPointers {
            counts: counts.address(),
            token_ids: 0,
            positions: 0,
            token_slots: 0,
            row_slots: row_slots.address(),
            row_starts: row_starts.address(),
            row_positions: row_positions.address(),
            logits_tokens: 0,
            block_tables: 0,
            block_table_stride: 0,
        };
        attention.plan(stream, step).unwrap();
        let mut bytes = vec![0; attention.tiles.len()];
        stream.read_bytes(attention.tiles.address(), &mut bytes).unwrap();
        let words: Vec<u32> = bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        let num_tiles = attention.grid(&ends, rows.len()).num_tiles;
        assert_eq!(words.last(), Some(&(num_tiles as u32)), "the host's number of tiles and the device's");
        words.as_chunks().0[..num_tiles].to_vec()
    }

    fn expected(rows: &[Row], min_q_len: usize) -> Vec<[u32; 5]> {
        let group = LIMITS.heads_per_group;
        let mut tiles = Vec::new();
        let mut first_token = 0;
        for row in rows {
            let pairs = if row.len < min_q_len { 0 } else { row.len * group };
            for first in (0..pairs).step_by(TILE_PAIRS) {
                let last_token = ((first + TILE_PAIRS).min(pairs) - 1) / group;
                let key_tiles = (row.position + last_token) / 64 + 1;
                let words = [first_token, row.position, pairs, first].map(|x| x as u32);
                tiles.push((key_tiles, [row.slot, words[0], words[1], words[2], words[3]]));
            }
            first_token += row.len;
        }
        tiles.sort_by_key(|(key_tiles, _)| std::cmp::Reverse(*key_tiles));
        tiles.into_iter().map(|(_, tile)| tile).collect()
    }
}
