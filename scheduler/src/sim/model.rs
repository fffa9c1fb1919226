//! [`SimModel`]: instead of a model, a function from a sequence to its next token.
//!
//! The token depends on every token before it, on their order, on the adapter and on the request's seed, so
//! a scheduler that loses, repeats or mixes up anything changes what is generated.

use std::ops::Range;

use super::rng::{fold, mix};
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
    pub(super) fn start(&self, adapter: Option<&str>) -> u64 {
        adapter.unwrap_or("").bytes().fold(mix(self.seed), |hash, byte| fold(hash, u64::from(byte)))
    }

    /// Hash of a sequence and one more token. It stands for the KV of that token, which depends on the same.
    pub(super) fn extend(&self, hash: u64, token: TokenId) -> u64 {
        fold(hash, u64::from(token))
    }

    /// The token after the sequence with this hash, of which `num_outputs` tokens are generated.
    pub(super) fn sample(&self, hash: u64, sampling: &SamplingParams, num_outputs: u32) -> TokenId {
        let size = self.vocab.end - self.vocab.start;
        let first = (mix(hash ^ mix(sampling.seed)) % u64::from(size)) as u32;
        if num_outputs >= sampling.min_tokens {
            return self.vocab.start + first;
        }
        let ends = |token: &TokenId| {
            sampling.eos_token_ids.contains(token) || sampling.stop_token_ids.contains(token)
        };
        (0..size)
            .map(|i| self.vocab.start + (first + i) % size)
            .find(|token| !ends(token))
            .unwrap_or(self.vocab.start + first)
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
        let start = self.start(request.adapter.as_deref());
        request.prompt_token_ids.iter().fold(start, |hash, &token| self.extend(hash, token))
    }

    /// What a request generates if it is alone in the world, and how it ends: what any schedule must give.
    pub fn generate_alone(&self, request: &Request, max_model_len: u32) -> (Vec<TokenId>, FinishReason) {
        let sampling = &request.sampling;
        if sampling.pooling.is_some() {
            return (Vec::new(), FinishReason::Pooled);
        }
        let mut hash = self.prompt(request);
        let mut outputs = Vec::new();
        loop {
            let token = self.sample(hash, sampling, outputs.len() as u32);
            hash = self.extend(hash, token);
            outputs.push(token);
            let may_stop = outputs.len() >= sampling.min_tokens as usize;
            if may_stop && !sampling.ignore_eos && sampling.eos_token_ids.contains(&token) {
                return (outputs, FinishReason::Eos(token));
            }
            if may_stop && sampling.stop_token_ids.contains(&token) {
                return (outputs, FinishReason::StopToken(token));
            }
            let full = request.prompt_token_ids.len() + outputs.len() >= max_model_len as usize;
            if full || outputs.len() >= sampling.max_tokens as usize {
                return (outputs, FinishReason::Length);
            }
        }
    }
}
