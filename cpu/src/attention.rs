//! Attention of a few rows (query heads of tokens of one sequence that share a key-value head) over the keys and
//! values of their past. Keys and values are read once for several rows.
//!
//! The order of every sum follows from positions alone. A context is cut into parts at multiples of
//! [`PART_LEN`]; in a part, a score is summed in sixteen lanes, scores by position modulo 16, values position
//! after position; parts are merged in their order. How the prompt was cut into steps, which blocks hold it, which
//! rows are computed together and on how many threads leave no trace.

use std::ops::Range;

use half::bf16;
use quire_model::{AttentionShape, alibi_slope};

use crate::attention_kernels::{add_values, score_keys};
use crate::kv_cache::Scales;
use crate::lanes::{Element, Isa, LANES, Lanes, dispatch, exp};

/// Positions after which a part of a context ends.
pub(crate) const PART_LEN: usize = 512;

/// Most rows computed together.
pub(crate) const MAX_ROWS: usize = 32;

/// What all rows of an operation have in common.
#[derive(Clone, Copy)]
pub(crate) struct Layer<'a, T> {
    pub(crate) shape: &'a AttentionShape,
    /// `[token][head][head_dim]` with other numbers between tokens.
    pub(crate) queries: &'a [f32],
    /// From a token's queries to the next one's.
    pub(crate) query_stride: usize,
    /// `[head]` scores of nothing, which take their share of the softmax; empty if there are none.
    pub(crate) sinks: &'a [f32],
    pub(crate) kv: Kv<'a, T>,
}

/// Keys and values, and where they are.
#[derive(Clone, Copy)]
pub(crate) struct Kv<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) scales: Scales<'a>,
    /// Tokens in a block.
    pub(crate) block_size: usize,
    /// From a block to the next one.
    pub(crate) block_stride: usize,
    /// From the keys of a head to those of the next one.
    pub(crate) head_stride: usize,
    /// From a token's key to the next one's.
    pub(crate) token_stride: usize,
    /// From the start of a block to its first key.
    pub(crate) first_key: usize,
    pub(crate) values: Values,
}

/// Where the values of a cache are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Values {
    /// So many numbers behind their keys, as wide as these.
    Behind(usize),
    /// They are the first so many numbers of the keys.
    InKeys(usize),
}

/// Rows that are computed together.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) kv_head: usize,
    /// The first one's number: token in the step times heads in a group, plus head in the group.
    pub(crate) first: usize,
    /// Up to [`MAX_ROWS`].
    pub(crate) len: usize,
    pub(crate) sees: Sees<'a>,
    /// The sequence's blocks in order.
    pub(crate) block_table: &'a [u32],
}

/// What a token sees.
#[derive(Clone, Copy)]
pub(crate) enum Sees<'a> {
    /// Its past and itself, less what is further away than the window; positions of the step's tokens.
    Past(&'a [u32]),
    /// So many tokens: all of its sequence.
    All(usize),
}

/// Memory of one thread.
#[derive(Default)]
pub(crate) struct AttentionScratch {
    /// `[MAX_ROWS][head_dim in whole lanes]`.
    queries: Vec<f32>,
    /// `[MAX_ROWS][PART_LEN]` scores, then weights.
    scores: Vec<f32>,
    /// `[PART_LEN]` where keys are.
    offsets: Vec<usize>,
    /// `[PART_LEN]` what keys and values are times.
    key_scales: Vec<f32>,
    value_scales: Vec<f32>,
    /// Sums of the parts so far, and of one more.
    sums: Vec<f32>,
    part: Vec<f32>,
}

impl AttentionScratch {
    /// Room for a head.
    pub(crate) fn row(&mut self) -> &mut [f32] {
        &mut self.queries
    }

    /// Makes room for heads of that width.
    pub(crate) fn reserve(&mut self, head_dim: usize) {
        let width = head_dim.next_multiple_of(LANES);
        if self.queries.len() < MAX_ROWS * width {
            self.queries.resize(MAX_ROWS * width, 0.0);
            self.sums.resize(MAX_ROWS * sums_len(head_dim), 0.0);
            self.part.resize(MAX_ROWS * sums_len(head_dim), 0.0);
            self.scores.resize(MAX_ROWS * PART_LEN, 0.0);
            self.key_scales.resize(PART_LEN, 1.0);
            self.value_scales.resize(PART_LEN, 1.0);
            self.offsets.resize(PART_LEN, 0);
        }
    }
}

/// Numbers kept of one row over a part: the sum of weighted values, then the greatest score and the sum of weights.
pub(crate) fn sums_len(value_width: usize) -> usize {
    value_width.next_multiple_of(LANES) + LANES
}

impl Values {
    /// Width of one.
    pub(crate) fn width(self, shape: &AttentionShape) -> usize {
        match self {
            Self::Behind(_) => shape.head_dim,
            Self::InKeys(width) => width,
        }
    }
}

impl<'a, T> Kv<'a, T> {
    /// A layer's cache, `[block][K | V][kv_head][token in block][head_dim]`.
    pub(crate) fn of_blocks(
        shape: &AttentionShape,
        data: &'a [T],
        scales: Scales<'a>,
        block_size: usize,
    ) -> Self {
        let plane = shape.num_kv_heads * block_size * shape.head_dim;
        Self {
            data,
            scales,
            block_size,
            block_stride: 2 * plane,
            head_stride: block_size * shape.head_dim,
            token_stride: shape.head_dim,
            first_key: 0,
            values: Values::Behind(plane),
        }
    }

    /// From a key to its value.
    #[inline(always)]
    pub(crate) fn value_offset(&self) -> usize {
        match self.values {
            Values::Behind(numbers) => numbers,
            Values::InKeys(_) => 0,
        }
    }

    /// Where the key of a position is, and how many more keys of its block are there.
    #[inline(always)]
    pub(crate) fn key(&self, block_table: &[u32], kv_head: usize, position: usize) -> (usize, usize) {
        let (index, token) = (position / self.block_size, position % self.block_size);
        let block = block_table[index] as usize * self.block_stride;
        let key = block + self.first_key + kv_head * self.head_stride + token * self.token_stride;
        (key, self.block_size - token)
    }
}

impl<'a> Kv<'a, f32> {
    /// A step's `[token][q heads | k heads | v heads][head_dim]`. A sequence is one block, which has the number of its
    /// first token.
    pub(crate) fn of_rows(shape: &AttentionShape, qkv: &'a [f32]) -> Self {
        let row_len = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim;
        Self {
            data: qkv,
            scales: Scales::None,
            block_size: usize::MAX,
            block_stride: row_len,
            head_stride: shape.head_dim,
            token_stride: row_len,
            first_key: shape.num_heads * shape.head_dim,
            values: Values::Behind(shape.num_kv_heads * shape.head_dim),
        }
    }
}

impl Rows<'_> {
    /// (Token of the step, head of all) of a row.
    #[inline(always)]
    pub(crate) fn token_and_head(&self, shape: &AttentionShape, row: usize) -> (usize, usize) {
        let group = shape.num_heads / shape.num_kv_heads;
        let row = self.first + row;
        (row / group, self.kv_head * group + row % group)
    }

    /// The positions that a row sees: the first, and the one after the last.
    #[inline(always)]
    fn seen(&self, shape: &AttentionShape, row: usize) -> (usize, usize) {
        match self.sees {
            Sees::All(len) => (0, len),
            Sees::Past(positions) => {
                let end = positions[self.token_and_head(shape, row).0] as usize + 1;
                (shape.sliding_window.map_or(0, |window| end.saturating_sub(window as usize)), end)
            }
        }
    }

    /// What some row sees: the first position, and the one after the last.
    pub(crate) fn context(&self, shape: &AttentionShape) -> (usize, usize) {
        (self.seen(shape, 0).0, self.seen(shape, self.len - 1).1)
    }

    /// The parts that this lies in.
    pub(crate) fn parts(&self, shape: &AttentionShape) -> Range<usize> {
        let (first, end) = self.context(shape);
        first / PART_LEN..end.div_ceil(PART_LEN)
    }
}

/// Told of each row the sum of its weighted values, and of its weights.
pub(crate) type Write<'a> = &'a mut dyn FnMut(usize, &[f32], f32);

/// Attention of some rows.
pub(crate) fn attend<T: Element>(
    isa: Isa,
    layer: &Layer<'_, T>,
    rows: Rows<'_>,
    scratch: &mut AttentionScratch,
    write: Write<'_>,
) {
    let (mut sums, mut more) = (std::mem::take(&mut scratch.sums), std::mem::take(&mut scratch.part));
    let parts = rows.parts(layer.shape);
    for part in parts.clone() {
        let to = if part == parts.start { &mut sums } else { &mut more };
        attend_part(isa, layer, rows, part, scratch, to);
        if part > parts.start {
            merge(isa, layer, rows, part, &more, &mut sums);
        }
    }
    finish(isa, layer, rows, &mut sums, write);
    (scratch.sums, scratch.part) = (sums, more);
}

/// One part of it; `out` is `[rows][sums_len(width of values)]`.
pub(crate) fn attend_part<T: Element>(
    isa: Isa,
    layer: &Layer<'_, T>,
    rows: Rows<'_>,
    part: usize,
    scratch: &mut AttentionScratch,
    out: &mut [f32],
) {
    load_queries(layer, rows, &mut scratch.queries);
    dispatch!(isa, sum_part, [T: Element] as [T];
        layer: &Layer<'_, T> = layer,
        rows: Rows<'_> = rows,
        part: usize = part,
        scratch: &mut AttentionScratch = scratch,
        out: &mut [f32] = out,
    );
}

/// Puts together what [`attend_part`] gave for all [`Rows::parts`], one after the other in `sums`, which is lost.
pub(crate) fn merge_parts<T: Element>(
    isa: Isa,
    layer: &Layer<'_, T>,
    rows: Rows<'_>,
    sums: &mut [f32],
    write: Write<'_>,
) {
    let parts = rows.parts(layer.shape);
    let (sums, rest) = sums.split_at_mut(rows.len * sums_len(layer.kv.values.width(layer.shape)));
    for (part, more) in (parts.start + 1..parts.end).zip(rest.chunks_exact(sums.len())) {
        merge(isa, layer, rows, part, more, sums);
    }
    finish(isa, layer, rows, sums, write);
}

/// The rows' queries, side by side, in whole lanes.
#[inline(always)]
fn load_queries<T>(layer: &Layer<'_, T>, rows: Rows<'_>, queries: &mut [f32]) {
    let head_dim = layer.shape.head_dim;
    for (row, to) in queries.chunks_exact_mut(head_dim.next_multiple_of(LANES)).take(rows.len).enumerate() {
        let (token, head) = rows.token_and_head(layer.shape, row);
        to[..head_dim]
            .copy_from_slice(&layer.queries[token * layer.query_stride + head * head_dim..][..head_dim]);
        to[head_dim..].fill(0.0);
    }
}

/// Softmax and weighted values of one part, for the rows that see any of it.
#[inline(always)]
fn sum_part<V: Lanes, T: Element>(
    layer: &Layer<'_, T>,
    rows: Rows<'_>,
    part: usize,
    scratch: &mut AttentionScratch,
    out: &mut [f32],
) {
    let shape = layer.shape;
    let start = part * PART_LEN;
    let mut seen = [(0, 0); MAX_ROWS];
    let (mut first, mut end) = (PART_LEN, 0);
    for (row, seen) in seen.iter_mut().enumerate().take(rows.len) {
        let (from, to) = rows.seen(shape, row);
        *seen = (from.saturating_sub(start).min(PART_LEN), to.saturating_sub(start).min(PART_LEN));
        if seen.0 < seen.1 {
            (first, end) = (first.min(seen.0), end.max(seen.1));
        }
    }
    if first >= end {
        return;
    }
    let seen = &seen[..rows.len];
    find_keys(layer, rows, start, (first, end), scratch);
    let AttentionScratch { queries, scores, offsets, key_scales, value_scales, .. } = scratch;
    score_keys::<V, T>(&layer.kv, shape.head_dim, seen, queries, offsets, scores);
    let width = layer.kv.values.width(shape);
    let is_scaled = !matches!(layer.kv.scales, Scales::None);
    for (row, seen) in seen.iter().enumerate().filter(|(_, seen)| seen.0 < seen.1) {
        let scores = &mut scores[row * PART_LEN..][..PART_LEN];
        let group = seen.0 / LANES * LANES..seen.1.next_multiple_of(LANES);
        if is_scaled {
            multiply::<V>(&mut scores[group.clone()], &key_scales[group.clone()]);
        }
        if shape.alibi {
            let (token, head) = rows.token_and_head(shape, row);
            let Sees::Past(positions) = rows.sees else { unreachable!("distances are of what is past") };
            let slope = alibi_slope(shape.num_heads, head);
            add_distances(slope, positions[token] as usize, start + seen.0, &mut scores[seen.0..seen.1]);
        }
        let seen = seen.0 - group.start..seen.1 - group.start;
        let (greatest, sum) = softmax_numerators::<V>(shape, &mut scores[group.clone()], seen);
        if is_scaled {
            multiply::<V>(&mut scores[group.clone()], &value_scales[group]);
        }
        let out = &mut out[row * sums_len(width)..][..sums_len(width)];
        out.fill(0.0);
        out[sums_len(width) - LANES] = greatest;
        out[sums_len(width) - LANES + 1] = sum;
    }
    add_values::<V, T>(&layer.kv, width, seen, offsets, scores, out);
}

/// Where the keys of a part are, and what they and their values are times. The rest of the first and the last sixteen
/// is told to be where their neighbours are, for what is not seen may not be read.
#[inline(always)]
fn find_keys<T>(
    layer: &Layer<'_, T>,
    rows: Rows<'_>,
    start: usize,
    (first, end): (usize, usize),
    scratch: &mut AttentionScratch,
) {
    let kv = &layer.kv;
    let AttentionScratch { offsets, key_scales, value_scales, .. } = scratch;
    let mut at = first;
    while at < end {
        let (key, len) = kv.key(rows.block_table, rows.kv_head, start + at);
        let run = &mut offsets[at..end.min(at.saturating_add(len))];
        run.iter_mut().enumerate().for_each(|(token, offset)| *offset = key + token * kv.token_stride);
        at += run.len();
    }
    let (neighbour, last) = (offsets[first], offsets[end - 1]);
    offsets[first / LANES * LANES..first].fill(neighbour);
    offsets[end..end.next_multiple_of(LANES)].fill(last);
    let group = first / LANES * LANES..end.next_multiple_of(LANES);
    match kv.scales {
        Scales::None => {}
        Scales::Fixed(scales) => {
            let of_values = if matches!(kv.values, Values::InKeys(_)) { scales.key } else { scales.value };
            key_scales[group.clone()].fill(scales.key);
            value_scales[group].fill(of_values);
        }
        Scales::OfToken(scales) => {
            for at in group {
                key_scales[at] = scales[offsets[at] / layer.shape.head_dim];
                value_scales[at] = scales[(offsets[at] + kv.value_offset()) / layer.shape.head_dim];
            }
        }
    }
}

#[inline(always)]
fn multiply<V: Lanes>(numbers: &mut [f32], factors: &[f32]) {
    for (numbers, factors) in numbers.as_chunks_mut().0.iter_mut().zip(factors.as_chunks().0) {
        V::load(numbers).mul(V::load(factors)).store(numbers);
    }
}

/// What ALiBi adds to unscaled scores of keys from position `first` on, seen from `position`. Slopes and their products
/// with positions are rounded to bf16, as they are in transformers' Falcon.
#[inline(always)]
fn add_distances(slope: f32, position: usize, first: usize, scores: &mut [f32]) {
    let round = |x: f32| bf16::from_f32(x).to_f32();
    let bias = |position: usize| round(round(slope) * round(position as f32));
    for (index, score) in scores.iter_mut().enumerate() {
        *score += bias(first + index) - bias(position);
    }
}

/// Scales and caps the scores in `seen`, replaces them by their exponentials (others by 0), and gives the greatest score
/// and the sum of the exponentials.
#[inline(always)]
fn softmax_numerators<V: Lanes>(
    shape: &AttentionShape,
    scores: &mut [f32],
    seen: Range<usize>,
) -> (f32, f32) {
    for group in scores.as_chunks_mut::<LANES>().0 {
        let mut score = V::load(group).mul(V::splat(shape.scale));
        if let Some(cap) = shape.softcap {
            score = soft_cap(score, V::splat(cap));
        }
        score.store(group);
    }
    scores[..seen.start].fill(f32::NEG_INFINITY);
    scores[seen.end..].fill(f32::NEG_INFINITY);
    let groups = scores.as_chunks_mut::<LANES>().0;
    let mut greatest = V::splat(f32::NEG_INFINITY);
    for group in groups.iter() {
        greatest = greatest.max(V::load(group));
    }
    let greatest = greatest.greatest();
    let mut sum = V::splat(0.0);
    for group in groups {
        let numerator = exp(V::load(group).sub(V::splat(greatest)));
        numerator.store(group);
        sum = sum.add(numerator);
    }
    (greatest, sum.sum())
}

/// `cap * tanh(x / cap)`.
#[inline(always)]
pub(crate) fn soft_cap<V: Lanes>(x: V, cap: V) -> V {
    let one = V::splat(1.0);
    let power = exp(x.div(cap).mul(V::splat(2.0)));
    cap.mul(power.sub(one).div(power.add(one)))
}

/// Adds one more part to the sums of the rows that see it.
fn merge<T>(isa: Isa, layer: &Layer<'_, T>, rows: Rows<'_>, part: usize, more: &[f32], sums: &mut [f32]) {
    let row_len = sums_len(layer.kv.values.width(layer.shape));
    let pairs = sums.chunks_exact_mut(row_len).zip(more.chunks_exact(row_len)).take(rows.len);
    for (row, (sums, more)) in pairs.enumerate() {
        let (first, end) = rows.seen(layer.shape, row);
        if first / PART_LEN == part {
            sums.copy_from_slice(more);
        } else if first / PART_LEN < part && part * PART_LEN < end {
            dispatch!(isa, merge_row; more: &[f32] = more, sums: &mut [f32] = sums);
        }
    }
}

#[inline(always)]
fn merge_row<V: Lanes>(more: &[f32], sums: &mut [f32]) {
    let at = sums.len() - LANES;
    let (greatest, other) = (V::splat(sums[at]), V::splat(more[at]));
    let greater = greatest.max(other);
    let (of_sums, of_more) = (exp(greatest.sub(greater)), exp(other.sub(greater)));
    for (sums, more) in sums.as_chunks_mut().0.iter_mut().zip(more.as_chunks().0) {
        V::load(sums).mul(of_sums).add(V::load(more).mul(of_more)).store(sums);
    }
    sums[at] = greater.greatest();
}

/// Adds the rows' sinks, and hands over what is to be divided.
fn finish<T>(isa: Isa, layer: &Layer<'_, T>, rows: Rows<'_>, sums: &mut [f32], write: Write<'_>) {
    let width = layer.kv.values.width(layer.shape);
    for (row, sums) in sums.chunks_exact_mut(sums_len(width)).take(rows.len).enumerate() {
        let at = sums.len() - LANES;
        if !layer.sinks.is_empty() {
            let sink = layer.sinks[rows.token_and_head(layer.shape, row).1];
            dispatch!(isa, add_sink; sink: f32 = sink, sums: &mut [f32] = sums);
        }
        write(row, &sums[..width], sums[at + 1]);
    }
}

/// A part with a weight and no value.
#[inline(always)]
fn add_sink<V: Lanes>(sink: f32, sums: &mut [f32]) {
    let at = sums.len() - LANES;
    let (greatest, sink) = (V::splat(sums[at]), V::splat(sink));
    let greater = greatest.max(sink);
    let (of_sums, of_sink) = (exp(greatest.sub(greater)), exp(sink.sub(greater)));
    for sums in sums.as_chunks_mut().0 {
        V::load(sums).mul(of_sums).store(sums);
    }
    sums[at + 1] += of_sink.greatest();
}
