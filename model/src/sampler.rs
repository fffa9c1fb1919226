//! The rule by which a token is chosen from a row of logits: vLLM's order of processing, on the host. A
//! backend that samples on its device must agree with this.

use quire_scheduler::{FinishReason, NOTHING_ALLOWED, NOTHING_LEFT, SamplingParams, TokenId};

use crate::logprobs::{by_preference, capture_logprob, capture_logprobs_of};
use crate::philox::uniform;
use crate::slot::Slot;
use crate::step_inputs::{LogitsRow, LogitsTask, RowResult};

/// Why one row has no token; other rows are not affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RowFailure {
    /// The model gave something that is not a number, or a penalty overflowed.
    #[error("the model's logits are not finite")]
    NotFinite,
    /// `allowed_token_ids`, `bad_words`, `logit_bias` and `min_tokens` together leave nothing to sample.
    #[error("{NOTHING_ALLOWED}")]
    NothingAllowed,
    /// The same, of what the request's grammar allows.
    #[error("{NOTHING_LEFT}")]
    NothingLeftOfGrammar,
}

impl From<RowFailure> for FinishReason {
    fn from(failure: RowFailure) -> Self {
        let reason = failure.to_string().into();
        match failure {
            RowFailure::NotFinite => Self::Error(reason),
            RowFailure::NothingAllowed | RowFailure::NothingLeftOfGrammar => Self::Impossible(reason),
        }
    }
}

impl RowFailure {
    /// The failure of a row of that slot, where the grammar may have a part in it.
    pub fn under(self, slot: &Slot) -> Self {
        match self {
            Self::NothingAllowed if slot.params().grammar.is_some() => Self::NothingLeftOfGrammar,
            failure => failure,
        }
    }
}

/// Memory of one thread that samples, allocated once for a vocabulary.
#[derive(Debug)]
pub struct SamplerScratch {
    raw: Vec<f32>,
    weights: Vec<f32>,
    candidates: Vec<(TokenId, f32)>,
}

impl SamplerScratch {
    /// For rows of `vocab_size` logits.
    pub fn new(vocab_size: usize) -> Self {
        Self {
            raw: Vec::with_capacity(vocab_size),
            weights: Vec::with_capacity(vocab_size),
            candidates: Vec::with_capacity(vocab_size),
        }
    }
}

/// Does what `row` asks for with its logits, which it overwrites. Deterministic: the draw depends on the
/// request's seed and the token's place in the output, on nothing else.
pub fn sample_row(
    row: &LogitsRow,
    logits: &mut [f32],
    slot: &Slot,
    scratch: &mut SamplerScratch,
    result: &mut RowResult,
) {
    result.top.clear();
    (result.failure, result.logprob, result.rank) = (None, 0.0, 0);
    if !logits.iter().all(|logit| logit.is_finite()) {
        result.failure = Some(RowFailure::NotFinite);
        return;
    }
    let num_top = row.wanted_top(slot);
    scratch.raw.clear();
    if num_top.is_some() {
        scratch.raw.extend_from_slice(logits);
    }
    let chosen = match row.task {
        LogitsTask::Prompt { token } => Ok(token),
        LogitsTask::Sample => {
            let output_position = row.position as usize - slot.prompt_len();
            process(logits, slot, output_position)
                .and_then(|()| choose(logits, slot.params(), output_position as u32, scratch))
                .map_err(|failure| failure.under(slot))
        }
    };
    match chosen {
        Ok(token) => result.token = token,
        Err(failure) => {
            result.failure = Some(failure);
            return;
        }
    }
    if let Some(num_top) = num_top {
        let own = match row.wanted_ids(slot) {
            Some(ids) => capture_logprobs_of(&scratch.raw, result.token, ids, &mut result.top),
            None => capture_logprob(&scratch.raw, result.token, num_top, &mut result.top),
        };
        (result.logprob, result.rank) = (own.logprob, own.rank);
    }
}

/// Everything that changes logits before greedy choice: the grammar's mask, other masks, bias, penalties.
fn process(logits: &mut [f32], slot: &Slot, output_position: usize) -> Result<(), RowFailure> {
    let params = slot.params();
    if let Some(bits) = slot.mask() {
        mask_all_but_bits(logits, bits);
    }
    if let Some(allowed) = &params.allowed_token_ids {
        mask_all_but(logits, allowed);
    }
    let output = &slot.tokens()[slot.prompt_len()..slot.prompt_len() + output_position];
    for word in &params.bad_words {
        if let Some((last, prefix)) = word.split_last()
            && output.ends_with(prefix)
        {
            mask(logits, *last);
        }
    }
    if output_position < params.min_tokens as usize {
        params.eos_token_ids.iter().chain(&params.stop_token_ids).for_each(|token| mask(logits, *token));
    }
    for (token, bias) in &params.logit_bias {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit += bias;
        }
    }
    penalise(logits, slot);
    if logits.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY) {
        return Err(RowFailure::NotFinite);
    }
    Ok(())
}

fn mask(logits: &mut [f32], token: TokenId) {
    if let Some(logit) = logits.get_mut(token as usize) {
        *logit = f32::NEG_INFINITY;
    }
}

/// `allowed` is sorted.
fn mask_all_but(logits: &mut [f32], allowed: &[TokenId]) {
    let (mut next, len) = (0, logits.len());
    for token in allowed.iter().map(|token| *token as usize).filter(|token| *token < len) {
        logits[next.min(token)..token].fill(f32::NEG_INFINITY);
        next = token + 1;
    }
    logits[next..].fill(f32::NEG_INFINITY);
}

/// Bit `t % 32` of word `t / 32` is token `t`.
fn mask_all_but_bits(logits: &mut [f32], bits: &[u32]) {
    for (logits, bits) in logits.chunks_mut(32).zip(bits) {
        for (bit, logit) in logits.iter_mut().enumerate() {
            if bits >> bit & 1 == 0 {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// Repetition, then frequency and presence. The slot lists nothing if none is in force.
fn penalise(logits: &mut [f32], slot: &Slot) {
    let params = slot.params();
    for (token, occurrences) in slot.occurrences() {
        let logit = &mut logits[token as usize];
        *logit = if *logit > 0.0 {
            *logit / params.repetition_penalty
        } else {
            *logit * params.repetition_penalty
        };
        if occurrences > 0 {
            *logit -= params.frequency_penalty * occurrences as f32 + params.presence_penalty;
        }
    }
}

/// Greedy choice, or a draw from what temperature, min-p, top-k and top-p leave.
fn choose(
    logits: &mut [f32],
    params: &SamplingParams,
    output_position: u32,
    scratch: &mut SamplerScratch,
) -> Result<TokenId, RowFailure> {
    let best = argmax(logits).ok_or(RowFailure::NothingAllowed)?;
    if params.temperature == 0.0 {
        return Ok(best);
    }
    let max = logits[best as usize];
    logits.iter_mut().for_each(|logit| *logit = (*logit - max) / params.temperature);
    let draw = uniform(params.seed, output_position);
    let filtered = (params.top_k > 0 && (params.top_k as usize) < logits.len()) || params.top_p < 1.0;
    if !filtered {
        let weights = &mut scratch.weights;
        weights.clear();
        weights
            .extend(logits.iter().map(|logit| logit.exp()).map(|w| if w >= params.min_p { w } else { 0.0 }));
        let weighted = weights.iter().enumerate().map(|(id, weight)| (id as TokenId, *weight));
        return Ok(walk(weighted, draw));
    }
    let candidates = &mut scratch.candidates;
    candidates.clear();
    let kept = |entry: &(TokenId, f32)| entry.1 > f32::NEG_INFINITY && entry.1.exp() >= params.min_p;
    candidates.extend(logits.iter().enumerate().map(|(id, logit)| (id as TokenId, *logit)).filter(kept));
    keep_top_k(candidates, params.top_k as usize);
    keep_top_p(candidates, params.top_p);
    Ok(walk(candidates.iter().map(|(token, logit)| (*token, logit.exp())), draw))
}

/// The lowest id among the highest logits; `None` if all are masked.
fn argmax(logits: &[f32]) -> Option<TokenId> {
    let mut best = (None, f32::NEG_INFINITY);
    for (id, logit) in logits.iter().enumerate() {
        if *logit > best.1 {
            best = (Some(id as TokenId), *logit);
        }
    }
    best.0
}

/// Keeps the `k` most preferred candidates (0 = all), in no particular order.
fn keep_top_k(candidates: &mut Vec<(TokenId, f32)>, k: usize) {
    if k > 0 && k < candidates.len() {
        candidates.select_nth_unstable_by(k - 1, by_preference);
        candidates.truncate(k);
    }
}

/// First guess of how many candidates make up the nucleus; multiplied until it is enough.
const NUCLEUS_GUESS: usize = 128;

/// Keeps the most preferred candidates until those before the next make up `top_p` of the whole, sorted by
/// preference. Only a prefix as long as needed is ever sorted.
fn keep_top_p(candidates: &mut Vec<(TokenId, f32)>, top_p: f32) {
    if top_p >= 1.0 {
        candidates.sort_unstable_by(by_preference);
        return;
    }
    let weight = |entry: &(TokenId, f32)| f64::from(entry.1.exp());
    // Selection by rank leaves an order that depends on the algorithm; sums must not.
    candidates.sort_unstable_by_key(|entry| entry.0);
    let wanted = f64::from(top_p) * candidates.iter().map(weight).sum::<f64>();
    let mut guess = NUCLEUS_GUESS;
    loop {
        let sorted = guess.min(candidates.len());
        if sorted < candidates.len() {
            candidates.select_nth_unstable_by(sorted, by_preference);
        }
        candidates[..sorted].sort_unstable_by(by_preference);
        let mut mass = 0.0;
        let reached = candidates[..sorted].iter().position(|entry| {
            mass += weight(entry);
            mass >= wanted
        });
        if let Some(last) = reached {
            return candidates.truncate(last + 1);
        }
        if sorted == candidates.len() {
            return;
        }
        guess *= 8;
    }
}

/// The first token at which the running sum of weights passes `draw` of the total.
fn walk(weighted: impl Iterator<Item = (TokenId, f32)> + Clone, draw: f64) -> TokenId {
    let total: f64 = weighted.clone().map(|(_, weight)| f64::from(weight)).sum();
    let target = draw * total;
    let (mut sum, mut last) = (0.0, 0);
    for (token, weight) in weighted.filter(|(_, weight)| *weight > 0.0) {
        sum += f64::from(weight);
        last = token;
        if sum > target {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests;
