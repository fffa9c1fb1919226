//! [`Steps`]: handmade steps, told to the backend as a runner would, so that each kernel can be run in one alone.

use std::sync::Arc;

use quire_cuda::CudaBackend;
use quire_model::{Backend, BackendError, InputBatch, LogitsRow, Slot, StepLimits};
use quire_scheduler::kv::BlockId;
use quire_scheduler::{AdmittedRequest, RequestId, SamplingParams, ScheduledRow, SchedulerOutput};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// One row: tokens that are in the cache already, and tokens to compute.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) start: usize,
    pub(crate) len: usize,
}

impl Row {
    /// One token that sees `context` tokens, itself among them.
    pub(crate) fn decode(context: usize) -> Self {
        Self { start: context - 1, len: 1 }
    }

    /// Tokens that the row's last token sees.
    pub(crate) fn end(&self) -> usize {
        self.start + self.len
    }
}

/// Requests come and go: each step is of new ones.
pub(crate) struct Steps {
    limits: StepLimits,
    batch: InputBatch,
    step: u64,
    num_admitted: u32,
    rng: StdRng,
}

impl Steps {
    pub(crate) fn new(limits: StepLimits) -> Self {
        Self {
            limits,
            batch: InputBatch::new(limits),
            step: 0,
            num_admitted: 0,
            rng: StdRng::seed_from_u64(1),
        }
    }

    /// Blocks of the cache that a step of these rows needs, the padding block among them.
    pub(crate) fn num_blocks(&self, rows: &[Row]) -> usize {
        1 + rows.iter().map(|row| row.end().div_ceil(self.limits.block_size)).sum::<usize>()
    }

    /// Tells the device of a step of these rows, each of which is sampled at its end. Blocks lie in random order, as
    /// in a server that has run for a while.
    pub(crate) fn upload(
        &mut self,
        backend: &mut CudaBackend,
        rows: &[Row],
        sampling: &SamplingParams,
    ) -> Result<(), BackendError> {
        let mut blocks: Vec<BlockId> = (1..self.num_blocks(rows) as u32).map(BlockId).collect();
        blocks.shuffle(&mut self.rng);
        self.step += 1;
        let mut plan = SchedulerOutput {
            step: self.step,
            released_slots: (0..self.num_admitted).collect(),
            ..SchedulerOutput::default()
        };
        self.num_admitted = rows.len() as u32;
        let sampling = Arc::new(sampling.clone());
        for (slot, row) in rows.iter().enumerate() {
            let (slot, id) = (slot as u32, RequestId(self.step << 32 | slot as u64));
            let num_blocks = row.end().div_ceil(self.limits.block_size);
            let vocab = self.limits.vocab_size as u32;
            plan.admitted.push(AdmittedRequest {
                slot,
                id,
                prompt_token_ids: (0..row.end()).map(|_| self.rng.random_range(0..vocab)).collect(),
                output_token_ids: Vec::new(),
                sampling: sampling.clone(),
                adapter: None,
                block_ids: blocks.split_off(blocks.len() - num_blocks),
            });
            let (start, num_tokens) = (row.start as u32, row.len as u32);
            plan.rows.push(ScheduledRow { slot, id, start, num_tokens, new_blocks: 0..0, samples: true });
            plan.num_tokens += num_tokens;
        }
        let refuse =
            |reason: Arc<str>| BackendError { device: "cuda", reason: reason.to_string(), fatal: false };
        self.batch.apply(&plan).map_err(refuse)?;
        backend.upload(self.batch.inputs(), self.batch.logits_rows(), self.batch.slots())
    }

    /// The rows of logits of the step uploaded last.
    pub(crate) fn logits_rows(&self) -> &[LogitsRow] {
        self.batch.logits_rows()
    }

    /// The requests of that step, by slot.
    pub(crate) fn slots(&self) -> &[Slot] {
        self.batch.slots()
    }
}
