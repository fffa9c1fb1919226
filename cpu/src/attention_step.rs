//! Attention of a whole step: its rows are cut into tiles of one sequence, and these are handed to the threads. What
//! would keep one thread busy for long is also cut by parts of its context, which are merged in their order.

use quire_model::{StepInputs, StepLimits};

use crate::attention::{
    AttentionScratch, Layer, MAX_ROWS, Rows, Sees, attend, attend_part, merge_parts, sums_len,
};
use crate::device::MIN_WORK_PER_CHUNK;
use crate::lanes::{Element, Isa};
use crate::pool::Pool;
use crate::shared::SharedSlice;

/// Numbers that parts of contexts may take, for each thread: 1 MiB.
const PARTS_LEN_PER_THREAD: usize = 1 << 18;

/// Memory of the operations.
#[derive(Default)]
pub(crate) struct AttentionMemory {
    scratch: Vec<AttentionScratch>,
    tiles: Vec<Tile>,
    /// Of the tiles that are cut: `[tile][key-value head][part][row]`.
    parts: Vec<f32>,
}

/// Some rows of one sequence, for each key-value head.
#[derive(Clone, Copy)]
struct Tile {
    /// Of the step.
    sequence: usize,
    first_row: usize,
    num_rows: usize,
    /// Numbers of keys and values that are looked at.
    work: usize,
    /// Number of the first piece of work.
    first_item: usize,
    /// Where in `parts` it has its place, if it is cut.
    cut_at: Option<usize>,
}

/// The step as one operation sees it.
#[derive(Clone, Copy)]
pub(crate) struct Step<'a> {
    pub(crate) inputs: &'a StepInputs,
    /// `[slot][blocks]` of the layer; empty if tokens see all of their sequence, whose keys lie beside each other.
    pub(crate) block_tables: &'a [u32],
    pub(crate) blocks_per_table: usize,
}

impl Step<'_> {
    /// The tokens of a sequence: the first, and the one after the last.
    fn tokens(&self, sequence: usize) -> (usize, usize) {
        let ends = self.inputs.row_ends();
        (if sequence == 0 { 0 } else { ends[sequence - 1] as usize }, ends[sequence] as usize)
    }

    fn rows(&self, tile: &Tile, kv_head: usize) -> Rows<'_> {
        let (first, end) = self.tokens(tile.sequence);
        let (sees, block_table) = if self.block_tables.is_empty() {
            // A sequence is one block, which begins with its first token.
            let before = match tile.sequence {
                0 => &[0],
                sequence => &self.inputs.row_ends()[sequence - 1..sequence],
            };
            (Sees::All(end - first), before)
        } else {
            let table = self.inputs.row_slots()[tile.sequence] as usize * self.blocks_per_table;
            (Sees::Past(self.inputs.positions()), &self.block_tables[table..][..self.blocks_per_table])
        };
        Rows { kv_head, first: tile.first_row, len: tile.num_rows, sees, block_table }
    }
}

impl AttentionMemory {
    /// Makes room for steps up to these limits.
    pub(crate) fn prepare(&mut self, limits: &StepLimits, num_threads: usize) {
        let rows = limits.max_num_batched_tokens * limits.heads_per_group;
        self.tiles.reserve(limits.max_num_seqs + rows / MAX_ROWS + 1);
        self.parts.resize(num_threads * PARTS_LEN_PER_THREAD, 0.0);
    }

    /// Makes room for heads of that width.
    pub(crate) fn reserve(&mut self, head_dim: usize, num_threads: usize) {
        self.scratch.resize_with(num_threads, AttentionScratch::default);
        self.scratch.iter_mut().for_each(|scratch| scratch.reserve(head_dim));
    }

    /// The memory of each thread.
    pub(crate) fn rooms(&mut self) -> SharedSlice<'_, AttentionScratch> {
        SharedSlice::new(&mut self.scratch)
    }

    /// Cuts the step into tiles, and says how many pieces of work there are and what they cost in all.
    fn plan<T>(&mut self, step: Step<'_>, layer: &Layer<'_, T>, num_threads: usize) -> (usize, usize) {
        let shape = layer.shape;
        let (group, kv_heads) = (shape.num_heads / shape.num_kv_heads, shape.num_kv_heads);
        self.tiles.clear();
        for sequence in 0..step.inputs.row_ends().len() {
            let (first, end) = step.tokens(sequence);
            for first_row in (first * group..end * group).step_by(MAX_ROWS) {
                let num_rows = MAX_ROWS.min(end * group - first_row);
                let mut tile = Tile { sequence, first_row, num_rows, work: 0, first_item: 0, cut_at: None };
                let (from, to) = step.rows(&tile, 0).context(shape);
                tile.work = num_rows * (to - from) * shape.head_dim;
                self.tiles.push(tile);
            }
        }
        let work: usize = self.tiles.iter().map(|tile| tile.work * kv_heads).sum();
        let (mut num_items, mut taken) = (0, 0);
        for tile in &mut self.tiles {
            let parts = step.rows(tile, 0).parts(shape).len();
            let room = kv_heads * parts * tile.num_rows * sums_len(layer.kv.values.width(shape));
            let is_long = 2 * num_threads * tile.work > work && tile.work > MIN_WORK_PER_CHUNK;
            tile.first_item = num_items;
            if num_threads > 1 && parts > 1 && is_long && taken + room <= self.parts.len() {
                tile.cut_at = Some(taken);
                taken += room;
                num_items += kv_heads * parts;
            } else {
                num_items += kv_heads;
            }
        }
        (num_items, work)
    }

    /// `out[token][head][..] = ` attention of all rows of the step.
    pub(crate) fn attend<T: Element>(
        &mut self,
        pool: &mut Pool,
        isa: Isa,
        step: Step<'_>,
        layer: &Layer<'_, T>,
        out: &mut [f32],
    ) {
        let (shape, width) = (layer.shape, layer.kv.values.width(layer.shape));
        self.reserve(shape.head_dim, pool.num_threads());
        let (num_items, work) = self.plan(step, layer, pool.num_threads());
        let Self { scratch, tiles, parts, .. } = self;
        let (scratch, parts, out) =
            (SharedSlice::new(scratch), SharedSlice::new(parts), SharedSlice::new(out));
        let write = |rows: Rows<'_>, row: usize, values: &[f32], sum: f32| {
            let (token, head) = rows.token_and_head(shape, row);
            // SAFETY: each row is written once.
            #[allow(unsafe_code)]
            let out = unsafe { out.part((token * shape.num_heads + head) * width, width) };
            out.iter_mut().zip(values).for_each(|(out, value)| *out = value / sum);
        };
        let per_chunk = num_items.div_ceil((work / MIN_WORK_PER_CHUNK).clamp(1, num_items.max(1))).max(1);
        pool.run(num_items.div_ceil(per_chunk), &|worker, chunk| {
            // SAFETY: no two threads are the same worker at the same time.
            #[allow(unsafe_code)]
            let scratch = unsafe { &mut scratch.part(worker, 1)[0] };
            for item in chunk * per_chunk..num_items.min((chunk + 1) * per_chunk) {
                let tile = &tiles[tiles.partition_point(|tile| tile.first_item <= item) - 1];
                let item = item - tile.first_item;
                let Some(cut_at) = tile.cut_at else {
                    let rows = step.rows(tile, item);
                    attend(isa, layer, rows, scratch, &mut |row, values, sum| write(rows, row, values, sum));
                    continue;
                };
                let all = step.rows(tile, 0).parts(shape);
                let rows = step.rows(tile, item / all.len());
                let len = tile.num_rows * sums_len(width);
                // SAFETY: each part of each key-value head is computed once.
                #[allow(unsafe_code)]
                let sums = unsafe { parts.part(cut_at + item * len, len) };
                attend_part(isa, layer, rows, all.start + item % all.len(), scratch, sums);
            }
        });
        let cut = tiles.iter().filter_map(|tile| Some((tile, tile.cut_at?)));
        for (tile, cut_at) in cut {
            for kv_head in 0..shape.num_kv_heads {
                let rows = step.rows(tile, kv_head);
                let len = rows.parts(shape).len() * tile.num_rows * sums_len(width);
                // SAFETY: nobody else is at work any more.
                #[allow(unsafe_code)]
                let sums = unsafe { parts.part(cut_at + kv_head * len, len) };
                merge_parts(isa, layer, rows, sums, &mut |row, values, sum| write(rows, row, values, sum));
            }
        }
    }
}
