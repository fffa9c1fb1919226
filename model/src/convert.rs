//! [`convert`]: elements of one type as those of another, on all cores. Loading works on one tensor at a time with
//! all threads rather than on several at once, so that it never holds more than one that is not yet where it belongs.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::spec::Dtype;

/// Elements below which another thread is not worth its start.
const MIN_PER_THREAD: usize = 1 << 18;
/// Elements that go through f32 together.
const BLOCK: usize = 1024;

/// Little-endian elements of type `from`, each rounded to the nearest of type `to`.
pub(crate) fn convert(elements: &[u8], from: Dtype, to: Dtype) -> Vec<u8> {
    let len = elements.len() / from.bytes();
    let mut out = vec![0; len * to.bytes()];
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let per_thread = len.div_ceil(cores.min(len / MIN_PER_THREAD).max(1)).max(1);
    let mut parts = elements.chunks(per_thread * from.bytes()).zip(out.chunks_mut(per_thread * to.bytes()));
    std::thread::scope(|scope| {
        let own = parts.next();
        for (elements, out) in parts {
            scope.spawn(move || convert_part(elements, from, to, out));
        }
        own.into_iter().for_each(|(elements, out)| convert_part(elements, from, to, out));
    });
    out
}

fn convert_part(elements: &[u8], from: Dtype, to: Dtype, out: &mut [u8]) {
    let mut wide = [0.0; BLOCK];
    for (elements, out) in elements.chunks(BLOCK * from.bytes()).zip(out.chunks_mut(BLOCK * to.bytes())) {
        let wide = &mut wide[..elements.len() / from.bytes()];
        widen(elements, from, wide);
        narrow(wide, to, out);
    }
}

/// At most a block of little-endian elements, as f32.
fn widen(elements: &[u8], from: Dtype, out: &mut [f32]) {
    match from {
        Dtype::F32 => {
            out.iter_mut().zip(elements.as_chunks().0).for_each(|(x, b)| *x = f32::from_le_bytes(*b));
        }
        Dtype::Bf16 => {
            let values = elements.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32());
            out.iter_mut().zip(values).for_each(|(x, value)| *x = value);
        }
        Dtype::F16 => {
            let mut halves = [f16::ZERO; BLOCK];
            let halves = &mut halves[..out.len()];
            halves.iter_mut().zip(elements.as_chunks().0).for_each(|(x, b)| *x = f16::from_le_bytes(*b));
            halves.convert_to_f32_slice(out);
        }
    }
}

/// At most a block of numbers, as little-endian elements.
fn narrow(values: &[f32], to: Dtype, out: &mut [u8]) {
    match to {
        Dtype::F32 => {
            out.as_chunks_mut().0.iter_mut().zip(values).for_each(|(b, x)| *b = x.to_le_bytes());
        }
        Dtype::Bf16 => {
            let values = values.iter().map(|value| bf16::from_f32(*value).to_le_bytes());
            out.as_chunks_mut().0.iter_mut().zip(values).for_each(|(b, value)| *b = value);
        }
        Dtype::F16 => {
            let mut halves = [f16::ZERO; BLOCK];
            let halves = &mut halves[..values.len()];
            halves.convert_from_f32_slice(values);
            out.as_chunks_mut().0.iter_mut().zip(halves).for_each(|(b, x)| *b = x.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One element after another, by the library's own conversions.
    fn naive(elements: &[u8], from: Dtype, to: Dtype) -> Vec<u8> {
        let two = |b: &[u8]| [b[0], b[1]];
        let wide = |b: &[u8]| match from {
            Dtype::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            Dtype::Bf16 => bf16::from_le_bytes(two(b)).to_f32(),
            Dtype::F16 => f16::from_le_bytes(two(b)).to_f32(),
        };
        let narrow = |x: f32| match to {
            Dtype::F32 => x.to_le_bytes().to_vec(),
            Dtype::Bf16 => bf16::from_f32(x).to_le_bytes().to_vec(),
            Dtype::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
        };
        elements.chunks_exact(from.bytes()).flat_map(|bytes| narrow(wide(bytes))).collect()
    }

    #[test]
    fn every_type_to_every_other_with_any_number_of_threads() {
        const TYPES: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];
        for len in [0, 1, 7, BLOCK, BLOCK + 1, 2 * MIN_PER_THREAD + 777] {
            for from in TYPES {
                let values: Vec<f32> =
                    (0..len).map(|i| (i as f32 * 0.37).sin() * 10f32.powi(i as i32 % 9)).collect();
                let mut elements = vec![0; len * from.bytes()];
                for (values, out) in values.chunks(BLOCK).zip(elements.chunks_mut(BLOCK * from.bytes())) {
                    narrow(values, from, out);
                }
                for to in TYPES {
                    assert!(
                        convert(&elements, from, to) == naive(&elements, from, to),
                        "{len} {from:?} {to:?}"
                    );
                }
            }
        }
    }
}
