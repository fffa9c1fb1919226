//! stub
use crate::engine::{EngineStats, FinishKind};
use quire_scheduler::Preemption;
/// Counters and histograms of requests, written by the output thread and the front ends.
#[derive(Debug)]
pub struct Metrics;
/// What is known of a sequence at its end. Times in seconds since its arrival.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct FinishedSequence {
    pub reason: FinishKind,
    pub num_prompt_tokens: u32,
    pub num_cached_tokens: u32,
    pub num_output_tokens: u32,
    pub max_tokens: u32,
    pub n: u32,
    pub num_preemptions: u32,
    pub scheduled_s: Option<f64>,
    pub first_token_s: Option<f64>,
    pub last_token_s: Option<f64>,
    pub finished_s: f64,
}
#[allow(missing_docs, unused)]
impl Metrics {
    pub fn for_tests() -> Self {
        Self
    }
    pub fn on_step(&self, num_scheduled_tokens: u32) {}
    pub fn on_prompt(&self, num_prompt_tokens: u32, num_cached_tokens: u32) {}
    /// `gap_s` since the sequence's previous token; called once an update with `n >= 1` tokens.
    pub fn on_tokens(&self, num_tokens: usize, gap_s: Option<f64>) {}
    pub fn on_first_token(&self, ttft_s: f64) {}
    pub fn on_preemption(&self, preemption: &Preemption) {}
    pub fn on_finish(&self, sequence: &FinishedSequence) {}
    pub fn on_rejection(&self, reason: &'static str) {}
    pub fn render(&self, stats: &EngineStats) -> String {
        String::new()
    }
}
