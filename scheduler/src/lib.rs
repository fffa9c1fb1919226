//! The pure half of Quire: what to compute next, for whom, and in which blocks.
//!
//! Nothing here knows a device, a clock, a socket or a thread. Same calls, same plans, everywhere.
#![forbid(unsafe_code)]

pub mod kv;
mod output;
mod request;
mod runner;
mod stub;

pub use output::*;
pub use request::*;
pub use runner::*;
pub use stub::*;

/// Which waiting request is admitted first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SchedulingPolicy {
    /// In order of arrival.
    #[default]
    Fcfs,
    /// By (priority, arrival): lower first.
    Priority,
}
