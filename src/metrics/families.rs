//! Makes and registers families of series: vLLM's prefix, labels and buckets, in one place.

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry,
};

use super::{CacheInfo, MetricsInfo};

/// Label `engine`: the data-parallel rank. There is one.
const ENGINE: &str = "0";

/// vLLM's, for times to the first token.
pub(super) const TTFT_BUCKETS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];

/// vLLM's for times between tokens, and four finer ones before them: vLLM's begin at 10 ms.
pub(super) const INTER_TOKEN_BUCKETS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];

/// vLLM's, for parts of a request's life.
pub(super) const REQUEST_BUCKETS: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];

/// vLLM's, for tokens in a step.
pub(super) const ITERATION_TOKENS_BUCKETS: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];

/// vLLM's, for `n`.
pub(super) const PARAMS_N_BUCKETS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];

/// vLLM's, for preemptions of a request.
pub(super) const PREEMPTION_BUCKETS: &[f64] = &[1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0];

/// Those of prometheus-fastapi-instrumentator, which vLLM uses.
pub(super) const HTTP_BUCKETS: &[f64] = &[0.1, 0.5, 1.0];

/// vLLM's for counts of tokens: 1, 2, 5, 10, 20, 50, ... up to `max`.
pub(super) fn token_buckets(max: u32) -> Vec<f64> {
    let decades = (0..=9).map(|exponent| 10u64.pow(exponent));
    let all = decades.flat_map(|decade| [1, 2, 5].map(|mantissa| mantissa * decade));
    all.take_while(|&bucket| bucket <= u64::from(max)).map(|bucket| bucket as f64).collect()
}

/// Makes families and registers them.
pub(super) struct Families<'a> {
    registry: &'a Registry,
    model_name: &'a str,
}

impl<'a> Families<'a> {
    pub(super) fn new(registry: &'a Registry, model_name: &'a str) -> Self {
        Self { registry, model_name }
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.register(Gauge::with_opts(self.opts("vllm", name, help)))
    }

    pub(super) fn gauges(&self, name: &str, help: &str, label: &str) -> GaugeVec {
        self.register(GaugeVec::new(self.opts("vllm", name, help), &[label]))
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::with_opts(self.opts("vllm", name, help)))
    }

    pub(super) fn counters(&self, name: &str, help: &str, label: &str) -> IntCounterVec {
        self.register(IntCounterVec::new(self.opts("vllm", name, help), &[label]))
    }

    /// One that vLLM does not have.
    pub(super) fn quire_counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::with_opts(self.opts("quire", name, help)))
    }

    /// The one family about the door, not the engine: without the label `engine`, as in vLLM.
    pub(super) fn rejections(&self) -> IntCounterVec {
        let help = "Requests that were turned away at the door.";
        let opts = Opts::new("vllm:admission_rejections_total", help);
        let opts = opts.const_label("model_name", self.model_name);
        self.register(IntCounterVec::new(opts, &["reason"]))
    }

    pub(super) fn histogram(&self, name: &str, help: &str, buckets: Vec<f64>) -> Histogram {
        let opts = HistogramOpts { common_opts: self.opts("vllm", name, help), buckets };
        self.register(Histogram::with_opts(opts))
    }

    pub(super) fn http_counters(&self) -> IntCounterVec {
        let opts = Opts::new("http_requests_total", "HTTP requests that were answered.");
        self.register(IntCounterVec::new(opts, &["handler", "method", "status"]))
    }

    pub(super) fn http_histograms(&self, buckets: &[f64]) -> HistogramVec {
        let opts = HistogramOpts::new("http_request_duration_seconds", "Request to end of the answer.")
            .buckets(buckets.to_vec());
        self.register(HistogramVec::new(opts, &["handler", "method"]))
    }

    /// A colon in the name is vLLM's; a namespace would be joined by an underscore.
    fn opts(&self, prefix: &str, name: &str, help: &str) -> Opts {
        Opts::new(format!("{prefix}:{name}"), help)
            .const_label("model_name", self.model_name)
            .const_label("engine", ENGINE)
    }

    fn register<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        register(self.registry, made)
    }
}

/// Registers a family. Names and labels are fixed in this module, so that failing is a defect here.
pub(super) fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    made: prometheus::Result<C>,
) -> C {
    let collector = made.expect("names, labels and buckets are valid");
    registry.register(Box::new(collector.clone())).expect("each name is registered once");
    collector
}

/// Registers `vllm:cache_config_info`: always 1, the facts are its labels. Booleans and missing values
/// are written as Python writes them, because that is what vLLM's readers know.
pub(super) fn cache_config_info(registry: &Registry, info: &MetricsInfo, num_blocks: u32) -> Gauge {
    let CacheInfo { block_size, enable_prefix_caching, cache_dtype, gpu_memory_utilization, .. } =
        &info.cache;
    // As vLLM counts: where layers have windows, a sequence takes fewer blocks than its tokens fill.
    let concurrency = f64::from(num_blocks) / f64::from(info.cache.blocks_per_sequence.max(1));
    let size_tokens = (concurrency * f64::from(info.max_model_len)) as u64;
    let memory_bytes = info.cache.kv_cache_memory_bytes;
    let opts = Opts::new("vllm:cache_config_info", "The KV cache as configured.")
        .const_label("engine", ENGINE)
        .const_label("block_size", block_size.to_string())
        .const_label("num_gpu_blocks", num_blocks.to_string())
        .const_label("enable_prefix_caching", if *enable_prefix_caching { "True" } else { "False" })
        .const_label("prefix_caching_hash_algo", "sha256")
        .const_label("cache_dtype", cache_dtype)
        .const_label("gpu_memory_utilization", gpu_memory_utilization.to_string())
        .const_label("kv_cache_memory_bytes", memory_bytes.map_or("None".into(), |b| b.to_string()))
        .const_label("kv_cache_size_tokens", size_tokens.to_string())
        .const_label("kv_cache_max_concurrency", format!("{concurrency:.2}"));
    let gauge = register(registry, Gauge::with_opts(opts));
    gauge.set(1.0);
    gauge
}
