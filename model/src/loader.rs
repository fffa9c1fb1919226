//! [`Loader`]: the way from a checkpoint's tensors, by a family's names, to weights on a device.
//!
//! Backends know one form of everything: projections of the same input stacked, rotated numbers in halves, norms as
//! plain factors. What a checkpoint has otherwise is put into that form here, by an order of rows.

mod kv_scales;
mod latent;
mod moe;

use std::collections::BTreeSet;

use crate::backend::Backend;
use crate::checkpoint::{Checkpoint, TensorView};
use crate::classifier::{Classifier, Dense};
use crate::error::ModelError;
use crate::families::family_of;
use crate::families::names::{NamesIn, Stack};
use crate::lora::LoraTargets;
use crate::quantization::{MatrixView, PackedMatrix, Quantization, read_matrix};
use crate::row_order::{grouped, halves, ungrouped};
use crate::spec::{
    AttentionSpec, ClassifierForm, DenseSpec, Dtype, LmHead, MlpSpec, ModelSpec, NormKind, NormSpan, Norms,
    Positions,
};
use crate::weights::{DenseWeights, LayerNorms, LayerWeights, LmHeadWeights, MlpWeights, Norm, Projection};

/// One load. Whatever is asked for counts as used; what is left at the end is refused.
pub(crate) struct Loader<'a, B: Backend> {
    backend: &'a mut B,
    spec: &'a ModelSpec,
    checkpoint: &'a Checkpoint,
    names: NamesIn,
    unused: BTreeSet<String>,
    loaded_bytes: usize,
    /// The projections so far.
    lora_targets: LoraTargets,
}

/// A part of a stacked projection: a module, how many rows it has, and which of them are wanted in which order.
struct Part {
    module: String,
    rows: usize,
    order: Option<Vec<usize>>,
}

/// Of queries and of keys, if they are normalised.
type QkNormWeights<B> = Option<(<B as Backend>::Weight, <B as Backend>::Weight)>;

impl<'a, B: Backend> Loader<'a, B> {
    pub(crate) fn new(
        backend: &'a mut B,
        spec: &'a ModelSpec,
        checkpoint: &'a Checkpoint,
    ) -> Result<Self, ModelError> {
        let names = NamesIn::new(family_of(&spec.architecture)?.names, spec, checkpoint);
        let mut unused = checkpoint.names();
        if spec.quantization.is_stored() && unused.is_empty() {
            let (field, reason) =
                ("quantization_config", "weights that nobody trained are not packed".into());
            return Err(ModelError::Config { field, reason });
        }
        unused.retain(|name| !names.is_redundant(name, spec) && !spec.quantization.passes_over(name));
        Ok(Self {
            backend,
            spec,
            checkpoint,
            names,
            unused,
            loaded_bytes: 0,
            lora_targets: LoraTargets::default(),
        })
    }

    /// Bytes read so far.
    pub(crate) fn loaded_bytes(&self) -> usize {
        self.loaded_bytes
    }

    /// The layers that adapters may change. Fails if the checkpoint has something that nobody asked for.
    pub(crate) fn finish(self) -> Result<LoraTargets, ModelError> {
        match self.unused.first() {
            None => Ok(self.lora_targets),
            Some(example) => {
                Err(ModelError::UnmappedTensors { count: self.unused.len(), example: example.clone() })
            }
        }
    }

    pub(crate) fn embedding(&mut self) -> Result<B::Weight, ModelError> {
        self.table(&self.names.model(self.names.of.embedding))
    }

    /// The table of learned positions from its first row for a position on; if the model tells two kinds of text
    /// apart, once for each of the first two, with the kind's vector added: a position and a kind are one addition,
    /// as in [`ModelSpec::second_text_offset`].
    pub(crate) fn positions(&mut self) -> Result<Option<B::Weight>, ModelError> {
        let hidden = self.spec.hidden_size;
        let Positions::Learned { rows, first, types } = self.spec.positions else { return Ok(None) };
        let name = |module| format!("{}.weight", self.names.model(module));
        let (positions, kinds) = (name(self.names.of.positions), name(self.names.of.token_types));
        let table = self.values(&positions, &[rows, hidden])?;
        let kinds = match types {
            0 => vec![0.0; hidden],
            types => self.values(&kinds, &[types, hidden])?,
        };
        let rows = table[first * hidden..].chunks_exact(hidden);
        let of_kind = |kind: &[f32]| -> Vec<f32> {
            rows.clone().flat_map(|row| row.iter().zip(kind).map(|(x, y)| x + y)).collect()
        };
        let positions: Vec<f32> = kinds.chunks_exact(hidden).take(2).flat_map(of_kind).collect();
        Ok(Some(self.backend.load_table(&positions, hidden)?))
    }

    pub(crate) fn embedding_norm(&mut self) -> Result<Option<Norm<B>>, ModelError> {
        let wanted = self.spec.norms == Norms::OfSum;
        self.norm(wanted, self.names.model(self.names.of.embedding_norm))
    }

    pub(crate) fn final_norm(&mut self) -> Result<Option<Norm<B>>, ModelError> {
        let wanted = self.spec.norms != Norms::OfSum;
        self.norm(wanted, self.names.model(self.names.of.final_norm))
    }

    pub(crate) fn layer(&mut self, index: usize) -> Result<LayerWeights<B>, ModelError> {
        let spec = &self.spec.layers[index];
        let names = self.names.of;
        let (attention, hidden) = (&spec.attention, self.spec.hidden_size);
        let output = vec![Part::whole(self.names.layer(index, names.output), hidden)];
        let sinks = self.names.layer(index, names.sinks);
        Ok(LayerWeights {
            norms: self.layer_norms(index)?,
            qkv: self.projection(&self.qkv_parts(index, attention), hidden, attention.has_qkv_bias())?,
            qk_norm: self.qk_norm(index, attention)?,
            sinks: match attention.sinks {
                true => Some(self.vector(&sinks, attention.num_heads, None, 0.0)?),
                false => None,
            },
            output: self.projection(&output, attention.output_size(), attention.output_bias)?,
            kv_scales: self.kv_scales(index)?,
            latent: self.latent(index, attention)?,
            mlp: match &spec.mlp {
                MlpSpec::Dense(mlp) => {
                    MlpWeights::Dense(self.dense(index, mlp, names.mlp_input, names.mlp_output)?)
                }
                MlpSpec::Moe(moe) => MlpWeights::Moe(self.moe(index, moe)?),
            },
        })
    }

    pub(crate) fn lm_head(&mut self) -> Result<LmHeadWeights<B>, ModelError> {
        let (vocab, module) = (self.spec.vocab_size, self.names.of.lm_head);
        let weight = match self.spec.lm_head {
            LmHead::Tied | LmHead::None => None,
            LmHead::Own => Some(self.table(module)?),
        };
        let bias = match self.spec.lm_head_bias {
            true => Some(self.vector(&format!("{module}.bias"), vocab, None, 0.0)?),
            false => None,
        };
        Ok(LmHeadWeights { weight, bias })
    }

    /// The head of a classifier, on the host.
    pub(crate) fn classifier(&mut self) -> Result<Option<Classifier>, ModelError> {
        let Some(head) = self.spec.classifier else { return Ok(None) };
        let hidden = self.spec.hidden_size;
        let (inner, outer) = self.names.classifier(head.form);
        let has_bias = head.form != ClassifierForm::Linear;
        let inner = inner.map(|name| self.host_dense(&name, hidden, hidden, has_bias)).transpose()?;
        let outer = self.host_dense(&outer, head.num_labels, hidden, has_bias)?;
        Ok(Some(Classifier::new(inner, outer)))
    }

    fn layer_norms(&mut self, index: usize) -> Result<LayerNorms<B>, ModelError> {
        let norms = self.spec.norms;
        let before = matches!(norms, Norms::Before | Norms::Around | Norms::Parallel { .. });
        let after = matches!(norms, Norms::After | Norms::Around | Norms::OfSum);
        let own_mlp = before && norms != (Norms::Parallel { shared: true });
        let names = &self.names.of.norms;
        let name = |module| self.names.layer(index, module);
        let [attention, mlp] = match names.parallel {
            Some(own) if norms == (Norms::Parallel { shared: false }) => own,
            _ => [names.attention, names.mlp],
        };
        let [attention, attention_output, mlp, mlp_output] =
            [attention, names.attention_output, mlp, names.mlp_output].map(name);
        Ok(LayerNorms {
            attention: self.norm(before, attention)?,
            attention_output: self.norm(after, attention_output)?,
            mlp: self.norm(own_mlp, mlp)?,
            mlp_output: self.norm(after, mlp_output)?,
        })
    }

    /// A norm of the residual stream, if it is wanted.
    fn norm(&mut self, wanted: bool, module: String) -> Result<Option<Norm<B>>, ModelError> {
        if !wanted {
            return Ok(None);
        }
        let (norm, hidden) = (self.spec.norm, self.spec.hidden_size);
        let weight = self.vector(&format!("{module}.weight"), hidden, None, norm.offset)?;
        Ok(Some(match (norm.kind, norm.bias) {
            (NormKind::Rms, _) => Norm::Rms(weight),
            (NormKind::Layer, true) => {
                Norm::Layer { weight, bias: self.vector(&format!("{module}.bias"), hidden, None, 0.0)? }
            }
            (NormKind::Layer, false) => {
                Norm::Layer { weight, bias: self.backend.load_table(&vec![0.0; hidden], hidden)? }
            }
        }))
    }

    /// Queries, keys and values, each in the order in which backends rotate.
    fn qkv_parts(&self, index: usize, attention: &AttentionSpec) -> Vec<Part> {
        if let Some(latent) = &attention.latent {
            return vec![self.first_queries(index, attention, latent)];
        }
        let AttentionSpec { num_heads, num_kv_heads, head_dim, .. } = *attention;
        let rows = [num_heads, num_kv_heads, num_kv_heads].map(|heads| heads * head_dim);
        let rotated = self.interleaved_dim(attention);
        let turned = |rows: Vec<usize>| rotated.map(|dim| halves(&rows, head_dim, dim));
        match &self.names.of.qkv {
            Stack::Separate(names) => {
                let parts = names.iter().zip(rows).enumerate();
                let part = |(which, (name, rows)): (usize, (&&str, usize))| Part {
                    module: self.names.layer(index, name),
                    rows,
                    order: if which < 2 { turned((0..rows).collect()) } else { None },
                };
                parts.map(part).collect()
            }
            Stack::Stacked(name) | Stack::Interleaved(name) => {
                let is_grouped = matches!(self.names.of.qkv, Stack::Interleaved(_));
                let stacked: Vec<usize> = match is_grouped {
                    true => ungrouped(num_heads, num_kv_heads, head_dim),
                    false => (0..rows.iter().sum()).collect(),
                };
                let (rotating, values) = stacked.split_at(rows[0] + rows[1]);
                let order = match turned(rotating.to_vec()) {
                    Some(turned) => Some([&turned, values].concat()),
                    None if is_grouped => Some(stacked),
                    None => None,
                };
                vec![Part { module: self.names.layer(index, name), rows: rows.iter().sum(), order }]
            }
        }
    }

    /// How many numbers of a head are rotated in neighbouring pairs.
    fn interleaved_dim(&self, attention: &AttentionSpec) -> Option<usize> {
        let rope = attention.rope.and_then(|rope| self.spec.ropes().get(rope));
        rope.filter(|rope| rope.interleaved).map(|rope| rope.dim)
    }

    fn qk_norm(&mut self, index: usize, attention: &AttentionSpec) -> Result<QkNormWeights<B>, ModelError> {
        let Some(norm) = attention.qk_norm else { return Ok(None) };
        let (names, rotated) = (self.names.of, self.interleaved_dim(attention));
        let mut load = |name: &str, heads: usize| {
            let shape = match norm.span {
                NormSpan::Head => vec![attention.head_dim],
                NormSpan::EachHead => vec![heads, attention.head_dim],
                NormSpan::Whole => vec![heads * attention.head_dim],
            };
            let name = format!("{}.weight", self.names.layer(index, name));
            let parts: Vec<_> = match name.contains('*') {
                false => vec![(name, &shape[..])],
                true => (0..heads).map(|head| (name.replace('*', &head.to_string()), &shape[1..])).collect(),
            };
            let mut views = Vec::with_capacity(parts.len());
            for (name, shape) in parts {
                let view = self.tensor(&name, shape)?.flattened().plus(self.spec.norm.offset);
                views.push(match rotated {
                    Some(dim) => {
                        let rows: Vec<usize> = (0..view.shape[0]).collect();
                        view.select_rows(&halves(&rows, attention.head_dim, dim))
                    }
                    None => view,
                });
            }
            Ok::<_, ModelError>(self.backend.load(&views)?)
        };
        let q = load(names.q_norm, attention.num_heads)?;
        Ok(Some((q, load(names.k_norm, attention.num_kv_heads)?)))
    }

    fn dense(
        &mut self,
        index: usize,
        mlp: &DenseSpec,
        input: Stack<2>,
        output: &str,
    ) -> Result<DenseWeights<B>, ModelError> {
        let (hidden, inner) = (self.spec.hidden_size, mlp.intermediate_size);
        let module = |name| self.names.layer(index, name);
        let input = match input {
            Stack::Separate([_, only]) if !mlp.gated => vec![Part::whole(module(only), inner)],
            Stack::Separate(names) => names.iter().map(|name| Part::whole(module(name), inner)).collect(),
            Stack::Stacked(name) => vec![Part::whole(module(name), mlp.input_size())],
            Stack::Interleaved(name) => {
                let order = mlp.gated.then(|| grouped(2, inner));
                vec![Part { module: module(name), rows: mlp.input_size(), order }]
            }
        };
        let output = vec![Part::whole(module(output), hidden)];
        Ok(DenseWeights {
            input: self.projection(&input, hidden, mlp.bias)?,
            output: self.projection(&output, inner, mlp.bias)?,
        })
    }

    /// A product of the forward pass, which adapters may change.
    fn projection(
        &mut self,
        parts: &[Part],
        columns: usize,
        has_bias: bool,
    ) -> Result<Projection<B>, ModelError> {
        self.projection_in(&self.spec.quantization, parts, columns, has_bias)
    }

    /// The same where the checkpoint has it in another form.
    fn projection_in(
        &mut self,
        quantization: &Quantization,
        parts: &[Part],
        columns: usize,
        has_bias: bool,
    ) -> Result<Projection<B>, ModelError> {
        let (weight, bias) = self.stacked(quantization, parts, columns, has_bias)?;
        let layers = parts.iter().map(|part| (&*part.module, part.rows, part.order.clone()));
        let (number, width) = self.lora_targets.add_projection(columns, layers);
        Ok(Projection { number, width, weight, bias })
    }

    /// The matrices of modules of the same input, stacked, and their biases.
    fn stacked(
        &mut self,
        quantization: &Quantization,
        parts: &[Part],
        columns: usize,
        has_bias: bool,
    ) -> Result<(B::Weight, Option<B::Weight>), ModelError> {
        let mut matrices = Vec::with_capacity(parts.len());
        for part in parts {
            let shape = (part.rows, columns);
            let matrix = self.matrix(&part.module, shape, self.names.of.is_transposed, quantization)?;
            matrices.push(part.in_order(matrix));
        }
        let weight = self.stack(matrices)?;
        parts.iter().for_each(|part| self.checkpoint.give_back(&format!("{}.weight", part.module)));
        if !has_bias {
            parts.iter().try_for_each(|part| self.zero_bias(&part.module))?;
            return Ok((weight, None));
        }
        let mut vectors = Vec::with_capacity(parts.len());
        for part in parts {
            let bias = self.tensor(&format!("{}.bias", part.module), &[part.rows])?;
            vectors.push(match &part.order {
                Some(order) => bias.select_rows(order),
                None => bias,
            });
        }
        Ok((weight, Some(self.backend.load(&vectors)?)))
    }

    /// The weight of a module in the form it is stored in, or in the one that it shall have.
    fn matrix(
        &mut self,
        module: &str,
        shape: (usize, usize),
        is_transposed: bool,
        quantization: &Quantization,
    ) -> Result<MatrixView<'a>, ModelError> {
        let unused = &mut self.unused;
        let mut used = |name: &str| {
            unused.remove(name);
        };
        let matrix = read_matrix(self.checkpoint, quantization, module, shape, is_transposed, &mut used)?;
        self.loaded_bytes += matrix.bytes();
        Ok(matrix)
    }

    /// Matrices one below the other; packed unless all of them are plain and of one type.
    fn stack(&mut self, matrices: Vec<MatrixView<'_>>) -> Result<B::Weight, ModelError> {
        let dtype = |matrix: &MatrixView<'_>| match matrix {
            MatrixView::Plain(view) => Some(view.dtype),
            MatrixView::Packed(_) => None,
        };
        let first = matrices.first().and_then(dtype);
        if first.is_some() && matrices.iter().all(|matrix| dtype(matrix) == first) {
            let plain = |matrix| if let MatrixView::Plain(view) = matrix { Some(view) } else { None };
            return Ok(self.backend.load(&matrices.into_iter().filter_map(plain).collect::<Vec<_>>())?);
        }
        let packed = matrices.into_iter().map(MatrixView::into_packed).collect();
        Ok(self.backend.load_packed(PackedMatrix::stack(packed))?)
    }

    /// Uses the bias of a module that has none, if all of it is 0: some quantisers write one for every module.
    fn zero_bias(&mut self, module: &str) -> Result<(), ModelError> {
        let name = format!("{module}.bias");
        if self.spec.quantization.is_stored() && self.unused.contains(&name) {
            let bias = self.checkpoint.raw(&name)?;
            if bias.bytes.iter().all(|byte| *byte == 0) {
                self.unused.remove(&name);
            }
        }
        Ok(())
    }

    /// A row for each token.
    fn table(&mut self, module: &str) -> Result<B::Weight, ModelError> {
        let shape = (self.spec.vocab_size, self.spec.hidden_size);
        let matrix = self.matrix(module, shape, false, &self.spec.quantization.only_as_stored())?;
        let weight = self.stack(vec![matrix])?;
        self.checkpoint.give_back(&format!("{module}.weight"));
        Ok(weight)
    }

    /// A vector, in another order if one is given, with `offset` added to each number.
    fn vector(
        &mut self,
        name: &str,
        len: usize,
        order: Option<&[usize]>,
        offset: f32,
    ) -> Result<B::Weight, ModelError> {
        let view = self.tensor(name, &[len])?;
        let view = match order {
            Some(order) => view.select_rows(order),
            None => view,
        };
        Ok(self.backend.load(&[view.plus(offset)])?)
    }

    fn host_dense(
        &mut self,
        name: &str,
        rows: usize,
        columns: usize,
        bias: bool,
    ) -> Result<Dense, ModelError> {
        let weight = self.values(&format!("{name}.weight"), &[rows, columns])?;
        let bias = if bias { self.values(&format!("{name}.bias"), &[rows])? } else { vec![0.0; rows] };
        Ok(Dense { weight, bias })
    }

    /// A tensor in f32.
    fn values(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let bytes = self.tensor(name, shape)?.bytes_as(Dtype::F32).into_owned();
        Ok(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// A tensor as stored.
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<TensorView<'a>, ModelError> {
        let view = self.checkpoint.tensor(name, shape)?;
        self.loaded_bytes += view.shape.iter().product::<usize>() * view.dtype.bytes();
        self.unused.remove(name);
        Ok(view)
    }
}

impl Part {
    fn whole(module: String, rows: usize) -> Self {
        Self { module, rows, order: None }
    }

    fn in_order<'a>(&self, matrix: MatrixView<'a>) -> MatrixView<'a> {
        match &self.order {
            None => matrix,
            Some(order) => matrix.select_rows(order),
        }
    }
}
