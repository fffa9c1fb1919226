//! [`EngineHandle`]: the cloneable door to the engine. Takes requests, hands out streams, passes aborts.
//!
//! Admission is decided here, by one atomic counter, so that an overloaded server answers at once. The
//! channels behind it need no bound of their own: each admitted sequence puts at most two commands in.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crossbeam_channel::Sender;
use quire_scheduler::{Request, RequestId};

use super::output::{OutputMessage, SequenceOutput};
use super::pause::PauseMode;
use super::request::{GenerateRequest, SubmitError};
use super::stats::EngineStats;
use super::stream::{Mailbox, OutputStream};

/// What the engine thread is told.
#[derive(Debug)]
pub(super) enum Command {
    /// A new sequence.
    Add(Box<Request>),
    /// End this one; unknown ids are ignored (it may just have ended).
    Abort(RequestId),
    /// End all.
    AbortAll,
    /// Forget cached prefixes, if nothing holds them; the answer says whether it was done.
    ResetPrefixCache(tokio::sync::oneshot::Sender<bool>),
    /// Stand still in this way; the answer comes when it is so.
    Pause(PauseMode, tokio::sync::oneshot::Sender<()>),
    /// Go on; the answer comes at once.
    Resume(tokio::sync::oneshot::Sender<()>),
    /// Go on, and never stand still again: the server shuts down.
    Drain,
    /// Leave the loop once nothing is left to do.
    Stop,
}

/// The door. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EngineHandle(Arc<Door>);

#[derive(Debug)]
struct Door {
    commands: Sender<Command>,
    output: Sender<OutputMessage>,
    stats: Arc<EngineStats>,
    admission: Arc<Admission>,
    next_id: AtomicU64,
    seed: u64,
    epoch: Instant,
    external: Arc<ExternalIds>,
}

/// How many sequences are in the engine, and whether more may come.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) in_flight: AtomicUsize,
    limit: usize,
    /// What is taken: requests to be pooled, or those to be continued.
    pools: bool,
    draining: AtomicBool,
}

/// Client-chosen names of requests in flight, for aborts by name.
#[derive(Debug, Default)]
pub(super) struct ExternalIds(Mutex<HashMap<Arc<str>, Vec<RequestId>>>);

impl EngineHandle {
    pub(super) fn new(
        commands: Sender<Command>,
        output: Sender<OutputMessage>,
        stats: Arc<EngineStats>,
        admission: Arc<Admission>,
        external: Arc<ExternalIds>,
        seed: u64,
        epoch: Instant,
    ) -> Self {
        let next_id = AtomicU64::new(1);
        Self(Arc::new(Door { commands, output, stats, admission, next_id, seed, epoch, external }))
    }

    /// Whether `n` sequences would be taken now: for those who have more than one request to submit, or much to do
    /// before they can. `pooled` as in [`Pooling`](quire_scheduler::Pooling).
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn check_room(&self, n: usize, pooled: bool) -> Result<(), SubmitError> {
        self.0.check(pooled)?;
        let (queued, limit) = (self.num_in_flight(), self.0.admission.limit);
        match queued.checked_add(n) {
            Some(total) if total <= limit => Ok(()),
            _ => Err(SubmitError::Overloaded { queued, limit }),
        }
    }

    /// Takes a request, or says at once why not. Its sequences count as one each against the limit.
    pub fn submit(&self, request: GenerateRequest) -> Result<OutputStream, SubmitError> {
        let door = &*self.0;
        door.admit(request.n as usize, request.sampling.pooling.is_some())?;
        let arrival_us = u64::try_from(door.epoch.elapsed().as_micros()).unwrap_or(u64::MAX);
        let first = door.next_id.fetch_add(u64::from(request.n), Ordering::Relaxed);
        let ids: Vec<_> = (0..request.n).map(|i| RequestId(first + u64::from(i))).collect();
        let mailbox = Arc::new(Mailbox::new(request.n));
        door.external.insert(&request.external_id, &ids);
        let text = Arc::new(request.text);
        for (index, &id) in ids.iter().enumerate() {
            let mut sampling = request.sampling.clone();
            let base = if request.seeded { sampling.seed } else { mix(door.seed ^ mix(first)) };
            sampling.seed = if index == 0 { base } else { mix(base.wrapping_add(index as u64)) };
            if index > 0 {
                sampling.prompt_logprobs = None;
            }
            let sampling = Arc::new(sampling);
            let sequence = SequenceOutput::new(
                id,
                index as u32,
                request.external_id.clone(),
                request.prompt_token_ids.clone(),
                sampling.clone(),
                text.clone(),
                request.n,
                request.adapter.as_ref().map(|adapter| adapter.name().clone()),
                mailbox.clone(),
            );
            // Before the command: so the output thread knows the sequence when its first step arrives.
            let _ = door.output.send(OutputMessage::Begin(Box::new(sequence)));
            let request = Request {
                id,
                prompt_token_ids: request.prompt_token_ids.clone(),
                sampling,
                priority: request.priority,
                arrival_us,
                adapter: request.adapter.clone(),
                cache_salt: request.cache_salt.clone(),
                bypass_prefix_cache: request.bypass_prefix_cache,
            };
            // A closed channel means that the engine is gone; the output thread then ends the sequence.
            let _ = door.commands.send(Command::Add(Box::new(request)));
        }
        Ok(OutputStream::new(mailbox, Abort(door.commands.clone()), ids))
    }

    /// Ends every sequence of the requests with this name. Returns how many there were.
    pub fn abort(&self, external_id: &str) -> usize {
        let ids = self.0.external.get(external_id);
        ids.iter().for_each(|&id| Abort(self.0.commands.clone()).send(id));
        ids.len()
    }

    /// Ends everything that is queued or running.
    pub fn abort_all(&self) {
        let _ = self.0.commands.send(Command::AbortAll);
    }

    /// Drops cached prefixes. False if requests hold blocks or the engine is gone.
    pub async fn reset_prefix_cache(&self) -> bool {
        let (answer, receiver) = tokio::sync::oneshot::channel();
        let _ = self.0.commands.send(Command::ResetPrefixCache(answer));
        receiver.await.unwrap_or(false)
    }

    /// Has the engine stand still, and waits until it does: with [`PauseMode::Wait`] that is until the last
    /// request taken before has ended. What arrives meanwhile is held. A pause may change the mode of another.
    ///
    /// False if the pause ended before the engine stood still, or the server is shutting down. The pause goes
    /// on if the future is dropped.
    pub async fn pause(&self, mode: PauseMode) -> bool {
        let (answer, receiver) = tokio::sync::oneshot::channel();
        let _ = self.0.commands.send(Command::Pause(mode, answer));
        receiver.await.is_ok()
    }

    /// Ends a pause; nothing happens if there is none.
    pub async fn resume(&self) {
        let (answer, receiver) = tokio::sync::oneshot::channel();
        let _ = self.0.commands.send(Command::Resume(answer));
        // No answer: the engine is gone, and with it the pause.
        let _ = receiver.await;
    }

    /// Whether a pause is on, though what was taken before it may still be running to its end.
    pub fn is_paused(&self) -> bool {
        self.0.stats.is_paused()
    }

    /// From now on nothing new is taken, and a pause is over: what there is may run to its end.
    pub fn start_draining(&self) {
        self.0.admission.draining.store(true, Ordering::Relaxed);
        let _ = self.0.commands.send(Command::Drain);
    }

    /// Whether [`start_draining`](Self::start_draining) was called.
    pub fn is_draining(&self) -> bool {
        self.0.admission.draining.load(Ordering::Relaxed)
    }

    /// Sequences taken and not yet ended.
    pub fn num_in_flight(&self) -> usize {
        self.0.admission.in_flight.load(Ordering::Relaxed)
    }

    /// Counters of the last step.
    pub fn stats(&self) -> &EngineStats {
        &self.0.stats
    }
}

impl Door {
    fn check(&self, pooled: bool) -> Result<(), SubmitError> {
        let Admission { pools, draining, .. } = &*self.admission;
        if pooled != *pools {
            return Err(SubmitError::WrongTask { pools: *pools });
        }
        if let Some(reason) = self.stats.death() {
            return Err(SubmitError::Dead(reason.clone()));
        }
        if draining.load(Ordering::Relaxed) {
            return Err(SubmitError::Draining);
        }
        Ok(())
    }

    fn admit(&self, n: usize, pooled: bool) -> Result<(), SubmitError> {
        self.check(pooled)?;
        let Admission { in_flight, limit, .. } = &*self.admission;
        let fits = |queued: usize| queued.checked_add(n).filter(|total| total <= limit);
        in_flight
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .map_err(|queued| SubmitError::Overloaded { queued, limit: *limit })?;
        Ok(())
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop);
    }
}

impl Admission {
    pub(super) fn new(limit: usize, pools: bool) -> Self {
        Self { in_flight: AtomicUsize::new(0), limit, pools, draining: AtomicBool::new(false) }
    }

    /// One sequence has ended.
    pub(super) fn release(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ExternalIds {
    fn insert(&self, name: &Arc<str>, ids: &[RequestId]) {
        self.lock().entry(name.clone()).or_default().extend_from_slice(ids);
    }

    fn get(&self, name: &str) -> Vec<RequestId> {
        self.lock().get(name).cloned().unwrap_or_default()
    }

    pub(super) fn remove(&self, name: &str, id: RequestId) {
        let mut map = self.lock();
        if let Some(ids) = map.get_mut(name) {
            ids.retain(|&other| other != id);
            if ids.is_empty() {
                map.remove(name);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Arc<str>, Vec<RequestId>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to end sequences.
#[derive(Debug, Clone)]
pub(super) struct Abort(pub(super) Sender<Command>);

impl Abort {
    pub(super) fn send(&self, id: RequestId) {
        let _ = self.0.send(Command::Abort(id));
    }
}

/// SplitMix64's finaliser: spreads neighbouring numbers over all 64 bits (Steele, Lea, Flood 2014).
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
