//! Preemption: whose blocks are taken when a running request needs one and none is free.
//!
//! There is no swapping: the victim's blocks are freed, it goes back to its place in the queue and is computed
//! again, as far as the prefix cache has not kept its blocks.
//!
//! # Who may be a victim
//!
//! Under FCFS only a request admitted later than the one in need; under priority only one that ranks behind
//! it. If there is none, the one in need is preempted itself. So the request admitted first (or ranked first)
//! is nobody's victim and, since the pool holds at least one request of the greatest length, always goes on.
//! When it ends another takes its place: everybody finishes, under FCFS and under priority with ageing. This
//! does not depend on how the victim is chosen among those eligible.
//!
//! # Who is the victim
//!
//! Under priority, first those of the least important priority. Among these (under FCFS, among all eligible)
//! the one with the least cost:
//!
//! ```text
//! cost = tokens lost * (1 + times preempted before) / blocks released
//! ```
//!
//! *Tokens lost* are those computed before this step but for full blocks that others hold too (their content
//! stays); *blocks released* are those that nobody else holds. The middle factor spreads the misfortune: a
//! request that was hit twice looks three times as dear. On a tie the one admitted last is taken.

use std::cmp::Ordering;

use crate::config::SchedulingPolicy;
use crate::in_flight::Draft;
use crate::output::Preemption;
use crate::scheduler::Scheduler;

/// What preempting a request costs, and what it gives.
#[derive(Debug, Clone, Copy)]
struct Cost {
    /// Compared first, greatest is taken; 0 for all under FCFS.
    priority: i32,
    /// `tokens lost * (1 + times preempted)`.
    weighted_tokens: u64,
    num_blocks: u64,
}

impl Cost {
    /// `Less` is taken first.
    fn compare(&self, other: &Self) -> Ordering {
        let left = u128::from(self.weighted_tokens) * u128::from(other.num_blocks);
        let right = u128::from(other.weighted_tokens) * u128::from(self.num_blocks);
        // One that releases nothing costs infinitely much, whatever it loses.
        let useless = (self.num_blocks == 0).cmp(&(other.num_blocks == 0));
        other.priority.cmp(&self.priority).then(useless).then(left.cmp(&right))
    }
}

impl Scheduler {
    /// Who gives up its blocks for the running request at place `needy`: a place in `running`, or `None` if
    /// nobody may be made to.
    pub(crate) fn pick_victim(&self, needy: usize) -> Option<usize> {
        let rank = self.requests[self.running[needy]].rank;
        let eligible = |&at: &usize| match self.config.policy {
            SchedulingPolicy::Fcfs => at > needy,
            SchedulingPolicy::Priority => self.requests[self.running[at]].rank > rank,
        };
        let mut best: Option<(usize, Cost)> = None;
        // Backwards, so that the one admitted last wins a tie.
        for at in (0..self.running.len()).rev().filter(eligible) {
            let cost = self.preemption_cost(self.running[at]);
            if best.as_ref().is_none_or(|(_, least)| cost.compare(least).is_lt()) {
                best = Some((at, cost));
            }
        }
        best.map(|(at, _)| at)
    }

    /// Takes blocks and slot from the running request at this place, and its row out of the plan if it has
    /// one there.
    pub(crate) fn preempt(&mut self, draft: &mut Draft, at: usize) {
        draft.preempted = true;
        let index = self.running.remove(at);
        self.unplan(draft, index);
        self.leave_slot(index);
        let state = &mut self.requests[index];
        state.times_preempted += 1;
        self.pending_preemptions.push(Preemption {
            id: state.request.id,
            num_computed_tokens: state.num_computed,
            times: state.times_preempted,
        });
        state.num_computed = 0;
        self.totals.preemptions += 1;
        self.waiting.insert(state.rank, index);
    }

    fn preemption_cost(&self, index: u32) -> Cost {
        let state = &self.requests[index];
        let pool = self.kv.pool();
        let (mut num_shared, mut num_blocks) = (0, 0);
        for &block in state.table.blocks().iter().filter(|block| !block.is_null()) {
            if pool.ref_count(block) == 1 {
                num_blocks += 1;
            } else {
                num_shared += 1;
            }
        }
        let planned = if state.planned.0 == self.calls { state.planned.1 } else { 0 };
        let num_computed = state.num_computed - planned;
        // Only full blocks are ever shared. A block in one of several groups is that part of its tokens.
        let num_kept = num_shared / self.kv.groups().len() as u32 * self.kv.block_size();
        let lost = num_computed.saturating_sub(num_kept);
        let priority = match self.config.policy {
            SchedulingPolicy::Fcfs => 0,
            SchedulingPolicy::Priority => state.request.priority,
        };
        let weighted_tokens = u64::from(lost) * (1 + u64::from(state.times_preempted));
        Cost { priority, weighted_tokens, num_blocks }
    }

    /// Takes back a request's row, if the plan has one, with all that planning it did.
    fn unplan(&mut self, draft: &mut Draft, index: u32) {
        let Some(at) = draft.flight.rows.iter().position(|row| row.index == index) else { return };
        draft.flight.rows.remove(at);
        let row = draft.plan.rows.remove(at);
        let num_blocks = row.new_blocks.end - row.new_blocks.start;
        draft.plan.new_block_ids.drain(row.new_blocks.start as usize..row.new_blocks.end as usize);
        for later in &mut draft.plan.rows[at..] {
            later.new_blocks = later.new_blocks.start - num_blocks..later.new_blocks.end - num_blocks;
        }
        draft.plan.num_tokens -= row.num_tokens;
        draft.budget += row.num_tokens;
        // What the row would have filled must not be hit. Nobody has hit it yet: hits happen at admission,
        // which comes after this.
        let kv = &mut self.kv;
        draft.flight.registered.retain(|entry| {
            let keep = entry.owner != row.id;
            if !keep {
                kv.unregister(entry.block, &entry.key);
            }
            keep
        });
        let state = &mut self.requests[index];
        state.num_computed -= row.num_tokens;
        state.num_placeholders -= u32::from(row.samples);
        let prompt_part = state.prompt_len().min(row.start + row.num_tokens).saturating_sub(row.start);
        self.totals.prompt_tokens_computed -= u64::from(prompt_part);
    }
}
