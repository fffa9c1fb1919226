//! [`Model`]: a [`ModelSpec`] with its weights on a device, loaded by Hugging Face's names.

use std::collections::BTreeSet;

use crate::backend::Backend;
use crate::checkpoint::{Checkpoint, TensorView};
use crate::classifier::{Classifier, Dense};
use crate::error::ModelError;
use crate::lora::{LoraTarget, LoraTargets};
use crate::spec::{ClassifierForm, ClassifierSpec, Dtype, LmHead, ModelSpec, Norms, Positions};
use crate::weight_names::Names;

/// A model on a device.
pub struct Model<B: Backend> {
    /// What it is.
    pub spec: ModelSpec,
    pub(crate) embedding: B::Weight,
    /// `[positions][hidden]` added to the embedding, if positions are learned.
    pub(crate) positions: Option<B::Weight>,
    /// Of the embedding.
    pub(crate) first_norm: Norm<B>,
    pub(crate) layers: Vec<LayerWeights<B>>,
    /// `None` if tied to the embedding, or if there is none.
    pub(crate) lm_head: Option<B::Weight>,
    pub(crate) classifier: Option<Classifier>,
    /// The layers that adapters may change.
    pub lora_targets: LoraTargets,
}

/// One layer's weights. Projections of the same input are stacked: one product instead of three.
pub(crate) struct LayerWeights<B: Backend> {
    pub(crate) qkv: Projection<B>,
    /// Norms of query and key heads.
    pub(crate) qk_norm: Option<(B::Weight, B::Weight)>,
    pub(crate) output: Projection<B>,
    /// Between attention and MLP.
    pub(crate) attention_norm: Norm<B>,
    pub(crate) mlp_input: Projection<B>,
    pub(crate) mlp_output: Projection<B>,
    /// After the MLP; where norms come before blocks, the next layer's, or the last of all.
    pub(crate) mlp_norm: Norm<B>,
}

pub(crate) struct Projection<B: Backend> {
    /// What adapters know it by.
    pub(crate) number: usize,
    /// Columns of the result.
    pub(crate) width: usize,
    pub(crate) weight: B::Weight,
    pub(crate) bias: Option<B::Weight>,
}

/// As [`Norms`] says.
pub(crate) enum Norm<B: Backend> {
    Rms(B::Weight),
    Layer { weight: B::Weight, bias: B::Weight },
}

/// How far loading is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Layers on the device.
    pub layers: usize,
    /// Layers of the model.
    pub num_layers: usize,
    /// Bytes of weights on the device.
    pub loaded_bytes: usize,
}

impl<B: Backend> Model<B> {
    /// Brings all weights to the device. Fails if the checkpoint lacks one, has one of another shape, or has
    /// one that the model does not use.
    pub fn load(
        backend: &mut B,
        spec: ModelSpec,
        checkpoint: &Checkpoint,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, ModelError> {
        let names = Names::of(&spec, checkpoint);
        let mut loader = Loader { backend, checkpoint, unused: checkpoint.names(), names, loaded_bytes: 0, lora_targets: LoraTargets::default(), num_projections: 0 };
        loader.unused.retain(|name| !loader.names.is_redundant(name, &spec));
        let (vocab, hidden) = (spec.vocab_size, spec.hidden_size);
        let embedding = loader.load(&[(loader.names.embedding(), vocab)], Some(hidden))?;
        let positions = match spec.positions {
            Positions::Rotary(_) => None,
            Positions::Learned { rows, first, types } => Some(loader.positions(hidden, rows, first, types)?),
        };
        let first_norm = loader.norm(&spec, loader.names.first_norm())?;
        let mut layers = Vec::with_capacity(spec.layers.len());
        for index in 0..spec.layers.len() {
            layers.push(loader.layer(&spec, index)?);
            let loaded_bytes = loader.loaded_bytes;
            progress(Progress { layers: index + 1, num_layers: spec.layers.len(), loaded_bytes });
        }
        let lm_head = match spec.lm_head {
            LmHead::Tied | LmHead::None => None,
            LmHead::Own => Some(loader.load(&[("lm_head.weight".into(), vocab)], Some(hidden))?),
        };
        let classifier = spec.classifier.map(|head| loader.classifier(&spec, head)).transpose()?;
        if let Some(example) = loader.unused.first() {
            return Err(ModelError::UnmappedTensors { count: loader.unused.len(), example: example.clone() });
        }
        let lora_targets = loader.lora_targets;
        Ok(Self { spec, embedding, positions, first_norm, layers, lm_head, classifier, lora_targets })
    }
}

struct Loader<'a, B: Backend> {
    backend: &'a mut B,
    checkpoint: &'a Checkpoint,
    names: Names,
    unused: BTreeSet<String>,
    loaded_bytes: usize,
    lora_targets: LoraTargets,
    num_projections: usize,
}

impl<B: Backend> Loader<'_, B> {
    fn layer(&mut self, spec: &ModelSpec, index: usize) -> Result<LayerWeights<B>, ModelError> {
        let attention = &spec.attention;
        let (hidden, inner, head) = (spec.hidden_size, spec.intermediate_size, attention.head_dim);
        let (q, kv) = (attention.num_heads * head, attention.num_kv_heads * head);
        let names = self.names.layer(index, spec.layers.len());
        let rows = [q, kv, kv];
        let qkv: Vec<_> = names.qkv.into_iter().zip(rows).collect();
        let mlp_input: Vec<_> = names.mlp_input.into_iter().map(|name| (name, inner)).collect();
        Ok(LayerWeights {
            qkv: self.projection(&qkv, hidden, attention.qkv_bias)?,
            qk_norm: match attention.qk_norm {
                true => Some((
                    self.load(&[(format!("{}.weight", names.q_norm), head)], None)?,
                    self.load(&[(format!("{}.weight", names.k_norm), head)], None)?,
                )),
                false => None,
            },
            output: self.projection(&[(names.output, hidden)], q, attention.output_bias)?,
            attention_norm: self.norm(spec, names.attention_norm)?,
            mlp_input: self.projection(&mlp_input, hidden, spec.mlp_bias)?,
            mlp_output: self.projection(&[(names.mlp_output, hidden)], inner, spec.mlp_bias)?,
            mlp_norm: self.norm(spec, names.mlp_norm)?,
        })
    }

    fn norm(&mut self, spec: &ModelSpec, name: String) -> Result<Norm<B>, ModelError> {
        let weight = self.load(&[(format!("{name}.weight"), spec.hidden_size)], None)?;
        Ok(match spec.norms {
            Norms::RmsBefore => Norm::Rms(weight),
            Norms::LayerAfter => {
                Norm::Layer { weight, bias: self.load(&[(format!("{name}.bias"), spec.hidden_size)], None)? }
            }
        })
    }

    /// The table of learned positions from row `first` on, once for each of the first two types of token, with the
    /// type's vector added: a position and a type are one addition, as in [`ModelSpec::second_text_offset`].
    fn positions(
        &mut self,
        hidden: usize,
        rows: usize,
        first: usize,
        types: usize,
    ) -> Result<B::Weight, ModelError> {
        let table = self.values(&self.names.positions(), &[rows, hidden])?;
        let types = self.values(&self.names.token_types(), &[types, hidden])?;
        let rows = table[first * hidden..].chunks_exact(hidden);
        let of_type = |of_type: &[f32]| -> Vec<f32> {
            rows.clone().flat_map(|row| row.iter().zip(of_type).map(|(x, y)| x + y)).collect()
        };
        let positions: Vec<f32> = types.chunks_exact(hidden).take(2).flat_map(of_type).collect();
        Ok(self.backend.load_table(&positions, hidden)?)
    }

    /// The head of a classifier, on the host.
    fn classifier(&mut self, spec: &ModelSpec, head: ClassifierSpec) -> Result<Classifier, ModelError> {
        let hidden = spec.hidden_size;
        let (inner, outer) = self.names.classifier(head.form);
        let has_bias = head.form != ClassifierForm::Linear;
        let inner = inner.map(|name| self.dense(&name, hidden, hidden, has_bias)).transpose()?;
        Ok(Classifier::new(inner, self.dense(&outer, head.num_labels, hidden, has_bias)?))
    }

    fn dense(&mut self, name: &str, rows: usize, columns: usize, bias: bool) -> Result<Dense, ModelError> {
        let weight = self.values(&format!("{name}.weight"), &[rows, columns])?;
        let bias = if bias { self.values(&format!("{name}.bias"), &[rows])? } else { vec![0.0; rows] };
        Ok(Dense { weight, bias })
    }

    /// A tensor in f32.
    fn values(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let view = self.checkpoint.tensor(name, shape)?;
        self.loaded_bytes += bytes_of(&view);
        self.unused.remove(name);
        Ok(view.bytes_as(Dtype::F32).as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// `parts` are (module, output rows).
    fn projection(
        &mut self,
        parts: &[(String, usize)],
        columns: usize,
        has_bias: bool,
    ) -> Result<Projection<B>, ModelError> {
        let named = |kind: &str| -> Vec<(String, usize)> {
            parts.iter().map(|(name, rows)| (format!("{name}.{kind}"), *rows)).collect()
        };
        let weight = self.load(&named("weight"), Some(columns))?;
        let bias = if has_bias { Some(self.load(&named("bias"), None)?) } else { None };
        let number = self.num_projections;
        self.num_projections += 1;
        let mut width = 0;
        for (module, rows) in parts {
            let target = LoraTarget { projection: number, columns: width..width + rows, inputs: columns, order: None };
            self.lora_targets.insert(module, target);
            width += rows;
        }
        Ok(Projection { number, width, weight, bias })
    }

    /// Loads tensors of (name, rows), stacked; vectors if there are no columns.
    fn load(&mut self, parts: &[(String, usize)], columns: Option<usize>) -> Result<B::Weight, ModelError> {
        let mut views = Vec::with_capacity(parts.len());
        for (name, rows) in parts {
            let shape: Vec<usize> = std::iter::once(*rows).chain(columns).collect();
            let view = self.checkpoint.tensor(name, &shape)?;
            self.loaded_bytes += bytes_of(&view);
            self.unused.remove(name);
            views.push(view);
        }
        Ok(self.backend.load(&views)?)
    }
}

fn bytes_of(view: &TensorView<'_>) -> usize {
    view.shape.iter().product::<usize>() * view.dtype.bytes()
}
