//! The pure half of Quire: what to compute next, for whom, and in which blocks.
//!
//! Nothing here knows a device, a clock, a socket or a thread. Same calls, same plans, everywhere.
//!
//! * What is asked: [`Request`], [`SamplingParams`], a [`Grammar`] and an [`Adapter`] perhaps; how it ends: [`FinishReason`].
//! * The decisions: [`Scheduler`] within a [`SchedulerConfig`], over the blocks of [`kv`].
//! * The messages of a step: [`SchedulerOutput`] to a [`ModelRunner`], [`ModelRunnerOutput`] back,
//!   [`StepOutputs`] to the world.
//! * The proof: [`sim`], a runner without a model and the simulator that drives the scheduler with it.
#![forbid(unsafe_code)]

mod adapter;
mod admission;
mod check;
mod config;
mod grammar;
mod in_flight;
pub mod kv;
mod matching;
mod output;
mod preemption;
mod queue;
mod repetition;
mod request;
mod runner;
mod scheduler;
pub mod sim;
mod state;
mod update;

pub use adapter::Adapter;
pub use config::{ConfigError, SchedulerConfig, SchedulingPolicy};
pub use grammar::{Grammar, GrammarError, GrammarMatcher};
pub use matching::{Matching, NOTHING_ALLOWED, NOTHING_LEFT};
pub use output::*;
pub use repetition::RepetitionDetection;
pub use request::*;
pub use runner::*;
pub use scheduler::Scheduler;
