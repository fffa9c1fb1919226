//! Attention over contexts of several parts: what the textbook says, and the same bits however a prompt is cut into
//! steps, on any number of threads (one sequence is cut by position where there are more of these) and instruction
//! sets.

use std::sync::Arc;

use quire_cpu::{CpuBackend, CpuOptions, Isa};
use quire_model::{AttentionShape, Backend, InputBatch, KvDtype, KvScales, StepLimits};
use quire_scheduler::kv::BlockId;
use quire_scheduler::{AdmittedRequest, RequestId, SamplingParams, ScheduledRow, SchedulerOutput};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// One sequence, and the layer that looks at it.
#[derive(Debug)]
struct Case {
    shape: AttentionShape,
    limits: StepLimits,
    num_tokens: usize,
    dtype: KvDtype,
    /// `[head]`; empty if there are none.
    sinks: Vec<f32>,
}

impl Case {
    fn random(rng: &mut StdRng) -> Self {
        let (num_kv_heads, group) = (rng.random_range(1..3), rng.random_range(1..8));
        let num_tokens = rng.random_range(1000..1700);
        let block_size = rng.random_range(1..20);
        let has_sinks = rng.random_bool(0.3);
        Self {
            shape: AttentionShape {
                num_heads: num_kv_heads * group,
                num_kv_heads,
                head_dim: [8, 22, 64, 80][rng.random_range(0..4)],
                kv_group: 0,
                rotary_dim: 0,
                alibi: rng.random_bool(0.2),
                scale: rng.random_range(0.1..0.6),
                softcap: rng.random_bool(0.3).then_some(3.0),
                sliding_window: rng.random_bool(0.4).then(|| rng.random_range(1..900)),
                kv_scales: KvScales::default(),
            },
            limits: StepLimits {
                max_num_seqs: 1,
                max_num_batched_tokens: num_tokens,
                max_blocks_per_seq: num_tokens.div_ceil(block_size),
                block_size,
                max_logits_rows: 1,
                vocab_size: 1,
                heads_per_group: group,
                num_kv_groups: 1,
            },
            num_tokens,
            dtype: match rng.random_bool(0.5) {
                true => KvDtype::F32,
                false => KvDtype::ALL[rng.random_range(0..KvDtype::ALL.len())],
            },
            sinks: (0..num_kv_heads * group).filter(|_| has_sinks).map(|head| head as f32 * 0.3).collect(),
        }
    }

    fn row_len(&self) -> usize {
        (self.shape.num_heads + 2 * self.shape.num_kv_heads) * self.shape.head_dim
    }

    /// Attention of all tokens, computed in steps that end at these.
    fn compute(&self, qkv: &[f32], ends: &[usize], num_threads: usize, isa: Isa) -> Vec<f32> {
        let options = CpuOptions { num_threads: Some(num_threads), isa: Some(isa) };
        let mut backend = CpuBackend::new(options).unwrap().with_kv_dtype(self.dtype);
        backend.prepare(&self.limits, &[]).unwrap();
        let AttentionShape { num_kv_heads, head_dim, num_heads, .. } = self.shape;
        let blocks = self.limits.max_blocks_per_seq as u32;
        let vectors = (blocks as usize + 1) * 2 * num_kv_heads * self.limits.block_size;
        let mut cache = backend.alloc_kv_cache(vectors, head_dim).unwrap();
        let sinks = (!self.sinks.is_empty()).then(|| backend.load_table(&self.sinks, num_heads).unwrap());
        let mut batch = InputBatch::new(self.limits);
        let (mut start, mut all) = (0, Vec::new());
        for end in ends {
            let mut plan = SchedulerOutput { step: 1, ..SchedulerOutput::default() };
            if start == 0 {
                plan.new_block_ids.extend((1..=blocks).rev().map(BlockId));
                plan.admitted.push(AdmittedRequest {
                    slot: 0,
                    id: RequestId(0),
                    prompt_token_ids: vec![0; self.num_tokens].into(),
                    output_token_ids: Vec::new(),
                    sampling: Arc::new(SamplingParams::default()),
                    adapter: None,
                    block_ids: Vec::new(),
                });
            }
            plan.num_tokens = (end - start) as u32;
            plan.rows.push(ScheduledRow {
                slot: 0,
                id: RequestId(0),
                start: start as u32,
                num_tokens: plan.num_tokens,
                new_blocks: 0..plan.new_block_ids.len() as u32,
                samples: *end == self.num_tokens,
            });
            batch.apply(&plan).unwrap();
            backend.upload(batch.inputs(), batch.logits_rows(), batch.slots()).unwrap();
            let mut rows = qkv[start * self.row_len()..end * self.row_len()].to_vec();
            let mut out = vec![9.0; (end - start) * num_heads * head_dim];
            backend.rope_and_cache(&self.shape, None, None, &mut rows, &mut cache).unwrap();
            backend.paged_attention(&self.shape, sinks.as_ref(), &rows, &cache, &mut out).unwrap();
            all.append(&mut out);
            start = *end;
        }
        all
    }

    /// Of one token and head, in f64.
    fn by_definition(&self, qkv: &[f32], token: usize, head: usize) -> Vec<f64> {
        let AttentionShape { num_heads, num_kv_heads, head_dim, .. } = self.shape;
        let at = |token: usize, head: usize| {
            qkv[token * self.row_len() + head * head_dim..][..head_dim].iter().map(|x| f64::from(*x))
        };
        let kv_head = head / (num_heads / num_kv_heads);
        let first = self.shape.sliding_window.map_or(0, |window| (token + 1).saturating_sub(window as usize));
        let score = |other: usize| {
            let product: f64 = at(token, head).zip(at(other, num_heads + kv_head)).map(|(q, k)| q * k).sum();
            let scaled = product * f64::from(self.shape.scale);
            self.shape.softcap.map(f64::from).map_or(scaled, |cap| cap * (scaled / cap).tanh())
        };
        let weights: Vec<f64> = (first..=token).map(|other| score(other).exp()).collect();
        let sum: f64 =
            weights.iter().sum::<f64>() + self.sinks.get(head).map_or(0.0, |sink| f64::from(*sink).exp());
        let mut out = vec![0.0; head_dim];
        for (other, weight) in (first..).zip(&weights) {
            let value = at(other, num_heads + num_kv_heads + kv_head);
            out.iter_mut().zip(value).for_each(|(out, value)| *out += weight / sum * value);
        }
        out
    }
}

#[test]
fn invariant_8_parts_of_long_contexts_leave_no_trace() {
    for seed in 0..8 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let case = Case::random(rng);
        let qkv: Vec<f32> =
            (0..case.num_tokens * case.row_len()).map(|_| rng.random_range(-1.0..1.0)).collect();
        let whole = case.compute(&qkv, &[case.num_tokens], 1, Isa::available()[0]);
        let bits = |values: &[f32]| -> Vec<u32> { values.iter().map(|x| x.to_bits()).collect() };
        for isa in Isa::available() {
            // A long chunk, single tokens, and the rest.
            let cut = rng.random_range(500..900);
            let ends = [cut, cut + 1, cut + 2, case.num_tokens - 1, case.num_tokens];
            let found = case.compute(&qkv, &ends, rng.random_range(1..5), isa);
            assert!(bits(&found) == bits(&whole), "seed {seed}, {isa:?}, {ends:?}, {case:?}");
        }
        if case.dtype == KvDtype::F32 && !case.shape.alibi {
            let (heads, width) = (case.shape.num_heads, case.shape.head_dim);
            for token in [0, 511, 512, case.num_tokens - 1] {
                let head = rng.random_range(0..heads);
                let expected = case.by_definition(&qkv, token, head);
                for (found, expected) in whole[(token * heads + head) * width..].iter().zip(&expected) {
                    let error = (f64::from(*found) - expected).abs();
                    assert!(error < 2e-5, "seed {seed}, token {token}: {found} for {expected}, {case:?}");
                }
            }
        }
    }
}
