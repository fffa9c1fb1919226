//! [`LoraBatch`]: what adapters add to the products of a step.
//!
//! The tokens of one adapter are gathered, go through its two matrices as rows of two small products, and the sums are
//! added where the tokens are. So each adapter's weights are read once for all its tokens, and an element of the result
//! is computed in the same order whoever else is in the step.

use std::ops::Range;

use quire_model::{Adapter, LoraPart, LoraTargets, LoraWeights, Slot, StepInputs, StepLimits};

use crate::lanes::Isa;
use crate::linear::linear_f32;
use crate::pool::Pool;
use crate::shared::SharedSlice;

/// Tokens of one adapter that are computed at a time: enough for the tiles, and few enough for the caches.
const MAX_GATHERED: usize = 128;

/// Tokens of an adapter whose sums one thread adds: less is not worth another.
const TOKENS_PER_CHUNK: usize = 16;

/// The step's tokens that have an adapter, and memory to compute with.
#[derive(Default)]
pub(crate) struct LoraBatch {
    groups: Vec<Group>,
    /// Tokens of the step, adapter after adapter.
    tokens: Vec<u32>,
    /// `[tokens][inputs]`.
    gathered: Vec<f32>,
    /// `[tokens][rank]`.
    shrunk: Vec<f32>,
    /// `[tokens][outputs]`.
    expanded: Vec<f32>,
}

/// The tokens of one adapter.
struct Group {
    adapter: Adapter,
    /// Of [`LoraBatch::tokens`].
    tokens: Range<usize>,
}

impl LoraBatch {
    /// Memory for any step within the limits.
    pub(crate) fn new(limits: &StepLimits, max_rank: usize, targets: &LoraTargets) -> Self {
        let (inputs, outputs) = targets.widest();
        let rows = limits.max_num_batched_tokens.min(MAX_GATHERED);
        Self {
            groups: Vec::with_capacity(limits.max_num_seqs),
            tokens: Vec::with_capacity(limits.max_num_batched_tokens),
            gathered: vec![0.0; rows * inputs],
            shrunk: vec![0.0; rows * max_rank],
            expanded: vec![0.0; rows * outputs],
        }
    }

    /// Takes in a step.
    pub(crate) fn group(&mut self, step: &StepInputs, slots: &[Slot]) {
        self.groups.clear();
        self.tokens.clear();
        let adapter = |slot: &u32| slots[*slot as usize].adapter();
        for adapter in step.row_slots().iter().filter_map(adapter) {
            if self.groups.iter().all(|group| group.adapter != *adapter) {
                self.groups.push(Group { adapter: adapter.clone(), tokens: 0..0 });
            }
        }
        for group in &mut self.groups {
            let first = self.tokens.len();
            let mut start = 0;
            for (slot, end) in step.row_slots().iter().zip(step.row_ends()) {
                if adapter(slot) == Some(&group.adapter) {
                    self.tokens.extend(start..*end);
                }
                start = *end;
            }
            group.tokens = first..self.tokens.len();
        }
    }

    /// Adds to `out[T][width]`, product number `projection` of `x`.
    pub(crate) fn add(
        &mut self,
        pool: &mut Pool,
        isa: Isa,
        projection: usize,
        width: usize,
        x: &[f32],
        out: &mut [f32],
    ) {
        let Self { groups, tokens, gathered, shrunk, expanded } = self;
        for group in groups {
            let weights = group.adapter.weights::<LoraWeights>();
            let parts = weights.expect("checked when the request was admitted").parts(projection);
            let Some(first) = parts.first() else { continue };
            let inputs = first.a.len() / first.rank;
            for tokens in tokens[group.tokens.clone()].chunks(MAX_GATHERED) {
                let gathered = &mut gathered[..tokens.len() * inputs];
                for (token, row) in tokens.iter().zip(gathered.chunks_exact_mut(inputs)) {
                    row.copy_from_slice(&x[*token as usize * inputs..][..inputs]);
                }
                for part in parts {
                    let shrunk = &mut shrunk[..tokens.len() * part.rank];
                    linear_f32(pool, isa, gathered, inputs, &part.a, shrunk);
                    let expanded = &mut expanded[..tokens.len() * part.columns.len()];
                    linear_f32(pool, isa, shrunk, part.rank, &part.b, expanded);
                    scatter(pool, part, tokens, width, expanded, out);
                }
            }
        }
    }
}

/// Adds the rows of `expanded` where the tokens are.
fn scatter(
    pool: &mut Pool,
    part: &LoraPart,
    tokens: &[u32],
    width: usize,
    expanded: &[f32],
    out: &mut [f32],
) {
    let (out, outputs) = (SharedSlice::new(out), part.columns.len());
    pool.run(tokens.len().div_ceil(TOKENS_PER_CHUNK), &|_, chunk| {
        let rows = tokens.iter().zip(expanded.chunks_exact(outputs));
        for (token, row) in rows.skip(chunk * TOKENS_PER_CHUNK).take(TOKENS_PER_CHUNK) {
            // SAFETY: each token is in one chunk, and tokens do not overlap.
            #[allow(unsafe_code)]
            let out = unsafe { out.part(*token as usize * width + part.columns.start, outputs) };
            out.iter_mut().zip(row).for_each(|(sum, x)| *sum += part.scaling * x);
        }
    });
}
