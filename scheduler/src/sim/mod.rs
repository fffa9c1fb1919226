//! A runner without a model, and the simulator that drives the scheduler with it.
//!
//! * [`SimModel`]: a function from a sequence to its next token, instead of a model.
//! * [`SimRunner`]: a [`crate::ModelRunner`] over it: as fast as can be for measuring everything around a
//!   model, or checking every KV entry that a plan makes it read.
//! * [`ToyGrammar`]: a grammar without meaning, which any runner can be made to obey.
//! * [`simulate`]: one seeded life of the production scheduler, its invariants checked after every step.

mod memory;
mod model;
mod observer;
mod rng;
mod runner;
mod simulator;
mod toy_grammar;
mod workload;

pub use model::{POOLED_WIDTH, SimModel};
pub use rng::Rng;
pub use runner::{SimCheck, SimFailures, SimRunner, SimRunnerConfig, StepCost};
pub use simulator::{SimFailure, SimReport, simulate};
pub use toy_grammar::ToyGrammar;
