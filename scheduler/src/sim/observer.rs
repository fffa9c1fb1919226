//! [`Observer`]: watches plans and outputs from outside, and knows what they must be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::model::SimModel;
use super::rng::fold;
use super::toy_grammar::ToyGrammar;
use crate::adapter::Adapter;
use crate::config::SchedulerConfig;
use crate::kv::{BlockId, BlockKey, KvEvent};
use crate::matching::NOTHING_LEFT;
use crate::output::{RequestUpdate, SchedulerOutput, StepOutputs, TokenLogprob};
use crate::request::{FinishReason, Request, RequestId, TokenId};

/// What makes two requests' blocks different though their tokens are the same.
type Tenant = (Option<Adapter>, Option<Arc<str>>);

/// What has been seen of a request.
#[derive(Debug)]
struct Life {
    request: Request,
    expected: Option<(Vec<TokenId>, FinishReason)>,
    outputs: Vec<TokenId>,
    was_scheduled: bool,
    next_prompt_logprob: u32,
    aborted: bool,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Observer {
    model: SimModel,
    config: SchedulerConfig,
    live: BTreeMap<RequestId, Life>,
    /// Who was given each block last.
    tenants: Vec<Tenant>,
    /// What can be hit, by the events.
    cached: BTreeSet<BlockKey>,
    /// Ended as they should have, with what they generated: for conversations that go on.
    pub(super) finished: Vec<(Request, Vec<TokenId>)>,
    pub(super) trace: u64,
    pub(super) num_aborted: u64,
    pub(super) num_failed: u64,
    pub(super) num_finished: u64,
    pub(super) num_preempted: u64,
    /// Ended by an error of its grammar.
    pub(super) num_stuck: u64,
    /// Tokens that were not sampled.
    pub(super) num_forced: u64,
}

macro_rules! ensure {
    ($holds:expr, $($text:tt)+) => {
        if !$holds {
            return Err(format!($($text)+));
        }
    };
}

impl Observer {
    pub(super) fn new(model: SimModel, config: SchedulerConfig) -> Self {
        Self {
            tenants: vec![(None, None); config.num_blocks as usize],
            model,
            config,
            live: BTreeMap::new(),
            cached: BTreeSet::new(),
            finished: Vec::new(),
            trace: 0,
            num_aborted: 0,
            num_failed: 0,
            num_finished: 0,
            num_preempted: 0,
            num_stuck: 0,
            num_forced: 0,
        }
    }

    pub(super) fn num_live(&self) -> usize {
        self.live.len()
    }

    pub(super) fn nth_live(&self, n: usize) -> Option<RequestId> {
        self.live.keys().nth(n).copied()
    }

    pub(super) fn see_request(&mut self, request: &Request) {
        let len = request.prompt_token_ids.len();
        let most = self.config.max_model_len as usize;
        let fits = len > 0 && (len < most || len == most && request.sampling.pooling.is_some());
        let life = Life {
            request: request.clone(),
            expected: fits.then(|| self.model.generate_alone(request, self.config.max_model_len)),
            outputs: Vec::new(),
            was_scheduled: false,
            next_prompt_logprob: 1,
            aborted: false,
        };
        self.live.insert(request.id, life);
    }

    pub(super) fn see_abort(&mut self, id: RequestId) {
        if let Some(life) = self.live.get_mut(&id) {
            life.aborted = true;
        }
    }

    pub(super) fn see_plan(&mut self, plan: &SchedulerOutput) -> Result<(), String> {
        let config = &self.config;
        let sum: u32 = plan.rows.iter().map(|row| row.num_tokens).sum();
        ensure!(sum == plan.num_tokens, "{sum} tokens in rows, {} in the plan", plan.num_tokens);
        ensure!(sum <= config.max_num_batched_tokens, "{sum} tokens are over the budget");
        ensure!(!plan.rows.is_empty(), "a plan without rows");
        let slots: BTreeSet<u32> = plan.rows.iter().map(|row| row.slot).collect();
        let ids: BTreeSet<RequestId> = plan.rows.iter().map(|row| row.id).collect();
        ensure!(slots.len() == plan.rows.len(), "a slot has two rows");
        ensure!(ids.len() == plan.rows.len(), "a request has two rows");
        ensure!(slots.iter().all(|&slot| slot < config.max_num_seqs), "a slot that does not exist");
        let mut blocks_to = 0;
        let mut adapters = BTreeSet::new();
        let mut admitted = plan.admitted.iter().peekable();
        for row in &plan.rows {
            ensure!(row.new_blocks.start == blocks_to, "new blocks overlap or are left over");
            blocks_to = row.new_blocks.end;
            let life = self.live.get(&row.id);
            let request = life.map(|life| &life.request);
            if let Some(request) = request.filter(|_| config.whole_prompts) {
                let whole = row.start == 0 && row.num_tokens as usize == request.prompt_token_ids.len();
                ensure!(whole, "tokens {}.. of a prompt that must be computed whole", row.start);
            }
            let tenant = request.map(|of| (of.adapter.clone(), of.cache_salt.clone()));
            adapters.extend(request.and_then(|of| of.adapter.as_ref()).map(Adapter::key));
            if let Some(entry) = admitted.next_if(|entry| entry.id == row.id) {
                ensure!(entry.slot == row.slot, "admitted to one slot, planned in another");
                let num_groups = config.kv_groups.len();
                let cached = (entry.block_ids.len() / num_groups) as u32 * config.block_size;
                ensure!(entry.block_ids.len().is_multiple_of(num_groups), "a hit not in every group");
                ensure!(row.start == cached, "{cached} tokens cached, but the row starts at {}", row.start);
                for block in entry.block_ids.iter().filter(|block| !block.is_null()) {
                    let of = &self.tenants[block.0 as usize];
                    ensure!(Some(of) == tenant.as_ref(), "a block of tenant {of:?} is hit by {tenant:?}");
                }
            }
            for block in &plan.new_block_ids[row.new_blocks.start as usize..row.new_blocks.end as usize] {
                // A row of a request that has ended already cannot get blocks.
                let tenant = tenant.clone().ok_or("an ended request gets blocks")?;
                self.tenants[block.0 as usize] = tenant;
            }
            for value in [row.id.0, u64::from(row.slot), u64::from(row.start), u64::from(row.num_tokens)] {
                self.trace = fold(self.trace, value);
            }
        }
        ensure!(adapters.len() <= config.max_loras as usize, "{} adapters in a plan", adapters.len());
        ensure!(admitted.next().is_none(), "an admitted request has no row, or the order differs");
        ensure!(blocks_to as usize == plan.new_block_ids.len(), "new blocks are left over");
        for &BlockId(block) in
            plan.new_block_ids.iter().chain(plan.admitted.iter().flat_map(|a| &a.block_ids))
        {
            self.trace = fold(self.trace, u64::from(block));
        }
        for &slot in &plan.released_slots {
            self.trace = fold(self.trace, u64::from(slot));
        }
        Ok(())
    }

    pub(super) fn see_outputs(&mut self, out: &StepOutputs) -> Result<(), String> {
        let mut ids = BTreeSet::new();
        for (at, update) in out.updates.iter().enumerate() {
            ensure!(ids.insert(update.id), "two updates of request {} in a message", update.id.0);
            let tokens = &out.tokens[update.tokens.start as usize..update.tokens.end as usize];
            let logprobs = &out.logprobs[update.logprobs.start as usize..update.logprobs.end as usize];
            ensure!(logprobs.iter().all(|entry| entry.row == at as u32), "a log-probability of another");
            let pooled = &out.pooled[update.pooled.start as usize..update.pooled.end as usize];
            self.see_vector(update, pooled).map_err(|wrong| format!("request {}: {wrong}", update.id.0))?;
            self.see_update(update, tokens, logprobs)
                .map_err(|wrong| format!("request {}: {wrong}", update.id.0))?;
        }
        self.num_preempted += out.preemptions.len() as u64;
        for event in &out.kv_events {
            self.see_event(event)?;
        }
        Ok(())
    }

    /// The events say what can be hit, no more and no less.
    pub(super) fn check_cached(&self, num_cached: usize) -> Result<(), String> {
        let told = self.cached.len();
        ensure!(told == num_cached, "events tell of {told} cached blocks, there are {num_cached}");
        Ok(())
    }

    /// A vector comes with the end of a pooled request and never else.
    fn see_vector(&self, update: &RequestUpdate, pooled: &[f32]) -> Result<(), String> {
        if update.finish != Some(FinishReason::Pooled) {
            ensure!(pooled.is_empty(), "a vector of a request that is not pooled");
            return Ok(());
        }
        let life = self.live.get(&update.id).ok_or("a vector after the end")?;
        ensure!(pooled == self.model.pool_alone(&life.request), "not the vector that it has alone");
        Ok(())
    }

    fn see_update(
        &mut self,
        update: &RequestUpdate,
        tokens: &[TokenId],
        logprobs: &[TokenLogprob],
    ) -> Result<(), String> {
        let life = self.live.get_mut(&update.id).ok_or("an update after the end")?;
        for value in tokens.iter().map(|&token| u64::from(token)).chain([update.id.0]) {
            self.trace = fold(self.trace, value);
        }
        if update.first_scheduled.is_some() {
            ensure!(!life.was_scheduled, "it is first scheduled twice");
            life.was_scheduled = true;
        }
        let prompt = &life.request.prompt_token_ids;
        let (mut of_prompt, mut of_output) = (0, 0);
        for entry in logprobs {
            if (entry.position as usize) < prompt.len() {
                ensure!(entry.position == life.next_prompt_logprob, "prompt position {}", entry.position);
                ensure!(entry.token == prompt[entry.position as usize], "the logprob of another token");
                life.next_prompt_logprob += 1;
                of_prompt += 1;
            } else {
                let position = prompt.len() + life.outputs.len();
                ensure!(entry.position as usize == position, "output position {}", entry.position);
                ensure!(tokens == [entry.token], "the logprob of another token");
                of_output += 1;
            }
        }
        let sampling = &life.request.sampling;
        ensure!(of_prompt == 0 || sampling.prompt_logprobs.is_some(), "nobody asked for prompt logprobs");
        let wanted = if sampling.logprobs.is_some() { tokens.len() } else { 0 };
        ensure!(of_output == wanted, "{of_output} logprobs for {} tokens", tokens.len());
        life.outputs.extend_from_slice(tokens);
        self.num_forced += tokens.len().saturating_sub(1) as u64;
        ensure!(tokens.len() <= 1 || sampling.grammar.is_some(), "{} tokens in a step", tokens.len());
        if !tokens.is_empty() {
            ensure!(life.was_scheduled, "tokens before it was scheduled");
            let (expected, _) = life.expected.as_ref().ok_or("tokens of a request that cannot run")?;
            let same = expected.starts_with(&life.outputs);
            ensure!(same, "generated {:?}, alone it generates {expected:?}", life.outputs);
        }
        match &update.finish {
            Some(reason) => self.see_end(update.id, reason),
            None => Ok(()),
        }
    }

    fn see_end(&mut self, id: RequestId, reason: &FinishReason) -> Result<(), String> {
        let life = self.live.remove(&id).expect("looked up by the caller");
        match (reason, life.expected) {
            (FinishReason::Error(_), None) => self.num_failed += 1,
            (FinishReason::Error(text), Some(_)) if text.starts_with("injected failure") => {
                self.num_failed += 1;
            }
            (FinishReason::Abort, _) => {
                ensure!(life.aborted, "nobody aborted it");
                self.num_aborted += 1;
            }
            (_, None) => return Err(format!("it cannot run, but ended with {reason:?}")),
            (_, Some((tokens, expected))) => {
                ensure!(!life.aborted, "it was aborted, but ended with {reason:?}");
                ensure!(*reason == expected, "it ended with {reason:?}, alone with {expected:?}");
                ensure!(tokens == life.outputs, "generated {:?}, alone {tokens:?}", life.outputs);
                if let FinishReason::Impossible(text) = reason {
                    let of_grammar = &**text == ToyGrammar::GIVES_UP || &**text == NOTHING_LEFT;
                    ensure!(of_grammar, "it ended with: {text}");
                    self.num_stuck += 1;
                    return Ok(());
                }
                let told = life.next_prompt_logprob;
                let all = life.request.prompt_token_ids.len() as u32;
                let complete = life.request.sampling.prompt_logprobs.is_none() || told == all;
                ensure!(complete, "prompt logprobs were told up to {told} of {all}");
                self.num_finished += 1;
                self.finished.push((life.request, life.outputs));
            }
        }
        Ok(())
    }

    fn see_event(&mut self, event: &KvEvent) -> Result<(), String> {
        match event {
            KvEvent::Stored { block_hashes, parent_block_hash, token_ids, group, sliding_window, .. } => {
                let num_tokens = block_hashes.len() * self.config.block_size as usize;
                ensure!(token_ids.len() == num_tokens, "stored blocks of another size");
                let of = self.config.kv_groups.get(*group as usize);
                let is_known = of.is_some_and(|of| of.sliding_window == *sliding_window);
                ensure!(is_known, "group {group} with a window of {sliding_window:?}");
                ensure!(parent_block_hash.is_none_or(|parent| parent != block_hashes[0]), "its own parent");
                for &hash in block_hashes {
                    ensure!(self.cached.insert(BlockKey { hash, group: *group }), "a block is stored twice");
                }
            }
            KvEvent::Removed { block_hashes, group } => {
                for &hash in block_hashes {
                    let was_there = self.cached.remove(&BlockKey { hash, group: *group });
                    ensure!(was_there, "a block is removed that was not stored");
                }
            }
            KvEvent::Cleared => self.cached.clear(),
        }
        Ok(())
    }
}
