//! [`Classifier`]: the head that makes logits of labels of a pooled hidden state.
//!
//! It is computed on the host, in f32: one vector a prompt is next to nothing beside the model, and so it is there
//! for every device that pools.

/// One or two projections, with tanh between them.
#[derive(Debug)]
pub(crate) struct Classifier {
    inner: Option<Dense>,
    outer: Dense,
    /// What the inner projection gives.
    between: Vec<f32>,
}

/// A projection with a bias.
#[derive(Debug)]
pub(crate) struct Dense {
    /// `[outputs][inputs]`.
    pub(crate) weight: Vec<f32>,
    /// `[outputs]`.
    pub(crate) bias: Vec<f32>,
}

impl Classifier {
    pub(crate) fn new(inner: Option<Dense>, outer: Dense) -> Self {
        Self { inner, outer, between: Vec::new() }
    }

    /// Appends the logits of one pooled vector to `out`.
    pub(crate) fn classify(&mut self, vector: &[f32], out: &mut Vec<f32>) {
        let Self { inner, outer, between } = self;
        let Some(inner) = inner else { return outer.apply(vector, out) };
        between.clear();
        inner.apply(vector, between);
        between.iter_mut().for_each(|x| *x = x.tanh());
        outer.apply(between, out);
    }
}

impl Dense {
    fn apply(&self, x: &[f32], out: &mut Vec<f32>) {
        out.extend(self.weight.chunks_exact(x.len()).zip(&self.bias).map(|(row, bias)| dot(row, x) + bias));
    }
}

/// Summed in sixteen lanes, so that the compiler uses vectors; the order depends on nothing but the length.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_projections_with_tanh_between() {
        let n = 37;
        let dense = |rows: usize, scale: f32| Dense {
            weight: (0..rows * n).map(|i| scale * ((i * 7 % 11) as f32 - 5.0)).collect(),
            bias: (0..rows).map(|i| i as f32).collect(),
        };
        let x: Vec<f32> = (0..n).map(|i| (i as f32 * 0.3).sin()).collect();
        let plain = |dense: &Dense, x: &[f64]| -> Vec<f64> {
            let row = |(row, bias): (&[f32], &f32)| {
                row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>() + f64::from(*bias)
            };
            dense.weight.chunks_exact(n).zip(&dense.bias).map(row).collect()
        };
        let exact: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let inner: Vec<f64> = plain(&dense(n, 0.01), &exact).into_iter().map(f64::tanh).collect();
        for (head, expected) in [
            (Classifier::new(None, dense(3, 0.1)), plain(&dense(3, 0.1), &exact)),
            (Classifier::new(Some(dense(n, 0.01)), dense(2, 0.1)), plain(&dense(2, 0.1), &inner)),
        ] {
            let (mut head, mut found) = (head, vec![7.0]);
            head.classify(&x, &mut found);
            assert_eq!((found.len(), found[0]), (expected.len() + 1, 7.0));
            for (found, expected) in found[1..].iter().zip(expected) {
                assert!((f64::from(*found) - expected).abs() < 1e-4, "{found} for {expected}");
            }
        }
    }
}
