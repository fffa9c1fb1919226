//! What the tests know of sampling beside `sample_row`: whether a draw that differs from it lies so close to
//! the boundary between two tokens that the last places of exp decide.

use quire_model::{Slot, uniform};
use quire_scheduler::SamplingParams;

/// Relative error of a mass that the last places of single weights may add up to.
const MASS_TOLERANCE: f64 = 1e-6;

/// The logits that are drawn from: `output_position` tokens of the slot's output are there.
pub fn processed(raw: &[f32], slot: &Slot, output_position: usize) -> Vec<f32> {
    let params = slot.params();
    let (prompt, rest) = slot.tokens().split_at(slot.prompt_len());
    let output = &rest[..output_position];
    let mut logits = raw.to_vec();
    for (token, logit) in logits.iter_mut().enumerate() {
        let token = token as u32;
        let completes =
            |word: &Vec<u32>| word.last() == Some(&token) && output.ends_with(&word[..word.len() - 1]);
        let is_end = params.eos_token_ids.contains(&token) || params.stop_token_ids.contains(&token);
        let forbidden = |mask: &[u32]| mask[token as usize / 32] >> (token % 32) & 1 == 0;
        let masked = slot.mask().is_some_and(forbidden)
            || params.allowed_token_ids.as_ref().is_some_and(|allowed| !allowed.contains(&token))
            || params.bad_words.iter().any(completes)
            || (is_end && output_position < params.min_tokens as usize);
        if masked {
            *logit = f32::NEG_INFINITY;
            continue;
        }
        params.logit_bias.iter().filter(|(biased, _)| *biased == token).for_each(|(_, bias)| *logit += bias);
        let count = output.iter().filter(|other| **other == token).count() as f32;
        if count > 0.0 || prompt.contains(&token) {
            let penalty = params.repetition_penalty;
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
        if count > 0.0 {
            *logit -= params.frequency_penalty * count + params.presence_penalty;
        }
    }
    logits
}

/// Whether `token` could have been drawn if every sum were off by [`MASS_TOLERANCE`].
pub fn is_within_tolerance(
    logits: &[f32],
    params: &SamplingParams,
    output_position: u32,
    token: u32,
) -> bool {
    let draw = uniform(params.seed, output_position);
    [-MASS_TOLERANCE, 0.0, MASS_TOLERANCE].into_iter().any(|error| {
        let mut before = 0.0;
        kept(logits, params, error).into_iter().any(|(candidate, mass)| {
            let range = before - MASS_TOLERANCE..=before + mass + MASS_TOLERANCE;
            before += mass;
            candidate == token && range.contains(&draw)
        })
    })
}

/// Tokens in the order of the draw and their probabilities, with the thresholds of min-p and top-p shifted.
fn kept(logits: &[f32], params: &SamplingParams, error: f64) -> Vec<(u32, f64)> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let place = |logit: f32| (logit - max) / params.temperature;
    let mut entries: Vec<(u32, f32, f64)> = (0..)
        .zip(logits.iter().map(|logit| place(*logit)))
        .map(|(id, place)| (id, place, f64::from(place).exp()))
        .filter(|entry| entry.2 > 0.0 && entry.2 >= f64::from(params.min_p) * (1.0 + error))
        .collect();
    let is_filtered = (params.top_k > 0 && (params.top_k as usize) < logits.len()) || params.top_p < 1.0;
    if is_filtered {
        entries.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if params.top_k > 0 {
            entries.truncate(params.top_k as usize);
        }
        let wanted =
            f64::from(params.top_p) * (1.0 + error) * entries.iter().map(|entry| entry.2).sum::<f64>();
        let mut mass = 0.0;
        let reached = entries.iter().position(|entry| {
            mass += entry.2;
            mass >= wanted
        });
        entries.truncate(reached.map_or(entries.len(), |last| last + 1));
    }
    let total: f64 = entries.iter().map(|entry| entry.2).sum();
    entries.into_iter().map(|(id, _, weight)| (id, weight / total)).collect()
}
