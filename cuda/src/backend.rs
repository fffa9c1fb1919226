//! [`CudaBackend`]: the operations of [`Backend`] as kernels and products in one stream.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use quire_model::{
    Activation, AttentionShape, Backend, BackendError, BufferRole, Dtype, LinearShape, LogitsRow, ModelSpec,
    NormKind, NormSpan, QkNorm, RowResult, Slot, StepInputs, StepLimits, TensorView,
};

use crate::buffer::{CudaBuffer, element_type};
use crate::decode_attention::{DecodeAttention, DecodeKernel};
use crate::driver::{Context, Graph, Stream};
use crate::gemm::{Gemm, GemmShape, Operands};
use crate::kernels::Kernels;
use crate::options::CudaOptions;
use crate::packet::Packet;
use crate::prefill_attention::{AttentionOperands, PrefillAttention, PrefillGrid, PrefillKernel};
use crate::refusal::refusal;
use crate::sampling::Sampler;
use crate::small_kernels::{
    EmbedParams, GatherParams, KvStrides, NormParams, RopeParams, SiluMulParams, SmallKernels,
};
use crate::step::StepBuffers;
use crate::supported;
use crate::weight::{CudaWeight, Loader};

/// Steps that the host may be ahead: the next one is handed over while this one is computed.
const MAX_IN_FLIGHT: usize = 2;
/// Widths of rows are multiples of this, so that every row begins where a vector of elements may.
const WIDTH_MULTIPLE: usize = 8;
/// The rotation takes neighbours of each half of a head two at a time.
const HEAD_DIM_MULTIPLE: usize = 4;

/// An NVIDIA GPU as a device.
#[derive(Debug)]
pub struct CudaBackend {
    options: CudaOptions,
    context: Arc<Context>,
    stream: Stream,
    kernels: Kernels,
    small: SmallKernels,
    loader: Loader,
    /// What [`Backend::prepare`] makes.
    prepared: Option<Prepared>,
}

/// Everything whose size follows from the limits of a step.
#[derive(Debug)]
struct Prepared {
    limits: StepLimits,
    packet: Packet,
    step: StepBuffers,
    decode: DecodeAttention,
    prefill: PrefillAttention,
    gemm: Gemm,
    sampler: Sampler,
    /// Recorded decode steps, by their rows.
    graphs: BTreeMap<usize, Graph>,
    current: CurrentStep,
}

/// What the host knows of the step that operations are enqueued for.
#[derive(Debug, Clone, Copy, Default)]
struct CurrentStep {
    /// Rows, with the padding of a recorded step.
    num_rows: usize,
    /// Tokens, with that padding, and the work of the prefill kernels.
    prefill: PrefillGrid,
    /// Whether there are rows for the decode kernels.
    has_decode: bool,
    /// The recorded step that fits.
    graph: Option<usize>,
    /// Rows of logits sampled so far.
    num_sampled: usize,
}

impl CudaBackend {
    /// Finds the kernels for this GPU and loads them.
    pub fn new(context: &Arc<Context>, options: CudaOptions) -> Result<Self, BackendError> {
        let stream = Stream::new(context)?;
        let kernels = Kernels::open(context, options.cache_dir.as_deref())?;
        Ok(Self {
            small: SmallKernels::new(&kernels, options.dtype)?,
            loader: Loader::new(context, options.dtype)?,
            context: context.clone(),
            stream,
            kernels,
            options,
            prepared: None,
        })
    }

    /// The kernels in use, with where they come from.
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// Where everything is enqueued. For measurements: what is enqueued between [`Stream::begin_capture`] and
    /// [`Stream::end_capture`] is recorded.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Waits, then reads a buffer. For tests and diagnosis, not for steps.
    pub fn read(&self, buffer: &CudaBuffer) -> Result<Vec<f32>, BackendError> {
        let mut bytes = vec![0; buffer.len() * buffer.dtype().bytes()];
        self.stream.read_bytes(buffer.address(), &mut bytes)?;
        let shape = vec![buffer.len()];
        let data = quire_model::TensorData::Stored(bytes.into());
        let view = TensorView { dtype: buffer.dtype(), shape, data };
        let wide = view.bytes_as(Dtype::F32);
        Ok(wide.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// Waits, then writes the beginning of a buffer, rounding to its type. For tests, not for steps.
    pub fn write(&self, buffer: &mut CudaBuffer, values: &[f32]) -> Result<(), BackendError> {
        assert!(values.len() <= buffer.len(), "{} values into {}", values.len(), buffer.len());
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let data = quire_model::TensorData::Stored(bytes.into());
        let view = TensorView { dtype: Dtype::F32, shape: vec![values.len()], data };
        Ok(self.stream.write_bytes(buffer.address(), &view.bytes_as(buffer.dtype()))?)
    }

    fn prepared(&mut self) -> Result<&mut Prepared, BackendError> {
        self.prepared.as_mut().ok_or_else(|| refusal("operations before prepare".into()))
    }
}

/// vLLM's sizes of recorded decode steps: 1, 2, 4, 8 to 248 by 8, 256 to 512 by 16; and the largest step there
/// can be, so that a full batch is recorded whatever its size.
fn capture_sizes(max_rows: usize) -> Vec<usize> {
    const LARGEST: usize = 512;
    let sizes = [1, 2, 4].into_iter().chain((8..256).step_by(8)).chain((256..=LARGEST).step_by(16));
    let mut sizes: Vec<usize> = sizes.filter(|size| *size < max_rows).collect();
    sizes.push(max_rows.min(LARGEST));
    sizes
}

impl Backend for CudaBackend {
    type Buffer = CudaBuffer;
    type Weight = CudaWeight;
    type KvCache = CudaBuffer;

    fn name(&self) -> &'static str {
        "cuda"
    }

    fn max_in_flight(&self) -> usize {
        MAX_IN_FLIGHT
    }

    fn check(&self, spec: &ModelSpec) -> Result<(), BackendError> {
        supported::check(spec)
    }

    fn load(&mut self, parts: &[TensorView<'_>]) -> Result<CudaWeight, BackendError> {
        self.context.bind()?;
        self.loader.load(&self.stream, &self.small, parts)
    }

    fn load_table(&mut self, values: &[f32], columns: usize) -> Result<CudaWeight, BackendError> {
        self.context.bind()?;
        self.loader.load_table(&self.stream, values, columns)
    }

    fn alloc(&mut self, role: BufferRole, len: usize) -> Result<CudaBuffer, BackendError> {
        let dtype = element_type(role, self.options.dtype);
        CudaBuffer::zeroed(&self.context, &self.stream, dtype, len)
    }

    fn alloc_kv_cache(&mut self, vectors: usize, width: usize) -> Result<CudaBuffer, BackendError> {
        self.alloc(BufferRole::Activation, vectors * width)
    }

    fn prepare(&mut self, limits: &StepLimits, linears: &[LinearShape]) -> Result<(), BackendError> {
        if let Some(odd) = linears.iter().find(|linear| linear.k % WIDTH_MULTIPLE != 0) {
            let reason =
                format!("the model has rows of {}; the GPU's are multiples of {WIDTH_MULTIPLE}", odd.k);
            return Err(refusal(reason));
        }
        // What is normalised is what the logits are made from: the residual stream.
        let of_logits = linears.iter().find(|linear| linear.output == BufferRole::Logits);
        self.small.allow_norm_width(of_logits.map_or(0, |linear| linear.k))?;
        let shapes: Vec<GemmShape> = linears.iter().map(|linear| self.gemm_shape(linear)).collect();
        let (gemm, report) = Gemm::new(&self.stream, &shapes, &self.options.gemm())?;
        for warning in &report.warnings {
            (self.options.warn)(warning);
        }
        let num_sms = self.context.attributes().num_sms;
        let (context, kernels, dtype) = (&self.context, &self.kernels, self.options.dtype);
        let packet = Packet::new(context, StepBuffers::max_words(limits) + Sampler::max_words(limits))?;
        let step = StepBuffers::new(context, &self.stream, kernels, limits)?;
        let min_q_len = if self.options.batch_invariant { 1 } else { 2 };
        self.prepared = Some(Prepared {
            limits: *limits,
            decode: DecodeAttention::new(context, &self.stream, kernels, limits, num_sms, dtype)?,
            prefill: PrefillAttention::new(context, kernels, limits, dtype, min_q_len)?,
            sampler: Sampler::new(&self.stream, kernels, limits, step.last_tokens(), &packet)?,
            packet,
            step,
            gemm,
            graphs: BTreeMap::new(),
            current: CurrentStep::default(),
        });
        Ok(())
    }

    fn upload(
        &mut self,
        inputs: &StepInputs,
        rows: &[LogitsRow],
        slots: &[Slot],
    ) -> Result<(), BackendError> {
        self.context.bind()?;
        let batch_invariant = self.options.batch_invariant;
        let Self { stream, prepared, .. } = self;
        let prepared = prepared.as_mut().ok_or_else(|| refusal("a step before prepare".into()))?;
        prepared.current = prepared.step_of(inputs, batch_invariant);
        let packet = &mut prepared.packet;
        prepared.step.send_excess(stream, packet, inputs)?;
        packet.begin()?;
        prepared.sampler.upload(stream, packet, rows, slots)?;
        prepared.step.send(stream, packet, inputs, prepared.current.num_rows)?;
        prepared.plan_attention(stream)
    }

    fn capture_sizes(&self) -> Vec<usize> {
        match (&self.prepared, self.options.graphs) {
            (Some(prepared), true) => capture_sizes(prepared.limits.max_logits_rows),
            _ => Vec::new(),
        }
    }

    fn begin_capture(&mut self, rows: usize) -> Result<(), BackendError> {
        self.context.bind()?;
        let batch_invariant = self.options.batch_invariant;
        let Self { stream, prepared: Some(prepared), .. } = self else { return Err(unprepared()) };
        prepared.current = CurrentStep {
            num_rows: rows,
            prefill: prepared.prefill.grid(&[], rows),
            has_decode: !batch_invariant,
            graph: None,
            num_sampled: 0,
        };
        stream.begin_capture()?;
        prepared.plan_attention(stream)
    }

    fn end_capture(&mut self) -> Result<(), BackendError> {
        let graph = self.stream.end_capture()?;
        let prepared = self.prepared()?;
        prepared.graphs.insert(prepared.current.num_rows, graph);
        Ok(())
    }

    fn replay(&mut self) -> Result<bool, BackendError> {
        let Self { stream, prepared: Some(prepared), .. } = self else { return Ok(false) };
        let Some(graph) = prepared.current.graph.and_then(|rows| prepared.graphs.get(&rows)) else {
            return Ok(false);
        };
        stream.launch_graph(graph)?;
        Ok(true)
    }

    fn embed(&mut self, table: &CudaWeight, out: &mut CudaBuffer) -> Result<(), BackendError> {
        let Self { stream, small, prepared: Some(prepared), .. } = self else { return Err(unprepared()) };
        let params = EmbedParams {
            step: prepared.step.pointers(),
            table: table.address(),
            out: out.address(),
            width: table.columns as i32,
            unused: 0,
        };
        Ok(small.embed(stream, prepared.current.prefill.num_tokens, &params)?)
    }

    fn rms_norm(
        &mut self,
        rows: usize,
        x: &CudaBuffer,
        weight: &CudaWeight,
        eps: f32,
        out: &mut CudaBuffer,
    ) -> Result<(), BackendError> {
        if x.dtype() != Dtype::F32 {
            return Err(refusal("a norm of something other than the residual stream".into()));
        }
        let (x, residual) = (0, x.address());
        self.norm(rows, x, residual, weight, eps, out)
    }

    fn add_rms_norm(
        &mut self,
        rows: usize,
        x: &CudaBuffer,
        residual: &mut CudaBuffer,
        weight: &CudaWeight,
        eps: f32,
        out: &mut CudaBuffer,
    ) -> Result<(), BackendError> {
        self.norm(rows, x.address(), residual.address(), weight, eps, out)
    }

    fn linear(
        &mut self,
        rows: usize,
        x: &CudaBuffer,
        weight: &CudaWeight,
        bias: Option<&CudaWeight>,
        out: &mut CudaBuffer,
    ) -> Result<(), BackendError> {
        let Self { stream, prepared: Some(prepared), .. } = self else { return Err(unprepared()) };
        let shape = GemmShape {
            n: weight.rows as u32,
            k: weight.columns as u32,
            input: x.dtype(),
            output: out.dtype(),
            bias: bias.is_some(),
            rows_max: rows as u32,
        };
        let id = prepared.gemm.find(&shape).ok_or_else(|| refusal(format!("{shape} was not announced")))?;
        let operands = Operands {
            x: x.address(),
            weight: weight.address(),
            bias: bias.map(CudaWeight::address),
            out: out.address(),
        };
        Ok(prepared.gemm.run(stream, id, rows as u32, &operands)?)
    }

    fn rope_and_cache(
        &mut self,
        shape: &AttentionShape,
        qk_norm: Option<QkNorm<'_, CudaWeight>>,
        table: Option<&CudaWeight>,
        qkv: &mut CudaBuffer,
        kv_cache: &mut CudaBuffer,
    ) -> Result<(), BackendError> {
        let Some(table) = table else { return Err(self.not_built("attention without rotation")) };
        if shape.rotary_dim != shape.head_dim {
            return Err(self.not_built("rotation of a part of each head"));
        }
        if qk_norm.as_ref().is_some_and(|norm| (norm.kind, norm.span) != (NormKind::Rms, NormSpan::Head)) {
            return Err(self.not_built("this norm of queries and keys"));
        }
        let Self { stream, small, prepared: Some(prepared), .. } = self else { return Err(unprepared()) };
        if !shape.head_dim.is_multiple_of(HEAD_DIM_MULTIPLE) {
            let reason = format!(
                "head_dim is {}; the GPU's rotation takes multiples of {HEAD_DIM_MULTIPLE}",
                shape.head_dim
            );
            return Err(refusal(reason));
        }
        let block_size = prepared.limits.block_size;
        let params = RopeParams {
            step: prepared.step.pointers(),
            qkv: qkv.address(),
            kv_cache: kv_cache.address(),
            table: table.address(),
            q_weight: qk_norm.as_ref().map_or(0, |norm| norm.q_weight.address()),
            k_weight: qk_norm.as_ref().map_or(0, |norm| norm.k_weight.address()),
            kv: KvStrides::new(shape.num_kv_heads, block_size, shape.head_dim),
            num_heads: shape.num_heads as i32,
            num_kv_heads: shape.num_kv_heads as i32,
            head_dim: shape.head_dim as i32,
            block_size: block_size as i32,
            eps: qk_norm.map_or(0.0, |norm| norm.eps),
            unused: 0,
        };
        Ok(small.rope_and_cache(stream, prepared.current.prefill.num_tokens, &params)?)
    }

    fn paged_attention(
        &mut self,
        shape: &AttentionShape,
        sinks: Option<&CudaWeight>,
        qkv: &CudaBuffer,
        kv_cache: &CudaBuffer,
        out: &mut CudaBuffer,
    ) -> Result<(), BackendError> {
        if sinks.is_some() || shape.alibi {
            return Err(self.not_built("attention with sinks or ALiBi"));
        }
        let Self { stream, prepared: Some(prepared), .. } = self else { return Err(unprepared()) };
        let (qkv, kv_cache, out) = (qkv.address(), kv_cache.address(), out.address());
        prepared.attention(stream, shape, AttentionOperands { qkv, kv_cache, out })
    }

    fn activate(
        &mut self,
        rows: usize,
        width: usize,
        activation: Activation,
        gated: bool,
        x: &CudaBuffer,
        out: &mut CudaBuffer,
    ) -> Result<(), BackendError> {
        if (activation, gated) != (Activation::Silu, true) {
            return Err(self.not_built("an MLP other than SiLU with a gate"));
        }
        let params =
            SiluMulParams { gate_up: x.address(), out: out.address(), width: width as i32, unused: 0 };
        Ok(self.small.silu_mul(&self.stream, rows, &params)?)
    }

    fn gather(
        &mut self,
        range: Range<usize>,
        width: usize,
        x: &CudaBuffer,
        out: &mut CudaBuffer,
    ) -> Result<(), BackendError> {
        let Self { stream, small, prepared: Some(prepared), .. } = self else { return Err(unprepared()) };
        let params = GatherParams {
            step: prepared.step.pointers(),
            x: x.address(),
            out: out.address(),
            first_row: range.start as i32,
            row_bytes: (width * x.dtype().bytes()) as i32,
        };
        Ok(small.gather(stream, range.len(), &params)?)
    }

    fn sample(
        &mut self,
        logits: &mut CudaBuffer,
        rows: &[LogitsRow],
        slots: &[Slot],
    ) -> Result<(), BackendError> {
        let Self { stream, prepared: Some(prepared), .. } = self else { return Err(unprepared()) };
        let (sampler, first, logits) =
            (&mut prepared.sampler, prepared.current.num_sampled, logits.address());
        if first == 0 {
            sampler.send_masks(stream, slots)?;
        }
        prepared.current.num_sampled += rows.len();
        sampler.launch(stream, logits, first, rows.len())?;
        Ok(sampler.read_wide_rows(stream, logits, first, rows.len())?)
    }

    fn end_step(&mut self) -> Result<(), BackendError> {
        let Self { stream, prepared: Some(prepared), .. } = self else { return Err(unprepared()) };
        Ok(prepared.sampler.download(stream)?)
    }

    fn collect(&mut self) -> Result<&[RowResult], BackendError> {
        self.context.bind()?;
        self.prepared()?.sampler.collect()
    }
}

impl CudaBackend {
    fn gemm_shape(&self, linear: &LinearShape) -> GemmShape {
        GemmShape {
            n: linear.n as u32,
            k: linear.k as u32,
            input: self.options.dtype,
            output: element_type(linear.output, self.options.dtype),
            bias: linear.has_bias,
            rows_max: linear.max_rows as u32,
        }
    }

    /// The norm of `residual`, to which `x` is added first if it is not 0.
    fn norm(
        &mut self,
        rows: usize,
        x: u64,
        residual: u64,
        weight: &CudaWeight,
        eps: f32,
        out: &mut CudaBuffer,
    ) -> Result<(), BackendError> {
        let params = NormParams {
            x,
            residual,
            weight: weight.address(),
            bias: 0,
            out: out.address(),
            width: weight.columns as i32,
            eps,
        };
        Ok(self.small.rms_norm(&self.stream, rows, &params)?)
    }
}

impl Prepared {
    /// What is to be computed for a step.
    fn step_of(&self, inputs: &StepInputs, batch_invariant: bool) -> CurrentStep {
        let (num_tokens, num_rows) = (inputs.num_tokens(), inputs.row_slots().len());
        let one_each = num_tokens == num_rows && inputs.logits_tokens().len() == num_rows;
        let graph = match one_each {
            true => self.graphs.range(num_rows..).next().map(|(rows, _)| *rows),
            false => None,
        };
        let num_rows = graph.unwrap_or(num_rows);
        let mut starts = std::iter::once(0).chain(inputs.row_ends().iter().copied());
        let single =
            inputs.row_ends().iter().filter(|end| starts.next().is_some_and(|start| **end == start + 1));
        let num_single = if batch_invariant { 0 } else { single.count() };
        CurrentStep {
            num_rows,
            prefill: self.prefill.grid(inputs.row_ends(), num_rows),
            has_decode: num_single > 0,
            graph,
            num_sampled: 0,
        }
    }

    /// Plans the attention of the step whose arrays have been enqueued.
    fn plan_attention(&mut self, stream: &Stream) -> Result<(), BackendError> {
        self.decode.begin_step();
        if self.current.prefill.num_tiles > 0 {
            self.prefill.plan(stream, self.step.pointers())?;
        }
        Ok(())
    }

    fn attention(
        &mut self,
        stream: &Stream,
        shape: &AttentionShape,
        operands: AttentionOperands,
    ) -> Result<(), BackendError> {
        let (step, CurrentStep { num_rows, prefill, has_decode, .. }) = (self.step.pointers(), self.current);
        if has_decode {
            self.decode.launch(stream, step, num_rows, shape, operands, DecodeKernel::Best)?;
        }
        self.prefill.launch(stream, step, prefill, shape, operands, PrefillKernel::Best)
    }
}

fn unprepared() -> BackendError {
    refusal("an operation before prepare".into())
}
