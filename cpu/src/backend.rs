//! The operations of [`Backend`] over the pool. Work is done when an operation returns.

use std::ops::Range;

use quire_model::{
    Activation, AttentionShape, Backend, BackendError, BufferRole, Experts, Heads, LatentInput, LatentNorm,
    LatentShape, LayerNorm, LinearShape, LogitsRow, LogitsTask, LoraTargets, MAX_KV_GROUPS, MoeSpec,
    PLACEHOLDER_BIT, PackedMatrix, PoolRow, QkNorm, RowResult, SamplerScratch, Slot, StepInputs, StepLimits,
    TensorView, sample_row,
};

use crate::activation::activate_row;
use crate::attention::{Kv, Layer};
use crate::attention_step::Step;
use crate::device::{CpuBackend, ELEMENT_CHUNK, MIN_WORK_PER_CHUNK, WorkerScratch, chunk_of, error, row_of};
use crate::elementwise::{gate_row, layer_norm, rms_norm, rotate, scale};
use crate::kv_cache::{CpuKvCache, Scales, with_elements, with_writer};
use crate::latent::{LatentToken, attend_latents, head_linear, write_latents};
use crate::linear::linear;
use crate::lora::LoraBatch;
use crate::moe::{Threads, moe};
use crate::pooling::pool_row;
use crate::shared::SharedSlice;
use crate::weight::CpuWeight;
use crate::zeroed::zeroed;

impl Backend for CpuBackend {
    type Buffer = Vec<f32>;
    type Weight = CpuWeight;
    type KvCache = CpuKvCache;

    fn name(&self) -> &'static str {
        "cpu"
    }

    fn max_in_flight(&self) -> usize {
        1
    }

    fn max_kv_groups(&self) -> usize {
        MAX_KV_GROUPS
    }

    fn load(&mut self, parts: &[TensorView<'_>]) -> Result<CpuWeight, BackendError> {
        CpuWeight::from_parts(&mut self.pool, parts).map_err(error)
    }

    fn load_packed(&mut self, matrix: PackedMatrix) -> Result<CpuWeight, BackendError> {
        let weight = match self.int8_activations {
            true => CpuWeight::integer(&mut self.pool, matrix),
            false => CpuWeight::packed(matrix),
        };
        self.num_integer_matrices += usize::from(weight.is_integer());
        self.unpacked.reserve(&weight, self.pool.num_threads());
        Ok(weight)
    }

    fn load_table(&mut self, values: &[f32], columns: usize) -> Result<CpuWeight, BackendError> {
        Ok(CpuWeight::table(values, columns))
    }

    fn alloc(&mut self, role: BufferRole, len: usize) -> Result<Vec<f32>, BackendError> {
        let mut buffer = zeroed(len).ok_or_else(|| error(format!("no memory for {len} f32 of {role:?}")))?;
        self.touch(&mut buffer);
        Ok(buffer)
    }

    /// The system provides its pages as blocks are first used: most servers never need all of them, and to write them
    /// all would take longer than to load the model.
    fn alloc_kv_cache(&mut self, vectors: usize, width: usize) -> Result<CpuKvCache, BackendError> {
        let dtype = self.kv_dtype;
        self.attention.reserve(width, self.pool.num_threads());
        CpuKvCache::new(dtype, vectors, width).ok_or_else(|| {
            error(format!("no memory for {vectors} keys and values of {width} numbers as {}", dtype.name()))
        })
    }

    fn prepare(&mut self, limits: &StepLimits, _linears: &[LinearShape]) -> Result<(), BackendError> {
        self.limits = *limits;
        self.block_tables = vec![0; limits.num_kv_groups * limits.max_num_seqs * limits.max_blocks_per_seq];
        self.last_tokens = vec![0; limits.max_num_seqs];
        self.results = vec![RowResult::default(); limits.max_num_seqs];
        self.attention.prepare(limits, self.pool.num_threads());
        self.scratch = (0..self.pool.num_threads())
            .map(|_| WorkerScratch { sampler: SamplerScratch::new(limits.vocab_size) })
            .collect();
        Ok(())
    }

    fn upload(
        &mut self,
        inputs: &StepInputs,
        _rows: &[LogitsRow],
        slots: &[Slot],
    ) -> Result<(), BackendError> {
        self.step.copy_from(inputs);
        self.lora.group(inputs, slots);
        self.num_results = 0;
        self.pooled.clear();
        for [table, index, block] in inputs.block_writes() {
            self.block_tables[*table as usize * self.limits.max_blocks_per_seq + *index as usize] = *block;
        }
        Ok(())
    }

    fn embed(&mut self, table: &CpuWeight, out: &mut Vec<f32>) -> Result<(), BackendError> {
        let width = table.columns;
        for (word, out) in self.step.token_ids().iter().zip(out.chunks_exact_mut(width)) {
            let token = match word & PLACEHOLDER_BIT {
                0 => *word,
                _ => self.last_tokens[(word & !PLACEHOLDER_BIT) as usize],
            };
            table.read_row(token as usize, out);
        }
        Ok(())
    }

    fn rms_norm(
        &mut self,
        rows: usize,
        x: &Vec<f32>,
        weight: &CpuWeight,
        eps: f32,
        out: &mut Vec<f32>,
    ) -> Result<(), BackendError> {
        let (isa, weight) = (self.isa, weight.f32());
        let (width, out) = (weight.len(), SharedSlice::new(out));
        self.for_rows(rows, width, |row| {
            // SAFETY: each row is computed once.
            #[allow(unsafe_code)]
            let out = unsafe { row_of(&out, row, width) };
            rms_norm(isa, &x[row * width..][..width], weight, eps, out);
        });
        Ok(())
    }

    fn add_rms_norm(
        &mut self,
        rows: usize,
        x: &Vec<f32>,
        residual: &mut Vec<f32>,
        weight: &CpuWeight,
        eps: f32,
        out: &mut Vec<f32>,
    ) -> Result<(), BackendError> {
        let (isa, weight) = (self.isa, weight.f32());
        let (width, out, residual) = (weight.len(), SharedSlice::new(out), SharedSlice::new(residual));
        self.for_rows(rows, 2 * width, |row| {
            // SAFETY: each row is computed once.
            #[allow(unsafe_code)]
            let (out, residual) = unsafe { (row_of(&out, row, width), row_of(&residual, row, width)) };
            residual.iter_mut().zip(&x[row * width..]).for_each(|(sum, x)| *sum += x);
            rms_norm(isa, residual, weight, eps, out);
        });
        Ok(())
    }

    fn linear(
        &mut self,
        rows: usize,
        x: &Vec<f32>,
        weight: &CpuWeight,
        bias: Option<&CpuWeight>,
        out: &mut Vec<f32>,
    ) -> Result<(), BackendError> {
        let factors = (weight, bias.map(CpuWeight::f32));
        linear(&mut self.pool, &mut self.unpacked, self.isa, rows, x, factors, out);
        Ok(())
    }

    fn prepare_adapters(&mut self, max_rank: usize, targets: &LoraTargets) -> Result<(), BackendError> {
        self.lora = LoraBatch::new(&self.limits, max_rank, targets);
        Ok(())
    }

    fn add_lora(
        &mut self,
        projection: usize,
        width: usize,
        x: &Vec<f32>,
        out: &mut Vec<f32>,
    ) -> Result<(), BackendError> {
        self.lora.add(&mut self.pool, self.isa, projection, width, x, out);
        Ok(())
    }

    fn rope_and_cache(
        &mut self,
        shape: &AttentionShape,
        qk_norm: Option<QkNorm<'_, CpuWeight>>,
        table: Option<&CpuWeight>,
        qkv: &mut Vec<f32>,
        kv_cache: &mut CpuKvCache,
    ) -> Result<(), BackendError> {
        if let Some(norm) = qk_norm {
            self.norm_heads(shape, &norm, qkv);
        }
        let Self { pool, limits, step, block_tables, .. } = self;
        let (head, block_size) = (shape.head_dim, limits.block_size);
        let (row_len, num_tokens) = ((shape.num_heads + 2 * shape.num_kv_heads) * head, step.num_tokens());
        let (positions, rows, slots) = (step.positions(), step.token_rows(), step.row_slots());
        let per_chunk = (MIN_WORK_PER_CHUNK / (4 * row_len)).max(1);
        let qkv = SharedSlice::new(qkv);
        with_writer!(kv_cache, cache => {
            let kv = Kv::of_blocks(shape, &[(); 0], Scales::None, block_size);
            pool.run(num_tokens.div_ceil(per_chunk), &|_, chunk| {
                for token in chunk * per_chunk..num_tokens.min((chunk + 1) * per_chunk) {
                    let position = positions[token] as usize;
                    // SAFETY: each token is computed once.
                    #[allow(unsafe_code)]
                    let qkv = unsafe { row_of(&qkv, token, row_len) };
                    if let Some(table) = table {
                        rotate(shape, &table.f32()[position * shape.rotary_dim..][..shape.rotary_dim], qkv);
                    }
                    let blocks = shape.kv_group * limits.max_num_seqs + slots[rows[token] as usize] as usize;
                    let blocks = &block_tables[blocks * limits.max_blocks_per_seq..];
                    let (keys, values) = qkv[shape.num_heads * head..].split_at(shape.num_kv_heads * head);
                    for (index, (key, value)) in keys.chunks_exact(head).zip(values.chunks_exact(head)).enumerate() {
                        let (at, _) = kv.key(blocks, index, position);
                        // SAFETY: no two tokens of a step have the same place.
                        #[allow(unsafe_code)]
                        unsafe {
                            cache.write(at, key, shape.kv_scales.key);
                            cache.write(at + kv.value_offset(), value, shape.kv_scales.value);
                        }
                    }
                }
            });
        });
        Ok(())
    }

    fn paged_attention(
        &mut self,
        shape: &AttentionShape,
        sinks: Option<&CpuWeight>,
        qkv: &Vec<f32>,
        kv_cache: &CpuKvCache,
        out: &mut Vec<f32>,
    ) -> Result<(), BackendError> {
        let tables = self.limits.max_num_seqs * self.limits.max_blocks_per_seq;
        let step = Step {
            inputs: &self.step,
            block_tables: &self.block_tables[shape.kv_group * tables..][..tables],
            blocks_per_table: self.limits.max_blocks_per_seq,
        };
        with_elements!(&kv_cache.data, data => {
            let scales = kv_cache.scales(shape.kv_scales);
            let kv = Kv::of_blocks(shape, data, scales, self.limits.block_size);
            let sinks = sinks.map_or(&[][..], |sinks| sinks.f32());
            let query_stride = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim;
            let layer = Layer { shape, queries: qkv, query_stride, sinks, kv };
            self.attention.attend(&mut self.pool, self.isa, step, &layer, out);
        });
        Ok(())
    }

    fn add_positions(&mut self, table: &CpuWeight, x: &mut Vec<f32>) -> Result<(), BackendError> {
        let (width, table) = (table.columns, table.f32());
        for (position, x) in self.step.positions().iter().zip(x.chunks_exact_mut(width)) {
            let row = &table[*position as usize * width..][..width];
            x.iter_mut().zip(row).for_each(|(x, of_position)| *x += of_position);
        }
        Ok(())
    }

    fn layer_norm(
        &mut self,
        rows: usize,
        x: &Vec<f32>,
        norm: LayerNorm<'_, CpuWeight>,
        out: &mut Vec<f32>,
    ) -> Result<(), BackendError> {
        let (isa, weight, bias) = (self.isa, norm.weight.f32(), norm.bias.f32());
        let (width, out) = (weight.len(), SharedSlice::new(out));
        self.for_rows(rows, 2 * width, |row| {
            // SAFETY: each row is computed once.
            #[allow(unsafe_code)]
            let out = unsafe { row_of(&out, row, width) };
            out.copy_from_slice(&x[row * width..][..width]);
            layer_norm(isa, out, weight, bias, norm.eps);
        });
        Ok(())
    }

    fn add_layer_norm(
        &mut self,
        rows: usize,
        x: &Vec<f32>,
        norm: LayerNorm<'_, CpuWeight>,
        sum: &mut Vec<f32>,
    ) -> Result<(), BackendError> {
        let (isa, weight, bias) = (self.isa, norm.weight.f32(), norm.bias.f32());
        let (width, sum) = (weight.len(), SharedSlice::new(sum));
        self.for_rows(rows, 3 * width, |row| {
            // SAFETY: each row is computed once.
            #[allow(unsafe_code)]
            let sum = unsafe { row_of(&sum, row, width) };
            sum.iter_mut().zip(&x[row * width..]).for_each(|(sum, x)| *sum += x);
            layer_norm(isa, sum, weight, bias, norm.eps);
        });
        Ok(())
    }

    fn full_attention(
        &mut self,
        shape: &AttentionShape,
        qkv: &Vec<f32>,
        out: &mut Vec<f32>,
    ) -> Result<(), BackendError> {
        let step = Step { inputs: &self.step, block_tables: &[], blocks_per_table: 0 };
        let kv = Kv::of_rows(shape, qkv);
        let layer = Layer { shape, queries: qkv, query_stride: kv.token_stride, sinks: &[], kv };
        self.attention.attend(&mut self.pool, self.isa, step, &layer, out);
        Ok(())
    }

    fn activate(
        &mut self,
        rows: usize,
        width: usize,
        activation: Activation,
        gated: bool,
        x: &Vec<f32>,
        out: &mut Vec<f32>,
    ) -> Result<(), BackendError> {
        let (isa, out) = (self.isa, SharedSlice::new(out));
        let input_width = if gated { 2 * width } else { width };
        self.for_rows(rows, 8 * width, |row| {
            // SAFETY: each row is computed once.
            #[allow(unsafe_code)]
            let out = unsafe { row_of(&out, row, width) };
            let (x, up) = x[row * input_width..][..input_width].split_at(width);
            activate_row(isa, activation, x, gated.then_some(up), out);
        });
        Ok(())
    }

    fn add(&mut self, len: usize, x: &Vec<f32>, sum: &mut Vec<f32>) -> Result<(), BackendError> {
        let sum = SharedSlice::new(sum);
        self.for_rows(len.div_ceil(ELEMENT_CHUNK), ELEMENT_CHUNK, |chunk| {
            let part = chunk_of(len, chunk);
            // SAFETY: each chunk is computed once.
            #[allow(unsafe_code)]
            let sum = unsafe { sum.part(part.start, part.len()) };
            sum.iter_mut().zip(&x[part]).for_each(|(sum, x)| *sum += x);
        });
        Ok(())
    }

    fn scale(
        &mut self,
        len: usize,
        factor: f32,
        softcap: Option<f32>,
        x: &mut Vec<f32>,
    ) -> Result<(), BackendError> {
        let (isa, x) = (self.isa, SharedSlice::new(x));
        self.for_rows(len.div_ceil(ELEMENT_CHUNK), ELEMENT_CHUNK, |chunk| {
            let part = chunk_of(len, chunk);
            // SAFETY: each chunk is computed once.
            #[allow(unsafe_code)]
            scale(isa, factor, softcap, unsafe { x.part(part.start, part.len()) });
        });
        Ok(())
    }

    fn gate_rows(
        &mut self,
        rows: usize,
        width: usize,
        gate: &Vec<f32>,
        x: &mut Vec<f32>,
    ) -> Result<(), BackendError> {
        let (isa, x) = (self.isa, SharedSlice::new(x));
        self.for_rows(rows, width, |row| {
            // SAFETY: each row is computed once.
            #[allow(unsafe_code)]
            gate_row(isa, gate[row], unsafe { row_of(&x, row, width) });
        });
        Ok(())
    }

    fn prepare_moe(&mut self, max_rows: usize, hidden: usize, spec: &MoeSpec) -> Result<(), BackendError> {
        self.moe.reserve(self.pool.num_threads(), max_rows, hidden, spec);
        Ok(())
    }

    fn moe(
        &mut self,
        rows: usize,
        experts: &Experts<'_, CpuWeight>,
        x: &Vec<f32>,
        logits: &Vec<f32>,
        out: &mut Vec<f32>,
    ) -> Result<(), BackendError> {
        let (hidden, num_experts) = (experts.down[0].rows, experts.spec.router.num_experts);
        let (x, logits) = (&x[..rows * hidden], &logits[..rows * num_experts]);
        let mut threads = Threads { pool: &mut self.pool, isa: self.isa, unpacked: self.unpacked.share() };
        moe(&mut threads, &mut self.moe, experts, x, logits, out);
        Ok(())
    }

    fn head_linear(
        &mut self,
        rows: usize,
        heads: Heads,
        x: &Vec<f32>,
        weight: &CpuWeight,
        out: &mut Vec<f32>,
    ) -> Result<(), BackendError> {
        let x = &x[..rows * heads.num_heads * heads.x_width];
        head_linear(&mut self.pool, &mut self.unpacked, self.isa, heads, x, weight, out);
        Ok(())
    }

    fn latent_and_cache(
        &mut self,
        shape: &LatentShape,
        norm: LatentNorm<'_, CpuWeight>,
        table: &CpuWeight,
        input: LatentInput<'_, Vec<f32>>,
        queries: &mut Vec<f32>,
        kv_cache: &mut CpuKvCache,
    ) -> Result<(), BackendError> {
        let token = LatentToken { isa: self.isa, shape, norm: norm.weight.f32(), eps: norm.eps };
        write_latents(self, token, table.f32(), &input, queries, kv_cache);
        Ok(())
    }

    fn latent_attention(
        &mut self,
        shape: &LatentShape,
        queries: &Vec<f32>,
        kv_cache: &CpuKvCache,
        out: &mut Vec<f32>,
    ) -> Result<(), BackendError> {
        attend_latents(self, shape, queries, kv_cache, out);
        Ok(())
    }

    fn gather(
        &mut self,
        range: Range<usize>,
        width: usize,
        x: &Vec<f32>,
        out: &mut Vec<f32>,
    ) -> Result<(), BackendError> {
        for (token, out) in self.step.logits_tokens()[range].iter().zip(out.chunks_exact_mut(width)) {
            out.copy_from_slice(&x[*token as usize * width..][..width]);
        }
        Ok(())
    }

    fn pool(
        &mut self,
        rows: &[PoolRow],
        width: usize,
        x: &Vec<f32>,
        state: &mut Vec<f32>,
    ) -> Result<(), BackendError> {
        for row in rows {
            let tokens = &x[row.tokens.start as usize * width..row.tokens.end as usize * width];
            let state = &mut state[row.slot as usize * width..][..width];
            pool_row(row, tokens, state);
            if row.is_last() {
                self.pooled.extend_from_slice(state);
            }
        }
        Ok(())
    }

    fn pooled(&self) -> &[f32] {
        &self.pooled
    }

    fn sample(
        &mut self,
        logits: &mut Vec<f32>,
        rows: &[LogitsRow],
        slots: &[Slot],
    ) -> Result<(), BackendError> {
        let first = self.num_results;
        self.num_results += rows.len();
        if self.results.len() < self.num_results {
            self.results.resize(self.num_results, RowResult::default());
        }
        let Self { pool, limits, scratch, results, .. } = self;
        let (scratch, logits) = (SharedSlice::new(scratch), SharedSlice::new(logits));
        let results = SharedSlice::new(&mut results[first..]);
        let per_chunk = (MIN_WORK_PER_CHUNK / limits.vocab_size.max(1)).max(1);
        pool.run(rows.len().div_ceil(per_chunk), &|worker, chunk| {
            for (index, row) in rows.iter().enumerate().skip(chunk * per_chunk).take(per_chunk) {
                // SAFETY: each row is sampled once; no two threads are the same worker at the same time.
                #[allow(unsafe_code)]
                let (scratch, logits, result) = unsafe {
                    (
                        &mut scratch.part(worker, 1)[0].sampler,
                        row_of(&logits, index, limits.vocab_size),
                        &mut results.part(index, 1)[0],
                    )
                };
                sample_row(row, logits, &slots[row.slot as usize], scratch, result);
            }
        });
        for (row, result) in rows.iter().zip(&self.results[first..]) {
            if row.task == LogitsTask::Sample {
                self.last_tokens[row.slot as usize] = result.token;
            }
        }
        Ok(())
    }

    fn collect(&mut self) -> Result<&[RowResult], BackendError> {
        Ok(&self.results[..self.num_results])
    }
}
