//! Loading mixtures of experts: an expert is two weights, whatever a family stores its experts in.

use super::{Loader, Part};
use crate::backend::Backend;
use crate::checkpoint::TensorView;
use crate::error::ModelError;
use crate::families::names::ExpertNames;
use crate::moe_spec::MoeSpec;
use crate::row_order::grouped;
use crate::weights::MoeWeights;

/// The two projections of every expert.
struct ExpertWeights<W> {
    gate_up: Vec<W>,
    gate_up_bias: Vec<W>,
    down: Vec<W>,
    down_bias: Vec<W>,
}

impl<W> ExpertWeights<W> {
    fn new() -> Self {
        Self { gate_up: Vec::new(), gate_up_bias: Vec::new(), down: Vec::new(), down_bias: Vec::new() }
    }
}

impl<B: Backend> Loader<'_, B> {
    /// The mixture of a layer.
    pub(super) fn moe(&mut self, index: usize, moe: &MoeSpec) -> Result<MoeWeights<B>, ModelError> {
        let (names, hidden) = (self.names.of.moe, self.spec.hidden_size);
        let router = Part::whole(self.names.layer(index, names.router), moe.router.num_experts);
        let router = self.projection(&[router], hidden, moe.router_bias)?;
        let correction = self.names.layer(index, names.correction_bias);
        let correction_bias = match moe.router.correction_bias {
            true => Some(self.vector(&correction, moe.router.num_experts, None, 0.0)?),
            false => None,
        };
        let experts = match names.experts {
            ExpertNames::Each(prefix, modules) => self.experts_apart(index, moe, prefix, modules)?,
            ExpertNames::Together(modules) => self.experts_together(index, moe, modules)?,
            ExpertNames::OnTheirSides(prefix) => self.experts_on_their_sides(index, moe, prefix)?,
        };
        let shared = match &moe.shared {
            None => None,
            Some(shared) => Some(self.dense(index, &shared.mlp, names.shared_input, names.shared_output)?),
        };
        let gate = Part::whole(self.names.layer(index, names.shared_gate), 1);
        let shared_gate = match moe.shared.is_some_and(|shared| shared.gated) {
            true => Some(self.stacked(&[gate], hidden, false)?.0),
            false => None,
        };
        let ExpertWeights { gate_up, gate_up_bias, down, down_bias } = experts;
        Ok(MoeWeights {
            router,
            correction_bias,
            gate_up,
            gate_up_bias,
            down,
            down_bias,
            shared,
            shared_gate,
        })
    }

    fn experts_apart(
        &mut self,
        index: usize,
        moe: &MoeSpec,
        prefix: &str,
        modules: [&str; 3],
    ) -> Result<ExpertWeights<B::Weight>, ModelError> {
        let (hidden, inner) = (self.spec.hidden_size, moe.intermediate_size);
        let mut experts = ExpertWeights::new();
        for expert in 0..moe.router.num_experts {
            let part = |module: &str, rows| {
                Part::whole(self.names.layer(index, &format!("{prefix}.{expert}.{module}")), rows)
            };
            let [gate, up, down] = modules;
            let (gate_up, down) = ([part(gate, inner), part(up, inner)], [part(down, hidden)]);
            let (weight, bias) = self.stacked(&gate_up, hidden, moe.bias)?;
            experts.gate_up.push(weight);
            experts.gate_up_bias.extend(bias);
            let (weight, bias) = self.stacked(&down, inner, moe.bias)?;
            experts.down.push(weight);
            experts.down_bias.extend(bias);
        }
        Ok(experts)
    }

    fn experts_together(
        &mut self,
        index: usize,
        moe: &MoeSpec,
        modules: [&str; 2],
    ) -> Result<ExpertWeights<B::Weight>, ModelError> {
        let (count, hidden, inner) = (moe.router.num_experts, self.spec.hidden_size, moe.intermediate_size);
        let [input, output] = modules.map(|module| format!("{}.weight", self.names.layer(index, module)));
        let gate_up = self.tensor(&input, &[count, 2 * inner, hidden])?;
        let down = self.tensor(&output, &[count, hidden, inner])?;
        let mut experts = ExpertWeights::new();
        for expert in 0..count {
            experts.gate_up.push(self.backend.load(&[gate_up.entry(expert)])?);
            experts.down.push(self.backend.load(&[down.entry(expert)])?);
        }
        Ok(experts)
    }

    fn experts_on_their_sides(
        &mut self,
        index: usize,
        moe: &MoeSpec,
        prefix: &str,
    ) -> Result<ExpertWeights<B::Weight>, ModelError> {
        let (count, hidden, inner) = (moe.router.num_experts, self.spec.hidden_size, moe.intermediate_size);
        let name = |what: &str| self.names.layer(index, &format!("{prefix}.{what}"));
        let names = ["gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"].map(name);
        let gate_up = self.tensor(&names[0], &[count, hidden, 2 * inner])?;
        let gate_up_bias = self.tensor(&names[1], &[count, 2 * inner])?;
        let down = self.tensor(&names[2], &[count, inner, hidden])?;
        let down_bias = self.tensor(&names[3], &[count, hidden])?;
        let order = grouped(2, inner);
        let mut experts = ExpertWeights::new();
        for expert in 0..count {
            experts.gate_up.push(self.backend.load(&[upright(&gate_up, expert).select_rows(&order)])?);
            experts.gate_up_bias.push(self.backend.load(&[gate_up_bias.entry(expert).select_rows(&order)])?);
            experts.down.push(self.backend.load(&[upright(&down, expert)])?);
            experts.down_bias.push(self.backend.load(&[down_bias.entry(expert)])?);
        }
        Ok(experts)
    }
}

fn upright<'v>(view: &'v TensorView<'_>, expert: usize) -> TensorView<'v> {
    view.entry(expert).transposed()
}
