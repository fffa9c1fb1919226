//! Sixteen `f32` side by side: the unit in which all kernels compute, on every machine.
//!
//! A kernel is written once over [`Lanes`] and compiled for each instruction set. All implementations do
//! the same IEEE operations in the same order, fused multiply-add included, so that they agree bit for bit
//! and only speed depends on the machine.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
mod small;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
use half::{bf16, f16};
pub(crate) use portable::Portable;
pub(crate) use small::{E4m3, E5m2};

/// Number of lanes.
pub(crate) const LANES: usize = 16;

/// An instruction set that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 F, DQ, BW and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Whatever the compiler makes of it (NEON on ARM).
    Portable,
}

impl Isa {
    /// All that this machine can run, the fastest first.
    pub fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl");
            found.extend((avx2 && avx512).then_some(Self::Avx512));
            found.extend(avx2.then_some(Self::Avx2));
        }
        found.push(Self::Portable);
        found
    }
}

/// Sixteen `f32`. Private to this crate: the kernels' way to be written once.
pub(crate) trait Lanes: Copy {
    /// Rows that a kernel takes at a time with four other vectors for each: as many as registers hold the sums of.
    const ROWS: usize;
    fn splat(value: f32) -> Self;
    fn load(values: &[f32; LANES]) -> Self;
    fn load_bf16(values: &[bf16; LANES]) -> Self;
    fn load_f16(values: &[f16; LANES]) -> Self;
    fn store(self, to: &mut [f32; LANES]);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    fn max(self, other: Self) -> Self;
    fn min(self, other: Self) -> Self;
    /// `self * factor + addend`, rounded once.
    fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// The bit patterns shifted left by 23: an integer in the low bits becomes an exponent.
    fn shift_into_exponent(self) -> Self;
    /// 0 where `test < bound`, else `self`.
    fn zero_where_less(self, test: Self, bound: Self) -> Self;
    /// Sum as a tree: lane i with i + 8, then i + 4, i + 2, i + 1.
    fn sum(self) -> f32;
    /// The greatest lane.
    fn greatest(self) -> f32;
    /// The first half of [`Self::sum`] for four at once: those of number i are in lanes 4i to 4i + 3.
    fn fold_to_fours(four: [Self; 4]) -> Self;
    /// The second half: lane 4i + j is the sum of what was number i in the `j`th of these.
    fn sum_fours(folded: [Self; 4]) -> Self;
}

/// A stored number that kernels can read sixteen of. All-zero bytes are 0.
pub(crate) trait Element: Copy + Default + Send + Sync {
    fn load<V: Lanes>(values: &[Self; LANES]) -> V;
    fn to_f32(self) -> f32;
    /// The nearest of this type.
    fn of(value: f32) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    fn load<V: Lanes>(values: &[Self; LANES]) -> V {
        V::load(values)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn of(value: f32) -> Self {
        value
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn load<V: Lanes>(values: &[Self; LANES]) -> V {
        V::load_bf16(values)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
    #[inline(always)]
    fn of(value: f32) -> Self {
        bf16::from_f32(value)
    }
}

impl Element for f16 {
    #[inline(always)]
    fn load<V: Lanes>(values: &[Self; LANES]) -> V {
        V::load_f16(values)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    #[inline(always)]
    fn of(value: f32) -> Self {
        f16::from_f32(value)
    }
}

/// The last, partial group of sixteen, filled up with zeros.
#[inline(always)]
pub(crate) fn padded<T: Copy + Default>(tail: &[T]) -> [T; LANES] {
    let mut group = [T::default(); LANES];
    group[..tail.len()].copy_from_slice(tail);
    group
}

/// Below this, e^x is taken for 0 (it would be subnormal).
const EXP_LOWEST: f32 = -87.336_54;
/// Above this, e^x stays at its greatest finite power.
const EXP_HIGHEST: f32 = 88.376_26;

/// e^x to about 1 unit in the last place; 0 below -87.3 (also for minus infinity), no overflow. The
/// polynomial is that of Cephes' `expf`.
#[inline(always)]
pub(crate) fn exp<V: Lanes>(x: V) -> V {
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits of the sum; 127 more make
    // it a biased exponent.
    let magic = V::splat(12_582_912.0);
    // In this order of operands, what is not a number stays so.
    let clamped = V::splat(EXP_HIGHEST).min(V::splat(EXP_LOWEST).max(x));
    let shifted = clamped.mul_add(V::splat(std::f32::consts::LOG2_E), magic);
    let n = shifted.sub(magic);
    let power = shifted.add(V::splat(127.0)).shift_into_exponent();
    let r = n.mul_add(V::splat(-0.693_359_4), clamped);
    let r = n.mul_add(V::splat(2.121_944_4e-4), r);
    let p = V::splat(1.987_569_1e-4);
    let p = p.mul_add(r, V::splat(1.398_199_9e-3));
    let p = p.mul_add(r, V::splat(8.333_452e-3));
    let p = p.mul_add(r, V::splat(4.166_579_6e-2));
    let p = p.mul_add(r, V::splat(1.666_666_5e-1));
    let p = p.mul_add(r, V::splat(0.5));
    let p = p.mul_add(r.mul(r), r).add(V::splat(1.0));
    p.mul(power).zero_where_less(x, V::splat(EXP_LOWEST))
}

/// Compiles `$kernel::<V>(args)` for every instruction set and calls the one that `$isa` names.
macro_rules! dispatch {
    ($isa:expr, $kernel:ident $(, [$($generic:ident : $bound:path),*] as [$($given:ty),*])? ; $($arg:ident : $ty:ty = $value:expr),* $(,)?) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c")]
        fn avx512$(<$($generic: $bound),*>)?($($arg: $ty),*) {
            $kernel::<$crate::lanes::Avx512 $($(, $generic)*)?>($($arg),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2$(<$($generic: $bound),*>)?($($arg: $ty),*) {
            $kernel::<$crate::lanes::Avx2 $($(, $generic)*)?>($($arg),*)
        }
        fn portable$(<$($generic: $bound),*>)?($($arg: $ty),*) {
            $kernel::<$crate::lanes::Portable $($(, $generic)*)?>($($arg),*)
        }
        match $isa {
            // SAFETY: `Isa::available` found the features, and an `Isa` comes from nowhere else.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            $crate::lanes::Isa::Avx512 => unsafe { avx512$(::<$($given),*>)?($($value),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            $crate::lanes::Isa::Avx2 => unsafe { avx2$(::<$($given),*>)?($($value),*) },
            $crate::lanes::Isa::Portable => portable$(::<$($given),*>)?($($value),*),
        }
    }};
}
pub(crate) use dispatch;

#[cfg(test)]
mod tests;
