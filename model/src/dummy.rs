//! [`DummyTensor`]: weights that nobody trained, by a rule that any device can follow in parallel
//! (`--load-format dummy`).

use crate::philox::philox4x32;

/// Half-width of the uniform distribution of dummy weights: its standard deviation is 0.02, the usual
/// initialisation of a decoder.
pub const DUMMY_HALF_WIDTH: f32 = 0.0346;

/// A tensor whose element `i` is `fma(unit, DUMMY_HALF_WIDTH, centre)`, where `unit`, in `[-1, 1)`, is word
/// `i % 4` of the Philox block of counter `i / 4` under the key `seed`: `(word >> 8) / 2^23 - 1`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DummyTensor {
    /// From the tensor's name.
    pub seed: u64,
    /// 1 for norms, else 0.
    pub centre: f32,
}

impl DummyTensor {
    /// The tensor of that name; always the same.
    pub fn new(name: &str) -> Self {
        // FNV-1a: all that is needed is that names differ.
        let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        let is_norm = ["norm.weight", "Norm.weight"].iter().any(|end| name.ends_with(end));
        Self { seed, centre: if is_norm { 1.0 } else { 0.0 } }
    }

    /// The first `len` elements.
    pub fn values(self, len: usize) -> impl Iterator<Item = f32> {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let blocks =
            (0..len.div_ceil(4) as u64).map(move |i| philox4x32([i as u32, (i >> 32) as u32, 0, 0], key));
        let unit = |word: u32| (word >> 8) as f32 / (1u32 << 23) as f32 - 1.0;
        blocks.flatten().take(len).map(move |word| unit(word).mul_add(DUMMY_HALF_WIDTH, self.centre))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_spread_as_said_and_depend_on_the_name_alone() {
        let values: Vec<f32> = DummyTensor::new("a.weight").values(10_001).collect();
        assert_eq!(values.len(), 10_001);
        let mean = values.iter().sum::<f32>() / 10_001.0;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / 10_001.0;
        assert!(mean.abs() < 1e-3 && (variance.sqrt() - 0.02).abs() < 5e-4, "{mean} {variance}");
        assert!(values.iter().copied().eq(DummyTensor::new("a.weight").values(10_001)));
        assert!(!values.iter().copied().eq(DummyTensor::new("b.weight").values(10_001)));
        assert!(
            DummyTensor::new("input_layernorm.weight").values(100).all(|value| (value - 1.0).abs() < 0.04)
        );
    }
}
