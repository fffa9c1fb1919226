//! The text pool: a fixed number of threads for templates and tokenization, with a bounded queue.
//!
//! Encoding a long prompt takes milliseconds of pure computing, which must not stall the sockets' threads.
//! The queue is bounded so that overload is an answer at once and not a growing delay.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::{Receiver, Sender, bounded};
use tokio::sync::oneshot;

use super::TextError;

/// Four times Rust's default, in which the deepest recursion that minijinja allows runs in the tests. Only
/// what is touched takes memory.
const STACK_BYTES: usize = 8 << 20;

type Job = Box<dyn FnOnce() + Send>;

/// A cloneable handle; the threads end when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct TextPool {
    jobs: Sender<Job>,
    max_queued: usize,
}

impl TextPool {
    /// Starts `num_threads` threads (at least one). At most `max_queued` jobs wait for them; with 0 a job is
    /// accepted only while a thread is idle.
    ///
    /// # Panics
    /// If the operating system cannot start a thread.
    pub fn new(num_threads: usize, max_queued: usize) -> Self {
        let (sender, receiver) = bounded(max_queued);
        for index in 0..num_threads.max(1) {
            let receiver = receiver.clone();
            std::thread::Builder::new()
                .name(format!("quire-text-{index}"))
                .stack_size(STACK_BYTES)
                .spawn(move || work(&receiver))
                .expect("the operating system can start the text pool's threads");
        }
        Self { jobs: sender, max_queued }
    }

    /// Runs `job` on the pool. Dropping the future before the job has started cancels it.
    ///
    /// # Errors
    /// [`TextError::Overloaded`] at once when the queue is full; [`TextError::Panicked`] when this job panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, TextError> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move || {
            if !reply.is_closed() {
                // Unwind safety: a panicked job's captures are dropped here and nobody sees them again.
                let _ = reply.send(catch_unwind(AssertUnwindSafe(job)));
            }
        });
        self.jobs.try_send(job).map_err(|_| TextError::Overloaded { max_queued: self.max_queued })?;
        match answer.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(panic)) => Err(TextError::Panicked { message: panic_message(panic.as_ref()) }),
            Err(_) => Err(TextError::Panicked { message: "the text pool has stopped".into() }),
        }
    }
}

fn work(jobs: &Receiver<Job>) {
    for job in jobs {
        job();
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown panic".into())
}
