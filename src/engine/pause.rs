//! [`PauseMode`], and the engine thread's side of a pause: what it means for requests in the engine, and where
//! those that arrive meanwhile are kept.
//!
//! A pause is for operators who need the engine to hold still: to move load elsewhere, to take a measurement,
//! to look. Nobody is turned away by it: what arrives is held, within the limit of admission, and enters in
//! order of arrival once the pause ends.

use quire_scheduler::{FinishReason, Request, RequestId, Scheduler};
use tokio::sync::oneshot;

/// What a pause does with the requests taken before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PauseMode {
    /// They end at once, with [`FinishKind::Abort`](super::FinishKind::Abort).
    Abort,
    /// They run to their ends, and then the engine stands still.
    Wait,
    /// They stand still where they are, keep their KV blocks, and go on after the pause.
    Keep,
}

/// Whether the engine is paused, and what waits for the end of it.
#[derive(Debug, Default)]
pub(super) struct Pause {
    mode: Option<PauseMode>,
    /// Arrived during the pause, in order.
    held: Vec<Request>,
    /// Who wants to know that the engine stands still.
    askers: Vec<oneshot::Sender<()>>,
    /// The server shuts down: what there is must be able to end.
    forbidden: bool,
}

impl Pause {
    /// Begins a pause, or changes the mode of the one there is. `asker` hears when the engine stands still; it
    /// is dropped unheard if the pause ends before, or cannot begin because the server shuts down.
    pub(super) fn begin(&mut self, mode: PauseMode, asker: oneshot::Sender<()>, scheduler: &mut Scheduler) {
        if self.forbidden {
            return;
        }
        self.mode = Some(mode);
        if mode == PauseMode::Abort {
            scheduler.end_all(&FinishReason::Abort);
        }
        self.askers.retain(|asker| !asker.is_closed());
        self.askers.push(asker);
    }

    /// Ends the pause, if there is one: what was held enters the scheduler.
    pub(super) fn end(&mut self, scheduler: &mut Scheduler) {
        self.mode = None;
        self.askers.clear();
        self.held.drain(..).for_each(|request| scheduler.add(request));
    }

    /// Ends the pause, and there will be no other.
    pub(super) fn end_for_good(&mut self, scheduler: &mut Scheduler) {
        self.forbidden = true;
        self.end(scheduler);
    }

    /// Tells those who asked for it that the engine stands still.
    pub(super) fn tell_still(&mut self) {
        for asker in self.askers.drain(..) {
            // Who no longer listens does not mind.
            let _ = asker.send(());
        }
    }

    /// Whether there is a pause, though work may still be going on in it.
    pub(super) fn is_on(&self) -> bool {
        self.mode.is_some()
    }

    /// Whether no step may be planned.
    pub(super) fn forbids_steps(&self) -> bool {
        matches!(self.mode, Some(PauseMode::Abort | PauseMode::Keep))
    }

    /// Requests that arrived during the pause.
    pub(super) fn num_held(&self) -> usize {
        self.held.len()
    }

    /// Lets a new request in, or holds it.
    pub(super) fn add(&mut self, request: Request, scheduler: &mut Scheduler) {
        if self.is_on() { self.held.push(request) } else { scheduler.add(request) }
    }

    /// Ends one request, wherever it is.
    pub(super) fn abort(&mut self, id: RequestId, scheduler: &mut Scheduler) {
        if let Some(at) = self.held.iter().position(|request| request.id == id) {
            // The scheduler says of each request how it ended, so it must have seen it.
            scheduler.add(self.held.remove(at));
        }
        scheduler.abort(id);
    }

    /// Ends all requests.
    pub(super) fn abort_all(&mut self, scheduler: &mut Scheduler) {
        self.held.drain(..).for_each(|request| scheduler.add(request));
        scheduler.end_all(&FinishReason::Abort);
    }
}
