//! Pauses: what they do to requests before, in and after them, and that nobody is forgotten in one.

use tokio::time::{sleep, timeout};

use super::*;
use crate::engine::{OutputStream, PauseMode};

/// Long enough that nothing but a hang takes it.
const HANG: Duration = Duration::from_secs(60);

async fn rest(stream: &mut OutputStream) -> (Vec<u32>, FinishKind) {
    let (mut tokens, mut end) = (Vec::new(), None);
    while let Some(delta) = timeout(HANG, stream.next()).await.expect("the request hangs") {
        tokens.extend_from_slice(&delta.token_ids);
        end = delta.finish.take().map(|finish| finish.kind);
    }
    (tokens, end.expect("an end"))
}

/// Waits for the first token.
async fn begun(stream: &mut OutputStream) -> Vec<u32> {
    timeout(HANG, stream.next()).await.unwrap().expect("a token").token_ids.clone()
}

fn busy_engine() -> Engine {
    // A step takes a while, so that a request of 400 tokens is still running when the pause comes.
    let cost = quire_scheduler::sim::StepCost { step_us: 500.0, token_us: 0.0, sleep: true };
    let runner = SimRunner::new(SimRunnerConfig {
        model: SimModel { seed: 7, vocab: 3..VOCAB_SIZE },
        max_num_seqs: 32,
        max_in_flight: 2,
        cost: Some(cost),
        check: None,
        failures: SimFailures::default(),
    });
    start(runner, 100)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keep_freezes_requests_and_changes_no_token() {
    let engine = busy_engine();
    let handle = engine.handle();
    let mut whole = handle.submit(request(&[5, 6, 7], 400)).unwrap();
    let expected = rest(&mut whole).await;

    let mut frozen = handle.submit(request(&[5, 6, 7], 400)).unwrap();
    let mut tokens = begun(&mut frozen).await;
    assert!(!handle.is_paused());
    assert!(handle.pause(PauseMode::Keep).await && handle.is_paused());
    let steps = handle.stats().num_steps();
    let mut held = handle.submit(request(&[8], 3)).unwrap();
    sleep(Duration::from_millis(50)).await;
    assert_eq!(handle.stats().num_steps(), steps, "a step in a pause");
    assert_eq!(handle.stats().scheduler().num_waiting_deferred, 1);
    assert_eq!(handle.stats().stalled_for(), Duration::ZERO);
    assert!(!handle.reset_prefix_cache().await, "the frozen request holds blocks");
    handle.resume().await;
    assert!(!handle.is_paused());
    let (more, end) = rest(&mut frozen).await;
    tokens.extend(more);
    assert_eq!((tokens, end), expected);
    assert_eq!(rest(&mut held).await.1, FinishKind::Length);
    settled(handle).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wait_lets_requests_end_and_holds_those_that_come() {
    let engine = busy_engine();
    let handle = engine.handle();
    let mut running = handle.submit(request(&[5, 6, 7], 200)).unwrap();
    begun(&mut running).await;
    assert!(timeout(HANG, handle.pause(PauseMode::Wait)).await.unwrap());
    // No step is left: what there is now comes of what was computed.
    let mut held = handle.submit(request(&[8], 3)).unwrap();
    assert_eq!(rest(&mut running).await.1, FinishKind::Length);
    assert!(timeout(Duration::from_millis(50), held.next()).await.is_err());
    assert!(handle.reset_prefix_cache().await, "nothing holds blocks");
    handle.resume().await;
    assert_eq!(rest(&mut held).await.1, FinishKind::Length);
    settled(handle).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abort_ends_what_was_there_and_nothing_that_comes() {
    let engine = busy_engine();
    let handle = engine.handle();
    let mut running = handle.submit(request(&[5, 6, 7], 400)).unwrap();
    begun(&mut running).await;
    assert!(handle.pause(PauseMode::Abort).await);
    let mut held = handle.submit(request(&[8], 3)).unwrap();
    let mut unwanted = handle.submit(request(&[9], 3)).unwrap();
    assert_eq!(rest(&mut running).await.1, FinishKind::Abort);
    // Aborting by name reaches held requests too, and ends them while the engine stands still.
    assert_eq!(handle.abort("test"), 2);
    assert_eq!(rest(&mut unwanted).await, (Vec::new(), FinishKind::Abort));
    assert_eq!(rest(&mut held).await, (Vec::new(), FinishKind::Abort));
    let mut held = handle.submit(request(&[8], 3)).unwrap();
    handle.resume().await;
    assert_eq!(rest(&mut held).await.1, FinishKind::Length);
    settled(handle).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_a_pause_and_allows_no_other() {
    let engine = busy_engine();
    let handle = engine.handle();
    let mut frozen = handle.submit(request(&[5, 6, 7], 100)).unwrap();
    begun(&mut frozen).await;
    assert!(handle.pause(PauseMode::Keep).await);
    let mut held = handle.submit(request(&[8], 3)).unwrap();
    handle.start_draining();
    assert!(!handle.pause(PauseMode::Keep).await);
    assert_eq!(rest(&mut frozen).await.1, FinishKind::Length);
    assert_eq!(rest(&mut held).await.1, FinishKind::Length);
    settled(handle).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_engine_stops_when_nobody_is_left() {
    let engine = busy_engine();
    let mut frozen = engine.handle().submit(request(&[5, 6, 7], 100)).unwrap();
    begun(&mut frozen).await;
    assert!(engine.handle().pause(PauseMode::Keep).await);
    let joined = tokio::task::spawn_blocking(|| engine.join());
    assert_eq!(rest(&mut frozen).await.1, FinishKind::Length);
    drop(frozen);
    timeout(HANG, joined).await.expect("the engine does not end").unwrap();
}

/// Requests come, are read or dropped, while an operator pauses, resumes and aborts at random; then the server
/// drains, paused or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_6_every_request_ends_once_whatever_is_paused() {
    let seed: u64 = std::env::var("QUIRE_TEST_SEED").map_or(60, |s| s.parse().unwrap());
    println!("QUIRE_TEST_SEED={seed}");
    for life in 0..12 {
        let mut rng = SmallRng::seed_from_u64(seed ^ (life << 32));
        let failures = SimFailures { submit: 1, collect: 1, row: 1 };
        let engine = start(sim_runner(failures, rng.random_range(1..3)), 1000);
        let mut clients = Vec::new();
        for i in 0..60 {
            let mut rng = SmallRng::seed_from_u64(seed ^ (life << 32) ^ (i << 8));
            let handle = engine.handle().clone();
            clients.push(tokio::spawn(async move {
                sleep(Duration::from_micros(rng.random_range(0..30_000))).await;
                let prompt: Vec<u32> =
                    (0..rng.random_range(1..60)).map(|_| rng.random_range(3..20)).collect();
                let mut request = request(&prompt, rng.random_range(1..200));
                request.n = rng.random_range(1..3);
                request.external_id = format!("r{}", i % 7).into();
                if rng.random_bool(0.7) {
                    for (_, tokens, finish) in read(&handle, request).await {
                        assert_eq!(tokens.len() as u32, finish.num_output_tokens);
                    }
                } else {
                    let mut stream = handle.submit(request).unwrap();
                    let patience = Duration::from_micros(rng.random_range(0..20_000));
                    let _ = timeout(patience, stream.next()).await;
                }
            }));
        }
        let handle = engine.handle();
        for _ in 0..40 {
            match rng.random_range(0..8) {
                0 | 1 => drop(timeout(Duration::from_millis(2), handle.pause(PauseMode::Keep)).await),
                2 => drop(timeout(Duration::from_millis(2), handle.pause(PauseMode::Wait)).await),
                3 => drop(timeout(Duration::from_millis(2), handle.pause(PauseMode::Abort)).await),
                4 | 5 => handle.resume().await,
                6 => drop(handle.abort(&format!("r{}", rng.random_range(0..7)))),
                _ if rng.random_bool(0.2) => handle.abort_all(),
                _ => _ = handle.reset_prefix_cache().await,
            }
            sleep(Duration::from_micros(rng.random_range(0..1500))).await;
        }
        // Everybody has asked by now; so a drain refuses nobody.
        sleep(Duration::from_millis(50)).await;
        handle.start_draining();
        for client in clients {
            timeout(HANG, client).await.expect("a request hangs").unwrap();
        }
        settled(handle).await;
        timeout(HANG, tokio::task::spawn_blocking(|| engine.join())).await.expect("no end").unwrap();
    }
}
