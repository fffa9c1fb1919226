//! Drives a [`Runner`] by handmade plans, as a scheduler would but with every choice left to the test.

#![allow(dead_code)] // Each test program uses its part.

pub(crate) mod any_batch;
pub(crate) mod grammars;
pub(crate) mod safetensors;

use std::path::PathBuf;
use std::sync::Arc;

use quire_cpu::{CpuBackend, CpuOptions};
use quire_model::{Checkpoint, Model, ModelSpec, Runner, RunnerConfig};
use quire_scheduler::{
    Adapter, AdmittedRequest, ModelRunner, ModelRunnerOutput, RequestId, SamplingParams, ScheduledRow,
    SchedulerOutput, TokenId,
};

/// Where the demo model and its golden answers lie. The variable is cargo's, at run time too; the check on a GPU
/// sets it for test programs that were built elsewhere.
pub(crate) fn pebble() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(package).join("../assets/pebble")
}

/// A runner for the model in a directory.
pub(crate) fn load_runner(
    dir: &std::path::Path,
    options: CpuOptions,
    config: RunnerConfig,
) -> Runner<CpuBackend> {
    let spec = ModelSpec::from_dir(dir).unwrap();
    let checkpoint = Checkpoint::open(dir).unwrap();
    let mut backend = CpuBackend::new(options).unwrap();
    let model = Model::load(&mut backend, spec, &checkpoint, &mut |_| {}).unwrap();
    Runner::new(backend, model, config).unwrap()
}

/// One running request as a test sees it.
#[derive(Debug, Clone)]
pub(crate) struct Sequence {
    pub(crate) slot: u32,
    pub(crate) id: RequestId,
    pub(crate) prompt: Arc<[TokenId]>,
    pub(crate) output: Vec<TokenId>,
    pub(crate) sampling: Arc<SamplingParams>,
    pub(crate) adapter: Option<Adapter>,
    /// Tokens whose keys and values are in the cache.
    pub(crate) computed: usize,
    pub(crate) blocks: Vec<u32>,
    pub(crate) admitted: bool,
}

impl Sequence {
    pub(crate) fn new(slot: u32, id: u64, prompt: &[TokenId], sampling: SamplingParams) -> Self {
        let (id, prompt, sampling) = (RequestId(id), prompt.into(), Arc::new(sampling));
        Self {
            slot,
            id,
            prompt,
            output: Vec::new(),
            sampling,
            adapter: None,
            computed: 0,
            blocks: Vec::new(),
            admitted: false,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.prompt.len() + self.output.len()
    }
}

/// A plan under construction, with the block pool that it draws from.
pub(crate) struct Planner {
    pub(crate) plan: SchedulerOutput,
    pub(crate) block_size: usize,
    pub(crate) free_blocks: Vec<u32>,
}

impl Planner {
    /// `free_blocks` are handed out from the end.
    pub(crate) fn new(block_size: usize, free_blocks: Vec<u32>) -> Self {
        Self { plan: SchedulerOutput::default(), block_size, free_blocks }
    }

    /// Starts the next plan.
    pub(crate) fn begin(&mut self) {
        let step = self.plan.step + 1;
        self.plan = SchedulerOutput { step, ..SchedulerOutput::default() };
    }

    /// Schedules the next `num_tokens` tokens of a sequence.
    pub(crate) fn add(&mut self, sequence: &mut Sequence, num_tokens: usize) {
        if !sequence.admitted {
            sequence.admitted = true;
            self.plan.admitted.push(AdmittedRequest {
                slot: sequence.slot,
                id: sequence.id,
                prompt_token_ids: sequence.prompt.clone(),
                output_token_ids: sequence.output.clone(),
                sampling: sequence.sampling.clone(),
                adapter: sequence.adapter.clone(),
                block_ids: sequence.blocks.iter().map(|block| quire_scheduler::kv::BlockId(*block)).collect(),
            });
        }
        let end = sequence.computed + num_tokens;
        assert!(num_tokens > 0 && end <= sequence.len());
        let first = self.plan.new_block_ids.len() as u32;
        while sequence.blocks.len() * self.block_size < end {
            let block = self.free_blocks.pop().expect("a test needs more blocks");
            sequence.blocks.push(block);
            self.plan.new_block_ids.push(quire_scheduler::kv::BlockId(block));
        }
        self.plan.rows.push(ScheduledRow {
            slot: sequence.slot,
            id: sequence.id,
            start: sequence.computed as u32,
            num_tokens: num_tokens as u32,
            new_blocks: first..self.plan.new_block_ids.len() as u32,
            samples: end == sequence.len() && sequence.sampling.pooling.is_none(),
        });
        self.plan.num_tokens += num_tokens as u32;
        sequence.computed = end;
    }

    /// Takes a sequence off its slot and its blocks back; its tokens stay.
    pub(crate) fn release(&mut self, sequence: &mut Sequence) {
        self.plan.released_slots.push(sequence.slot);
        self.free_blocks.append(&mut sequence.blocks);
        sequence.admitted = false;
        sequence.computed = 0;
    }

    /// Computes the plan and appends what was sampled to the sequences.
    pub(crate) fn run<'r>(
        &self,
        runner: &'r mut dyn ModelRunner,
        sequences: &mut [Sequence],
    ) -> &'r ModelRunnerOutput {
        let ticket = runner.submit(&self.plan).unwrap();
        let output = runner.collect(ticket).unwrap();
        let rows = self.plan.rows.iter().filter(|row| row.samples);
        for (row, token) in rows.zip(&output.sampled) {
            let sequence = sequences.iter_mut().find(|s| s.id == row.id && s.admitted).unwrap();
            sequence.output.push(*token);
        }
        output
    }
}
