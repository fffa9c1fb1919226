//! [`StepInputs`]: everything about a step that a device must be told, packed into one array of words so
//! that it is one copy, and the shape of what comes back.

use std::ops::Range;
use std::sync::Arc;

use quire_scheduler::{Pooling, TokenId};

use crate::sampler::RowFailure;
use crate::slot::Slot;

/// Set in a word of [`StepInputs::token_ids`] whose token the host does not know yet; the other bits are
/// the slot whose last sampled token it is.
pub const PLACEHOLDER_BIT: u32 = 1 << 31;

/// The step's metadata. `T` tokens belong to `R` rows, row after row; `L` of the tokens need logits.
#[derive(Debug, Default)]
pub struct StepInputs {
    words: Vec<u32>,
    num_tokens: usize,
    num_rows: usize,
    num_logits: usize,
    num_block_writes: usize,
}

/// Mutable views of the sections, to be filled by [`crate::InputBatch`].
pub(crate) struct Sections<'a> {
    pub(crate) token_ids: &'a mut [u32],
    pub(crate) positions: &'a mut [u32],
    pub(crate) token_rows: &'a mut [u32],
    pub(crate) row_slots: &'a mut [u32],
    pub(crate) row_ends: &'a mut [u32],
    pub(crate) logits_tokens: &'a mut [u32],
    pub(crate) block_writes: &'a mut [u32],
}

impl StepInputs {
    /// Room for the largest step, so that no later step allocates.
    pub(crate) fn with_capacity(num_tokens: usize, num_rows: usize, num_block_writes: usize) -> Self {
        let words = Vec::with_capacity(4 * num_tokens + 2 * num_rows + 3 * num_block_writes);
        Self { words, ..Self::default() }
    }

    /// Forgets the last step and lays out one of these sizes.
    pub(crate) fn lay_out(
        &mut self,
        tokens: usize,
        rows: usize,
        logits: usize,
        writes: usize,
    ) -> Sections<'_> {
        (self.num_tokens, self.num_rows, self.num_logits, self.num_block_writes) =
            (tokens, rows, logits, writes);
        self.words.clear();
        self.words.resize(3 * tokens + 2 * rows + logits + 3 * writes, 0);
        let (token_ids, rest) = self.words.split_at_mut(tokens);
        let (positions, rest) = rest.split_at_mut(tokens);
        let (token_rows, rest) = rest.split_at_mut(tokens);
        let (row_slots, rest) = rest.split_at_mut(rows);
        let (row_ends, rest) = rest.split_at_mut(rows);
        let (logits_tokens, block_writes) = rest.split_at_mut(logits);
        Sections { token_ids, positions, token_rows, row_slots, row_ends, logits_tokens, block_writes }
    }

    /// Becomes a copy of `other` in the memory there is.
    pub fn copy_from(&mut self, other: &Self) {
        let Self { words, num_tokens, num_rows, num_logits, num_block_writes } = other;
        self.words.clone_from(words);
        (self.num_tokens, self.num_rows) = (*num_tokens, *num_rows);
        (self.num_logits, self.num_block_writes) = (*num_logits, *num_block_writes);
    }

    /// All sections, in the order of the accessors below: what a device copies.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// `T`.
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// `[T]` tokens to embed; see [`PLACEHOLDER_BIT`].
    pub fn token_ids(&self) -> &[u32] {
        self.section(0..self.num_tokens)
    }

    /// `[T]` positions in their sequences. A token attends to positions up to its own. Where positions are learned,
    /// rows of their table: those of a second text are further on ([`crate::ModelSpec::second_text_offset`]).
    pub fn positions(&self) -> &[u32] {
        self.section(self.num_tokens..2 * self.num_tokens)
    }

    /// `[T]` the row that each token belongs to.
    pub fn token_rows(&self) -> &[u32] {
        self.section(2 * self.num_tokens..3 * self.num_tokens)
    }

    /// `[R]` the slot of each row; block tables are by group and slot.
    pub fn row_slots(&self) -> &[u32] {
        self.section(self.row_words(0))
    }

    /// `[R]` where each row's tokens end among the `T` (cumulative lengths without the leading 0).
    pub fn row_ends(&self) -> &[u32] {
        self.section(self.row_words(1))
    }

    /// `[L]` which of the `T` tokens need logits.
    pub fn logits_tokens(&self) -> &[u32] {
        let start = self.row_words(2).start;
        self.section(start..start + self.num_logits)
    }

    /// `[W][table, index, block]`: entries to write into the device's block tables before anything else. A group of
    /// layers has a table for each slot: `table = group * max_num_seqs + slot`.
    pub fn block_writes(&self) -> &[[u32; 3]] {
        let start = self.row_words(2).start + self.num_logits;
        self.section(start..start + 3 * self.num_block_writes).as_chunks().0
    }

    fn row_words(&self, section: usize) -> Range<usize> {
        let start = 3 * self.num_tokens + section * self.num_rows;
        start..start + self.num_rows
    }

    fn section(&self, words: Range<usize>) -> &[u32] {
        &self.words[words]
    }
}

/// One row of logits and what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogitsRow {
    /// Index into the plan's rows.
    pub plan_row: u32,
    /// Slot of that row.
    pub slot: u32,
    /// Position in the sequence of the token that these logits predict.
    pub position: u32,
    /// What to do with them.
    pub task: LogitsTask,
}

impl LogitsRow {
    /// Alternatives to tell with the log-probability of the row's token; `None` if not even that is wanted. `slot` is
    /// the row's.
    pub fn wanted_top(&self, slot: &Slot) -> Option<u32> {
        match self.task {
            LogitsTask::Prompt { .. } => slot.params().prompt_logprobs,
            LogitsTask::Sample => slot.params().logprobs,
        }
    }

    /// The tokens to tell instead of the best, with the row's own before them; `None` = the best.
    pub fn wanted_ids<'a>(&self, slot: &'a Slot) -> Option<&'a Arc<[TokenId]>> {
        let params = slot.params();
        params
            .logprob_token_ids
            .as_ref()
            .filter(|_| self.task == LogitsTask::Sample && params.logprobs.is_some())
    }
}

/// What a row of logits is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitsTask {
    /// The log-probability of a prompt token that is there already.
    Prompt {
        /// The token at [`LogitsRow::position`].
        token: TokenId,
    },
    /// Choose the token at [`LogitsRow::position`].
    Sample,
}

/// One row of a request that is to be pooled, and what of its prompt it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolRow {
    /// Index into the plan's rows.
    pub plan_row: u32,
    /// Slot of that row.
    pub slot: u32,
    /// Which of the step's `T` tokens are the row's.
    pub tokens: Range<u32>,
    /// Position of the first of them in the prompt.
    pub start: u32,
    /// Tokens of the prompt.
    pub prompt_len: u32,
    /// What becomes of their hidden states.
    pub pooling: Pooling,
}

impl PoolRow {
    /// Whether the prompt ends with this row, which then has a vector.
    pub fn is_last(&self) -> bool {
        self.start + self.tokens.len() as u32 == self.prompt_len
    }
}

/// What became of one [`LogitsRow`].
#[derive(Debug, Default, Clone)]
pub struct RowResult {
    /// The token sampled, or the prompt's.
    pub token: TokenId,
    /// Log-probability of `token`, if the request asked for it.
    pub logprob: f32,
    /// Rank of `token`, from 1; 0 if no log-probability was asked for.
    pub rank: u32,
    /// The best alternatives, best first.
    pub top: Vec<(TokenId, f32)>,
    /// Set if this row, and only this row, has no result.
    pub failure: Option<RowFailure>,
}
