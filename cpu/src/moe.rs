//! A mixture of experts: each token's experts, the tokens of each expert side by side, one product over all of
//! them for each projection, and the results put together again.
//!
//! An expert that nobody chose is not touched. What a token gets is summed in the order of its own choice, so
//! that its bits do not depend on who else chose the same experts.

use quire_model::{Activation, ExpertActivation, Experts, MoeSpec};

use crate::activation::activate_row;
use crate::lanes::{Isa, LANES, Lanes, dispatch, exp, padded};
use crate::linear::{Product, Unpacked, chunk_columns, num_chunks, product};
use crate::pool::Pool;
use crate::router::{route, route_scratch_len};
use crate::shared::SharedSlice;
use crate::weight::CpuWeight;

/// What the numbers between two operations may take: a step of more tokens is computed in several passes.
const PASS_BYTES: usize = 256 << 20;

/// Numbers touched below which another thread costs more than it saves.
const MIN_WORK_PER_CHUNK: usize = 32_768;

/// Memory of the largest pass of any of a model's mixtures.
pub(crate) struct MoeScratch {
    /// What a pass may take.
    pass_bytes: usize,
    /// `[token][rank]`.
    experts: Vec<u32>,
    /// `[token][rank]`.
    weights: Vec<f32>,
    /// `[token][rank]`: the row of this choice among the rows sorted by expert.
    places: Vec<u32>,
    /// `[expert]`: where its rows begin, then where they end.
    ends: Vec<u32>,
    /// Experts that somebody chose.
    groups: Vec<Group>,
    /// `[row][hidden]`: what goes into the experts, later what comes out.
    outer: Vec<f32>,
    /// `[row][gate: inner | up: inner]`.
    gate_up: Vec<f32>,
    /// `[row][inner]`.
    activated: Vec<f32>,
    /// `[worker]`.
    router: Vec<Vec<f32>>,
}

/// What computes a mixture.
pub(crate) struct Threads<'a> {
    pub(crate) pool: &'a mut Pool,
    pub(crate) isa: Isa,
    /// For the mixture's weights.
    pub(crate) unpacked: Unpacked<'a>,
}

/// The rows of one expert.
#[derive(Clone, Copy)]
struct Group {
    expert: usize,
    first_row: usize,
    num_rows: usize,
    /// Chunks of all groups up to this one.
    chunks_end: usize,
    /// Columns of one of its chunks.
    chunk_columns: usize,
}

impl Default for MoeScratch {
    fn default() -> Self {
        Self::of_passes(PASS_BYTES)
    }
}

impl MoeScratch {
    /// Nothing yet, and later as much as passes of that size need.
    fn of_passes(pass_bytes: usize) -> Self {
        Self {
            pass_bytes,
            experts: Vec::new(),
            weights: Vec::new(),
            places: Vec::new(),
            ends: Vec::new(),
            groups: Vec::new(),
            outer: Vec::new(),
            gate_up: Vec::new(),
            activated: Vec::new(),
            router: Vec::new(),
        }
    }

    /// Makes room for steps of `max_rows` tokens through a mixture.
    pub(crate) fn reserve(&mut self, num_workers: usize, max_rows: usize, hidden: usize, spec: &MoeSpec) {
        let rows = max_rows.min(self.pass_rows(spec, hidden)) * spec.router.top_k;
        let inner = spec.intermediate_size;
        grow(&mut self.experts, rows);
        grow(&mut self.weights, rows);
        grow(&mut self.places, rows);
        grow(&mut self.ends, spec.router.num_experts);
        grow(&mut self.outer, rows * hidden);
        grow(&mut self.gate_up, rows * 2 * inner);
        grow(&mut self.activated, rows * inner);
        self.groups.reserve(spec.router.num_experts.saturating_sub(self.groups.len()));
        self.router.resize(num_workers, Vec::new());
        self.router.iter_mut().for_each(|row| grow(row, route_scratch_len(spec.router.num_experts)));
    }

    /// Tokens of one pass; at least one.
    fn pass_rows(&self, spec: &MoeSpec, hidden: usize) -> usize {
        let row_bytes = spec.router.top_k * (hidden + 3 * spec.intermediate_size) * size_of::<f32>();
        (self.pass_bytes / row_bytes).max(1)
    }
}

fn grow<T: Clone + Default>(memory: &mut Vec<T>, len: usize) {
    if memory.len() < len {
        memory.resize(len, T::default());
    }
}

/// `out[rows][hidden]` of `x[rows][hidden]` and the router's `logits[rows][num_experts]`. The scratch has been
/// [reserved](MoeScratch::reserve) for this many rows of this mixture.
pub(crate) fn moe(
    threads: &mut Threads<'_>,
    scratch: &mut MoeScratch,
    experts: &Experts<'_, CpuWeight>,
    x: &[f32],
    logits: &[f32],
    out: &mut [f32],
) {
    let (hidden, num_experts) = (experts.down[0].rows, experts.spec.router.num_experts);
    let pass = scratch.pass_rows(experts.spec, hidden);
    let rows = x.chunks(pass * hidden).zip(logits.chunks(pass * num_experts));
    for ((x, logits), out) in rows.zip(out.chunks_mut(pass * hidden)) {
        one_pass(threads, scratch, experts, x, logits, out);
    }
}

fn one_pass(
    threads: &mut Threads<'_>,
    scratch: &mut MoeScratch,
    experts: &Experts<'_, CpuWeight>,
    x: &[f32],
    logits: &[f32],
    out: &mut [f32],
) {
    let Experts { spec, gate_up, gate_up_bias, down, down_bias, .. } = experts;
    let (hidden, inner, top_k) = (down[0].rows, spec.intermediate_size, spec.router.top_k);
    let rows = x.len() / hidden * top_k;
    choose_experts(threads.pool, threads.isa, scratch, experts, logits);
    sort_by_expert(scratch, rows, spec.router.num_experts);
    gather(threads.pool, &scratch.places[..rows], top_k, hidden, x, &mut scratch.outer);

    let (groups, outer) = (&mut scratch.groups, &mut scratch.outer);
    let gate_ups = &mut scratch.gate_up[..rows * 2 * inner];
    grouped_product(threads, groups, outer, gate_up, gate_up_bias, gate_ups);
    activate(threads.pool, threads.isa, spec.activation, inner, gate_ups, &mut scratch.activated);
    grouped_product(threads, groups, &scratch.activated, down, down_bias, outer);
    combine(threads.pool, &scratch.places[..rows], &scratch.weights[..rows], top_k, outer, hidden, out);
}

fn choose_experts(
    pool: &mut Pool,
    isa: Isa,
    scratch: &mut MoeScratch,
    experts: &Experts<'_, CpuWeight>,
    logits: &[f32],
) {
    let router = &experts.spec.router;
    let (num_experts, top_k) = (router.num_experts, router.top_k);
    let correction = experts.correction_bias.map(CpuWeight::f32);
    let chosen = SharedSlice::new(&mut scratch.experts);
    let weights = SharedSlice::new(&mut scratch.weights);
    let workers = SharedSlice::new(&mut scratch.router);
    for_rows(pool, logits.len() / num_experts, (top_k + 8) * num_experts, |worker, row| {
        // SAFETY: each row is done once; no two threads are the same worker at the same time.
        #[allow(unsafe_code)]
        let (scratch, chosen, weights) = unsafe {
            (
                &mut workers.part(worker, 1)[0],
                chosen.part(row * top_k, top_k),
                weights.part(row * top_k, top_k),
            )
        };
        let logits = &logits[row * num_experts..][..num_experts];
        route(isa, router, logits, correction, scratch, chosen, weights);
    });
}

/// Gives each choice its place among the rows sorted by expert, and each chosen expert its rows.
fn sort_by_expert(scratch: &mut MoeScratch, rows: usize, num_experts: usize) {
    let MoeScratch { experts, places, ends, groups, .. } = scratch;
    let (experts, ends) = (&experts[..rows], &mut ends[..num_experts]);
    ends.fill(0);
    experts.iter().for_each(|expert| ends[*expert as usize] += 1);
    groups.clear();
    let mut first_row = 0;
    for (expert, count) in ends.iter_mut().enumerate() {
        let num_rows = *count as usize;
        if num_rows > 0 {
            groups.push(Group { expert, first_row, num_rows, chunks_end: 0, chunk_columns: 0 });
        }
        *count = first_row as u32;
        first_row += num_rows;
    }
    for (expert, place) in experts.iter().zip(places) {
        *place = ends[*expert as usize];
        ends[*expert as usize] += 1;
    }
}

/// Puts each token's row where its choices have their places.
fn gather(pool: &mut Pool, places: &[u32], top_k: usize, width: usize, x: &[f32], out: &mut [f32]) {
    let out = SharedSlice::new(out);
    for_rows(pool, places.len() / top_k, top_k * width, |_, token| {
        for place in &places[token * top_k..][..top_k] {
            // SAFETY: no two choices have the same place.
            #[allow(unsafe_code)]
            let out = unsafe { out.part(*place as usize * width, width) };
            out.copy_from_slice(&x[token * width..][..width]);
        }
    });
}

/// The product of each group's rows with its own weight, as one operation. Groups are cut by the work in them.
fn grouped_product(
    threads: &mut Threads<'_>,
    groups: &mut [Group],
    x: &[f32],
    weights: &[CpuWeight],
    biases: &[CpuWeight],
    out: &mut [f32],
) {
    let Threads { pool, isa, unpacked } = threads;
    let (isa, unpacked) = (*isa, *unpacked);
    let work = |group: &Group| group.num_rows * weights[group.expert].rows * weights[group.expert].columns;
    let total: usize = groups.iter().map(work).sum();
    let wanted = num_chunks(pool, total);
    let mut num_chunks = 0;
    for group in groups.iter_mut() {
        let n = weights[group.expert].rows;
        group.chunk_columns = chunk_columns(n, (work(group) * wanted / total.max(1)).max(1));
        num_chunks += n.div_ceil(group.chunk_columns);
        group.chunks_end = num_chunks;
    }
    let (groups, out) = (&*groups, SharedSlice::new(out));
    pool.run(num_chunks, &|worker, chunk| {
        let group = &groups[groups.partition_point(|group| group.chunks_end <= chunk)];
        let weight = &weights[group.expert];
        let (n, k) = (weight.rows, weight.columns);
        let start = (n.div_ceil(group.chunk_columns) - (group.chunks_end - chunk)) * group.chunk_columns;
        let part = Product {
            rows: group.num_rows,
            x: &x[group.first_row * k..],
            x_stride: k,
            bias: biases.get(group.expert).map(CpuWeight::f32),
            columns: start..n.min(start + group.chunk_columns),
            out,
            out_at: group.first_row * n + start,
            out_stride: n,
        };
        product(isa, worker, unpacked, weight, part);
    });
}

fn activate(
    pool: &mut Pool,
    isa: Isa,
    activation: ExpertActivation,
    inner: usize,
    gate_up: &[f32],
    out: &mut [f32],
) {
    let out = SharedSlice::new(out);
    for_rows(pool, gate_up.len() / (2 * inner), 8 * inner, |_, row| {
        let gate_up = &gate_up[row * 2 * inner..][..2 * inner];
        // SAFETY: each row is computed once.
        #[allow(unsafe_code)]
        let out = unsafe { out.part(row * inner, inner) };
        let (gate, up) = gate_up.split_at(inner);
        match activation {
            ExpertActivation::Silu => activate_row(isa, Activation::Silu, gate, Some(up), out),
            ExpertActivation::ClampedSwiGlu { alpha, limit } => {
                clamped_swiglu(isa, alpha, limit, gate, up, out);
            }
        }
    });
}

/// `out` of a token is the weighted sum of its experts' rows, in the order of its choice.
fn combine(
    pool: &mut Pool,
    places: &[u32],
    weights: &[f32],
    top_k: usize,
    rows: &[f32],
    width: usize,
    out: &mut [f32],
) {
    let out = SharedSlice::new(out);
    for_rows(pool, places.len() / top_k, 2 * top_k * width, |_, token| {
        // SAFETY: each token is computed once.
        #[allow(unsafe_code)]
        let out = unsafe { out.part(token * width, width) };
        out.fill(0.0);
        let choices = token * top_k..(token + 1) * top_k;
        for (place, weight) in places[choices.clone()].iter().zip(&weights[choices]) {
            let row = &rows[*place as usize * width..][..width];
            out.iter_mut().zip(row).for_each(|(out, x)| *out += weight * x);
        }
    });
}

/// Calls `f(worker, row)` for every row, several rows a chunk; `row_work` is the cost of one.
fn for_rows(pool: &mut Pool, rows: usize, row_work: usize, f: impl Fn(usize, usize) + Sync) {
    let per_chunk = (MIN_WORK_PER_CHUNK / row_work.max(1)).max(1);
    pool.run(rows.div_ceil(per_chunk), &|worker, chunk| {
        (chunk * per_chunk..rows.min((chunk + 1) * per_chunk)).for_each(|row| f(worker, row));
    });
}

/// See [`ExpertActivation::ClampedSwiGlu`]; one row.
fn clamped_swiglu(isa: Isa, alpha: f32, limit: f32, gate: &[f32], up: &[f32], out: &mut [f32]) {
    dispatch!(isa, clamped_swiglu_kernel;
        alpha: f32 = alpha,
        limit: f32 = limit,
        gate: &[f32] = gate,
        up: &[f32] = up,
        out: &mut [f32] = out,
    );
}

#[inline(always)]
fn clamped_swiglu_kernel<V: Lanes>(alpha: f32, limit: f32, gate: &[f32], up: &[f32], out: &mut [f32]) {
    let (one, alpha) = (V::splat(1.0), V::splat(alpha));
    let (limit, least) = (V::splat(limit), V::splat(-limit));
    let lanes = |gate: V, up: V| {
        // In these orders of operands, what is not a number stays so.
        let (gate, up) = (limit.min(gate), limit.min(least.max(up)));
        let denominator = one.add(exp(V::splat(0.0).sub(gate.mul(alpha))));
        up.add(one).mul(gate.div(denominator))
    };
    let ((gates, gate_tail), (ups, up_tail)) = (gate.as_chunks::<LANES>(), up.as_chunks::<LANES>());
    let (outs, out_tail) = out.as_chunks_mut::<LANES>();
    for ((gate, up), out) in gates.iter().zip(ups).zip(outs) {
        lanes(V::load(gate), V::load(up)).store(out);
    }
    if !gate_tail.is_empty() {
        let mut last = [0.0; LANES];
        lanes(V::load(&padded(gate_tail)), V::load(&padded(up_tail))).store(&mut last);
        out_tail.copy_from_slice(&last[..gate_tail.len()]);
    }
}

#[cfg(test)]
mod tests;
