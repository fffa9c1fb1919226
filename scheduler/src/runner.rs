//! [`ModelRunner`]: the only seam between thinking (the scheduler) and computing (a device, or a
//! simulation of one).
//!
//! It has two phases, so that step n+1 can be planned and handed over while step n is computed. Steps
//! are computed in the order of submission; that order is what makes it safe to plan ahead.

use std::sync::Arc;

use crate::output::{ModelRunnerOutput, SchedulerOutput};

/// A step handed to a runner, to be collected once, in order of submission.
#[derive(Debug, PartialEq, Eq)]
pub struct StepTicket(pub u64);

/// Why a whole step failed. Every request in flight is lost with it; later steps may succeed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("step {step} failed: {reason}")]
pub struct RunnerError {
    /// [`SchedulerOutput::step`] of the plan.
    pub step: u64,
    /// For the log and the client.
    pub reason: Arc<str>,
    /// The device is lost: no further step can succeed.
    pub fatal: bool,
}

/// Computes plans. Owned by the engine thread.
pub trait ModelRunner: Send {
    /// How many plans may be submitted and not yet collected; at least 1.
    fn max_in_flight(&self) -> usize;

    /// Hands over a plan. Does not wait for the device.
    fn submit(&mut self, plan: &SchedulerOutput) -> Result<StepTicket, RunnerError>;

    /// Waits for the oldest plan in flight, whose ticket this must be, and gives its results. They are
    /// valid until the next call.
    fn collect(&mut self, ticket: StepTicket) -> Result<&ModelRunnerOutput, RunnerError>;
}
