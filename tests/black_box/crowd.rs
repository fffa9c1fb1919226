//! [`Crowd`]: other people's requests, kept in flight while a test looks at its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::http;
use crate::server::Server;

/// How often the crowd is looked at before it counts as gone; they take a minute and more.
const NUM_LOOKS: usize = 12_000;

/// Requests that are started again as soon as they end; they leave when this is dropped.
#[derive(Debug)]
pub(crate) struct Crowd<'s> {
    server: &'s Server,
    size: usize,
    tasks: Vec<JoinHandle<()>>,
    finished: Arc<AtomicU64>,
}

impl<'s> Crowd<'s> {
    /// Returns when all are running.
    pub(crate) async fn start(server: &'s Server, size: usize) -> Self {
        let finished = Arc::new(AtomicU64::new(0));
        let member = |index: usize| {
            let (addr, finished) = (server.http, finished.clone());
            tokio::spawn(async move {
                let mut rng = StdRng::seed_from_u64(index as u64);
                loop {
                    let body = request(&mut rng);
                    let mut open = http::post_open(addr, "/v1/completions", &body).await;
                    assert_eq!(open.status, 200);
                    while open.event().await.is_some() {}
                    finished.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let crowd = Self { server, size, tasks: (0..size).map(member).collect(), finished };
        crowd.assert_present().await;
        crowd
    }

    /// Returns when all are seen in flight together; fails if one of them failed, or if they never are.
    ///
    /// One look proves nothing: at any moment a member may be between two requests.
    pub(crate) async fn assert_present(&self) {
        let mut present = 0.0;
        for _ in 0..NUM_LOOKS {
            assert!(self.tasks.iter().all(|task| !task.is_finished()), "a member of the crowd failed");
            present = self.num_present().await;
            if present >= self.size as f64 {
                eprintln!("the crowd finished {} requests so far", self.finished.load(Ordering::Relaxed));
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{present} of {} were in flight at the last of {NUM_LOOKS} looks", self.size);
    }

    async fn num_present(&self) -> f64 {
        let [running, waiting, _] = self.server.metrics().await.load_figures();
        running + waiting
    }
}

impl Drop for Crowd<'_> {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn request(rng: &mut StdRng) -> Value {
    let len = rng.random_range(1..=120);
    let prompt: Vec<u32> = (0..len).map(|_| rng.random_range(9..2048)).collect();
    json!({
        "prompt": prompt,
        "max_tokens": rng.random_range(20..=300),
        "ignore_eos": true,
        "temperature": 1,
        "stream": true,
    })
}
