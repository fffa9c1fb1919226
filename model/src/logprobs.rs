//! Log-probabilities of the raw distribution: captured before any parameter touches the logits.

use std::cmp::Ordering;

use quire_scheduler::TokenId;

/// One token's place in a distribution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RankedLogprob {
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// 1 + the number of tokens with a strictly higher logit.
    pub rank: u32,
}

/// Log-probability and rank of `token`, and into `top` the `num_top` best tokens (fewer if the vocabulary
/// is smaller), best first, equal ones by lower id. `logits` must be finite.
pub fn capture_logprob(
    logits: &[f32],
    token: TokenId,
    num_top: u32,
    top: &mut Vec<(TokenId, f32)>,
) -> RankedLogprob {
    best(logits, num_top as usize, top);
    normalise(logits, token, top)
}

/// The same, but into `told` go `token` itself and `wanted`, in that order and each once, whatever their rank.
pub fn capture_logprobs_of(
    logits: &[f32],
    token: TokenId,
    wanted: &[TokenId],
    told: &mut Vec<(TokenId, f32)>,
) -> RankedLogprob {
    told.clear();
    let others = wanted.iter().copied().filter(|id| *id != token);
    told.extend(std::iter::once(token).chain(others).map(|id| (id, logits[id as usize])));
    normalise(logits, token, told)
}

/// Makes the logits in `told` log-probabilities; place and log-probability of `token`.
fn normalise(logits: &[f32], token: TokenId, told: &mut [(TokenId, f32)]) -> RankedLogprob {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from((logit - max).exp())).sum();
    let log_sum = f64::from(max) + sum.ln();
    let logprob = |logit: f32| (f64::from(logit) - log_sum) as f32;
    told.iter_mut().for_each(|(_, value)| *value = logprob(*value));
    let own = logits[token as usize];
    let rank = 1 + logits.iter().filter(|logit| **logit > own).count() as u32;
    RankedLogprob { logprob: logprob(own), rank }
}

/// Order of preference: higher logit first, then lower id.
pub(crate) fn by_preference(a: &(TokenId, f32), b: &(TokenId, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Above this many, sorting everything is cheaper than inserting into a short list.
const MAX_INSERTED: usize = 64;

fn best(logits: &[f32], count: usize, top: &mut Vec<(TokenId, f32)>) {
    top.clear();
    let entries = logits.iter().enumerate().map(|(id, logit)| (id as TokenId, *logit));
    if count > MAX_INSERTED {
        top.extend(entries);
        top.sort_unstable_by(by_preference);
        top.truncate(count);
        return;
    }
    for entry in entries.filter(|_| count > 0) {
        if top.len() == count {
            // Ids ascend, so an equal logit never displaces an earlier one.
            if entry.1 <= top[count - 1].1 {
                continue;
            }
            top.pop();
        }
        let place = top.partition_point(|kept| kept.1 >= entry.1);
        top.insert(place, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_lists_agree_and_ties_go_to_the_lower_id() {
        let logits: Vec<f32> = (0..500u32).map(|i| ((i * 7919) % 37) as f32 * 0.25).collect();
        let (mut short, mut long) = (Vec::new(), Vec::new());
        for token in [0u32, 36, 499] {
            let a = capture_logprob(&logits, token, 64, &mut short);
            let b = capture_logprob(&logits, token, 65, &mut long);
            assert_eq!(a, b);
            assert_eq!(short[..], long[..64]);
            assert!(short.windows(2).all(|w| w[0].1 > w[1].1 || (w[0].1 == w[1].1 && w[0].0 < w[1].0)));
            assert_eq!(a.rank as usize, 1 + logits.iter().filter(|l| **l > logits[token as usize]).count());
        }
        capture_logprob(&logits, 3, u32::MAX, &mut long);
        assert_eq!(long.len(), 500);
        let total: f64 = long.iter().map(|(_, l)| f64::from(*l).exp()).sum();
        assert!((total - 1.0).abs() < 1e-5, "{total}");
        capture_logprob(&logits, 3, 0, &mut long);
        assert!(long.is_empty());
    }

    #[test]
    fn chosen_tokens_have_the_numbers_that_they_have_among_all() {
        let logits: Vec<f32> = (0..500u32).map(|i| ((i * 7919) % 37) as f32 * 0.25).collect();
        let (mut all, mut told) = (Vec::new(), Vec::new());
        for token in [7u32, 36, 499] {
            let expected = capture_logprob(&logits, token, u32::MAX, &mut all);
            let wanted = [499, 0, 36];
            assert_eq!(capture_logprobs_of(&logits, token, &wanted, &mut told), expected);
            let ids: Vec<_> = told.iter().map(|entry| entry.0).collect();
            let others: Vec<_> = wanted.into_iter().filter(|id| *id != token).collect();
            assert_eq!(ids, [&[token][..], &others].concat());
            assert!(told.iter().all(|entry| all.contains(entry)), "{told:?}");
        }
    }
}
