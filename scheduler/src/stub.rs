#![allow(missing_docs)]
use crate::*;
use std::sync::Arc;
#[derive(Debug, Clone)]
pub struct SchedulerConfig {
    pub max_num_seqs: u32,
    pub max_num_batched_tokens: u32,
    pub max_model_len: u32,
    pub block_size: u32,
    pub num_blocks: u32,
    pub enable_prefix_caching: bool,
    pub policy: SchedulingPolicy,
}
pub struct Scheduler;
#[allow(unused)]
impl Scheduler {
    pub fn new(c: SchedulerConfig) -> Self {
        Self
    }
    pub fn add(&mut self, r: Request) {}
    pub fn abort(&mut self, id: RequestId) {}
    pub fn abort_all(&mut self) {}
    pub fn reset_prefix_cache(&mut self) -> bool {
        true
    }
    pub fn has_unfinished(&self) -> bool {
        false
    }
    pub fn has_outputs(&self) -> bool {
        false
    }
    pub fn schedule(&mut self, now_us: u64) -> Option<SchedulerOutput> {
        None
    }
    pub fn update(&mut self, plan: SchedulerOutput, out: &ModelRunnerOutput) -> StepOutputs {
        StepOutputs::default()
    }
    pub fn fail(&mut self, plans: Vec<SchedulerOutput>, reason: &Arc<str>) {}
    pub fn take_outputs(&mut self) -> StepOutputs {
        StepOutputs::default()
    }
}
