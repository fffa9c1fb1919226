//! What a model is: a [`ModelSpec`] read from a Hugging Face config, a [`Checkpoint`] with its weights, and
//! one forward pass over a [`Backend`], driven by the [`Runner`].
//!
//! Nothing here knows a device. A device is an implementation of [`Backend`]; a model family is a mapping
//! of config fields and weight names, not a forward pass of its own.

mod backend;
mod checkpoint;
mod classifier;
mod dummy;
mod encoder_config;
mod error;
mod forward;
mod hf_config;
mod input_batch;
mod kv_layout;
mod labels;
mod logprobs;
mod lora;
mod masks;
mod philox;
mod pooler;
mod rope;
mod runner;
mod sampler;
mod sampling_defaults;
mod slot;
mod spec;
mod step_inputs;
mod weight_names;
mod weights;

pub use backend::{
    AttentionShape, Backend, BackendError, BufferRole, LayerNorm, LinearShape, QkNorm, StepLimits,
};
pub use checkpoint::{Checkpoint, TensorData, TensorView};
pub use dummy::{DUMMY_HALF_WIDTH, DummyTensor};
pub use error::ModelError;
pub use input_batch::InputBatch;
pub use kv_layout::KvLayout;
pub use labels::{LabelActivation, Labels};
pub use logprobs::{RankedLogprob, capture_logprob, capture_logprobs_of};
pub use lora::{AdapterConfig, LoraError, LoraPart, LoraTarget, LoraTargets, LoraWeights};
pub use philox::{philox4x32, uniform};
pub use pooler::{Matryoshka, PoolerSpec, is_sentence_transformer};
pub use quire_scheduler::{Adapter, Pooling};
pub use rope::rope_table;
pub use runner::{Runner, RunnerConfig};
pub use sampler::{RowFailure, SamplerScratch, sample_row};
pub use sampling_defaults::SamplingDefaults;
pub use slot::{Slot, UNKNOWN_TOKEN};
pub use spec::{
    Activation, AttentionSpec, ClassifierForm, ClassifierSpec, Dtype, LayerSpec, LmHead, ModelSpec, Norms,
    Positions, RopeScaling, RopeSpec,
};
pub use step_inputs::{LogitsRow, LogitsTask, PLACEHOLDER_BIT, PoolRow, RowResult, StepInputs};
pub use weights::{Model, Progress};
