//! Latent attention against the same attention with decompressed keys and values, in f64.

use std::sync::Arc;

use quire_cpu::{CpuBackend, CpuOptions, CpuWeight, Isa};
use quire_model::{
    Backend, BufferRole, Dtype, Heads, InputBatch, KvDtype, LatentInput, LatentNorm, LatentShape, StepLimits,
    TensorData, TensorView,
};
use quire_scheduler::kv::BlockId;
use quire_scheduler::{AdmittedRequest, RequestId, SamplingParams, ScheduledRow, SchedulerOutput};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn random(rng: &mut StdRng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn weight(backend: &mut CpuBackend, values: &[f32], columns: usize) -> CpuWeight {
    let data: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let shape = vec![values.len() / columns, columns];
    backend.load(&[TensorView { dtype: Dtype::F32, shape, data: TensorData::Stored(data.into()) }]).unwrap()
}

/// A step that computes one whole sequence, whose blocks are every other one.
fn one_sequence(num_tokens: usize, limits: StepLimits) -> InputBatch {
    let count = num_tokens.div_ceil(limits.block_size) as u32;
    let mut batch = InputBatch::new(limits);
    let plan = SchedulerOutput {
        step: 1,
        num_tokens: num_tokens as u32,
        new_block_ids: (0..count).map(|i| BlockId(2 * i + 1)).collect(),
        rows: vec![ScheduledRow {
            slot: 0,
            id: RequestId(0),
            start: 0,
            num_tokens: num_tokens as u32,
            new_blocks: 0..count,
            samples: true,
        }],
        admitted: vec![AdmittedRequest {
            slot: 0,
            id: RequestId(0),
            prompt_token_ids: vec![0; num_tokens].into(),
            output_token_ids: Vec::new(),
            sampling: Arc::new(SamplingParams::default()),
            adapter: None,
            block_ids: Vec::new(),
        }],
        ..SchedulerOutput::default()
    };
    batch.apply(&plan).unwrap();
    batch
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
            kv_scale: 1.0,
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

    fn with_larger_latents(&self, factor: f32, kv_scale: f32) -> Self {
        let LatentShape { latent_dim, nope_dim, rope_dim, .. } = self.shape;
        let all = |numbers: &[f32], factor: f32| numbers.iter().map(|x| x * factor).collect::<Vec<_>>();
        let tails = |rows: &[f32], row: usize, from: usize, factor: f32| {
            let factor = |(at, x): (usize, &f32)| if at % row < from { *x } else { x * factor };
            rows.iter().enumerate().map(factor).collect()
        };
        Self {
            shape: LatentShape { kv_scale, ..self.shape },
            value_dim: self.value_dim,
            num_tokens: self.num_tokens,
            queries: tails(&self.queries, nope_dim + rope_dim, nope_dim, 1.0 / factor),
            kv: tails(&self.kv, latent_dim + rope_dim, latent_dim, factor),
            norm: all(&self.norm, factor),
            angles: self.angles.clone(),
            key_up: all(&self.key_up, 1.0 / factor),
            value_up: all(&self.value_up, 1.0 / factor),
        }
    }

    /// The operations, on a cache of blocks of which every other one is somebody else's.
    fn compute(&self, isa: Isa, block_size: usize, kv_dtype: KvDtype) -> Vec<f32> {
        let LatentShape { num_heads, latent_dim, nope_dim, rope_dim, .. } = self.shape;
        let (rows, cached, query) = (self.num_tokens, latent_dim + rope_dim, nope_dim + rope_dim);
        let mut backend = CpuBackend::new(CpuOptions { num_threads: Some(2), isa: Some(isa) })
            .unwrap()
            .with_kv_dtype(kv_dtype);
        let limits = StepLimits {
            max_num_seqs: 1,
            max_num_batched_tokens: rows,
            max_blocks_per_seq: 40,
            block_size,
            max_logits_rows: 1,
            vocab_size: 1,
            heads_per_group: num_heads,
            num_kv_groups: 1,
        };
        backend.prepare(&limits, &[]).unwrap();
        let batch = one_sequence(rows, limits);
        backend.upload(batch.inputs(), batch.logits_rows(), batch.slots()).unwrap();
        let mut absorbed = vec![0.0; num_heads * latent_dim * nope_dim];
        for (head, from) in self.key_up.chunks_exact(nope_dim * latent_dim).enumerate() {
            for (i, x) in from.iter().enumerate() {
                absorbed[(head * latent_dim + i % latent_dim) * nope_dim + i / latent_dim] = *x;
            }
        }
        let into_latent = weight(&mut backend, &absorbed, nope_dim);
        let out_of_latent = weight(&mut backend, &self.value_up, latent_dim);
        let norm = backend.load_table(&self.norm, latent_dim).unwrap();
        let table = backend.load_table(&self.angles, rope_dim).unwrap();
        let blocks = 2 * rows.div_ceil(block_size) + 1;
        let mut cache = backend.alloc_kv_cache(blocks * block_size, cached).unwrap();
        let mut buffer = |len| backend.alloc(BufferRole::Activation, rows * num_heads * len).unwrap();
        let (mut queries, mut attended, mut out) =
            (buffer(cached), buffer(latent_dim), buffer(self.value_dim));
        let heads = |x_width, out_width| Heads { num_heads, x_width, out_width };
        let into = heads(query, cached);
        backend.head_linear(rows, into, &self.queries, &into_latent, &mut queries).unwrap();
        let norm = LatentNorm { weight: &norm, eps: 1e-6 };
        let input = LatentInput { q: &self.queries, kv: &self.kv };
        backend.latent_and_cache(&self.shape, norm, &table, input, &mut queries, &mut cache).unwrap();
        backend.latent_attention(&self.shape, &queries, &cache, &mut attended).unwrap();
        let out_of = heads(latent_dim, self.value_dim);
        backend.head_linear(rows, out_of, &attended, &out_of_latent, &mut out).unwrap();
        out
    }

    /// Keys and values of every head made of the latent, and plain attention.
    fn naive(&self) -> Vec<f64> {
        let LatentShape { num_heads, latent_dim, nope_dim, rope_dim, scale, .. } = self.shape;
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
            let found = case.compute(isa, block_size, KvDtype::F32);
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

/// A latent that is larger by a power of two, and heads that make up for it, are the same attention; FP8 could not hold
/// it without the layer's scale.
#[test]
fn the_scale_of_a_layer_brings_its_latents_into_range() {
    for seed in 0..8 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let case = Case::random(rng);
        let factor = 2f32.powi(if seed % 2 == 0 { 20 } else { -22 });
        let isa = *Isa::available().last().unwrap();
        let plain = case.compute(isa, 4, KvDtype::Fp8E4m3);
        for kv_scale in [factor, 1.0] {
            let found = case.with_larger_latents(factor, kv_scale).compute(isa, 4, KvDtype::Fp8E4m3);
            assert_eq!(
                found == plain,
                kv_scale == factor,
                "seed {seed}, {factor} with a scale of {kv_scale}"
            );
        }
    }
}
