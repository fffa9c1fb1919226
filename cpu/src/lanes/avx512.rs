//! [`Lanes`] in one AVX-512 register.
#![allow(unsafe_code)]
// SAFETY of every block below: the methods are called only from kernels that `dispatch!` compiled with these
// features, on machines that have them; loads and stores go through references to sixteen elements.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{LANES, Lanes};

/// Sixteen lanes.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

impl Avx512 {
    #[inline(always)]
    fn halves(self) -> (__m256, __m256) {
        unsafe { (_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0)) }
    }
}

impl Avx512 {
    /// Converted, each rounded once.
    #[inline(always)]
    pub(crate) unsafe fn from_i32(lanes: __m512i) -> Self {
        unsafe { Self(_mm512_cvtepi32_ps(lanes)) }
    }
}

impl Lanes for Avx512 {
    const ROWS: usize = 4;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self(unsafe { _mm512_set1_ps(value) })
    }
    #[inline(always)]
    fn load(values: &[f32; LANES]) -> Self {
        Self(unsafe { _mm512_loadu_ps(values.as_ptr()) })
    }
    #[inline(always)]
    fn load_bf16(values: &[bf16; LANES]) -> Self {
        Self(unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(values.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        })
    }
    #[inline(always)]
    fn load_f16(values: &[f16; LANES]) -> Self {
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(values.as_ptr().cast())) })
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(unsafe { _mm512_mul_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self(unsafe { _mm512_div_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Self(unsafe { _mm512_min_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, addend.0) })
    }
    #[inline(always)]
    fn shift_into_exponent(self) -> Self {
        Self(unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(self.0))) })
    }
    #[inline(always)]
    fn zero_where_less(self, test: Self, bound: Self) -> Self {
        unsafe {
            let less = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(test.0, bound.0);
            Self(_mm512_maskz_mov_ps(!less, self.0))
        }
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        let (low, high) = self.halves();
        super::avx2::sum(unsafe { _mm256_add_ps(low, high) })
    }
    #[inline(always)]
    fn greatest(self) -> f32 {
        let (low, high) = self.halves();
        super::avx2::greatest(unsafe { _mm256_max_ps(low, high) })
    }
    #[inline(always)]
    fn fold_to_fours([a, b, c, d]: [Self; 4]) -> Self {
        // Quarters 0 and 1 of both, beside quarters 2 and 3; then those of the results in the same way.
        let fold = |a, b| unsafe {
            _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xEE>(a, b))
        };
        let (x, y) = (fold(a.0, b.0), fold(c.0, d.0));
        Self(unsafe { _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(x, y), _mm512_shuffle_f32x4::<0xDD>(x, y)) })
    }
    #[inline(always)]
    fn sum_fours([a, b, c, d]: [Self; 4]) -> Self {
        let fold =
            |a, b| unsafe { _mm512_add_ps(_mm512_shuffle_ps::<0x44>(a, b), _mm512_shuffle_ps::<0xEE>(a, b)) };
        let (x, y) = (fold(a.0, b.0), fold(c.0, d.0));
        Self(unsafe { _mm512_add_ps(_mm512_shuffle_ps::<0x88>(x, y), _mm512_shuffle_ps::<0xDD>(x, y)) })
    }
}
