//! The messages of a step: the plan ([`SchedulerOutput`]), what computing it gave
//! ([`ModelRunnerOutput`]), and what it means for each request ([`StepOutputs`]).
//!
//! All three are flat: a few vectors and ranges into them, however many requests take part, so that a
//! step costs a fixed number of allocations (most of them reused) and one message.

use std::ops::Range;
use std::sync::Arc;

use crate::adapter::Adapter;
use crate::kv::{BlockId, KvEvent};
use crate::request::{FinishReason, RequestId, SamplingParams, TimeUs, TokenId};

/// The plan of one step. Rows are in the order in which they were scheduled.
#[derive(Debug, Default, Clone)]
pub struct SchedulerOutput {
    /// Counts up from 1.
    pub step: u64,
    /// At most one row a request, at most `max_num_seqs` rows.
    pub rows: Vec<ScheduledRow>,
    /// Blocks newly given to rows; see [`ScheduledRow::new_blocks`].
    pub new_block_ids: Vec<BlockId>,
    /// Requests that enter a slot in this step (new, or resumed after a preemption). Each has a row.
    pub admitted: Vec<AdmittedRequest>,
    /// Slots whose request left since the last plan (finished, aborted or preempted). Applied by the
    /// runner before `admitted`: a slot can be given away and taken again in one plan.
    pub released_slots: Vec<u32>,
    /// Sum of `num_tokens` over `rows`; at most `max_num_batched_tokens`.
    pub num_tokens: u32,
}

/// One request's share of a step: compute tokens `start .. start + num_tokens` of its sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduledRow {
    /// Dense index below `max_num_seqs`; the runner's state of the request lives there.
    pub slot: u32,
    /// Whose row it is.
    pub id: RequestId,
    /// Position of the first token to compute = number of tokens whose KV is there already.
    pub start: u32,
    /// At least 1. If the last of these tokens was sampled in a step still in flight, the host does not
    /// know it yet: the runner takes it from the slot's last sampled token.
    pub num_tokens: u32,
    /// The blocks to append to the slot's block tables: a range of [`SchedulerOutput::new_block_ids`], where the
    /// n-th blocks of all groups of layers are side by side (`[new][groups]`).
    pub new_blocks: Range<u32>,
    /// Whether the row reaches the end of the known sequence, so that a token is to be sampled.
    pub samples: bool,
}

/// A request that enters a slot. All its blocks so far (prefix-cache hits) are in `block_ids`; blocks
/// for its row come through [`ScheduledRow::new_blocks`].
#[derive(Debug, Clone)]
pub struct AdmittedRequest {
    /// The slot it gets.
    pub slot: u32,
    /// Who it is.
    pub id: RequestId,
    /// The prompt.
    pub prompt_token_ids: Arc<[TokenId]>,
    /// Tokens generated before a preemption; empty for a new request.
    pub output_token_ids: Vec<TokenId>,
    /// Parameters.
    pub sampling: Arc<SamplingParams>,
    /// Adapter whose weights apply.
    pub adapter: Option<Adapter>,
    /// Blocks that hold the KV of the first `row.start` tokens, `[hit][groups]`. [`BlockId::NULL`] where a group's
    /// window does not reach.
    pub block_ids: Vec<BlockId>,
}

/// What a runner gives back for one plan.
#[derive(Debug, Default, Clone)]
pub struct ModelRunnerOutput {
    /// One token for each row of the plan with `samples`, in row order.
    pub sampled: Vec<TokenId>,
    /// Tokens that must follow those sampled, by the grammars of their requests: the sequences go on with
    /// them, though no step has computed them yet.
    pub forced: Vec<TokenId>,
    /// Whose `forced` are: index into the plan's rows (one that samples), ascending, and a range of `forced`.
    /// A row without forced tokens is not listed.
    pub forced_rows: Vec<(u32, Range<u32>)>,
    /// Log-probabilities that were asked for, grouped by row in row order; prompt positions first, in
    /// order of position, then the sampled token.
    pub logprobs: Vec<TokenLogprob>,
    /// Alternatives of `logprobs`, best first; see [`TokenLogprob::top`].
    pub top: Vec<(TokenId, f32)>,
    /// The vector of each row that ends the prompt of a pooled request, in row order, all of one length.
    pub pooled: Vec<f32>,
    /// Rows whose own work failed (say, logits that are not numbers): index into the plan's rows and how their
    /// requests end. Their entry in `sampled` or `pooled` is meaningless.
    pub failed_rows: Vec<(u32, FinishReason)>,
}

/// The log-probability (natural log, of the raw distribution) of one token of a sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// Index into the plan's rows (in a [`ModelRunnerOutput`]); the same row's update in [`StepOutputs`].
    pub row: u32,
    /// Position of the token in the sequence (prompt and output counted together, from 0).
    pub position: u32,
    /// The token there.
    pub token: TokenId,
    /// Its log-probability.
    pub logprob: f32,
    /// 1 = the most likely.
    pub rank: u32,
    /// The best alternatives: a range of `top` of the message this is part of.
    pub top: Range<u32>,
}

/// What one step means for the requests: one message a step, at most one update a request.
#[derive(Debug, Default, Clone)]
pub struct StepOutputs {
    /// The step this is about; 0 if it was not a step (aborts and rejections while idle).
    pub step: u64,
    /// At most one a request; exactly one in the life of a request has `finish`.
    pub updates: Vec<RequestUpdate>,
    /// New tokens; see [`RequestUpdate::tokens`].
    pub tokens: Vec<TokenId>,
    /// See [`RequestUpdate::logprobs`].
    pub logprobs: Vec<TokenLogprob>,
    /// See [`TokenLogprob::top`].
    pub top: Vec<(TokenId, f32)>,
    /// See [`RequestUpdate::pooled`].
    pub pooled: Vec<f32>,
    /// What happened in the prefix cache, for publishers; in order.
    pub kv_events: Vec<KvEvent>,
    /// Preemptions decided since the last message, to be counted and logged.
    pub preemptions: Vec<Preemption>,
    /// The state of the scheduler after the step.
    pub stats: SchedulerStats,
}

/// News of one request.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestUpdate {
    /// Whose.
    pub id: RequestId,
    /// New tokens: a range of [`StepOutputs::tokens`]. A token that ended the sequence is included. More than
    /// one if a grammar forced those behind the first.
    pub tokens: Range<u32>,
    /// New log-probabilities: a range of [`StepOutputs::logprobs`].
    pub logprobs: Range<u32>,
    /// The prompt as one vector, with the end of a pooled request: a range of [`StepOutputs::pooled`].
    pub pooled: Range<u32>,
    /// Set on the request's first update after it was first scheduled.
    pub first_scheduled: Option<FirstScheduled>,
    /// Set on the last update of the request.
    pub finish: Option<FinishReason>,
}

/// Facts known when a request is scheduled for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstScheduled {
    /// The `now_us` of that plan.
    pub at_us: TimeUs,
    /// Prompt tokens whose KV came from the prefix cache.
    pub num_cached_tokens: u32,
}

/// A request lost its blocks to another and will be computed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preemption {
    /// The victim.
    pub id: RequestId,
    /// Tokens whose KV was dropped (an upper bound of the work lost: cached blocks may survive).
    pub num_computed_tokens: u32,
    /// How often this request has been preempted, this time included.
    pub times: u32,
}

/// Counts after a step. Totals are since the scheduler was made.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Requests in a slot.
    pub num_running: u32,
    /// Requests waiting for blocks, slots or budget.
    pub num_waiting_capacity: u32,
    /// Requests waiting for another request to compute the prefix that they share.
    pub num_waiting_deferred: u32,
    /// All blocks but the padding block.
    pub num_blocks_total: u32,
    /// Blocks that no request holds (they may be cached).
    pub num_blocks_free: u32,
    /// Those of the free blocks whose content can be hit.
    pub num_blocks_cached: u32,
    /// Tokens computed in this step.
    pub num_scheduled_tokens: u32,
    /// Prompt tokens looked up in the prefix cache, in total.
    pub prefix_cache_queries_total: u64,
    /// Prompt tokens found there, in total.
    pub prefix_cache_hits_total: u64,
    /// Preemptions, in total.
    pub preemptions_total: u64,
    /// Prompt tokens computed (not taken from the cache), in total.
    pub prompt_tokens_computed_total: u64,
}
