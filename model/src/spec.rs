//! [`ModelSpec`]: a model as data. The forward pass reads it; nothing else about a model is code.

use quire_scheduler::{Pooling, TokenId};

use crate::backend::{BufferRole, LinearShape, StepLimits};

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
    /// Width of the MLP between its two halves.
    pub intermediate_size: usize,
    /// What the MLP does between its halves.
    pub activation: Activation,
    /// Whether the MLP's projections have biases.
    pub mlp_bias: bool,
    /// Longest sequence that the model was made for.
    pub max_position_embeddings: usize,
    /// Which norms there are, and where.
    pub norms: Norms,
    /// Added to the mean square, or to the variance, in every norm.
    pub norm_eps: f32,
    /// What all layers' attention has in common.
    pub attention: AttentionSpec,
    /// How a token knows its place.
    pub positions: Positions,
    /// Whether tokens see only those before them. If not, a prompt is computed whole, and nothing is generated.
    pub causal: bool,
    /// One entry a layer, from the embedding up.
    pub layers: Vec<LayerSpec>,
    /// What makes logits of the last hidden states.
    pub lm_head: LmHead,
    /// What makes logits of labels of a pooled hidden state.
    pub classifier: Option<ClassifierSpec>,
    /// End tokens of config.json and generation_config.json together; sorted, without repeats.
    pub eos_token_ids: Vec<TokenId>,
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

/// Attention with grouped queries.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionSpec {
    /// Query heads; a multiple of `num_kv_heads`.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Width of one head; even if it is rotated.
    pub head_dim: usize,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    /// RMSNorm over each head of q and k before the rotation (Qwen3).
    pub qk_norm: bool,
    /// Factor on q·k, usually `head_dim^-0.5`.
    pub scale: f32,
    /// `Some(c)`: scores become `c * tanh(score / c)` (Gemma 2).
    pub softcap: Option<f32>,
}

/// What may differ from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerSpec {
    /// `Some(w)`: a token sees itself and the `w - 1` before it.
    pub sliding_window: Option<u32>,
}

/// Non-linearity of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `silu(gate) * up`, of two projections, with `silu(x) = x * sigmoid(x)`.
    Silu,
    /// `x * (1 + erf(x / sqrt 2)) / 2`, of one projection.
    Gelu,
}

/// Norms of the residual stream. Their place decides the names of their weights too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norms {
    /// RMSNorm on the way into attention, into the MLP and out of the last layer.
    RmsBefore,
    /// LayerNorm of the embedding, and of each sum of a block's input and output (BERT).
    LayerAfter,
}

/// How tokens know their places.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// Queries and keys are rotated.
    Rotary(RopeSpec),
    /// A learned vector is added to the embedding.
    Learned {
        /// Rows of the checkpoint's table.
        rows: usize,
        /// Of these, the first position's (RoBERTa's tables begin with rows that stand for padding).
        first: usize,
        /// Kinds of text in a prompt that are told apart by a vector of their own (token types); at least 1.
        types: usize,
    },
}

/// Rotary position embedding over the whole head, in the two-halves ("NeoX") form.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    /// Base of the geometric series of wave lengths.
    pub theta: f64,
    /// How wave lengths are stretched beyond the length of pre-training.
    pub scaling: RopeScaling,
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
}

impl ModelSpec {
    /// Elements of all weights.
    pub fn num_parameters(&self) -> usize {
        let attention = &self.attention;
        let (hidden, inner, qkv) = (self.hidden_size, self.intermediate_size, self.qkv_size());
        let biases = usize::from(attention.qkv_bias) * qkv
            + usize::from(attention.output_bias) * hidden
            + usize::from(self.mlp_bias) * (self.mlp_input_size() + hidden);
        let norm = match self.norms {
            Norms::RmsBefore => hidden,
            Norms::LayerAfter => 2 * hidden,
        };
        let norms = 2 * norm + usize::from(attention.qk_norm) * 2 * attention.head_dim;
        let products = hidden * (qkv + self.attention_size() + self.mlp_input_size() + inner);
        let positions = match self.positions {
            Positions::Rotary(_) => 0,
            Positions::Learned { rows, types, .. } => (rows + types) * hidden,
        };
        let embeddings = if self.lm_head == LmHead::Own { 2 } else { 1 };
        let embedding = embeddings * self.vocab_size * hidden + positions;
        let head = self.classifier.map_or(0, |head| match head.form {
            ClassifierForm::Linear => head.num_labels * hidden,
            ClassifierForm::Pooler | ClassifierForm::TwoLayers => (hidden + head.num_labels) * (hidden + 1),
        });
        self.layers.len() * (products + biases + norms) + embedding + norm + head
    }

    /// The hidden state that stands for a text if nobody says which: the last of a causal model has seen it all,
    /// and encoders are trained for their first.
    pub fn default_pooling(&self) -> Pooling {
        if self.causal { Pooling::Last } else { Pooling::Cls }
    }

    /// The rotation, if there is one.
    pub fn rope(&self) -> Option<&RopeSpec> {
        match &self.positions {
            Positions::Rotary(rope) => Some(rope),
            Positions::Learned { .. } => None,
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
            Positions::Learned { .. } | Positions::Rotary(_) => 0,
        }
    }

    /// The same model as one to be pooled, whether it could generate or not.
    pub fn for_pooling(self) -> Self {
        Self { lm_head: LmHead::None, ..self }
    }

    /// The products of a forward pass and its logits, each shape once.
    pub fn linear_shapes(&self, limits: &StepLimits) -> Vec<LinearShape> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let layer = |n, k, has_bias| LinearShape {
            n,
            k,
            has_bias,
            output: BufferRole::Activation,
            max_rows: limits.max_num_batched_tokens,
        };
        let mut shapes = vec![
            layer(self.qkv_size(), hidden, self.attention.qkv_bias),
            layer(hidden, self.attention_size(), self.attention.output_bias),
            layer(self.mlp_input_size(), hidden, self.mlp_bias),
            layer(hidden, inner, self.mlp_bias),
        ];
        if self.lm_head != LmHead::None {
            shapes.push(LinearShape {
                output: BufferRole::Logits,
                max_rows: limits.max_logits_rows,
                ..layer(self.vocab_size, hidden, false)
            });
        }
        shapes
    }

    /// Rows of the fused query, key and value projection: `(num_heads + 2 num_kv_heads) * head_dim`.
    pub fn qkv_size(&self) -> usize {
        (self.attention.num_heads + 2 * self.attention.num_kv_heads) * self.attention.head_dim
    }

    /// Rows of the MLP's first projection.
    pub fn mlp_input_size(&self) -> usize {
        match self.activation {
            Activation::Silu => 2 * self.intermediate_size,
            Activation::Gelu => self.intermediate_size,
        }
    }

    /// Width of what attention gives: `num_heads * head_dim`.
    pub fn attention_size(&self) -> usize {
        self.attention.num_heads * self.attention.head_dim
    }
}
