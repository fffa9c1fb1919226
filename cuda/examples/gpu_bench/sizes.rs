//! [`Sizes`]: what is measured. Small ones are for a machine without a GPU, to see that the program works.

/// Shapes of steps, and how often to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Whether these are the small ones.
    pub(crate) is_smoke: bool,
    /// Sequences in a decode step, ascending.
    pub(crate) batches: &'static [usize],
    /// Tokens that each of them sees.
    pub(crate) context: usize,
    /// Prompts, in tokens, ascending.
    pub(crate) prompts: &'static [usize],
    /// Rows of products.
    pub(crate) gemm_rows: &'static [usize],
    /// Rows of the kernels between products, besides the decode batches.
    pub(crate) long_rows: &'static [usize],
    /// Tokens of a step at most, in whole steps of a model.
    pub(crate) step_tokens: usize,
    /// Bytes that are copied to see the memory's rate.
    pub(crate) copy_bytes: usize,
    /// Rows and columns of the matrices that show the rate of products.
    pub(crate) square: usize,
    /// Measurements, of which the median counts.
    pub(crate) rounds: usize,
    /// Decode steps before those that are measured.
    pub(crate) warm_steps: usize,
    /// Decode steps that are measured.
    pub(crate) steps: usize,
}

impl Sizes {
    /// For a GPU.
    pub(crate) const REAL: Self = Self {
        is_smoke: false,
        batches: &[1, 8, 32, 64, 128, 256],
        context: 1024,
        prompts: &[1024, 4096, 16_384],
        gemm_rows: &[1, 8, 32, 64, 128, 256, 2048, 8192],
        long_rows: &[2048, 8192],
        step_tokens: 8192,
        copy_bytes: 4 << 30,
        square: 8192,
        rounds: 5,
        warm_steps: 8,
        steps: 48,
    };

    /// For a stand-in.
    pub(crate) const SMOKE: Self = Self {
        is_smoke: true,
        batches: &[1, 3],
        context: 40,
        prompts: &[20, 70],
        gemm_rows: &[1, 5],
        long_rows: &[24],
        step_tokens: 64,
        copy_bytes: 1 << 16,
        square: 64,
        rounds: 1,
        warm_steps: 2,
        steps: 4,
    };

    /// Sequences of the largest decode step.
    pub(crate) fn max_batch(&self) -> usize {
        *self.batches.last().expect("there are batches")
    }

    /// Tokens of the longest prompt.
    pub(crate) fn max_prompt(&self) -> usize {
        *self.prompts.last().expect("there are prompts")
    }

    /// Contexts of the ragged decode steps: one long sequence alone, one among short ones, and a spread.
    pub(crate) fn ragged(&self) -> [(&'static str, Vec<usize>); 3] {
        let (long, short) = (self.max_prompt(), self.context / 8);
        let batch = self.batches[self.batches.len() / 2];
        // From context / 8 up to the longest, in equal ratios.
        let ratio = long as f64 / short as f64;
        let spread = |i: usize| (short as f64 * ratio.powf(i as f64 / batch as f64)) as usize;
        [
            ("one long sequence", vec![long]),
            ("one long among short ones", std::iter::once(long).chain(vec![short; batch - 1]).collect()),
            ("lengths in equal ratios", (0..batch).map(spread).collect()),
        ]
    }
}
