//! The settings of a GGUF file as the text of a config.json and a generation_config.json, so that an architecture is
//! one mapping, wherever a model comes from.
//!
//! Names of keys are those of llama.cpp's `gguf-py/gguf/constants.py`, defaults those of its loader.

use serde_json::{Map, Value, json};

use super::architecture::{Architecture, Kind};
use super::file::GgufFile;
use super::names::{LLAMA_FACTORS, LONG_FACTORS, SHORT_FACTORS};
use crate::error::ModelError;
use crate::ggml::{GgmlType, decode_row};

impl GgufFile {
    /// The text of config.json. Fails if a setting is missing, is of another type, or has no meaning.
    pub fn config_json(&self) -> Result<String, ModelError> {
        let settings = || -> Result<Map<String, Value>, String> {
            let architecture = Architecture::of(self.metadata())?;
            let settings = Settings { file: self, architecture };
            let mut config = settings.common()?;
            config.extend(settings.of_kind()?);
            if let Some(scaling) = settings.rope_scaling()? {
                config.insert("rope_scaling".into(), scaling);
            }
            Ok(config)
        };
        settings().map(|config| Value::Object(config).to_string()).map_err(|reason| self.malformed(reason))
    }

    /// The text of generation_config.json: what the model's makers suggest to sample with.
    pub fn generation_config_json(&self) -> Result<String, ModelError> {
        let metadata = self.metadata();
        let mut config = Map::new();
        for (field, key) in [
            ("temperature", "general.sampling.temp"),
            ("top_p", "general.sampling.top_p"),
            ("min_p", "general.sampling.min_p"),
            ("repetition_penalty", "general.sampling.penalty_repeat"),
        ] {
            let value = metadata.number(key).map_err(|reason| self.malformed(reason))?;
            config.extend(value.map(|value| (field.into(), shortest(value))));
        }
        let top_k = metadata.integer("general.sampling.top_k").map_err(|reason| self.malformed(reason))?;
        config.extend(top_k.map(|value| ("top_k".into(), value.into())));
        Ok(Value::Object(config).to_string())
    }

    /// That this is wrong with the file.
    pub(super) fn malformed(&self, reason: String) -> ModelError {
        ModelError::Malformed { path: self.path().into(), reason }
    }
}

/// A number that was an f32 as one writes it: 0.6 and not 0.60000002384.
fn shortest(value: f64) -> Value {
    let text = (value as f32).to_string();
    text.parse::<f64>().ok().and_then(serde_json::Number::from_f64).map_or(Value::Null, Value::Number)
}

/// The settings of one file.
struct Settings<'a> {
    file: &'a GgufFile,
    architecture: Architecture,
}

impl Settings<'_> {
    fn common(&self) -> Result<Map<String, Value>, String> {
        let head_dim = self.head_dim()?;
        let head_count = self.need("attention.head_count")?;
        let mut config = Map::new();
        let mut set = |field: &str, value: Value| config.insert(field.into(), value);
        set("architectures", json!([self.architecture.hf_name]));
        set("torch_dtype", self.dtype().into());
        set("vocab_size", self.vocab_size()?.into());
        set("hidden_size", self.need("embedding_length")?.into());
        // Where every layer is a mixture, some files have only the width of an expert.
        let inner = self.size("feed_forward_length")?.or(self.size("expert_feed_forward_length")?);
        set("intermediate_size", inner.ok_or_else(|| self.missing("feed_forward_length"))?.into());
        set("num_hidden_layers", self.num_layers()?.into());
        set("num_attention_heads", head_count.into());
        set("num_key_value_heads", self.size("attention.head_count_kv")?.unwrap_or(head_count).into());
        set("head_dim", head_dim.into());
        set("max_position_embeddings", self.need("context_length")?.into());
        let eps = self.number("attention.layer_norm_rms_epsilon")?;
        set("rms_norm_eps", eps.ok_or_else(|| self.missing("attention.layer_norm_rms_epsilon"))?.into());
        set("rope_theta", self.number("rope.freq_base")?.unwrap_or(10_000.0).into());
        set("tie_word_embeddings", self.file.tensor("output.weight").is_none().into());
        set("eos_token_id", self.end_tokens()?.into());
        let metadata = self.file.metadata();
        set("bos_token_id", metadata.integer("tokenizer.ggml.bos_token_id")?.into());
        match self.size("rope.dimension_count")? {
            Some(rotated) if rotated != head_dim => {
                if self.architecture.kind == Kind::Llama {
                    let key = self.key("rope.dimension_count");
                    return Err(format!(
                        "key {key:?}: {rotated} is not supported; supported: the whole head, {head_dim}"
                    ));
                }
                // Such that its product with the width of a head is not just below the number.
                let share = rotated as f64 / head_dim as f64;
                let is_less = ((share * head_dim as f64) as u64) < rotated;
                set("partial_rotary_factor", if is_less { share.next_up() } else { share }.into());
            }
            _ => {}
        }
        Ok(config)
    }

    /// What only some architectures have.
    fn of_kind(&self) -> Result<Map<String, Value>, String> {
        let mut config = Map::new();
        let window = self.size("attention.sliding_window")?.filter(|window| *window > 0);
        match (self.architecture.kind, self.architecture.name) {
            (Kind::Llama, _) if self.architecture.num_experts > 0 => {
                config.insert("num_local_experts".into(), self.architecture.num_experts.into());
                config.insert("num_experts_per_tok".into(), self.need("expert_used_count")?.into());
            }
            (Kind::Llama, _) => {
                config.insert("attention_bias".into(), self.has("blk.0.attn_q.bias").into());
                config.insert("mlp_bias".into(), self.has("blk.0.ffn_gate.bias").into());
                if let Some(window) = window {
                    config.insert("architectures".into(), json!(["MistralForCausalLM"]));
                    config.insert("sliding_window".into(), window.into());
                }
            }
            (Kind::Plain, name) => {
                config.insert("use_sliding_window".into(), window.is_some().into());
                if let Some(window) = window {
                    config.insert("sliding_window".into(), window.into());
                    config.insert("max_window_layers".into(), 0.into());
                }
                if self.architecture.num_experts > 0 {
                    config.extend(self.of_qwen_experts(name == "qwen3moe")?);
                }
            }
            (Kind::Phi3, _) => {
                config.insert("sliding_window".into(), window.into());
                let original = self.size("rope.scaling.original_context_length")?;
                config.extend(original.map(|length| (ORIGINAL_LENGTH.into(), length.into())));
            }
            (Kind::Gemma, _) => {
                config.insert("hidden_activation".into(), "gelu_pytorch_tanh".into());
                config.insert("hidden_act".into(), "gelu_pytorch_tanh".into());
            }
            (Kind::Gemma2, name) => config.extend(self.of_gemma(name == "gemma3", window)?),
        }
        Ok(config)
    }

    fn of_qwen_experts(&self, third: bool) -> Result<Map<String, Value>, String> {
        let mut config = Map::new();
        let mut set = |field: &str, value: Value| config.insert(field.into(), value);
        set("num_experts", self.architecture.num_experts.into());
        set("num_experts_per_tok", self.need("expert_used_count")?.into());
        // Older files do not say it: it is then what the second projection takes.
        let own = |key: &str, tensor: &str| -> Result<Value, String> {
            let of_tensor = || Some(*self.file.tensor(tensor)?.0.shape.last()? as u64);
            self.size(key)?.or_else(of_tensor).map(Value::from).ok_or_else(|| self.missing(key))
        };
        set("moe_intermediate_size", own("expert_feed_forward_length", "blk.0.ffn_down_exps.weight")?);
        set("norm_topk_prob", third.into());
        if !third {
            let shared = own("expert_shared_feed_forward_length", "blk.0.ffn_down_shexp.weight")?;
            set("shared_expert_intermediate_size", shared);
            set("qkv_bias", self.has("blk.0.attn_q.bias").into());
        }
        Ok(config)
    }

    fn of_gemma(&self, third: bool, window: Option<u64>) -> Result<Map<String, Value>, String> {
        let mut config = Map::new();
        let mut set = |field: &str, value: Value| config.insert(field.into(), value);
        set("hidden_activation", "gelu_pytorch_tanh".into());
        set("sliding_window", window.ok_or_else(|| self.missing("attention.sliding_window"))?.into());
        // Queries are scaled by the width of a head, but in the largest models by what a head is of the residual
        // stream. No key tells which, so it is known by the number of layers, as in llama.cpp.
        let num_layers = self.num_layers()?;
        let scalar = match num_layers == if third { 62 } else { 46 } {
            true => self.need("embedding_length")? / self.need("attention.head_count")?.max(1),
            false => self.head_dim()?,
        };
        set("query_pre_attn_scalar", scalar.into());
        let softcap = |name, default: Option<f64>| -> Result<Value, String> {
            Ok(self.number(name)?.or(default).filter(|cap| *cap != 0.0).into())
        };
        let default = |cap| if third { None } else { Some(cap) };
        set("attn_logit_softcapping", softcap("attn_logit_softcapping", default(50.0))?);
        set("final_logit_softcapping", softcap("final_logit_softcapping", default(30.0))?);
        let period = if third { 6 } else { 2 };
        let kind = |layer: u64| {
            if (layer + 1).is_multiple_of(period) { "full_attention" } else { "sliding_attention" }
        };
        set("layer_types", (0..num_layers).map(kind).collect::<Vec<_>>().into());
        if third {
            set("rope_local_base_freq", self.number("rope.freq_base_swa")?.unwrap_or(10_000.0).into());
        }
        Ok(config)
    }

    fn rope_scaling(&self) -> Result<Option<Value>, String> {
        let attention_factor = self.number("rope.scaling.attn_factor")?;
        let (long, short) = (self.factors(LONG_FACTORS)?, self.factors(SHORT_FACTORS)?);
        if let (Some(long), Some(short)) = (long, short) {
            let mut scaling = json!({"rope_type": "longrope", "long_factor": long, "short_factor": short});
            if let Some(factor) = attention_factor {
                scaling["attention_factor"] = factor.into();
            }
            return Ok(Some(scaling));
        }
        // The factors of Llama 3.1 are stored themselves, not what they follow from.
        if let Some(factors) = self.factors(LLAMA_FACTORS)? {
            return Ok(Some(json!({
                "rope_type": "longrope", "long_factor": factors, "short_factor": factors, "attention_factor": 1.0,
            })));
        }
        let key = self.key("rope.scaling.type");
        let factor = self.number("rope.scaling.factor")?.or(self.number("rope.scale_linear")?);
        let kind = match (self.file.metadata().word(&key)?, factor) {
            (None, Some(factor)) if factor != 0.0 && factor != 1.0 => "linear",
            (None, _) => "none",
            (Some(kind), _) => kind,
        };
        let need_factor = || factor.ok_or_else(|| self.missing("rope.scaling.factor"));
        match kind {
            "none" | "longrope" => Ok(None),
            "linear" => Ok(Some(json!({"rope_type": "linear", "factor": need_factor()?}))),
            "yarn" => {
                let original = self.need("rope.scaling.original_context_length")?;
                let factor = need_factor()?;
                let mut scaling = json!({"rope_type": "yarn", "factor": factor, ORIGINAL_LENGTH: original});
                if let Some(more) = attention_factor {
                    // On top of YaRN's own.
                    scaling["attention_factor"] = (more * (0.1 * factor.max(1.0).ln() + 1.0)).into();
                }
                for (field, name) in [
                    ("beta_fast", "rope.scaling.yarn_beta_fast"),
                    ("beta_slow", "rope.scaling.yarn_beta_slow"),
                ] {
                    if let Some(value) = self.number(name)? {
                        scaling[field] = value.into();
                    }
                }
                Ok(Some(scaling))
            }
            other => Err(format!(
                "key {key:?}: {other:?} is not supported; supported: none, linear, yarn, longrope"
            )),
        }
    }

    /// The numbers of a vector.
    fn factors(&self, name: &str) -> Result<Option<Vec<f32>>, String> {
        let Some((info, bytes)) = self.file.tensor(name) else { return Ok(None) };
        if info.shape.len() != 1 || info.kind != GgmlType::F32 {
            return Err(format!("tensor {name:?} is not a vector in F32"));
        }
        let mut factors = vec![0.0; info.shape[0]];
        decode_row(info.kind, bytes, 0..info.shape[0], &mut factors);
        Ok(Some(factors))
    }

    /// Rows of the embedding; the tokenizer may have fewer.
    fn vocab_size(&self) -> Result<usize, String> {
        match self.file.tensor("token_embd.weight").map(|(info, _)| &info.shape[..]) {
            Some([rows, _]) => Ok(*rows),
            Some(shape) => {
                Err(format!("tensor \"token_embd.weight\" has shape {shape:?}, not two dimensions"))
            }
            None => Err("it has no tensor \"token_embd.weight\"".into()),
        }
    }

    /// What weights of full precision would be held in: the file's own, if it has a plain one.
    fn dtype(&self) -> &'static str {
        match self.file.tensor("token_embd.weight").map(|(info, _)| info.kind) {
            Some(GgmlType::F32) => "float32",
            Some(GgmlType::Bf16) => "bfloat16",
            _ => "float16",
        }
    }

    fn head_dim(&self) -> Result<u64, String> {
        let (hidden, heads) = (self.need("embedding_length")?, self.need("attention.head_count")?);
        let Some(head_dim) = self.size("attention.key_length")? else {
            return hidden
                .checked_div(heads)
                .ok_or_else(|| format!("key {:?}: 0 heads", self.key("attention.head_count")));
        };
        match self.size("attention.value_length")? {
            Some(other) if other != head_dim => {
                let key = self.key("attention.value_length");
                Err(format!(
                    "key {key:?}: {other} is not supported; supported: the length of keys, {head_dim}"
                ))
            }
            _ => Ok(head_dim),
        }
    }

    /// The token that ends a text, and those that end a turn or a message. Few files name them all, so those that go
    /// by the names of well-known models are taken for what they are, as in llama.cpp.
    fn end_tokens(&self) -> Result<Vec<u64>, String> {
        let metadata = self.file.metadata();
        let mut ids = Vec::new();
        for kind in ["eos", "eot", "eom"] {
            ids.extend(metadata.integer(&format!("tokenizer.ggml.{kind}_token_id"))?);
        }
        let tokens = metadata.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
        let kinds = metadata.numbers("tokenizer.ggml.token_type")?.unwrap_or_default();
        let is_end =
            |(token, kind): (&String, &f64)| *kind == CONTROL && END_TOKENS.contains(&token.as_str());
        let by_name = tokens.iter().zip(kinds).enumerate().filter(|(_, token)| is_end(*token));
        ids.extend(by_name.map(|(id, _)| id as u64));
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture.name)
    }

    fn missing(&self, name: &str) -> String {
        format!("key {:?} is missing", self.key(name))
    }

    fn has(&self, tensor: &str) -> bool {
        self.file.tensor(tensor).is_some()
    }

    fn number(&self, name: &str) -> Result<Option<f64>, String> {
        self.file.metadata().number(&self.key(name))
    }

    fn size(&self, name: &str) -> Result<Option<u64>, String> {
        let key = self.key(name);
        match self.file.metadata().integer_of_layers(&key)? {
            Some(size) if size > MAX_SIZE => Err(format!("key {key:?}: {size}; at most {MAX_SIZE}")),
            size => Ok(size),
        }
    }

    /// Each layer has tensors, so there are no more layers than these.
    fn num_layers(&self) -> Result<u64, String> {
        let (count, num_tensors) = (self.need("block_count")?, self.file.tensors().count());
        if count <= num_tensors as u64 {
            return Ok(count);
        }
        Err(format!("key {:?}: {count} layers, and there are {num_tensors} tensors", self.key("block_count")))
    }

    fn need(&self, name: &str) -> Result<u64, String> {
        self.size(name)?.ok_or_else(|| self.missing(name))
    }
}

/// Of any setting: widths, counts, and positions.
const MAX_SIZE: u64 = 1 << 28;

const ORIGINAL_LENGTH: &str = "original_max_position_embeddings";

/// In `tokenizer.ggml.token_type`: a token that no text contains.
const CONTROL: f64 = 3.0;

/// What well-known models end their turns with.
const END_TOKENS: [&str; 11] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
];
