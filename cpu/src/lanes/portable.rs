//! [`Lanes`] without intrinsics.

use half::{bf16, f16};

use super::{LANES, Lanes};

/// Sixteen lanes as an array, for the compiler to vectorise.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn map(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }

    /// Halves the number of lanes until one is left, combining lane i with lane i + half.
    #[inline(always)]
    fn fold(self, f: impl Fn(f32, f32) -> f32) -> f32 {
        let mut lanes = self.0;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] = f(lanes[i], lanes[i + half]);
            }
        }
        lanes[0]
    }
}

impl Lanes for Portable {
    const ROWS: usize = 1;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }
    #[inline(always)]
    fn load(values: &[f32; LANES]) -> Self {
        Self(*values)
    }
    #[inline(always)]
    fn load_bf16(values: &[bf16; LANES]) -> Self {
        Self(values.map(|value| f32::from_bits(u32::from(value.to_bits()) << 16)))
    }
    #[inline(always)]
    fn load_f16(values: &[f16; LANES]) -> Self {
        Self(values.map(f16::to_f32))
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        *to = self.0;
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.map(other, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.map(other, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.map(other, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.map(other, |a, b| a / b)
    }
    // Comparisons written as x86 defines its instructions: the second operand if either is not a number.
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.map(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.map(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].mul_add(factor.0[i], addend.0[i])))
    }
    #[inline(always)]
    fn shift_into_exponent(self) -> Self {
        Self(self.0.map(|value| f32::from_bits(value.to_bits() << 23)))
    }
    #[inline(always)]
    fn zero_where_less(self, test: Self, bound: Self) -> Self {
        Self(std::array::from_fn(|i| if test.0[i] < bound.0[i] { 0.0 } else { self.0[i] }))
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        self.fold(|a, b| a + b)
    }
    #[inline(always)]
    fn greatest(self) -> f32 {
        self.fold(|a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn fold_to_fours(four: [Self; 4]) -> Self {
        let at = |i: usize, lane: usize| four[i].0[lane] + four[i].0[lane + 8];
        Self(std::array::from_fn(|lane| at(lane / 4, lane % 4) + at(lane / 4, lane % 4 + 4)))
    }
    #[inline(always)]
    fn sum_fours(folded: [Self; 4]) -> Self {
        let at = |j: usize, lane: usize| folded[j].0[lane] + folded[j].0[lane + 2];
        Self(std::array::from_fn(|lane| at(lane % 4, lane / 4 * 4) + at(lane % 4, lane / 4 * 4 + 1)))
    }
}
