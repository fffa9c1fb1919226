//! The models there are: each family a file that maps its config.json to a [`ModelSpec`] and names its weights.
//!
//! Only settings that the forward pass honours are accepted; every other value of a setting that would change the
//! numbers is refused by name. Defaults are those of transformers' config classes.

mod bert;
mod cohere;
pub(crate) mod config;
mod decoder;
mod deepseek;
mod falcon;
mod gemma;
mod gpt;
mod gpt_oss;
mod granite;
mod llama;
mod mixtral;
mod mixtures;
pub(crate) mod names;
mod olmo;
mod openelm;
mod phi;
mod qwen;
mod qwen_moe;
mod rope;
mod smollm;
mod stablelm;

use std::path::Path;

use quire_scheduler::TokenId;
use serde_json::Value;

pub(crate) use self::config::parse;
use self::config::{Config, invalid};
use self::names::Names;
use crate::error::ModelError;
use crate::labels::num_labels;
use crate::quantization::Quantization;
use crate::spec::{ClassifierForm, ClassifierSpec, LmHead, ModelSpec};

/// Models that differ in nothing but sizes and settings.
pub(crate) struct Family {
    /// As in `architectures`, without what the model is there for (`ForCausalLM`, `Model`).
    stem: &'static str,
    /// What the model can be there for.
    heads: &'static [&'static str],
    /// The model of a config.json, as one that generates if it is a decoder.
    spec: fn(&Config) -> Result<ModelSpec, ModelError>,
    /// What its weights are called.
    pub(crate) names: &'static Names,
}

/// What names of architectures end in: one that generates, one without a head, one with a head of labels.
const GENERATES: &str = "ForCausalLM";
/// The same in GPT-2's time.
const LM_HEAD_MODEL: &str = "LMHeadModel";
const BARE: &str = "Model";
const CLASSIFIES: &str = "ForSequenceClassification";

const FAMILIES: [&Family; 33] = [
    &llama::LLAMA,
    &llama::MISTRAL,
    &llama::MINISTRAL,
    &qwen::QWEN2,
    &qwen::QWEN3,
    &phi::PHI3,
    &gemma::GEMMA,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &openelm::OPENELM,
    &olmo::OLMO2,
    &granite::GRANITE,
    &smollm::SMOLLM3,
    &stablelm::STABLELM,
    &gpt::GPT2,
    &gpt::GPT_NEOX,
    &falcon::FALCON,
    &cohere::COHERE,
    &cohere::COHERE2,
    &mixtral::MIXTRAL,
    &qwen_moe::QWEN2_MOE,
    &qwen_moe::QWEN3_MOE,
    &phi::PHIMOE,
    &phi::PHI_MOE,
    &olmo::OLMOE,
    &granite::GRANITE_MOE,
    &granite::GRANITE_MOE_SHARED,
    &deepseek::DEEPSEEK_V2,
    &deepseek::DEEPSEEK_V3,
    &gpt_oss::GPT_OSS,
    &bert::BERT,
    &bert::ROBERTA,
    &bert::XLM_ROBERTA,
];

/// The family of an architecture.
pub(crate) fn family_of(architecture: &str) -> Result<&'static Family, ModelError> {
    let is_it = |family: &&&Family| {
        architecture.strip_prefix(family.stem).is_some_and(|head| family.heads.contains(&head))
    };
    let supported = || -> Vec<String> {
        let of = |family: &&Family| -> Vec<String> {
            family.heads.iter().map(|head| format!("{}{head}", family.stem)).collect()
        };
        FAMILIES.iter().flat_map(of).collect()
    };
    FAMILIES.iter().find(is_it).copied().ok_or_else(|| ModelError::Architecture {
        found: architecture.into(),
        supported: supported().join(", "),
    })
}

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
        let num_labels = num_labels(config)?;
        let config = Config::parse(config)?;
        let architecture = config.architecture()?;
        let family = family_of(architecture)?;
        let spec = (family.spec)(&config)?;
        let form = classifier_form(&spec, architecture);
        let generates =
            spec.causal && [GENERATES, LM_HEAD_MODEL].iter().any(|head| architecture.ends_with(head));
        Ok(Self {
            architecture: architecture.into(),
            eos_token_ids: end_tokens(&config, generation_config)?,
            lm_head: if generates { spec.lm_head } else { LmHead::None },
            lm_head_bias: generates && spec.lm_head_bias,
            quantization: Quantization::from_config(config.get("quantization_config"))?,
            classifier: form.map(|form| ClassifierSpec { num_labels, form }),
            ..spec
        })
    }
}

/// The head of labels of an architecture that has one.
fn classifier_form(spec: &ModelSpec, architecture: &str) -> Option<ClassifierForm> {
    let form = match spec.causal {
        true => ClassifierForm::Linear,
        false if architecture.starts_with(bert::BERT.stem) => ClassifierForm::Pooler,
        false => ClassifierForm::TwoLayers,
    };
    architecture.ends_with(CLASSIFIES).then_some(form)
}

fn end_tokens(config: &Config, generation_config: Option<&str>) -> Result<Vec<TokenId>, ModelError> {
    let mut ids = token_ids(config.get("eos_token_id"))?;
    if let Some(text) = generation_config {
        let generation: Value = parse("generation_config.json", text)?;
        ids.extend(token_ids(generation.get("eos_token_id"))?);
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// One id, a list of ids, or nothing.
fn token_ids(value: Option<&Value>) -> Result<Vec<TokenId>, ModelError> {
    let id = |v: &Value| {
        v.as_u64()
            .and_then(|id| TokenId::try_from(id).ok())
            .ok_or_else(|| invalid("eos_token_id", format!("{v} is not a token id")))
    };
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().map(id).collect(),
        Some(single) => Ok(vec![id(single)?]),
    }
}
