//! [`PoolerSpec`]: how a model's makers want its hidden states to become one vector, from the files that
//! sentence-transformers puts beside a model.

use std::collections::BTreeMap;
use std::path::Path;

use quire_scheduler::Pooling;
use serde::Deserialize;
use serde_json::Value;

use crate::error::ModelError;
use crate::families::config::parse;
use crate::labels::Labels;
use crate::spec::ModelSpec;

/// The way from hidden states to an embedding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolerSpec {
    /// Which hidden states count.
    pub pooling: Pooling,
    /// Whether vectors are brought to length 1.
    pub normalize: bool,
    /// Longest text that the model was trained on, in tokens; `None` = as long as its positions go.
    pub max_seq_length: Option<usize>,
    /// Whether the first numbers of a vector are an embedding by themselves.
    pub matryoshka: Matryoshka,
    /// What the numbers mean, if they are a classifier's and no embedding.
    pub labels: Option<Labels>,
    /// What the makers want before texts, by the kind of text (`query`, `passage`); nothing is added unasked.
    pub prompts: BTreeMap<String, String>,
}

/// Lengths to which a vector may be cut (Matryoshka representation learning).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Matryoshka {
    /// The model was not trained for it.
    No,
    /// Any.
    Any,
    /// These.
    Lengths(Vec<usize>),
}

impl PoolerSpec {
    /// What the folder says (`modules.json` and what it names), else vLLM's defaults: the last token of a
    /// causal model, of unit length.
    pub fn of(spec: &ModelSpec, config: &str, dir: Option<&Path>) -> Result<Self, ModelError> {
        let mut pooler = Self {
            pooling: spec.default_pooling(),
            normalize: true,
            max_seq_length: None,
            matryoshka: matryoshka(config)?,
            labels: spec.classifier.map(|head| Labels::of(config, head.num_labels)).transpose()?,
            prompts: prompts(config, dir)?,
        };
        if let Some(dir) = dir.filter(|dir| spec.classifier.is_none() && is_sentence_transformer(dir)) {
            pooler.read_modules(dir)?;
        }
        Ok(pooler)
    }

    fn read_modules(&mut self, dir: &Path) -> Result<(), ModelError> {
        let modules: Vec<Module> = parse(MODULES, &read(&dir.join(MODULES))?)?;
        self.normalize = false;
        for module in &modules {
            // Of a path such as `sentence_transformers.models.Pooling`.
            match module.kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" => self.read_transformer(&dir.join(&module.path))?,
                "Pooling" => {
                    let file = dir.join(&module.path).join("config.json");
                    self.pooling = parse::<PoolingConfig>("the pooling module", &read(&file)?)?.pooling()?;
                }
                "Normalize" => self.normalize = true,
                other => {
                    return Err(ModelError::Unsupported {
                        field: "modules.json: type",
                        found: other.into(),
                        supported: "Transformer, Pooling, Normalize",
                    });
                }
            }
        }
        Ok(())
    }

    fn read_transformer(&mut self, dir: &Path) -> Result<(), ModelError> {
        let file = dir.join("sentence_bert_config.json");
        if !file.exists() {
            return Ok(());
        }
        let config: TransformerConfig = parse("sentence_bert_config.json", &read(&file)?)?;
        if config.do_lower_case == Some(true) {
            return Err(ModelError::Unsupported {
                field: "sentence_bert_config.json: do_lower_case",
                found: "true".into(),
                supported: "false (the tokenizer's own normaliser may do it)",
            });
        }
        self.max_seq_length = config.max_seq_length;
        Ok(())
    }
}

/// Whether a model's folder is one of sentence-transformers, which is there to be pooled.
pub fn is_sentence_transformer(dir: &Path) -> bool {
    dir.join(MODULES).exists()
}

const MODULES: &str = "modules.json";

#[derive(Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct TransformerConfig {
    max_seq_length: Option<usize>,
    do_lower_case: Option<bool>,
}

/// `1_Pooling/config.json`: one switch a mode; newer files name the mode.
#[derive(Deserialize)]
struct PoolingConfig {
    pooling_mode: Option<String>,
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
}

impl PoolingConfig {
    fn pooling(&self) -> Result<Pooling, ModelError> {
        let named = self.pooling_mode.as_deref();
        let switches = [
            (self.pooling_mode_cls_token, "cls"),
            (self.pooling_mode_mean_tokens, "mean"),
            (self.pooling_mode_lasttoken, "lasttoken"),
            (self.pooling_mode_max_tokens, "max"),
            (self.pooling_mode_mean_sqrt_len_tokens, "mean_sqrt_len_tokens"),
            (self.pooling_mode_weightedmean_tokens, "weightedmean"),
        ];
        let on = switches.iter().filter(|(on, _)| *on).map(|(_, name)| *name);
        match named.into_iter().chain(on).collect::<Vec<_>>()[..] {
            ["cls"] => Ok(Pooling::Cls),
            ["mean"] => Ok(Pooling::Mean),
            ["lasttoken"] => Ok(Pooling::Last),
            ref modes => Err(ModelError::Unsupported {
                field: "the pooling module: pooling_mode",
                found: modes.join(" + "),
                supported: "one of cls, mean, lasttoken",
            }),
        }
    }
}

/// `task_instructions` of config.json, else `prompts` of sentence-transformers' own file (as in vLLM).
fn prompts(config: &str, dir: Option<&Path>) -> Result<BTreeMap<String, String>, ModelError> {
    const FILE: &str = "config_sentence_transformers.json";
    #[derive(Deserialize)]
    struct Config {
        task_instructions: Option<BTreeMap<String, String>>,
        prompts: Option<BTreeMap<String, String>>,
    }
    let own = parse::<Config>("config.json", config)?.task_instructions.filter(|own| !own.is_empty());
    let file = dir.map(|dir| dir.join(FILE)).filter(|file| own.is_none() && file.exists());
    let beside = file.map(|file| parse::<Config>(FILE, &read(&file)?)).transpose()?;
    Ok(own.or(beside.and_then(|beside| beside.prompts)).unwrap_or_default())
}

fn matryoshka(config: &str) -> Result<Matryoshka, ModelError> {
    #[derive(Deserialize)]
    struct Config {
        is_matryoshka: Option<bool>,
        matryoshka_dimensions: Option<Value>,
    }
    let config: Config = parse("config.json", config)?;
    let Some(list) = config.matryoshka_dimensions.filter(|list| !list.is_null()) else {
        return Ok(if config.is_matryoshka == Some(true) { Matryoshka::Any } else { Matryoshka::No });
    };
    serde_json::from_value(list).map(Matryoshka::Lengths).map_err(|_| ModelError::Config {
        field: "matryoshka_dimensions",
        reason: "must be a list of lengths".into(),
    })
}

fn read(path: &Path) -> Result<String, ModelError> {
    std::fs::read_to_string(path).map_err(|source| ModelError::Io { path: path.into(), source })
}
