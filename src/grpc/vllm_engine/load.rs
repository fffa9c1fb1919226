//! How busy the engine is, in this dialect's words.

use quire_proto::vllm::grpc::engine::SchedulerLoad;

use crate::app::App;

/// The engine's state after its last step.
pub(super) fn scheduler_load(app: &App) -> SchedulerLoad {
    let stats = app.engine.stats().scheduler();
    let (running, waiting) = (stats.num_running, stats.num_waiting_capacity + stats.num_waiting_deferred);
    let used_blocks = stats.num_blocks_total - stats.num_blocks_free;
    // Layers may be in several groups, and those with windows keep only these: blocks are worth what a whole sequence
    // makes of them.
    let (longest, blocks) = (app.limits.max_model_len, app.model.blocks_per_sequence.max(1));
    let tokens =
        |count: u32| (u64::from(count) * u64::from(longest) / u64::from(blocks)).min(i32::MAX as u64) as i32;
    let share = |part: f64, whole: f64| if whole == 0.0 { 0.0 } else { part / whole };
    SchedulerLoad {
        dp_rank: 0,
        num_running_reqs: running as i32,
        num_waiting_reqs: waiting as i32,
        num_total_reqs: (running + waiting) as i32,
        num_used_tokens: tokens(used_blocks),
        max_total_num_tokens: tokens(stats.num_blocks_total),
        token_usage: app.engine.stats().kv_cache_usage(),
        cache_hit_rate: share(stats.prefix_cache_hits_total as f64, stats.prefix_cache_queries_total as f64),
        utilization: share(running.into(), app.model.max_num_seqs.into()),
        max_running_requests: app.model.max_num_seqs as i32,
        // Not counted by this server.
        gen_throughput: 0.0,
        num_waiting_uncached_tokens: 0,
    }
}
