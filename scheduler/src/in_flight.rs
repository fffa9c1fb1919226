//! What the scheduler remembers of a plan until its results are in: [`InFlightStep`]; and the plan under
//! construction: [`Draft`].

use crate::kv::{BlockId, BlockKey};
use crate::output::SchedulerOutput;
use crate::request::RequestId;

/// Whose row it is. The request may have ended, and its index been given away, by the time of the result.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InFlightRow {
    pub(crate) index: u32,
    pub(crate) id: RequestId,
    pub(crate) outcome: RowOutcome,
}

/// What a runner gives for a row besides KV.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowOutcome {
    /// More of the prompt is to come.
    Nothing,
    /// The sequence's next token.
    Token,
    /// The prompt, pooled.
    Vector,
}

/// A block that the step's rows fill, and that can be hit already.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Registered {
    pub(crate) owner: RequestId,
    pub(crate) block: BlockId,
    pub(crate) key: BlockKey,
}

/// A plan whose results are not in yet.
#[derive(Debug, Default)]
pub(crate) struct InFlightStep {
    pub(crate) step: u64,
    /// Parallel to the plan's rows.
    pub(crate) rows: Vec<InFlightRow>,
    pub(crate) registered: Vec<Registered>,
    /// An earlier step failed after this one was planned: nobody waits for its results.
    pub(crate) written_off: bool,
}

impl InFlightStep {
    /// Rows of which this comes.
    pub(crate) fn count(&self, outcome: RowOutcome) -> usize {
        self.rows.iter().filter(|row| row.outcome == outcome).count()
    }

    pub(crate) fn clear(&mut self) {
        self.rows.clear();
        self.registered.clear();
        self.written_off = false;
    }
}

/// A plan under construction.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) plan: SchedulerOutput,
    pub(crate) flight: InFlightStep,
    /// Tokens that may still be planned.
    pub(crate) budget: u32,
    pub(crate) preempted: bool,
}
