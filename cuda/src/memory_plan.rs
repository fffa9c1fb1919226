//! [`MemoryPlan`]: what the device's memory will be used for, worked out before anything is allocated.

use std::fmt;

use quire_model::{BufferRole, Dtype, ModelSpec, StepLimits};

use crate::buffer::element_type;
use crate::decode_attention::DecodeAttention;
use crate::driver::{Context, CudaError};
use crate::gemm::WORKSPACE_BYTES;
use crate::prefill_attention::PrefillAttention;
use crate::sampling::Sampler;
use crate::step::StepBuffers;

/// Bytes, by what they are for. The KV cache gets what is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The device's memory.
    pub total_bytes: u64,
    /// Of it, what other programs and this one's context leave.
    pub free_bytes: u64,
    /// What may be used in all: the share that the operator allows.
    pub usable_bytes: u64,
    /// Weights, the table of rotations with them.
    pub weight_bytes: u64,
    /// What lies between two operations, for the largest step.
    pub activation_bytes: u64,
    /// Metadata of steps, scratch of attention and products, state and results of sampling.
    pub scratch_bytes: u64,
    /// What the driver takes for kernels and recorded steps, as an allowance.
    pub driver_bytes: u64,
}

/// For code, the driver's own scratch and recorded steps of some 300 kernels each. An estimate on the safe side.
const DRIVER_BYTES: u64 = 512 << 20;

impl MemoryPlan {
    /// For a model of elements of `dtype` on this device, using at most `share` of its memory.
    pub fn new(
        context: &Context,
        spec: &ModelSpec,
        limits: &StepLimits,
        dtype: Dtype,
        share: f64,
    ) -> Result<Self, CudaError> {
        let (free_bytes, total_bytes) = context.memory()?;
        let of = |role, len: usize| len * element_type(role, dtype).bytes();
        let (tokens, hidden) = (limits.max_num_batched_tokens, spec.hidden_size);
        let per_token = 2 * hidden
            + spec.max_of_layers(|layer| layer.attention.qkv_size() + layer.attention.output_size())
            + spec.max_of_layers(|layer| {
                layer.mlp.dense().map_or(0, |mlp| mlp.input_size() + mlp.intermediate_size)
            });
        let activations = of(BufferRole::Activation, tokens * per_token + limits.max_logits_rows * hidden)
            + of(BufferRole::Residual, tokens * hidden)
            + of(BufferRole::Logits, limits.max_logits_rows * spec.vocab_size);
        let positions = limits.max_blocks_per_seq * limits.block_size;
        let num_sms = context.attributes().num_sms;
        let scratch = StepBuffers::device_bytes(limits)
            + 4 * (StepBuffers::max_words(limits) + Sampler::max_words(limits))
            + DecodeAttention::scratch_bytes(limits, num_sms, dtype)
            + PrefillAttention::scratch_bytes(limits)
            + Sampler::scratch_bytes(limits)
            + WORKSPACE_BYTES;
        Ok(Self {
            total_bytes,
            free_bytes,
            usable_bytes: free_bytes.min((total_bytes as f64 * share) as u64),
            weight_bytes: (spec.num_parameters() * dtype.bytes()
                + positions * spec.ropes().iter().map(|rope| rope.dim).sum::<usize>() * size_of::<f32>())
                as u64,
            activation_bytes: activations as u64,
            scratch_bytes: scratch as u64,
            driver_bytes: DRIVER_BYTES,
        })
    }

    /// What is left for the KV cache; 0 if nothing is.
    pub fn kv_bytes(&self) -> u64 {
        let others = self.weight_bytes + self.activation_bytes + self.scratch_bytes + self.driver_bytes;
        self.usable_bytes.saturating_sub(others)
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: u64| bytes as f64 / f64::from(1u32 << 30);
        write!(
            f,
            "{:.2} GiB of {:.2} GiB usable ({:.2} GiB free): weights {:.2}, activations {:.2}, scratch {:.2}, \
             driver {:.2}, left for the KV cache {:.2}",
            gib(self.usable_bytes),
            gib(self.total_bytes),
            gib(self.free_bytes),
            gib(self.weight_bytes),
            gib(self.activation_bytes),
            gib(self.scratch_bytes),
            gib(self.driver_bytes),
            gib(self.kv_bytes()),
        )
    }
}
