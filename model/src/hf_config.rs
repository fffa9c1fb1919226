//! Hugging Face's config.json and generation_config.json as a [`ModelSpec`].
//!
//! Only settings that the forward pass honours are accepted; every other value of a setting that would
//! change the numbers is refused by name. Defaults are those of transformers' config classes.

use std::path::Path;

use quire_scheduler::TokenId;
use serde::Deserialize;
use serde_json::Value;

use crate::encoder_config::{ENCODERS, encoder_spec};
use crate::error::ModelError;
use crate::labels::num_labels;
use crate::spec::{
    Activation, AttentionSpec, ClassifierForm, ClassifierSpec, Dtype, LayerSpec, LmHead, ModelSpec, Norms,
    Positions, RopeScaling, RopeSpec,
};

impl ModelSpec {
    /// Reads config.json and, where there is one, generation_config.json from a model's directory.
    pub fn from_dir(dir: &Path) -> Result<Self, ModelError> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path).map_err(|source| ModelError::Io { path, source })
        };
        let config = read("config.json")?;
        let generation = match read("generation_config.json") {
            Ok(text) => Some(text),
            Err(ModelError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Self::from_json(&config, generation.as_deref())
    }

    /// The same from the files' text.
    pub fn from_json(config: &str, generation_config: Option<&str>) -> Result<Self, ModelError> {
        if let Some(encoder) = encoder_spec(config)? {
            return Ok(encoder);
        }
        let num_labels = num_labels(config)?;
        let config: HfConfig = parse("config.json", config)?;
        let family = config.family()?;
        let mut eos = token_ids("eos_token_id", config.eos_token_id.as_ref())?;
        if let Some(text) = generation_config {
            let generation: GenerationConfig = parse("generation_config.json", text)?;
            eos.extend(token_ids("eos_token_id", generation.eos_token_id.as_ref())?);
        }
        eos.sort_unstable();
        eos.dedup();
        let spec = config.to_spec(family, eos)?;
        let classifies = spec.architecture.ends_with(CLASSIFIER);
        let head = ClassifierSpec { num_labels, form: ClassifierForm::Linear };
        Ok(Self { classifier: classifies.then_some(head), ..spec })
    }
}

/// Families that share the straight line, by the ways in which their configs differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

/// What names of architectures with a head of labels end in.
const CLASSIFIER: &str = "ForSequenceClassification";

const FAMILIES: [(&str, Family); 12] = [
    ("LlamaForCausalLM", Family::Llama),
    ("MistralForCausalLM", Family::Mistral),
    ("Qwen2ForCausalLM", Family::Qwen2),
    ("Qwen3ForCausalLM", Family::Qwen3),
    ("LlamaModel", Family::Llama),
    ("MistralModel", Family::Mistral),
    ("Qwen2Model", Family::Qwen2),
    ("Qwen3Model", Family::Qwen3),
    ("LlamaForSequenceClassification", Family::Llama),
    ("MistralForSequenceClassification", Family::Mistral),
    ("Qwen2ForSequenceClassification", Family::Qwen2),
    ("Qwen3ForSequenceClassification", Family::Qwen3),
];

#[derive(Deserialize)]
struct GenerationConfig {
    eos_token_id: Option<Value>,
}

/// The fields of config.json that matter here; `Value` where transformers allows several forms.
#[derive(Deserialize)]
struct HfConfig {
    #[serde(default)]
    architectures: Vec<String>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f32>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    tie_word_embeddings: Option<bool>,
    sliding_window: Option<u32>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    partial_rotary_factor: Option<f64>,
    torch_dtype: Option<String>,
    dtype: Option<String>,
    eos_token_id: Option<Value>,
    quantization_config: Option<Value>,
}

impl HfConfig {
    fn family(&self) -> Result<Family, ModelError> {
        let [name] = &self.architectures[..] else {
            let reason = format!("must name exactly one architecture, not {:?}", self.architectures);
            return Err(ModelError::Config { field: "architectures", reason });
        };
        let found = FAMILIES.iter().find(|(known, _)| known == name);
        found.map(|(_, family)| *family).ok_or_else(|| ModelError::Architecture {
            found: name.clone(),
            supported: FAMILIES
                .map(|(known, _)| known)
                .into_iter()
                .chain(ENCODERS)
                .collect::<Vec<_>>()
                .join(", "),
        })
    }

    fn to_spec(&self, family: Family, eos_token_ids: Vec<TokenId>) -> Result<ModelSpec, ModelError> {
        if let Some(config) = &self.quantization_config {
            let method = config.get("quant_method").unwrap_or(config);
            return Err(unsupported("quantization_config", method, "unquantised weights"));
        }
        let hidden_size = positive("hidden_size", self.hidden_size)?;
        let num_layers = positive("num_hidden_layers", self.num_hidden_layers)?;
        Ok(ModelSpec {
            architecture: self.architectures[0].clone(),
            dtype: self.dtype()?,
            vocab_size: positive("vocab_size", self.vocab_size)?,
            hidden_size,
            intermediate_size: positive("intermediate_size", self.intermediate_size)?,
            activation: self.activation()?,
            mlp_bias: family == Family::Llama && self.mlp_bias.unwrap_or(false),
            max_position_embeddings: positive("max_position_embeddings", self.max_position_embeddings)?,
            norms: Norms::RmsBefore,
            norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
            attention: self.attention(family, hidden_size)?,
            positions: Positions::Rotary(self.rope()?),
            causal: true,
            layers: self.layers(family, num_layers)?,
            lm_head: self.lm_head(),
            classifier: None,
            eos_token_ids,
        })
    }

    /// An architecture of bare name (`Qwen3Model`) is the same without the head, and classifiers have another.
    fn lm_head(&self) -> LmHead {
        match self.tie_word_embeddings {
            _ if ["Model", CLASSIFIER].iter().any(|end| self.architectures[0].ends_with(end)) => LmHead::None,
            Some(true) => LmHead::Tied,
            Some(false) | None => LmHead::Own,
        }
    }

    fn dtype(&self) -> Result<Dtype, ModelError> {
        stored_dtype(self.dtype.as_deref().or(self.torch_dtype.as_deref()))
    }

    fn activation(&self) -> Result<Activation, ModelError> {
        match self.hidden_act.as_deref() {
            None | Some("silu") => Ok(Activation::Silu),
            Some(other) => Err(unsupported("hidden_act", other, "silu")),
        }
    }

    fn attention(&self, family: Family, hidden_size: usize) -> Result<AttentionSpec, ModelError> {
        let num_heads = positive("num_attention_heads", self.num_attention_heads)?;
        let num_kv_heads = positive("num_key_value_heads", self.num_key_value_heads.or(Some(num_heads)))?;
        if !num_heads.is_multiple_of(num_kv_heads) {
            let reason = format!("{num_kv_heads} does not divide num_attention_heads = {num_heads}");
            return Err(ModelError::Config { field: "num_key_value_heads", reason });
        }
        let head_dim = match (self.head_dim, family) {
            (Some(given), _) => given,
            (None, Family::Qwen3) => 128,
            (None, _) if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
            (None, _) => {
                let reason =
                    format!("missing, and {num_heads} heads do not divide hidden_size = {hidden_size}");
                return Err(ModelError::Config { field: "head_dim", reason });
            }
        };
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            let reason = format!("{head_dim} is not a positive even number");
            return Err(ModelError::Config { field: "head_dim", reason });
        }
        let bias = self.attention_bias.unwrap_or(false);
        Ok(AttentionSpec {
            num_heads,
            num_kv_heads,
            head_dim,
            // Fixed in Qwen2 (there) and Mistral (not there), a setting in the others.
            qkv_bias: family == Family::Qwen2 || (family != Family::Mistral && bias),
            output_bias: matches!(family, Family::Llama | Family::Qwen3) && bias,
            qk_norm: family == Family::Qwen3,
            scale: (head_dim as f32).powf(-0.5),
            softcap: None,
        })
    }

    /// Llama ignores `sliding_window`; Mistral applies it to every layer; Qwen has a switch and a first layer.
    /// `layer_types`, where given, overrules all of them.
    fn layers(&self, family: Family, num_layers: usize) -> Result<Vec<LayerSpec>, ModelError> {
        let window = self.sliding_window.filter(|_| match family {
            Family::Llama | Family::Mistral => true,
            Family::Qwen2 | Family::Qwen3 => self.use_sliding_window.unwrap_or(false),
        });
        if window == Some(0) {
            return Err(ModelError::Config { field: "sliding_window", reason: "must be at least 1".into() });
        }
        if let Some(types) = &self.layer_types {
            if types.len() != num_layers {
                let reason = format!("{} entries for num_hidden_layers = {num_layers}", types.len());
                return Err(ModelError::Config { field: "layer_types", reason });
            }
            return types.iter().map(|kind| layer_of_type(kind, window)).collect();
        }
        let first_windowed = match family {
            Family::Llama => num_layers,
            Family::Mistral => 0,
            Family::Qwen2 | Family::Qwen3 => self.max_window_layers.unwrap_or(28),
        };
        let layer = |i| LayerSpec { sliding_window: window.filter(|_| i >= first_windowed) };
        Ok((0..num_layers).map(layer).collect())
    }

    fn rope(&self) -> Result<RopeSpec, ModelError> {
        let parameters =
            self.rope_parameters.as_ref().or(self.rope_scaling.as_ref()).filter(|v| !v.is_null());
        let number = |name| parameters.and_then(|p| p.get(name)).and_then(Value::as_f64);
        let rotary = number("partial_rotary_factor").or(self.partial_rotary_factor);
        if let Some(part) = rotary.filter(|part| *part != 1.0) {
            return Err(unsupported("partial_rotary_factor", part, "1"));
        }
        let need = |name: &'static str| {
            number(name).filter(|n| *n > 0.0).ok_or_else(|| ModelError::Config {
                field: "rope_scaling",
                reason: format!("{name} must be a positive number"),
            })
        };
        let kind = match parameters.map(|p| (p, p.get("rope_type").or(p.get("type")))) {
            None => "default",
            Some((_, Some(kind))) => kind.as_str().unwrap_or("not a string"),
            Some((p, None)) => return Err(unsupported("rope_scaling", p, ROPE_KINDS)),
        };
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: need("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_max_position_embeddings: need("original_max_position_embeddings")?,
            },
            other => return Err(unsupported("rope_scaling.rope_type", other, ROPE_KINDS)),
        };
        let theta = number("rope_theta").or(self.rope_theta).unwrap_or(10_000.0);
        if !(theta.is_finite() && theta > 0.0) {
            return Err(ModelError::Config {
                field: "rope_theta",
                reason: format!("{theta} is not positive"),
            });
        }
        Ok(RopeSpec { theta, scaling })
    }
}

const ROPE_KINDS: &str = "default, linear, llama3 (the same for all layers)";

fn layer_of_type(kind: &str, window: Option<u32>) -> Result<LayerSpec, ModelError> {
    match (kind, window) {
        ("full_attention", _) => Ok(LayerSpec { sliding_window: None }),
        ("sliding_attention", Some(_)) => Ok(LayerSpec { sliding_window: window }),
        ("sliding_attention", None) => Err(ModelError::Config {
            field: "layer_types",
            reason: "sliding_attention needs sliding_window (and use_sliding_window where the family has it)"
                .into(),
        }),
        (other, _) => Err(unsupported("layer_types", other, "full_attention, sliding_attention")),
    }
}

pub(crate) fn parse<'a, T: Deserialize<'a>>(name: &str, text: &'a str) -> Result<T, ModelError> {
    serde_json::from_str(text)
        .map_err(|error| ModelError::Malformed { path: name.into(), reason: error.to_string() })
}

/// `dtype`, or `torch_dtype` in older files.
pub(crate) fn stored_dtype(name: Option<&str>) -> Result<Dtype, ModelError> {
    match name {
        None | Some("float32") => Ok(Dtype::F32),
        Some("bfloat16") => Ok(Dtype::Bf16),
        Some("float16") => Ok(Dtype::F16),
        Some(other) => Err(unsupported("dtype", other, "float32, bfloat16, float16")),
    }
}

pub(crate) fn positive(field: &'static str, value: Option<usize>) -> Result<usize, ModelError> {
    match value {
        Some(n) if n > 0 => Ok(n),
        Some(_) => Err(ModelError::Config { field, reason: "must be at least 1".into() }),
        None => Err(ModelError::Config { field, reason: "missing".into() }),
    }
}

pub(crate) fn unsupported(field: &'static str, found: impl ToString, supported: &'static str) -> ModelError {
    ModelError::Unsupported { field, found: found.to_string(), supported }
}

/// One id, a list of ids, or nothing.
fn token_ids(field: &'static str, value: Option<&Value>) -> Result<Vec<TokenId>, ModelError> {
    let id = |v: &Value| {
        v.as_u64()
            .and_then(|id| TokenId::try_from(id).ok())
            .ok_or_else(|| ModelError::Config { field, reason: format!("{v} is not a token id") })
    };
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().map(id).collect(),
        Some(single) => Ok(vec![id(single)?]),
    }
}
