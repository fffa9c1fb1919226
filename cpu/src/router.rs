//! Which experts a token uses, and with what weights: the rules of [`RouterSpec`] for one row of logits.

use quire_model::{GroupScore, RouterScores, RouterSpec};

use crate::lanes::{Isa, LANES, Lanes, dispatch, exp};

/// Smallest sum of weights that others are divided by, so that weights of nothing stay nothing.
const MIN_SUM: f32 = 1e-20;

/// Numbers of scratch that [`route`] needs.
pub(crate) fn route_scratch_len(num_experts: usize) -> usize {
    3 * num_experts.next_multiple_of(LANES)
}

/// Chooses `experts.len()` of the experts whose logits are given, and their `weights`. The best comes first, and
/// of equals the first; logits that are no numbers give some experts all the same. `correction` is there if the
/// rules ask for it.
pub(crate) fn route(
    isa: Isa,
    spec: &RouterSpec,
    logits: &[f32],
    correction: Option<&[f32]>,
    scratch: &mut [f32],
    experts: &mut [u32],
    weights: &mut [f32],
) {
    let len = logits.len().next_multiple_of(LANES);
    let (scores, rest) = scratch.split_at_mut(len);
    let (choice, rest) = rest.split_at_mut(len);
    scores.fill(f32::NEG_INFINITY);
    scores[..logits.len()].copy_from_slice(logits);
    match spec.scores {
        RouterScores::SparseMixer { jitter } => {
            return sparse_mixer(isa, jitter, logits, choice, experts, weights);
        }
        RouterScores::Softmax => softmax(isa, scores),
        RouterScores::Sigmoid => sigmoid(isa, scores),
        RouterScores::SoftmaxOfChosen => {}
    }
    let choice = &mut choice[..logits.len()];
    choice.copy_from_slice(&scores[..logits.len()]);
    for (score, correction) in choice.iter_mut().zip(correction.unwrap_or_default()) {
        *score += correction;
    }
    if let Some(groups) = spec.groups {
        keep_best_groups(choice, groups.num_groups, groups.top_groups, groups.score, rest);
    }
    choose(choice, experts);
    for (expert, weight) in experts.iter().zip(weights.iter_mut()) {
        *weight = scores[*expert as usize];
    }
    if spec.scores == RouterScores::SoftmaxOfChosen {
        scores.fill(f32::NEG_INFINITY);
        scores[..weights.len()].copy_from_slice(weights);
        softmax(isa, scores);
        weights.copy_from_slice(&scores[..weights.len()]);
    }
    let sum = weights.iter().sum::<f32>() + MIN_SUM;
    let factor = if spec.renormalise { spec.scale / sum } else { spec.scale };
    weights.iter_mut().for_each(|weight| *weight *= factor);
}

/// The greatest scores' places, the greatest first.
fn choose(scores: &[f32], chosen: &mut [u32]) {
    for rank in 0..chosen.len() {
        let mut best = None;
        for (index, score) in scores.iter().enumerate() {
            if best.is_none_or(|(_, greatest)| *score > greatest) && !chosen[..rank].contains(&(index as u32))
            {
                best = Some((index, *score));
            }
        }
        chosen[rank] = best.map_or(0, |(index, _)| index as u32);
    }
}

/// Makes the scores of all groups but the best unattractive. `worth` has room for a number a group.
fn keep_best_groups(scores: &mut [f32], num_groups: usize, top: usize, by: GroupScore, worth: &mut [f32]) {
    let group_len = scores.len() / num_groups;
    let worth = &mut worth[..num_groups];
    for (worth, group) in worth.iter_mut().zip(scores.chunks_exact(group_len)) {
        let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for score in group {
            (first, second) = (first.max(*score), second.max(first.min(*score)));
        }
        *worth = match by {
            GroupScore::Best => first,
            GroupScore::SumOfTwoBest => first + second,
        };
    }
    for (index, group) in scores.chunks_exact_mut(group_len).enumerate() {
        // A group's rank: how many are better, or as good and before it.
        let better = |(other, value): (usize, &f32)| {
            *value > worth[index] || (*value == worth[index] && other < index)
        };
        if worth.iter().enumerate().filter(|pair| better(*pair)).count() >= top {
            group.fill(f32::NEG_INFINITY);
        }
    }
}

/// Phi-3.5-MoE's choice as it is made without training: the best, and the best of the rest, each weighed among
/// the logits that are near enough to it. `near` is scratch of whole lanes.
fn sparse_mixer(
    isa: Isa,
    jitter: f32,
    logits: &[f32],
    near: &mut [f32],
    experts: &mut [u32],
    weights: &mut [f32],
) {
    choose(logits, experts);
    for (rank, weight) in weights.iter_mut().enumerate() {
        let best = logits[experts[rank] as usize];
        near.fill(f32::NEG_INFINITY);
        for (index, (near, logit)) in near.iter_mut().zip(logits).enumerate() {
            let is_far = (best - logit) / logit.abs().max(best) > 2.0 * jitter;
            if !is_far && !experts[..rank].contains(&(index as u32)) {
                *near = *logit;
            }
        }
        softmax(isa, near);
        *weight = near[experts[rank] as usize];
    }
}

/// Of whole lanes, filled up with minus infinity.
fn softmax(isa: Isa, scores: &mut [f32]) {
    dispatch!(isa, softmax_kernel; scores: &mut [f32] = scores);
}

fn sigmoid(isa: Isa, scores: &mut [f32]) {
    dispatch!(isa, sigmoid_kernel; scores: &mut [f32] = scores);
}

#[inline(always)]
fn softmax_kernel<V: Lanes>(scores: &mut [f32]) {
    let groups = scores.as_chunks_mut::<LANES>().0;
    let greatest = groups.iter().fold(V::splat(f32::NEG_INFINITY), |max, group| max.max(V::load(group)));
    let greatest = V::splat(greatest.greatest());
    let mut sum = V::splat(0.0);
    for group in groups.iter_mut() {
        let numerator = exp(V::load(group).sub(greatest));
        numerator.store(group);
        sum = sum.add(numerator);
    }
    let sum = V::splat(sum.sum());
    for group in groups {
        V::load(group).div(sum).store(group);
    }
}

#[inline(always)]
fn sigmoid_kernel<V: Lanes>(scores: &mut [f32]) {
    let one = V::splat(1.0);
    for group in scores.as_chunks_mut::<LANES>().0 {
        one.div(one.add(exp(V::splat(0.0).sub(V::load(group))))).store(group);
    }
}
