//! config.json of BERT and its relatives as a [`ModelSpec`]: encoders, which are there to be pooled.

use serde::Deserialize;
use serde_json::Value;

use crate::error::ModelError;
use crate::hf_config::{parse, positive, stored_dtype, unsupported};
use crate::labels::num_labels;
use crate::spec::{
    Activation, AttentionSpec, ClassifierForm, ClassifierSpec, LayerSpec, LmHead, ModelSpec, Norms, Positions,
};

/// The architectures. They differ in where their table of positions begins, and in their heads.
pub(crate) const ENCODERS: [&str; 6] = [
    "BertModel",
    "RobertaModel",
    "XLMRobertaModel",
    "BertForSequenceClassification",
    "RobertaForSequenceClassification",
    "XLMRobertaForSequenceClassification",
];

/// The fields of config.json that matter here; defaults are those of transformers' `BertConfig`.
#[derive(Deserialize)]
struct EncoderConfig {
    #[serde(default)]
    architectures: Vec<String>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    max_position_embeddings: Option<usize>,
    layer_norm_eps: Option<f32>,
    hidden_act: Option<String>,
    position_embedding_type: Option<String>,
    type_vocab_size: Option<usize>,
    pad_token_id: Option<usize>,
    is_decoder: Option<bool>,
    add_cross_attention: Option<bool>,
    torch_dtype: Option<String>,
    dtype: Option<String>,
    quantization_config: Option<Value>,
}

/// The encoder that the text of a config.json describes; `None` if it describes something else.
pub(crate) fn encoder_spec(config: &str) -> Result<Option<ModelSpec>, ModelError> {
    #[derive(Deserialize)]
    struct Name {
        #[serde(default)]
        architectures: Vec<String>,
    }
    match &parse::<Name>("config.json", config)?.architectures[..] {
        [name] if ENCODERS.contains(&name.as_str()) => {
            let labels = num_labels(config)?;
            parse::<EncoderConfig>("config.json", config)?.to_spec(labels).map(Some)
        }
        _ => Ok(None),
    }
}

impl EncoderConfig {
    fn to_spec(&self, num_labels: usize) -> Result<ModelSpec, ModelError> {
        self.refuse_what_is_not_there()?;
        let hidden_size = positive("hidden_size", self.hidden_size)?;
        let num_heads = positive("num_attention_heads", self.num_attention_heads)?;
        if !hidden_size.is_multiple_of(num_heads) {
            let reason = format!("{num_heads} does not divide hidden_size = {hidden_size}");
            return Err(ModelError::Config { field: "num_attention_heads", reason });
        }
        let head_dim = hidden_size / num_heads;
        let first = self.first_position();
        let rows = positive("max_position_embeddings", self.max_position_embeddings)?;
        let max_position_embeddings = positive("max_position_embeddings", rows.checked_sub(first))?;
        let layers = positive("num_hidden_layers", self.num_hidden_layers)?;
        let types = positive("type_vocab_size", self.type_vocab_size.or(Some(2)))?;
        Ok(ModelSpec {
            architecture: self.architectures[0].clone(),
            dtype: stored_dtype(self.dtype.as_deref().or(self.torch_dtype.as_deref()))?,
            vocab_size: positive("vocab_size", self.vocab_size)?,
            hidden_size,
            intermediate_size: positive("intermediate_size", self.intermediate_size)?,
            activation: Activation::Gelu,
            mlp_bias: true,
            max_position_embeddings,
            norms: Norms::LayerAfter,
            norm_eps: self.layer_norm_eps.unwrap_or(1e-12),
            attention: AttentionSpec {
                num_heads,
                num_kv_heads: num_heads,
                head_dim,
                qkv_bias: true,
                output_bias: true,
                qk_norm: false,
                scale: (head_dim as f32).powf(-0.5),
                softcap: None,
            },
            positions: Positions::Learned { rows, first, types },
            causal: false,
            layers: vec![LayerSpec { sliding_window: None }; layers],
            lm_head: LmHead::None,
            classifier: self.classifier_form().map(|form| ClassifierSpec { num_labels, form }),
            eos_token_ids: Vec::new(),
        })
    }

    /// RoBERTa counts positions from the padding token's id on, and the first one stands for padding itself.
    fn first_position(&self) -> usize {
        if self.is_bert() { 0 } else { self.pad_token_id.unwrap_or(1) + 1 }
    }

    fn is_bert(&self) -> bool {
        self.architectures[0].starts_with("Bert")
    }

    fn classifier_form(&self) -> Option<ClassifierForm> {
        let form = if self.is_bert() { ClassifierForm::Pooler } else { ClassifierForm::TwoLayers };
        self.architectures[0].ends_with("ForSequenceClassification").then_some(form)
    }

    fn refuse_what_is_not_there(&self) -> Result<(), ModelError> {
        if let Some(other) = self.hidden_act.as_deref().filter(|act| *act != "gelu") {
            return Err(unsupported("hidden_act", other, "gelu"));
        }
        if let Some(other) = self.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
            return Err(unsupported("position_embedding_type", other, "absolute"));
        }
        if self.is_decoder == Some(true) || self.add_cross_attention == Some(true) {
            return Err(unsupported("is_decoder or add_cross_attention", true, "false"));
        }
        if let Some(config) = &self.quantization_config {
            return Err(unsupported("quantization_config", config, "unquantised weights"));
        }
        Ok(())
    }
}
