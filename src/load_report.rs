//! How busy the server is, for load balancers that read it off answers: ORCA (Open Request Cost Aggregation).
//!
//! gRPC sends it as a trailer, HTTP as a header if the client asks; the names of the figures are vLLM's.

use crate::app::App;

/// After the last step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadReport {
    /// Fraction of the KV cache that requests hold, 0 to 1.
    pub kv_cache_usage: f64,
    /// Requests that wait for room.
    pub num_requests_waiting: u32,
    /// How full the server is, 0 to 1: the KV cache or the places in a step, whichever is scarcer.
    pub utilization: f64,
}

impl LoadReport {
    /// Reads the counters.
    pub fn of(app: &App) -> Self {
        let stats = app.engine.stats();
        let scheduler = stats.scheduler();
        let kv_cache_usage = stats.kv_cache_usage();
        let places = f64::from(scheduler.num_running) / f64::from(app.model.max_num_seqs.max(1));
        Self {
            kv_cache_usage,
            num_requests_waiting: scheduler.num_waiting_capacity + scheduler.num_waiting_deferred,
            utilization: kv_cache_usage.max(places),
        }
    }

    /// The figures that have names of their own.
    pub fn named_metrics(&self) -> [(&'static str, f64); 2] {
        [
            ("kv_cache_usage_perc", self.kv_cache_usage),
            ("num_requests_waiting", self.num_requests_waiting.into()),
        ]
    }
}
