//! [`Model`]: a [`ModelSpec`] with its weights on a device.

use crate::backend::Backend;
use crate::checkpoint::Checkpoint;
use crate::classifier::Classifier;
use crate::error::ModelError;
use crate::kv_dtype::KvScales;
use crate::loader::Loader;
use crate::lora::LoraTargets;
use crate::spec::ModelSpec;

/// A model on a device.
pub struct Model<B: Backend> {
    /// What it is.
    pub spec: ModelSpec,
    pub(crate) embedding: B::Weight,
    /// `[positions][hidden]` added to the embedding, if positions are learned.
    pub(crate) positions: Option<B::Weight>,
    /// Of the embedding, where blocks' inputs are not normalised.
    pub(crate) embedding_norm: Option<Norm<B>>,
    pub(crate) layers: Vec<LayerWeights<B>>,
    /// Out of the last layer.
    pub(crate) final_norm: Option<Norm<B>>,
    /// Weights of its own, or a bias.
    pub(crate) lm_head: LmHeadWeights<B>,
    pub(crate) classifier: Option<Classifier>,
    pub(crate) lora_targets: LoraTargets,
}

/// One layer's weights. Projections of the same input are stacked: one product instead of three.
pub(crate) struct LayerWeights<B: Backend> {
    pub(crate) norms: LayerNorms<B>,
    pub(crate) qkv: Projection<B>,
    /// Norms of query and key heads.
    pub(crate) qk_norm: Option<(B::Weight, B::Weight)>,
    /// `[heads]` scores of seeing nothing.
    pub(crate) sinks: Option<B::Weight>,
    pub(crate) output: Projection<B>,
    /// What FP8 keys and values are times.
    pub(crate) kv_scales: KvScales,
    /// What latent attention has besides, where `qkv` is the first projection of queries.
    pub(crate) latent: Option<LatentWeights<B>>,
    pub(crate) mlp: MlpWeights<B>,
}

/// Norms of the residual stream, those that [`crate::Norms`] asks for.
pub(crate) struct LayerNorms<B: Backend> {
    /// On the way into attention.
    pub(crate) attention: Option<Norm<B>>,
    /// Of what attention gives, or of its sum with what it was given.
    pub(crate) attention_output: Option<Norm<B>>,
    /// On the way into the MLP.
    pub(crate) mlp: Option<Norm<B>>,
    /// Of what the MLP gives, or of its sum.
    pub(crate) mlp_output: Option<Norm<B>>,
}

/// As [`crate::LatentSpec`] says.
pub(crate) struct LatentWeights<B: Backend> {
    /// Of compressed queries their norm and second projection.
    pub(crate) queries: Option<(B::Weight, Projection<B>)>,
    /// To `[latent | shared key]`.
    pub(crate) kv: Projection<B>,
    /// Of the latent.
    pub(crate) kv_norm: B::Weight,
    /// `[heads * latent][not rotated]`: queries into the latent's space.
    pub(crate) into_latent: B::Weight,
    /// `[heads * value][latent]`: results out of it.
    pub(crate) out_of_latent: B::Weight,
}

/// As [`crate::MlpSpec`] says.
pub(crate) enum MlpWeights<B: Backend> {
    Dense(DenseWeights<B>),
    Moe(MoeWeights<B>),
}

/// As [`crate::MoeSpec`] says; vectors have an entry an expert, or none if there is nothing of that kind.
pub(crate) struct MoeWeights<B: Backend> {
    pub(crate) router: Projection<B>,
    pub(crate) correction_bias: Option<B::Weight>,
    pub(crate) gate_up: Vec<B::Weight>,
    pub(crate) gate_up_bias: Vec<B::Weight>,
    pub(crate) down: Vec<B::Weight>,
    pub(crate) down_bias: Vec<B::Weight>,
    pub(crate) shared: Option<DenseWeights<B>>,
    /// `[1][hidden]`.
    pub(crate) shared_gate: Option<B::Weight>,
}

pub(crate) struct DenseWeights<B: Backend> {
    pub(crate) input: Projection<B>,
    pub(crate) output: Projection<B>,
}

pub(crate) struct Projection<B: Backend> {
    /// What adapters know it by.
    pub(crate) number: usize,
    /// Columns of the result.
    pub(crate) width: usize,
    pub(crate) weight: B::Weight,
    pub(crate) bias: Option<B::Weight>,
}

/// What makes logits beside the embedding.
pub(crate) struct LmHeadWeights<B: Backend> {
    /// `None` if tied to the embedding, or if there are no logits.
    pub(crate) weight: Option<B::Weight>,
    pub(crate) bias: Option<B::Weight>,
}

/// As [`crate::NormSpec`] says.
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
    /// The layers that adapters may change.
    pub fn lora_targets(&self) -> &LoraTargets {
        &self.lora_targets
    }

    /// Brings all weights to the device. Fails if the checkpoint lacks one, has one of another shape, or has
    /// one that the model does not use.
    pub fn load(
        backend: &mut B,
        spec: ModelSpec,
        checkpoint: &Checkpoint,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, ModelError> {
        backend.check(&spec)?;
        let mut loader = Loader::new(backend, &spec, checkpoint)?;
        let embedding = loader.embedding()?;
        let positions = loader.positions()?;
        let embedding_norm = loader.embedding_norm()?;
        let mut layers = Vec::with_capacity(spec.layers.len());
        for index in 0..spec.layers.len() {
            layers.push(loader.layer(index)?);
            let loaded_bytes = loader.loaded_bytes();
            progress(Progress { layers: index + 1, num_layers: spec.layers.len(), loaded_bytes });
        }
        let final_norm = loader.final_norm()?;
        let lm_head = loader.lm_head()?;
        let classifier = loader.classifier()?;
        let lora_targets = loader.finish()?;
        Ok(Self {
            lora_targets,
            spec,
            embedding,
            positions,
            embedding_norm,
            layers,
            final_norm,
            lm_head,
            classifier,
        })
    }
}
