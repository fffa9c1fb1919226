//! [`RepetitionWatch`]: notices that an output goes round in circles.

use crate::request::TokenId;

/// An output ends where the same tokens have come so often in a row (vLLM's `repetition_detection`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RepetitionDetection {
    /// Tokens of the shortest pattern that counts, at least 1.
    pub min_pattern_size: u32,
    /// Tokens of the longest, at least `min_pattern_size`.
    pub max_pattern_size: u32,
    /// How often in a row, at least 2.
    pub min_count: u32,
}

impl RepetitionDetection {
    /// Whether `output` ends with a pattern that has come often enough.
    pub fn finds(&self, output: &[TokenId]) -> bool {
        let mut sizes = self.min_pattern_size as usize..=self.max_pattern_size as usize;
        sizes.any(|size| {
            let repeated = size.saturating_mul(self.min_count as usize - 1);
            output.len() >= repeated.saturating_add(size)
                && (output.len() - repeated..output.len()).all(|at| output[at] == output[at - size])
        })
    }
}

/// The same question, asked after each token: for each size of a pattern it keeps how many tokens in a row were those
/// of one pattern before, so that a token costs a comparison a size and no search.
#[derive(Debug)]
pub(crate) struct RepetitionWatch {
    detection: RepetitionDetection,
    /// By size, from the shortest.
    runs: Vec<u32>,
}

impl RepetitionWatch {
    pub(crate) fn new(detection: RepetitionDetection) -> Self {
        let sizes = detection.min_pattern_size..=detection.max_pattern_size;
        Self { detection, runs: vec![0; sizes.count()] }
    }

    /// Takes in the last token of `output`, all of whose others it knows. Whether a pattern has come often enough.
    pub(crate) fn take(&mut self, output: &[TokenId]) -> bool {
        let Some((token, before)) = output.split_last() else { return false };
        let mut found = false;
        for (size, run) in (self.detection.min_pattern_size..).zip(&mut self.runs) {
            let repeats = before.len().checked_sub(size as usize).is_some_and(|at| before[at] == *token);
            *run = if repeats { *run + 1 } else { 0 };
            found |= u64::from(*run) >= u64::from(size) * u64::from(self.detection.min_count - 1);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Rng;

    #[test]
    fn asked_after_each_token_it_finds_what_a_search_finds() {
        let mut num_found = 0;
        for seed in 0..2000 {
            let mut rng = Rng::new(seed);
            let min_pattern_size = rng.between(1, 4);
            let detection = RepetitionDetection {
                min_pattern_size,
                max_pattern_size: min_pattern_size + rng.below(5),
                min_count: rng.between(2, 4),
            };
            let mut watch = RepetitionWatch::new(detection);
            let mut output = Vec::new();
            for _ in 0..60 {
                // Mostly what came a while ago, so that there are patterns.
                let back = rng.between(1, 5) as usize;
                let again = output.len().checked_sub(back).map(|at| output[at]).filter(|_| rng.percent(85));
                output.push(again.unwrap_or_else(|| rng.below(3)));
                let found = watch.take(&output);
                assert_eq!(found, detection.finds(&output), "seed {seed}: {detection:?} in {output:?}");
                num_found += u32::from(found);
            }
        }
        assert!(num_found > 1000, "{num_found}");
    }

    #[test]
    fn patterns_are_counted_at_the_end() {
        let detection = RepetitionDetection { min_pattern_size: 2, max_pattern_size: 3, min_count: 3 };
        for (output, expected) in [
            (&[1, 2, 1, 2, 1, 2][..], true),
            (&[9, 1, 2, 3, 1, 2, 3, 1, 2, 3], true),
            (&[1, 2, 1, 2, 1], false),
            (&[1, 2, 1, 2, 1, 2, 9], false),
            (&[1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4], false),
            (&[5, 5, 5, 5, 5, 5], true),
            (&[5, 5, 5, 5, 5], false),
        ] {
            assert_eq!(detection.finds(output), expected, "{output:?}");
        }
    }
}
