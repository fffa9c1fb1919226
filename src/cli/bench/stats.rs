//! Summaries of measured times, by numpy's definitions, so that figures can be compared with vLLM's.

/// What a report says of one kind of time.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Summary {
    /// Arithmetic mean.
    pub mean: f64,
    /// The 50th percentile.
    pub median: f64,
    /// Of the population: `numpy.std`'s default.
    pub std: f64,
    /// Pairs of percentage and value, in the order asked for.
    pub percentiles: Vec<(f64, f64)>,
}

impl Summary {
    /// Of any number of values, in any order; all zeros if there are none. Percentages are in 0..=100.
    pub(crate) fn of(mut values: Vec<f64>, percentages: &[f64]) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        let count = values.len().max(1) as f64;
        // Not `sum`, which is minus zero where there is nothing.
        let mean = values.iter().fold(0.0, |sum, value| sum + value) / count;
        let variance = values.iter().fold(0.0, |sum, value| sum + (value - mean).powi(2)) / count;
        Self {
            mean,
            median: percentile(&values, 50.0),
            std: variance.sqrt(),
            percentiles: percentages.iter().map(|&q| (q, percentile(&values, q))).collect(),
        }
    }
}

/// `numpy.percentile` with its default method `linear`: between the two values nearest to the rank
/// `(n - 1) * q / 100`. `sorted` is ascending; 0 if it is empty.
pub(crate) fn percentile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let rank = last as f64 * q / 100.0;
    let below = (rank.floor() as usize).min(last);
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (rank - below as f64)
}

/// A percentage as it stands in report keys: `99`, `99.9`.
pub(crate) fn percentage_word(q: f64) -> String {
    // A float's own text has no fraction where there is none.
    q.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_close(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-9, "{got} is not {expected}");
    }

    #[test]
    fn percentiles_are_those_of_numpys_manual() {
        // The examples of numpy.percentile: a = [[10, 7, 4], [3, 2, 1]], whole, by columns, by rows.
        assert_close(percentile(&[1.0, 2.0, 3.0, 4.0, 7.0, 10.0], 50.0), 3.5);
        for (column, expected) in [([3.0, 10.0], 6.5), ([2.0, 7.0], 4.5), ([1.0, 4.0], 2.5)] {
            assert_close(percentile(&column, 50.0), expected);
        }
        for (row, expected) in [([4.0, 7.0, 10.0], 7.0), ([1.0, 2.0, 3.0], 2.0)] {
            assert_close(percentile(&row, 50.0), expected);
        }
    }

    #[test]
    fn percentiles_are_those_of_pythons_inclusive_quantiles() {
        // statistics.quantiles(values, n=100, method="inclusive"), which is the same definition.
        let values = vec![15.0, 20.0, 35.0, 40.0, 50.0, 1.5, 99.25];
        let expected = [(1.0, 2.31), (10.0, 9.6), (25.0, 17.5), (75.0, 45.0), (90.0, 69.7), (99.0, 96.295)];
        let summary = Summary::of(values, &expected.map(|(q, _)| q));
        for ((q, got), (_, expected)) in summary.percentiles.into_iter().zip(expected) {
            assert!((got - expected).abs() < 1e-9, "P{q}: {got} is not {expected}");
        }
        assert_eq!(summary.median, 35.0);
    }

    #[test]
    fn mean_and_deviation_are_those_of_numpys_manual() {
        // numpy.mean and numpy.std of [[1, 2], [3, 4]].
        let summary = Summary::of(vec![1.0, 2.0, 3.0, 4.0], &[0.0, 100.0]);
        assert_close(summary.mean, 2.5);
        assert_close(summary.std, 1.118_033_988_749_895);
        assert_eq!(summary.percentiles, [(0.0, 1.0), (100.0, 4.0)]);
    }

    #[test]
    fn one_value_or_none_is_no_trouble() {
        let one = Summary::of(vec![7.0], &[99.0]);
        assert_eq!((one.mean, one.median, one.std, one.percentiles[0].1), (7.0, 7.0, 0.0, 7.0));
        let none = Summary::of(Vec::new(), &[99.0]);
        assert_eq!((none.mean, none.median, none.std, none.percentiles[0].1), (0.0, 0.0, 0.0, 0.0));
        assert!(none.mean.is_sign_positive());
    }

    #[test]
    fn percentages_are_written_without_a_needless_fraction() {
        assert_eq!([99.0, 99.9, 5.0].map(percentage_word), ["99", "99.9", "5"]);
    }
}
