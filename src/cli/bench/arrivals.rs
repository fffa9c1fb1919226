//! When each request is sent: all at once, or at random times with a given mean rate and burstiness.

use rand::Rng;
use rand_distr::{Distribution, Gamma};

/// Seconds after the start at which each of `count` requests is sent, ascending.
///
/// The gaps are gamma distributed with shape `burstiness`: 1 gives a Poisson process, less gives bursts,
/// more gives an even flow. As in vLLM they are then scaled, so that the last request is sent after exactly
/// `count / rate_per_s` seconds. An infinite rate sends all at 0. Both numbers are above 0.
pub(crate) fn arrival_times_s(
    count: usize,
    rate_per_s: f64,
    burstiness: f64,
    rng: &mut impl Rng,
) -> Vec<f64> {
    if rate_per_s.is_infinite() || count == 0 {
        return vec![0.0; count];
    }
    let gaps = Gamma::new(burstiness, 1.0 / burstiness).expect("both parameters are above 0");
    let mut now = 0.0;
    let mut times: Vec<f64> = Vec::with_capacity(count);
    times.extend(gaps.sample_iter(rng).take(count).map(|gap| {
        now += gap;
        now
    }));
    if now > 0.0 {
        let scale = count as f64 / rate_per_s / now;
        times.iter_mut().for_each(|time| *time *= scale);
    }
    times
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::super::stats::Summary;
    use super::*;

    fn gaps(seed: u64, burstiness: f64) -> Vec<f64> {
        let times = arrival_times_s(20_000, 50.0, burstiness, &mut StdRng::seed_from_u64(seed));
        let mut last = 0.0;
        times.into_iter().map(|time| time - std::mem::replace(&mut last, time)).collect()
    }

    #[test]
    fn the_rate_is_as_asked_and_so_is_the_spread() {
        for seed in 0..8 {
            for burstiness in [0.25, 1.0, 4.0] {
                let gaps = gaps(seed, burstiness);
                assert!(gaps.iter().all(|&gap| gap >= 0.0));
                let summary = Summary::of(gaps, &[]);
                let rate = 1.0 / summary.mean;
                assert!((rate - 50.0).abs() < 1e-6, "seed {seed}, burstiness {burstiness}: {rate}");
                // A gamma distribution's deviation is its mean divided by the root of its shape.
                let shape = (summary.mean / summary.std).powi(2);
                assert!((shape / burstiness - 1.0).abs() < 0.15, "seed {seed}: {shape} for {burstiness}");
            }
        }
    }

    #[test]
    fn a_seed_is_a_schedule() {
        assert_eq!(gaps(3, 1.0), gaps(3, 1.0));
        assert_ne!(gaps(3, 1.0), gaps(4, 1.0));
    }

    #[test]
    fn an_infinite_rate_sends_all_at_once() {
        let times = arrival_times_s(3, f64::INFINITY, 1.0, &mut StdRng::seed_from_u64(0));
        assert_eq!(times, [0.0; 3]);
    }
}
