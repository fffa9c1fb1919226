//! [`ModelSpec`]: a model as data. The forward pass reads it; nothing else about a model is code.

use quire_scheduler::{Pooling, TokenId};

use crate::backend::{BufferRole, LinearShape, StepLimits};
use crate::latent_spec::LatentSpec;
use crate::moe_spec::MoeSpec;
use crate::quantization::Quantization;

/// Element type of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 single precision.
    F32,
    /// The upper half of an `F32`.
    Bf16,
    /// IEEE 754 half precision.
    F16,
}

impl Dtype {
    /// Size of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// A transformer of one stack: a decoder, or an encoder that is there to be pooled.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// Name in `architectures` of config.json.
    pub architecture: String,
    /// What the config says that the weights are stored in (`torch_dtype` or `dtype`).
    pub dtype: Dtype,
    /// Rows of the embedding, and logits per position.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Longest sequence that the model was made for.
    pub max_position_embeddings: usize,
    /// What a norm of the residual stream is.
    pub norm: NormSpec,
    /// Where norms are.
    pub norms: Norms,
    /// How a token knows its place.
    pub positions: Positions,
    /// Whether tokens see only those before them. If not, a prompt is computed whole, and nothing is generated.
    pub causal: bool,
    /// One entry a layer, from the embedding up.
    pub layers: Vec<LayerSpec>,
    /// Factors that some families put on their way.
    pub scales: Scales,
    /// What makes logits of the last hidden states.
    pub lm_head: LmHead,
    /// Whether the head of its own has a bias.
    pub lm_head_bias: bool,
    /// How weights are stored, or what they are made at load.
    pub quantization: Quantization,
    /// What makes logits of labels of a pooled hidden state.
    pub classifier: Option<ClassifierSpec>,
    /// End tokens of config.json and generation_config.json together; sorted, without repeats.
    pub eos_token_ids: Vec<TokenId>,
}

/// Factors on the way from a token to its logits; 1 where a family has none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scales {
    /// On the embedding (Gemma, Granite).
    pub embedding: f32,
    /// On what a block adds to the residual stream (Granite).
    pub residual: f32,
    /// On the logits (Cohere, Granite).
    pub logits: f32,
    /// `Some(c)`: logits, scaled, become `c * tanh(logit / c)` (Gemma 2).
    pub logits_softcap: Option<f32>,
}

impl Default for Scales {
    fn default() -> Self {
        Self { embedding: 1.0, residual: 1.0, logits: 1.0, logits_softcap: None }
    }
}

/// The way from hidden states to logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LmHead {
    /// By weights of its own.
    Own,
    /// By the embedding's weights.
    Tied,
    /// There are no logits: the model is there for its hidden states, which are pooled.
    None,
}

/// A head that tells texts apart: `num_labels` numbers of one pooled hidden state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassifierSpec {
    /// Classes, or 1 for a score.
    pub num_labels: usize,
    /// What the head is made of, which decides the names of its weights too.
    pub form: ClassifierForm,
}

/// The heads of `...ForSequenceClassification`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClassifierForm {
    /// The model's own pooler (a projection and tanh), then a projection (BERT).
    Pooler,
    /// A projection and tanh of the head's own, then a projection (RoBERTa).
    TwoLayers,
    /// One projection without bias (decoders).
    Linear,
}

/// One layer. Layers of one model may differ in all of it.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSpec {
    /// The first block.
    pub attention: AttentionSpec,
    /// The second.
    pub mlp: MlpSpec,
}

/// Attention with grouped queries.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionSpec {
    /// Query heads; a multiple of `num_kv_heads`.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// `Some`: keys and values are made of a latent, which is the one key head that is cached.
    pub latent: Option<LatentSpec>,
    /// Which of [`Positions::Rotary`] turns its queries and keys; `None` = they are not turned.
    pub rope: Option<usize>,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    /// Norm of the heads of q and k before the rotation.
    pub qk_norm: Option<QkNormSpec>,
    /// Factor on q·k, usually `head_dim^-0.5`.
    pub scale: f32,
    /// `Some(c)`: scores become `c * tanh(score / c)` (Gemma 2).
    pub softcap: Option<f32>,
    /// `Some(w)`: a token sees itself and the `w - 1` before it.
    pub sliding_window: Option<u32>,
    /// Whether each query head has a learned score for seeing nothing, which takes its share of the softmax
    /// (gpt-oss).
    pub sinks: bool,
}

/// Norm of queries and keys; offset and kind of its weights are those of [`ModelSpec::norm`], `eps` too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QkNormSpec {
    /// RMS or Layer.
    pub kind: NormKind,
    /// What is normalised together.
    pub span: NormSpan,
}

/// What of a row of heads is normalised together, and with which weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormSpan {
    /// Each head, all with the same weights `[head_dim]` (Qwen3).
    Head,
    /// Each head, with weights of its own `[heads][head_dim]` (Cohere, StableLM).
    EachHead,
    /// All heads as one vector, weights `[heads * head_dim]` (OLMo-2).
    Whole,
}

/// The second block of a layer.
#[derive(Debug, Clone, PartialEq)]
pub enum MlpSpec {
    /// One for all tokens.
    Dense(DenseSpec),
    /// Of each token some of many.
    Moe(MoeSpec),
}

impl MlpSpec {
    /// The one that all tokens use, if there is one.
    pub fn dense(&self) -> Option<&DenseSpec> {
        match self {
            Self::Dense(dense) => Some(dense),
            Self::Moe(moe) => moe.shared.as_ref().map(|shared| &shared.mlp),
        }
    }

    /// The mixture, if it is one.
    pub fn moe(&self) -> Option<&MoeSpec> {
        match self {
            Self::Dense(_) => None,
            Self::Moe(moe) => Some(moe),
        }
    }
}

/// Two projections with a non-linearity between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DenseSpec {
    /// Width between the two.
    pub intermediate_size: usize,
    /// What happens there.
    pub activation: Activation,
    /// Whether the first projection is two, a gate and what it is multiplied with.
    pub gated: bool,
    /// Whether the projections have biases.
    pub bias: bool,
}

impl DenseSpec {
    /// Rows of the first projection.
    pub fn input_size(&self) -> usize {
        if self.gated { 2 * self.intermediate_size } else { self.intermediate_size }
    }
}

/// Non-linearity of the MLP; of the gate, if it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * (1 + erf(x / sqrt 2)) / 2`.
    Gelu,
    /// `x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x³))) / 2`.
    GeluTanh,
}

/// What a norm does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `x / sqrt(mean(x²) + eps)`.
    Rms,
    /// `(x - mean(x)) / sqrt(variance(x) + eps)`.
    Layer,
}

/// Norms of the residual stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormSpec {
    /// Of all of them.
    pub kind: NormKind,
    /// Added to the mean square, or to the variance.
    pub eps: f32,
    /// Whether something is added at the end.
    pub bias: bool,
    /// Added to the weights that are stored: 1 where these say how far from 1 the factors are (Gemma).
    pub offset: f32,
}

/// Where the norms of the residual stream are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norms {
    /// On the way into attention, into the MLP and out of the last layer.
    Before,
    /// Of what attention and the MLP give, before it is added; and out of the last layer (OLMo-2).
    After,
    /// Both of these (Gemma 2).
    Around,
    /// Of the embedding, and of each sum of a block's input and output (BERT).
    OfSum,
    /// On the way into attention and the MLP, which work side by side on the same residual stream, and out of the
    /// last layer.
    Parallel {
        /// Whether the two read the same norm, or have one each.
        shared: bool,
    },
}

/// How tokens know their places.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// Queries and keys are rotated, by one of these rotations: see [`AttentionSpec::rope`].
    Rotary(Vec<RopeSpec>),
    /// A learned vector is added to the embedding.
    Learned {
        /// Rows of the checkpoint's table.
        rows: usize,
        /// Of these, the first position's (RoBERTa's and OPT's tables begin with rows that stand for padding).
        first: usize,
        /// Kinds of text in a prompt that are told apart by a vector of their own (token types); 0 if there is no
        /// such table.
        types: usize,
    },
    /// Scores fall with the distance of what is seen, for each head at its own rate ([`crate::alibi_slope`]).
    Alibi,
}

/// Rotary position embedding of the first numbers of each head, in the two-halves ("NeoX") form.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    /// Numbers of a head that are rotated, from its first on; even.
    pub dim: usize,
    /// Base of the geometric series of wave lengths.
    pub theta: f64,
    /// How wave lengths are stretched beyond the length of pre-training.
    pub scaling: RopeScaling,
    /// Whether the checkpoint has the two numbers that are rotated together side by side (GPT-J, Cohere). Loading
    /// puts their rows into halves.
    pub interleaved: bool,
}

/// Kinds of `rope_scaling` (`rope_type` in newer configs).
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Unscaled.
    None,
    /// All frequencies divided by the factor.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// Of the low frequencies.
        factor: f64,
        /// Wave lengths above `original / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wave lengths below `original / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// Context length of pre-training, in tokens.
        original_max_position_embeddings: f64,
    },
    /// YaRN: low frequencies divided, high ones kept, a ramp between, and longer queries and keys.
    Yarn {
        /// Of the low frequencies.
        factor: f64,
        /// Context length of pre-training, in tokens.
        original_max_position_embeddings: f64,
        /// Turns over that context above which a frequency is high.
        beta_fast: f64,
        /// Turns below which it is low.
        beta_slow: f64,
        /// Whether the ramp begins and ends at whole frequencies.
        truncate: bool,
        /// On cosines and sines.
        attention_factor: f64,
    },
    /// Phi-3: each frequency divided by a factor of its own, of one of two lists.
    Long {
        /// For contexts up to that of pre-training.
        short: Vec<f64>,
        /// For longer ones. Which list it is follows from the longest sequence that is served, as in vLLM.
        long: Vec<f64>,
        /// Context length of pre-training, in tokens.
        original_max_position_embeddings: f64,
        /// On cosines and sines.
        attention_factor: f64,
    },
}

impl ModelSpec {
    /// Elements of all weights.
    pub fn num_parameters(&self) -> usize {
        let hidden = self.hidden_size;
        let norm = if self.norm.bias { 2 * hidden } else { hidden };
        let per_layer = match self.norms {
            Norms::Before | Norms::After | Norms::OfSum | Norms::Parallel { shared: false } => 2,
            Norms::Around => 4,
            Norms::Parallel { shared: true } => 1,
        };
        let layers: usize =
            self.layers.iter().map(|layer| layer.num_parameters(hidden) + per_layer * norm).sum();
        let positions = match self.positions {
            Positions::Rotary(_) | Positions::Alibi => 0,
            Positions::Learned { rows, types, .. } => (rows + types) * hidden,
        };
        let embeddings = if self.lm_head == LmHead::Own { 2 } else { 1 };
        let embedding = embeddings * self.vocab_size * hidden + positions;
        let head_bias = usize::from(self.lm_head_bias) * self.vocab_size;
        let head = self.classifier.map_or(0, |head| match head.form {
            ClassifierForm::Linear => head.num_labels * hidden,
            ClassifierForm::Pooler | ClassifierForm::TwoLayers => (hidden + head.num_labels) * (hidden + 1),
        });
        layers + embedding + norm + head_bias + head
    }

    /// The hidden state that stands for a text if nobody says which: the last of a causal model has seen it all,
    /// and encoders are trained for their first.
    pub fn default_pooling(&self) -> Pooling {
        if self.causal { Pooling::Last } else { Pooling::Cls }
    }

    /// The rotations.
    pub fn ropes(&self) -> &[RopeSpec] {
        match &self.positions {
            Positions::Rotary(ropes) => ropes,
            Positions::Learned { .. } | Positions::Alibi => &[],
        }
    }

    /// Numbers that come of a pooled prompt.
    pub fn pooled_width(&self) -> usize {
        self.classifier.map_or(self.hidden_size, |head| head.num_labels)
    }

    /// How far apart the two kinds of text are in the table of positions, which is there once for each kind; 0 if
    /// the model does not tell texts apart.
    pub fn second_text_offset(&self) -> u32 {
        match self.positions {
            Positions::Learned { rows, first, types } if types > 1 => (rows - first) as u32,
            _ => 0,
        }
    }

    /// The same model as one to be pooled, whether it could generate or not.
    pub fn for_pooling(self) -> Self {
        Self { lm_head: LmHead::None, lm_head_bias: false, ..self }
    }

    /// The products of a forward pass and its logits, each shape once.
    pub fn linear_shapes(&self, limits: &StepLimits) -> Vec<LinearShape> {
        let hidden = self.hidden_size;
        let product = |n, k, has_bias| LinearShape {
            n,
            k,
            has_bias,
            output: BufferRole::Activation,
            max_rows: limits.max_num_batched_tokens,
        };
        let mut shapes = Vec::new();
        for LayerSpec { attention, mlp } in &self.layers {
            shapes.push(product(attention.qkv_size(), hidden, attention.has_qkv_bias()));
            shapes.push(product(hidden, attention.output_size(), attention.output_bias));
            if let Some(dense) = mlp.dense() {
                shapes.push(product(dense.input_size(), hidden, dense.bias));
                shapes.push(product(hidden, dense.intermediate_size, dense.bias));
            }
            if let Some(moe) = mlp.moe() {
                shapes.push(product(moe.router.num_experts, hidden, moe.router_bias));
            }
            if let Some(latent) = &attention.latent {
                shapes.push(product(latent.cached_dim(), hidden, attention.qkv_bias));
                let queries = attention.num_heads * latent.query_dim();
                shapes.extend(latent.q_lora_rank.map(|rank| product(queries, rank, false)));
            }
        }
        if self.lm_head != LmHead::None {
            shapes.push(LinearShape {
                output: BufferRole::Logits,
                max_rows: limits.max_logits_rows,
                ..product(self.vocab_size, hidden, self.lm_head_bias)
            });
        }
        let mut seen = Vec::new();
        shapes.retain(|shape| {
            !seen.contains(shape) && {
                seen.push(*shape);
                true
            }
        });
        shapes
    }

    /// The greatest of some size of the layers.
    pub fn max_of_layers(&self, size: impl Fn(&LayerSpec) -> usize) -> usize {
        self.layers.iter().map(size).max().unwrap_or(0)
    }
}

impl LayerSpec {
    /// Elements of its weights without the norms of the residual stream.
    fn num_parameters(&self, hidden: usize) -> usize {
        let Self { attention, mlp } = self;
        let (qkv, output) = (attention.qkv_size(), attention.output_size());
        let biases =
            usize::from(attention.has_qkv_bias()) * qkv + usize::from(attention.output_bias) * hidden;
        let norms = attention.qk_norm.map_or(0, |norm| match norm.span {
            NormSpan::Head => 2 * attention.head_dim,
            NormSpan::EachHead | NormSpan::Whole => {
                (attention.num_heads + attention.num_kv_heads) * attention.head_dim
            }
        });
        let sinks = usize::from(attention.sinks) * attention.num_heads;
        let latent = attention.latent.map_or(0, |latent| {
            let bias = usize::from(attention.qkv_bias) * latent.cached_dim();
            latent.num_parameters(attention.num_heads, hidden) + bias
        });
        hidden * (qkv + output) + biases + norms + sinks + latent + mlp.num_parameters(hidden)
    }
}

impl MlpSpec {
    fn num_parameters(&self, hidden: usize) -> usize {
        match self {
            Self::Dense(dense) => dense.num_parameters(hidden),
            Self::Moe(moe) => moe.num_parameters(hidden),
        }
    }
}

impl DenseSpec {
    pub(crate) fn num_parameters(&self, hidden: usize) -> usize {
        let biases = usize::from(self.bias) * (self.input_size() + hidden);
        hidden * (self.input_size() + self.intermediate_size) + biases
    }
}

impl AttentionSpec {
    /// Whether the first projection has a bias: latent attention has one where it compresses.
    pub(crate) fn has_qkv_bias(&self) -> bool {
        self.qkv_bias && self.latent.is_none_or(|latent| latent.q_lora_rank.is_some())
    }

    /// Rows of the fused query, key and value projection: `(num_heads + 2 num_kv_heads) * head_dim`. Of latent
    /// attention those of the first projection of queries.
    pub fn qkv_size(&self) -> usize {
        match &self.latent {
            None => (self.num_heads + 2 * self.num_kv_heads) * self.head_dim,
            Some(latent) => latent.q_lora_rank.unwrap_or(self.num_heads * latent.query_dim()),
        }
    }

    /// Width of what attention gives: `num_heads * head_dim`.
    pub fn output_size(&self) -> usize {
        self.num_heads * self.latent.map_or(self.head_dim, |latent| latent.v_head_dim)
    }
}
