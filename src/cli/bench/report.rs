//! What the measured requests come to: the figures, the table, and vLLM's JSON.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::measure::Outcome;
use super::stats::{Summary, percentage_word};

/// The peak of tokens is that of slices so long.
const SLICE: Duration = Duration::from_secs(1);

/// A kind of time that is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub(crate) enum Metric {
    /// Time to the first token.
    Ttft,
    /// Time per output token after the first.
    Tpot,
    /// Time between two chunks.
    Itl,
    /// Time to the last token.
    E2el,
}

impl Metric {
    /// The name in flags and JSON keys.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ttft => "ttft",
            Self::Tpot => "tpot",
            Self::Itl => "itl",
            Self::E2el => "e2el",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Ttft => "Time to First Token",
            Self::Tpot => "Time per Output Token (excl. 1st token)",
            Self::Itl => "Inter-token Latency",
            Self::E2el => "End-to-end Latency",
        }
    }

    /// Milliseconds of one request; none where it has none (a single token has no time between tokens).
    fn values_ms(self, outcome: &Outcome) -> Vec<f64> {
        match self {
            Self::Ttft => vec![millis(outcome.ttft)],
            Self::Tpot => tpot_ms(outcome).into_iter().collect(),
            Self::Itl => outcome.itls.iter().copied().map(millis).collect(),
            Self::E2el => vec![millis(outcome.latency)],
        }
    }
}

/// An upper limit for one kind of time; a request is good if it keeps all of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Goal {
    /// Which time.
    pub metric: Metric,
    /// At most so many milliseconds.
    pub limit_ms: f64,
}

/// What the report shall contain.
#[derive(Debug, Clone)]
pub(crate) struct ReportOptions {
    /// Kinds of time, in this order.
    pub metrics: Vec<Metric>,
    /// Percentages, 0..=100.
    pub percentages: Vec<f64>,
    /// May be empty.
    pub goals: Vec<Goal>,
}

/// The figures of a run.
#[derive(Debug)]
pub(crate) struct Report {
    duration: Duration,
    completed: usize,
    failed: usize,
    total_input_tokens: u64,
    total_output_tokens: u64,
    /// Requests that keep all goals; `None` without goals.
    good: Option<usize>,
    max_output_tokens_per_s: f64,
    max_concurrent_requests: usize,
    times: Vec<(Metric, Summary)>,
}

impl Report {
    /// Of all requests that ended within `duration`.
    pub(crate) fn new(outcomes: &[Outcome], duration: Duration, options: &ReportOptions) -> Self {
        let completed: Vec<_> = outcomes.iter().filter(|outcome| outcome.error.is_none()).collect();
        let sum =
            |tokens: fn(&Outcome) -> u32| completed.iter().map(|outcome| u64::from(tokens(outcome))).sum();
        let times = options.metrics.iter().map(|&metric| {
            let values = completed.iter().flat_map(|outcome| metric.values_ms(outcome)).collect();
            (metric, Summary::of(values, &options.percentages))
        });
        let is_good = |outcome: &&&Outcome| {
            options
                .goals
                .iter()
                .all(|goal| goal.metric.values_ms(outcome).iter().all(|&value_ms| value_ms <= goal.limit_ms))
        };
        Self {
            duration,
            completed: completed.len(),
            failed: outcomes.len() - completed.len(),
            total_input_tokens: sum(|outcome| outcome.prompt_tokens),
            total_output_tokens: sum(|outcome| outcome.output_tokens),
            good: (!options.goals.is_empty()).then(|| completed.iter().filter(is_good).count()),
            max_output_tokens_per_s: max_output_tokens_per_s(&completed),
            max_concurrent_requests: max_concurrent_requests(&completed),
            times: times.collect(),
        }
    }

    /// Requests that were answered.
    pub(crate) fn completed(&self) -> usize {
        self.completed
    }

    /// The table for people; the rows are those of `vllm bench serve`, which scripts look for.
    /// `max_concurrency` and `request_rate` are shown if they were limited.
    pub(crate) fn table(&self, max_concurrency: Option<u32>, request_rate: f64) -> String {
        let mut table = format!("{:=^50}\n", " Serving Benchmark Result ");
        row(&mut table, "Successful requests:", self.completed);
        row(&mut table, "Failed requests:", self.failed);
        if let Some(limit) = max_concurrency {
            row(&mut table, "Maximum request concurrency:", limit);
        }
        if request_rate.is_finite() {
            row(&mut table, "Request rate configured (RPS):", two_digits(request_rate));
        }
        row(&mut table, "Benchmark duration (s):", two_digits(self.duration.as_secs_f64()));
        row(&mut table, "Total input tokens:", self.total_input_tokens);
        row(&mut table, "Total generated tokens:", self.total_output_tokens);
        row(&mut table, "Request throughput (req/s):", two_digits(self.per_s(self.completed as u64)));
        if let Some(good) = self.good {
            row(&mut table, "Request goodput (req/s):", two_digits(self.per_s(good as u64)));
        }
        let output_per_s = self.per_s(self.total_output_tokens);
        row(&mut table, "Output token throughput (tok/s):", two_digits(output_per_s));
        row(&mut table, "Peak output token throughput (tok/s):", two_digits(self.max_output_tokens_per_s));
        row(&mut table, "Peak concurrent requests:", self.max_concurrent_requests);
        row(&mut table, "Total token throughput (tok/s):", two_digits(self.per_s(self.total_tokens())));
        for (metric, summary) in &self.times {
            let name = metric.as_str().to_uppercase();
            writeln!(table, "{:-^50}", metric.title()).expect("strings can be written to");
            row(&mut table, &format!("Mean {name} (ms):"), two_digits(summary.mean));
            row(&mut table, &format!("Median {name} (ms):"), two_digits(summary.median));
            for &(q, value) in &summary.percentiles {
                row(&mut table, &format!("P{} {name} (ms):", percentage_word(q)), two_digits(value));
            }
        }
        table.push_str(&"=".repeat(50));
        table
    }

    /// The figures under vLLM's keys.
    pub(crate) fn to_json(&self) -> Map<String, Value> {
        let mut json = object(json!({
            "duration": self.duration.as_secs_f64(),
            "completed": self.completed,
            "failed": self.failed,
            "total_input_tokens": self.total_input_tokens,
            "total_output_tokens": self.total_output_tokens,
            "request_throughput": self.per_s(self.completed as u64),
            "request_goodput": self.good.map(|good| self.per_s(good as u64)),
            "output_throughput": self.per_s(self.total_output_tokens),
            "total_token_throughput": self.per_s(self.total_tokens()),
            "max_output_tokens_per_s": self.max_output_tokens_per_s,
            "max_concurrent_requests": self.max_concurrent_requests,
        }));
        for (metric, summary) in &self.times {
            let name = metric.as_str();
            json.insert(format!("mean_{name}_ms"), summary.mean.into());
            json.insert(format!("median_{name}_ms"), summary.median.into());
            json.insert(format!("std_{name}_ms"), summary.std.into());
            for &(q, value) in &summary.percentiles {
                json.insert(format!("p{}_{name}_ms", percentage_word(q)), value.into());
            }
        }
        json
    }

    fn total_tokens(&self) -> u64 {
        self.total_input_tokens + self.total_output_tokens
    }

    fn per_s(&self, count: u64) -> f64 {
        if self.duration.is_zero() { 0.0 } else { count as f64 / self.duration.as_secs_f64() }
    }
}

/// What `--save-detailed` adds: one entry a request, in the order of sending, times in seconds.
pub(crate) fn details(outcomes: &[Outcome]) -> Map<String, Value> {
    let list = |value: fn(&Outcome) -> Value| outcomes.iter().map(value).collect::<Vec<_>>();
    object(json!({
        "input_lens": list(|outcome| outcome.prompt_tokens.into()),
        "output_lens": list(|outcome| outcome.output_tokens.into()),
        "ttfts": list(|outcome| outcome.ttft.as_secs_f64().into()),
        "itls": list(|outcome| outcome.itls.iter().map(Duration::as_secs_f64).collect()),
        "latencies": list(|outcome| outcome.latency.as_secs_f64().into()),
        "start_times": list(|outcome| outcome.start.as_secs_f64().into()),
        "generated_texts": list(|outcome| outcome.text.as_str().into()),
        "errors": list(|outcome| outcome.error.as_deref().unwrap_or_default().into()),
    }))
}

/// Tokens of the fullest second since the first request. Where a chunk has several tokens, each chunk of
/// a request is taken to have as many as the others.
fn max_output_tokens_per_s(completed: &[&Outcome]) -> f64 {
    let first = completed.iter().map(|outcome| outcome.start).min().unwrap_or_default();
    let mut slices: Vec<f64> = Vec::new();
    for outcome in completed {
        let tokens = f64::from(outcome.output_tokens) / (outcome.itls.len() + 1) as f64;
        let mut at = outcome.start - first + outcome.ttft;
        for gap in [Duration::ZERO].iter().chain(&outcome.itls) {
            at += *gap;
            let slice = at.div_duration_f64(SLICE) as usize;
            slices.resize(slices.len().max(slice + 1), 0.0);
            slices[slice] += tokens;
        }
    }
    slices.into_iter().fold(0.0, f64::max).round()
}

/// The most requests that were open at one moment.
fn max_concurrent_requests(completed: &[&Outcome]) -> usize {
    let starts = completed.iter().map(|outcome| (outcome.start, 1_i64));
    let ends = completed.iter().map(|outcome| (outcome.start + outcome.latency, -1));
    let mut changes: Vec<_> = starts.chain(ends).collect();
    // Of one moment, ends come first.
    changes.sort_unstable();
    let mut open = 0;
    let counts = changes.into_iter().map(|(_, change)| {
        open += change;
        open
    });
    counts.max().unwrap_or(0) as usize
}

fn tpot_ms(outcome: &Outcome) -> Option<f64> {
    let gaps = outcome.output_tokens.checked_sub(1).filter(|&gaps| gaps > 0)?;
    Some(millis(outcome.latency - outcome.ttft) / f64::from(gaps))
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn two_digits(value: f64) -> String {
    format!("{value:.2}")
}

fn row(table: &mut String, name: &str, value: impl std::fmt::Display) {
    writeln!(table, "{name:<40} {value:<10}").expect("strings can be written to");
}

fn object(json: Value) -> Map<String, Value> {
    match json {
        Value::Object(map) => map,
        other => unreachable!("{other} is not an object"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: [Metric; 4] = [Metric::Ttft, Metric::Tpot, Metric::Itl, Metric::E2el];

    fn outcome(start_ms: u64, ttft_ms: u64, itls_ms: &[u64], output_tokens: u32) -> Outcome {
        let itls: Vec<_> = itls_ms.iter().copied().map(Duration::from_millis).collect();
        let ttft = Duration::from_millis(ttft_ms);
        Outcome {
            start: Duration::from_millis(start_ms),
            ttft,
            latency: ttft + itls.iter().sum::<Duration>(),
            itls,
            prompt_tokens: 10,
            output_tokens,
            ..Outcome::default()
        }
    }

    fn outcomes() -> Vec<Outcome> {
        vec![
            outcome(0, 100, &[10, 30], 3),
            outcome(50, 200, &[50], 3),
            // Ends when the next one starts.
            outcome(1300, 400, &[], 1),
            outcome(1700, 300, &[20], 2),
            Outcome { error: Some("no".into()), prompt_tokens: 10, ..Outcome::default() },
        ]
    }

    fn report() -> Report {
        let goal = |metric, limit_ms| Goal { metric, limit_ms };
        let options = ReportOptions {
            metrics: METRICS.to_vec(),
            percentages: vec![50.0, 99.9],
            goals: vec![goal(Metric::Ttft, 300.0), goal(Metric::Tpot, 20.0)],
        };
        Report::new(&outcomes(), Duration::from_secs(2), &options)
    }

    #[test]
    fn figures_are_those_of_the_outcomes() {
        let json = report().to_json();
        let number = |key: &str| json[key].as_f64().unwrap_or_else(|| panic!("{key}"));
        assert_eq!((number("completed"), number("failed")), (4.0, 1.0));
        assert_eq!((number("total_input_tokens"), number("total_output_tokens")), (40.0, 9.0));
        assert_eq!((number("request_throughput"), number("output_throughput")), (2.0, 4.5));
        assert_eq!(number("total_token_throughput"), 24.5);
        // 20, 25, none, 20 ms for a token; 100, 200, 400, 300 ms to the first: two are good.
        assert_eq!(number("request_goodput"), 1.0);
        assert!((number("mean_tpot_ms") - 65.0 / 3.0).abs() < 1e-9);
        assert_eq!(
            (number("mean_ttft_ms"), number("p50_ttft_ms"), number("median_itl_ms")),
            (250.0, 250.0, 25.0)
        );
        assert_eq!(number("mean_e2el_ms"), 277.5);
        // Six tokens in the first second; two requests at a time.
        assert_eq!((number("max_output_tokens_per_s"), number("max_concurrent_requests")), (6.0, 2.0));
    }

    #[test]
    fn keys_are_those_of_vllm() {
        let json = report().to_json();
        let plain = "duration completed failed total_input_tokens total_output_tokens request_throughput \
                     request_goodput output_throughput total_token_throughput max_output_tokens_per_s \
                     max_concurrent_requests";
        let mut keys: Vec<String> = plain.split_whitespace().map(String::from).collect();
        for metric in ["ttft", "tpot", "itl", "e2el"] {
            keys.extend(["mean", "median", "std", "p50", "p99.9"].map(|word| format!("{word}_{metric}_ms")));
        }
        assert_eq!(json.keys().cloned().collect::<Vec<_>>(), keys);
        let details = details(&outcomes());
        let keys = [
            "input_lens",
            "output_lens",
            "ttfts",
            "itls",
            "latencies",
            "start_times",
            "generated_texts",
            "errors",
        ];
        assert_eq!(details.keys().collect::<Vec<_>>(), keys);
        assert!(details.values().all(|list| list.as_array().unwrap().len() == 5));
        assert_eq!((&details["itls"][0][1], &details["errors"][4]), (&json!(0.03), &json!("no")));
    }

    #[test]
    fn the_table_has_the_rows_that_scripts_look_for() {
        let table = report().table(Some(7), 2.5);
        for line in [
            "============ Serving Benchmark Result ============",
            "Successful requests:                     4         ",
            "Maximum request concurrency:             7         ",
            "Request rate configured (RPS):           2.50      ",
            "---------------Time to First Token----------------",
            "P99.9 TTFT (ms):                         399.70    ",
        ] {
            assert!(table.lines().any(|got| got == line), "{line:?} is not in\n{table}");
        }
    }

    #[test]
    fn nothing_measured_is_all_zeros() {
        let options = ReportOptions { metrics: METRICS.to_vec(), percentages: vec![99.0], goals: Vec::new() };
        let json = Report::new(&[], Duration::ZERO, &options).to_json();
        assert_eq!(json["request_goodput"], Value::Null);
        assert!(
            json.iter().all(|(key, value)| key == "request_goodput" || value.as_f64() == Some(0.0)),
            "{json:?}"
        );
    }
}
