//! Latent attention against the same attention with decompressed keys and values, in f64.

use quire_model::{Dtype, LatentShape, TensorData, TensorView};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{HEADS_PER_ITEM, attend_latent, head_linear, latent_row};
use crate::attention::scores_len;
use crate::lanes::Isa;
use crate::linear::UnpackScratch;
use crate::pool::Pool;
use crate::weight::CpuWeight;

fn random(rng: &mut StdRng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn weight(values: &[f32], columns: usize) -> CpuWeight {
    let data: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let shape = vec![values.len() / columns, columns];
    let view = TensorView { dtype: Dtype::F32, shape, data: TensorData::Stored(data.into()) };
    CpuWeight::from_parts(&mut Pool::new(1).unwrap(), &[view]).unwrap()
}

fn dot<'a>(a: impl IntoIterator<Item = &'a f64>, b: impl IntoIterator<Item = &'a f64>) -> f64 {
    a.into_iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A sequence of tokens with all that attention is made of.
struct Case {
    shape: LatentShape,
    value_dim: usize,
    num_tokens: usize,
    /// `[token][heads][not rotated | rotated]`.
    queries: Vec<f32>,
    /// `[token][latent | shared key]`.
    kv: Vec<f32>,
    norm: Vec<f32>,
    /// `[token][cosines | sines]`.
    angles: Vec<f32>,
    /// `[heads][not rotated][latent]`, of keys.
    key_up: Vec<f32>,
    /// `[heads][value][latent]`.
    value_up: Vec<f32>,
}

impl Case {
    fn random(rng: &mut StdRng) -> Self {
        let shape = LatentShape {
            num_heads: rng.random_range(1..40),
            latent_dim: rng.random_range(1..50),
            nope_dim: rng.random_range(1..30),
            rope_dim: 2 * rng.random_range(1..9),
            scale: rng.random_range(0.1..1.0),
        };
        let (value_dim, num_tokens) = (rng.random_range(1..30), rng.random_range(1..40));
        let LatentShape { num_heads, latent_dim, nope_dim, rope_dim, .. } = shape;
        Self {
            queries: random(rng, num_tokens * num_heads * (nope_dim + rope_dim)),
            kv: random(rng, num_tokens * (latent_dim + rope_dim)),
            norm: random(rng, latent_dim),
            angles: random(rng, num_tokens * rope_dim),
            key_up: random(rng, num_heads * nope_dim * latent_dim),
            value_up: random(rng, num_heads * value_dim * latent_dim),
            shape,
            value_dim,
            num_tokens,
        }
    }

    /// The operations, on a cache of blocks of which every other one is somebody else's.
    fn compute(&self, isa: Isa, block_size: usize) -> Vec<f32> {
        let LatentShape { num_heads, latent_dim, nope_dim, rope_dim, .. } = self.shape;
        let (cached, query) = (latent_dim + rope_dim, nope_dim + rope_dim);
        let pool = &mut Pool::new(2).unwrap();
        let mut absorbed = vec![0.0; num_heads * latent_dim * nope_dim];
        for (head, from) in self.key_up.chunks_exact(nope_dim * latent_dim).enumerate() {
            for (i, x) in from.iter().enumerate() {
                absorbed[(head * latent_dim + i % latent_dim) * nope_dim + i / latent_dim] = *x;
            }
        }
        let mut queries = vec![9.0; self.num_tokens * num_heads * cached];
        let to_latent = weight(&absorbed, nope_dim);
        head_linear(
            pool,
            &mut UnpackScratch::default(),
            isa,
            num_heads,
            (&self.queries, query),
            &to_latent,
            (&mut queries, cached),
        );
        let blocks: Vec<u32> = (0..self.num_tokens.div_ceil(block_size) as u32).map(|i| 2 * i + 1).collect();
        let mut cache = vec![f32::NAN; (2 * blocks.len() + 1) * block_size * cached];
        let mut attended = vec![9.0; self.num_tokens * num_heads * latent_dim];
        let mut scores = vec![0.0; HEADS_PER_ITEM * scores_len(self.num_tokens)];
        for token in 0..self.num_tokens {
            let at = blocks[token / block_size] as usize * block_size + token % block_size;
            let heads = &mut queries[token * num_heads * cached..][..num_heads * cached];
            latent_row(
                isa,
                &self.shape,
                (&self.norm, 1e-6),
                &self.angles[token * rope_dim..][..rope_dim],
                &self.kv[token * cached..][..cached],
                &self.queries[token * num_heads * query..][..num_heads * query],
                heads,
                &mut cache[at * cached..][..cached],
            );
            let out = &mut attended[token * num_heads * latent_dim..][..num_heads * latent_dim];
            let items =
                heads.chunks(HEADS_PER_ITEM * cached).zip(out.chunks_mut(HEADS_PER_ITEM * latent_dim));
            for (heads, out) in items {
                attend_latent(
                    isa,
                    &self.shape,
                    &cache,
                    (&blocks, block_size),
                    token,
                    heads,
                    &mut scores,
                    out,
                );
            }
        }
        let mut out = vec![9.0; self.num_tokens * num_heads * self.value_dim];
        let from_latent = weight(&self.value_up, latent_dim);
        head_linear(
            pool,
            &mut UnpackScratch::default(),
            isa,
            num_heads,
            (&attended, latent_dim),
            &from_latent,
            (&mut out, self.value_dim),
        );
        out
    }

    /// Keys and values of every head made of the latent, and plain attention.
    fn naive(&self) -> Vec<f64> {
        let LatentShape { num_heads, latent_dim, nope_dim, rope_dim, scale } = self.shape;
        let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|x| f64::from(*x)).collect() };
        let (queries, kv, norm) = (wide(&self.queries), wide(&self.kv), wide(&self.norm));
        let (angles, key_up, value_up) = (wide(&self.angles), wide(&self.key_up), wide(&self.value_up));
        let rotated = |token: usize, x: &[f64]| -> Vec<f64> {
            let half = rope_dim / 2;
            let (cos, sin) = angles[token * rope_dim..][..rope_dim].split_at(half);
            let low = (0..half).map(|i| x[i] * cos[i] - x[half + i] * sin[i]);
            low.chain((0..half).map(|i| x[half + i] * cos[i] + x[i] * sin[i])).collect()
        };
        let row = |token: usize| &kv[token * (latent_dim + rope_dim)..][..latent_dim + rope_dim];
        let latent = |token: usize| -> Vec<f64> {
            let x = &row(token)[..latent_dim];
            let scale = 1.0 / (dot(x, x) / latent_dim as f64 + 1e-6).sqrt();
            x.iter().zip(&norm).map(|(x, w)| x * scale * w).collect()
        };
        let up = |matrix: &[f64], head: usize, rows: usize, x: &[f64]| -> Vec<f64> {
            matrix[head * rows * latent_dim..][..rows * latent_dim]
                .chunks(latent_dim)
                .map(|w| dot(w, x))
                .collect()
        };
        let mut out = Vec::new();
        for token in 0..self.num_tokens {
            for head in 0..num_heads {
                let width = nope_dim + rope_dim;
                let query = &queries[(token * num_heads + head) * width..][..width];
                let turned = rotated(token, &query[nope_dim..]);
                let score = |other: usize| {
                    let key = up(&key_up, head, nope_dim, &latent(other));
                    let shared = rotated(other, &row(other)[latent_dim..]);
                    (dot(&query[..nope_dim], &key) + dot(&turned, &shared)) * f64::from(scale)
                };
                let weights: Vec<f64> = (0..=token).map(|other| score(other).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let mut result = vec![0.0; self.value_dim];
                for (other, weight) in weights.iter().enumerate() {
                    let value = up(&value_up, head, self.value_dim, &latent(other));
                    result.iter_mut().zip(value).for_each(|(x, v)| *x += weight / sum * v);
                }
                out.extend(result);
            }
        }
        out
    }
}

#[test]
fn absorbed_attention_is_attention_with_decompressed_keys_and_values() {
    for seed in 0..24 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let case = Case::random(rng);
        let expected = case.naive();
        let block_size = rng.random_range(1..20);
        let mut bits = Vec::new();
        for isa in Isa::available() {
            let found = case.compute(isa, block_size);
            assert_eq!(found.len(), expected.len());
            for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let error = (f64::from(*found) - expected).abs();
                assert!(
                    error < 1e-4 * (1.0 + expected.abs()),
                    "seed {seed}, {isa:?}, {index}: {found} for {expected}"
                );
            }
            bits.push(found.into_iter().map(f32::to_bits).collect::<Vec<_>>());
        }
        assert!(bits.windows(2).all(|pair| pair[0] == pair[1]), "seed {seed}: instruction sets differ");
    }
}
