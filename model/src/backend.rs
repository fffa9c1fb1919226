//! [`Backend`]: a device, as about twenty operations on buffers that exist from the start.
//!
//! Every operation works on all tokens of the step at once, enqueues its work and returns: nothing between
//! [`Backend::upload`] and [`Backend::collect`] needs the host to know a result. Operations take effect in
//! the order of the calls. Sizes are the caller's business: buffers are flat, and a shape in a comment such
//! as `[rows][width]` says how their first elements are used.
//!
//! An element of a result must be computed in an order that depends on nothing but that element's own
//! request (invariant 8: not on the number of rows, nor on a row's place among them).

use std::ops::Range;

use crate::checkpoint::TensorView;
use crate::kv_dtype::KvScales;
use crate::latent_spec::LatentShape;
use crate::lora::LoraTargets;
use crate::moe_spec::{Experts, MoeSpec};
use crate::quantization::PackedMatrix;
use crate::slot::Slot;
use crate::spec::{Activation, AttentionSpec, ModelSpec, NormKind, NormSpan, Positions};
use crate::step_inputs::{LogitsRow, PoolRow, RowResult, StepInputs};

/// The device cannot do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{device}: {reason}")]
pub struct BackendError {
    /// [`Backend::name`].
    pub device: &'static str,
    /// In words.
    pub reason: String,
    /// The device is lost: nothing will work any more.
    pub fatal: bool,
}

/// What a buffer is for; the backend chooses the element type by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BufferRole {
    /// What lies between two operations.
    Activation,
    /// The sum of all layers so far: what many small numbers are added to.
    Residual,
    /// Logits, always `f32`.
    Logits,
}

/// The largest step there will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits {
    /// Rows, and slots.
    pub max_num_seqs: usize,
    /// Tokens over all rows.
    pub max_num_batched_tokens: usize,
    /// Entries of a slot's block table.
    pub max_blocks_per_seq: usize,
    /// Tokens in a block.
    pub block_size: usize,
    /// Rows of one [`Backend::sample`].
    pub max_logits_rows: usize,
    /// Logits in a row.
    pub vocab_size: usize,
    /// Query heads that share a key-value head, in the layer where these are the most.
    pub heads_per_group: usize,
    /// Groups of layers with block tables of their own; see [`crate::KvGroups`].
    pub num_kv_groups: usize,
}

/// A product that every step will ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearShape {
    /// Rows of the weight.
    pub n: usize,
    /// Columns of the weight.
    pub k: usize,
    /// Whether a bias is added.
    pub has_bias: bool,
    /// What the result is.
    pub output: BufferRole,
    /// Rows of the input at most.
    pub max_rows: usize,
}

/// What the attention operations need to know of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Numbers of a head that are rotated, from its first on.
    pub rotary_dim: usize,
    /// Factor on q·k.
    pub scale: f32,
    /// `Some(c)`: scores become `c * tanh(score / c)`.
    pub softcap: Option<f32>,
    /// `Some(w)`: a token sees itself and the `w - 1` before it.
    pub sliding_window: Option<u32>,
    /// Whether scores fall with distance: see [`crate::alibi_slope`].
    pub alibi: bool,
    /// Whose block tables say where keys and values are.
    pub kv_group: usize,
    /// What the cache's elements are times, if they are FP8 and have no scales of their own.
    pub kv_scales: KvScales,
}

impl AttentionShape {
    /// That of a layer where there is one group of them.
    pub fn of(spec: &ModelSpec, attention: &AttentionSpec) -> Self {
        Self {
            num_heads: attention.num_heads,
            num_kv_heads: attention.num_kv_heads,
            head_dim: attention.head_dim,
            rotary_dim: attention.rope.and_then(|rope| spec.ropes().get(rope)).map_or(0, |rope| rope.dim),
            scale: attention.scale,
            softcap: attention.softcap,
            sliding_window: attention.sliding_window,
            alibi: spec.positions == Positions::Alibi,
            kv_group: 0,
            kv_scales: KvScales::default(),
        }
    }
}

/// Norm of queries and keys, before the rotation.
pub struct QkNorm<'a, W> {
    /// Without anything added at the end.
    pub kind: NormKind,
    /// What is normalised together, and what the weights' shapes are.
    pub span: NormSpan,
    /// For queries.
    pub q_weight: &'a W,
    /// For keys.
    pub k_weight: &'a W,
    /// Added to the mean square, or to the variance.
    pub eps: f32,
}

/// LayerNorm's parameters.
pub struct LayerNorm<'a, W> {
    /// `[width]`, factors.
    pub weight: &'a W,
    /// `[width]`, added at the end.
    pub bias: &'a W,
    /// Added to the variance.
    pub eps: f32,
}

/// Rows of heads, of which an operation reads some numbers and writes others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// How many.
    pub num_heads: usize,
    /// From one head of the input to the next.
    pub x_width: usize,
    /// From one head of the result to the next.
    pub out_width: usize,
}

/// RMSNorm of latents.
pub struct LatentNorm<'a, W> {
    /// `[latent]`.
    pub weight: &'a W,
    /// Added to the mean square.
    pub eps: f32,
}

/// What latent attention is made of, token after token.
pub struct LatentInput<'a, B> {
    /// `[T][heads][not rotated | rotated]`.
    pub q: &'a B,
    /// `[T][latent | shared key]`.
    pub kv: &'a B,
}

/// A device. Implementations own their stream, scratch memory and the step's metadata.
pub trait Backend: Send {
    /// A flat array on the device.
    type Buffer: Send;
    /// A tensor of the model on the device, in the format it is computed with.
    type Weight: Send;
    /// One layer's keys and values, in the format that the device was told to keep them in.
    type KvCache: Send;

    /// For messages.
    fn name(&self) -> &'static str;

    /// Steps that may be uploaded and not yet collected; at least 1.
    fn max_in_flight(&self) -> usize;

    /// Most groups of layers with block tables of their own, at least 1. In more than one, and in one with a window,
    /// blocks that no token sees any more belong to others, so attention must not read them.
    fn max_kv_groups(&self) -> usize {
        1
    }

    /// Refuses a model that this device cannot compute, by what it lacks, before anything of it is loaded.
    fn check(&self, spec: &ModelSpec) -> Result<(), BackendError> {
        let _ = spec;
        Ok(())
    }

    /// Brings a tensor to the device. Several parts are stacked along their first dimension; they have one
    /// type and agree in the other dimension. One or two dimensions.
    fn load(&mut self, parts: &[TensorView<'_>]) -> Result<Self::Weight, BackendError>;

    /// Brings a matrix to the device that stays packed there: products by it are those by what
    /// [`PackedMatrix::decode_row`] gives.
    fn load_packed(&mut self, matrix: PackedMatrix) -> Result<Self::Weight, BackendError> {
        Err(self.not_built(&format!("multiplying by quantised weights ({})", matrix.format())))
    }

    /// Brings a table of `[rows][columns]` numbers to the device that must stay `f32`.
    fn load_table(&mut self, values: &[f32], columns: usize) -> Result<Self::Weight, BackendError>;

    /// A buffer of `len` zeros.
    fn alloc(&mut self, role: BufferRole, len: usize) -> Result<Self::Buffer, BackendError>;

    /// The cache of a layer: `vectors` of `width` zeros, each a key or a value of one token and head, in the order of
    /// [`crate::KvLayout`].
    fn alloc_kv_cache(&mut self, vectors: usize, width: usize) -> Result<Self::KvCache, BackendError>;

    /// Allocates what the operations themselves need. Called once, before the first step; `linears` are the
    /// products there will be.
    fn prepare(&mut self, limits: &StepLimits, linears: &[LinearShape]) -> Result<(), BackendError>;

    /// Starts a step: applies the block table writes and keeps the metadata that later operations refer to
    /// (`T` tokens, `R` rows, `L` rows of logits). `rows` are what the logits are for, `slots` whose they are,
    /// by [`LogitsRow::slot`].
    fn upload(&mut self, inputs: &StepInputs, rows: &[LogitsRow], slots: &[Slot])
    -> Result<(), BackendError>;

    /// Numbers of rows, ascending, for which the runner shall record a decode step when it starts: one token
    /// and one row of logits each. None if this device gains nothing by it.
    fn capture_sizes(&self) -> Vec<usize> {
        Vec::new()
    }

    /// The operations from here to [`Self::end_capture`] are recorded instead of done, as those of a decode
    /// step of `rows` rows.
    fn begin_capture(&mut self, rows: usize) -> Result<(), BackendError> {
        let reason = format!("cannot record a step of {rows} rows: this device names no capture sizes");
        Err(BackendError { device: self.name(), reason, fatal: false })
    }

    /// Keeps what was recorded.
    fn end_capture(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    /// Does all operations of the uploaded step but sampling, if a recording fits it. If not, says so, and they
    /// must be called.
    fn replay(&mut self) -> Result<bool, BackendError> {
        Ok(false)
    }

    /// `out[T][hidden] = table[token_ids[T]]`, with placeholders resolved from the slots' last samples.
    fn embed(&mut self, table: &Self::Weight, out: &mut Self::Buffer) -> Result<(), BackendError>;

    /// `out[rows][width] = x / sqrt(mean(x²) + eps) * weight`; `weight` is `[width]`.
    fn rms_norm(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        weight: &Self::Weight,
        eps: f32,
        out: &mut Self::Buffer,
    ) -> Result<(), BackendError>;

    /// `residual += x`, then `out = rms_norm(residual)`.
    fn add_rms_norm(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        residual: &mut Self::Buffer,
        weight: &Self::Weight,
        eps: f32,
        out: &mut Self::Buffer,
    ) -> Result<(), BackendError>;

    /// Allocates what [`Self::add_lora`] needs for adapters of up to `max_rank` on these layers. Called once, before the
    /// first step, if requests may have adapters.
    fn prepare_adapters(&mut self, max_rank: usize, targets: &LoraTargets) -> Result<(), BackendError> {
        let _ = (max_rank, targets);
        Err(self.not_built("LoRA"))
    }

    /// Adds to `out[T][width]`, which is product number `projection` of `x[T][k]`, what the adapters of the step's rows
    /// add: for each of their [`LoraPart`](crate::LoraPart)s `out[token][columns] += scaling * (x[token]·aᵀ)·bᵀ`. A row's
    /// adapter is that of its slot ([`Slot::adapter`]) as [`Self::upload`] was given it. Called only for steps that have
    /// such rows.
    fn add_lora(
        &mut self,
        projection: usize,
        width: usize,
        x: &Self::Buffer,
        out: &mut Self::Buffer,
    ) -> Result<(), BackendError> {
        let _ = (projection, width, x, out);
        Err(self.not_built("LoRA"))
    }

    /// `out[rows][n] = x[rows][k] · weight[n][k]ᵀ + bias[n]`.
    fn linear(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        weight: &Self::Weight,
        bias: Option<&Self::Weight>,
        out: &mut Self::Buffer,
    ) -> Result<(), BackendError>;

    /// Normalises queries and keys of `qkv[T]` in place if the model does so, rotates them by their positions if there
    /// is a `table`, and writes keys and values into the layer's cache. `qkv` is
    /// `[T][q heads | k heads | v heads][head_dim]`; `table` is what [`crate::rope_table`] gives, as
    /// `[positions][rotary_dim]`.
    fn rope_and_cache(
        &mut self,
        shape: &AttentionShape,
        qk_norm: Option<QkNorm<'_, Self::Weight>>,
        table: Option<&Self::Weight>,
        qkv: &mut Self::Buffer,
        kv_cache: &mut Self::KvCache,
    ) -> Result<(), BackendError>;

    /// Causal attention of each of the `T` tokens over its sequence's cached keys and values up to its own
    /// position. `out` is `[T][heads][head_dim]`; `kv_cache` is laid out as in [`crate::KvLayout`]. `sinks` are
    /// `[heads]` scores that are there beside those of the tokens, unscaled, for nothing to be seen.
    fn paged_attention(
        &mut self,
        shape: &AttentionShape,
        sinks: Option<&Self::Weight>,
        qkv: &Self::Buffer,
        kv_cache: &Self::KvCache,
        out: &mut Self::Buffer,
    ) -> Result<(), BackendError>;

    /// `x[T][width] += table[positions[T]]`; `table` is what [`Self::load_table`] gave.
    fn add_positions(&mut self, table: &Self::Weight, x: &mut Self::Buffer) -> Result<(), BackendError> {
        let _ = (table, x);
        Err(self.not_built("learned positions"))
    }

    /// `out[rows][width] = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias`; `weight` and `bias` are
    /// `[width]`.
    fn layer_norm(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        norm: LayerNorm<'_, Self::Weight>,
        out: &mut Self::Buffer,
    ) -> Result<(), BackendError> {
        let _ = (rows, x, norm, out);
        Err(self.not_built("LayerNorm"))
    }

    /// `sum = layer_norm(sum + x)`.
    fn add_layer_norm(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        norm: LayerNorm<'_, Self::Weight>,
        sum: &mut Self::Buffer,
    ) -> Result<(), BackendError> {
        let _ = (rows, x, norm, sum);
        Err(self.not_built("LayerNorm"))
    }

    /// Attention of each of the `T` tokens over all tokens of its row, those behind it as well: rows are whole
    /// sequences. `qkv` is as in [`Self::rope_and_cache`], `out` as in [`Self::paged_attention`].
    fn full_attention(
        &mut self,
        shape: &AttentionShape,
        qkv: &Self::Buffer,
        out: &mut Self::Buffer,
    ) -> Result<(), BackendError> {
        let _ = (shape, qkv, out);
        Err(self.not_built("attention that looks ahead"))
    }

    /// `out[rows][width] = activation(x)`; if `gated`, `activation(gate) * up`, where `x` is
    /// `[rows][gate: width | up: width]`.
    fn activate(
        &mut self,
        rows: usize,
        width: usize,
        activation: Activation,
        gated: bool,
        x: &Self::Buffer,
        out: &mut Self::Buffer,
    ) -> Result<(), BackendError>;

    /// `sum[..len] += x[..len]`.
    fn add(&mut self, len: usize, x: &Self::Buffer, sum: &mut Self::Buffer) -> Result<(), BackendError> {
        let _ = (len, x, sum);
        Err(self.not_built("a sum without a norm"))
    }

    /// `x[..len] = cap(factor * x[..len])`, where `cap(x)` is `c * tanh(x / c)` if there is a `c`.
    fn scale(
        &mut self,
        len: usize,
        factor: f32,
        softcap: Option<f32>,
        x: &mut Self::Buffer,
    ) -> Result<(), BackendError> {
        let _ = (len, factor, softcap, x);
        Err(self.not_built("scaling"))
    }

    /// `x[rows][width] *= sigmoid(gate[row])`.
    fn gate_rows(
        &mut self,
        rows: usize,
        width: usize,
        gate: &Self::Buffer,
        x: &mut Self::Buffer,
    ) -> Result<(), BackendError> {
        let _ = (rows, width, gate, x);
        Err(self.not_built("a gated expert"))
    }

    /// Allocates what [`Self::moe`] needs for steps of up to `max_rows` tokens. Called after [`Self::prepare`], for
    /// each mixture of the model.
    fn prepare_moe(&mut self, max_rows: usize, hidden: usize, spec: &MoeSpec) -> Result<(), BackendError> {
        let _ = (max_rows, hidden, spec);
        Err(self.not_built("a mixture of experts"))
    }

    /// `out[rows][hidden]`: what the experts that `logits[rows][num_experts]` choose make of `x[rows][hidden]`, by
    /// their weights. The shared expert is not among them.
    fn moe(
        &mut self,
        rows: usize,
        experts: &Experts<'_, Self::Weight>,
        x: &Self::Buffer,
        logits: &Self::Buffer,
        out: &mut Self::Buffer,
    ) -> Result<(), BackendError> {
        let _ = (rows, experts, x, logits, out);
        Err(self.not_built("a mixture of experts"))
    }

    /// `out[rows][head][..n] = x[rows][head][..k] · weight[head * n..][k]ᵀ`, where heads of `x` and `out` are as far
    /// apart as `heads` says: other numbers may follow those `k` and `n`.
    fn head_linear(
        &mut self,
        rows: usize,
        heads: Heads,
        x: &Self::Buffer,
        weight: &Self::Weight,
        out: &mut Self::Buffer,
    ) -> Result<(), BackendError> {
        let _ = (rows, heads, x, weight, out);
        Err(self.not_built("latent attention"))
    }

    /// Of each of the `T` tokens: normalises its latent, rotates its key part, writes both into the layer's cache, and
    /// puts the rotated parts of its queries behind the others in `queries`, which is
    /// `[T][heads][in the latent's space | rotated]`; `table` is as in [`Self::rope_and_cache`].
    fn latent_and_cache(
        &mut self,
        shape: &LatentShape,
        norm: LatentNorm<'_, Self::Weight>,
        table: &Self::Weight,
        input: LatentInput<'_, Self::Buffer>,
        queries: &mut Self::Buffer,
        kv_cache: &mut Self::KvCache,
    ) -> Result<(), BackendError> {
        let _ = (shape, norm, table, input, queries, kv_cache);
        Err(self.not_built("latent attention"))
    }

    /// Causal attention over the cached latents, which are keys and values of all heads. `queries` is as in
    /// [`Self::latent_and_cache`], `out` `[T][heads][latent]`.
    fn latent_attention(
        &mut self,
        shape: &LatentShape,
        queries: &Self::Buffer,
        kv_cache: &Self::KvCache,
        out: &mut Self::Buffer,
    ) -> Result<(), BackendError> {
        let _ = (shape, queries, kv_cache, out);
        Err(self.not_built("latent attention"))
    }

    /// `out[i][width] = x[logits_tokens[first + i]]` for `i` below `range.len()`, `first = range.start`:
    /// a range of the step's `L` rows of logits.
    fn gather(
        &mut self,
        range: Range<usize>,
        width: usize,
        x: &Self::Buffer,
        out: &mut Self::Buffer,
    ) -> Result<(), BackendError>;

    /// Does what `rows` ask for with `logits[rows.len()][vocab]` (which it may overwrite), by the rules of
    /// [`crate::sample_row`], and remembers the sampled tokens as the slots' last. `rows` are the next of those
    /// given to [`Self::upload`]; results add up until [`Self::collect`]. By the first call for a step all its
    /// slots have their masks ([`Slot::mask`]), which [`Self::upload`] did not see.
    fn sample(
        &mut self,
        logits: &mut Self::Buffer,
        rows: &[LogitsRow],
        slots: &[Slot],
    ) -> Result<(), BackendError>;

    /// Takes the hidden states `x[T][width]` of `rows` into `state[slot][width]`, in order of position, and makes
    /// the vectors of rows that end their prompt.
    fn pool(
        &mut self,
        rows: &[PoolRow],
        width: usize,
        x: &Self::Buffer,
        state: &mut Self::Buffer,
    ) -> Result<(), BackendError> {
        let _ = (rows, width, x, state);
        Err(self.not_built("pooling"))
    }

    /// The vectors of the step collected last, in the order of the rows that ended their prompts.
    fn pooled(&self) -> &[f32] {
        &[]
    }

    /// The refusal of an operation that this device lacks.
    fn not_built(&self, what: &str) -> BackendError {
        let reason = format!("{what} is not built for this device yet; use --device cpu");
        BackendError { device: self.name(), reason, fatal: false }
    }

    /// All operations of the uploaded step have been called: its results may come back.
    fn end_step(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    /// Waits for the oldest step not yet collected; one result for each row given to [`Self::sample`].
    fn collect(&mut self) -> Result<&[RowResult], BackendError>;
}
