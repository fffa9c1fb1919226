//! Stored floats of 8 and 16 bits as `f32`, without a branch, so that compilers turn a loop of them into
//! vector instructions on every machine.

/// A float of a sign, `EXPONENT` bits of exponent and `MANTISSA` of fraction in the low bits of `bits`, as IEEE 754
/// reads it. Formats without infinities have their own rule for the greatest exponent: see [`e4m3`].
#[inline(always)]
fn finite<const EXPONENT: u32, const MANTISSA: u32>(bits: u32) -> f32 {
    let magnitude = bits & ((1 << (EXPONENT + MANTISSA)) - 1);
    let sign = (bits >> (EXPONENT + MANTISSA)) << 31;
    let bias = (1 << (EXPONENT - 1)) - 1;
    let normal = f32::from_bits((magnitude << (23 - MANTISSA)) + ((127 - bias) << 23));
    // Through an integer: an f32 below the normal range would be slow on many machines.
    let subnormal = magnitude as f32 * f32::from_bits((128 - bias - MANTISSA) << 23);
    let value = if magnitude < 1 << MANTISSA { subnormal } else { normal };
    f32::from_bits(value.to_bits() | sign)
}

/// Four bits of exponent, three of fraction; no infinities, and not a number where all seven are set.
#[inline(always)]
pub(super) fn e4m3(byte: u8) -> f32 {
    let value = finite::<4, 3>(u32::from(byte));
    if byte & 0x7f == 0x7f { f32::NAN } else { value }
}

/// IEEE 754 half precision.
#[inline(always)]
pub(crate) fn f16(bits: u16) -> f32 {
    let value = finite::<5, 10>(u32::from(bits));
    // Infinities and what is not a number: the greatest exponent stays the greatest.
    let greatest = f32::from_bits(value.to_bits() | 0x7f80_0000);
    if bits & 0x7c00 == 0x7c00 { greatest } else { value }
}

/// The upper half of an `f32`.
#[inline(always)]
pub(crate) fn bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The nearest e4m3, ties to even; what is beyond ±448 becomes ±448.
pub(super) fn to_e4m3(value: f32) -> u8 {
    let sign = ((value.to_bits() >> 31) << 7) as u8;
    let magnitude = value.abs();
    if magnitude.is_nan() {
        return sign | 0x7f;
    }
    // The distance between neighbours: 2^-9 below 2^-6, then an eighth of the power of two.
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-6);
    let steps = magnitude as f64 * 2f64.powi(3 - exponent);
    let rounded = steps.min(1e4).round_ties_even() as i32;
    // 8 steps and more carry the implicit bit, which adds to the exponent; rounding up to 16 carries into it too.
    let code = ((exponent + 6) << 3) + rounded;
    sign | code.min(0x7e) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_agree_with_the_crate_half_in_every_bit_pattern() {
        for bits in 0..=u16::MAX {
            let (found, wanted) = (f16(bits), half::f16::from_bits(bits).to_f32());
            assert!(found.to_bits() == wanted.to_bits() || found.is_nan() && wanted.is_nan(), "{bits:04x}");
            let (found, wanted) = (bf16(bits), half::bf16::from_bits(bits).to_f32());
            assert!(found.to_bits() == wanted.to_bits() || found.is_nan() && wanted.is_nan(), "{bits:04x}");
        }
    }

    #[test]
    fn e4m3_agrees_with_its_definition_and_with_candle() {
        for byte in 0..=u8::MAX {
            let found = e4m3(byte);
            let (exponent, fraction) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
            let magnitude = match exponent {
                0 => fraction / 8.0 * 2f32.powi(-6),
                _ => (1.0 + fraction / 8.0) * 2f32.powi(exponent - 7),
            };
            if byte & 0x7f == 0x7f {
                assert!(found.is_nan());
            } else {
                let wanted = if byte & 0x80 == 0 { magnitude } else { -magnitude };
                assert_eq!(found.to_bits(), wanted.to_bits(), "{byte:02x}");
                assert_eq!(to_e4m3(found), byte, "{byte:02x}");
            }
        }
    }

    #[test]
    fn rounding_to_e4m3_takes_the_nearest_and_the_even_of_two() {
        let values: Vec<f32> = (0..0x7f).map(e4m3).collect();
        for (code, pair) in values.windows(2).enumerate() {
            let middle = (pair[0] + pair[1]) / 2.0;
            let even = if code % 2 == 0 { code } else { code + 1 };
            assert_eq!(to_e4m3(middle), even as u8, "{middle}");
            assert_eq!(to_e4m3(middle.next_down()), code as u8);
            assert_eq!(to_e4m3(-middle.next_up()), 0x80 | (code + 1) as u8);
        }
        assert_eq!(to_e4m3(1e30), 0x7e);
        assert_eq!(to_e4m3(f32::NEG_INFINITY), 0xfe);
    }
}
