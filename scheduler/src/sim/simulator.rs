//! [`simulate`]: one seeded life of the production scheduler.
//!
//! Requests arrive, share prefixes, are aborted and fail; pools are tiny; steps are planned ahead. After
//! every step the scheduler's state is recounted, every KV entry read is checked by the [`SimRunner`], and
//! every token is compared to what the request generates when it is alone.

use std::collections::VecDeque;

use super::observer::Observer;
use super::rng::Rng;
use super::runner::SimRunner;
use super::workload::Workload;
use crate::config::SchedulingPolicy;
use crate::kv::BlockId;
use crate::output::{SchedulerOutput, StepOutputs};
use crate::runner::{ModelRunner, RunnerError, StepTicket};
use crate::scheduler::Scheduler;

/// What happened in one simulated life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SimReport {
    /// Steps planned.
    pub steps: u64,
    /// Hash of all plans and outputs: equal for equal seeds.
    pub trace: u64,
    /// Requests that ended by themselves.
    pub finished: u64,
    /// Requests aborted.
    pub aborted: u64,
    /// Requests that ended with an error: refused, or of an injected failure.
    pub failed: u64,
    /// Preemptions.
    pub preempted: u64,
    /// Prompt tokens taken from the prefix cache.
    pub cache_hits: u64,
    /// Blocks that windows had left behind, summed over all plans.
    pub skipped: u64,
    /// Requests that hit what is in the window before the end of a prefix, and not all before it.
    pub window_hits: u64,
    /// Calls after which a request was waiting for another's blocks.
    pub deferrals: u64,
    /// Tokens that a grammar forced.
    pub forced: u64,
    /// Requests that ended with an error of their grammar, or because it left nothing.
    pub stuck: u64,
}

/// An invariant does not hold.
#[derive(Debug, Clone, thiserror::Error)]
#[error("seed {seed}, step {step}: {wrong}")]
pub struct SimFailure {
    /// Of the life.
    pub seed: u64,
    /// Where it was noticed.
    pub step: u64,
    /// What does not hold.
    pub wrong: String,
}

/// Lives through at least `num_steps` steps (and those that the remaining requests need), or to the first
/// violation.
pub fn simulate(seed: u64, num_steps: u64) -> Result<SimReport, SimFailure> {
    let mut life = Simulation::new(seed);
    life.run(num_steps).map_err(|wrong| SimFailure { seed, step: life.report.steps, wrong })?;
    Ok(life.report)
}

struct Simulation {
    rng: Rng,
    workload: Workload,
    scheduler: Scheduler,
    runner: SimRunner,
    observer: Observer,
    in_flight: VecDeque<(SchedulerOutput, StepTicket)>,
    now_us: u64,
    report: SimReport,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let workload = Workload::new(seed, &mut rng);
        let config = workload.scheduler.clone();
        Self {
            scheduler: Scheduler::new(config.clone()).expect("the workload draws valid limits"),
            runner: SimRunner::new(workload.runner.clone()),
            observer: Observer::new(workload.runner.model.clone(), config),
            in_flight: VecDeque::new(),
            now_us: 1000,
            report: SimReport::default(),
            rng,
            workload,
        }
    }

    fn run(&mut self, num_steps: u64) -> Result<(), String> {
        // Far more than the requests that are left can need, if each step gets on with one of them.
        let patience = num_steps + 40 * u64::from(self.workload.scheduler.max_model_len) * 40;
        loop {
            let arriving = self.report.steps < num_steps;
            if arriving {
                self.arrive();
                self.abort_some();
            }
            let depth = self.workload.runner.max_in_flight;
            let steps_before = self.report.steps;
            while self.in_flight.len() < depth && self.plan()? {}
            let idle = self.in_flight.is_empty() && self.report.steps == steps_before;
            self.collect()?;
            self.check()?;
            if idle {
                if self.scheduler.has_unfinished() {
                    return Err("requests are left, nothing is in flight and nothing is planned".to_owned());
                }
                if !arriving {
                    break;
                }
                self.report.steps += 1;
            }
            if self.report.steps > patience {
                return Err(format!("{} requests do not end", self.observer.num_live()));
            }
        }
        self.finish()
    }

    fn arrive(&mut self) {
        while self.observer.num_live() < self.workload.max_live
            && self.rng.percent(self.workload.arrival_percent)
        {
            let request = self.workload.draw_request(&mut self.rng, self.now_us);
            self.observer.see_request(&request);
            self.scheduler.add(request);
        }
    }

    fn abort_some(&mut self) {
        if self.rng.below(1000) < self.workload.abort_permille && self.observer.num_live() > 0 {
            let n = self.rng.below(self.observer.num_live() as u32) as usize;
            let id = self.observer.nth_live(n).expect("n is below their number");
            if self.scheduler.abort(id) {
                self.observer.see_abort(id);
            }
        }
    }

    /// Plans and submits one step; false if there is nothing to plan now.
    fn plan(&mut self) -> Result<bool, String> {
        self.now_us += u64::from(self.rng.below(40));
        let plan = self.scheduler.schedule(self.now_us);
        self.scheduler.check_invariants()?;
        self.report.deferrals += u64::from(self.scheduler.stats().num_waiting_deferred > 0);
        let Some(plan) = plan else { return Ok(false) };
        self.report.steps += 1;
        let num_null = |blocks: &[BlockId]| blocks.iter().filter(|block| block.is_null()).count();
        let tables = self.scheduler.running.iter().map(|&i| self.scheduler.requests[i].table.blocks());
        self.report.skipped += tables.map(num_null).sum::<usize>() as u64;
        let hits = plan.admitted.iter().filter(|request| num_null(&request.block_ids) > 0);
        self.report.window_hits += hits.count() as u64;
        self.observer.see_plan(&plan)?;
        self.check_oldest(&plan)?;
        match self.runner.submit(&plan) {
            Ok(ticket) => self.in_flight.push_back((plan, ticket)),
            Err(error) => self.fail(plan, &error)?,
        }
        // Sometimes the depth is not used, or somebody leaves between two plans.
        if self.rng.percent(20) {
            self.abort_some();
            return Ok(false);
        }
        Ok(true)
    }

    fn collect(&mut self) -> Result<(), String> {
        let out = match self.in_flight.pop_front() {
            None => self.scheduler.take_outputs().unwrap_or_default(),
            Some((plan, ticket)) => match self.runner.collect(ticket) {
                Ok(results) => self.scheduler.update(plan, Ok(results)),
                Err(error) => return self.fail(plan, &error),
            },
        };
        self.see(&out)
    }

    fn fail(&mut self, plan: SchedulerOutput, error: &RunnerError) -> Result<(), String> {
        if error.fatal {
            return Err(error.reason.to_string());
        }
        let out = self.scheduler.update(plan, Err(error));
        self.see(&out)
    }

    fn see(&mut self, out: &StepOutputs) -> Result<(), String> {
        self.observer.see_outputs(out)?;
        if self.workload.scheduler.enable_kv_events {
            self.observer.check_cached(self.scheduler.kv().pool().num_cached())?;
        }
        for (request, outputs) in std::mem::take(&mut self.observer.finished) {
            self.workload.remember(&mut self.rng, &request, &outputs);
        }
        Ok(())
    }

    /// Under FCFS the request that was admitted first is in every plan, unless all it needs is in flight.
    fn check_oldest(&self, plan: &SchedulerOutput) -> Result<(), String> {
        let Some(&oldest) = self.scheduler.running.first() else { return Ok(()) };
        let state = &self.scheduler.requests[oldest];
        let planned = plan.rows.iter().any(|row| row.id == state.request.id);
        let done = state.num_wanted() == 0;
        if self.workload.scheduler.policy == SchedulingPolicy::Fcfs && !planned && !done {
            return Err(format!("request {}, the oldest, does not get on", state.request.id.0));
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), String> {
        self.scheduler.check_invariants()
    }

    fn finish(&mut self) -> Result<(), String> {
        let stats = self.scheduler.stats();
        if self.observer.num_live() > 0 {
            return Err(format!("{} requests never ended", self.observer.num_live()));
        }
        if stats.num_blocks_free != stats.num_blocks_total {
            return Err(format!("{} of {} blocks are free", stats.num_blocks_free, stats.num_blocks_total));
        }
        if !self.scheduler.reset_prefix_cache() {
            return Err("the prefix cache cannot be reset though nobody is left".to_owned());
        }
        let out = self.scheduler.take_outputs().unwrap_or_default();
        self.see(&out)?;
        self.report.trace = self.observer.trace;
        self.report.finished = self.observer.num_finished;
        self.report.aborted = self.observer.num_aborted;
        self.report.failed = self.observer.num_failed;
        self.report.forced = self.observer.num_forced;
        self.report.stuck = self.observer.num_stuck;
        self.report.preempted = self.observer.num_preempted;
        self.report.cache_hits = stats.prefix_cache_hits_total;
        Ok(())
    }
}
