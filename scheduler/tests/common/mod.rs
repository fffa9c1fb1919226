//! A scheduler under test, with a runner that samples what it is told to.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of this")]

use std::collections::BTreeMap;
use std::sync::Arc;

use quire_scheduler::kv::KvGroup;
use quire_scheduler::*;

pub const BLOCK: u32 = 4;

/// Roomy: 100 blocks of 4 tokens, 8 requests, 64 tokens a step, sequences of up to 100 tokens.
pub fn config() -> SchedulerConfig {
    SchedulerConfig {
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        max_model_len: 100,
        block_size: BLOCK,
        num_blocks: 101,
        kv_groups: vec![KvGroup::FULL],
        enable_prefix_caching: true,
        enable_kv_events: false,
        policy: SchedulingPolicy::Fcfs,
        long_prefill_token_threshold: 0,
        priority_ageing_us: 0,
        whole_prompts: false,
        max_loras: 4,
        adapter_patience_us: 0,
    }
}

/// A pool of so many usable blocks, and sequences that may fill it.
pub fn tight(num_blocks: u32) -> SchedulerConfig {
    SchedulerConfig { num_blocks: num_blocks + 1, max_model_len: num_blocks * BLOCK, ..config() }
}

/// A prompt of `len` tokens that shares no block with that of another id.
pub fn request(id: u64, len: u32, max_tokens: u32) -> Request {
    with_prompt(id, (0..len).map(|i| 1000 * id as u32 + i).collect(), max_tokens)
}

pub fn with_prompt(id: u64, prompt: Vec<TokenId>, max_tokens: u32) -> Request {
    Request {
        id: RequestId(id),
        prompt_token_ids: prompt.into(),
        sampling: Arc::new(SamplingParams { max_tokens, ..SamplingParams::default() }),
        priority: 0,
        arrival_us: id,
        adapter: None,
        cache_salt: None,
        bypass_prefix_cache: false,
    }
}

pub fn with_sampling(mut request: Request, change: impl FnOnce(&mut SamplingParams)) -> Request {
    change(Arc::make_mut(&mut request.sampling));
    request
}

/// Everything that has been said of the requests so far.
#[derive(Default)]
pub struct Heard {
    pub tokens: BTreeMap<u64, Vec<TokenId>>,
    pub ends: BTreeMap<u64, FinishReason>,
    pub cached: BTreeMap<u64, u32>,
    pub events: Vec<kv::KvEvent>,
    pub preemptions: Vec<Preemption>,
}

pub struct Driver {
    pub scheduler: Scheduler,
    pub heard: Heard,
    pub now_us: u64,
    /// What a row samples, by request and position of the token.
    pub sampler: fn(u64, u32) -> TokenId,
}

impl Driver {
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            scheduler: Scheduler::new(config).expect("valid"),
            heard: Heard::default(),
            now_us: 0,
            sampler: |id, position| 500_000 + 1000 * id as u32 + position,
        }
    }

    pub fn add(&mut self, requests: impl IntoIterator<Item = Request>) {
        requests.into_iter().for_each(|request| self.scheduler.add(request));
    }

    pub fn schedule(&mut self) -> Option<SchedulerOutput> {
        self.now_us += 1;
        let plan = self.scheduler.schedule(self.now_us);
        self.scheduler.check_invariants().unwrap();
        plan
    }

    /// What an honest runner answers.
    pub fn answer(&self, plan: &SchedulerOutput) -> ModelRunnerOutput {
        let rows = plan.rows.iter().filter(|row| row.samples);
        let sampled = rows.map(|row| (self.sampler)(row.id.0, row.start + row.num_tokens)).collect();
        ModelRunnerOutput { sampled, ..ModelRunnerOutput::default() }
    }

    pub fn finish(&mut self, plan: SchedulerOutput) -> StepOutputs {
        let answer = self.answer(&plan);
        self.finish_with(plan, Ok(&answer))
    }

    pub fn finish_with(
        &mut self,
        plan: SchedulerOutput,
        result: Result<&ModelRunnerOutput, &RunnerError>,
    ) -> StepOutputs {
        let out = self.scheduler.update(plan, result);
        self.scheduler.check_invariants().unwrap();
        self.hear(&out);
        out
    }

    /// Ends without a step.
    pub fn drain(&mut self) {
        if let Some(out) = self.scheduler.take_outputs() {
            self.hear(&out);
        }
    }

    /// One whole step; the plan is a copy.
    pub fn step(&mut self) -> Option<SchedulerOutput> {
        let plan = self.schedule()?;
        let copy = plan.clone();
        self.finish(plan);
        Some(copy)
    }

    /// Steps until everybody has ended; returns how many.
    pub fn run(&mut self) -> usize {
        let mut steps = 0;
        while self.scheduler.has_unfinished() {
            self.step().expect("something can be computed while requests are left");
            steps += 1;
            assert!(steps < 100_000, "requests do not end");
        }
        self.drain();
        steps
    }

    pub fn free_blocks(&self) -> u32 {
        self.scheduler.stats().num_blocks_free
    }

    fn hear(&mut self, out: &StepOutputs) {
        for update in &out.updates {
            let id = update.id.0;
            assert!(!self.heard.ends.contains_key(&id), "an update of {id} after its end");
            let tokens = &out.tokens[update.tokens.start as usize..update.tokens.end as usize];
            self.heard.tokens.entry(id).or_default().extend(tokens);
            if let Some(first) = update.first_scheduled {
                assert!(self.heard.cached.insert(id, first.num_cached_tokens).is_none(), "{id} first twice");
            }
            if let Some(reason) = &update.finish {
                self.heard.ends.insert(id, reason.clone());
            }
        }
        self.heard.events.extend(out.kv_events.iter().cloned());
        self.heard.preemptions.extend(&out.preemptions);
    }
}

/// `(request, start, num_tokens)` of each row.
pub fn rows(plan: &SchedulerOutput) -> Vec<(u64, u32, u32)> {
    plan.rows.iter().map(|row| (row.id.0, row.start, row.num_tokens)).collect()
}

pub fn ids(plan: &SchedulerOutput) -> Vec<u64> {
    plan.rows.iter().map(|row| row.id.0).collect()
}

pub fn failure(step: u64) -> RunnerError {
    RunnerError { step, reason: "the device fell over".into(), fatal: false }
}
