//! [`Lanes`] in two AVX2 registers.
#![allow(unsafe_code)]
// SAFETY of every block below: the methods are called only from kernels that `dispatch!` compiled with these
// features, on machines that have them; loads and stores go through references to sixteen elements.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{LANES, Lanes};

/// Lanes 0 to 7, and 8 to 15.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

/// Lane i with i + 4, then i + 2, i + 1.
#[inline(always)]
pub(super) fn sum(lanes: __m256) -> f32 {
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// The same tree for the greatest.
#[inline(always)]
pub(super) fn greatest(lanes: __m256) -> f32 {
    unsafe {
        let four = _mm_max_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

#[inline(always)]
fn widen(half_words: __m128i) -> __m256 {
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half_words))) }
}

impl Avx2 {
    #[inline(always)]
    fn map(self, other: Self, f: impl Fn(__m256, __m256) -> __m256) -> Self {
        Self(f(self.0, other.0), f(self.1, other.1))
    }

    /// Converted, each rounded once.
    #[inline(always)]
    pub(crate) unsafe fn from_i32([low, high]: [__m256i; 2]) -> Self {
        unsafe { Self(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)) }
    }
}

impl Lanes for Avx2 {
    const ROWS: usize = 1;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        let lanes = unsafe { _mm256_set1_ps(value) };
        Self(lanes, lanes)
    }
    #[inline(always)]
    fn load(values: &[f32; LANES]) -> Self {
        unsafe { Self(_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(values.as_ptr().add(8))) }
    }
    #[inline(always)]
    fn load_bf16(values: &[bf16; LANES]) -> Self {
        let start: *const __m128i = values.as_ptr().cast();
        unsafe { Self(widen(_mm_loadu_si128(start)), widen(_mm_loadu_si128(start.add(1)))) }
    }
    #[inline(always)]
    fn load_f16(values: &[f16; LANES]) -> Self {
        let start: *const __m128i = values.as_ptr().cast();
        unsafe {
            Self(_mm256_cvtph_ps(_mm_loadu_si128(start)), _mm256_cvtph_ps(_mm_loadu_si128(start.add(1))))
        }
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), self.0);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), self.1);
        }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.map(other, |a, b| unsafe { _mm256_add_ps(a, b) })
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.map(other, |a, b| unsafe { _mm256_sub_ps(a, b) })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.map(other, |a, b| unsafe { _mm256_mul_ps(a, b) })
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.map(other, |a, b| unsafe { _mm256_div_ps(a, b) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.map(other, |a, b| unsafe { _mm256_max_ps(a, b) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.map(other, |a, b| unsafe { _mm256_min_ps(a, b) })
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        unsafe {
            Self(_mm256_fmadd_ps(self.0, factor.0, addend.0), _mm256_fmadd_ps(self.1, factor.1, addend.1))
        }
    }
    #[inline(always)]
    fn shift_into_exponent(self) -> Self {
        self.map(self, |a, _| unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(a))) })
    }
    #[inline(always)]
    fn zero_where_less(self, test: Self, bound: Self) -> Self {
        let less = test.map(bound, |a, b| unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(a, b) });
        less.map(self, |mask, value| unsafe { _mm256_andnot_ps(mask, value) })
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        sum(unsafe { _mm256_add_ps(self.0, self.1) })
    }
    #[inline(always)]
    fn greatest(self) -> f32 {
        greatest(unsafe { _mm256_max_ps(self.0, self.1) })
    }
    #[inline(always)]
    fn fold_to_fours(four: [Self; 4]) -> Self {
        let [a, b, c, d] = four.map(|x| unsafe { _mm256_add_ps(x.0, x.1) });
        let fold = |a, b| unsafe {
            _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b))
        };
        Self(fold(a, b), fold(c, d))
    }
    #[inline(always)]
    fn sum_fours([a, b, c, d]: [Self; 4]) -> Self {
        let first =
            |a, b| unsafe { _mm256_add_ps(_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xEE>(a, b)) };
        let second =
            |a, b| unsafe { _mm256_add_ps(_mm256_shuffle_ps::<0x88>(a, b), _mm256_shuffle_ps::<0xDD>(a, b)) };
        a.map(b, first).map(c.map(d, first), second)
    }
}
