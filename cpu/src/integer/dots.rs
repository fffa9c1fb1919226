//! [`Dots`]: sixteen sums of products of weights' codes and activations, one for each of a panel's rows, in the
//! instruction sets that have something for it. Integers are exact, so all of them give the same.
#![allow(unsafe_code)]
// SAFETY of every block below: the methods are called only from kernels that `kernel.rs` compiled with these
// features, on machines that have them; loads go through references to whole units.
#![allow(clippy::undocumented_unsafe_blocks)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::pack::UNIT;
#[cfg(target_arch = "x86_64")]
use crate::lanes::{Avx2, Avx512};
use crate::lanes::{LANES, Lanes, Portable};

/// Sixteen `i32`. Codes are stored as `u8`, above their true value by 128 (of 8 bits) or 8 (of 4 bits).
pub(super) trait Dots: Copy {
    type Floats: Lanes;
    /// The codes of four columns of sixteen rows.
    type Codes: Copy;
    /// The activations of four columns, the same for all rows.
    type Quad: Copy;

    fn load8(unit: &[u8; UNIT]) -> Self::Codes;
    /// The codes in the low halves, and those in the high halves.
    fn load4(unit: &[u8; UNIT]) -> [Self::Codes; 2];
    fn quad(activations: i32) -> Self::Quad;
    /// Of codes of 8 bits: what to begin with, given the sum of the block's activations.
    fn begin8(sum: i32) -> Self;
    fn begin4(sum: i32) -> Self;
    fn add8(self, codes: Self::Codes, quad: Self::Quad) -> Self;
    fn add4(self, codes: Self::Codes, quad: Self::Quad) -> Self;
    fn to_floats(self) -> Self::Floats;
}

/// AVX-512 VNNI: four products and their sum in one instruction.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Vnni(__m512i);

#[cfg(target_arch = "x86_64")]
impl Dots for Vnni {
    type Floats = Avx512;
    type Codes = __m512i;
    type Quad = __m512i;

    #[inline(always)]
    fn load8(unit: &[u8; UNIT]) -> __m512i {
        unsafe { _mm512_loadu_si512(unit.as_ptr().cast()) }
    }
    #[inline(always)]
    fn load4(unit: &[u8; UNIT]) -> [__m512i; 2] {
        unsafe {
            let (both, low) = (_mm512_loadu_si512(unit.as_ptr().cast()), _mm512_set1_epi8(15));
            [_mm512_and_si512(both, low), _mm512_and_si512(_mm512_srli_epi16::<4>(both), low)]
        }
    }
    #[inline(always)]
    fn quad(activations: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(activations) }
    }
    #[inline(always)]
    fn begin8(sum: i32) -> Self {
        unsafe { Self(_mm512_set1_epi32(-128 * sum)) }
    }
    #[inline(always)]
    fn begin4(sum: i32) -> Self {
        unsafe { Self(_mm512_set1_epi32(-8 * sum)) }
    }
    #[inline(always)]
    fn add8(self, codes: __m512i, quad: __m512i) -> Self {
        unsafe { Self(_mm512_dpbusd_epi32(self.0, codes, quad)) }
    }
    #[inline(always)]
    fn add4(self, codes: __m512i, quad: __m512i) -> Self {
        self.add8(codes, quad)
    }
    #[inline(always)]
    fn to_floats(self) -> Avx512 {
        unsafe { Avx512::from_i32(self.0) }
    }
}

/// AVX2: products of pairs are summed in 16 bits, which must not overflow.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Madd([__m256i; 2]);

#[cfg(target_arch = "x86_64")]
impl Madd {
    #[inline(always)]
    fn add(self, pairs: [__m256i; 2]) -> Self {
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let of = |half: usize| _mm256_add_epi32(self.0[half], _mm256_madd_epi16(pairs[half], ones));
            Self([of(0), of(1)])
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Dots for Madd {
    type Floats = Avx2;
    type Codes = [__m256i; 2];
    type Quad = __m256i;

    #[inline(always)]
    fn load8(unit: &[u8; UNIT]) -> [__m256i; 2] {
        unsafe {
            let (at, middle) = (unit.as_ptr().cast::<__m256i>(), _mm256_set1_epi8(-128));
            [0, 1].map(|half| _mm256_xor_si256(_mm256_loadu_si256(at.add(half)), middle))
        }
    }
    #[inline(always)]
    fn load4(unit: &[u8; UNIT]) -> [[__m256i; 2]; 2] {
        unsafe {
            let (at, low) = (unit.as_ptr().cast::<__m256i>(), _mm256_set1_epi8(15));
            let both = [_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1))];
            [
                both.map(|both| _mm256_and_si256(both, low)),
                both.map(|both| _mm256_and_si256(_mm256_srli_epi16::<4>(both), low)),
            ]
        }
    }
    #[inline(always)]
    fn quad(activations: i32) -> __m256i {
        unsafe { _mm256_set1_epi32(activations) }
    }
    #[inline(always)]
    fn begin8(_: i32) -> Self {
        // The codes are made signed when they are loaded, so there is nothing to make up for.
        unsafe { Self([_mm256_setzero_si256(); 2]) }
    }
    #[inline(always)]
    fn begin4(sum: i32) -> Self {
        unsafe { Self([_mm256_set1_epi32(-8 * sum); 2]) }
    }
    #[inline(always)]
    fn add8(self, codes: [__m256i; 2], quad: __m256i) -> Self {
        // Magnitudes times activations with the codes' signs: at most 2 * 128 * 127, which 16 bits hold.
        let pairs =
            |codes| unsafe { _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(quad, codes)) };
        self.add(codes.map(pairs))
    }
    #[inline(always)]
    fn add4(self, codes: [__m256i; 2], quad: __m256i) -> Self {
        self.add(codes.map(|codes| unsafe { _mm256_maddubs_epi16(codes, quad) }))
    }
    #[inline(always)]
    fn to_floats(self) -> Avx2 {
        unsafe { Avx2::from_i32(self.0) }
    }
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Plain([i32; LANES]);

impl Dots for Plain {
    type Floats = Portable;
    type Codes = [u8; UNIT];
    type Quad = [i16; 4];

    #[inline(always)]
    fn load8(unit: &[u8; UNIT]) -> [u8; UNIT] {
        *unit
    }
    #[inline(always)]
    fn load4(unit: &[u8; UNIT]) -> [[u8; UNIT]; 2] {
        [unit.map(|both| both & 15), unit.map(|both| both >> 4)]
    }
    #[inline(always)]
    fn quad(activations: i32) -> [i16; 4] {
        activations.to_ne_bytes().map(|activation| i16::from(activation as i8))
    }
    #[inline(always)]
    fn begin8(sum: i32) -> Self {
        Self([-128 * sum; LANES])
    }
    #[inline(always)]
    fn begin4(sum: i32) -> Self {
        Self([-8 * sum; LANES])
    }
    #[inline(always)]
    fn add8(mut self, codes: [u8; UNIT], quad: [i16; 4]) -> Self {
        for (sum, codes) in self.0.iter_mut().zip(codes.as_chunks::<4>().0) {
            let product = |i: usize| i32::from(codes[i]) * i32::from(quad[i]);
            *sum += product(0) + product(1) + (product(2) + product(3));
        }
        self
    }
    #[inline(always)]
    fn add4(self, codes: [u8; UNIT], quad: [i16; 4]) -> Self {
        self.add8(codes, quad)
    }
    #[inline(always)]
    fn to_floats(self) -> Portable {
        Portable::load(&self.0.map(|sum| sum as f32))
    }
}
