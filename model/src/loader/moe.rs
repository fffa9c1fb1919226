//! Loading mixtures of experts: an expert is two weights, whatever a family stores its experts in.

use super::{Loader, Part};
use crate::backend::Backend;
use crate::checkpoint::TensorView;
use crate::error::ModelError;
use crate::families::names::ExpertNames;
use crate::moe_spec::MoeSpec;
use crate::quantization::{Quantization, quantize, read_experts};
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
        let full_precision = self.spec.quantization.only_as_stored();
        let router = self.projection_in(&full_precision, &[router], hidden, moe.router_bias)?;
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
            true => Some(self.stacked(&full_precision, &[gate], hidden, false)?.0),
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
            let (weight, bias) = self.stacked(&self.spec.quantization, &gate_up, hidden, moe.bias)?;
            experts.gate_up.push(weight);
            experts.gate_up_bias.extend(bias);
            let (weight, bias) = self.stacked(&self.spec.quantization, &down, inner, moe.bias)?;
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
            experts.gate_up.push(self.expert(&input, gate_up.entry(expert))?);
            experts.down.push(self.expert(&output, down.entry(expert))?);
        }
        [input, output].iter().for_each(|name| self.checkpoint.give_back(name));
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
        let (gate_up, down) = (name("gate_up_proj"), name("down_proj"));
        let order = grouped(2, inner);
        let mut experts = ExpertWeights::new();
        let names = [format!("{gate_up}_bias"), format!("{down}_bias")];
        let gate_up_bias = self.tensor(&names[0], &[count, 2 * inner])?;
        let down_bias = self.tensor(&names[1], &[count, hidden])?;
        for expert in 0..count {
            experts.gate_up_bias.push(self.backend.load(&[gate_up_bias.entry(expert).select_rows(&order)])?);
            experts.down_bias.push(self.backend.load(&[down_bias.entry(expert)])?);
        }
        experts.gate_up = self.expert_matrices(&gate_up, count, (2 * inner, hidden), Some(&order))?;
        experts.down = self.expert_matrices(&down, count, (hidden, inner), None)?;
        Ok(experts)
    }

    /// One matrix of `shape` an expert, its rows in `order`: in four bits, or `[expert][column][row]`.
    fn expert_matrices(
        &mut self,
        name: &str,
        count: usize,
        (rows, columns): (usize, usize),
        order: Option<&[usize]>,
    ) -> Result<Vec<B::Weight>, ModelError> {
        let as_stored: Vec<usize> = (0..rows).collect();
        let order = order.unwrap_or(&as_stored);
        let unused = &mut self.unused;
        let mut used = |name: &str| {
            unused.remove(name);
        };
        let packed = read_experts(self.checkpoint, name, count, (rows, columns), &mut used)?;
        let mut weights = Vec::with_capacity(count);
        if let Some(all) = packed {
            self.loaded_bytes += all.bytes();
            for expert in 0..count {
                let rows: Vec<usize> = order.iter().map(|row| expert * rows + row).collect();
                weights.push(self.backend.load_packed(all.select_rows(&rows))?);
            }
            return Ok(weights);
        }
        let all = self.tensor(name, &[count, columns, rows])?;
        for expert in 0..count {
            weights.push(self.expert(name, all.entry(expert).transposed().select_rows(order))?);
        }
        self.checkpoint.give_back(name);
        Ok(weights)
    }

    /// An expert's matrix, quantised if that is what is done at load.
    fn expert(&mut self, name: &str, matrix: TensorView<'_>) -> Result<B::Weight, ModelError> {
        let Quantization::AtLoad(to) = self.spec.quantization else {
            return Ok(self.backend.load(&[matrix])?);
        };
        let packed = quantize(&matrix, to);
        let packed = packed.map_err(|reason| ModelError::PackedTensor { name: name.into(), reason })?;
        Ok(match packed {
            Some(packed) => self.backend.load_packed(packed)?,
            None => self.backend.load(&[matrix])?,
        })
    }
}
