//! [`EngineStats`]: the counters snapshot of the last step, and whether the engine makes progress.
//!
//! The engine thread writes it once a step with plain stores; `/metrics`, `/health`, `/load` and gRPC
//! read it. Nobody asks the engine thread anything.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use quire_scheduler::SchedulerStats;

use super::pause::Pause;

/// Shared counters of one engine.
#[derive(Debug)]
pub struct EngineStats {
    started: Instant,
    num_running: AtomicU32,
    num_waiting_capacity: AtomicU32,
    num_waiting_deferred: AtomicU32,
    num_blocks_total: AtomicU32,
    num_blocks_free: AtomicU32,
    num_blocks_cached: AtomicU32,
    prefix_cache_queries_total: AtomicU64,
    prefix_cache_hits_total: AtomicU64,
    preemptions_total: AtomicU64,
    prompt_tokens_computed_total: AtomicU64,
    num_steps: AtomicU64,
    /// Microseconds since `started` at which the engine last finished a step or had nothing to do.
    progress_us: AtomicU64,
    busy: AtomicBool,
    paused: AtomicBool,
    /// Sequences that arrived during a pause.
    num_held: AtomicU32,
    death: OnceLock<Arc<str>>,
}

impl EngineStats {
    pub(crate) fn new(initial: &SchedulerStats) -> Self {
        let stats = Self {
            started: Instant::now(),
            num_running: AtomicU32::new(0),
            num_waiting_capacity: AtomicU32::new(0),
            num_waiting_deferred: AtomicU32::new(0),
            num_blocks_total: AtomicU32::new(0),
            num_blocks_free: AtomicU32::new(0),
            num_blocks_cached: AtomicU32::new(0),
            prefix_cache_queries_total: AtomicU64::new(0),
            prefix_cache_hits_total: AtomicU64::new(0),
            preemptions_total: AtomicU64::new(0),
            prompt_tokens_computed_total: AtomicU64::new(0),
            num_steps: AtomicU64::new(0),
            progress_us: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            num_held: AtomicU32::new(0),
            death: OnceLock::new(),
        };
        stats.record_scheduler(initial);
        stats
    }

    /// The scheduler's state after the last step; what a pause holds back counts as deferred. Fields may be of
    /// two neighbouring steps.
    pub fn scheduler(&self) -> SchedulerStats {
        SchedulerStats {
            num_running: self.num_running.load(Relaxed),
            num_waiting_capacity: self.num_waiting_capacity.load(Relaxed),
            num_waiting_deferred: self.num_waiting_deferred.load(Relaxed) + self.num_held.load(Relaxed),
            num_blocks_total: self.num_blocks_total.load(Relaxed),
            num_blocks_free: self.num_blocks_free.load(Relaxed),
            num_blocks_cached: self.num_blocks_cached.load(Relaxed),
            num_scheduled_tokens: 0,
            prefix_cache_queries_total: self.prefix_cache_queries_total.load(Relaxed),
            prefix_cache_hits_total: self.prefix_cache_hits_total.load(Relaxed),
            preemptions_total: self.preemptions_total.load(Relaxed),
            prompt_tokens_computed_total: self.prompt_tokens_computed_total.load(Relaxed),
        }
    }

    /// Fraction of the KV cache that requests hold, 0..=1.
    pub fn kv_cache_usage(&self) -> f64 {
        let total = self.num_blocks_total.load(Relaxed);
        if total == 0 { 0.0 } else { 1.0 - f64::from(self.num_blocks_free.load(Relaxed)) / f64::from(total) }
    }

    /// Steps completed since the start.
    pub fn num_steps(&self) -> u64 {
        self.num_steps.load(Relaxed)
    }

    /// How long the engine has had work without completing a step; zero while idle.
    pub fn stalled_for(&self) -> Duration {
        if !self.busy.load(Relaxed) {
            return Duration::ZERO;
        }
        self.started.elapsed().saturating_sub(Duration::from_micros(self.progress_us.load(Relaxed)))
    }

    /// Whether the engine has been told to stand still.
    pub fn is_paused(&self) -> bool {
        self.paused.load(Relaxed)
    }

    /// Why the engine thread ended, if it did.
    pub fn death(&self) -> Option<&Arc<str>> {
        self.death.get()
    }

    /// Time since the engine was made.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn record_step(&self, s: &SchedulerStats) {
        self.record_scheduler(s);
        self.num_steps.store(self.num_steps.load(Relaxed) + 1, Relaxed);
        self.record_progress(true);
    }

    pub(super) fn record_scheduler(&self, s: &SchedulerStats) {
        self.num_running.store(s.num_running, Relaxed);
        self.num_waiting_capacity.store(s.num_waiting_capacity, Relaxed);
        self.num_waiting_deferred.store(s.num_waiting_deferred, Relaxed);
        self.num_blocks_total.store(s.num_blocks_total, Relaxed);
        self.num_blocks_free.store(s.num_blocks_free, Relaxed);
        self.num_blocks_cached.store(s.num_blocks_cached, Relaxed);
        self.prefix_cache_queries_total.store(s.prefix_cache_queries_total, Relaxed);
        self.prefix_cache_hits_total.store(s.prefix_cache_hits_total, Relaxed);
        self.preemptions_total.store(s.preemptions_total, Relaxed);
        self.prompt_tokens_computed_total.store(s.prompt_tokens_computed_total, Relaxed);
    }

    /// There is work from now on, if there was none before.
    pub(super) fn record_work(&self) {
        if !self.busy.load(Relaxed) {
            self.record_progress(true);
        }
    }

    /// The engine is alive: it completed a step, or has nothing to do.
    pub(super) fn record_progress(&self, busy: bool) {
        let now = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.progress_us.store(now, Relaxed);
        self.busy.store(busy, Relaxed);
    }

    pub(super) fn record_pause(&self, pause: &Pause) {
        self.paused.store(pause.is_on(), Relaxed);
        self.num_held.store(u32::try_from(pause.num_held()).unwrap_or(u32::MAX), Relaxed);
    }

    pub(super) fn record_death(&self, reason: Arc<str>) {
        // Only the first reason counts; later ones are consequences.
        let _ = self.death.set(reason);
    }
}
