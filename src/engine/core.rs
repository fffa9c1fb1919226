//! The engine thread: sole owner of the scheduler, the KV cache's bookkeeping and the runner.
//!
//! One turn of its loop: take commands, plan a step, hand it over, collect the oldest step in flight,
//! work out what it means, send one message. No lock, no await, no log line and no allocation per token.
//! With nothing to do it sleeps on its channel.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, unbounded};
use quire_scheduler::{ModelRunner, RunnerError, Scheduler, SchedulerOutput, StepOutputs, StepTicket};

use super::handle::{Abort, Admission, Command, EngineHandle, ExternalIds};
use super::kv_events::KvEvents;
use super::output::{Ledger, OutputMessage, OutputThread, Sequences};
use super::pause::Pause;
use super::stats::EngineStats;
use crate::metrics::Metrics;
use crate::text::Tokenizer;

/// Steps the output thread may be behind. A faster engine then waits for it, so that memory stays bounded.
const MAX_STEPS_BEHIND: usize = 64;

/// What the threads need besides the runner.
#[derive(Debug)]
pub struct EngineOptions {
    /// Turns tokens into text.
    pub tokenizer: Tokenizer,
    /// Where request timings go.
    pub metrics: Arc<Metrics>,
    /// Sequences in the engine at most.
    pub max_num_queued_reqs: usize,
    /// Seeds requests that bring no seed.
    pub seed: u64,
    /// Take requests to be pooled, and no others.
    pub pools: bool,
    /// Log the end of each request.
    pub log_requests: bool,
    /// Where changes of the prefix cache go; the scheduler must have been told to report them.
    pub kv_events: Option<Arc<KvEvents>>,
}

/// The running engine. Its threads end after the last [`EngineHandle`] is dropped.
#[derive(Debug)]
pub struct Engine {
    handle: EngineHandle,
    threads: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Starts both threads. `build` runs on the engine thread, which owns what it makes from then on;
    /// its error is given back.
    pub fn start<E: Send + 'static>(
        options: EngineOptions,
        build: impl FnOnce() -> Result<(Box<dyn ModelRunner>, Scheduler), E> + Send + 'static,
    ) -> Result<Self, E> {
        let (commands, command_receiver) = unbounded();
        let (output, output_receiver) = unbounded();
        let (started, start_receiver) = std::sync::mpsc::sync_channel(1);
        let engine_output = output.clone();
        let (credit, credits) = bounded(MAX_STEPS_BEHIND);
        (0..MAX_STEPS_BEHIND)
            .for_each(|_| credit.send(()).expect("the channel was made with room for these"));
        let engine = spawn("engine", move || {
            let (runner, scheduler) = match build() {
                Ok(built) => built,
                Err(error) => return drop(started.send(Err(error))),
            };
            let stats = Arc::new(EngineStats::new(&scheduler.stats()));
            let core = EngineCore {
                scheduler,
                runner,
                in_flight: VecDeque::with_capacity(4),
                commands: command_receiver,
                output: engine_output,
                credits,
                stats: stats.clone(),
                epoch: Instant::now(),
                pause: Pause::default(),
                stopping: false,
            };
            let _ = started.send(Ok((stats, core.epoch)));
            core.run_to_the_end();
        });
        // The engine thread either sends or panics; a panic while building is passed on.
        let (stats, epoch) = match start_receiver.recv() {
            Ok(result) => result?,
            Err(_) => std::panic::resume_unwind(engine.join().expect_err("ended without an answer")),
        };
        let admission = Arc::new(Admission::new(options.max_num_queued_reqs, options.pools));
        let external = Arc::new(ExternalIds::default());
        let output_thread = OutputThread {
            tokenizer: options.tokenizer,
            ledger: Ledger {
                metrics: options.metrics,
                admission: admission.clone(),
                external: external.clone(),
                log_requests: options.log_requests,
            },
            abort: Abort(commands.clone()),
            epoch,
            credits: credit,
            kv_events: options.kv_events,
            sequences: Sequences::default(),
        };
        let output_thread = spawn("output", move || output_thread.run(&output_receiver));
        let handle = EngineHandle::new(commands, output, stats, admission, external, options.seed, epoch);
        Ok(Self { handle, threads: vec![engine, output_thread] })
    }

    /// The door.
    pub fn handle(&self) -> &EngineHandle {
        &self.handle
    }

    /// Lets go of the door and waits for both threads; blocks until every other handle is dropped too.
    pub fn join(self) {
        drop(self.handle);
        for thread in self.threads {
            // A panic has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    Builder::new().name(name.into()).spawn(run).expect("the system can start a thread")
}

struct EngineCore {
    scheduler: Scheduler,
    runner: Box<dyn ModelRunner>,
    in_flight: VecDeque<(SchedulerOutput, StepTicket)>,
    commands: Receiver<Command>,
    output: Sender<OutputMessage>,
    /// Rights to send a step; see [`MAX_STEPS_BEHIND`].
    credits: Receiver<()>,
    stats: Arc<EngineStats>,
    epoch: Instant,
    pause: Pause,
    stopping: bool,
}

impl EngineCore {
    fn run_to_the_end(mut self) {
        let ended = catch_unwind(AssertUnwindSafe(|| self.run()));
        let reason: Arc<str> = match ended {
            Ok(Ok(())) => "the engine was stopped".into(),
            Ok(Err(error)) => error.to_string().into(),
            Err(panic) => format!("the engine thread panicked: {}", panic_text(&*panic)).into(),
        };
        self.stats.record_death(reason.clone());
        let _ = self.output.send(OutputMessage::EngineGone(reason));
    }

    /// Returns when stopped, or with the error that makes going on impossible.
    fn run(&mut self) -> Result<(), RunnerError> {
        loop {
            self.take_commands();
            if self.stands_still() {
                self.send_outputs();
                if self.stopping {
                    return Ok(());
                }
                continue;
            }
            self.stats.record_work();
            let planned = self.plan_ahead()?;
            if !planned && self.in_flight.is_empty() {
                self.send_outputs();
                continue;
            }
            if self.in_flight.len() >= self.runner.max_in_flight() || !planned {
                self.collect_oldest()?;
            }
        }
    }

    /// Whether there is nothing to do until somebody says something.
    fn stands_still(&self) -> bool {
        let may_plan = self.scheduler.has_unfinished() && !self.pause.forbids_steps();
        self.in_flight.is_empty() && !may_plan
    }

    /// Takes all commands there are; sleeps if there are none and nothing else to do.
    fn take_commands(&mut self) {
        if self.stands_still() && !self.stopping {
            self.pause.tell_still();
            self.stats.record_progress(false);
            match self.commands.recv() {
                Ok(command) => self.obey(command),
                Err(_) => self.stop(),
            }
        }
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.obey(command),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => return self.stop(),
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Add(request) => self.pause.add(*request, &mut self.scheduler),
            Command::Abort(id) => self.pause.abort(id, &mut self.scheduler),
            Command::AbortAll => self.pause.abort_all(&mut self.scheduler),
            Command::ResetPrefixCache(answer) => drop(answer.send(self.scheduler.reset_prefix_cache())),
            Command::Pause(mode, asker) => self.pause.begin(mode, asker, &mut self.scheduler),
            Command::Resume(asker) => {
                self.pause.end(&mut self.scheduler);
                // Whoever is answered finds it so.
                self.stats.record_pause(&self.pause);
                let _ = asker.send(());
            }
            Command::Drain => self.pause.end_for_good(&mut self.scheduler),
            Command::Stop => self.stop(),
        }
        self.stats.record_pause(&self.pause);
    }

    /// What is left is worked off first; a pause would keep it for ever.
    fn stop(&mut self) {
        self.stopping = true;
        self.pause.end_for_good(&mut self.scheduler);
    }

    /// Plans and submits one step, if there is room for it in flight and anything to compute.
    fn plan_ahead(&mut self) -> Result<bool, RunnerError> {
        if self.in_flight.len() >= self.runner.max_in_flight() || self.pause.forbids_steps() {
            return Ok(false);
        }
        let now_us = u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX);
        let Some(plan) = self.scheduler.schedule(now_us) else { return Ok(false) };
        let submitted = guarded(plan.step, || self.runner.submit(&plan));
        match submitted {
            Ok(ticket) => self.in_flight.push_back((plan, ticket)),
            Err(error) => self.fail(plan, error)?,
        }
        Ok(true)
    }

    fn collect_oldest(&mut self) -> Result<(), RunnerError> {
        let Some((plan, ticket)) = self.in_flight.pop_front() else { return Ok(()) };
        let (scheduler, runner) = (&mut self.scheduler, &mut self.runner);
        match guarded(plan.step, || runner.collect(ticket)) {
            Ok(output) => {
                let step = scheduler.update(plan, Ok(output));
                self.stats.record_step(&step.stats);
                self.send(step);
                Ok(())
            }
            Err(error) => self.fail(plan, error),
        }
    }

    /// A step failed: its requests end, and so do those of the steps in flight, which built on it. The other
    /// steps are still collected, in order; their results are void.
    fn fail(&mut self, plan: SchedulerOutput, error: RunnerError) -> Result<(), RunnerError> {
        let step = self.scheduler.update(plan, Err(&error));
        self.stats.record_scheduler(&step.stats);
        self.send(step);
        if error.fatal { Err(error) } else { Ok(()) }
    }

    /// Tells of ends that no step reports: aborted while queued, or refused.
    fn send_outputs(&mut self) {
        if let Some(outputs) = self.scheduler.take_outputs() {
            self.stats.record_scheduler(&outputs.stats);
            self.send(outputs);
        }
    }

    fn send(&self, step: StepOutputs) {
        // Fails only if the output thread is gone, and then nobody minds.
        let _ = self.credits.recv();
        let _ = self.output.send(OutputMessage::Step(Box::new(step)));
    }
}

/// Runs a runner's phase; a panic inside fails the step, not the engine.
fn guarded<T>(step: u64, phase: impl FnOnce() -> Result<T, RunnerError>) -> Result<T, RunnerError> {
    catch_unwind(AssertUnwindSafe(phase)).unwrap_or_else(|panic| {
        let reason = format!("the model runner panicked: {}", panic_text(&*panic)).into();
        Err(RunnerError { step, reason, fatal: false })
    })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
