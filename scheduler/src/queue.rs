//! [`WaitingQueue`]: the requests that hold no blocks, in the order in which they are admitted.
//!
//! A request has one [`Rank`] for life, whatever happens to it, so a preempted request finds its old place
//! again by itself. Ageing does not move ranks either: with `effective priority = priority - age / ageing`,
//! where `age = now - arrival`, the difference between two requests is the same at any `now`. The rank is
//! that effective priority with the common term left out, `priority * ageing + arrival`. It grows with
//! arrival, so only finitely many requests can ever come before a given one: none starves.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::config::{SchedulerConfig, SchedulingPolicy};
use crate::request::Request;

/// Place of a request in the order of admission: lower first. Unique to the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    urgency: i128,
    arrival_us: u64,
    tie: u64,
}

impl Rank {
    /// The rank of the `count`th request that was added.
    pub(crate) fn new(config: &SchedulerConfig, request: &Request, count: u64) -> Self {
        match config.policy {
            SchedulingPolicy::Fcfs => Self { urgency: 0, arrival_us: 0, tie: count },
            SchedulingPolicy::Priority => {
                let (scale, age) = match config.priority_ageing_us {
                    0 => (1, 0),
                    ageing => (i128::from(ageing), i128::from(request.arrival_us)),
                };
                Self {
                    urgency: i128::from(request.priority) * scale + age,
                    arrival_us: request.arrival_us,
                    tie: request.id.0,
                }
            }
        }
    }
}

/// See the module's text. Values are indexes into [`crate::state::Requests`].
#[derive(Debug, Default)]
pub(crate) struct WaitingQueue {
    by_rank: BTreeMap<Rank, u32>,
}

impl WaitingQueue {
    pub(crate) fn len(&self) -> usize {
        self.by_rank.len()
    }

    pub(crate) fn insert(&mut self, rank: Rank, index: u32) {
        let before = self.by_rank.insert(rank, index);
        assert!(before.is_none(), "a rank belongs to one request");
    }

    pub(crate) fn remove(&mut self, rank: Rank) {
        self.by_rank.remove(&rank);
    }

    /// The first request behind `rank`, or the first of all.
    pub(crate) fn after(&self, rank: Option<Rank>) -> Option<(Rank, u32)> {
        let from = rank.map_or(Bound::Unbounded, Bound::Excluded);
        self.by_rank.range((from, Bound::Unbounded)).next().map(|(&rank, &index)| (rank, index))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.by_rank.values().copied()
    }
}
