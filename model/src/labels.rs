//! [`Labels`]: what the numbers of a classifier mean, from config.json.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::error::ModelError;
use crate::families::config::{invalid, parse, unsupported};

/// The labels of a classifier, and how its logits become probabilities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// By index; `None` where config.json has no name.
    pub names: Vec<Option<String>>,
    /// What is done to the logits unless a request wants them as they are.
    pub activation: LabelActivation,
}

/// What becomes of the logits of labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelActivation {
    /// Nothing.
    Identity,
    /// Each by itself: `1 / (1 + exp(-x))`.
    Sigmoid,
    /// All together: they add up to 1.
    Softmax,
}

#[derive(Deserialize)]
struct LabelConfig {
    id2label: Option<BTreeMap<String, Value>>,
    num_labels: Option<usize>,
    problem_type: Option<String>,
    sbert_ce_default_activation_function: Option<String>,
    sentence_transformers: Option<Value>,
}

/// How many labels a config.json names; transformers' default is 2.
pub(crate) fn num_labels(config: &str) -> Result<usize, ModelError> {
    let config: LabelConfig = parse("config.json", config)?;
    let named = config.id2label.as_ref().map(BTreeMap::len);
    match named.or(config.num_labels).unwrap_or(2) {
        0 => Err(invalid("id2label", "must name at least 1 label".into())),
        num_labels => Ok(num_labels),
    }
}

impl Labels {
    /// Of a model with `num_labels` of them.
    pub(crate) fn of(config: &str, num_labels: usize) -> Result<Self, ModelError> {
        let config: LabelConfig = parse("config.json", config)?;
        let name = |index: usize| match &config.id2label {
            Some(names) => names.get(&index.to_string()).and_then(|name| name.as_str().map(str::to_owned)),
            None => Some(format!("LABEL_{index}")),
        };
        Ok(Self { names: (0..num_labels).map(name).collect(), activation: config.activation(num_labels)? })
    }
}

impl LabelConfig {
    /// The kind of problem decides, or else the function of torch that a cross-encoder's files name, as in vLLM.
    fn activation(&self, num_labels: usize) -> Result<LabelActivation, ModelError> {
        let usual = if num_labels == 1 { LabelActivation::Sigmoid } else { LabelActivation::Softmax };
        match self.problem_type.as_deref() {
            None | Some("") => {}
            Some("regression") => return Ok(LabelActivation::Identity),
            Some("single_label_classification") => return Ok(usual),
            Some("multi_label_classification") => return Ok(LabelActivation::Sigmoid),
            Some(other) => {
                let known = "regression, single_label_classification, multi_label_classification";
                return Err(unsupported("problem_type", other, known));
            }
        }
        let own = self.sentence_transformers.as_ref().and_then(|own| own["activation_fn"].as_str());
        let named = own.or(self.sbert_ce_default_activation_function.as_deref());
        match named.map(|path| path.rsplit('.').next().unwrap_or(path)) {
            None | Some("Sigmoid" | "Softmax") => Ok(usual),
            Some("Identity") => Ok(LabelActivation::Identity),
            Some(other) => Err(unsupported("activation_fn", other, "Identity, Sigmoid, Softmax")),
        }
    }
}
