//! What a model is: a [`ModelSpec`] read from a Hugging Face config, a [`Checkpoint`] with its weights, and
//! one forward pass over a [`Backend`], driven by the [`Runner`].
//!
//! Nothing here knows a device. A device is an implementation of [`Backend`]; a model family is a mapping
//! of config fields and weight names, not a forward pass of its own.

mod backend;
mod checkpoint;
mod classifier;
mod config_overrides;
mod convert;
mod dummy;
mod error;
mod families;
mod forward;
pub mod ggml;
pub mod gguf;
mod input_batch;
mod kv_dtype;
mod kv_groups;
mod kv_layout;
mod labels;
mod latent_spec;
mod loader;
mod logprobs;
mod lora;
mod mapped_file;
mod masks;
mod moe_spec;
mod philox;
mod pooler;
pub mod quantization;
mod rope;
mod row_order;
mod runner;
mod safetensors;
mod sampler;
mod sampling_defaults;
mod slot;
mod spec;
mod step_inputs;
mod weights;

pub use backend::{
    AttentionShape, Backend, BackendError, BufferRole, Heads, LatentInput, LatentNorm, LayerNorm,
    LinearShape, QkNorm, StepLimits,
};
pub use checkpoint::{Checkpoint, TensorData, TensorView};
pub use config_overrides::with_overrides;
pub use dummy::{DUMMY_HALF_WIDTH, DummyTensor};
pub use error::ModelError;
pub use input_batch::InputBatch;
pub use kv_dtype::{KvDtype, KvScales};
pub use kv_groups::{KvGroups, KvPlace};
pub use kv_layout::{KvLayout, KvOfToken};
pub use labels::{LabelActivation, Labels};
pub use latent_spec::{LatentShape, LatentSpec};
pub use logprobs::{RankedLogprob, capture_logprob, capture_logprobs_of};
pub use lora::{AdapterConfig, LoraError, LoraPart, LoraTarget, LoraTargets, LoraWeights};
pub use mapped_file::MappedFile;
pub use moe_spec::{
    ExpertActivation, ExpertGroups, Experts, GroupScore, MoeSpec, RouterScores, RouterSpec, SharedExpertSpec,
};
pub use philox::{philox4x32, uniform};
pub use pooler::{Matryoshka, PoolerSpec, is_sentence_transformer};
pub use quantization::{MatrixView, PackedMatrix, Quantization};
pub use quire_scheduler::kv::MAX_KV_GROUPS;
pub use quire_scheduler::{Adapter, Pooling};
pub use rope::{alibi_slope, rope_table};
pub use runner::{Runner, RunnerConfig};
pub use safetensors::{RawTensor, StoredDtype};
pub use sampler::{RowFailure, SamplerScratch, sample_row};
pub use sampling_defaults::SamplingDefaults;
pub use slot::{Slot, UNKNOWN_TOKEN};
pub use spec::{
    Activation, AttentionSpec, ClassifierForm, ClassifierSpec, DenseSpec, Dtype, LayerSpec, LmHead, MlpSpec,
    ModelSpec, NormKind, NormSpan, NormSpec, Norms, Positions, QkNormSpec, RopeScaling, RopeSpec, Scales,
};
pub use step_inputs::{LogitsRow, LogitsTask, PLACEHOLDER_BIT, PoolRow, RowResult, StepInputs};
pub use weights::{Model, Progress};
