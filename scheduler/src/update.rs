//! Taking in a step's results: append tokens, check stops, and say what it means for each request.

use std::ops::Range;
use std::sync::Arc;

use crate::in_flight::{InFlightStep, RowOutcome};
use crate::output::{ModelRunnerOutput, RequestUpdate, SchedulerOutput, StepOutputs, TokenLogprob};
use crate::request::FinishReason;
use crate::runner::RunnerError;
use crate::scheduler::{Scheduler, terminal_update};
use crate::state::RequestState;

impl Scheduler {
    /// Takes in the results of a plan and gives back the step's one message, pending ends included.
    ///
    /// Plans are updated in the order in which they were made. Only a failure may come out of order (a plan
    /// that the runner refused while an earlier one was in flight). A step that failed as a whole ends
    /// every request that has a row in any step in flight, since those may have read what was never written;
    /// the results of those other steps must still be handed in, and are dropped. A row that failed ends its
    /// request only.
    ///
    /// # Panics
    /// If the plan is not in flight, or results come out of order.
    pub fn update(
        &mut self,
        plan: SchedulerOutput,
        result: Result<&ModelRunnerOutput, &RunnerError>,
    ) -> StepOutputs {
        let at = self.in_flight.iter().position(|flight| flight.step == plan.step);
        let at = at.unwrap_or_else(|| panic!("step {} is not in flight", plan.step));
        let mut out = StepOutputs { step: plan.step, ..StepOutputs::default() };
        out.updates.reserve_exact(self.pending_updates.len() + plan.rows.len());
        out.tokens.reserve_exact(plan.rows.len());
        out.updates.append(&mut self.pending_updates);
        match result {
            Ok(results) => match shape_error(&plan, &self.in_flight[at], results) {
                Some(reason) => self.fail_step(at, &reason.into(), &mut out),
                None => {
                    assert!(at == 0, "step {} was collected before an earlier one", plan.step);
                    self.apply(&plan, results, &mut out);
                }
            },
            Err(error) => self.fail_step(at, &error.reason, &mut out),
        }
        self.sweep_running();
        let flight = self.in_flight.remove(at).expect("found above");
        let num_scheduled_tokens = plan.num_tokens;
        self.recycle(plan, flight);
        self.complete(&mut out);
        out.stats.num_scheduled_tokens = num_scheduled_tokens;
        out
    }

    /// What there is to tell without a step: the ends of aborted and refused requests, preemptions and cache
    /// events. `None` if there is nothing.
    pub fn take_outputs(&mut self) -> Option<StepOutputs> {
        let mut out =
            StepOutputs { updates: std::mem::take(&mut self.pending_updates), ..StepOutputs::default() };
        self.complete(&mut out);
        let silent = out.updates.is_empty() && out.preemptions.is_empty() && out.kv_events.is_empty();
        (!silent).then_some(out)
    }

    fn complete(&mut self, out: &mut StepOutputs) {
        out.preemptions = std::mem::take(&mut self.pending_preemptions);
        out.kv_events = self.kv.take_events();
        out.stats = self.stats();
    }

    /// The step at place `at` of those in flight was not computed.
    fn fail_step(&mut self, at: usize, reason: &Arc<str>, out: &mut StepOutputs) {
        if self.in_flight[at].written_off {
            return;
        }
        let mut steps = std::mem::take(&mut self.in_flight);
        for flight in &mut steps {
            flight.written_off = true;
            for entry in flight.registered.drain(..) {
                self.kv.unregister(entry.block, &entry.key);
            }
            for row in &flight.rows {
                if self.requests.is_live(row.index, row.id) {
                    let state = self.retire(row.index);
                    let mut update = terminal_update(row.id, FinishReason::Error(reason.clone()));
                    update.first_scheduled = state.first_scheduled;
                    out.updates.push(update);
                }
            }
        }
        self.in_flight = steps;
    }

    fn apply(&mut self, plan: &SchedulerOutput, results: &ModelRunnerOutput, out: &mut StepOutputs) {
        let mut sampled = results.sampled.iter().copied();
        let mut pooled = results.pooled.chunks_exact(pooled_width(&self.in_flight[0], results).max(1));
        let mut logprobs = results.logprobs.as_slice();
        let mut forced_rows = results.forced_rows.iter().peekable();
        for at in 0..plan.rows.len() {
            let row = self.in_flight[0].rows[at];
            let token = if row.outcome == RowOutcome::Token { sampled.next() } else { None };
            let vector = if row.outcome == RowOutcome::Vector { pooled.next() } else { None };
            let num_logprobs = logprobs.iter().take_while(|entry| entry.row == at as u32).count();
            let (of_row, rest) = logprobs.split_at(num_logprobs);
            logprobs = rest;
            let forced = match forced_rows.next_if(|(of, _)| *of == at as u32) {
                Some((_, range)) => &results.forced[range.start as usize..range.end as usize],
                None => &[],
            };
            if !self.requests.is_live(row.index, row.id) {
                continue;
            }
            let failure = results.failed_rows.iter().find(|(failed, _)| *failed == at as u32);
            if let Some((_, reason)) = failure {
                self.fail_row(row.index, reason, out);
                continue;
            }
            let state = &mut self.requests[row.index];
            let logprobs = tell_logprobs(state, of_row, &results.top, out);
            let tokens_from = out.tokens.len() as u32;
            let mut finish = None;
            if let Some(token) = token {
                // Also if the request was preempted meanwhile: the token is as good as any.
                state.num_placeholders -= 1;
                let forced = forced.iter().copied();
                finish = state.take_tokens(std::iter::once(token).chain(forced), &mut out.tokens);
            }
            let pooled_from = out.pooled.len() as u32;
            if let Some(vector) = vector {
                out.pooled.extend_from_slice(vector);
                finish = Some(FinishReason::Pooled);
            }
            let pooled = pooled_from..out.pooled.len() as u32;
            let tokens = tokens_from..out.tokens.len() as u32;
            let first_scheduled = state.first_scheduled.take();
            if finish.is_some() {
                self.retire(row.index);
            } else if tokens.is_empty() && logprobs.is_empty() && first_scheduled.is_none() {
                continue;
            }
            out.updates.push(RequestUpdate { id: row.id, tokens, logprobs, pooled, first_scheduled, finish });
        }
    }

    /// Ends one request whose row failed. What it computed may be as bad as its result, so it is not kept.
    fn fail_row(&mut self, index: u32, reason: &FinishReason, out: &mut StepOutputs) {
        let id = self.requests[index].request.id;
        let state = &self.requests[index];
        self.kv.unregister_computed(&state.table, &state.hashes);
        // If it was preempted since, its table is empty, but what it registered is still to be found here.
        for entry in self.in_flight.iter().flat_map(|flight| &flight.registered) {
            if entry.owner == id {
                self.kv.unregister(entry.block, &entry.key);
            }
        }
        let state = self.retire(index);
        let mut update = terminal_update(id, reason.clone());
        update.first_scheduled = state.first_scheduled;
        out.updates.push(update);
    }
}

/// A runner that breaks its contract must not bring down the engine, nor give one request another's token.
fn shape_error(plan: &SchedulerOutput, flight: &InFlightStep, results: &ModelRunnerOutput) -> Option<String> {
    let (expected, got) = (flight.count(RowOutcome::Token), results.sampled.len());
    if got != expected {
        return Some(format!("the runner gave {got} tokens for {expected} rows that sample"));
    }
    let (vectors, got) = (flight.count(RowOutcome::Vector), results.pooled.len());
    if vectors == 0 && got > 0 || vectors > 0 && (got == 0 || !got.is_multiple_of(vectors)) {
        return Some(format!("the runner gave {got} numbers for {vectors} rows that are pooled"));
    }
    let mut next_row = 0;
    for (at, range) in &results.forced_rows {
        let samples = plan.rows.get(*at as usize).is_some_and(|row| row.samples);
        let held = range.start <= range.end && range.end as usize <= results.forced.len();
        if *at < next_row || !samples || !held {
            return Some(format!("the runner forced tokens {range:?} on row {at}"));
        }
        next_row = at + 1;
    }
    None
}

/// Numbers in a vector.
fn pooled_width(flight: &InFlightStep, results: &ModelRunnerOutput) -> usize {
    results.pooled.len() / flight.count(RowOutcome::Vector).max(1)
}

/// Passes on the log-probabilities of one row, but for those of prompt positions that were told before a
/// preemption. Returns where they are in `out`.
fn tell_logprobs(
    state: &mut RequestState,
    of_row: &[TokenLogprob],
    top: &[(u32, f32)],
    out: &mut StepOutputs,
) -> Range<u32> {
    let from = out.logprobs.len() as u32;
    let num_known = state.num_known();
    for entry in of_row {
        if entry.position < num_known {
            if entry.position >= state.prompt_len() || entry.position < state.prompt_logprobs_told {
                continue;
            }
            state.prompt_logprobs_told = entry.position + 1;
        }
        let top_from = out.top.len() as u32;
        out.top.extend_from_slice(&top[entry.top.start as usize..entry.top.end as usize]);
        let row = out.updates.len() as u32;
        out.logprobs.push(TokenLogprob { row, top: top_from..out.top.len() as u32, ..entry.clone() });
    }
    from..out.logprobs.len() as u32
}
