//! [`RequestState`]: the scheduler's own record of a request's progress, and [`Requests`], all of them.

use std::collections::HashMap;
use std::ops::{Index, IndexMut, Range};

use crate::in_flight::RowOutcome;
use crate::kv::{BlockHash, BlockTable, Sequence};
use crate::output::FirstScheduled;
use crate::queue::Rank;
use crate::repetition::RepetitionWatch;
use crate::request::{FinishReason, Request, RequestId, TimeUs, TokenId};

/// A request that has not ended. With a slot it is running and holds blocks; without, it is waiting and
/// holds none.
///
/// Its sequence is `prompt + outputs + num_placeholders`: a placeholder is a token that a step in flight
/// will sample. `num_computed` counts the tokens whose KV the steps planned so far will have written.
#[derive(Debug)]
pub(crate) struct RequestState {
    pub(crate) request: Request,
    pub(crate) rank: Rank,
    pub(crate) slot: Option<u32>,
    pub(crate) outputs: Vec<TokenId>,
    pub(crate) num_placeholders: u32,
    pub(crate) num_computed: u32,
    /// Length of the sequence at which it ends: `min(prompt + max_tokens, max_model_len)`. A pooled one never
    /// gets there: it ends with its prompt.
    pub(crate) max_len: u32,
    pub(crate) table: BlockTable,
    /// Of the full blocks of known tokens, as far as they were needed. Never computed twice.
    pub(crate) hashes: Vec<BlockHash>,
    /// Blocks of the prefill that others may wait for (see [`crate::admission`]).
    pub(crate) expected: Range<usize>,
    /// The block that this waiting request leaves to another to compute.
    pub(crate) waits_for: Option<BlockHash>,
    /// When there was first no place for this waiting request's adapter.
    pub(crate) passed_over_at_us: Option<TimeUs>,
    pub(crate) times_preempted: u32,
    pub(crate) was_scheduled: bool,
    /// Facts not yet told.
    pub(crate) first_scheduled: Option<FirstScheduled>,
    /// Prompt positions below this have had their log-probability delivered.
    pub(crate) prompt_logprobs_told: u32,
    pub(crate) repetition: Option<RepetitionWatch>,
    /// Tokens planned in the call of `schedule` with this number.
    pub(crate) planned: (u64, u32),
}

impl RequestState {
    pub(crate) fn new(request: Request, rank: Rank, max_model_len: u32) -> Self {
        let prompt_len = request.prompt_token_ids.len() as u32;
        let max_len = match request.sampling.pooling {
            Some(_) => prompt_len + 1,
            None => prompt_len.saturating_add(request.sampling.max_tokens.max(1)).min(max_model_len),
        };
        let repetition = request.sampling.repetition.map(RepetitionWatch::new);
        Self {
            request,
            rank,
            slot: None,
            outputs: Vec::new(),
            num_placeholders: 0,
            num_computed: 0,
            max_len,
            table: BlockTable::default(),
            hashes: Vec::new(),
            expected: 0..0,
            waits_for: None,
            passed_over_at_us: None,
            times_preempted: 0,
            was_scheduled: false,
            first_scheduled: None,
            prompt_logprobs_told: 0,
            repetition,
            planned: (0, 0),
        }
    }

    pub(crate) fn prompt_len(&self) -> u32 {
        self.request.prompt_token_ids.len() as u32
    }

    /// Tokens that the host knows.
    pub(crate) fn num_known(&self) -> u32 {
        self.prompt_len() + self.outputs.len() as u32
    }

    /// Tokens known or in flight.
    pub(crate) fn num_tokens(&self) -> u32 {
        self.num_known() + self.num_placeholders
    }

    /// Tokens that remain to be computed, those in flight taken as done. None if the token in flight will be
    /// the last one; or if there is a grammar, which must know it before it can say what may come next.
    pub(crate) fn num_wanted(&self) -> u32 {
        let total = self.num_tokens();
        let unknown = self.num_placeholders > 0 && self.request.sampling.grammar.is_some();
        if total >= self.max_len || unknown { 0 } else { total - self.num_computed }
    }

    /// Takes new tokens up to the one that ends the sequence.
    pub(crate) fn take_tokens(
        &mut self,
        tokens: impl Iterator<Item = TokenId>,
        taken: &mut Vec<TokenId>,
    ) -> Option<FinishReason> {
        for token in tokens {
            self.outputs.push(token);
            taken.push(token);
            let finish = self.check_stop();
            if finish.is_some() {
                return finish;
            }
        }
        None
    }

    /// Whether the request takes blocks from the prefix cache. Log-probabilities and hidden states of prompt
    /// tokens come from computing them, so a request that wants those takes none.
    pub(crate) fn reads_prefix_cache(&self) -> bool {
        let sampling = &self.request.sampling;
        !self.request.bypass_prefix_cache && sampling.prompt_logprobs.is_none() && sampling.pooling.is_none()
    }

    /// What is still to come of a row that ends at this position.
    pub(crate) fn outcome(&self, end: u32) -> RowOutcome {
        match self.request.sampling.pooling {
            _ if end < self.num_tokens() => RowOutcome::Nothing,
            Some(_) => RowOutcome::Vector,
            None => RowOutcome::Token,
        }
    }

    /// The record taken apart: what [`crate::kv::KvCacheManager::register`] needs at once.
    pub(crate) fn blocks(&mut self) -> (&mut BlockTable, &mut Vec<BlockHash>, Sequence<'_>) {
        let sequence = Sequence {
            prompt: &self.request.prompt_token_ids,
            output: &self.outputs,
            adapter: self.request.adapter.as_ref(),
            cache_salt: self.request.cache_salt.as_ref(),
        };
        (&mut self.table, &mut self.hashes, sequence)
    }

    /// Whether the newest token ends the sequence: vLLM's order of checks. Before `min_tokens` the sampler
    /// masks end tokens, so finding one there means nothing. To be called once a token.
    fn check_stop(&mut self) -> Option<FinishReason> {
        let token = *self.outputs.last()?;
        let repeats = self.repetition.as_mut().is_some_and(|watch| watch.take(&self.outputs));
        let sampling = &self.request.sampling;
        let may_stop = self.outputs.len() >= sampling.min_tokens as usize;
        if may_stop {
            if !sampling.ignore_eos && sampling.eos_token_ids.contains(&token) {
                return Some(FinishReason::Eos(token));
            }
            if sampling.stop_token_ids.binary_search(&token).is_ok() {
                return Some(FinishReason::StopToken(token));
            }
        }
        if self.num_known() >= self.max_len {
            return Some(FinishReason::Length);
        }
        (may_stop && repeats).then_some(FinishReason::Repetition)
    }
}

/// All requests that have not ended, at stable indexes.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    states: Vec<Option<RequestState>>,
    vacant: Vec<u32>,
    /// Only looked up, never walked.
    by_id: HashMap<RequestId, u32>,
}

impl Requests {
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(crate) fn insert(&mut self, state: RequestState) -> u32 {
        let id = state.request.id;
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.states.push(None);
            self.states.len() as u32 - 1
        });
        self.states[index as usize] = Some(state);
        let before = self.by_id.insert(id, index);
        assert!(before.is_none(), "request ids are unique, but {} is in use", id.0);
        index
    }

    pub(crate) fn remove(&mut self, index: u32) -> RequestState {
        let state = self.states[index as usize].take().expect("the request has not ended");
        self.by_id.remove(&state.request.id);
        self.vacant.push(index);
        state
    }

    pub(crate) fn find(&self, id: RequestId) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    /// Whether the request at this index is still the one meant. Ids are never reused; indexes are.
    pub(crate) fn is_live(&self, index: u32, id: RequestId) -> bool {
        self.states[index as usize].as_ref().is_some_and(|state| state.request.id == id)
    }

    /// Whether a request is at this index and running.
    pub(crate) fn is_running(&self, index: u32) -> bool {
        self.states[index as usize].as_ref().is_some_and(|state| state.slot.is_some())
    }

    pub(crate) fn indexes(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.states.len() as u32).filter(|&i| self.states[i as usize].is_some())
    }
}

impl Index<u32> for Requests {
    type Output = RequestState;

    fn index(&self, index: u32) -> &RequestState {
        self.states[index as usize].as_ref().expect("the request has not ended")
    }
}

impl IndexMut<u32> for Requests {
    fn index_mut(&mut self, index: u32) -> &mut RequestState {
        self.states[index as usize].as_mut().expect("the request has not ended")
    }
}
