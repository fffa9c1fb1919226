//! Admission: which waiting requests enter a slot in this step.
//!
//! A request is admitted only if the whole of its sequence so far fits into the free blocks, over and above
//! what the running requests still need for theirs; it would only be preempted again otherwise. What counts is
//! the most that it holds at a time: layers with a window give blocks back as the sequence goes on. If the first
//! in the queue does not fit, those behind it wait too, or a stream of small requests could keep a big one
//! out for ever.
//!
//! # Blocks that are being computed
//!
//! Requests that share a prefix and arrive together would each compute it. A block can be hit as soon as it
//! is planned, so within a step the second request hits what the first one fills. For the rest of a long
//! prefill the running request leaves the hashes of its blocks to come in `expected`. A waiting request whose
//! next block is among them is deferred: passed over, without blocking those behind it, until that block is
//! cached or its owner has left.
//!
//! Nobody waits for ever: the owner is running, and running requests go first. When it leaves, the deferred
//! request is looked at before anyone behind it, and none of those can have become the owner of a block of
//! the same chain meanwhile, since they would have been deferred on it as well. (Requests that do not read
//! the cache are not deferred, so they own nothing.)
//!
//! # Places for adapters
//!
//! The running requests have at most `max_loras` different adapters between them. A waiting request whose adapter
//! would be one more is passed over, as in vLLM, and those behind it go ahead, also with the adapters that run.
//! That alone could keep it out for ever. So once it has been passed over for `adapter_patience_us`, nobody behind
//! it gets in with an adapter, and a place becomes free when the last of those that run has ended.

use std::cmp::Reverse;

use crate::adapter::Adapter;
use crate::in_flight::Draft;
use crate::output::{AdmittedRequest, FirstScheduled};
use crate::request::TimeUs;
use crate::scheduler::Scheduler;

enum Verdict {
    /// It fits; these blocks of the prefix cache are its own from now on.
    Admit,
    /// Pass it over.
    Defer,
    /// Admit neither this one nor any behind it.
    Stop,
}

/// Who has the places for adapters while a plan is made.
struct AdapterPlaces {
    /// Different ones.
    taken: Vec<Adapter>,
    most: usize,
    /// Somebody has waited long enough for a place: nobody behind may take or keep one.
    is_closed: bool,
}

impl AdapterPlaces {
    fn take(&mut self, adapter: &Adapter) {
        if !self.taken.contains(adapter) {
            self.taken.push(adapter.clone());
        }
    }

    fn has_room_for(&self, adapter: &Adapter) -> bool {
        !self.is_closed && (self.taken.len() < self.most || self.taken.contains(adapter))
    }
}

impl Scheduler {
    /// Admits waiting requests in order, while there are slots and budget.
    pub(crate) fn plan_waiting(&mut self, draft: &mut Draft, now_us: TimeUs) {
        if self.waiting.len() == 0 {
            return;
        }
        let mut hits = std::mem::take(&mut self.spare_hits);
        let mut promised = self.blocks_promised();
        let mut places = self.adapter_places();
        let mut place = None;
        while draft.budget > 0 && !self.free_slots.is_empty() {
            let Some((rank, index)) = self.waiting.after(place) else { break };
            place = Some(rank);
            if !self.finds_place(index, &mut places, now_us) {
                continue;
            }
            match self.judge(index, promised, draft.budget, &mut hits) {
                Verdict::Admit => {
                    promised += self.admit(draft, index, &hits, now_us);
                    self.requests[index].request.adapter.iter().for_each(|adapter| places.take(adapter));
                }
                Verdict::Defer => {}
                Verdict::Stop => break,
            }
        }
        self.spare_hits = hits;
        places.taken.clear();
        self.spare_adapters = places.taken;
    }

    /// The places as the running requests have them.
    fn adapter_places(&mut self) -> AdapterPlaces {
        let taken = std::mem::take(&mut self.spare_adapters);
        let mut places = AdapterPlaces { taken, most: self.config.max_loras as usize, is_closed: false };
        let adapters = self.running.iter().filter_map(|&index| self.requests[index].request.adapter.as_ref());
        adapters.for_each(|adapter| places.take(adapter));
        places
    }

    /// Whether a waiting request's adapter, if it has one, may be among those that run.
    fn finds_place(&mut self, index: u32, places: &mut AdapterPlaces, now_us: TimeUs) -> bool {
        let state = &mut self.requests[index];
        let Some(adapter) = &state.request.adapter else { return true };
        if places.has_room_for(adapter) {
            state.passed_over_at_us = None;
            return true;
        }
        let since_us = *state.passed_over_at_us.get_or_insert(now_us);
        places.is_closed |= now_us.saturating_sub(since_us) >= self.config.adapter_patience_us;
        false
    }

    /// Another request no longer needs to wait for the blocks below `num_blocks` of this one's prefill.
    pub(crate) fn stop_expecting(&mut self, index: u32, num_blocks: usize) {
        let state = &mut self.requests[index];
        while state.expected.start < state.expected.end.min(num_blocks) {
            let hash = &state.hashes[state.expected.start];
            if self.expected.get(hash) == Some(&index) {
                self.expected.remove(hash);
            }
            state.expected.start += 1;
        }
    }

    /// Free blocks that the running requests need to compute what they have already.
    fn blocks_promised(&self) -> usize {
        let missing = |&index: &u32| {
            let state = &self.requests[index];
            self.kv.num_blocks_missing(&state.table, state.num_computed, state.num_tokens())
        };
        self.running.iter().map(missing).sum()
    }

    fn judge(
        &mut self,
        index: u32,
        promised: usize,
        budget: u32,
        hits: &mut Vec<crate::kv::BlockId>,
    ) -> Verdict {
        let state = &mut self.requests[index];
        if state.num_placeholders > 0 {
            // Preempted with a token in flight, without which its sequence is not known.
            return Verdict::Stop;
        }
        if self.config.whole_prompts && state.num_known() > budget {
            // It fits into a step of its own, so it is first in one of the next.
            return Verdict::Stop;
        }
        hits.clear();
        if let Some(hash) = &state.waits_for {
            if self.expected.contains_key(hash) && !self.kv.is_cached(hash) {
                return Verdict::Defer;
            }
            state.waits_for = None;
            self.num_deferred -= 1;
        }
        let num_known = state.num_known();
        if self.kv.enable_prefix_caching() {
            let block_size = self.kv.block_size();
            let reads = state.reads_prefix_cache();
            let (_, hashes, sequence) = state.blocks();
            sequence.extend_hashes(hashes, usize::MAX, block_size as usize);
            if reads {
                let num_hits = self.kv.find_hits(hashes, num_known, hits);
                let could_hit = ((num_known - 1) / block_size) as usize;
                let next = hashes[..could_hit].get(num_hits).copied();
                if let Some(hash) = next.filter(|hash| self.expected.contains_key(hash)) {
                    state.waits_for = Some(hash);
                    self.num_deferred += 1;
                    return Verdict::Defer;
                }
            }
        }
        let taken = self.kv.num_blocks_taken(hits, num_known);
        if taken + promised > self.kv.pool().num_free() as usize { Verdict::Stop } else { Verdict::Admit }
    }

    /// Admits a request that [`Scheduler::judge`] found to fit. Returns how many blocks it has been promised
    /// beyond those of its first row.
    fn admit(&mut self, draft: &mut Draft, index: u32, hits: &[crate::kv::BlockId], now_us: TimeUs) -> usize {
        let Reverse(slot) = self.free_slots.pop().expect("a slot is free");
        let state = &mut self.requests[index];
        let num_known = state.num_known();
        self.kv.adopt(&mut state.table, hits);
        let num_cached = state.table.len() as u32 * self.kv.block_size();
        state.slot = Some(slot);
        state.num_computed = num_cached;
        if !state.was_scheduled {
            state.was_scheduled = true;
            state.first_scheduled = Some(FirstScheduled { at_us: now_us, num_cached_tokens: num_cached });
            if self.kv.enable_prefix_caching() && state.reads_prefix_cache() {
                self.totals.prefix_cache_queries += u64::from(num_known);
                self.totals.prefix_cache_hits += u64::from(num_cached);
            }
        }
        draft.plan.admitted.push(AdmittedRequest {
            slot,
            id: state.request.id,
            prompt_token_ids: state.request.prompt_token_ids.clone(),
            output_token_ids: state.outputs.clone(),
            sampling: state.request.sampling.clone(),
            adapter: state.request.adapter.clone(),
            block_ids: hits.to_vec(),
        });
        let rank = state.rank;
        let num_tokens = self.cap_tokens(num_known - num_cached, draft.budget);
        self.waiting.remove(rank);
        self.running.push(index);
        let blocks_from = draft.plan.new_block_ids.len() as u32;
        let (table, end) = (&mut self.requests[index].table, num_cached + num_tokens);
        let grown = self.kv.grow(table, num_cached, end, &mut draft.plan.new_block_ids);
        assert!(grown, "the whole sequence fits, so a part of it does");
        self.plan_row(draft, index, num_tokens, blocks_from);
        self.expect_rest(index);
        let state = &self.requests[index];
        self.kv.num_blocks_missing(&state.table, state.num_computed, num_known)
    }

    /// Lets others wait for the blocks that this request has still to fill.
    fn expect_rest(&mut self, index: u32) {
        let state = &mut self.requests[index];
        if !self.kv.enable_prefix_caching() || !state.reads_prefix_cache() {
            return;
        }
        state.expected = state.table.num_registered()..state.hashes.len();
        for hash in &state.hashes[state.expected.clone()] {
            self.expected.entry(*hash).or_insert(index);
        }
    }
}
