//! [`SimRunner`]: a [`ModelRunner`] without a model.
//!
//! In its fast mode a row costs nanoseconds, so that what is measured around it is everything but the
//! model. In its checking mode it keeps a simulated KV cache and refuses, with a fatal error, any plan that
//! would make a real runner read or write the wrong thing. Both modes give the same tokens.
#![allow(
    clippy::disallowed_types,
    reason = "a simulated device takes real time if asked to; no plan depends on it"
)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::memory::SimMemory;
use super::model::SimModel;
use super::rng::{fold, mix};
use crate::grammar::GrammarError;
use crate::kv::{BlockId, KvGroup};
use crate::matching::{Matching, NOTHING_ALLOWED, NOTHING_LEFT};
use crate::output::{AdmittedRequest, ModelRunnerOutput, ScheduledRow, SchedulerOutput, TokenLogprob};
use crate::request::{FinishReason, RequestId, SamplingParams, TokenId};
use crate::runner::{ModelRunner, RunnerError, StepTicket};

/// How long a step takes: `step_us + token_us * tokens`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepCost {
    /// Microseconds for any step.
    pub step_us: f64,
    /// Microseconds for each token of it.
    pub token_us: f64,
    /// Whether `collect` waits until the step would be done. Else the time is only added up, see
    /// [`SimRunner::simulated_us`].
    pub sleep: bool,
}

/// The KV cache that the checking mode keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimCheck {
    /// The padding block included.
    pub num_blocks: u32,
    /// Tokens in a block.
    pub block_size: u32,
    /// The groups of layers.
    pub kv_groups: Vec<KvGroup>,
}

/// How often things fail, out of 10 000; which ones follows from the model's seed and the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SimFailures {
    /// Steps that `submit` refuses.
    pub submit: u32,
    /// Steps that `collect` reports as failed.
    pub collect: u32,
    /// Rows that fail alone.
    pub row: u32,
}

/// What a [`SimRunner`] simulates.
#[derive(Debug, Clone)]
pub struct SimRunnerConfig {
    /// Where tokens come from.
    pub model: SimModel,
    /// Number of slots.
    pub max_num_seqs: u32,
    /// Plans that may be in flight, at least 1.
    pub max_in_flight: usize,
    /// `None`: steps take no time but their own.
    pub cost: Option<StepCost>,
    /// `Some`: the checking mode.
    pub check: Option<SimCheck>,
    /// What goes wrong.
    pub failures: SimFailures,
}

/// A request in its slot.
#[derive(Debug)]
struct Slot {
    id: RequestId,
    sampling: Arc<SamplingParams>,
    prompt: Arc<[TokenId]>,
    outputs: Vec<TokenId>,
    /// Tokens of the prompt that have been computed here, if it is to be pooled.
    num_pooled: u32,
    /// The place in the grammar, if there is one, or why it could not be found again.
    matching: Option<Result<Matching, GrammarError>>,
    /// Hash of all tokens so far.
    hash: u64,
    /// In checking mode: the hash after each token, and the block table.
    prefix: Vec<u64>,
    table: Vec<BlockId>,
}

impl Slot {
    /// The next token, and those that the grammar forces behind it.
    fn choose(
        &mut self,
        model: &SimModel,
        mask: &mut [u32],
        forced: &mut Vec<TokenId>,
    ) -> Result<TokenId, FinishReason> {
        let Some(matching) = &mut self.matching else {
            let chosen = model.sample(self.hash, &self.sampling, &self.outputs, None);
            return chosen.ok_or_else(|| FinishReason::Impossible(NOTHING_ALLOWED.into()));
        };
        let matching = matching.as_mut().map_err(|error| error.clone())?;
        let mut next = || {
            let masked = matching.fill_mask(mask)?.then_some(&*mask);
            let Some(token) = model.sample(self.hash, &self.sampling, &self.outputs, masked) else {
                return Err(GrammarError::Stuck(NOTHING_LEFT.into()));
            };
            matching.accept(token)?;
            matching.take_forced(forced);
            Ok(token)
        };
        Ok(next()?)
    }

    fn go_on(&mut self, model: &SimModel, token: TokenId, keeps_prefix: bool) {
        self.hash = model.extend(self.hash, token);
        self.outputs.push(token);
        if keeps_prefix {
            self.prefix.push(self.hash);
        }
    }
}

/// A plan that has been submitted. It is computed then, in order; only the news waits to be collected.
#[derive(Debug)]
struct Submitted {
    step: u64,
    output: ModelRunnerOutput,
    failure: Option<RunnerError>,
    /// The scheduler has heard of a failure since, and plans nothing that reads what this writes.
    written_off: bool,
    done_at: Option<Instant>,
}

/// See the module's text.
#[derive(Debug)]
pub struct SimRunner {
    config: SimRunnerConfig,
    slots: Vec<Option<Slot>>,
    memory: Option<SimMemory>,
    in_flight: VecDeque<Submitted>,
    collected: ModelRunnerOutput,
    mask: Vec<u32>,
    simulated_us: f64,
    busy_until: Option<Instant>,
}

impl SimRunner {
    /// A runner with empty slots.
    pub fn new(config: SimRunnerConfig) -> Self {
        Self {
            slots: (0..config.max_num_seqs).map(|_| None).collect(),
            memory: config
                .check
                .as_ref()
                .map(|check| SimMemory::new(check.num_blocks, check.block_size, check.kv_groups.clone())),
            in_flight: VecDeque::new(),
            collected: ModelRunnerOutput::default(),
            mask: vec![0; Matching::mask_words(config.model.vocab.end as usize)],
            simulated_us: 0.0,
            busy_until: None,
            config,
        }
    }

    /// Time that the steps so far would have taken.
    pub fn simulated_us(&self) -> f64 {
        self.simulated_us
    }

    /// Applies what the plan says about slots; done even for a step that then fails.
    fn change_slots(&mut self, plan: &SchedulerOutput) -> Result<(), String> {
        for &slot in &plan.released_slots {
            let left = self.slots[slot as usize].take();
            if left.is_none() {
                return Err(format!("slot {slot} is released, but nobody is in it"));
            }
        }
        for admitted in &plan.admitted {
            let slot = self.new_slot(admitted);
            let place = &mut self.slots[admitted.slot as usize];
            if place.is_some() {
                return Err(format!("slot {} is given away, but not free", admitted.slot));
            }
            *place = Some(slot);
        }
        if let Some(memory) = &self.memory {
            for row in &plan.rows {
                let new = &plan.new_block_ids[row.new_blocks.start as usize..row.new_blocks.end as usize];
                if new.iter().any(|block| block.is_null() || block.0 as usize >= memory.num_blocks()) {
                    return Err(format!("request {} gets a block that does not exist", row.id.0));
                }
                let slot = self.slots[row.slot as usize].as_mut();
                slot.ok_or_else(|| format!("slot {} has a row, but is empty", row.slot))?.table.extend(new);
            }
        }
        Ok(())
    }

    fn new_slot(&self, admitted: &AdmittedRequest) -> Slot {
        let model = &self.config.model;
        let mut hash = model.start(admitted.adapter.as_ref());
        let mut prefix = Vec::new();
        for &token in admitted.prompt_token_ids.iter().chain(&admitted.output_token_ids) {
            hash = model.extend(hash, token);
            if self.memory.is_some() {
                prefix.push(hash);
            }
        }
        let (sampling, outputs) = (&admitted.sampling, &admitted.output_token_ids);
        let start = |grammar| Matching::start(grammar, sampling, model.vocab.end as usize, outputs);
        Slot {
            id: admitted.id,
            sampling: admitted.sampling.clone(),
            prompt: admitted.prompt_token_ids.clone(),
            outputs: admitted.output_token_ids.clone(),
            num_pooled: 0,
            matching: admitted.sampling.grammar.as_ref().map(start),
            hash,
            prefix,
            table: if self.memory.is_some() { admitted.block_ids.clone() } else { Vec::new() },
        }
    }

    /// Writes the KV of all rows, then reads the context of all rows: what each layer of a real model does.
    fn touch_memory(&mut self, plan: &SchedulerOutput, spoiled: bool) -> Result<(), String> {
        let Some(memory) = &mut self.memory else { return Ok(()) };
        for row in &plan.rows {
            let slot = self.slots[row.slot as usize].as_ref().expect("checked by change_slots");
            check_row(row, slot)?;
            for position in row.start as usize..(row.start + row.num_tokens) as usize {
                if spoiled {
                    memory.spoil(&slot.table, position)?;
                } else {
                    memory.write(&slot.table, position, slot.prefix[position])?;
                }
            }
        }
        if spoiled {
            return Ok(());
        }
        for row in &plan.rows {
            let slot = self.slots[row.slot as usize].as_ref().expect("checked by change_slots");
            let end = (row.start + row.num_tokens) as usize;
            memory
                .verify(&slot.table, row.start, &slot.prefix[..end])
                .map_err(|wrong| format!("request {}, row {}..{end}: {wrong}", row.id.0, row.start))?;
        }
        Ok(())
    }

    fn sample(&mut self, plan: &SchedulerOutput, output: &mut ModelRunnerOutput) {
        let model = &self.config.model;
        let fails = self.config.failures.row;
        for (at, row) in plan.rows.iter().enumerate() {
            let Some(slot) = &mut self.slots[row.slot as usize] else { continue };
            if fails > 0 && happens(model.seed, plan.step, row.id.0, fails) {
                output.failed_rows.push((at as u32, FinishReason::Error("injected failure of a row".into())));
            }
            if slot.sampling.prompt_logprobs.is_some() {
                let told = row.start as usize + 1..(row.start + row.num_tokens) as usize + 1;
                for position in told.take_while(|&position| position < slot.prompt.len()) {
                    push_logprob(output, at, position, slot.prompt[position], &[]);
                }
            }
            if slot.sampling.pooling.is_some() {
                slot.num_pooled += row.num_tokens;
                if slot.num_pooled as usize == slot.prompt.len() {
                    output.pooled.extend(model.pool(slot.hash));
                }
            }
            if !row.samples {
                continue;
            }
            let position = slot.prompt.len() + slot.outputs.len();
            let forced_from = output.forced.len();
            match slot.choose(model, &mut self.mask, &mut output.forced) {
                Ok(token) => {
                    if slot.sampling.logprobs.is_some() {
                        let told = slot.sampling.logprob_token_ids.as_deref().unwrap_or_default();
                        push_logprob(output, at, position, token, told);
                    }
                    slot.go_on(model, token, self.memory.is_some());
                    output.sampled.push(token);
                }
                Err(reason) => {
                    output.failed_rows.push((at as u32, reason));
                    output.sampled.push(0);
                }
            }
            for token in &output.forced[forced_from..] {
                slot.go_on(model, *token, self.memory.is_some());
            }
            if output.forced.len() > forced_from {
                output.forced_rows.push((at as u32, forced_from as u32..output.forced.len() as u32));
            }
        }
    }

    /// What the scheduler does with steps in flight when it hears of a failure.
    fn write_off(&mut self) {
        self.in_flight.iter_mut().for_each(|earlier| earlier.written_off = true);
    }

    fn account(&mut self, plan: &SchedulerOutput) -> Option<Instant> {
        let cost = self.config.cost?;
        let us = cost.step_us + cost.token_us * f64::from(plan.num_tokens);
        self.simulated_us += us;
        if !cost.sleep {
            return None;
        }
        let now = Instant::now();
        let begin = self.busy_until.map_or(now, |busy| busy.max(now));
        self.busy_until = Some(begin + Duration::from_secs_f64(us / 1e6));
        self.busy_until
    }
}

impl ModelRunner for SimRunner {
    fn max_in_flight(&self) -> usize {
        self.config.max_in_flight
    }

    fn submit(&mut self, plan: &SchedulerOutput) -> Result<StepTicket, RunnerError> {
        let step = plan.step;
        let error = |reason: Arc<str>, fatal| RunnerError { step, reason, fatal };
        self.change_slots(plan).map_err(|wrong| error(wrong.into(), true))?;
        let (seed, failures) = (self.config.model.seed, self.config.failures);
        let refused = happens(seed, step, u64::MAX, failures.submit);
        let fails = happens(seed, step, u64::MAX - 1, failures.collect);
        // What follows a failed step computes on garbage; nobody may use its results, so they are garbage too.
        let doomed = self.in_flight.iter().any(|earlier| earlier.failure.is_some() && !earlier.written_off);
        self.touch_memory(plan, refused || fails || doomed).map_err(|wrong| error(wrong.into(), true))?;
        if refused {
            self.write_off();
            return Err(error("injected failure to submit".into(), false));
        }
        let mut output = std::mem::take(&mut self.collected);
        output.sampled.clear();
        output.forced.clear();
        output.forced_rows.clear();
        output.logprobs.clear();
        output.top.clear();
        output.top.clear();
        output.pooled.clear();
        output.failed_rows.clear();
        self.sample(plan, &mut output);
        let failure = fails.then(|| error("injected failure of a step".into(), false));
        let done_at = self.account(plan);
        self.in_flight.push_back(Submitted { step, output, failure, written_off: false, done_at });
        Ok(StepTicket(step))
    }

    fn collect(&mut self, ticket: StepTicket) -> Result<&ModelRunnerOutput, RunnerError> {
        let submitted = self.in_flight.pop_front().expect("a ticket means that a plan is in flight");
        assert_eq!(submitted.step, ticket.0, "plans are collected in order of submission");
        if let Some(done_at) = submitted.done_at {
            std::thread::sleep(done_at.saturating_duration_since(Instant::now()));
        }
        self.collected = submitted.output;
        match submitted.failure {
            Some(failure) => {
                self.write_off();
                Err(failure)
            }
            None => Ok(&self.collected),
        }
    }
}

fn check_row(row: &ScheduledRow, slot: &Slot) -> Result<(), String> {
    let (end, known) = ((row.start + row.num_tokens) as usize, slot.prefix.len());
    if slot.id != row.id {
        return Err(format!("slot {} holds request {}, not {}", row.slot, slot.id.0, row.id.0));
    }
    if row.num_tokens == 0 || end > known {
        return Err(format!("request {} computes {}..{end} of {known} tokens", row.id.0, row.start));
    }
    let pools = slot.sampling.pooling.is_some();
    if pools && row.start != slot.num_pooled {
        return Err(format!("request {} is pooled, but its row starts at {}", row.id.0, row.start));
    }
    if row.samples != (end == known && !pools) {
        return Err(format!("request {} samples = {} at {end} of {known}", row.id.0, row.samples));
    }
    Ok(())
}

/// The best alternatives are left out: nothing about scheduling depends on them.
fn push_logprob(
    output: &mut ModelRunnerOutput,
    row: usize,
    position: usize,
    token: TokenId,
    told: &[TokenId],
) {
    let (row, position, from) = (row as u32, position as u32, output.top.len() as u32);
    if !told.is_empty() {
        output.top.push((token, -1.0));
        output.top.extend(told.iter().filter(|told| **told != token).map(|told| (*told, -2.0)));
    }
    let top = from..output.top.len() as u32;
    let entry = TokenLogprob { row, position, token, logprob: -1.0, rank: 1, top };
    output.logprobs.push(entry);
}

/// Whether something of the given frequency (out of 10 000) happens to `what` in a step.
fn happens(seed: u64, step: u64, what: u64, frequency: u32) -> bool {
    frequency > 0 && mix(fold(fold(seed, step), what)) % 10_000 < u64::from(frequency)
}
