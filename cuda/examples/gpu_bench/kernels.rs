//! [`KernelBench`]: each operation of a step alone, at the shapes of one model.
//!
//! What a step reads cold is read cold here: weights and KV caches are in several copies, which take turns, so that
//! between two uses of one lies more than four times the level 2 cache. Activations are as warm as in a step, where
//! the kernel before has just written them.

use std::path::Path;
use std::sync::Arc;

use quire_cuda::driver::{Context, DeviceMemory};
use quire_cuda::packet::Packet;
use quire_cuda::sampling::Sampler;
use quire_cuda::{CudaBackend, CudaBuffer, CudaWeight};
use quire_model::{
    Activation, AttentionShape, Backend, BackendError, BufferRole, Dtype, DummyTensor, KvLayout, ModelSpec,
    NormKind, NormSpan, QkNorm, StepLimits, TensorData, TensorView, rope_table,
};
use quire_scheduler::SamplingParams;

use crate::Result;
use crate::random::{random_buffer, random_logits};
use crate::report::{Ceilings, Report, Work};
use crate::sizes::Sizes;
use crate::step::{Row, Steps};
use crate::timer::Timer;
use crate::work;

/// Copies of what is read cold, at most.
const COPIES_MAX: usize = 64;
/// Tokens in a block of the cache, the server's default.
pub(crate) const BLOCK_SIZE: usize = 16;

/// Rows that the tokens of a long step belong to, where that makes no difference.
const LONG_STEP_ROWS: usize = 8;

/// A backend that is ready for steps of one model's shapes, without its weights.
pub(crate) struct KernelBench<'a> {
    backend: CudaBackend,
    timer: Timer,
    steps: Steps,
    sampler: Sampler,
    packet: Packet,
    /// The sampler's, by slot.
    _last_tokens: DeviceMemory,
    sizes: Sizes,
    spec: &'a ModelSpec,
    limits: StepLimits,
    name: &'a str,
    ceilings: Ceilings,
    report: &'a mut Report,
}

/// The projections of a layer, and the one to logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Projection {
    Qkv,
    Output,
    GateUp,
    Down,
    Logits,
}

impl<'a> KernelBench<'a> {
    /// Chooses the products' algorithms, unless `cache` has them.
    pub(crate) fn new(
        context: &Arc<Context>,
        cache: &Path,
        (name, spec): (&'a str, &'a ModelSpec),
        (sizes, ceilings): (Sizes, Ceilings),
        report: &'a mut Report,
    ) -> Result<Self> {
        let mut backend = crate::open_backend(context, cache, false)?;
        let max_rows = *sizes.gemm_rows.iter().chain(sizes.batches).max().expect("there are some");
        let longest = sizes.max_prompt().max(sizes.context) + BLOCK_SIZE;
        let limits = StepLimits {
            max_num_seqs: sizes.max_batch().max(LONG_STEP_ROWS),
            max_num_batched_tokens: sizes
                .max_prompt()
                .max(max_rows)
                .max(sizes.long_rows[sizes.long_rows.len() - 1]),
            max_blocks_per_seq: longest.div_ceil(BLOCK_SIZE),
            block_size: BLOCK_SIZE,
            max_logits_rows: sizes.max_batch(),
            vocab_size: spec.vocab_size,
            heads_per_group: spec.layers[0].attention.num_heads / spec.layers[0].attention.num_kv_heads,
            num_kv_groups: 1,
        };
        // As many rows as in whole steps, so that these find the algorithms chosen.
        let announced = StepLimits { max_num_batched_tokens: sizes.step_tokens.max(max_rows), ..limits };
        backend.prepare(&limits, &spec.linear_shapes(&announced))?;
        let last_tokens = DeviceMemory::alloc(context, 4 * (limits.max_num_seqs + 1))?;
        let packet = Packet::new(context, Sampler::max_words(&limits))?;
        let sampler =
            Sampler::new(backend.stream(), backend.kernels(), &limits, last_tokens.address(), &packet)?;
        Ok(Self {
            timer: Timer::new(&backend, sizes)?,
            backend,
            steps: Steps::new(limits),
            sampler,
            packet,
            _last_tokens: last_tokens,
            sizes,
            spec,
            limits,
            name,
            ceilings,
            report,
        })
    }

    /// The whole table, and by batch the sum of what a decode step is made of, in microseconds.
    pub(crate) fn run(mut self) -> Result<Vec<(usize, f64)>> {
        let mut sums = Vec::new();
        for &batch in self.sizes.batches {
            sums.push((batch, self.decode_step(batch)?));
        }
        for (case, contexts) in self.sizes.ragged() {
            let rows: Vec<Row> = contexts.into_iter().map(Row::decode).collect();
            let case = format!("decode, {} rows: {case}", rows.len());
            self.attention(&case, &rows)?;
        }
        for &len in self.sizes.prompts {
            self.attention(&format!("prefill, {len} tokens"), &[Row { start: 0, len }])?;
        }
        let chunk = self.sizes.max_prompt() / 4;
        let last = Row { start: 3 * chunk, len: chunk };
        self.attention(&format!("prefill, {chunk} tokens behind {}", last.start), &[last])?;
        for &rows in self.sizes.gemm_rows.iter().filter(|rows| !self.sizes.batches.contains(rows)) {
            for projection in [Projection::Qkv, Projection::Output, Projection::GateUp, Projection::Down] {
                self.product(projection, rows)?;
            }
        }
        for &rows in self.sizes.long_rows {
            let len = rows / LONG_STEP_ROWS;
            self.between_products(&[Row { start: 0, len }; LONG_STEP_ROWS])?;
        }
        for &batch in self.sizes.batches {
            let rows = vec![Row::decode(self.sizes.context); batch];
            let params =
                SamplingParams { temperature: 0.8, top_p: 0.95, seed: 7, ..SamplingParams::default() };
            self.sampling("top-p 0.95", &rows, &params)?;
        }
        Ok(sums)
    }

    /// Everything in a decode step of that many rows, each once.
    fn decode_step(&mut self, batch: usize) -> Result<f64> {
        let rows = vec![Row::decode(self.sizes.context); batch];
        let mut layer_us =
            self.attention(&format!("decode, {batch} rows of {}", self.sizes.context), &rows)?;
        for projection in [Projection::Qkv, Projection::Output, Projection::GateUp, Projection::Down] {
            layer_us += self.product(projection, batch)?;
        }
        let [norm_us, rope_us, silu_us, embed_us, gather_us] = self.between_products(&rows)?;
        layer_us += 2.0 * norm_us + rope_us + silu_us;
        let logits_us = self.product(Projection::Logits, batch)?;
        let sampling_us = self.sampling("greedy", &rows, &greedy())?;
        let once_us = embed_us + norm_us + gather_us + logits_us + sampling_us;
        Ok(self.spec.layers.len() as f64 * layer_us + once_us)
    }

    fn attention(&mut self, case: &str, rows: &[Row]) -> Result<f64> {
        self.steps.upload(&mut self.backend, rows, &greedy())?;
        let (spec, shape) = (self.spec, self.shape());
        let work = work::attention(spec, rows);
        let tokens = rows.iter().map(|row| row.len).sum::<usize>();
        let caches = self.kv_caches(rows, work.bytes)?;
        let qkv = random_buffer(
            &mut self.backend,
            BufferRole::Activation,
            tokens * spec.layers[0].attention.qkv_size(),
        )?;
        let mut out =
            self.backend.alloc(BufferRole::Activation, tokens * spec.layers[0].attention.output_size())?;
        let us = self.timer.time_us(&mut self.backend, &mut |backend, turn| {
            backend.paged_attention(&shape, None, &qkv, &caches[turn % caches.len()], &mut out)
        })?;
        self.tell("attention", case, us, &work)
    }

    fn product(&mut self, projection: Projection, rows: usize) -> Result<f64> {
        let spec = self.spec;
        let (hidden, inner) = (spec.hidden_size, work::inner_size(spec));
        let (kernel, n, k) = match projection {
            Projection::Qkv => ("product, qkv", spec.layers[0].attention.qkv_size(), hidden),
            Projection::Output => ("product, output", hidden, spec.layers[0].attention.output_size()),
            Projection::GateUp => ("product, gate-up", 2 * inner, hidden),
            Projection::Down => ("product, down", hidden, inner),
            Projection::Logits => ("product, logits", spec.vocab_size, hidden),
        };
        let role = match projection {
            Projection::Logits => BufferRole::Logits,
            _ => BufferRole::Activation,
        };
        let mut weights = Vec::new();
        for copy in 0..self.copies(2.0 * (n * k) as f64) {
            weights.push(self.weight(&format!("{kernel} {copy}"), &[n, k])?);
        }
        let x = random_buffer(&mut self.backend, BufferRole::Activation, rows * k)?;
        let mut out = self.backend.alloc(role, rows * n)?;
        let us = self.timer.time_us(&mut self.backend, &mut |backend, turn| {
            backend.linear(rows, &x, &weights[turn % weights.len()], None, &mut out)
        })?;
        let work = work::product(rows, n, k, out.dtype().bytes());
        self.tell(kernel, &format!("{rows} x {k} by {n} x {k}"), us, &work)
    }

    /// Norm, rope, activation, embedding and gather, in microseconds.
    fn between_products(&mut self, rows: &[Row]) -> Result<[f64; 5]> {
        self.steps.upload(&mut self.backend, rows, &greedy())?;
        let (spec, shape) = (self.spec, self.shape());
        let tokens: usize = rows.iter().map(|row| row.len).sum();
        let (hidden, inner, eps) = (spec.hidden_size, work::inner_size(spec), spec.norm.eps);
        let case = format!("{tokens} tokens");
        let backend = &mut self.backend;
        let x = random_buffer(backend, BufferRole::Activation, tokens * hidden)?;
        let mut residual = random_buffer(backend, BufferRole::Residual, tokens * hidden)?;
        let mut normed = backend.alloc(BufferRole::Activation, tokens * hidden)?;
        let weight = self.weight("input_layernorm.weight", &[hidden])?;
        let norm_us = self.timer.time_us(&mut self.backend, &mut |backend, _| {
            backend.add_rms_norm(tokens, &x, &mut residual, &weight, eps, &mut normed)
        })?;
        self.tell("add, norm", &case, norm_us, &work::norm(spec, tokens))?;

        let rope_us = self.rope(rows, &shape)?;
        self.tell("rope, cache", &case, rope_us, &work::rope(spec, tokens))?;

        let gate_up = random_buffer(&mut self.backend, BufferRole::Activation, tokens * 2 * inner)?;
        let mut activated = self.backend.alloc(BufferRole::Activation, tokens * inner)?;
        let silu_us = self.timer.time_us(&mut self.backend, &mut |backend, _| {
            backend.activate(tokens, inner, Activation::Silu, true, &gate_up, &mut activated)
        })?;
        self.tell("silu, multiply", &case, silu_us, &work::silu_mul(spec, tokens))?;

        let table = self.weight("model.embed_tokens.weight", &[spec.vocab_size, hidden])?;
        let embed_us =
            self.timer.time_us(&mut self.backend, &mut |backend, _| backend.embed(&table, &mut residual))?;
        self.tell("embed", &case, embed_us, &work::embed(spec, tokens))?;

        let num_rows = rows.len();
        let mut gathered = self.backend.alloc(BufferRole::Activation, num_rows * hidden)?;
        let gather_us = self.timer.time_us(&mut self.backend, &mut |backend, _| {
            backend.gather(0..num_rows, hidden, &x, &mut gathered)
        })?;
        self.tell(
            "gather",
            &format!("{num_rows} of {tokens} tokens"),
            gather_us,
            &work::gather(spec, num_rows),
        )?;
        Ok([norm_us, rope_us, silu_us, embed_us, gather_us])
    }

    fn rope(&mut self, rows: &[Row], shape: &AttentionShape) -> Result<f64> {
        let spec = self.spec;
        let tokens: usize = rows.iter().map(|row| row.len).sum();
        let positions = self.limits.max_blocks_per_seq * BLOCK_SIZE;
        let angles = rope_table(&spec.ropes()[0], positions, positions);
        let table = self.backend.load_table(&angles, shape.head_dim)?;
        let norms = match spec.layers[0].attention.qk_norm {
            Some(_) => Some([
                self.weight("q_norm.weight", &[shape.head_dim])?,
                self.weight("k_norm.weight", &[shape.head_dim])?,
            ]),
            None => None,
        };
        let mut qkv = random_buffer(
            &mut self.backend,
            BufferRole::Activation,
            tokens * spec.layers[0].attention.qkv_size(),
        )?;
        let block_len = KvLayout::new(spec, BLOCK_SIZE).block_len(0);
        let mut cache =
            self.backend.alloc(BufferRole::Activation, self.steps.num_blocks(rows) * block_len)?;
        let us = self.timer.time_us(&mut self.backend, &mut |backend, _| {
            let qk_norm = norms.as_ref().map(|[q_weight, k_weight]| QkNorm {
                kind: NormKind::Rms,
                span: NormSpan::Head,
                q_weight,
                k_weight,
                eps: spec.norm.eps,
            });
            backend.rope_and_cache(shape, qk_norm, Some(&table), &mut qkv, &mut cache)
        })?;
        Ok(us)
    }

    fn sampling(&mut self, how: &str, rows: &[Row], params: &SamplingParams) -> Result<f64> {
        self.steps.upload(&mut self.backend, rows, params)?;
        let (logits_rows, slots) = (self.steps.logits_rows(), self.steps.slots());
        let logits = random_logits(&mut self.backend, rows.len() * self.spec.vocab_size)?;
        // A sampler of its own: the backend's samples each row of a step once.
        let (stream, packet) = (self.backend.stream(), &mut self.packet);
        packet.begin()?;
        self.sampler.upload(stream, packet, logits_rows, slots)?;
        packet.send(stream)?;
        let sampler = &self.sampler;
        let us = self.timer.time_us(&mut self.backend, &mut |backend, _| {
            Ok(sampler.launch(backend.stream(), logits.address(), 0, rows.len())?)
        })?;
        let work = work::sampling(self.spec, rows.len());
        self.tell("sampling", &format!("{how}, {} rows of {}", rows.len(), self.spec.vocab_size), us, &work)
    }

    /// Caches of random numbers that hold the step's blocks; as many as are read cold.
    fn kv_caches(&mut self, rows: &[Row], read_bytes: f64) -> Result<Vec<CudaBuffer>> {
        let block_len = KvLayout::new(self.spec, BLOCK_SIZE).block_len(0);
        let len = self.steps.num_blocks(rows) * block_len;
        let copies = 0..self.copies(read_bytes);
        let caches = copies.map(|_| random_buffer(&mut self.backend, BufferRole::Activation, len));
        Ok(caches.collect::<std::result::Result<_, BackendError>>()?)
    }

    /// How many copies of something of that size are enough for it to be read cold.
    fn copies(&self, bytes: f64) -> usize {
        let wanted_bytes = 4.0 * f64::from(self.backend.stream().context().attributes().l2_bytes);
        let most = if self.sizes.is_smoke { 2 } else { COPIES_MAX };
        1 + ((wanted_bytes / bytes) as usize).min(most - 1)
    }

    fn weight(&mut self, name: &str, shape: &[usize]) -> std::result::Result<CudaWeight, BackendError> {
        let data = TensorData::Dummy(DummyTensor::new(name));
        self.backend.load(&[TensorView { dtype: Dtype::Bf16, shape: shape.to_vec(), data }])
    }

    fn shape(&self) -> AttentionShape {
        let shape = AttentionShape::of(self.spec, &self.spec.layers[0].attention);
        AttentionShape { sliding_window: None, ..shape }
    }

    fn tell(&mut self, kernel: &str, case: &str, us: f64, work: &Work) -> Result<f64> {
        self.report.kernel(self.name, kernel, case, us, work, &self.ceilings)?;
        Ok(us)
    }
}

fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, ..SamplingParams::default() }
}
