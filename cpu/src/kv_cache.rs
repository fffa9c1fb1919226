//! [`CpuKvCache`]: one layer's keys and values, in the type asked for, and what they are multiplied by.

use half::{bf16, f16};
use quire_model::{KvDtype, KvScales};

use crate::lanes::{E4m3, E5m2, Element};
use crate::shared::SharedSlice;
use crate::zeroed::zeroed;

/// One layer's cache, `[block][K | V][kv_head][token in block][head_dim]`.
pub struct CpuKvCache {
    pub(crate) data: KvData,
    /// `[block][K | V][kv_head][token in block]` what elements are times, in formats that keep one for each vector.
    pub(crate) own_scales: Option<Vec<f32>>,
}

/// The elements.
pub(crate) enum KvData {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
    E4m3(Vec<E4m3>),
    E5m2(Vec<E5m2>),
    Int8(Vec<i8>),
}

/// What elements are multiplied by when they are read.
#[derive(Clone, Copy)]
pub(crate) enum Scales<'a> {
    None,
    Fixed(KvScales),
    OfToken(&'a [f32]),
}

/// Evaluates an expression with `$elements` bound to the vector of elements, whatever they are.
macro_rules! with_elements {
    ($data:expr, $elements:ident => $body:expr) => {
        match $data {
            $crate::kv_cache::KvData::F32($elements) => $body,
            $crate::kv_cache::KvData::Bf16($elements) => $body,
            $crate::kv_cache::KvData::F16($elements) => $body,
            $crate::kv_cache::KvData::E4m3($elements) => $body,
            $crate::kv_cache::KvData::E5m2($elements) => $body,
            $crate::kv_cache::KvData::Int8($elements) => $body,
        }
    };
}
pub(crate) use with_elements;

impl CpuKvCache {
    /// `num_vectors` vectors (a key or a value each) of `head_dim` zeros. `None` if there is not the memory.
    pub(crate) fn new(dtype: KvDtype, num_vectors: usize, head_dim: usize) -> Option<Self> {
        let len = num_vectors.checked_mul(head_dim)?;
        let data = match dtype {
            KvDtype::F32 => KvData::F32(zeroed(len)?),
            KvDtype::Bf16 => KvData::Bf16(zeroed(len)?),
            KvDtype::F16 => KvData::F16(zeroed(len)?),
            KvDtype::Fp8E4m3 | KvDtype::Fp8PerTokenHead => KvData::E4m3(zeroed(len)?),
            KvDtype::Fp8E5m2 => KvData::E5m2(zeroed(len)?),
            KvDtype::Int8PerTokenHead => KvData::Int8(zeroed(len)?),
        };
        let has_own = matches!(dtype, KvDtype::Int8PerTokenHead | KvDtype::Fp8PerTokenHead);
        let own_scales = if has_own { Some(zeroed(num_vectors)?) } else { None };
        Some(Self { data, own_scales })
    }

    /// A cache of these numbers.
    pub fn of_f32(values: Vec<f32>) -> Self {
        Self { data: KvData::F32(values), own_scales: None }
    }

    /// Its numbers, if they are kept as f32.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            KvData::F32(values) => Some(values),
            _ => None,
        }
    }

    /// What elements are multiplied by when they are read, in a layer with these scales.
    pub(crate) fn scales(&self, of_layer: KvScales) -> Scales<'_> {
        match &self.own_scales {
            Some(scales) => Scales::OfToken(scales),
            None if self.data.is_scaled() && of_layer != KvScales::default() => Scales::Fixed(of_layer),
            None => Scales::None,
        }
    }
}

/// Writes keys and values from several threads.
pub(crate) struct KvWriter<'a, T> {
    elements: SharedSlice<'a, T>,
    own_scales: Option<SharedSlice<'a, f32>>,
    is_scaled: bool,
    /// What a scale of its own brings a vector's greatest number to.
    greatest: f32,
}

/// Evaluates an expression with `$writer` bound to a [`KvWriter`] of a cache.
macro_rules! with_writer {
    ($cache:expr, $writer:ident => $body:expr) => {{
        let (is_scaled, greatest) = ($cache.data.is_scaled(), $cache.data.greatest());
        let own_scales = &mut $cache.own_scales;
        $crate::kv_cache::with_elements!(&mut $cache.data, elements => {
            let $writer = $crate::kv_cache::KvWriter::new(elements, own_scales, is_scaled, greatest);
            $body
        })
    }};
}
pub(crate) use with_writer;

impl<'a, T: Element> KvWriter<'a, T> {
    pub(crate) fn new(
        elements: &'a mut [T],
        own_scales: &'a mut Option<Vec<f32>>,
        is_scaled: bool,
        greatest: f32,
    ) -> Self {
        let own_scales = own_scales.as_mut().map(|scales| SharedSlice::new(scales));
        Self { elements: SharedSlice::new(elements), own_scales, is_scaled, greatest }
    }

    /// Stores a key or a value at its offset, in a layer where its kind has that scale.
    ///
    /// # Safety
    /// No two vectors may be stored at the same offset at the same time.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn write(&self, at: usize, vector: &[f32], of_layer: f32) {
        let scale = match &self.own_scales {
            None if self.is_scaled => of_layer,
            None => 1.0,
            Some(scales) => {
                let scale = greatest(vector) / self.greatest;
                // SAFETY: a scale belongs to a vector, of which the caller stores one at a time.
                unsafe { scales.part(at / vector.len(), 1)[0] = scale };
                scale
            }
        };
        // SAFETY: vectors do not overlap, and the caller stores each once at a time.
        store(vector, scale, unsafe { self.elements.part(at, vector.len()) });
    }
}

impl KvData {
    /// Whether a layer's scales apply.
    pub(crate) fn is_scaled(&self) -> bool {
        matches!(self, Self::E4m3(_) | Self::E5m2(_))
    }

    /// The greatest number that a scale brings others to.
    pub(crate) fn greatest(&self) -> f32 {
        match self {
            Self::E4m3(_) => 448.0,
            Self::Int8(_) => 127.0,
            _ => 1.0,
        }
    }
}

/// The greatest absolute value; not a number if there is one that is not.
fn greatest(vector: &[f32]) -> f32 {
    let greater = |a: f32, b: f32| if a.is_nan() || b <= a { a } else { b };
    vector.iter().fold(0.0, |greatest, x| greater(greatest, x.abs()))
}

fn store<T: Element>(vector: &[f32], scale: f32, elements: &mut [T]) {
    // A vector of zeros has the scale 0.
    let factor = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    elements.iter_mut().zip(vector).for_each(|(element, x)| *element = T::of(x * factor));
}

#[cfg(test)]
mod tests {
    use quire_model::AttentionShape;

    use super::*;
    use crate::attention::{AttentionScratch, Kv, Layer, Rows, Sees, attend};
    use crate::lanes::Isa;

    const TOKENS: usize = 21;
    const BLOCK_SIZE: usize = 4;
    const ONES: KvScales = KvScales { key: 1.0, value: 1.0 };
    const SHAPE: AttentionShape = AttentionShape {
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 22,
        kv_group: 0,
        rotary_dim: 0,
        alibi: false,
        scale: 0.3,
        softcap: None,
        sliding_window: None,
        kv_scales: ONES,
    };

    /// Reproducible numbers, some of them small and some 0.
    fn numbers(seed: usize, len: usize) -> Vec<f32> {
        let number = |i: usize| ((seed * 7919 + i * 104_729) % 1009) as f32 / 504.5 - 1.0;
        (0..len).map(|i| number(i) * [1.0, 1e-2, 3.0, 0.0][(i + seed) % 4]).collect()
    }

    /// What is stored of each vector: the numbers as they are read.
    fn as_read(cache: &CpuKvCache, of_layer: KvScales) -> Vec<f32> {
        let values: Vec<f32> = with_elements!(&cache.data, elements => elements.iter().map(|element| element.to_f32()).collect());
        let plane = SHAPE.num_kv_heads * BLOCK_SIZE * SHAPE.head_dim;
        let scale = |(i, value): (usize, f32)| match cache.scales(of_layer) {
            Scales::None => value,
            Scales::Fixed(scales) => value * [scales.key, scales.value][i / plane % 2],
            Scales::OfToken(scales) => value * scales[i / SHAPE.head_dim],
        };
        values.into_iter().enumerate().map(scale).collect()
    }

    /// How far a number may be from what is stored of it, next to others of which `greatest` is the greatest.
    fn allowed_error(dtype: KvDtype, scale: f32, x: f32, greatest: f32) -> f32 {
        let x = x.abs();
        1.001
            * match dtype {
                KvDtype::F32 => 0.0,
                KvDtype::F16 => (x / 2048.0).max(2f32.powi(-25)),
                KvDtype::Bf16 => x / 256.0,
                KvDtype::Fp8E4m3 => (x / 16.0).max(scale * 2f32.powi(-10)),
                KvDtype::Fp8PerTokenHead => (x / 16.0).max(greatest / 448.0 * 2f32.powi(-10)),
                KvDtype::Fp8E5m2 => (x / 8.0).max(scale * 2f32.powi(-17)),
                KvDtype::Int8PerTokenHead => greatest / 254.0,
            }
    }

    #[test]
    fn what_is_stored_is_near_and_attention_is_over_what_is_stored() {
        let vectors = TOKENS.div_ceil(BLOCK_SIZE) * 2 * SHAPE.num_kv_heads * BLOCK_SIZE;
        let table: Vec<u32> = (0..TOKENS.div_ceil(BLOCK_SIZE) as u32).rev().collect();
        let plane = SHAPE.num_kv_heads * BLOCK_SIZE * SHAPE.head_dim;
        for (dtype, scales) in KvDtype::ALL.into_iter().flat_map(|dtype| {
            [KvScales::default(), KvScales { key: 0.0625, value: 0.3 }].map(|scales| (dtype, scales))
        }) {
            let mut cache = CpuKvCache::new(dtype, vectors, SHAPE.head_dim).unwrap();
            for position in 0..TOKENS {
                for head in 0..SHAPE.num_kv_heads {
                    let kv = Kv::of_blocks(&SHAPE, &[(); 0], Scales::None, BLOCK_SIZE);
                    let (at, _) = kv.key(&table, head, position);
                    let (key, value) = (numbers(2 * at, SHAPE.head_dim), numbers(2 * at + 1, SHAPE.head_dim));
                    write(&mut cache, at, &key, scales.key);
                    write(&mut cache, at + plane, &value, scales.value);
                    let read = as_read(&cache, scales);
                    for (at, vector, scale) in [(at, key, scales.key), (at + plane, value, scales.value)] {
                        for (x, found) in vector.iter().zip(&read[at..]) {
                            let allowed = allowed_error(dtype, scale, *x, greatest(&vector)) + x.abs() * 1e-6;
                            assert!((x - found).abs() <= allowed, "{dtype:?} {scales:?}: {found} for {x}");
                        }
                    }
                }
            }
            let plain = CpuKvCache::of_f32(as_read(&cache, scales));
            for isa in Isa::available() {
                let found = attention(isa, &cache, scales, &table);
                let expected = attention(isa, &plain, scales, &table);
                for (found, expected) in found.iter().zip(&expected) {
                    assert!((found - expected).abs() <= 1e-5, "{dtype:?} {isa:?}: {found} for {expected}");
                }
            }
        }
    }

    /// Of the last token, over all of them.
    fn attention(isa: Isa, cache: &CpuKvCache, scales: KvScales, block_table: &[u32]) -> Vec<f32> {
        let group = SHAPE.num_heads / SHAPE.num_kv_heads;
        let queries = numbers(3, SHAPE.num_heads * SHAPE.head_dim);
        let mut out = vec![0.0; group * SHAPE.head_dim];
        let mut scratch = AttentionScratch::default();
        scratch.reserve(SHAPE.head_dim);
        let sees = Sees::Past(&[TOKENS as u32 - 1]);
        let rows = Rows { kv_head: 1, first: 0, len: group, sees, block_table };
        with_elements!(&cache.data, elements => {
            let kv = Kv::of_blocks(&SHAPE, elements, cache.scales(scales), BLOCK_SIZE);
            let layer = Layer { shape: &SHAPE, queries: &queries, query_stride: queries.len(), sinks: &[], kv };
            attend(isa, &layer, rows, &mut scratch, &mut |row, values, sum| {
                let out = &mut out[row * SHAPE.head_dim..][..SHAPE.head_dim];
                out.iter_mut().zip(values).for_each(|(out, value)| *out = value / sum);
            });
        });
        out
    }

    fn write(cache: &mut CpuKvCache, at: usize, vector: &[f32], of_layer: f32) {
        with_writer!(cache, writer => {
            // SAFETY: nobody else writes.
            #[allow(unsafe_code)]
            unsafe {
                writer.write(at, vector, of_layer);
            }
        });
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        for dtype in KvDtype::ALL {
            let mut cache = CpuKvCache::new(dtype, 16, SHAPE.head_dim).unwrap();
            let mut vector = numbers(5, SHAPE.head_dim);
            vector[3] = f32::NAN;
            write(&mut cache, 0, &vector, 1.0);
            assert!(as_read(&cache, ONES)[3].is_nan(), "{dtype:?}");
        }
    }
}
