//! The exposition is well formed and complete before the first request, and its values are exact.

use std::collections::{BTreeMap, BTreeSet};

use quire_scheduler::{RequestId, SchedulerStats};

use super::*;

impl Metrics {
    /// For tests of others.
    pub(crate) fn for_tests() -> Self {
        let cache = CacheInfo {
            block_size: 16,
            blocks_per_sequence: 16,
            enable_prefix_caching: true,
            cache_dtype: "auto".into(),
            gpu_memory_utilization: 0.9,
            kv_cache_memory_bytes: None,
        };
        Self::new(&MetricsInfo {
            model_name: "a \"model\"\\".into(),
            max_model_len: 256,
            max_loras: None,
            cache,
        })
    }
}

/// What vLLM's own test of `/metrics` and its dashboards look for, as far as it has a meaning here.
const EXPECTED: &[&str] = &[
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:num_requests_waiting_by_reason",
    "vllm:kv_cache_usage_perc",
    "vllm:engine_sleep_state",
    "vllm:cache_config_info",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:num_preemptions_total",
    "vllm:prompt_tokens_total",
    "vllm:prompt_tokens_cached_total",
    "vllm:prompt_tokens_by_source_total",
    "vllm:prompt_tokens_cached_by_source_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:admission_rejections_total",
    "vllm:iteration_tokens_total",
    "vllm:time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:request_time_per_output_token_seconds",
    "vllm:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds",
    "vllm:request_inference_time_seconds",
    "vllm:request_prefill_time_seconds",
    "vllm:request_decode_time_seconds",
    "vllm:request_prompt_tokens",
    "vllm:request_generation_tokens",
    "vllm:request_max_num_generation_tokens",
    "vllm:request_params_max_tokens",
    "vllm:request_params_n",
    "vllm:request_num_preemptions",
    "vllm:request_prefill_kv_computed_tokens",
    "quire:preempted_tokens_total",
    "process_resident_memory_bytes",
    "process_virtual_memory_bytes",
    "process_cpu_seconds_total",
    "process_start_time_seconds",
    "process_open_fds",
    "process_max_fds",
];

type Labels = BTreeMap<String, String>;
/// Name, some labels, value.
type Expected = (&'static str, &'static [(&'static str, &'static str)], f64);

/// A document in Prometheus' text format 0.0.4, taken apart strictly.
#[derive(Default)]
struct Exposition {
    types: BTreeMap<String, String>,
    samples: BTreeMap<(String, Labels), f64>,
}

impl Exposition {
    fn parse(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line must end");
        let mut this = Self::default();
        let mut helped = BTreeSet::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a help text");
                assert!(helped.insert(name.to_owned()), "{name}: second HELP");
                assert!(!help.is_empty(), "{name}: empty HELP");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{name}: type {kind}");
                assert!(this.types.insert(name.into(), kind.into()).is_none(), "{name}: second TYPE");
            } else {
                this.sample(line);
            }
        }
        this.check_histograms();
        this
    }

    fn sample(&mut self, line: &str) {
        let name_end = line.find(['{', ' ']).expect("a value");
        let (name, mut rest) = line.split_at(name_end);
        let valid = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        assert!(name.chars().all(valid) && !name.starts_with(|c: char| c.is_ascii_digit()), "{line}");
        let mut labels = Labels::new();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = parse_labels(inside, &mut labels);
        }
        let value = rest.strip_prefix(' ').expect("one space before the value").parse().expect("a number");
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let histogram =
            family.filter(|family| self.types.get(*family).is_some_and(|kind| kind == "histogram"));
        let kind = self.types.get(histogram.unwrap_or(name)).unwrap_or_else(|| panic!("{name}: no TYPE"));
        assert!(kind != "histogram" || histogram.is_some(), "{line}: not a histogram's series");
        assert!(kind != "counter" || name.ends_with("_total"), "{name}: a counter ends in _total");
        let old = self.samples.insert((name.into(), labels), value);
        assert!(old.is_none(), "{line}: the same series twice");
    }

    /// Buckets grow, end in +Inf, and the last is the count.
    fn check_histograms(&self) {
        let mut series: BTreeMap<(&str, Labels), Vec<(f64, f64)>> = BTreeMap::new();
        for ((name, labels), &value) in &self.samples {
            if let Some(family) = name.strip_suffix("_bucket") {
                let mut labels = labels.clone();
                let le = labels.remove("le").expect("le").parse().expect("a number");
                series.entry((family, labels)).or_default().push((le, value));
            }
        }
        assert!(!series.is_empty());
        for ((family, labels), mut buckets) in series {
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{family}: not cumulative");
            let (le, last) = *buckets.last().unwrap();
            assert!(le.is_infinite(), "{family}: no +Inf");
            assert_eq!(last, self.samples[&(format!("{family}_count"), labels.clone())], "{family}");
            assert!(self.samples.contains_key(&(format!("{family}_sum"), labels)), "{family}: no sum");
        }
    }

    /// The one series with this name and (at least) these labels.
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let matches = |have: &Labels| labels.iter().all(|(k, v)| have.get(*k).is_some_and(|have| have == v));
        let mut found = self.samples.iter().filter(|((n, have), _)| n == name && matches(have));
        let value = *found.next().unwrap_or_else(|| panic!("no series {name} {labels:?}")).1;
        assert!(found.next().is_none(), "{name} {labels:?} is more than one series");
        value
    }

    fn buckets(&self, family: &str) -> Vec<f64> {
        let name = format!("{family}_bucket");
        let les = self.samples.keys().filter(|(n, _)| *n == name).map(|(_, labels)| &labels["le"]);
        let mut buckets: Vec<f64> = les.map(|le| le.parse().unwrap()).collect();
        buckets.sort_by(f64::total_cmp);
        buckets
    }
}

/// Reads `name="value",...}` and gives what follows.
fn parse_labels<'a>(mut text: &'a str, labels: &mut Labels) -> &'a str {
    loop {
        let (name, rest) = text.split_once("=\"").expect("a label");
        let mut value = String::new();
        let mut chars = rest.char_indices();
        let end = loop {
            match chars.next().expect("a closing quote") {
                (at, '"') => break at + 1,
                (_, '\\') => match chars.next().expect("something after the backslash").1 {
                    'n' => value.push('\n'),
                    c @ ('"' | '\\') => value.push(c),
                    other => panic!("\\{other} is not an escape"),
                },
                (_, c) => value.push(c),
            }
        };
        assert!(labels.insert(name.into(), value).is_none(), "label {name} twice");
        match rest[end..].split_at(1) {
            (",", after) => text = after,
            ("}", after) => return after,
            (other, _) => panic!("{other:?} after a label"),
        }
    }
}

/// An engine of 100 blocks that has done nothing.
fn idle() -> EngineStats {
    let initial = SchedulerStats { num_blocks_total: 100, num_blocks_free: 100, ..Default::default() };
    EngineStats::new(&initial)
}

fn scrape(metrics: &Metrics, stats: &EngineStats) -> Exposition {
    Exposition::parse(&metrics.render(stats))
}

#[test]
fn every_series_is_there_before_the_first_request() {
    let metrics = Metrics::for_tests();
    let at_start = scrape(&metrics, &idle());
    let families: BTreeSet<_> = at_start.types.keys().map(String::as_str).collect();
    assert_eq!(families, EXPECTED.iter().copied().collect());
    for ((name, labels), &value) in &at_start.samples {
        let ours = name.starts_with("vllm:") || name.starts_with("quire:");
        if ours && !name.ends_with("cache_config_info") {
            assert_eq!(labels["model_name"], "a \"model\"\\", "{name}");
            let at_the_door = name == "vllm:admission_rejections_total";
            assert_eq!(labels.get("engine").map(String::as_str), (!at_the_door).then_some("0"), "{name}");
            let awake = labels.get("sleep_state").is_some_and(|state| state == "awake");
            assert_eq!(value, f64::from(u8::from(awake)), "{name} {labels:?}");
        }
    }
    assert!(at_start.value("process_resident_memory_bytes", &[]) > 1e6);
    assert!(at_start.value("process_open_fds", &[]) >= 3.0);
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let age = now - at_start.value("process_start_time_seconds", &[]);
    assert!((-1.0..3600.0).contains(&age), "started {age} s ago");
}

#[test]
fn cache_config_is_labels() {
    let metrics = Metrics::for_tests();
    let stats = idle();
    scrape(&metrics, &stats);
    let labels = [
        ("block_size", "16"),
        ("num_gpu_blocks", "100"),
        ("enable_prefix_caching", "True"),
        ("cache_dtype", "auto"),
        ("gpu_memory_utilization", "0.9"),
        ("kv_cache_memory_bytes", "None"),
        ("kv_cache_size_tokens", "1600"),
        ("kv_cache_max_concurrency", "6.25"),
    ];
    assert_eq!(scrape(&metrics, &stats).value("vllm:cache_config_info", &labels), 1.0);
}

#[test]
fn buckets_are_those_of_vllm_and_finer_below_10_ms() {
    let metrics = Metrics::for_tests();
    let at_start = scrape(&metrics, &idle());
    let tokens = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, f64::INFINITY];
    assert_eq!(at_start.buckets("vllm:request_prompt_tokens"), tokens);
    let gaps = at_start.buckets("vllm:inter_token_latency_seconds");
    assert_eq!(gaps[..6], [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025]);
    assert_eq!(gaps.len(), 4 + 19 + 1);
    assert_eq!(at_start.buckets("vllm:time_to_first_token_seconds").len(), 22 + 1);
    assert_eq!(at_start.buckets("vllm:e2e_request_latency_seconds").len(), 21 + 1);
}

#[test]
fn values_after_a_scripted_sequence_are_exact() {
    let metrics = Metrics::for_tests();
    let stats = EngineStats::new(&SchedulerStats {
        num_running: 3,
        num_waiting_capacity: 2,
        num_waiting_deferred: 1,
        num_blocks_total: 100,
        num_blocks_free: 25,
        prefix_cache_queries_total: 60,
        prefix_cache_hits_total: 16,
        preemptions_total: 1,
        ..SchedulerStats::default()
    });
    metrics.on_step(22, 2);
    metrics.on_prompt(30, 16);
    metrics.on_first_token(0.5);
    metrics.on_tokens(1, None);
    metrics.on_tokens(1, Some(0.002));
    metrics.on_tokens(3, Some(0.25));
    metrics.on_preemption(&Preemption { id: RequestId(1), num_computed_tokens: 33, times: 1 });
    let sequence = FinishedSequence {
        reason: FinishKind::Length,
        num_prompt_tokens: 30,
        num_cached_tokens: 16,
        num_output_tokens: 5,
        max_tokens: 5,
        index: 0,
        n: 2,
        num_preemptions: 1,
        scheduled_s: Some(0.125),
        first_token_s: Some(0.5),
        last_token_s: Some(0.75),
        finished_s: 1.0,
    };
    metrics.on_finish(&sequence);
    let queued = FinishedSequence {
        reason: FinishKind::Abort,
        num_output_tokens: 0,
        index: 1,
        scheduled_s: None,
        first_token_s: None,
        last_token_s: None,
        ..sequence
    };
    metrics.on_finish(&queued);
    metrics.on_rejection("max_num_queued_reqs");
    metrics.on_http("/v1/completions", "POST", 200, 0.25);
    metrics.on_http("/v1/completions", "POST", 503, 0.25);
    // Twice: copying the scheduler's totals must not add them up.
    scrape(&metrics, &stats);
    let now = scrape(&metrics, &stats);
    let exact: &[Expected] = &[
        ("vllm:num_requests_running", &[], 3.0),
        ("vllm:num_requests_waiting", &[], 3.0),
        ("vllm:num_requests_waiting_by_reason", &[("reason", "capacity")], 2.0),
        ("vllm:num_requests_waiting_by_reason", &[("reason", "deferred")], 1.0),
        ("vllm:kv_cache_usage_perc", &[], 0.75),
        ("vllm:prefix_cache_queries_total", &[], 60.0),
        ("vllm:prefix_cache_hits_total", &[], 16.0),
        ("vllm:num_preemptions_total", &[], 1.0),
        ("quire:preempted_tokens_total", &[], 33.0),
        ("vllm:prompt_tokens_total", &[], 30.0),
        ("vllm:prompt_tokens_cached_total", &[], 16.0),
        ("vllm:prompt_tokens_by_source_total", &[("source", "local_compute")], 14.0),
        ("vllm:prompt_tokens_by_source_total", &[("source", "local_cache_hit")], 16.0),
        ("vllm:prompt_tokens_cached_by_source_total", &[("source", "device")], 16.0),
        ("vllm:generation_tokens_total", &[], 5.0),
        ("vllm:iteration_tokens_total_sum", &[], 24.0),
        ("vllm:time_to_first_token_seconds_bucket", &[("le", "0.5")], 1.0),
        ("vllm:time_to_first_token_seconds_bucket", &[("le", "0.25")], 0.0),
        ("vllm:inter_token_latency_seconds_count", &[], 2.0),
        ("vllm:inter_token_latency_seconds_bucket", &[("le", "0.0025")], 1.0),
        ("vllm:request_success_total", &[("finished_reason", "length")], 1.0),
        ("vllm:request_success_total", &[("finished_reason", "abort")], 1.0),
        ("vllm:request_success_total", &[("finished_reason", "stop")], 0.0),
        ("vllm:request_prompt_tokens_sum", &[], 60.0),
        ("vllm:request_generation_tokens_sum", &[], 5.0),
        ("vllm:request_params_max_tokens_sum", &[], 10.0),
        ("vllm:request_params_n_count", &[], 1.0),
        ("vllm:request_params_n_sum", &[], 2.0),
        ("vllm:request_num_preemptions_sum", &[], 2.0),
        ("vllm:request_prefill_kv_computed_tokens_sum", &[], 14.0),
        ("vllm:e2e_request_latency_seconds_sum", &[], 2.0),
        ("vllm:request_queue_time_seconds_sum", &[], 0.125),
        ("vllm:request_prefill_time_seconds_sum", &[], 0.375),
        ("vllm:request_decode_time_seconds_sum", &[], 0.25),
        ("vllm:request_inference_time_seconds_sum", &[], 0.625),
        ("vllm:request_time_per_output_token_seconds_sum", &[], 0.0625),
        ("vllm:request_time_per_output_token_seconds_count", &[], 1.0),
        ("vllm:admission_rejections_total", &[("reason", "max_num_queued_reqs")], 1.0),
        ("http_requests_total", &[("handler", "/v1/completions"), ("status", "2xx")], 1.0),
        ("http_requests_total", &[("handler", "/v1/completions"), ("status", "5xx")], 1.0),
        ("http_request_duration_seconds_sum", &[("method", "POST")], 0.5),
    ];
    for &(name, labels, value) in exact {
        assert_eq!(now.value(name, labels), value, "{name} {labels:?}");
    }
}
