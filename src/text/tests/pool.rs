//! The text pool: bounded, and a job that panics fails alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use super::super::{ChatInput, ChatTemplate, SpecialTokens, TextError, TextPool};

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Occupies the pool's only thread until the returned sender is dropped.
fn occupy(pool: &TextPool) -> (std::sync::mpsc::Sender<()>, std::thread::JoinHandle<()>) {
    let (release, wait) = channel::<()>();
    let (started, has_started) = channel();
    let pool = pool.clone();
    let thread = std::thread::spawn(move || {
        let job = move || {
            started.send(()).unwrap();
            let _ = wait.recv();
        };
        block_on(pool.run(job)).unwrap();
    });
    has_started.recv().unwrap();
    (release, thread)
}

#[test]
fn a_panic_fails_alone() {
    let pool = TextPool::new(1, 4);
    let failed = block_on(pool.run(|| -> u32 { panic!("bad {}", "input") }));
    assert!(matches!(failed, Err(TextError::Panicked { message }) if message == "bad input"));
    assert_eq!(block_on(pool.run(|| 7)).unwrap(), 7);
}

#[test]
fn a_full_queue_refuses_at_once() {
    let pool = TextPool::new(1, 1);
    let (release, thread) = occupy(&pool);
    block_on(async {
        let mut queued = Box::pin(pool.run(|| 1));
        // Polling once puts the job into the queue.
        assert!(tokio::time::timeout(Duration::ZERO, &mut queued).await.is_err());
        assert!(matches!(pool.run(|| 2).await, Err(TextError::Overloaded { max_queued: 1 })));
        drop(release);
        assert_eq!(queued.await.unwrap(), 1);
    });
    thread.join().unwrap();
}

#[test]
fn a_dropped_job_that_has_not_started_is_skipped() {
    let pool = TextPool::new(1, 2);
    let (release, thread) = occupy(&pool);
    let num_run = Arc::new(AtomicUsize::new(0));
    let counter = num_run.clone();
    block_on(async {
        let job = move || counter.fetch_add(1, Ordering::SeqCst);
        assert!(tokio::time::timeout(Duration::ZERO, pool.run(job)).await.is_err());
        drop(release);
        pool.run(|| ()).await.unwrap();
    });
    thread.join().unwrap();
    assert_eq!(num_run.load(Ordering::SeqCst), 0);
}

#[test]
fn a_template_and_its_input_travel_to_the_pool() {
    let template = Arc::new(ChatTemplate::new("{{ messages[0] }}", &SpecialTokens::default()).unwrap());
    let messages = vec![serde_json::json!("hi")];
    let job = move || template.render(&ChatInput { messages: &messages, ..Default::default() });
    // As an HTTP handler would: the future must be able to move between threads.
    let pool = TextPool::new(2, 2);
    let run = async move { pool.run(job).await };
    let thread = std::thread::spawn(move || block_on(run));
    assert_eq!(thread.join().unwrap().unwrap().unwrap(), "hi");
}
