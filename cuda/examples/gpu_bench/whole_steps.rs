//! [`StepBench`]: whole steps of a model with made-up weights, through the same runner as the server's: decode at
//! several batch sizes, and prompts. Two steps are in flight, as the engine has them.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use quire_cuda::driver::Context;
use quire_cuda::{CudaBackend, MemoryPlan};
use quire_model::{Backend, Checkpoint, Dtype, KvDtype, KvLayout, Model, ModelSpec, Runner, RunnerConfig};
use quire_scheduler::kv::BlockId;
use quire_scheduler::{
    AdmittedRequest, ModelRunner, RequestId, SamplingParams, ScheduledRow, SchedulerOutput, StepTicket,
    TokenId,
};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::Result;
use crate::kernels::BLOCK_SIZE;
use crate::report::{Ceilings, Report};
use crate::sizes::Sizes;
use crate::work;

/// Share of the GPU's memory that may be used.
const MEMORY_SHARE: f64 = 0.92;

/// A runner, and the requests that it is given.
pub(crate) struct StepBench {
    runner: Runner<CudaBackend>,
    max_in_flight: usize,
    sequences: Vec<Sequence>,
    admitted: Vec<u32>,
    in_flight: VecDeque<StepTicket>,
    step: u64,
    config: RunnerConfig,
    sampling: Arc<SamplingParams>,
}

/// A request, and its place in the cache.
struct Sequence {
    prompt: Arc<[TokenId]>,
    blocks: Vec<BlockId>,
    /// Of the request that has this place now.
    id: RequestId,
    /// Tokens whose keys and values are there.
    computed: usize,
    /// Blocks that the runner was told of.
    num_told: usize,
}

/// What is measured, and against what.
pub(crate) struct Measurement<'a> {
    pub(crate) name: &'a str,
    pub(crate) spec: &'a ModelSpec,
    pub(crate) sizes: Sizes,
    pub(crate) ceilings: Ceilings,
    /// By batch: microseconds of a step's kernels, each measured alone.
    pub(crate) kernels_us: &'a [(usize, f64)],
    pub(crate) batch_invariant: bool,
}

/// Measures a model and tells the report.
pub(crate) fn measure(
    context: &Arc<Context>,
    cache: &Path,
    what: &Measurement<'_>,
    report: &mut Report,
) -> Result<()> {
    let began = Instant::now();
    let (mut bench, batches) = StepBench::new(context, cache, what)?;
    let started_s = began.elapsed().as_secs_f64();
    let mode = if what.batch_invariant { ", batch-invariant" } else { "" };
    report.heading(
        &format!("{}{mode}: whole steps (ready after {started_s:.1} s)", what.name),
        "step                                          ms   tokens/s    share of roofline   outside kernels",
    );
    report.line(json!({
        "piece": "start", "model": what.name, "batch_invariant": what.batch_invariant, "seconds": started_s,
    }))?;
    for batch in batches {
        bench.decode(batch, what, report)?;
    }
    for &tokens in what.sizes.prompts {
        bench.prefill(tokens, what, report)?;
    }
    Ok(())
}

impl StepBench {
    /// Loads the model, and fills the cache with the prompts of the largest decode step. Gives the batch sizes that
    /// fit into memory.
    fn new(context: &Arc<Context>, cache: &Path, what: &Measurement<'_>) -> Result<(Self, Vec<usize>)> {
        let (spec, sizes) = (what.spec, what.sizes);
        let blocks_per_sequence = sequence_tokens(&sizes).div_ceil(BLOCK_SIZE);
        let mut config = RunnerConfig {
            max_num_seqs: sizes.max_batch(),
            max_num_batched_tokens: sizes.step_tokens,
            max_model_len: sizes.max_prompt().max(sequence_tokens(&sizes)) + BLOCK_SIZE,
            block_size: BLOCK_SIZE,
            num_blocks: 0,
        };
        let plan = MemoryPlan::new(context, spec, &config.step_limits(spec), Dtype::Bf16, MEMORY_SHARE)?;
        println!("\n{}: {plan}", what.name);
        let available = KvLayout::new(spec, BLOCK_SIZE).num_blocks(plan.kv_bytes() as usize, KvDtype::Bf16);
        // One block is padding.
        let fits = |batch: usize| batch * blocks_per_sequence < available;
        let batches: Vec<usize> = sizes.batches.iter().copied().filter(|batch| fits(*batch)).collect();
        let largest = *batches.last().ok_or("not one sequence fits into the memory that is left")?;
        let for_prompt = sizes.max_prompt().div_ceil(BLOCK_SIZE);
        config.num_blocks = 1 + (largest * blocks_per_sequence).max(for_prompt);
        if config.num_blocks > available {
            return Err("the longest prompt does not fit into the memory that is left".into());
        }
        let mut backend = crate::open_backend(context, cache, what.batch_invariant)?;
        let max_in_flight = backend.max_in_flight();
        let checkpoint = Checkpoint::dummy(Dtype::Bf16);
        let model = Model::load(&mut backend, spec.clone(), &checkpoint, &mut |_| {})?;
        let mut bench = Self {
            runner: Runner::new(backend, model, config)?,
            max_in_flight,
            sequences: Vec::new(),
            admitted: Vec::new(),
            in_flight: VecDeque::new(),
            step: 0,
            config,
            sampling: Arc::new(SamplingParams {
                temperature: 0.0,
                max_tokens: 1 << 20,
                ignore_eos: true,
                ..SamplingParams::default()
            }),
        };
        bench.fill_cache(largest, blocks_per_sequence, what)?;
        Ok((bench, batches))
    }

    /// Gives every sequence its blocks, in random order, and computes all its prompt but the last token.
    fn fill_cache(&mut self, count: usize, blocks_per_sequence: usize, what: &Measurement<'_>) -> Result<()> {
        let mut rng = StdRng::seed_from_u64(1);
        let mut blocks: Vec<BlockId> = (1..self.config.num_blocks as u32).map(BlockId).collect();
        blocks.shuffle(&mut rng);
        let prompt_len = prompt_tokens(&what.sizes);
        for _ in 0..count {
            let prompt = (0..prompt_len).map(|_| rng.random_range(0..what.spec.vocab_size as u32)).collect();
            let own = blocks.split_off(blocks.len() - blocks_per_sequence);
            self.sequences.push(Sequence { prompt, blocks: own, id: RequestId(0), computed: 0, num_told: 0 });
        }
        for index in 0..count {
            self.run_prompt(index, prompt_len - 1)?;
        }
        self.drain()
    }

    /// Decode steps of the first sequences, from where their prompts end.
    fn decode(&mut self, batch: usize, what: &Measurement<'_>, report: &mut Report) -> Result<()> {
        let sizes = what.sizes;
        let mut plan = self.new_plan();
        for index in 0..batch {
            self.admit(index, prompt_tokens(&sizes) - 1, &mut plan);
        }
        for _ in 0..sizes.warm_steps {
            let next = self.decode_plan(batch, std::mem::take(&mut plan));
            self.submit(&next)?;
            plan = self.new_plan();
        }
        // Behind a full queue: a step is over when the one behind it has been handed over.
        let began = Instant::now();
        for _ in 0..sizes.steps {
            let next = self.decode_plan(batch, std::mem::take(&mut plan));
            self.submit(&next)?;
            plan = self.new_plan();
        }
        let us = began.elapsed().as_secs_f64() * 1e6 / sizes.steps as f64;
        self.drain()?;
        let works = work::decode_step(what.spec, batch, sizes.context);
        let roofline_us: f64 = works.iter().map(|work| what.ceilings.floor_us(work)).sum();
        let kernels_us = what.kernels_us.iter().find(|(of, _)| *of == batch).map(|(_, us)| *us);
        // The batch-invariant mode runs other kernels than those that were measured alone.
        let kernels_us = kernels_us.filter(|_| !what.batch_invariant);
        let outside = kernels_us.map(|kernels_us| 1.0 - kernels_us / us);
        let (tokens_per_s, share) = (batch as f64 / us * 1e6, roofline_us / us);
        println!(
            "decode, {batch:>3} sequences of {:<6} {:>14.3} {tokens_per_s:>10.0} {:>19.1}% {:>16}",
            sizes.context,
            us / 1e3,
            100.0 * share,
            outside.map_or("-".into(), |share| format!("{:.1}%", 100.0 * share)),
        );
        report.line(json!({
            "piece": "steps", "model": what.name, "batch_invariant": what.batch_invariant, "what": "decode",
            "batch": batch, "context": sizes.context, "step_us": us, "tokens_per_s": tokens_per_s,
            "roofline_us": roofline_us, "share": share, "kernels_us": kernels_us, "outside_share": outside,
            "formula": works.map(|work| work.formula),
        }))
    }

    /// One prompt from its first token to the first of its answer; the median of several.
    fn prefill(&mut self, tokens: usize, what: &Measurement<'_>, report: &mut Report) -> Result<()> {
        let mut rng = StdRng::seed_from_u64(tokens as u64);
        let mut samples = Vec::new();
        for round in 0..what.sizes.rounds.min(3) + 1 {
            self.sequences[0].prompt =
                (0..tokens).map(|_| rng.random_range(0..what.spec.vocab_size as u32)).collect();
            // All blocks are its own now.
            self.sequences[0].blocks = (1..self.config.num_blocks as u32).map(BlockId).collect();
            let began = Instant::now();
            self.run_prompt(0, tokens)?;
            self.drain()?;
            // The first is warm-up.
            if round > 0 {
                samples.push(began.elapsed().as_secs_f64() * 1e6);
            }
        }
        samples.sort_by(f64::total_cmp);
        let us = samples[samples.len() / 2];
        let work = work::prefill(what.spec, tokens);
        let roofline_us = what.ceilings.floor_us(&work);
        let (tokens_per_s, share) = (tokens as f64 / us * 1e6, roofline_us / us);
        println!(
            "prefill, {tokens:<29} {:>9.3} {tokens_per_s:>10.0} {:>19.1}% {:>16}",
            us / 1e3,
            100.0 * share,
            "-"
        );
        report.line(json!({
            "piece": "steps", "model": what.name, "batch_invariant": what.batch_invariant, "what": "prefill",
            "tokens": tokens, "us": us, "tokens_per_s": tokens_per_s, "roofline_us": roofline_us, "share": share,
            "tflop_per_s": work.flops / us / 1e6, "formula": work.formula,
        }))
    }

    /// Computes the first `end` tokens of a sequence's prompt, in steps of the largest size.
    fn run_prompt(&mut self, index: usize, end: usize) -> Result<()> {
        let mut plan = self.new_plan();
        self.admit(index, 0, &mut plan);
        while self.sequences[index].computed < end {
            let left = end - self.sequences[index].computed;
            self.add_row(index, left.min(self.config.max_num_batched_tokens), &mut plan);
            self.submit(&plan)?;
            plan = self.new_plan();
        }
        Ok(())
    }

    fn decode_plan(&mut self, batch: usize, mut plan: SchedulerOutput) -> SchedulerOutput {
        for index in 0..batch {
            self.add_row(index, 1, &mut plan);
        }
        plan
    }

    fn new_plan(&self) -> SchedulerOutput {
        SchedulerOutput { step: self.step + 1, ..SchedulerOutput::default() }
    }

    /// Puts a sequence into the slot of its number as a new request, of whose prompt so many tokens are in the cache.
    /// The first sequence of a plan takes the place of all that are there.
    fn admit(&mut self, index: usize, computed: usize, plan: &mut SchedulerOutput) {
        if plan.admitted.is_empty() {
            plan.released_slots = std::mem::take(&mut self.admitted);
        }
        let sequence = &mut self.sequences[index];
        sequence.id = RequestId(plan.step << 32 | index as u64);
        sequence.computed = computed;
        sequence.num_told = computed.div_ceil(BLOCK_SIZE);
        self.admitted.push(index as u32);
        plan.admitted.push(AdmittedRequest {
            slot: index as u32,
            id: sequence.id,
            prompt_token_ids: sequence.prompt.clone(),
            output_token_ids: Vec::new(),
            sampling: self.sampling.clone(),
            adapter: None,
            block_ids: sequence.blocks[..sequence.num_told].to_vec(),
        });
    }

    fn add_row(&mut self, index: usize, num_tokens: usize, plan: &mut SchedulerOutput) {
        let sequence = &mut self.sequences[index];
        let (start, end) = (sequence.computed, sequence.computed + num_tokens);
        let first = plan.new_block_ids.len() as u32;
        let needed = end.div_ceil(BLOCK_SIZE).max(sequence.num_told);
        plan.new_block_ids.extend_from_slice(&sequence.blocks[sequence.num_told..needed]);
        sequence.num_told = needed;
        sequence.computed = end;
        plan.rows.push(ScheduledRow {
            slot: index as u32,
            id: sequence.id,
            start: start as u32,
            num_tokens: num_tokens as u32,
            new_blocks: first..plan.new_block_ids.len() as u32,
            samples: end >= sequence.prompt.len(),
        });
        plan.num_tokens += num_tokens as u32;
    }

    /// Hands a step over, once there is room.
    fn submit(&mut self, plan: &SchedulerOutput) -> Result<()> {
        if self.in_flight.len() == self.max_in_flight {
            self.collect()?;
        }
        self.step = plan.step;
        self.in_flight.push_back(self.runner.submit(plan)?);
        Ok(())
    }

    fn collect(&mut self) -> Result<()> {
        let ticket = self.in_flight.pop_front().ok_or("no step is in flight")?;
        let output = self.runner.collect(ticket)?;
        match output.failed_rows.first() {
            Some((row, reason)) => Err(format!("row {row} of a step: {reason:?}").into()),
            None => Ok(()),
        }
    }

    fn drain(&mut self) -> Result<()> {
        while !self.in_flight.is_empty() {
            self.collect()?;
        }
        Ok(())
    }
}

/// Tokens of a prompt such that decode steps see the context that is asked for in the middle of the measurement.
fn prompt_tokens(sizes: &Sizes) -> usize {
    sizes.context - sizes.warm_steps - sizes.steps / 2
}

/// Tokens of a sequence at the end of the measurement.
fn sequence_tokens(sizes: &Sizes) -> usize {
    prompt_tokens(sizes) + sizes.warm_steps + sizes.steps
}
