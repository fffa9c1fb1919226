//! [`Metrics`]: counters and histograms of requests under vLLM's names, and their rendering for
//! Prometheus.
//!
//! The output thread and the front ends write; nobody reads but `/metrics`. A write is a handful of
//! atomic operations on a series that was looked up at start, so that it costs tens of nanoseconds. What
//! the scheduler counts itself is copied from [`EngineStats`] when rendering.
//!
//! Series that vLLM has only with features that Quire lacks (speculative decoding, media, KV
//! transfer) do not exist here; a series that is always zero would say that the feature is there.

mod adapters;
mod families;
mod process;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use prometheus::{Counter, Gauge, Histogram, HistogramVec, IntCounter, IntCounterVec, Registry, TextEncoder};
use quire_scheduler::Preemption;

use self::adapters::AdapterSeries;
use self::families::{Families, HTTP_BUCKETS, INTER_TOKEN_BUCKETS, ITERATION_TOKENS_BUCKETS};
use self::families::{PARAMS_N_BUCKETS, PREEMPTION_BUCKETS, REQUEST_BUCKETS, TTFT_BUCKETS, token_buckets};
use self::process::ProcessMetrics;
use crate::engine::{EngineStats, FinishKind, SubmitError};

/// What the series are labelled with.
#[derive(Debug, Clone)]
pub struct MetricsInfo {
    /// Label `model_name` of every series about the model: the name we answer with.
    pub model_name: String,
    /// Upper end of the buckets that count tokens.
    pub max_model_len: u32,
    /// Different adapters in a step at most; `None` = there are none.
    pub max_loras: Option<u32>,
    /// Labels of `vllm:cache_config_info`.
    pub cache: CacheInfo,
}

/// The KV cache as configured. Its size in blocks comes from [`EngineStats`].
#[derive(Debug, Clone)]
pub struct CacheInfo {
    /// Tokens in a KV block.
    pub block_size: u32,
    /// Blocks that a sequence of the greatest length holds at a time.
    pub blocks_per_sequence: u32,
    /// Whether full blocks are kept for others.
    pub enable_prefix_caching: bool,
    /// Element type of the cache, in vLLM's words (`auto`, `bfloat16`, ...).
    pub cache_dtype: String,
    /// `--gpu-memory-utilization`.
    pub gpu_memory_utilization: f64,
    /// `--kv-cache-memory-bytes`, if given.
    pub kv_cache_memory_bytes: Option<u64>,
}

/// Counters and histograms of requests, written by the output thread and the front ends.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    info: MetricsInfo,
    scheduler: SchedulerSeries,
    requests: RequestSeries,
    finished: FinishedSeries,
    adapters: Option<AdapterSeries>,
    http_requests: IntCounterVec,
    http_duration: HistogramVec,
    process: ProcessMetrics,
    cache_config_info: OnceLock<Gauge>,
    /// One rendering at a time: it first sets series from a snapshot and then reads them all.
    rendering: Mutex<()>,
}

/// Copied from [`EngineStats`] when rendering.
#[derive(Debug)]
struct SchedulerSeries {
    num_requests_running: Gauge,
    num_requests_waiting: Gauge,
    waiting_capacity: Gauge,
    waiting_deferred: Gauge,
    kv_cache_usage: Gauge,
    prefix_cache_queries: IntCounter,
    prefix_cache_hits: IntCounter,
    num_preemptions: IntCounter,
}

/// Written while requests run.
#[derive(Debug)]
struct RequestSeries {
    iteration_tokens: Histogram,
    prompt_tokens: IntCounter,
    prompt_tokens_cached: IntCounter,
    prompt_tokens_computed: IntCounter,
    prompt_tokens_cache_hit: IntCounter,
    prompt_tokens_cached_on_device: IntCounter,
    generation_tokens: IntCounter,
    preempted_tokens: IntCounter,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    admission_rejections: IntCounterVec,
}

/// Written when a sequence ends.
#[derive(Debug)]
struct FinishedSeries {
    success: [IntCounter; 5],
    num_prompt_tokens: Histogram,
    num_generation_tokens: Histogram,
    max_num_generation_tokens: Histogram,
    params_max_tokens: Histogram,
    params_n: Histogram,
    prefill_kv_computed_tokens: Histogram,
    num_preemptions: Histogram,
    e2e_latency: Histogram,
    queue_time: Histogram,
    inference_time: Histogram,
    prefill_time: Histogram,
    decode_time: Histogram,
    time_per_output_token: Histogram,
}

/// What is known of a sequence at its end. Times in seconds since its arrival.
#[derive(Debug, Clone, Copy)]
pub struct FinishedSequence {
    /// How it ended.
    pub reason: FinishKind,
    /// Tokens of the prompt.
    pub num_prompt_tokens: u32,
    /// Prompt tokens that came from the prefix cache.
    pub num_cached_tokens: u32,
    /// Tokens generated, a final stop token included.
    pub num_output_tokens: u32,
    /// The limit it ran under.
    pub max_tokens: u32,
    /// Which of the request's sequences.
    pub index: u32,
    /// Sequences of the request.
    pub n: u32,
    /// How often it lost its blocks.
    pub num_preemptions: u32,
    /// When it was first part of a step; `None` if never.
    pub scheduled_s: Option<f64>,
    /// When its first token was there; `None` if there was none.
    pub first_token_s: Option<f64>,
    /// When its last token was there; `None` if there was none.
    pub last_token_s: Option<f64>,
    /// Its end.
    pub finished_s: f64,
}

impl Metrics {
    /// All series, at zero.
    pub fn new(info: &MetricsInfo) -> Self {
        let registry = Registry::new();
        let families = Families::new(&registry, &info.model_name);
        let sleep = families.gauges("engine_sleep_state", "1 for the state the engine is in.", "sleep_state");
        for state in ["awake", "weights_offloaded", "discard_all"] {
            sleep.with_label_values(&[state]).set(f64::from(u8::from(state == "awake")));
        }
        Self {
            scheduler: SchedulerSeries::new(&families),
            requests: RequestSeries::new(&families),
            finished: FinishedSeries::new(&families, info.max_model_len),
            adapters: info.max_loras.map(|max_loras| AdapterSeries::new(&registry, max_loras)),
            http_requests: families.http_counters(),
            http_duration: families.http_histograms(HTTP_BUCKETS),
            process: ProcessMetrics::new(&registry),
            cache_config_info: OnceLock::new(),
            rendering: Mutex::new(()),
            info: info.clone(),
            registry,
        }
    }

    /// A step was computed. As in vLLM, what it counts for is prompt tokens computed and tokens generated, so the last
    /// token of a prompt and the first of its output are two, though they are one row of the step.
    pub fn on_step(&self, num_scheduled_tokens: u32, num_first_tokens: u32) {
        self.requests.iteration_tokens.observe(f64::from(num_scheduled_tokens + num_first_tokens));
    }

    /// A sequence was scheduled for the first time.
    pub fn on_prompt(&self, num_prompt_tokens: u32, num_cached_tokens: u32) {
        let (all, cached) = (u64::from(num_prompt_tokens), u64::from(num_cached_tokens));
        let r = &self.requests;
        r.prompt_tokens.inc_by(all);
        r.prompt_tokens_computed.inc_by(all.saturating_sub(cached));
        r.prompt_tokens_cached.inc_by(cached);
        r.prompt_tokens_cache_hit.inc_by(cached);
        r.prompt_tokens_cached_on_device.inc_by(cached);
    }

    /// A sequence with an adapter was taken.
    pub fn on_adapter_begin(&self, adapter: &Arc<str>) {
        self.adapters.iter().for_each(|series| series.begin(adapter));
    }

    /// It was scheduled for the first time.
    pub fn on_adapter_schedule(&self, adapter: &Arc<str>) {
        self.adapters.iter().for_each(|series| series.schedule(adapter));
    }

    /// It ended.
    pub fn on_adapter_end(&self, adapter: &Arc<str>, was_scheduled: bool) {
        self.adapters.iter().for_each(|series| series.end(adapter, was_scheduled));
    }

    /// A sequence got `num_tokens` (at least 1) new tokens, `gap_s` after its previous ones. Called once
    /// a sequence and step.
    pub fn on_tokens(&self, num_tokens: usize, gap_s: Option<f64>) {
        self.requests.generation_tokens.inc_by(num_tokens as u64);
        if let Some(gap_s) = gap_s {
            self.requests.inter_token_latency.observe(gap_s);
        }
    }

    /// A sequence got its first token, `ttft_s` after its arrival.
    pub fn on_first_token(&self, ttft_s: f64) {
        self.requests.time_to_first_token.observe(ttft_s);
    }

    /// A sequence lost its blocks. How often that happens is counted by the scheduler; here, what it
    /// costs.
    pub fn on_preemption(&self, preemption: &Preemption) {
        self.requests.preempted_tokens.inc_by(u64::from(preemption.num_computed_tokens));
    }

    /// A sequence ended.
    ///
    /// As in vLLM, lengths and times are observed once a sequence, `request_params_n` once a request.
    /// A time is observed only if both its ends happened.
    pub fn on_finish(&self, sequence: &FinishedSequence) {
        self.finished.observe(sequence);
    }

    /// The door refused a request.
    pub fn on_refusal(&self, error: &SubmitError) {
        self.on_rejection(match error {
            SubmitError::Overloaded { .. } => "max_num_queued_reqs",
            SubmitError::Draining => "draining",
            SubmitError::Dead(_) => "engine_dead",
            // Not for lack of anything.
            SubmitError::WrongTask { .. } => return,
        });
    }

    /// A request was turned away at the door.
    pub fn on_rejection(&self, reason: &'static str) {
        self.requests.admission_rejections.with_label_values(&[reason]).inc();
    }

    /// An HTTP request was answered: `handler` is the route's pattern, not the path as typed, so that
    /// there are few.
    pub fn on_http(&self, handler: &str, method: &str, status: u16, seconds: f64) {
        let class = ["1xx", "2xx", "3xx", "4xx", "5xx"][usize::from(status.clamp(100, 599) / 100) - 1];
        self.http_requests.with_label_values(&[handler, method, class]).inc();
        self.http_duration.with_label_values(&[handler, method]).observe(seconds);
    }

    /// Prompt tokens of all sequences that began.
    pub fn prompt_tokens_total(&self) -> u64 {
        self.requests.prompt_tokens.get()
    }

    /// Tokens generated.
    pub fn generation_tokens_total(&self) -> u64 {
        self.requests.generation_tokens.get()
    }

    /// Everything in Prometheus' text format, version 0.0.4.
    pub fn render(&self, stats: &EngineStats) -> String {
        let _one_at_a_time = self.rendering.lock().unwrap_or_else(PoisonError::into_inner);
        self.scheduler.set(stats);
        self.process.read();
        self.adapters.iter().for_each(AdapterSeries::set);
        self.cache_config_info.get_or_init(|| {
            let num_blocks = stats.scheduler().num_blocks_total;
            families::cache_config_info(&self.registry, &self.info, num_blocks)
        });
        // The encoder fails only on families without series; ours have theirs from the start.
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

impl SchedulerSeries {
    fn new(f: &Families) -> Self {
        let by_reason =
            f.gauges("num_requests_waiting_by_reason", "Sequences that wait, by what for.", "reason");
        Self {
            num_requests_running: f.gauge("num_requests_running", "Sequences that take part in steps."),
            num_requests_waiting: f.gauge("num_requests_waiting", "Sequences that wait."),
            waiting_capacity: by_reason.with_label_values(&["capacity"]),
            waiting_deferred: by_reason.with_label_values(&["deferred"]),
            kv_cache_usage: f.gauge("kv_cache_usage_perc", "Share of the KV cache in use; 1 = all of it."),
            prefix_cache_queries: f
                .counter("prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache."),
            prefix_cache_hits: f
                .counter("prefix_cache_hits_total", "Prompt tokens found in the prefix cache."),
            num_preemptions: f
                .counter("num_preemptions_total", "Times a sequence lost its blocks to another."),
        }
    }

    fn set(&self, stats: &EngineStats) {
        let now = stats.scheduler();
        let (capacity, deferred) = (now.num_waiting_capacity, now.num_waiting_deferred);
        self.num_requests_running.set(f64::from(now.num_running));
        self.num_requests_waiting.set(f64::from(capacity) + f64::from(deferred));
        self.waiting_capacity.set(f64::from(capacity));
        self.waiting_deferred.set(f64::from(deferred));
        self.kv_cache_usage.set(stats.kv_cache_usage());
        raise(&self.prefix_cache_queries, now.prefix_cache_queries_total);
        raise(&self.prefix_cache_hits, now.prefix_cache_hits_total);
        raise(&self.num_preemptions, now.preemptions_total);
    }
}

impl RequestSeries {
    fn new(f: &Families) -> Self {
        let by_source =
            f.counters("prompt_tokens_by_source_total", "Prompt tokens, by origin of their KV.", "source");
        let cached_by_source = f.counters(
            "prompt_tokens_cached_by_source_total",
            "Cached prompt tokens, by where they were.",
            "source",
        );
        let rejections = f.rejections();
        rejections.with_label_values(&["max_num_queued_reqs"]);
        Self {
            iteration_tokens: f.histogram(
                "iteration_tokens_total",
                "Prompt tokens computed and tokens generated in a step.",
                ITERATION_TOKENS_BUCKETS.to_vec(),
            ),
            prompt_tokens: f.counter("prompt_tokens_total", "Prompt tokens."),
            prompt_tokens_cached: f
                .counter("prompt_tokens_cached_total", "Prompt tokens that were not computed."),
            prompt_tokens_computed: by_source.with_label_values(&["local_compute"]),
            prompt_tokens_cache_hit: by_source.with_label_values(&["local_cache_hit"]),
            prompt_tokens_cached_on_device: cached_by_source.with_label_values(&["device"]),
            generation_tokens: f.counter("generation_tokens_total", "Generated tokens."),
            preempted_tokens: f.quire_counter(
                "preempted_tokens_total",
                "Computed tokens whose KV was given up to make room for another sequence.",
            ),
            time_to_first_token: f.histogram(
                "time_to_first_token_seconds",
                "Arrival to first token.",
                TTFT_BUCKETS.to_vec(),
            ),
            inter_token_latency: f.histogram(
                "inter_token_latency_seconds",
                "Step with a token to the next step with one.",
                INTER_TOKEN_BUCKETS.to_vec(),
            ),
            admission_rejections: rejections,
        }
    }
}

impl FinishedSeries {
    fn new(f: &Families, max_model_len: u32) -> Self {
        let success = f.counters("request_success_total", "Sequences that ended, by how.", "finished_reason");
        let time = |name, help| f.histogram(name, help, REQUEST_BUCKETS.to_vec());
        let tokens = |name, help| f.histogram(name, help, token_buckets(max_model_len));
        Self {
            success: [
                FinishKind::Stop,
                FinishKind::Length,
                FinishKind::Abort,
                FinishKind::Error,
                FinishKind::Repetition,
            ]
            .map(|kind| success.with_label_values(&[kind.as_str()])),
            num_prompt_tokens: tokens("request_prompt_tokens", "Prompt tokens of a sequence."),
            num_generation_tokens: tokens("request_generation_tokens", "Generated tokens of a sequence."),
            max_num_generation_tokens: tokens(
                "request_max_num_generation_tokens",
                "Generated tokens of a sequence; vLLM observes only the longest of each request.",
            ),
            params_max_tokens: tokens("request_params_max_tokens", "The limit a sequence ran under."),
            params_n: f.histogram(
                "request_params_n",
                "Sequences that a request asked for.",
                PARAMS_N_BUCKETS.to_vec(),
            ),
            prefill_kv_computed_tokens: tokens(
                "request_prefill_kv_computed_tokens",
                "Prompt tokens of a sequence that did not come from the prefix cache.",
            ),
            num_preemptions: f.histogram(
                "request_num_preemptions",
                "Times a sequence lost its blocks.",
                PREEMPTION_BUCKETS.to_vec(),
            ),
            e2e_latency: time("e2e_request_latency_seconds", "Arrival to end."),
            queue_time: time("request_queue_time_seconds", "Arrival to first step."),
            inference_time: time("request_inference_time_seconds", "First step to last token."),
            prefill_time: time("request_prefill_time_seconds", "First step to first token."),
            decode_time: time("request_decode_time_seconds", "First token to last token."),
            time_per_output_token: f.histogram(
                "request_time_per_output_token_seconds",
                "Mean gap between the tokens of a sequence.",
                INTER_TOKEN_BUCKETS.to_vec(),
            ),
        }
    }

    fn observe(&self, s: &FinishedSequence) {
        self.success[s.reason as usize].inc();
        self.num_prompt_tokens.observe(f64::from(s.num_prompt_tokens));
        self.num_generation_tokens.observe(f64::from(s.num_output_tokens));
        self.max_num_generation_tokens.observe(f64::from(s.num_output_tokens));
        self.params_max_tokens.observe(f64::from(s.max_tokens));
        if s.index == 0 {
            self.params_n.observe(f64::from(s.n));
        }
        self.num_preemptions.observe(f64::from(s.num_preemptions));
        self.e2e_latency.observe(s.finished_s);
        let Some(scheduled_s) = s.scheduled_s else { return };
        let computed = s.num_prompt_tokens.saturating_sub(s.num_cached_tokens);
        self.prefill_kv_computed_tokens.observe(f64::from(computed));
        self.queue_time.observe(scheduled_s);
        let (Some(first_s), Some(last_s)) = (s.first_token_s, s.last_token_s) else { return };
        self.prefill_time.observe(first_s - scheduled_s);
        self.inference_time.observe(last_s - scheduled_s);
        self.decode_time.observe(last_s - first_s);
        if s.num_output_tokens > 1 {
            self.time_per_output_token.observe((last_s - first_s) / f64::from(s.num_output_tokens - 1));
        }
    }
}

/// Brings a counter up to a total that somebody else keeps.
fn raise(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

/// The same for one that counts in fractions.
fn raise_by_fraction(counter: &Counter, total: f64) {
    counter.inc_by((total - counter.get()).max(0.0));
}
