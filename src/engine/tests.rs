//! The engine as a whole, over the simulated runner: threads, channels, mailboxes, ends.

mod pause;

use std::convert::Infallible;
use std::panic::panic_any;
use std::sync::Arc;
use std::time::Duration;

use quire_scheduler::sim::{SimFailures, SimModel, SimRunner, SimRunnerConfig};
use quire_scheduler::{
    ModelRunner, ModelRunnerOutput, RunnerError, SamplingParams, Scheduler, SchedulerConfig, SchedulerOutput,
    SchedulingPolicy, StepTicket,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{
    Engine, EngineHandle, EngineOptions, FinishKind, GenerateRequest, StopCause, SubmitError, TextOptions,
};
use crate::metrics::Metrics;
use crate::text::Tokenizer;

const VOCAB_SIZE: u32 = 2048;

fn tokenizer() -> Tokenizer {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/pebble/model/tokenizer.json");
    Tokenizer::from_bytes(&std::fs::read(file).unwrap(), None).unwrap()
}

fn scheduler_config() -> SchedulerConfig {
    SchedulerConfig {
        max_num_seqs: 32,
        max_num_batched_tokens: 64,
        max_model_len: 512,
        block_size: 4,
        num_blocks: 400,
        kv_groups: vec![quire_scheduler::kv::KvGroup::FULL],
        enable_prefix_caching: true,
        enable_kv_events: false,
        policy: SchedulingPolicy::Fcfs,
        long_prefill_token_threshold: 0,
        priority_ageing_us: 0,
        whole_prompts: false,
        max_loras: 4,
        adapter_patience_us: 0,
    }
}

fn sim_runner(failures: SimFailures, max_in_flight: usize) -> SimRunner {
    SimRunner::new(SimRunnerConfig {
        model: SimModel { seed: 7, vocab: 3..VOCAB_SIZE },
        max_num_seqs: 32,
        max_in_flight,
        cost: None,
        check: None,
        failures,
    })
}

fn start(runner: impl ModelRunner + 'static, max_num_queued_reqs: usize) -> Engine {
    let options = EngineOptions {
        tokenizer: tokenizer(),
        metrics: Arc::new(Metrics::for_tests()),
        max_num_queued_reqs,
        seed: 0,
        pools: false,
        log_requests: false,
        kv_events: None,
    };
    let build = move || {
        Ok::<_, Infallible>((
            Box::new(runner) as Box<dyn ModelRunner>,
            Scheduler::new(scheduler_config()).unwrap(),
        ))
    };
    match Engine::start(options, build) {
        Ok(engine) => engine,
        Err(never) => match never {},
    }
}

fn request(prompt: &[u32], max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        external_id: "test".into(),
        prompt_token_ids: prompt.into(),
        sampling: SamplingParams { max_tokens, ..SamplingParams::default() },
        seeded: true,
        n: 1,
        priority: 0,
        cache_salt: None,
        bypass_prefix_cache: false,
        adapter: None,
        text: TextOptions::default(),
    }
}

/// Text, tokens and end of each sequence; panics if one ends twice or says anything after its end.
async fn read(handle: &EngineHandle, request: GenerateRequest) -> Vec<(String, Vec<u32>, super::Finish)> {
    let n = request.n as usize;
    let mut stream = handle.submit(request).unwrap();
    let mut sequences = vec![(String::new(), Vec::new(), None); n];
    while let Some(delta) = stream.next().await {
        let (text, tokens, finish) = &mut sequences[delta.index as usize];
        assert!(finish.is_none(), "news of a sequence after its end");
        text.push_str(&delta.text);
        tokens.extend_from_slice(&delta.token_ids);
        *finish = delta.finish.take();
    }
    sequences.into_iter().map(|(text, tokens, finish)| (text, tokens, finish.expect("an end"))).collect()
}

async fn settled(handle: &EngineHandle) {
    for _ in 0..500 {
        let stats = handle.stats().scheduler();
        let empty = stats.num_running + stats.num_waiting_capacity + stats.num_waiting_deferred == 0;
        if handle.num_in_flight() == 0 && empty && stats.num_blocks_free == stats.num_blocks_total {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the engine did not become empty: {:?}", handle.stats().scheduler());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_6_every_request_ends_once_and_returns_its_blocks() {
    let seed: u64 = std::env::var("QUIRE_TEST_SEED").map_or(20, |s| s.parse().unwrap());
    println!("QUIRE_TEST_SEED={seed}");
    for max_in_flight in [1, 2] {
        let engine = start(sim_runner(SimFailures { submit: 3, collect: 3, row: 3 }, max_in_flight), 1000);
        let mut tasks = Vec::new();
        for i in 0..400 {
            let mut rng = SmallRng::seed_from_u64(seed ^ (i << 8));
            let handle = engine.handle().clone();
            tasks.push(tokio::spawn(async move {
                let prompt: Vec<u32> =
                    (0..rng.random_range(1..60)).map(|_| rng.random_range(3..20)).collect();
                let mut request = request(&prompt, rng.random_range(1..80));
                request.n = rng.random_range(1..3);
                if rng.random_bool(0.7) {
                    for (_, tokens, finish) in read(&handle, request).await {
                        assert_eq!(tokens.len() as u32, finish.num_output_tokens);
                    }
                } else {
                    let mut stream = handle.submit(request).unwrap();
                    for _ in 0..rng.random_range(0..5) {
                        if stream.next().await.is_none() {
                            break;
                        }
                    }
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        settled(engine.handle()).await;
        tokio::task::spawn_blocking(|| engine.join()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_is_the_whole_decode_and_stop_strings_cut_it() {
    let engine = start(sim_runner(SimFailures::default(), 1), 10);
    let (text, tokens, finish) = read(engine.handle(), request(&[5, 6, 7], 60)).await.remove(0);
    assert_eq!((tokens.len(), finish.kind), (60, FinishKind::Length));
    assert_eq!(text, tokenizer().decode(&tokens, true));

    let middle = text.char_indices().nth(text.chars().count() / 2).unwrap().0;
    let stop: String = text[middle..].chars().take(3).collect();
    let cut = text.find(&stop).unwrap();
    for include in [false, true] {
        let mut request = request(&[5, 6, 7], 60);
        request.text.stop = vec!["\u{1}never".into(), stop.clone()];
        request.text.include_stop_str_in_output = include;
        let (stopped, tokens, finish) = read(engine.handle(), request).await.remove(0);
        assert_eq!(stopped, text[..cut + if include { stop.len() } else { 0 }]);
        assert_eq!(finish.stop, Some(StopCause::Text(stop.as_str().into())));
        assert_eq!(finish.num_output_tokens as usize, tokens.len());
        assert!(tokens.len() < 60);
    }
    settled(engine.handle()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_7_admission_is_bounded_and_says_so_at_once() {
    let engine = start(sim_runner(SimFailures::default(), 1), 3);
    let mut two = request(&[4, 5], 500);
    two.n = 2;
    let held = engine.handle().submit(two).unwrap();
    let mut too_many = request(&[4], 1);
    too_many.n = 2;
    match engine.handle().submit(too_many) {
        Err(SubmitError::Overloaded { queued, limit: 3 }) => assert!(queued <= 2),
        // The first two may have ended by now: then nothing was overloaded.
        Ok(_) => (),
        Err(other) => panic!("{other}"),
    }
    drop(held);
    settled(engine.handle()).await;
    engine.handle().start_draining();
    assert_eq!(engine.handle().submit(request(&[4], 1)).unwrap_err(), SubmitError::Draining);
}

/// A runner that panics on the steps it is told to.
struct Panicky(SimRunner, Vec<u64>);

impl ModelRunner for Panicky {
    fn max_in_flight(&self) -> usize {
        1
    }

    fn submit(&mut self, plan: &SchedulerOutput) -> Result<StepTicket, RunnerError> {
        self.0.submit(plan)
    }

    fn collect(&mut self, ticket: StepTicket) -> Result<&ModelRunnerOutput, RunnerError> {
        let step = ticket.0;
        let output = self.0.collect(ticket);
        if self.1.contains(&step) {
            panic_any("planted");
        }
        output
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_12_a_panicking_step_fails_its_requests_and_no_others() {
    let engine = start(Panicky(sim_runner(SimFailures::default(), 1), vec![3]), 10);
    let (_, tokens, finish) = read(engine.handle(), request(&[5, 6, 7], 10)).await.remove(0);
    assert_eq!((tokens.len(), finish.kind), (2, FinishKind::Error));
    assert!(finish.error.unwrap().to_string().contains("planted"));
    let (_, tokens, finish) = read(engine.handle(), request(&[5, 6, 7], 10)).await.remove(0);
    assert_eq!((tokens.len(), finish.kind), (10, FinishKind::Length));
    settled(engine.handle()).await;
}
