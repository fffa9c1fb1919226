//! [`LoraTargets`]: the linear layers of a model that adapters may name.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// One linear layer, as a part of one of the model's products.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraTarget {
    /// Number of the product: what [`crate::Backend::add_lora`] is told.
    pub projection: usize,
    /// The layer's columns of the product.
    pub columns: Range<usize>,
    /// Width of what goes in.
    pub inputs: usize,
    /// Width of what comes out in the checkpoint.
    pub outputs: usize,
    /// Where the layer's rows were put when it was loaded, if not in their own order: column `i` of the layer's is row
    /// `order[i]` of the checkpoint.
    pub order: Option<Vec<usize>>,
}

/// All of them, by the names that the checkpoint gives them (`model.layers.0.self_attn.q_proj`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoraTargets {
    by_name: BTreeMap<String, LoraTarget>,
    num_projections: usize,
}

impl LoraTargets {
    /// Adds the layers that one product of inputs of that width computes, each with its name, its rows and their order.
    /// Gives the product's number and width.
    pub(crate) fn add_projection<'a>(
        &mut self,
        inputs: usize,
        layers: impl Iterator<Item = (&'a str, usize, Option<Vec<usize>>)>,
    ) -> (usize, usize) {
        let (projection, mut width) = (self.num_projections, 0);
        self.num_projections += 1;
        for (module, outputs, order) in layers {
            let columns = width..width + order.as_ref().map_or(outputs, Vec::len);
            width = columns.end;
            self.by_name
                .insert(module.to_owned(), LoraTarget { projection, columns, inputs, outputs, order });
        }
        (projection, width)
    }

    /// The layer of that name. What is in front of all names may be there or not, as it is in checkpoints of models with
    /// and without a head.
    pub fn get(&self, module: &str) -> Option<&LoraTarget> {
        let bare = |name: &str| name.split_once('.').map(|(_, rest)| rest.to_owned());
        let without = || self.by_name.get(&bare(module)?);
        let with = || self.by_name.iter().find(|(name, _)| bare(name).as_deref() == Some(module));
        self.by_name.get(module).or_else(without).or_else(|| with().map(|(_, target)| target))
    }

    /// Keeps the layers of these names alone, each the last part of some; the error is one that is no layer's.
    pub fn restrict_to(&mut self, kinds: &[String]) -> Result<(), String> {
        let kind_of = |module: &str| module.rsplit('.').next().unwrap_or(module).to_owned();
        if let Some(unknown) =
            kinds.iter().find(|kind| self.by_name.keys().all(|module| kind_of(module) != **kind))
        {
            return Err(unknown.clone());
        }
        self.by_name.retain(|module, _| kinds.contains(&kind_of(module)));
        Ok(())
    }

    /// All layers, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &LoraTarget)> {
        self.by_name.iter().map(|(name, target)| (name.as_str(), target))
    }

    /// How the layers are called, without what tells them apart: `down_proj, gate_proj, ..`.
    pub fn kinds(&self) -> String {
        let kinds: BTreeSet<&str> = self.by_name.keys().filter_map(|name| name.rsplit('.').next()).collect();
        kinds.into_iter().collect::<Vec<_>>().join(", ")
    }

    /// The widest input, and the widest layer.
    pub fn widest(&self) -> (usize, usize) {
        let inputs = self.by_name.values().map(|target| target.inputs).max();
        let outputs = self.by_name.values().map(|target| target.columns.len()).max();
        (inputs.unwrap_or(0), outputs.unwrap_or(0))
    }

    /// Whether adapters can change nothing at all.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }
}
