//! [`Runner`]: the `ModelRunner` of a real model. It owns weights, KV cache and slots, and turns a plan into
//! the operations of a [`Backend`].

use std::collections::VecDeque;
use std::sync::Arc;

use quire_scheduler::{
    FinishReason, GrammarError, ModelRunner, ModelRunnerOutput, RequestId, RunnerError, SchedulerOutput,
    StepTicket, TokenLogprob,
};

use crate::backend::{Backend, BackendError, StepLimits};
use crate::error::ModelError;
use crate::forward::Workspace;
use crate::input_batch::InputBatch;
use crate::kv_groups::KvGroups;
use crate::kv_layout::KvLayout;
use crate::lora::{LoraTargets, LoraWeights};
use crate::masks::{Masks, SampledToken};
use crate::spec::{LmHead, ModelSpec};
use crate::step_inputs::{LogitsRow, LogitsTask};
use crate::weights::Model;

/// Sizes of a runner, fixed for its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunnerConfig {
    /// Slots, and rows of a plan.
    pub max_num_seqs: usize,
    /// Tokens of a plan.
    pub max_num_batched_tokens: usize,
    /// Longest sequence, prompt and output together.
    pub max_model_len: usize,
    /// Tokens in a block of the KV cache.
    pub block_size: usize,
    /// Blocks of the KV cache, the padding block among them; see [`KvLayout::num_blocks`].
    pub num_blocks: usize,
}

impl RunnerConfig {
    /// The largest step of that model.
    pub fn step_limits(&self, spec: &ModelSpec) -> StepLimits {
        StepLimits {
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
            max_blocks_per_seq: self.max_model_len.div_ceil(self.block_size),
            block_size: self.block_size,
            max_logits_rows: self.max_num_seqs.min(self.max_num_batched_tokens),
            vocab_size: spec.vocab_size,
            num_kv_groups: 1,
            heads_per_group: spec
                .max_of_layers(|layer| layer.attention.num_heads / layer.attention.num_kv_heads),
        }
    }
}

/// Computes plans with a model on a device.
pub struct Runner<B: Backend> {
    backend: B,
    model: Model<B>,
    workspace: Workspace<B>,
    batch: InputBatch,
    masks: Masks,
    /// Rows of the step at hand whose grammar gave no mask.
    stuck: Vec<(u32, GrammarError)>,
    /// What the rows with a grammar sampled, of the step being collected.
    sampled: Vec<SampledToken>,
    limits: StepLimits,
    num_blocks: usize,
    /// `None` = requests have no adapters.
    max_adapter_rank: Option<usize>,
    in_flight: VecDeque<PendingStep>,
    /// Collected steps, whose memory the next ones use.
    spare: Vec<PendingStep>,
    output: ModelRunnerOutput,
}

/// What the host must remember of a step until it is collected.
#[derive(Default)]
struct PendingStep {
    step: u64,
    rows: Vec<LogitsRow>,
    /// Rows of the plan whose grammar gave no mask; their samples mean nothing.
    stuck: Vec<(u32, GrammarError)>,
    /// Whose each row is: a slot may have changed hands by then.
    owners: Vec<Option<RequestId>>,
    /// Rows of the plan that end a prompt which is pooled.
    pooled: Vec<u32>,
}

impl<B: Backend> Runner<B> {
    /// Allocates everything that any plan within `config` will need. All layers keep all tokens.
    pub fn new(backend: B, model: Model<B>, config: RunnerConfig) -> Result<Self, ModelError> {
        let groups = KvGroups::one(&model.spec);
        Self::with_kv_groups(backend, model, config, groups)
    }

    /// The same where layers are sorted into groups; plans have blocks for each of them.
    pub fn with_kv_groups(
        mut backend: B,
        model: Model<B>,
        config: RunnerConfig,
        groups: KvGroups,
    ) -> Result<Self, ModelError> {
        check(&model, &config)?;
        let num_kv_groups = groups.groups().len();
        if num_kv_groups > backend.max_kv_groups() {
            return Err(backend.not_built(&format!("a KV cache in {num_kv_groups} groups of layers")).into());
        }
        let limits = StepLimits { num_kv_groups, ..config.step_limits(&model.spec) };
        backend.prepare(&limits, &model.spec.linear_shapes(&limits))?;
        let mut workspace = Workspace::new(&mut backend, &model.spec, &limits, &config, groups)?;
        record_decode_steps(&mut backend, &model, &mut workspace, &limits)?;
        let max_in_flight = backend.max_in_flight();
        let second_text_offset = model.spec.second_text_offset();
        Ok(Self {
            backend,
            model,
            workspace,
            batch: InputBatch::new(limits).with_second_texts_at(second_text_offset),
            masks: Masks::new(limits.max_num_seqs, limits.vocab_size),
            stuck: Vec::new(),
            sampled: Vec::with_capacity(limits.max_num_seqs),
            limits,
            num_blocks: config.num_blocks,
            max_adapter_rank: None,
            in_flight: VecDeque::with_capacity(max_in_flight),
            spare: (0..max_in_flight).map(|_| PendingStep::default()).collect(),
            output: ModelRunnerOutput::default(),
        })
    }

    /// Allocates what adapters of up to this rank need: without, requests must have none.
    pub fn with_adapters(mut self, max_rank: usize) -> Result<Self, ModelError> {
        self.backend.prepare_adapters(max_rank, &self.model.lora_targets)?;
        self.max_adapter_rank = Some(max_rank);
        Ok(self)
    }

    /// The layers that adapters may change.
    pub fn lora_targets(&self) -> &LoraTargets {
        &self.model.lora_targets
    }

    /// The layout of this runner's KV cache.
    pub fn kv_layout(&self) -> KvLayout {
        KvLayout::new(&self.model.spec, self.limits.block_size)
    }

    /// Uploads the step and enqueues its work: forward pass and logits, and once the masks are there, sampling.
    fn compute(&mut self) -> Result<(), BackendError> {
        let inputs = self.batch.inputs();
        let num_rows = self.batch.logits_rows().len();
        self.backend.upload(inputs, self.batch.logits_rows(), self.batch.slots())?;
        let adapted = self.batch.has_adapters();
        let is_recorded = !adapted && self.backend.replay()?;
        if !is_recorded {
            self.workspace.forward(&mut self.backend, &self.model, inputs.num_tokens(), adapted)?;
            self.workspace.pool(&mut self.backend, &self.model.spec, self.batch.pool_rows())?;
        }
        // Prompt log-probabilities can need more rows than the logits buffer has.
        for first in (0..num_rows).step_by(self.limits.max_logits_rows) {
            let range = first..num_rows.min(first + self.limits.max_logits_rows);
            if !is_recorded {
                self.workspace.compute_logits(&mut self.backend, &self.model, range.clone())?;
            }
            if first == 0 {
                let (rows, slots) = self.batch.rows_and_slots();
                self.masks.take(rows, slots, &mut self.stuck);
            }
            let rows = &self.batch.logits_rows()[range];
            self.backend.sample(&mut self.workspace.logits, rows, self.batch.slots())?;
        }
        self.backend.end_step()
    }

    /// Adapters are those that this runner was made for.
    fn check_adapters(&self, plan: &SchedulerOutput) -> Result<(), Arc<str>> {
        for request in &plan.admitted {
            let Some(adapter) = &request.adapter else { continue };
            let weights = adapter.weights::<LoraWeights>();
            let most = self.max_adapter_rank.unwrap_or(0);
            if weights.is_none_or(|weights| weights.max_rank() > most) {
                return Err(format!("{:?}: {adapter:?} does not fit this runner", request.id).into());
            }
        }
        Ok(())
    }

    /// A model with a head generates, one without is pooled.
    fn check_outputs(&self) -> Result<(), Arc<str>> {
        let pools = self.model.spec.lm_head == LmHead::None;
        match if pools { self.batch.logits_rows().len() } else { self.batch.pool_rows().len() } {
            0 => Ok(()),
            _ if pools => Err("the model has no head: it can only be pooled".into()),
            _ => Err("the model is loaded to generate, and cannot be pooled".into()),
        }
    }

    fn remember(&mut self, step: u64) {
        let mut pending = self.spare.pop().unwrap_or_default();
        let slots = self.batch.slots();
        pending.step = step;
        pending.stuck.clear();
        pending.stuck.append(&mut self.stuck);
        pending.rows.clear();
        pending.rows.extend_from_slice(self.batch.logits_rows());
        pending.owners.clear();
        pending.owners.extend(pending.rows.iter().map(|row| slots[row.slot as usize].id()));
        let pooled = self.batch.pool_rows().iter().filter(|row| row.is_last());
        pending.pooled.clear();
        pending.pooled.extend(pooled.map(|row| row.plan_row));
        self.in_flight.push_back(pending);
    }
}

impl<B: Backend> ModelRunner for Runner<B> {
    fn max_in_flight(&self) -> usize {
        self.backend.max_in_flight()
    }

    fn submit(&mut self, plan: &SchedulerOutput) -> Result<StepTicket, RunnerError> {
        let refuse = |reason: Arc<str>| RunnerError { step: plan.step, reason, fatal: false };
        if self.in_flight.len() >= self.backend.max_in_flight() {
            return Err(refuse(format!("{} steps are in flight already", self.in_flight.len()).into()));
        }
        let admitted_blocks = plan.admitted.iter().flat_map(|request| &request.block_ids);
        if let Some(block) =
            plan.new_block_ids.iter().chain(admitted_blocks).find(|block| block.0 as usize >= self.num_blocks)
        {
            return Err(refuse(format!("{block:?} of {} blocks", self.num_blocks).into()));
        }
        self.check_adapters(plan).map_err(refuse)?;
        self.batch.apply(plan).map_err(refuse)?;
        self.check_outputs().map_err(refuse)?;
        self.masks.apply(plan);
        self.stuck.clear();
        self.compute().map_err(|error| device_error(plan.step, &error))?;
        self.remember(plan.step);
        self.batch.expect_tokens();
        Ok(StepTicket(plan.step))
    }

    fn collect(&mut self, ticket: StepTicket) -> Result<&ModelRunnerOutput, RunnerError> {
        let Some(pending) = self.in_flight.pop_front().filter(|pending| pending.step == ticket.0) else {
            let reason = "this step is not the oldest in flight".into();
            return Err(RunnerError { step: ticket.0, reason, fatal: true });
        };
        clear(&mut self.output);
        self.sampled.clear();
        let results = self.backend.collect().map_err(|error| device_error(ticket.0, &error))?;
        let output = &mut self.output;
        for ((row, owner), result) in pending.rows.iter().zip(&pending.owners).zip(results) {
            let stuck = pending.stuck.iter().find(|(stuck, _)| *stuck == row.plan_row);
            if row.task == LogitsTask::Sample {
                output.sampled.push(result.token);
                if self.batch.slots()[row.slot as usize].id() == *owner {
                    self.batch.set_token(row.slot, row.position, result.token);
                    if self.masks.is_seated(row.slot) && stuck.is_none() && result.failure.is_none() {
                        let (row, slot) = (row.plan_row, row.slot);
                        self.sampled.push(SampledToken { row, slot, token: result.token });
                    }
                }
            }
            let stuck = stuck.map(|(_, error)| error.clone().into());
            if let Some(reason) = stuck.or(result.failure.map(FinishReason::from)) {
                if output.failed_rows.last().is_none_or(|(last, _)| *last != row.plan_row) {
                    output.failed_rows.push((row.plan_row, reason));
                }
            } else if result.rank > 0 {
                let first = output.top.len() as u32;
                output.top.extend_from_slice(&result.top);
                output.logprobs.push(TokenLogprob {
                    row: row.plan_row,
                    position: row.position,
                    token: result.token,
                    logprob: result.logprob,
                    rank: result.rank,
                    top: first..output.top.len() as u32,
                });
            }
        }
        match &mut self.model.classifier {
            None => output.pooled.extend_from_slice(self.backend.pooled()),
            Some(head) => {
                let vectors = self.backend.pooled().chunks_exact(self.model.spec.hidden_size);
                vectors.for_each(|vector| head.classify(vector, &mut output.pooled));
            }
        }
        let width = self.model.spec.pooled_width();
        for (plan_row, vector) in pending.pooled.iter().zip(output.pooled.chunks_exact(width)) {
            if vector.iter().any(|x| !x.is_finite()) {
                output.failed_rows.push((
                    *plan_row,
                    FinishReason::Error("the model's hidden states are not finite".into()),
                ));
            }
        }
        self.accept_sampled();
        self.spare.push(pending);
        Ok(&self.output)
    }
}

impl<B: Backend> Runner<B> {
    /// Lets the grammars know what was sampled, and goes on with what must follow.
    fn accept_sampled(&mut self) {
        let Self { masks, batch, output, sampled, .. } = self;
        masks.accept(sampled, |sampled, accepted| match accepted {
            Ok([]) => {}
            Ok(forced) => {
                let first = output.forced.len() as u32;
                output.forced.extend_from_slice(forced);
                output.forced_rows.push((sampled.row, first..output.forced.len() as u32));
                batch.push_forced(sampled.slot, forced);
            }
            Err(error) => output.failed_rows.push((sampled.row, error.into())),
        });
    }
}

fn clear(output: &mut ModelRunnerOutput) {
    let ModelRunnerOutput { sampled, forced, forced_rows, logprobs, top, pooled, failed_rows } = output;
    sampled.clear();
    forced.clear();
    forced_rows.clear();
    logprobs.clear();
    top.clear();
    pooled.clear();
    failed_rows.clear();
}

/// Lets the device record the decode steps that it wants to repeat as a whole.
fn record_decode_steps<B: Backend>(
    backend: &mut B,
    model: &Model<B>,
    workspace: &mut Workspace<B>,
    limits: &StepLimits,
) -> Result<(), BackendError> {
    let largest = limits.max_logits_rows;
    if model.spec.lm_head == LmHead::None {
        return Ok(());
    }
    for size in backend.capture_sizes().into_iter().filter(|size| *size <= largest) {
        backend.begin_capture(size)?;
        workspace.forward(backend, model, size, false)?;
        workspace.compute_logits(backend, model, 0..size)?;
        backend.end_capture()?;
    }
    Ok(())
}

fn device_error(step: u64, error: &BackendError) -> RunnerError {
    RunnerError { step, reason: error.to_string().into(), fatal: error.fatal }
}

fn check<B: Backend>(model: &Model<B>, config: &RunnerConfig) -> Result<(), ModelError> {
    let longest = model.spec.max_position_embeddings;
    let limit = |field, value, ok: bool, allowed: String| match ok {
        true => Ok(()),
        false => Err(ModelError::Limit { field, value, allowed }),
    };
    let one = || "at least 1".to_string();
    limit("max_num_seqs", config.max_num_seqs, config.max_num_seqs > 0, one())?;
    let tokens = config.max_num_batched_tokens;
    limit("max_num_batched_tokens", tokens, tokens > 0, one())?;
    limit("block_size", config.block_size, config.block_size > 0, one())?;
    limit("num_blocks", config.num_blocks, config.num_blocks > 1, "at least 2, one of them padding".into())?;
    let in_range = (1..=longest).contains(&config.max_model_len);
    limit("max_model_len", config.max_model_len, in_range, format!("1 to {longest}, the model's own length"))
}
