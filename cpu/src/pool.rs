//! [`Pool`]: fork and join for one owner thread, which works along with its helpers.
//!
//! Why not rayon: a decode step of a small model is some thirty short operations, each a fork and a join.
//! The owner is the engine thread, which must do its share without being a member of somebody's pool, must
//! not allocate per operation, and must not wait for a helper that is still waking up. Here a helper joins
//! an operation only if it arrives in time; helpers spin briefly between operations and sleep when idle.

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::{JoinHandle, Thread};

/// How long a helper looks for the next operation before it sleeps, in looks: some tens of microseconds,
/// the time between two operations of a step.
const SPINS_BEFORE_SLEEP: u32 = 4_000;

/// How long the owner looks for helpers to finish before it offers them its core, in looks: on a crowded
/// machine the helper may be waiting for just that.
const SPINS_BEFORE_YIELD: u32 = 256;

/// Helper threads of one owner.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    num_operations: usize,
    helpers: Vec<JoinHandle<()>>,
    threads: Vec<Thread>,
}

struct Shared {
    /// Valid while `open` is not 0.
    job: UnsafeCell<Job>,
    /// Number of the operation that helpers may join; 0 between operations.
    open: AtomicUsize,
    /// Helpers that may be reading `job`.
    num_inside: AtomicUsize,
    next_chunk: AtomicUsize,
    num_asleep: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
}

#[derive(Clone, Copy)]
struct Job {
    work: *const (dyn Fn(usize, usize) + Sync),
    num_chunks: usize,
}

// SAFETY: `job` is written only by the owner while it is closed and nobody is inside, and read only by
// helpers that are inside and have seen it open; the closure that it points to is `Sync`.
#[allow(unsafe_code)]
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer in `job` is never used unless the owner keeps its target alive.
#[allow(unsafe_code)]
unsafe impl Send for Shared {}

impl Pool {
    /// `num_threads` in all, the owner among them; at least 1.
    pub(crate) fn new(num_threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            job: UnsafeCell::new(Job { work: &|_, _| {}, num_chunks: 0 }),
            open: AtomicUsize::new(0),
            num_inside: AtomicUsize::new(0),
            next_chunk: AtomicUsize::new(0),
            num_asleep: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut pool = Self { shared, num_operations: 0, helpers: Vec::new(), threads: Vec::new() };
        for worker in 1..num_threads {
            let shared = pool.shared.clone();
            let builder = std::thread::Builder::new().name(format!("quire-cpu-{worker}"));
            let helper = builder.spawn(move || shared.help(worker))?;
            pool.threads.push(helper.thread().clone());
            pool.helpers.push(helper);
        }
        Ok(pool)
    }

    /// Threads, the owner among them.
    pub(crate) fn num_threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `work(worker, chunk)` once for each chunk, from several threads, and returns when all are done.
    /// `worker` is below [`Self::num_threads`] and no two threads have the same at the same time. `&mut`
    /// because operations of one pool must not overlap.
    pub(crate) fn run(&mut self, num_chunks: usize, work: &(dyn Fn(usize, usize) + Sync)) {
        if num_chunks <= 1 || self.helpers.is_empty() {
            return (0..num_chunks).for_each(|chunk| work(0, chunk));
        }
        let shared = &*self.shared;
        let erased: *const (dyn Fn(usize, usize) + Sync + '_) = work;
        // SAFETY: only the lifetime changes; `Closing` below waits until no helper can use it any more.
        #[allow(unsafe_code)]
        let work_ptr = unsafe {
            std::mem::transmute::<
                *const (dyn Fn(usize, usize) + Sync + '_),
                *const (dyn Fn(usize, usize) + Sync + 'static),
            >(erased)
        };
        // SAFETY: the job is closed and the last `Closing` saw nobody inside; who comes in now does not read
        // it before it is open.
        #[allow(unsafe_code)]
        unsafe {
            *shared.job.get() = Job { work: work_ptr, num_chunks };
        }
        shared.next_chunk.store(0, SeqCst);
        self.num_operations += 1;
        shared.open.store(self.num_operations, SeqCst);
        if shared.num_asleep.load(SeqCst) > 0 {
            self.threads.iter().for_each(Thread::unpark);
        }
        let closing = Closing(shared);
        shared.work_through(0, num_chunks, work);
        drop(closing);
        assert!(!shared.panicked.load(SeqCst), "a computing thread panicked");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.threads.iter().for_each(Thread::unpark);
        for helper in self.helpers.drain(..) {
            // A helper's panic was reported by the operation in which it happened.
            let _ = helper.join();
        }
    }
}

/// Ends an operation, also when the owner's own share panics: afterwards no helper refers to it.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.open.store(0, SeqCst);
        let mut spins = 0u32;
        while self.0.num_inside.load(SeqCst) > 0 {
            spins += 1;
            if spins > SPINS_BEFORE_YIELD { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
    }
}

/// Counts a helper in, and out however it leaves.
struct Inside<'a>(&'a Shared);

impl<'a> Inside<'a> {
    fn enter(shared: &'a Shared) -> Self {
        shared.num_inside.fetch_add(1, SeqCst);
        Self(shared)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.panicked.store(true, SeqCst);
        }
        self.0.num_inside.fetch_sub(1, SeqCst);
    }
}

impl Shared {
    fn work_through(&self, worker: usize, num_chunks: usize, work: &(dyn Fn(usize, usize) + Sync)) {
        loop {
            let chunk = self.next_chunk.fetch_add(1, SeqCst);
            if chunk >= num_chunks {
                return;
            }
            work(worker, chunk);
        }
    }

    fn help(&self, worker: usize) {
        let (mut spins, mut last_joined) = (0, 0);
        while !self.stop.load(SeqCst) {
            let open = self.open.load(SeqCst);
            if open != 0 && open != last_joined {
                let inside = Inside::enter(self);
                // Having come in, look again: the owner waits for those inside only after it has closed.
                if self.open.load(SeqCst) == open {
                    last_joined = open;
                    // SAFETY: open after we came in, so the owner has written the job and waits for us.
                    #[allow(unsafe_code)]
                    let (work, num_chunks) = unsafe {
                        let job = *self.job.get();
                        (&*job.work, job.num_chunks)
                    };
                    self.work_through(worker, num_chunks, work);
                }
                drop(inside);
                spins = 0;
            }
            spins += 1;
            if spins < SPINS_BEFORE_SLEEP {
                std::hint::spin_loop();
                continue;
            }
            self.num_asleep.fetch_add(1, SeqCst);
            // Seen here, or else the owner sees that we are asleep and wakes us.
            let open = self.open.load(SeqCst);
            if (open == 0 || open == last_joined) && !self.stop.load(SeqCst) {
                std::thread::park();
            }
            self.num_asleep.fetch_sub(1, SeqCst);
            spins = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_runs_once_and_workers_do_not_collide() {
        let mut pool = Pool::new(4).unwrap();
        for round in 0..2_000usize {
            let num_chunks = round % 37;
            let counts: Vec<AtomicUsize> = (0..num_chunks).map(|_| AtomicUsize::new(0)).collect();
            let busy: Vec<AtomicBool> = (0..pool.num_threads()).map(|_| AtomicBool::new(false)).collect();
            pool.run(num_chunks, &|worker, chunk| {
                assert!(!busy[worker].swap(true, SeqCst));
                counts[chunk].fetch_add(1, SeqCst);
                busy[worker].store(false, SeqCst);
            });
            assert!(counts.iter().all(|count| count.load(SeqCst) == 1), "round {round}");
            if round % 500 == 0 {
                // Long enough for the helpers to fall asleep.
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
    }

    #[test]
    fn a_panic_in_the_work_reaches_the_owner() {
        let mut pool = Pool::new(3).unwrap();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(64, &|_, chunk| assert!(chunk != 40, "expected by the test"));
        }));
        assert!(result.is_err());
    }
}
