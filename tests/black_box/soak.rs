//! Many clients at once, most of them well-behaved: nothing is lost, nothing is left behind, and memory
//! does not grow.
//!
//! A small soak is always run. `QUIRE_SOAK=full` makes it 256 streams and 5,000 requests;
//! `QUIRE_SOAK_SEED` repeats a particular one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quire_proto::vllm;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::server::Server;
use crate::{grpc, http};

/// Growth of resident memory from the second quarter of the requests to the last that counts as flat:
/// this fraction, and a fixed part for what the allocator has not given back.
const GROWTH: f64 = 0.05;
const SLACK_BYTES: u64 = 8 << 20;

/// What a client does with its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manners {
    /// Reads to the end.
    Stays,
    /// Leaves this soon after asking, mostly before the first token.
    LeavesSoon(Duration),
    /// Leaves after this many messages.
    LeavesAfter(usize),
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Stream,
    Whole,
    GrpcStream,
    GrpcWhole,
}

/// One request of the soak, drawn from the seed and its number alone.
#[derive(Debug)]
struct Plan {
    kind: Kind,
    manners: Manners,
    prompt: Vec<u32>,
    max_tokens: u32,
    ignore_eos: bool,
    n: u32,
}

impl Plan {
    fn draw(seed: u64, index: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(seed.wrapping_add(index as u64));
        let kind = [Kind::Stream, Kind::Stream, Kind::Whole, Kind::GrpcStream, Kind::GrpcWhole]
            [rng.random_range(0..5)];
        let manners = match rng.random_range(0..10) {
            0 => Manners::LeavesSoon(Duration::from_micros(rng.random_range(0..30_000))),
            1 | 2 => Manners::LeavesAfter(rng.random_range(0..20)),
            _ => Manners::Stays,
        };
        let len = if rng.random_bool(0.1) { rng.random_range(200..800) } else { rng.random_range(1..100) };
        Self {
            kind,
            manners,
            prompt: (0..len).map(|_| rng.random_range(0..2048)).collect(),
            max_tokens: rng.random_range(1..=80),
            ignore_eos: rng.random_bool(0.5),
            n: if matches!(kind, Kind::Stream) && rng.random_bool(0.1) { 3 } else { 1 },
        }
    }

    async fn run(&self, server: &Server) {
        let work = async {
            match self.kind {
                Kind::Stream => self.stream(server).await,
                Kind::Whole => self.whole(server).await,
                Kind::GrpcStream => self.grpc_stream(server).await,
                Kind::GrpcWhole => self.grpc_whole(server).await,
            }
        };
        match self.manners {
            // Dropping the work closes its connection.
            Manners::LeavesSoon(after) => drop(timeout(after, work).await),
            // Nothing to count in an answer of one piece: leave when half of it may be done.
            Manners::LeavesAfter(n) if matches!(self.kind, Kind::Whole | Kind::GrpcWhole) => {
                drop(timeout(Duration::from_millis(3 * n as u64), work).await);
            }
            _ => work.await,
        }
    }

    fn leaves_after(&self, messages: usize) -> bool {
        self.manners == Manners::LeavesAfter(messages)
    }

    fn body(&self, stream: bool) -> Value {
        let mut body = json!({
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "ignore_eos": self.ignore_eos,
            "n": self.n,
            "return_token_ids": true,
        });
        if stream {
            body["stream"] = true.into();
            body["stream_options"] = json!({"include_usage": true});
        }
        body
    }

    async fn stream(&self, server: &Server) {
        let mut open = http::post_open(server.http, "/v1/completions", &self.body(true)).await;
        assert_eq!(open.status, 200);
        let mut ends = vec![0; self.n as usize];
        let (mut tokens, mut messages, mut usage) = (0, 0, None);
        loop {
            if self.leaves_after(messages) {
                return;
            }
            let Some(event) = open.event().await else { break };
            messages += 1;
            assert!(event.get("error").is_none(), "{event}");
            assert!(usage.is_none(), "something comes after the usage chunk: {event}");
            for choice in event["choices"].as_array().expect("choices") {
                let index = choice["index"].as_u64().expect("an index") as usize;
                assert_eq!(ends[index], 0, "choice {index} goes on after its end");
                tokens += choice["token_ids"].as_array().map_or(0, Vec::len);
                if !choice["finish_reason"].is_null() {
                    self.check_reason(choice["finish_reason"].as_str().expect("a word"));
                    ends[index] += 1;
                }
            }
            if event["choices"] == json!([]) {
                usage = event["usage"]["completion_tokens"].as_u64();
            }
        }
        assert_eq!(open.frame().await, None, "[DONE] is the last event");
        assert!(ends.iter().all(|&n| n == 1), "ends seen: {ends:?}");
        assert_eq!(usage, Some(tokens as u64), "usage counts the tokens that came");
    }

    async fn whole(&self, server: &Server) {
        let body = http::post(server.http, "/v1/completions", &self.body(false)).await.ok();
        let choices = body["choices"].as_array().expect("choices");
        assert_eq!(choices.len(), self.n as usize);
        let tokens: usize = choices.iter().map(|c| c["token_ids"].as_array().map_or(0, Vec::len)).sum();
        self.check_reason(choices[0]["finish_reason"].as_str().expect("an end"));
        assert_eq!(body["usage"]["completion_tokens"], tokens);
        assert_eq!(body["usage"]["prompt_tokens"], self.prompt.len());
    }

    async fn grpc_stream(&self, server: &Server) {
        let mut stream = grpc::open_stream(server.grpc, self.grpc()).await.expect("no error");
        let (mut tokens, mut messages, mut end) = (0, 0, None);
        loop {
            if self.leaves_after(messages) {
                return;
            }
            let Some(message) = grpc::next(&mut stream).await.expect("no error in the stream") else { break };
            messages += 1;
            let Some(output) = message.outputs else { continue };
            assert!(end.is_none(), "goes on after its end");
            tokens += output.token_ids.len();
            end = output.finish_info;
        }
        self.check_finish(end, tokens);
    }

    async fn grpc_whole(&self, server: &Server) {
        let output = grpc::generate(server.grpc, self.grpc()).await.outputs.expect("an output");
        self.check_finish(output.finish_info, output.token_ids.len());
    }

    fn grpc(&self) -> vllm::GenerateRequest {
        vllm::GenerateRequest {
            prompt: Some(grpc::tokens(&self.prompt)),
            temperature: Some(1.0),
            stopping: Some(vllm::StoppingCriteria {
                max_new_tokens: self.max_tokens,
                ignore_eos: self.ignore_eos,
                ..Default::default()
            }),
            response: Some(vllm::ResponseOptions { output_token_ids: true, ..Default::default() }),
            ..Default::default()
        }
    }

    fn check_finish(&self, finish: Option<vllm::FinishInfo>, tokens: usize) {
        let finish = finish.expect("exactly one end");
        self.check_reason(grpc::finish_reason(&finish));
        assert_eq!(finish.num_output_tokens as usize, tokens);
    }

    /// An end that was asked for.
    fn check_reason(&self, reason: &str) {
        let stop_is_possible = !self.ignore_eos;
        assert!(reason == "length" || (stop_is_possible && reason == "stop"), "ended with {reason:?}");
    }
}

/// Resident memory when this many requests had been served.
type Samples = Vec<(usize, u64)>;

async fn soak(num_streams: usize, num_requests: usize, flags: &[&str]) {
    let seed = std::env::var("QUIRE_SOAK_SEED").map_or(20_261_122, |seed| seed.parse().expect("a number"));
    eprintln!("soak: {num_streams} streams, {num_requests} requests, QUIRE_SOAK_SEED={seed}");
    let server = Arc::new(Server::start(flags));
    let (next, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let samples = Arc::new(Mutex::new(Samples::new()));
    let start = Instant::now();
    let worker = |_| {
        let (server, next, done, samples) = (server.clone(), next.clone(), done.clone(), samples.clone());
        tokio::spawn(async move {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= num_requests {
                    return;
                }
                Plan::draw(seed, index).run(&server).await;
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                if done.is_multiple_of(num_requests / 100) {
                    samples.lock().expect("no panic").push((done, server.resident_bytes()));
                }
            }
        })
    };
    let workers: Vec<_> = (0..num_streams).map(worker).collect();
    for worker in workers {
        worker.await.unwrap_or_else(|error| panic!("QUIRE_SOAK_SEED={seed}: {error}"));
    }
    eprintln!("soak: {num_requests} requests in {:.1} s", start.elapsed().as_secs_f64());
    server.until_idle().await;
    check_memory(&samples.lock().expect("no panic"), num_requests);
    let metrics = server.metrics().await;
    for reason in ["stop", "length", "abort"] {
        let count = metrics.value_where("vllm:request_success_total", &[("finished_reason", reason)]);
        eprintln!("soak: {count} sequences ended with {reason}");
        assert!(count > 0.0, "a soak without {reason} tests too little");
    }
    let failed = metrics
        .samples
        .iter()
        .filter(|s| s.labels.get("finished_reason").is_some_and(|reason| reason == "error"))
        .map(|s| s.value)
        .sum::<f64>();
    assert_eq!(failed, 0.0, "requests failed");
}

fn check_memory(samples: &[(usize, u64)], num_requests: usize) {
    let peak = |from: usize, to: usize| {
        let range = samples.iter().filter(|(done, _)| (from..=to).contains(done));
        range.map(|&(_, bytes)| bytes).max().expect("samples were taken")
    };
    let (early, late) = (peak(num_requests / 4, num_requests / 2), peak(num_requests * 3 / 4, num_requests));
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    eprintln!("soak: resident {:.1} MiB in the second quarter, {:.1} MiB in the last", mib(early), mib(late));
    let limit = (early as f64 * (1.0 + GROWTH)) as u64 + SLACK_BYTES;
    assert!(late <= limit, "memory grows: {:.1} MiB, then {:.1} MiB", mib(early), mib(late));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_6_every_request_ends_exactly_once() {
    let full = std::env::var("QUIRE_SOAK").is_ok_and(|size| size == "full");
    if full {
        soak(256, 5000, &[]).await;
    } else {
        // Pages of the KV cache count as resident from their first use. This one is used up early, so that
        // growth later on is growth.
        soak(64, 600, &["--kv-cache-memory-bytes", "40000000"]).await;
    }
}

/// The same with a KV cache for about four of them at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_6_holds_under_preemption() {
    soak(64, 300, crate::server::TINY_KV).await;
}

#[test]
fn growing_memory_is_found() {
    let flat: Samples = (1..=100).map(|i| (i, 100 << 20)).collect();
    check_memory(&flat, 100);
    let growing: Samples = (1..=100).map(|i| (i as usize, (100 + i) << 20)).collect();
    std::panic::catch_unwind(|| check_memory(&growing, 100)).expect_err("growth goes unnoticed");
}
