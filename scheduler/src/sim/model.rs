//! [`SimModel`]: instead of a model, a function from a sequence to its next token.
//!
//! The token depends on every token before it, on their order, on the adapter and on the request's seed, so
//! a scheduler that loses, repeats or mixes up anything changes what is generated.

use std::ops::Range;

use super::rng::{fold, mix};
use crate::adapter::Adapter;
use crate::matching::{Matching, NOTHING_LEFT};
use crate::request::{FinishReason, Request, SamplingParams, TokenId};

/// Numbers in a pooled vector.
pub const POOLED_WIDTH: usize = 8;

/// See the module's text.
#[derive(Debug, Clone)]
pub struct SimModel {
    /// Two models of different seeds have nothing in common.
    pub seed: u64,
    /// Generated tokens are in this range; not empty.
    pub vocab: Range<TokenId>,
}

impl SimModel {
    /// Hash of the empty sequence.
    pub(super) fn start(&self, adapter: Option<&Adapter>) -> u64 {
        adapter
            .map_or("", Adapter::key)
            .bytes()
            .fold(mix(self.seed), |hash, byte| fold(hash, u64::from(byte)))
    }

    /// Hash of a sequence and one more token. It stands for the KV of that token, which depends on the same.
    pub(super) fn extend(&self, hash: u64, token: TokenId) -> u64 {
        fold(hash, u64::from(token))
    }

    /// The token after the sequence with this hash and this output. `mask` is what a grammar allows, if there is
    /// one; then any token of the vocabulary can be generated, those below the range as well, or none.
    pub(super) fn sample(
        &self,
        hash: u64,
        sampling: &SamplingParams,
        output: &[TokenId],
        mask: Option<&[u32]>,
    ) -> Option<TokenId> {
        let from = if mask.is_some() { 0 } else { self.vocab.start };
        let size = self.vocab.end - from;
        let first = (mix(hash ^ mix(sampling.seed)) % u64::from(size)) as u32;
        let allowed = |token: &TokenId| {
            mask.is_none_or(|mask| mask[*token as usize / 32] >> (token % 32) & 1 == 1)
                && !sampling.excludes(output, *token)
        };
        let chosen = (0..size).map(|i| from + (first + i) % size).find(allowed);
        chosen.or(mask.is_none().then_some(from + first))
    }

    /// What a pooled request gives, whoever it shares steps with.
    pub fn pool_alone(&self, request: &Request) -> [f32; POOLED_WIDTH] {
        self.pool(self.prompt(request))
    }

    /// The vector of a prompt with this hash: numbers in [-1, 1).
    pub(super) fn pool(&self, hash: u64) -> [f32; POOLED_WIDTH] {
        std::array::from_fn(|i| (fold(hash, i as u64) >> 40) as f32 / (1u32 << 23) as f32 - 1.0)
    }

    fn prompt(&self, request: &Request) -> u64 {
        let start = self.start(request.adapter.as_ref());
        request.prompt_token_ids.iter().fold(start, |hash, &token| self.extend(hash, token))
    }

    /// What a request generates if it is alone in the world, and how it ends: what any schedule must give. Each
    /// token is sampled, those that a grammar forces as well.
    pub fn generate_alone(&self, request: &Request, max_model_len: u32) -> (Vec<TokenId>, FinishReason) {
        let mut outputs = Vec::new();
        let end = self.generate_into(request, max_model_len, &mut outputs);
        (outputs, end.unwrap_or_else(|end| end))
    }

    fn generate_into(
        &self,
        request: &Request,
        max_model_len: u32,
        outputs: &mut Vec<TokenId>,
    ) -> Result<FinishReason, FinishReason> {
        let sampling = &request.sampling;
        if sampling.pooling.is_some() {
            return Ok(FinishReason::Pooled);
        }
        let mut matcher = sampling.grammar.as_ref().map(|grammar| grammar.matcher());
        let mut mask = vec![0; Matching::mask_words(self.vocab.end as usize)];
        let mut hash = self.prompt(request);
        loop {
            let masked = match &mut matcher {
                Some(matcher) => matcher.fill_mask(&mut mask)?,
                None => false,
            };
            let token = self.sample(hash, sampling, outputs, masked.then_some(&mask));
            let token = token.ok_or_else(|| FinishReason::Impossible(NOTHING_LEFT.into()))?;
            if let Some(matcher) = &mut matcher {
                matcher.accept(token)?;
            }
            // What comes after its end is not the grammar's business.
            matcher = matcher.filter(|_| !sampling.eos_token_ids.contains(&token));
            hash = self.extend(hash, token);
            outputs.push(token);
            let may_stop = outputs.len() >= sampling.min_tokens as usize;
            if may_stop && !sampling.ignore_eos && sampling.eos_token_ids.contains(&token) {
                return Ok(FinishReason::Eos(token));
            }
            if may_stop && sampling.stop_token_ids.contains(&token) {
                return Ok(FinishReason::StopToken(token));
            }
            let full = request.prompt_token_ids.len() + outputs.len() >= max_model_len as usize;
            if full || outputs.len() >= sampling.max_tokens as usize {
                return Ok(FinishReason::Length);
            }
            if may_stop && sampling.repetition.is_some_and(|detection| detection.finds(outputs)) {
                return Ok(FinishReason::Repetition);
            }
        }
    }
}
