//! [`InputBatch`]: the running requests by slot, and the step's inputs made from them and a plan.

use std::sync::Arc;

use quire_scheduler::kv::BlockId;
use quire_scheduler::{ScheduledRow, SchedulerOutput, TokenId};

use crate::backend::StepLimits;
use crate::slot::{Slot, UNKNOWN_TOKEN};
use crate::step_inputs::{LogitsRow, LogitsTask, PLACEHOLDER_BIT, PoolRow, StepInputs};

/// State of all slots. Everything is allocated when it is made or when a request is admitted; a step of
/// requests that are here already allocates nothing.
pub struct InputBatch {
    limits: StepLimits,
    slots: Vec<Slot>,
    inputs: StepInputs,
    logits_rows: Vec<LogitsRow>,
    pool_rows: Vec<PoolRow>,
    second_text_offset: u32,
}

impl InputBatch {
    /// Empty slots for steps up to these limits.
    pub fn new(limits: StepLimits) -> Self {
        let tokens = limits.max_num_batched_tokens;
        // Every token may open a block, and an admitted request may bring a full table.
        let writes = (tokens + limits.max_blocks_per_seq) * limits.num_kv_groups;
        Self {
            limits,
            slots: (0..limits.max_num_seqs).map(|_| Slot::default()).collect(),
            inputs: StepInputs::with_capacity(tokens, limits.max_num_seqs, writes),
            logits_rows: Vec::with_capacity(tokens),
            pool_rows: Vec::with_capacity(limits.max_num_seqs),
            second_text_offset: 0,
        }
    }

    /// The same where positions in the second text of a pair are `offset` further on: see
    /// [`crate::ModelSpec::second_text_offset`].
    pub fn with_second_texts_at(self, offset: u32) -> Self {
        Self { second_text_offset: offset, ..self }
    }

    /// Takes in a plan: who left, who came, what to compute. The error says how the plan contradicts the
    /// state here; nothing can be computed from it.
    pub fn apply(&mut self, plan: &SchedulerOutput) -> Result<(), Arc<str>> {
        for slot in &plan.released_slots {
            self.slot_mut(*slot)?.release();
        }
        for request in &plan.admitted {
            let vocab_size = self.limits.vocab_size;
            let mut tokens = request.prompt_token_ids.iter().chain(&request.output_token_ids);
            if let Some(token) = tokens.find(|token| **token as usize >= vocab_size) {
                return Err(format!("{:?}: token {token} of {vocab_size}", request.id).into());
            }
            self.slot_mut(request.slot)?.admit(request, vocab_size);
        }
        self.choose_logits_rows(plan)?;
        self.choose_pool_rows(plan);
        self.fill_inputs(plan)
    }

    /// What the last plan tells the device.
    pub fn inputs(&self) -> &StepInputs {
        &self.inputs
    }

    /// What the rows of logits of the last plan are for, in the plan's order; a request's prompt positions
    /// come before its sample.
    pub fn logits_rows(&self) -> &[LogitsRow] {
        &self.logits_rows
    }

    /// The rows of the last plan whose hidden states are pooled, in the plan's order.
    pub fn pool_rows(&self) -> &[PoolRow] {
        &self.pool_rows
    }

    /// By slot.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Whether a row of the last plan has an adapter.
    pub fn has_adapters(&self) -> bool {
        self.inputs.row_slots().iter().any(|slot| self.slots[*slot as usize].adapter().is_some())
    }

    /// After the last plan's work was handed over: every sampled row's sequence is one token longer, though
    /// the token is not known yet.
    pub fn expect_tokens(&mut self) {
        for row in self.logits_rows.iter().filter(|row| row.task == LogitsTask::Sample) {
            self.slots[row.slot as usize].expect_token();
        }
    }

    /// The rows of logits of the last plan, and the slots, to give masks to.
    pub fn rows_and_slots(&mut self) -> (&[LogitsRow], &mut [Slot]) {
        (&self.logits_rows, &mut self.slots)
    }

    /// Tokens that must follow the newest one, which is known.
    pub(crate) fn push_forced(&mut self, slot: u32, forced: &[TokenId]) {
        forced.iter().for_each(|token| self.slots[slot as usize].push_forced(*token));
    }

    /// The token that an earlier step sampled, once it is known.
    pub fn set_token(&mut self, slot: u32, position: u32, token: TokenId) {
        self.slots[slot as usize].set_token(position as usize, token);
    }

    fn slot_mut(&mut self, slot: u32) -> Result<&mut Slot, Arc<str>> {
        let count = self.slots.len();
        self.slots.get_mut(slot as usize).ok_or_else(|| format!("slot {slot} of {count}").into())
    }

    fn choose_logits_rows(&mut self, plan: &SchedulerOutput) -> Result<(), Arc<str>> {
        self.logits_rows.clear();
        for (plan_row, row) in plan.rows.iter().enumerate() {
            let slot = self.slots.get(row.slot as usize).filter(|slot| slot.id() == Some(row.id));
            let slot =
                slot.ok_or_else(|| format!("row {plan_row}: {:?} is not in slot {}", row.id, row.slot))?;
            let end = row.start + row.num_tokens;
            let logits_row =
                |position, task| LogitsRow { plan_row: plan_row as u32, slot: row.slot, position, task };
            if slot.params().prompt_logprobs.is_some() && !slot.is_resumed() {
                let last = end.min(slot.prompt_len() as u32 - 1);
                self.logits_rows.extend((row.start + 1..last + 1).map(|position| {
                    logits_row(position, LogitsTask::Prompt { token: slot.tokens()[position as usize] })
                }));
            }
            if row.samples {
                self.logits_rows.push(logits_row(end, LogitsTask::Sample));
            }
        }
        Ok(())
    }

    fn choose_pool_rows(&mut self, plan: &SchedulerOutput) {
        self.pool_rows.clear();
        let mut first = 0;
        for (plan_row, row) in plan.rows.iter().enumerate() {
            let tokens = first..first + row.num_tokens;
            first = tokens.end;
            let slot = &self.slots[row.slot as usize];
            let Some(pooling) = slot.params().pooling else { continue };
            self.pool_rows.push(PoolRow {
                plan_row: plan_row as u32,
                slot: row.slot,
                tokens,
                start: row.start,
                prompt_len: slot.prompt_len() as u32,
                pooling,
            });
        }
    }

    fn fill_inputs(&mut self, plan: &SchedulerOutput) -> Result<(), Arc<str>> {
        let num_tokens = plan.rows.iter().map(|row| row.num_tokens as usize).sum();
        self.check_sizes(plan, num_tokens)?;
        let admitted_blocks: usize = plan.admitted.iter().map(|request| request.block_ids.len()).sum();
        let writes = admitted_blocks + plan.rows.iter().map(|row| row.new_blocks.len()).sum::<usize>();
        let sections = self.inputs.lay_out(num_tokens, plan.rows.len(), self.logits_rows.len(), writes);

        let mut block_writes = sections.block_writes.as_chunks_mut::<3>().0.iter_mut();
        let (num_groups, num_slots) = (self.limits.num_kv_groups, self.limits.max_num_seqs as u32);
        let mut append_blocks = |slots: &mut [Slot], slot: u32, blocks: &[BlockId]| {
            let state = &mut slots[slot as usize];
            for of_groups in blocks.chunks_exact(num_groups) {
                for ((table, block), write) in
                    (slot..).step_by(num_slots as usize).zip(of_groups).zip(&mut block_writes)
                {
                    *write = [table, state.num_blocks as u32, block.0];
                }
                state.num_blocks += 1;
            }
        };
        for request in &plan.admitted {
            append_blocks(&mut self.slots, request.slot, &request.block_ids);
        }
        let mut next_token = 0;
        let mut logits = self.logits_rows.iter().zip(sections.logits_tokens).peekable();
        for (index, row) in plan.rows.iter().enumerate() {
            let blocks = &plan.new_block_ids[row.new_blocks.start as usize..row.new_blocks.end as usize];
            append_blocks(&mut self.slots, row.slot, blocks);
            let slot = &self.slots[row.slot as usize];
            check_row(&self.limits, slot, row)?;
            while let Some((wanted, token)) = logits.next_if(|(wanted, _)| wanted.plan_row as usize == index)
            {
                // The token at position p is predicted by the hidden state at p - 1.
                *token = next_token as u32 + (wanted.position - 1 - row.start);
            }
            let second_text = slot.params().second_text_start.unwrap_or(u32::MAX);
            for position in row.start..row.start + row.num_tokens {
                sections.token_ids[next_token] = match slot.tokens()[position as usize] {
                    UNKNOWN_TOKEN => PLACEHOLDER_BIT | row.slot,
                    token => token,
                };
                let offset = if position < second_text { 0 } else { self.second_text_offset };
                sections.positions[next_token] = position + offset;
                sections.token_rows[next_token] = index as u32;
                next_token += 1;
            }
            sections.row_slots[index] = row.slot;
            sections.row_ends[index] = next_token as u32;
        }
        Ok(())
    }

    fn check_sizes(&self, plan: &SchedulerOutput, num_tokens: usize) -> Result<(), Arc<str>> {
        let (rows, max_rows, max) =
            (plan.rows.len(), self.limits.max_num_seqs, self.limits.max_num_batched_tokens);
        if rows > max_rows || num_tokens > max {
            return Err(format!("{rows} rows of {num_tokens} tokens; limits are {max_rows} and {max}").into());
        }
        Ok(())
    }
}

/// A row must lie within its known sequence and its blocks: reading beyond either would be silent nonsense.
fn check_row(limits: &StepLimits, slot: &Slot, row: &ScheduledRow) -> Result<(), Arc<str>> {
    let end = (row.start + row.num_tokens) as usize;
    let (known, blocks) = (slot.tokens().len(), slot.num_blocks);
    if row.num_tokens == 0 || end > known || end > blocks * limits.block_size {
        return Err(format!("{:?}: tokens {}..{end} of {known}, {blocks} blocks", row.id, row.start).into());
    }
    if blocks > limits.max_blocks_per_seq {
        return Err(format!("{:?}: {blocks} blocks of at most {}", row.id, limits.max_blocks_per_seq).into());
    }
    Ok(())
}
