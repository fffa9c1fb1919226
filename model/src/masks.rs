//! [`Masks`]: what the grammars of the running requests allow next, worked out on threads of their own while the
//! device computes.
//!
//! A request with a grammar has a seat here, by slot. When it comes, a worker starts its matcher (and replays
//! the output of a request that was preempted) and fills the mask of its first token. When a step is collected,
//! the tokens sampled are handed to the workers, who say what must follow them and go on to the next masks
//! without being asked. So there are two moments at which the engine thread waits:
//!
//! * in [`Masks::accept`], until the tokens of a step are taken in and forced tokens are known, because the
//!   next plan depends on them;
//! * in [`Masks::take`], for those masks of the step's own rows that are not ready yet, when there is nothing
//!   left to do but to sample.
//!
//! Both take the one lock of this file, and nobody holds it while a matcher works. A step takes it a fixed
//! number of times and wakes the workers once, however many rows it has; and after a request was admitted
//! nothing is allocated for it but by its matcher. A matcher that does not return stops the engine, as a device
//! would; matchers bound their work ([`quire_scheduler::GrammarMatcher`]).
//!
//! The threads start with the first grammar, and sleep while there is nothing to do.
#![allow(
    clippy::disallowed_types,
    reason = "the engine thread waits here for what grammars say, and for nothing else: see above"
)]

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use quire_scheduler::{AdmittedRequest, GrammarError, Matching, SamplingParams, SchedulerOutput, TokenId};

use crate::slot::Slot;
use crate::step_inputs::{LogitsRow, LogitsTask};

/// See the module's text.
pub(crate) struct Masks {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// By slot: whether a request with a grammar is there. Without any, no lock is taken.
    is_seated: Vec<bool>,
}

/// A token that a row with a grammar sampled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SampledToken {
    /// Of the plan.
    pub(crate) row: u32,
    pub(crate) slot: u32,
    pub(crate) token: TokenId,
}

struct Shared {
    vocab_size: usize,
    state: Mutex<State>,
    /// There is work, or no more will come.
    work: Condvar,
    /// What the engine thread waits for has come.
    done: Condvar,
}

struct State {
    /// By slot.
    seats: Vec<Seat>,
    /// Done first: the engine thread waits for all of these.
    to_accept: VecDeque<Place>,
    to_fill: VecDeque<Place>,
    /// Of requests that left.
    to_drop: Vec<Work>,
    num_accepting: usize,
    num_awaited: usize,
    is_closing: bool,
}

/// A seat and who sits there: what is to be done for somebody who left is not done for the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    slot: usize,
    generation: u64,
}

#[derive(Default)]
struct Seat {
    generation: u64,
    stage: Stage,
    /// Nothing while a worker has it.
    work: Option<Work>,
    token: TokenId,
    forced: Vec<TokenId>,
    /// Why the token could not be taken in.
    refusal: Option<GrammarError>,
    /// Why there is no mask.
    failure: Option<GrammarError>,
    /// The engine thread waits for the mask.
    is_awaited: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    /// Nobody is here, or the mask has been taken and its token is not known yet.
    #[default]
    Idle,
    /// A token is being taken in.
    Accepting,
    /// The mask is being filled.
    Filling,
    /// The mask is there, or the reason that there will be none.
    Ready,
}

/// What a worker needs of a request.
enum Work {
    /// The matcher is not made yet.
    New {
        sampling: Arc<SamplingParams>,
        /// Generated before a preemption.
        output: Vec<TokenId>,
    },
    Going(Box<Going>),
}

struct Going {
    matching: Matching,
    mask: Vec<u32>,
    /// Whether `mask` says anything; else everything may come.
    is_masked: bool,
}

impl Masks {
    /// For requests in so many slots, over a vocabulary of this size.
    pub(crate) fn new(num_slots: usize, vocab_size: usize) -> Self {
        let state = State {
            seats: (0..num_slots).map(|_| Seat::default()).collect(),
            to_accept: VecDeque::with_capacity(num_slots),
            to_fill: VecDeque::with_capacity(num_slots),
            to_drop: Vec::with_capacity(num_slots),
            num_accepting: 0,
            num_awaited: 0,
            is_closing: false,
        };
        let (state, work, done) = (Mutex::new(state), Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { vocab_size, state, work, done });
        Self { shared, threads: Vec::new(), is_seated: vec![false; num_slots] }
    }

    /// Takes in a plan: who left, who came. Slots are in range.
    pub(crate) fn apply(&mut self, plan: &SchedulerOutput) {
        let comes = |request: &AdmittedRequest| request.sampling.grammar.is_some();
        let slots = || plan.released_slots.iter().chain(plan.admitted.iter().map(|request| &request.slot));
        let none_leaves = !slots().any(|slot| self.is_seated[*slot as usize]);
        if none_leaves && !plan.admitted.iter().any(comes) {
            return;
        }
        let started = self.start_threads();
        let mut state = self.shared.lock();
        for slot in slots().map(|slot| *slot as usize) {
            if std::mem::take(&mut self.is_seated[slot]) {
                let left = state.seats[slot].leave();
                state.to_drop.extend(left);
            }
        }
        for request in plan.admitted.iter().filter(|request| comes(request)) {
            let slot = request.slot as usize;
            self.is_seated[slot] = true;
            let place = state.seats[slot].sit(slot, request, &started);
            state.to_fill.extend(place);
        }
        drop(state);
        self.shared.work.notify_all();
    }

    /// Whether a request with a grammar is there.
    pub(crate) fn is_seated(&self, slot: u32) -> bool {
        self.is_seated[slot as usize]
    }

    /// Gives the slots of rows that sample the masks of their next tokens, and lists the rows of the plan that
    /// cannot have one. Waits for them.
    pub(crate) fn take(
        &mut self,
        rows: &[LogitsRow],
        slots: &mut [Slot],
        failures: &mut Vec<(u32, GrammarError)>,
    ) {
        let is_seated = &self.is_seated;
        let needs = |row: &&LogitsRow| row.task == LogitsTask::Sample && is_seated[row.slot as usize];
        if !rows.iter().any(|row| needs(&row)) {
            return;
        }
        let mut state = self.shared.lock();
        state.num_awaited = 0;
        state.seats.iter_mut().for_each(|seat| seat.is_awaited = false);
        for row in rows.iter().filter(needs) {
            let seat = &mut state.seats[row.slot as usize];
            seat.is_awaited = seat.stage == Stage::Filling;
            state.num_awaited += usize::from(seat.is_awaited);
        }
        while state.num_awaited > 0 {
            state = self.shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        for row in rows.iter().filter(needs) {
            let slot = &mut slots[row.slot as usize];
            if let Err(failure) = state.seats[row.slot as usize].give_mask(slot) {
                failures.push((row.plan_row, failure));
            }
        }
    }

    /// Takes in what rows sampled, one token a slot; the workers go on to the next masks. Waits until it is known
    /// what must follow each token, or why its request cannot go on, and says so in order.
    pub(crate) fn accept(
        &mut self,
        sampled: &[SampledToken],
        mut tell: impl FnMut(SampledToken, Result<&[TokenId], GrammarError>),
    ) {
        if sampled.is_empty() {
            return;
        }
        let mut state = self.shared.lock();
        state.num_accepting = sampled.len();
        for sampled in sampled {
            let slot = sampled.slot as usize;
            let seat = &mut state.seats[slot];
            (seat.token, seat.stage) = (sampled.token, Stage::Accepting);
            let place = Place { slot, generation: seat.generation };
            state.to_accept.push_back(place);
        }
        match sampled.len() {
            1 => self.shared.work.notify_one(),
            _ => self.shared.work.notify_all(),
        }
        while state.num_accepting > 0 {
            state = self.shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        for sampled in sampled {
            let seat = &state.seats[sampled.slot as usize];
            tell(*sampled, seat.refusal.clone().map_or(Ok(&seat.forced), Err));
        }
    }

    /// The error is why there is none.
    fn start_threads(&mut self) -> Result<(), GrammarError> {
        if !self.threads.is_empty() {
            return Ok(());
        }
        for number in 0..num_threads() {
            let shared = self.shared.clone();
            let thread = Builder::new().name(format!("quire-grammar-{number}")).spawn(move || shared.work());
            match thread {
                Ok(thread) => self.threads.push(thread),
                Err(error) if self.threads.is_empty() => {
                    return Err(GrammarError::Broken(
                        format!("no thread for grammars could be started: {error}").into(),
                    ));
                }
                Err(_) => break,
            }
        }
        Ok(())
    }
}

impl Drop for Masks {
    fn drop(&mut self) {
        self.shared.lock().is_closing = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A panic has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}

/// A quarter of the machine, since the device may be the rest of it.
fn num_threads() -> usize {
    (std::thread::available_parallelism().map_or(1, usize::from) / 4).clamp(1, 8)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // What is poisoned was left whole: nothing that can panic happens under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        while !state.is_closing {
            if let Some(place) = state.to_accept.pop_front() {
                state = self.accept(state, place);
            } else if let Some(place) = state.next_to_fill() {
                state = self.fill(state, place);
            } else if let Some(work) = state.to_drop.pop() {
                drop(state);
                drop(work);
                state = self.lock();
            } else {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// The engine thread waits for this, so nobody can have left.
    fn accept<'s>(&'s self, mut state: MutexGuard<'s, State>, place: Place) -> MutexGuard<'s, State> {
        let seat = &mut state.seats[place.slot];
        let (token, work, mut forced) = (seat.token, seat.work.take(), std::mem::take(&mut seat.forced));
        drop(state);
        forced.clear();
        let outcome = match work {
            Some(Work::Going(mut going)) => {
                let accepted = going.matching.accept(token);
                going.matching.take_forced(&mut forced);
                accepted.map(|()| going)
            }
            _ => Err(out_of_step()),
        };
        let mut state = self.lock();
        let seat = &mut state.seats[place.slot];
        seat.forced = forced;
        match outcome {
            Ok(going) => {
                (seat.work, seat.stage) = (Some(Work::Going(going)), Stage::Filling);
                state.to_fill.push_back(place);
                self.work.notify_one();
            }
            Err(refusal) => (seat.refusal, seat.stage) = (Some(refusal), Stage::Idle),
        }
        state.num_accepting -= 1;
        if state.num_accepting == 0 {
            self.done.notify_one();
        }
        state
    }

    fn fill<'s>(&'s self, mut state: MutexGuard<'s, State>, place: Place) -> MutexGuard<'s, State> {
        let seat = &mut state.seats[place.slot];
        let work = if seat.generation == place.generation { seat.work.take() } else { None };
        let Some(work) = work else { return state };
        drop(state);
        let outcome = work.fill(self.vocab_size);
        let mut state = self.lock();
        let seat = &mut state.seats[place.slot];
        if seat.generation != place.generation {
            drop(state);
            drop(outcome);
            return self.lock();
        }
        match outcome {
            Ok(going) => seat.work = Some(Work::Going(going)),
            Err(failure) => seat.failure = Some(failure),
        }
        seat.stage = Stage::Ready;
        if std::mem::take(&mut seat.is_awaited) {
            state.num_awaited -= 1;
            if state.num_awaited == 0 {
                self.done.notify_one();
            }
        }
        state
    }
}

impl State {
    /// Those first that the engine thread waits for: others may be in the middle of a long prompt.
    fn next_to_fill(&mut self) -> Option<Place> {
        let is_awaited = |place: &Place| self.seats[place.slot].is_awaited;
        let first = if self.num_awaited > 0 { self.to_fill.iter().position(is_awaited) } else { None };
        self.to_fill.remove(first.unwrap_or(0))
    }
}

impl Seat {
    /// Gives what is left of the request.
    fn leave(&mut self) -> Option<Work> {
        let next = Self { generation: self.generation + 1, ..Self::default() };
        std::mem::replace(self, next).work
    }

    /// Takes in a request. What is to be done for it, unless there is nobody to do it.
    fn sit(
        &mut self,
        slot: usize,
        request: &AdmittedRequest,
        workers: &Result<(), GrammarError>,
    ) -> Option<Place> {
        if let Err(failure) = workers {
            (self.failure, self.stage) = (Some(failure.clone()), Stage::Ready);
            return None;
        }
        let (sampling, output) = (request.sampling.clone(), request.output_token_ids.clone());
        (self.work, self.stage) = (Some(Work::New { sampling, output }), Stage::Filling);
        Some(Place { slot, generation: self.generation })
    }

    /// Exchanges the mask for the slot's last one, if there is one.
    fn give_mask(&mut self, slot: &mut Slot) -> Result<(), GrammarError> {
        slot.set_mask(None);
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        match (&mut self.work, std::mem::take(&mut self.stage)) {
            (Some(Work::Going(going)), Stage::Ready) => {
                slot.set_mask(going.is_masked.then_some(&mut going.mask));
                Ok(())
            }
            _ => Err(out_of_step()),
        }
    }
}

impl Work {
    /// Makes the matcher if there is none, and fills its mask.
    fn fill(self, vocab_size: usize) -> Result<Box<Going>, GrammarError> {
        let mut going = match self {
            Self::Going(going) => going,
            Self::New { sampling, output } => {
                let grammar = sampling.grammar.as_ref().ok_or_else(out_of_step)?;
                let matching = Matching::start(grammar, &sampling, vocab_size, &output)?;
                Box::new(Going { matching, mask: Vec::new(), is_masked: false })
            }
        };
        // The memory is one of two that a slot and its seat exchange, so this allocates twice at most.
        going.mask.resize(Matching::mask_words(vocab_size), 0);
        going.is_masked = going.matching.fill_mask(&mut going.mask)?;
        Ok(going)
    }
}

/// For plans that a scheduler does not make.
fn out_of_step() -> GrammarError {
    GrammarError::Broken("the plan is not in step with the request's grammar".into())
}
