//! [`Scheduler`]: decides what each step computes, for whom and in which blocks.
//!
//! There are no phases of prefill and decode: each request has a sequence and a number of tokens computed,
//! and a step hands out tokens so that computed catches up. Running requests come first, in order of
//! admission; then waiting ones ([`crate::admission`]) while budget is left and nobody was preempted.
//!
//! The scheduler is a function of the calls made to it. It has no clock; the hash maps inside are looked up
//! and never walked.
//!
//! # Planning ahead
//!
//! `schedule` may be called again before the results of the plan before are in. The token which that plan
//! samples is then a placeholder: it counts, its value does not matter yet. A request that turns out to have
//! ended has a row too many in flight, whose result is dropped. All this rests on one fact: steps are
//! computed in the order in which they were planned. So a block or a slot can be given away while a step in
//! flight still uses it, and a block can be hit as soon as the step that fills it is planned.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::BuildHasherDefault;

use crate::adapter::Adapter;
use crate::config::{ConfigError, SchedulerConfig};
use crate::in_flight::{Draft, InFlightRow, InFlightStep, Registered, RowOutcome};
use crate::kv::{BlockHash, BlockId, BlockKey, KvCacheManager, LeadingBytes};
use crate::output::{Preemption, RequestUpdate, ScheduledRow, SchedulerOutput, SchedulerStats};
use crate::queue::{Rank, WaitingQueue};
use crate::request::{FinishReason, Request, RequestId, TimeUs};
use crate::state::{RequestState, Requests};

/// See the module's text.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) config: SchedulerConfig,
    pub(crate) kv: KvCacheManager,
    pub(crate) requests: Requests,
    /// In order of admission.
    pub(crate) running: Vec<u32>,
    pub(crate) waiting: WaitingQueue,
    /// Lowest first, so that the slots in use stay dense.
    pub(crate) free_slots: BinaryHeap<Reverse<u32>>,
    /// Left since the last plan.
    pub(crate) released_slots: Vec<u32>,
    /// Blocks that a running request is going to compute, and that request's index.
    pub(crate) expected: HashMap<BlockHash, u32, BuildHasherDefault<LeadingBytes>>,
    pub(crate) in_flight: VecDeque<InFlightStep>,
    /// Ends that no step reports: of aborts and rejections.
    pub(crate) pending_updates: Vec<RequestUpdate>,
    pub(crate) pending_preemptions: Vec<Preemption>,
    pub(crate) totals: Totals,
    pub(crate) num_deferred: u32,
    num_added: u64,
    step: u64,
    /// Counts calls of `schedule`, with or without a plan.
    pub(crate) calls: u64,
    spare_plans: Vec<SchedulerOutput>,
    spare_steps: Vec<InFlightStep>,
    pub(crate) spare_hits: Vec<BlockId>,
    pub(crate) spare_adapters: Vec<Adapter>,
}

/// Counts since the scheduler was made; see [`SchedulerStats`].
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) prefix_cache_queries: u64,
    pub(crate) prefix_cache_hits: u64,
    pub(crate) preemptions: u64,
    pub(crate) prompt_tokens_computed: u64,
}

impl Scheduler {
    /// A scheduler with nothing to do.
    pub fn new(config: SchedulerConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self {
            kv: KvCacheManager::new(config.kv_cache()),
            requests: Requests::default(),
            running: Vec::with_capacity(config.max_num_seqs as usize),
            waiting: WaitingQueue::default(),
            free_slots: (0..config.max_num_seqs).map(Reverse).collect(),
            released_slots: Vec::new(),
            expected: HashMap::default(),
            in_flight: VecDeque::new(),
            pending_updates: Vec::new(),
            pending_preemptions: Vec::new(),
            totals: Totals::default(),
            num_deferred: 0,
            num_added: 0,
            step: 0,
            calls: 0,
            spare_plans: Vec::new(),
            spare_steps: Vec::new(),
            spare_hits: Vec::new(),
            spare_adapters: Vec::new(),
            config,
        })
    }

    /// Takes a request. One that can never run (an empty prompt, or one that leaves no room for a token of
    /// output) ends at once with [`FinishReason::Error`], told by the next outputs.
    ///
    /// # Panics
    /// If the id belongs to a request that has not ended.
    pub fn add(&mut self, request: Request) {
        let (len, most) = (request.prompt_token_ids.len(), self.config.max_model_len);
        let pools = request.sampling.pooling.is_some();
        let refusal = if len == 0 {
            Some("the prompt is empty: at least one token is needed".to_owned())
        } else if pools && len > most as usize {
            Some(format!("the prompt has {len} tokens, but the model's context is {most}"))
        } else if !pools && len >= most as usize {
            Some(format!(
                "the prompt has {len} tokens, but the model's context is {most} and at least one token of \
                 output must fit: shorten the prompt to {} tokens or fewer",
                most - 1
            ))
        } else {
            None
        };
        if let Some(reason) = refusal {
            self.pending_updates.push(terminal_update(request.id, FinishReason::Error(reason.into())));
            return;
        }
        let rank = Rank::new(&self.config, &request, self.num_added);
        self.num_added += 1;
        let index = self.requests.insert(RequestState::new(request, rank, most));
        self.waiting.insert(rank, index);
    }

    /// Ends a request wherever it is; the next outputs tell. False if it has ended already. A result of it
    /// that is still in flight will be dropped.
    pub fn abort(&mut self, id: RequestId) -> bool {
        let Some(index) = self.requests.find(id) else { return false };
        self.end(index, FinishReason::Abort);
        self.sweep_running();
        true
    }

    /// Ends every request for the same reason: the server stops, or the device is lost.
    pub fn end_all(&mut self, reason: &FinishReason) {
        for index in self.requests.indexes().collect::<Vec<_>>() {
            self.end(index, reason.clone());
        }
        self.sweep_running();
    }

    /// The plan of the next step, or nothing if nothing can be computed now (there is no request, or all that
    /// is left depends on steps in flight). The plan must be handed back to [`Scheduler::update`] once, and in
    /// the order of planning. `now_us` dates [`crate::FirstScheduled`] and says how long adapters have waited for a
    /// place; it must not go backwards.
    pub fn schedule(&mut self, now_us: TimeUs) -> Option<SchedulerOutput> {
        self.calls += 1;
        let mut draft = Draft {
            plan: self.spare_plans.pop().unwrap_or_default(),
            flight: self.spare_steps.pop().unwrap_or_default(),
            budget: self.config.max_num_batched_tokens,
            preempted: false,
        };
        self.plan_running(&mut draft);
        if !draft.preempted {
            self.plan_waiting(&mut draft, now_us);
        }
        if draft.plan.rows.is_empty() {
            self.recycle(draft.plan, draft.flight);
            return None;
        }
        self.step += 1;
        draft.plan.step = self.step;
        draft.flight.step = self.step;
        std::mem::swap(&mut draft.plan.released_slots, &mut self.released_slots);
        self.in_flight.push_back(draft.flight);
        Some(draft.plan)
    }

    /// Whether any request has not ended.
    pub fn has_unfinished(&self) -> bool {
        self.requests.len() > 0
    }

    /// The state now. `num_scheduled_tokens` is 0: it belongs to a step.
    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            num_running: self.running.len() as u32,
            num_waiting_capacity: self.waiting.len() as u32 - self.num_deferred,
            num_waiting_deferred: self.num_deferred,
            num_blocks_total: self.kv.pool().num_total(),
            num_blocks_free: self.kv.pool().num_free(),
            num_blocks_cached: self.kv.pool().num_free_cached(),
            num_scheduled_tokens: 0,
            prefix_cache_queries_total: self.totals.prefix_cache_queries,
            prefix_cache_hits_total: self.totals.prefix_cache_hits,
            preemptions_total: self.totals.preemptions,
            prompt_tokens_computed_total: self.totals.prompt_tokens_computed,
        }
    }

    /// Forgets what the prefix cache holds. Refused (false) while any request holds blocks.
    pub fn reset_prefix_cache(&mut self) -> bool {
        self.kv.reset_prefix_cache()
    }

    /// The KV cache, to look at.
    pub fn kv(&self) -> &KvCacheManager {
        &self.kv
    }

    fn plan_running(&mut self, draft: &mut Draft) {
        let mut at = 0;
        while at < self.running.len() && draft.budget > 0 {
            let index = self.running[at];
            let num_tokens = self.cap_tokens(self.requests[index].num_wanted(), draft.budget);
            if num_tokens == 0 {
                at += 1;
                continue;
            }
            let blocks_from = draft.plan.new_block_ids.len() as u32;
            let state = &mut self.requests[index];
            let (start, end) = (state.num_computed, state.num_computed + num_tokens);
            if self.kv.grow(&mut state.table, start, end, &mut draft.plan.new_block_ids) {
                self.plan_row(draft, index, num_tokens, blocks_from);
                at += 1;
                continue;
            }
            // Each turn of this loop plans a row or takes a request out of `running`, so it ends.
            let victim = self.pick_victim(at).unwrap_or(at);
            self.preempt(draft, victim);
            if victim < at {
                at -= 1;
            }
        }
    }

    /// How many of the wanted tokens a request may compute in this step.
    pub(crate) fn cap_tokens(&self, wanted: u32, budget: u32) -> u32 {
        let threshold = self.config.long_prefill_token_threshold;
        let alone = self.running.len() + self.waiting.len() <= 1;
        let most = if threshold == 0 || alone { u32::MAX } else { threshold };
        wanted.min(most).min(budget)
    }

    /// Adds a row for a request that holds the blocks for it; those from `blocks_from` on are new.
    pub(crate) fn plan_row(&mut self, draft: &mut Draft, index: u32, num_tokens: u32, blocks_from: u32) {
        let state = &mut self.requests[index];
        let id = state.request.id;
        let start = state.num_computed;
        let end = start + num_tokens;
        let outcome = state.outcome(end);
        let samples = outcome == RowOutcome::Token;
        state.num_computed = end;
        state.num_placeholders += u32::from(samples);
        state.planned = (self.calls, num_tokens);
        let prompt_len = state.prompt_len();
        self.totals.prompt_tokens_computed += u64::from(prompt_len.min(end).saturating_sub(start));
        draft.budget -= num_tokens;
        draft.plan.num_tokens += num_tokens;
        draft.plan.rows.push(ScheduledRow {
            slot: state.slot.expect("only running requests have rows"),
            id,
            start,
            num_tokens,
            new_blocks: blocks_from..draft.plan.new_block_ids.len() as u32,
            samples,
        });
        draft.flight.rows.push(InFlightRow { index, id, outcome });
        if self.kv.enable_prefix_caching() {
            self.register_full_blocks(draft, index);
        }
    }

    /// Registers the blocks that are full of known tokens once the steps planned so far are done.
    fn register_full_blocks(&mut self, draft: &mut Draft, index: u32) {
        let block_size = self.kv.block_size();
        let state = &mut self.requests[index];
        let num_full = (state.num_computed.min(state.num_known()) / block_size) as usize;
        if num_full <= state.table.num_registered() {
            return;
        }
        let owner = state.request.id;
        let (table, hashes, sequence) = state.blocks();
        sequence.extend_hashes(hashes, num_full, block_size as usize);
        for i in self.kv.register(table, num_full, hashes, &sequence) {
            for (group, &block) in self.kv.blocks_at(table, i).iter().enumerate() {
                let key = BlockKey { hash: hashes[i], group: group as u32 };
                draft.flight.registered.push(Registered { owner, block, key });
            }
        }
        self.stop_expecting(index, num_full);
    }

    /// Ends a request; the next outputs tell.
    fn end(&mut self, index: u32, reason: FinishReason) {
        let state = self.retire(index);
        let mut update = terminal_update(state.request.id, reason);
        update.first_scheduled = state.first_scheduled;
        self.pending_updates.push(update);
    }

    /// Takes a request out of everything, but for `running`: see [`Scheduler::sweep_running`].
    pub(crate) fn retire(&mut self, index: u32) -> RequestState {
        if self.requests.is_running(index) {
            self.leave_slot(index);
        } else {
            let state = &self.requests[index];
            self.waiting.remove(state.rank);
            self.num_deferred -= u32::from(state.waits_for.is_some());
        }
        self.requests.remove(index)
    }

    /// Gives back a running request's slot and blocks.
    pub(crate) fn leave_slot(&mut self, index: u32) {
        self.stop_expecting(index, usize::MAX);
        let state = &mut self.requests[index];
        let slot = state.slot.take().expect("only running requests have a slot");
        self.kv.free(&mut state.table);
        self.free_slots.push(Reverse(slot));
        self.released_slots.push(slot);
    }

    /// Drops from `running` what no longer runs.
    pub(crate) fn sweep_running(&mut self) {
        let requests = &self.requests;
        self.running.retain(|&index| requests.is_running(index));
    }

    pub(crate) fn recycle(&mut self, mut plan: SchedulerOutput, mut flight: InFlightStep) {
        plan.rows.clear();
        plan.new_block_ids.clear();
        plan.admitted.clear();
        plan.released_slots.clear();
        plan.num_tokens = 0;
        flight.clear();
        self.spare_plans.push(plan);
        self.spare_steps.push(flight);
    }
}

/// The last word on a request, without tokens.
pub(crate) fn terminal_update(id: RequestId, reason: FinishReason) -> RequestUpdate {
    RequestUpdate {
        id,
        tokens: 0..0,
        logprobs: 0..0,
        pooled: 0..0,
        first_scheduled: None,
        finish: Some(reason),
    }
}
