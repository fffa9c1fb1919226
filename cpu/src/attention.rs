//! Paged attention of one token: all query heads of one key-value head over the token's whole past.
//!
//! The order of every sum follows from the token's position alone: scores are summed in sixteen lanes by
//! position modulo 16, values are added position after position. How the prompt was cut into steps, which
//! blocks hold it and who else is in the batch leave no trace.

use std::ops::Range;

use half::bf16;
use quire_model::{AttentionShape, alibi_slope};

use crate::kv_cache::Scales;
use crate::lanes::{Element, Isa, LANES, Lanes, dispatch, exp, padded};

/// One layer's cache, `[block][K | V][kv_head][token in block][head_dim]`, and one sequence's way into it.
#[derive(Clone, Copy)]
pub(crate) struct PagedKv<'a, T> {
    pub(crate) cache: &'a [T],
    pub(crate) scales: Scales<'a>,
    /// The sequence's blocks in order.
    pub(crate) block_table: &'a [u32],
    pub(crate) block_size: usize,
    pub(crate) values: Values,
}

/// Where the values of a cache are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Values {
    /// After the keys of their block, as wide as these.
    Stored,
    /// They are the first so many numbers of the keys: `[block][kv_head][token in block][head_dim]`.
    InKeys(usize),
}

impl Values {
    /// Width of one.
    fn width(self, shape: &AttentionShape) -> usize {
        match self {
            Self::Stored => shape.head_dim,
            Self::InKeys(width) => width,
        }
    }

    /// From a key of a block to its value.
    #[inline(always)]
    fn offset(self, shape: &AttentionShape, block_size: usize) -> usize {
        match self {
            Self::Stored => shape.num_kv_heads * block_size * shape.head_dim,
            Self::InKeys(_) => 0,
        }
    }
}

/// The query heads of one token that share a key-value head.
#[derive(Clone, Copy)]
pub(crate) struct Queries<'a> {
    pub(crate) kv_head: usize,
    /// The token's position in its sequence.
    pub(crate) position: usize,
    /// `[heads in the group][head_dim]`.
    pub(crate) heads: &'a [f32],
    /// `[heads in the group]` scores of nothing, which take their share of the softmax; empty if there are none.
    pub(crate) sinks: &'a [f32],
}

/// Offset in a layer's cache of the key of (block, head, token in block); its value, if stored, is
/// `num_kv_heads * block_size * head_dim` further.
#[inline(always)]
pub(crate) fn key_offset(
    shape: &AttentionShape,
    values: Values,
    block_size: usize,
    block: usize,
    head: usize,
    token: usize,
) -> usize {
    let plane = shape.num_kv_heads * block_size * shape.head_dim;
    let block_len = plane + values.offset(shape, block_size);
    block * block_len + (head * block_size + token) * shape.head_dim
}

/// Attention of some heads of one token; `out` is like `queries.heads`, but as wide as values are. `scores` has
/// room for `scores_len(position + 1)` for each of these heads.
pub(crate) fn attend<T: Element>(
    isa: Isa,
    shape: &AttentionShape,
    kv: PagedKv<'_, T>,
    queries: Queries<'_>,
    scores: &mut [f32],
    out: &mut [f32],
) {
    dispatch!(isa, attend_kernel, [T: Element] as [T];
        shape: &AttentionShape = shape,
        kv: PagedKv<'_, T> = kv,
        queries: Queries<'_> = queries,
        scores: &mut [f32] = scores,
        out: &mut [f32] = out,
    );
}

/// A whole sequence that attends to itself: the rows of its tokens in the step's queries, keys and values.
#[derive(Clone, Copy)]
pub(crate) struct Sequence<'a> {
    /// `[tokens][q heads | k heads | v heads][head_dim]`.
    pub(crate) qkv: &'a [f32],
    /// Numbers in a row.
    pub(crate) stride: usize,
}

/// Attention of some heads of one token over all tokens of its sequence. `scores` has room for
/// `scores_len(tokens)`; `queries` and `out` are as in [`attend`].
pub(crate) fn attend_all(
    isa: Isa,
    shape: &AttentionShape,
    sequence: Sequence<'_>,
    queries: Queries<'_>,
    scores: &mut [f32],
    out: &mut [f32],
) {
    dispatch!(isa, attend_all_kernel;
        shape: &AttentionShape = shape,
        sequence: Sequence<'_> = sequence,
        queries: Queries<'_> = queries,
        scores: &mut [f32] = scores,
        out: &mut [f32] = out,
    );
}

/// Scores kept for one head over a context of that length: whole groups of lanes.
pub(crate) fn scores_len(context_len: usize) -> usize {
    context_len.next_multiple_of(LANES)
}

/// The positions that a token sees, and the runs of them that lie in one block.
struct Context {
    first: usize,
    end: usize,
}

impl Context {
    #[inline(always)]
    fn of(shape: &AttentionShape, position: usize) -> Self {
        let end = position + 1;
        let first = shape.sliding_window.map_or(0, |window| end.saturating_sub(window as usize));
        Self { first, end }
    }

    /// Calls `f(position, offset of its key, number of positions)` for each block's part of the context.
    #[inline(always)]
    fn for_each_run<T>(
        &self,
        shape: &AttentionShape,
        kv: &PagedKv<'_, T>,
        kv_head: usize,
        mut f: impl FnMut(usize, usize, usize),
    ) {
        let mut position = self.first;
        while position < self.end {
            let (index, token) = (position / kv.block_size, position % kv.block_size);
            let len = (kv.block_size - token).min(self.end - position);
            let block = kv.block_table[index] as usize;
            f(position, key_offset(shape, kv.values, kv.block_size, block, kv_head, token), len);
            position += len;
        }
    }
}

#[inline(always)]
fn attend_kernel<V: Lanes, T: Element>(
    shape: &AttentionShape,
    kv: PagedKv<'_, T>,
    queries: Queries<'_>,
    scores: &mut [f32],
    out: &mut [f32],
) {
    let Queries { kv_head, position, heads, sinks } = queries;
    let context = Context::of(shape, position);
    // Lanes go by absolute position, so scores are kept from a multiple of the lanes on.
    let origin = context.first / LANES * LANES;
    let seen = context.first - origin..context.end - origin;
    let row_len = scores_len(seen.end);
    let scores = &mut scores[..heads.len() / shape.head_dim * row_len];
    context.for_each_run(shape, &kv, kv_head, |position, key, len| {
        let keys = &kv.cache[key..][..len * shape.head_dim];
        for (query, row) in heads.chunks_exact(shape.head_dim).zip(scores.chunks_exact_mut(row_len)) {
            let scores = &mut row[position - origin..][..len];
            score_run::<V, T>(query, keys, shape.head_dim, scores);
            kv.scales.apply_to_keys(key, shape.head_dim, scores);
        }
    });
    if shape.alibi {
        let group = heads.len() / shape.head_dim;
        for (index, row) in scores.chunks_exact_mut(row_len).enumerate() {
            let slope = alibi_slope(shape.num_heads, kv_head * group + index);
            add_distances(slope, position, context.first, &mut row[seen.clone()]);
        }
    }
    out.fill(0.0);
    let (width, offset) = (kv.values.width(shape), kv.values.offset(shape, kv.block_size));
    for (index, (row, out)) in scores.chunks_exact_mut(row_len).zip(out.chunks_exact_mut(width)).enumerate() {
        let sum = softmax_numerators::<V>(shape, row, seen.clone(), sinks.get(index).copied());
        context.for_each_run(shape, &kv, kv_head, |position, key, len| {
            let values = &kv.cache[key + offset..][..(len - 1) * shape.head_dim + width];
            let weights = &mut row[position - origin..][..len];
            match kv.values {
                Values::Stored => kv.scales.apply_to_values(key + offset, shape.head_dim, weights),
                Values::InKeys(_) => kv.scales.apply_to_keys(key, shape.head_dim, weights),
            }
            add_values::<V, T>(weights, values, shape.head_dim, out);
        });
        out.iter_mut().for_each(|x| *x /= sum);
    }
}

#[inline(always)]
fn attend_all_kernel<V: Lanes>(
    shape: &AttentionShape,
    sequence: Sequence<'_>,
    queries: Queries<'_>,
    scores: &mut [f32],
    out: &mut [f32],
) {
    let Sequence { qkv, stride } = sequence;
    let num_tokens = qkv.len() / stride;
    let (head, num_kv) = (shape.head_dim, shape.num_kv_heads);
    let keys = &qkv[(shape.num_heads + queries.kv_head) * head..];
    let values = &keys[num_kv * head..];
    let scores = &mut scores[..scores_len(num_tokens)];
    for (query, out) in queries.heads.chunks_exact(head).zip(out.chunks_exact_mut(head)) {
        score_run::<V, f32>(query, keys, stride, &mut scores[..num_tokens]);
        let sum = softmax_numerators::<V>(shape, scores, 0..num_tokens, None);
        out.fill(0.0);
        add_values::<V, f32>(&scores[..num_tokens], values, stride, out);
        out.iter_mut().for_each(|x| *x /= sum);
    }
}

/// q·k for each key; keys are `stride` apart.
#[inline(always)]
fn score_run<V: Lanes, T: Element>(query: &[f32], keys: &[T], stride: usize, scores: &mut [f32]) {
    let (query_groups, query_tail) = query.as_chunks::<LANES>();
    for (key, score) in keys.chunks(stride).zip(scores) {
        let (key_groups, key_tail) = key[..query.len()].as_chunks::<LANES>();
        let mut sum = V::splat(0.0);
        for (q, k) in query_groups.iter().zip(key_groups) {
            sum = V::load(q).mul_add(T::load(k), sum);
        }
        if !query_tail.is_empty() {
            sum = V::load(&padded(query_tail)).mul_add(T::load(&padded(key_tail)), sum);
        }
        *score = sum.sum();
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

/// Scales and caps the scores in `seen`, replaces them by their exponentials (others by 0), and gives the sum
/// of those and of the sink's.
#[inline(always)]
fn softmax_numerators<V: Lanes>(
    shape: &AttentionShape,
    scores: &mut [f32],
    seen: Range<usize>,
    sink: Option<f32>,
) -> f32 {
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
    let greatest = groups.iter().fold(V::splat(f32::NEG_INFINITY), |max, group| max.max(V::load(group)));
    let sink = V::splat(sink.unwrap_or(f32::NEG_INFINITY));
    let greatest = V::splat(sink.max(greatest).greatest());
    let mut sum = V::splat(0.0);
    for group in groups {
        let numerator = exp(V::load(group).sub(greatest));
        numerator.store(group);
        sum = sum.add(numerator);
    }
    let mut of_sink = [0.0; LANES];
    exp(sink.sub(greatest)).store(&mut of_sink);
    sum.sum() + of_sink[0]
}

/// `cap * tanh(x / cap)`.
#[inline(always)]
pub(crate) fn soft_cap<V: Lanes>(x: V, cap: V) -> V {
    let one = V::splat(1.0);
    let power = exp(x.div(cap).mul(V::splat(2.0)));
    cap.mul(power.sub(one).div(power.add(one)))
}

/// `out += weight * value`, value after value; values are `stride` apart.
#[inline(always)]
fn add_values<V: Lanes, T: Element>(weights: &[f32], values: &[T], stride: usize, out: &mut [f32]) {
    let width = out.len();
    let (groups, tail) = out.as_chunks_mut::<LANES>();
    let tail_start = width - tail.len();
    // Several groups at a time, because each waits for its own last addition.
    let (fours, rest) = groups.as_chunks_mut::<4>();
    let num_fours = fours.len();
    for (index, four) in fours.iter_mut().enumerate() {
        add_values_to_groups::<V, T, 4>(weights, &values[4 * index * LANES..], stride, four);
    }
    let (pairs, last) = rest.as_chunks_mut::<2>();
    let mut first = 4 * num_fours;
    for pair in pairs {
        add_values_to_groups::<V, T, 2>(weights, &values[first * LANES..], stride, pair);
        first += 2;
    }
    for group in last {
        add_values_to_groups::<V, T, 1>(
            weights,
            &values[first * LANES..],
            stride,
            std::array::from_mut(group),
        );
    }
    if !tail.is_empty() {
        let mut sum = V::load(&padded(tail));
        for (weight, value) in weights.iter().zip(values.chunks(stride)) {
            sum = V::splat(*weight).mul_add(T::load(&padded(&value[tail_start..width])), sum);
        }
        let mut last = [0.0; LANES];
        sum.store(&mut last);
        tail.copy_from_slice(&last[..tail.len()]);
    }
}

/// `N` groups of the sum. `values` begins at their part of the first value; the next is `stride` further.
#[inline(always)]
fn add_values_to_groups<V: Lanes, T: Element, const N: usize>(
    weights: &[f32],
    values: &[T],
    stride: usize,
    groups: &mut [[f32; LANES]; N],
) {
    let mut sums = groups.each_ref().map(V::load);
    for (weight, value) in weights.iter().zip(values.chunks(stride)) {
        let weight = V::splat(*weight);
        let value = &value.as_chunks::<LANES>().0[..N];
        for (sum, value) in sums.iter_mut().zip(value) {
            *sum = weight.mul_add(T::load(value), *sum);
        }
    }
    sums.iter().zip(groups).for_each(|(sum, group)| sum.store(group));
}
