//! [`Element`]s of one byte: [`E4m3`] and [`E5m2`] (FP8), and `i8`, whose scale is kept elsewhere.

use half::f16;

use super::{Element, LANES, Lanes};

/// FP8 with four bits of exponent and three of mantissa: up to 448, no infinity (OCP's E4M3, PyTorch's
/// `float8_e4m3fn`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct E4m3(u8);

/// FP8 with five bits of exponent and two of mantissa: up to 57344 (OCP's E5M2). Its bits are the upper half of an
/// f16's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct E5m2(u8);

/// The nearest number of `MANTISSA` bits of mantissa whose exponents are `BIAS` too large, ties to even; beyond `max`
/// it is `max`. Not a number stays so.
fn nearest<const MANTISSA: u32, const BIAS: u32>(value: f32, max: f32) -> u8 {
    let sign = (value.to_bits() >> 24) as u8 & 0x80;
    if value.is_nan() {
        return sign | 0x7f;
    }
    let size = value.abs().min(max);
    let smallest_normal = f32::from_bits((127 - BIAS + 1) << 23);
    if size < smallest_normal {
        // In units of the last place, of which there are 2^MANTISSA to the smallest normal number.
        let units = size / smallest_normal * (1 << MANTISSA) as f32;
        return sign | units.round_ties_even() as u8;
    }
    let (bits, dropped) = (size.to_bits(), 23 - MANTISSA);
    let half_less_one = (1 << (dropped - 1)) - 1;
    let rounded = (bits + half_less_one + (bits >> dropped & 1)) >> dropped;
    sign | (rounded - ((127 - BIAS) << MANTISSA)) as u8
}

impl Element for E4m3 {
    #[inline(always)]
    fn load<V: Lanes>(values: &[Self; LANES]) -> V {
        V::load(&values.map(Self::to_f32))
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        let (sign, size) = (u32::from(self.0 & 0x80) << 24, u32::from(self.0 & 0x7f));
        // Mantissa and exponent in their places, the exponent too small by the difference of the biases: 2^120 makes
        // it right, subnormal numbers included.
        let value = f32::from_bits(size << 20) * f32::from_bits((127 + 120) << 23);
        let bits = if size == 0x7f { f32::NAN.to_bits() } else { value.to_bits() };
        f32::from_bits(bits | sign)
    }
    #[inline(always)]
    fn of(value: f32) -> Self {
        Self(nearest::<3, 7>(value, 448.0))
    }
}

impl Element for E5m2 {
    #[inline(always)]
    fn load<V: Lanes>(values: &[Self; LANES]) -> V {
        V::load_f16(&values.map(Self::to_f16))
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self.to_f16().to_f32()
    }
    #[inline(always)]
    fn of(value: f32) -> Self {
        Self(nearest::<2, 15>(value, 57_344.0))
    }
}

impl E5m2 {
    #[inline(always)]
    fn to_f16(self) -> f16 {
        f16::from_bits(u16::from(self.0) << 8)
    }
}

impl Element for i8 {
    #[inline(always)]
    fn load<V: Lanes>(values: &[Self; LANES]) -> V {
        V::load(&values.map(f32::from))
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from(self)
    }
    #[inline(always)]
    fn of(value: f32) -> Self {
        // A cast saturates; -128 would make the range lopsided.
        (value.round_ties_even() as i8).max(-127)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a byte stands for, by the formula: (-1)^s 2^(e - bias) (1 + m / 2^M), or with e = 0 the subnormals.
    fn by_formula(byte: u8, mantissa_bits: u32, bias: i32) -> f64 {
        let (exponent, mantissa) =
            (i32::from(byte & 0x7f) >> mantissa_bits, f64::from(byte & ((1 << mantissa_bits) - 1)));
        let fraction = mantissa / f64::from(1 << mantissa_bits);
        let size = match exponent {
            0 => fraction * 2f64.powi(1 - bias),
            _ => (1.0 + fraction) * 2f64.powi(exponent - bias),
        };
        if byte & 0x80 == 0 { size } else { -size }
    }

    /// Every number of a format, and for numbers of all sizes that nothing of the format is nearer.
    fn check<T: Element + PartialEq + std::fmt::Debug>(
        of_byte: fn(u8) -> T,
        (mantissa_bits, bias): (u32, i32),
        finite: impl Fn(u8) -> bool,
        max: f32,
    ) {
        let bytes: Vec<u8> = (0..=255).filter(|byte| finite(*byte)).collect();
        for &byte in &bytes {
            let value = of_byte(byte).to_f32();
            assert_eq!(f64::from(value), by_formula(byte, mantissa_bits, bias), "{byte:#x}");
            assert_eq!(T::of(value), of_byte(byte), "{byte:#x}");
        }
        let values: Vec<f32> = bytes.iter().map(|byte| of_byte(*byte).to_f32()).collect();
        for i in 0..200_000u32 {
            let value = f32::from_bits(i.wrapping_mul(0x9E37_79B9));
            if value.is_nan() {
                assert!(T::of(value).to_f32().is_nan());
                continue;
            }
            let (found, clamped) = (T::of(value).to_f32(), value.clamp(-max, max));
            let least = values.iter().map(|other| (other - clamped).abs()).fold(f32::INFINITY, f32::min);
            assert_eq!((found - clamped).abs(), least, "{value} became {found}");
        }
        assert_eq!(T::of(f32::INFINITY).to_f32(), max);
        assert_eq!(T::of(f32::NEG_INFINITY).to_f32(), -max);
    }

    #[test]
    fn fp8_is_read_by_its_formula_and_written_to_the_nearest() {
        check(E4m3, (3, 7), |byte| byte & 0x7f != 0x7f, 448.0);
        check(E5m2, (2, 15), |byte| byte & 0x7f < 0x7c, 57_344.0);
        // Ties go to the even neighbour.
        assert_eq!((E4m3::of(17.0).to_f32(), E4m3::of(19.0).to_f32()), (16.0, 20.0));
        assert_eq!((E5m2::of(9.0).to_f32(), E5m2::of(11.0).to_f32()), (8.0, 12.0));
    }

    #[test]
    fn bytes_are_whole_numbers_from_minus_127() {
        for (value, byte) in [(0.4, 0), (0.5, 0), (1.5, 2), (-126.9, -127), (300.0, 127), (-300.0, -127)] {
            assert_eq!(i8::of(value), byte, "{value}");
        }
    }
}
