//! A mixture of experts in the forward pass.

use super::{Pass, Workspace, project};
use crate::backend::{Backend, BackendError, BufferRole};
use crate::moe_spec::{Experts, MoeSpec};
use crate::spec::{ModelSpec, Norms};
use crate::weights::MoeWeights;

/// What mixtures write besides what dense layers do.
pub(super) struct MoeBuffers<B: Backend> {
    /// `[T][num_experts]`.
    logits: B::Buffer,
    /// `[T][hidden]` what the routed experts give.
    routed: B::Buffer,
    /// `[T][1]` how much of the shared expert.
    gate: B::Buffer,
}

impl<B: Backend> MoeBuffers<B> {
    /// Memory for steps of up to `tokens` tokens, the device's own included; `None` if no layer is a mixture.
    pub(super) fn new(
        backend: &mut B,
        spec: &ModelSpec,
        tokens: usize,
    ) -> Result<Option<Self>, BackendError> {
        let mut prepared: Vec<&MoeSpec> = Vec::new();
        for moe in spec.layers.iter().filter_map(|layer| layer.mlp.moe()) {
            if !prepared.contains(&moe) {
                backend.prepare_moe(tokens, spec.hidden_size, moe)?;
                prepared.push(moe);
            }
        }
        let Some(num_experts) = prepared.iter().map(|moe| moe.router.num_experts).max() else {
            return Ok(None);
        };
        Ok(Some(Self {
            logits: backend.alloc(BufferRole::Activation, tokens * num_experts)?,
            routed: backend.alloc(BufferRole::Activation, tokens * spec.hidden_size)?,
            gate: backend.alloc(BufferRole::Activation, tokens)?,
        }))
    }
}

impl<B: Backend> Pass<'_, B> {
    /// The routed experts and the shared one, added up in `projected`.
    pub(super) fn moe(&mut self, moe: &MoeSpec, weights: &MoeWeights<B>) -> Result<(), BackendError> {
        let shared = moe.shared.as_ref().zip(weights.shared.as_ref());
        if let Some((spec, weights)) = shared {
            self.dense(&spec.mlp, weights)?;
        }
        let Self { backend, model, rows, adapted, workspace } = self;
        let Workspace { residual, normed, projected, moe: Some(buffers), .. } = &mut **workspace else {
            unreachable!("a mixture has its buffers")
        };
        let (rows, hidden) = (*rows, model.spec.hidden_size);
        let x = if model.spec.norms == Norms::After { residual } else { normed };
        project(*backend, rows, *adapted, &weights.router, x, &mut buffers.logits)?;
        let experts = Experts {
            spec: moe,
            correction_bias: weights.correction_bias.as_ref(),
            gate_up: &weights.gate_up,
            gate_up_bias: &weights.gate_up_bias,
            down: &weights.down,
            down_bias: &weights.down_bias,
        };
        if shared.is_none() {
            return backend.moe(rows, &experts, x, &buffers.logits, projected);
        }
        backend.moe(rows, &experts, x, &buffers.logits, &mut buffers.routed)?;
        if let Some(gate) = &weights.shared_gate {
            backend.linear(rows, x, gate, None, &mut buffers.gate)?;
            backend.gate_rows(rows, hidden, &buffers.gate, projected)?;
        }
        backend.add(rows * hidden, &buffers.routed, projected)
    }
}
