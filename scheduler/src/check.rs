//! The invariants of the scheduler's state, checked from scratch: for tests and the simulator.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::in_flight::RowOutcome;
use crate::kv::{BlockId, BlockKey};
use crate::scheduler::Scheduler;
use crate::state::RequestState;

macro_rules! ensure {
    ($holds:expr, $($text:tt)+) => {
        if !$holds {
            return Err(format!($($text)+));
        }
    };
}

impl Scheduler {
    /// Recounts everything. Costs time in proportion to the pool and all requests; says what is wrong.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.check_blocks()?;
        self.check_cache()?;
        self.check_requests()?;
        self.check_slots()
    }

    /// Blocks: free + used = total; reference counts are the tables' sum; nothing both free and held.
    fn check_blocks(&self) -> Result<(), String> {
        let pool = self.kv.pool();
        let total = pool.num_total();
        let mut holders = vec![0u32; total as usize + 1];
        for index in self.requests.indexes() {
            let held = self.requests[index].table.blocks().iter().filter(|block| !block.is_null());
            held.for_each(|block| holders[block.0 as usize] += 1);
        }
        let mut num_held = 0;
        for block in (1..=total).map(BlockId) {
            let (count, held_by) = (pool.ref_count(block), holders[block.0 as usize]);
            ensure!(count == held_by, "block {} has ref count {count}, {held_by} tables hold it", block.0);
            let free = pool.free_blocks().contains(block);
            ensure!(free == (count == 0), "block {} has ref count {count} and free = {free}", block.0);
            num_held += u32::from(count > 0);
        }
        let free = pool.num_free();
        ensure!(pool.free_blocks().iter().count() == free as usize, "the free list is not {free} long");
        ensure!(free + num_held == total, "{free} free + {num_held} held != {total} blocks");
        Ok(())
    }

    /// The map from content to block says what the blocks say.
    fn check_cache(&self) -> Result<(), String> {
        let pool = self.kv.pool();
        let mut contents: BTreeMap<BlockKey, u32> = BTreeMap::new();
        let mut free_cached = 0;
        for block in (1..=pool.num_total()).map(BlockId) {
            if let Some(key) = pool.key(block) {
                *contents.entry(*key).or_default() += 1;
                free_cached += u32::from(pool.ref_count(block) == 0);
                let first = pool.get(key);
                ensure!(first.is_some(), "block {} is registered but cannot be hit", block.0);
                let first = first.and_then(|first| pool.key(first));
                ensure!(first == Some(key), "a hit on block {}'s key gives other content", block.0);
            }
        }
        let (mapped, held) = (pool.num_cached(), contents.len());
        ensure!(mapped == held, "{mapped} keys can be hit, {held} are held by blocks");
        let counted = pool.num_free_cached();
        ensure!(counted == free_cached, "{counted} free blocks are said to be cached, {free_cached} are");
        Ok(())
    }

    fn check_requests(&self) -> Result<(), String> {
        let mut placeholders: BTreeMap<u32, u32> = BTreeMap::new();
        for row in self.in_flight.iter().flat_map(|flight| &flight.rows) {
            if row.outcome == RowOutcome::Token && self.requests.is_live(row.index, row.id) {
                *placeholders.entry(row.index).or_default() += 1;
            }
        }
        let mut num_deferred = 0;
        for index in self.requests.indexes() {
            let state = &self.requests[index];
            let id = state.request.id.0;
            let in_flight = placeholders.get(&index).copied().unwrap_or(0);
            ensure!(
                state.num_placeholders == in_flight,
                "request {id} counts {} tokens in flight; there are {in_flight}",
                state.num_placeholders
            );
            ensure!(state.num_computed <= state.num_tokens(), "request {id} computed tokens it has not got");
            ensure!(state.num_known() < state.max_len, "request {id} is as long as it may be, and goes on");
            ensure!(state.num_tokens() <= state.max_len, "request {id} is planned beyond its length");
            let room = state.table.len() * self.config.block_size as usize;
            ensure!(room >= state.num_computed as usize, "request {id} computed more than its blocks hold");
            self.check_table(state).map_err(|wrong| format!("request {id}: {wrong}"))?;
            if state.slot.is_none() {
                ensure!(state.table.is_empty(), "request {id} waits and holds blocks");
                ensure!(state.num_computed == 0, "request {id} waits and has computed tokens");
            }
            num_deferred += u32::from(state.waits_for.is_some());
        }
        ensure!(num_deferred == self.num_deferred, "{num_deferred} deferred, counted {}", self.num_deferred);
        for owner in self.expected.values() {
            ensure!(self.requests.is_running(*owner), "blocks are expected of a request that does not run");
        }
        Ok(())
    }

    /// Blocks are registered as what they hold, and each group has those that a token to come can see: all, or
    /// those of its window. Of no group are there more than admission counts with.
    fn check_table(&self, state: &RequestState) -> Result<(), String> {
        let (kv, table) = (&self.kv, &state.table);
        let most_tokens = (table.len() as u32 * kv.block_size()).min(self.config.max_model_len);
        for (group, kind) in kv.groups().iter().enumerate() {
            let num_skipped = kind.num_skipped_blocks(state.num_computed, kv.block_size());
            let mut num_held = 0;
            for i in 0..table.len() {
                let block = kv.blocks_at(table, i)[group];
                if block.is_null() {
                    ensure!(i < num_skipped && num_held == 0, "block {i} of group {group} is missing");
                    continue;
                }
                num_held += 1;
                let Some(key) = kv.pool().key(block) else { continue };
                let expected = state.hashes.get(i).map(|&hash| BlockKey { hash, group: group as u32 });
                let is_due = i < table.num_registered() && Some(*key) == expected;
                ensure!(is_due, "block {} is registered as other content", block.0);
            }
            let most = kind.max_blocks(most_tokens, self.config.max_num_batched_tokens, kv.block_size());
            ensure!(num_held <= most, "{num_held} blocks in group {group}, whose window needs {most}");
        }
        Ok(())
    }

    fn check_slots(&self) -> Result<(), String> {
        let running: BTreeSet<u32> = self.running.iter().copied().collect();
        let waiting: BTreeSet<u32> = self.waiting.iter().collect();
        ensure!(running.len() == self.running.len(), "a request runs twice");
        ensure!(running.is_disjoint(&waiting), "a request runs and waits");
        ensure!(running.len() + waiting.len() == self.requests.len(), "a request neither runs nor waits");
        let adapters = running.iter().filter_map(|&index| self.requests[index].request.adapter.as_ref());
        let adapters: BTreeSet<&str> = adapters.map(|adapter| adapter.key()).collect();
        let most = self.config.max_loras as usize;
        ensure!(adapters.len() <= most, "{} adapters run, of at most {most}", adapters.len());
        let mut slots: BTreeSet<u32> = self.free_slots.iter().map(|&Reverse(slot)| slot).collect();
        ensure!(slots.len() == self.free_slots.len(), "a slot is free twice");
        for &index in &self.running {
            let slot = self.requests[index].slot;
            ensure!(slot.is_some_and(|slot| slots.insert(slot)), "slot {slot:?} is free or used twice");
        }
        ensure!(slots.len() == self.config.max_num_seqs as usize, "slots got lost");
        Ok(())
    }
}
