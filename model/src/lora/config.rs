//! [`AdapterConfig`]: PEFT's adapter_config.json.
//!
//! Most of its fields tell how the adapter was trained, or which modules it has; the tensors say the latter
//! themselves. Fields that change what is computed are honoured, or refused by name.

use serde_json::{Map, Value};

use super::error::LoraError;

/// What of adapter_config.json matters for computing.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// The rank of modules that no pattern names.
    pub rank: usize,
    /// Whether some modules have a rank of their own: then only the tensors tell it.
    pub has_rank_pattern: bool,
    alpha: f64,
    /// By module, or the end of its name.
    alphas: Vec<(String, f64)>,
    rank_stabilised: bool,
}

/// Fields that must say nothing (null, false, or empty), and what they would ask for.
const NOT_BUILT: &[(&str, &str)] = &[
    ("use_dora", "DoRA adapter loading is not implemented yet"),
    ("modules_to_save", "this server only supports modules_to_save being None"),
    ("lora_bias", "a bias of its own is not supported"),
    ("layer_replication", "repeated layers are not supported"),
    ("trainable_token_indices", "embeddings of its own are not supported"),
    ("target_parameters", "adapters of experts and other bare parameters are not supported"),
    ("alora_invocation_tokens", "adapters that begin in the middle of a prompt (aLoRA) are not supported"),
    ("use_qalora", "grouped inputs (QA-LoRA) are not supported"),
    ("use_bdlora", "block-diagonal matrices (BD-LoRA) are not supported"),
    ("arrow_config", "routing between adapters (Arrow) is not supported"),
];

/// Ways to begin training that leave the model's own weights as they were. After others the adapter fits only
/// weights that nobody has stored.
const PLAIN_STARTS: &[&str] = &["gaussian", "eva", "orthogonal"];

impl AdapterConfig {
    /// Reads and checks a whole file.
    pub fn from_json(text: &str) -> Result<Self, LoraError> {
        let value: Value = serde_json::from_str(text).map_err(|e| wrong("", format!("not JSON: {e}")))?;
        let Value::Object(fields) = value else { return Err(wrong("", "not an object")) };
        check(&fields)?;
        let rank = fields.get("r").and_then(Value::as_u64).filter(|rank| *rank > 0);
        let rank = rank.and_then(|rank| usize::try_from(rank).ok());
        let alpha = fields.get("lora_alpha").and_then(Value::as_f64);
        Ok(Self {
            rank: rank.ok_or_else(|| wrong("r", "must be a number, at least 1"))?,
            has_rank_pattern: !object(&fields, "rank_pattern")?.is_empty(),
            alpha: alpha.ok_or_else(|| wrong("lora_alpha", "must be a number"))?,
            alphas: alphas(&object(&fields, "alpha_pattern")?)?,
            rank_stabilised: is_set(&fields, "use_rslora"),
        })
    }

    /// The factor on what a module of this rank adds.
    pub fn scaling(&self, module: &str, rank: usize) -> f32 {
        // PEFT looks for the pattern at the end of the name, where a part of it begins.
        let matches = |pattern: &str| {
            module.strip_suffix(pattern).is_some_and(|front| front.is_empty() || front.ends_with('.'))
        };
        let own = self.alphas.iter().find(|(pattern, _)| matches(pattern));
        let alpha = own.map_or(self.alpha, |(_, alpha)| *alpha);
        let rank = rank as f64;
        (alpha / if self.rank_stabilised { rank.sqrt() } else { rank }) as f32
    }
}

/// Refuses what is not built.
fn check(fields: &Map<String, Value>) -> Result<(), LoraError> {
    match fields.get("peft_type") {
        None => {}
        Some(Value::String(kind)) if kind == "LORA" => {}
        Some(other) => return Err(wrong("peft_type", format!("only \"LORA\" is supported, got {other}"))),
    }
    match fields.get("bias") {
        None | Some(Value::Null) => {}
        Some(Value::String(bias)) if bias == "none" => {}
        Some(other) => return Err(wrong("bias", format!("only \"none\" is supported, got {other}"))),
    }
    if let Some(Value::String(start)) = fields.get("init_lora_weights")
        && !PLAIN_STARTS.contains(&start.as_str())
    {
        let reason = format!(
            "{start:?} trains against changed weights of the model; convert the adapter when saving it \
             (path_initial_model_for_weight_conversion)"
        );
        return Err(wrong("init_lora_weights", reason));
    }
    match NOT_BUILT.iter().find(|(field, _)| is_set(fields, field)) {
        Some((field, reason)) => Err(wrong(field, *reason)),
        None => Ok(()),
    }
}

fn is_set(fields: &Map<String, Value>, field: &str) -> bool {
    match fields.get(field) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(map)) => !map.is_empty(),
        Some(_) => true,
    }
}

fn object(fields: &Map<String, Value>, field: &str) -> Result<Map<String, Value>, LoraError> {
    match fields.get(field) {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(map)) => Ok(map.clone()),
        Some(other) => Err(wrong(field, format!("must be an object, got {other}"))),
    }
}

/// Patterns are regular expressions in PEFT; those that are plain names mean the same without.
fn alphas(pattern: &Map<String, Value>) -> Result<Vec<(String, f64)>, LoraError> {
    let entry = |(name, alpha): (&String, &Value)| {
        let name = name.strip_prefix('^').unwrap_or(name);
        let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'));
        match alpha.as_f64() {
            Some(alpha) if is_plain => Ok((name.to_owned(), alpha)),
            Some(_) => Err(wrong("alpha_pattern", format!("{name:?}: only plain names are supported"))),
            None => Err(wrong("alpha_pattern", format!("{name:?}: must be a number"))),
        }
    };
    pattern.iter().map(entry).collect()
}

fn wrong(field: &str, reason: impl Into<String>) -> LoraError {
    LoraError::Config { field: field.into(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(change: Value) -> Result<AdapterConfig, LoraError> {
        let mut fields = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 12, "target_modules": ["q_proj"]});
        for (name, value) in change.as_object().unwrap() {
            fields[name] = value.clone();
        }
        AdapterConfig::from_json(&fields.to_string())
    }

    #[test]
    fn the_factor_follows_from_alpha_rank_and_patterns() {
        let plain = read(json!({"bias": "none", "use_dora": false, "modules_to_save": null})).unwrap();
        assert_eq!(plain.scaling("model.layers.0.self_attn.q_proj", 4), 3.0);
        assert_eq!(read(json!({"use_rslora": true})).unwrap().scaling("q_proj", 4), 6.0);
        let patterned = read(json!({"alpha_pattern": {"q_proj": 8, "layers.1.mlp.up_proj": 2.0}})).unwrap();
        for (module, scaling) in [
            ("model.layers.0.self_attn.q_proj", 2.0),
            ("model.layers.1.mlp.up_proj", 0.5),
            ("model.layers.11.mlp.up_proj", 3.0),
            ("model.layers.0.self_attn.not_q_proj", 3.0),
        ] {
            assert_eq!(patterned.scaling(module, 4), scaling, "{module}");
        }
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        for (field, value) in [
            ("peft_type", json!("IA3")),
            ("bias", json!("all")),
            ("use_dora", json!(true)),
            ("modules_to_save", json!(["lm_head"])),
            ("lora_bias", json!(true)),
            ("layer_replication", json!([[0, 1]])),
            ("target_parameters", json!(["mlp.experts.gate_up_proj"])),
            ("init_lora_weights", json!("pissa_niter_4")),
            ("r", json!(0)),
            ("r", json!("eight")),
            ("lora_alpha", Value::Null),
            ("rank_pattern", json!(1)),
            ("alpha_pattern", json!({"q_proj": "x"})),
            ("alpha_pattern", json!({"(q|k)_proj": 1})),
        ] {
            let error = read(json!({ field: value })).unwrap_err();
            assert!(matches!(&error, LoraError::Config { field: named, .. } if named == field), "{error}");
        }
        assert!(AdapterConfig::from_json("[]").is_err() && AdapterConfig::from_json("{").is_err());
    }
}
