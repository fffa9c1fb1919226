//! From blocks to numbers, one function a type.
//!
//! Everything is inlined and free of branches within a block, so that a caller that is compiled for wide registers
//! gets loops of them. Products and sums are in the order of ggml's reference, so that results are its own, bit for bit.

use std::array;
use std::ops::Range;

use super::GgmlType;
use crate::quantization::small_float;

/// The numbers of `columns` of one row, into `out`, which has as many places. `row` are the row's bytes.
///
/// # Panics
/// If the row does not have these columns, or `out` is of another length.
#[inline(always)]
pub fn decode_row(kind: GgmlType, row: &[u8], columns: Range<usize>, out: &mut [f32]) {
    assert_eq!(columns.len(), out.len(), "as many places as columns");
    match kind {
        GgmlType::F32 => plain(row, columns, out, f32::from_le_bytes),
        GgmlType::F16 => plain(row, columns, out, |bytes| small_float::f16(u16::from_le_bytes(bytes))),
        GgmlType::Bf16 => plain(row, columns, out, |bytes| small_float::bf16(u16::from_le_bytes(bytes))),
        GgmlType::Q8_0 => blocks(row, columns, out, q8_0),
        GgmlType::Q4_0 => blocks(row, columns, out, q4_0),
        GgmlType::Q4_1 => blocks(row, columns, out, q4_1),
        GgmlType::Q5_0 => blocks(row, columns, out, q5_0),
        GgmlType::Q5_1 => blocks(row, columns, out, q5_1),
        GgmlType::Q2K => blocks(row, columns, out, q2_k),
        GgmlType::Q3K => blocks(row, columns, out, q3_k),
        GgmlType::Q4K => blocks(row, columns, out, q4_k),
        GgmlType::Q5K => blocks(row, columns, out, q5_k),
        GgmlType::Q6K => blocks(row, columns, out, q6_k),
    }
}

#[inline(always)]
fn plain<const BYTES: usize>(
    row: &[u8],
    columns: Range<usize>,
    out: &mut [f32],
    decode: impl Fn([u8; BYTES]) -> f32,
) {
    let elements = &row.as_chunks::<BYTES>().0[columns];
    for (out, element) in out.iter_mut().zip(elements) {
        *out = decode(*element);
    }
}

/// Whole blocks go straight to their place, parts of blocks by way of a whole one.
#[inline(always)]
fn blocks<const BYTES: usize, const LEN: usize>(
    row: &[u8],
    columns: Range<usize>,
    mut out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let blocks = row.as_chunks::<BYTES>().0;
    let mut column = columns.start;
    while column < columns.end {
        let (block, first) = (column / LEN, column % LEN);
        let count = (LEN - first).min(columns.end - column);
        let (place, rest) = out.split_at_mut(count);
        match <&mut [f32; LEN]>::try_from(&mut *place) {
            Ok(place) => decode(&blocks[block], place),
            Err(_) => {
                let mut whole = [0.0; LEN];
                decode(&blocks[block], &mut whole);
                place.copy_from_slice(&whole[first..first + count]);
            }
        }
        (out, column) = (rest, column + count);
    }
}

/// Appends the codes of a row of blocks of 32 numbers, and each block's scale: a number is `code * scale`.
///
/// # Panics
/// If a block of this type is not integers with one scale.
pub(crate) fn integer_blocks(kind: GgmlType, row: &[u8], codes: &mut Vec<i8>, scales: &mut Vec<f32>) {
    match kind {
        GgmlType::Q8_0 => {
            for block in row.as_chunks::<34>().0 {
                scales.push(half_at(block, 0));
                codes.extend(block[2..].iter().map(|quant| *quant as i8));
            }
        }
        GgmlType::Q4_0 => {
            for block in row.as_chunks::<18>().0 {
                scales.push(half_at(block, 0));
                codes.extend(block[2..].iter().map(|quant| (quant & 15) as i8 - 8));
                codes.extend(block[2..].iter().map(|quant| (quant >> 4) as i8 - 8));
            }
        }
        GgmlType::Q5_0 => {
            for block in row.as_chunks::<22>().0 {
                scales.push(half_at(block, 0));
                let quants = five_bits(bytes_at(block, 2), bytes_at(block, 6));
                codes.extend(quants.map(|quant| quant as i8 - 16));
            }
        }
        _ => panic!("blocks of {} are not integers with one scale", kind.name()),
    }
}

/// Layout: scale f16; 32 x i8.
#[inline(always)]
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (out, quant) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(*quant as i8) * scale;
    }
}

/// Layout: scale f16; 16 bytes, the first 16 numbers in their low halves, the others in the high ones.
#[inline(always)]
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let (scale, quants) = (half_at(block, 0), bytes_at::<16>(block, 2));
    let (low, high) = out.split_at_mut(16);
    for ((low, high), quant) in low.iter_mut().zip(high).zip(quants) {
        *low = (i32::from(quant & 15) - 8) as f32 * scale;
        *high = (i32::from(quant >> 4) - 8) as f32 * scale;
    }
}

/// Layout: scale f16; least value f16; 16 bytes as in `q4_0`.
#[inline(always)]
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    let quants = bytes_at::<16>(block, 4);
    let (low, high) = out.split_at_mut(16);
    for ((low, high), quant) in low.iter_mut().zip(high).zip(quants) {
        *low = f32::from(quant & 15) * scale + least;
        *high = f32::from(quant >> 4) * scale + least;
    }
}

/// Layout: scale f16; the fifth bits of all, u32; 16 bytes as in `q4_0`.
#[inline(always)]
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    let quants = five_bits(bytes_at(block, 2), bytes_at(block, 6));
    for (out, quant) in out.iter_mut().zip(quants) {
        *out = (i32::from(quant) - 16) as f32 * scale;
    }
}

/// Layout: scale f16; least value f16; the fifth bits of all, u32; 16 bytes as in `q4_0`.
#[inline(always)]
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    let quants = five_bits(bytes_at(block, 4), bytes_at(block, 8));
    for (out, quant) in out.iter_mut().zip(quants) {
        *out = f32::from(quant) * scale + least;
    }
}

#[inline(always)]
fn five_bits(high: &[u8; 4], low: &[u8; 16]) -> [u8; 32] {
    let high = u32::from_le_bytes(*high);
    array::from_fn(|i| {
        let low = low[i % 16] >> (4 * (i / 16)) & 15;
        low | ((high >> i & 1) as u8) << 4
    })
}

/// Layout: 16 bytes of (scale, least value), 4 bits each; 64 bytes of 2 bits; scale of scales f16; scale of least
/// values f16. A byte has the numbers that are 32 apart, within each half of the block.
#[inline(always)]
fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scales, quants) = (bytes_at::<16>(block, 0), bytes_at::<64>(block, 16));
    let (scale, least) = (half_at(block, 80), half_at(block, 82));
    for (sub_block, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (half, shift, side) = (sub_block / 8, sub_block % 8 / 2 * 2, sub_block % 2);
        let (factor, below) =
            (scale * f32::from(scales[sub_block] & 15), least * f32::from(scales[sub_block] >> 4));
        let quants = bytes_at::<16>(quants, 32 * half + 16 * side);
        for (out, quant) in out.iter_mut().zip(quants) {
            *out = factor * f32::from(quant >> shift & 3) - below;
        }
    }
}

/// Layout: 32 bytes of third bits; 64 bytes of 2 bits as in `q2_k`; 12 bytes of scales of 6 bits; scale of scales f16.
/// A third bit that is not set takes 4 away.
#[inline(always)]
fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let (high, quants) = (bytes_at::<32>(block, 0), bytes_at::<64>(block, 32));
    let (scales, scale) = (bytes_at::<12>(block, 96), half_at(block, 108));
    for (sub_block, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (half, shift, side) = (sub_block / 8, sub_block % 8 / 2 * 2, sub_block % 2);
        let low_bits = scales[sub_block % 8] >> (4 * (sub_block / 8)) & 15;
        let high_bits = scales[8 + sub_block % 4] >> (2 * (sub_block / 4)) & 3;
        let factor = scale * (f32::from(low_bits | high_bits << 4) - 32.0);
        let (quants, high) = (bytes_at::<16>(quants, 32 * half + 16 * side), bytes_at::<16>(high, 16 * side));
        let bit = sub_block / 2;
        for (i, out) in out.iter_mut().enumerate() {
            let quant = i32::from(quants[i] >> shift & 3 | (high[i] >> bit & 1) << 2) - 4;
            *out = factor * quant as f32;
        }
    }
}

/// Layout: scale of scales f16; scale of least values f16; 12 bytes of both in 6 bits; 128 bytes of 4 bits. A byte has
/// two numbers that are 32 apart.
#[inline(always)]
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let scales = sub_block_scales(half_at(block, 0), half_at(block, 2), bytes_at(block, 4));
    let quants = bytes_at::<128>(block, 16);
    for (sub_block, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (factor, below) = scales[sub_block];
        let (quants, shift) = (bytes_at::<32>(quants, sub_block / 2 * 32), sub_block % 2 * 4);
        for (out, quant) in out.iter_mut().zip(quants) {
            *out = factor * f32::from(quant >> shift & 15) - below;
        }
    }
}

/// Layout: as `q4_k`, with 32 bytes of fifth bits before the 128.
#[inline(always)]
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let scales = sub_block_scales(half_at(block, 0), half_at(block, 2), bytes_at(block, 4));
    let (high, quants) = (bytes_at::<32>(block, 16), bytes_at::<128>(block, 48));
    for (sub_block, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (factor, below) = scales[sub_block];
        let (quants, shift) = (bytes_at::<32>(quants, sub_block / 2 * 32), sub_block % 2 * 4);
        for (i, out) in out.iter_mut().enumerate() {
            let quant = quants[i] >> shift & 15 | (high[i] >> sub_block & 1) << 4;
            *out = factor * f32::from(quant) - below;
        }
    }
}

/// (scale, least value) of the 8 sub-blocks of 32. The first four have 6 bits of a byte each; of the others, the low
/// four bits are in the last bytes, and the two high ones in what the first left free.
#[inline(always)]
fn sub_block_scales(scale: f32, least: f32, packed: &[u8; 12]) -> [(f32, f32); 8] {
    array::from_fn(|i| {
        let (scale_bits, least_bits) = match i {
            0..4 => (packed[i] & 63, packed[i + 4] & 63),
            _ => (packed[i + 4] & 15 | packed[i - 4] >> 6 << 4, packed[i + 4] >> 4 | packed[i] >> 6 << 4),
        };
        (scale * f32::from(scale_bits), least * f32::from(least_bits))
    })
}

/// Layout: 128 bytes of low 4 bits; 64 bytes of high 2 bits; 16 x i8 scales; scale of scales f16. In each half of the
/// block, a byte of low bits has numbers 64 apart, and a byte of high bits numbers 32 apart.
#[inline(always)]
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high) = (bytes_at::<128>(block, 0), bytes_at::<64>(block, 128));
    let (scales, scale) = (bytes_at::<16>(block, 192), half_at(block, 208));
    for (sub_block, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (half, quarter, side) = (sub_block / 8, sub_block % 8 / 2, sub_block % 2);
        let factor = scale * f32::from(scales[sub_block] as i8);
        let low = bytes_at::<16>(low, 64 * half + 32 * (quarter % 2) + 16 * side);
        let high = bytes_at::<16>(high, 32 * half + 16 * side);
        let (low_shift, high_shift) = (quarter / 2 * 4, quarter * 2);
        for (i, out) in out.iter_mut().enumerate() {
            let quant = low[i] >> low_shift & 15 | (high[i] >> high_shift & 3) << 4;
            *out = factor * (i32::from(quant) - 32) as f32;
        }
    }
}

#[inline(always)]
fn half_at(block: &[u8], at: usize) -> f32 {
    small_float::f16(u16::from_le_bytes([block[at], block[at + 1]]))
}

#[inline(always)]
fn bytes_at<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    block[at..].first_chunk().expect("layouts are within their blocks")
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use candle_core::Device;
    use candle_core::quantized::{QStorage, QTensor};

    use super::*;
    use crate::ggml::quantize::{candle_type, quantize};
    use crate::philox::uniform;

    const SEED: u64 = 11;
    const COLUMNS: usize = 768;
    const ROWS: usize = 7;

    fn by_candle(kind: GgmlType, bytes: &[u8]) -> Vec<f32> {
        let storage = QStorage::from_data(Cow::Borrowed(bytes), &Device::Cpu, candle_type(kind)).unwrap();
        let tensor = QTensor::new(storage, (ROWS, COLUMNS)).unwrap();
        tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        // There are many bit patterns of what is no number, and no one's order of operations decides among them.
        values.iter().map(|value| if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() }).collect()
    }

    #[test]
    fn whatever_the_bytes_are_the_numbers_are_candles_bit_for_bit() {
        for kind in GgmlType::ALL {
            let row_bytes = kind.row_bytes(COLUMNS).unwrap();
            let bytes: Vec<u8> =
                (0..ROWS * row_bytes).map(|i| (uniform(SEED, i as u32) * 256.0) as u8).collect();
            let expected = by_candle(kind, &bytes);
            let mut found = vec![0.0; ROWS * COLUMNS];
            for (row, found) in bytes.chunks_exact(row_bytes).zip(found.chunks_exact_mut(COLUMNS)) {
                decode_row(kind, row, 0..COLUMNS, found);
            }
            assert!(bits(&found) == bits(&expected), "{}, seed {SEED}", kind.name());
        }
    }

    #[test]
    fn what_is_quantised_comes_back_nearly_and_in_any_parts() {
        let values: Vec<f32> = (0..ROWS * COLUMNS).map(|i| uniform(SEED, i as u32) as f32 - 0.5).collect();
        for kind in GgmlType::ALL {
            let bytes = quantize(&values, COLUMNS, kind).unwrap();
            let expected = by_candle(kind, &bytes);
            let worst = values.iter().zip(&expected).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
            assert!(worst < 0.35, "{}: an error of {worst}", kind.name());
            let row_bytes = kind.row_bytes(COLUMNS).unwrap();
            for part in 0..200u32 {
                let at = |k| uniform(SEED + 1, 3 * part + k);
                let row = (at(0) * ROWS as f64) as usize;
                let start = (at(1) * COLUMNS as f64) as usize;
                let end = start + (at(2) * (COLUMNS - start + 1) as f64) as usize;
                let mut found = vec![0.0; end - start];
                decode_row(kind, &bytes[row * row_bytes..][..row_bytes], start..end, &mut found);
                let expected = &expected[row * COLUMNS..][start..end];
                assert!(bits(&found) == bits(expected), "{} {row} {start}..{end}", kind.name());
            }
        }
    }

    #[test]
    fn rows_that_are_not_whole_blocks_are_refused() {
        assert!(
            quantize(&[0.0; 96], 96, GgmlType::Q4K)
                .unwrap_err()
                .contains("Q4_K needs rows of a multiple of 256")
        );
        assert!(quantize(&[0.0; 33], 32, GgmlType::Q8_0).is_err(), "a row and one number");
        assert_eq!(GgmlType::F32.row_bytes(usize::MAX), None, "beyond all memory");
    }
}
