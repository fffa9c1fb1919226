//! Flags about LoRA adapters, and what they mean: [`LoraConfig`].

use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};
use quire_model::Dtype;
use serde_json::{Map, Value};

use super::resolve::{ConfigError, value};
use crate::adapters::AdapterLimits;
use crate::config::{LoraConfig, LoraModule};

/// vLLM's.
const DEFAULT_MAX_LORAS: u32 = 1;
/// vLLM's.
const DEFAULT_MAX_LORA_RANK: u32 = 16;

/// Adapters.
#[derive(Debug, Args)]
#[command(next_help_heading = "Adapters (LoRA)")]
pub(super) struct LoraArgs {
    /// Take requests for adapters: their `model` is an adapter's name
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub(super) enable_lora: bool,
    /// Adapters to load at the start, in PEFT's format: NAME=FOLDER, or {"name": NAME, "path": FOLDER,
    /// "base_model_name": the model's}
    #[arg(long, value_name = "NAME=FOLDER|JSON", num_args = 1..)]
    pub(super) lora_modules: Vec<String>,
    /// Different adapters among the requests that run at once; others wait [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(super) max_loras: Option<u32>,
    /// Rank of adapters at most [default: 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=512))]
    pub(super) max_lora_rank: Option<u32>,
    /// Adapters whose weights stay in memory; the others are read again when they are asked for [default: --max-loras]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(super) max_cpu_loras: Option<u32>,
    /// Precision that the weights of adapters are rounded to; auto = as stored
    #[arg(long, value_enum)]
    pub(super) lora_dtype: Option<LoraDtypeArg>,
    /// Layers that adapters may change, by the last part of their names; an adapter of others is refused [default: all]
    #[arg(long, value_name = "NAME", num_args = 1..)]
    pub(super) lora_target_modules: Vec<String>,
    /// Open /v1/load_lora_adapter and /v1/unload_lora_adapter, and the same by gRPC: clients may then name any folder of
    /// this machine [env: VLLM_ALLOW_RUNTIME_LORA_UPDATING]
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub(super) allow_runtime_lora_updating: bool,
}

/// Value of `--lora-dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the names are the values")]
pub(super) enum LoraDtypeArg {
    Auto,
    #[value(alias = "half")]
    Float16,
    Bfloat16,
    #[value(alias = "float")]
    Float32,
}

impl LoraArgs {
    /// `None` if there are to be no adapters. The permission to load some while the server runs is one that then has no
    /// use; the environment may give it to all servers.
    pub(super) fn resolve(self) -> Result<Option<LoraConfig>, ConfigError> {
        if !self.enable_lora {
            let needs = "needs --enable-lora";
            let given = [
                ("lora-modules", self.lora_modules.first().cloned()),
                ("max-loras", self.max_loras.map(|n| n.to_string())),
                ("max-lora-rank", self.max_lora_rank.map(|n| n.to_string())),
                ("max-cpu-loras", self.max_cpu_loras.map(|n| n.to_string())),
                ("lora-dtype", self.lora_dtype.map(|dtype| format!("{dtype:?}").to_lowercase())),
                ("lora-target-modules", self.lora_target_modules.first().cloned()),
            ];
            let given = given.into_iter().find_map(|(flag, given)| Some((flag, given?)));
            return given.map_or(Ok(None), |(flag, given)| Err(value(flag, given, needs)));
        }
        let max_loras = self.max_loras.unwrap_or(DEFAULT_MAX_LORAS);
        let max_resident = self.max_cpu_loras.unwrap_or(max_loras);
        if max_resident < max_loras {
            return Err(value("max-cpu-loras", max_resident, "must be at least --max-loras"));
        }
        let modules = self.lora_modules.iter().map(|text| module(text)).collect::<Result<Vec<_>, _>>()?;
        Ok(Some(LoraConfig {
            limits: AdapterLimits {
                max_loras,
                max_rank: self.max_lora_rank.unwrap_or(DEFAULT_MAX_LORA_RANK) as usize,
                max_resident: max_resident as usize,
                rounded_to: match self.lora_dtype {
                    None | Some(LoraDtypeArg::Auto | LoraDtypeArg::Float32) => None,
                    Some(LoraDtypeArg::Float16) => Some(Dtype::F16),
                    Some(LoraDtypeArg::Bfloat16) => Some(Dtype::Bf16),
                },
                runtime_updates: self.allow_runtime_lora_updating,
            },
            target_modules: (!self.lora_target_modules.is_empty()).then_some(self.lora_target_modules),
            modules,
        }))
    }
}

/// vLLM's two forms.
fn module(text: &str) -> Result<LoraModule, ConfigError> {
    let wrong = |allowed: &str| value("lora-modules", text, allowed);
    let form = "must be NAME=FOLDER, or JSON: '{\"name\": \"a\", \"path\": \"/adapters/a\"}'";
    let (name, path, base_model_name) = match text.starts_with('{') {
        false => {
            let (name, path) = text.split_once('=').ok_or_else(|| wrong(form))?;
            (name.to_owned(), path.to_owned(), None)
        }
        true => {
            let mut fields: Map<String, Value> = serde_json::from_str(text).map_err(|_| wrong(form))?;
            let mut string = |field: &str| match fields.remove(field) {
                None | Some(Value::Null) => Ok(String::new()),
                Some(Value::String(text)) => Ok(text),
                Some(_) => Err(wrong(&format!("{field} must be a string"))),
            };
            let (name, path, base) = (string("name")?, string("path")?, string("base_model_name")?);
            if fields.remove("is_3d_lora_weight").is_some_and(|given| given != Value::Bool(false)) {
                return Err(wrong("is_3d_lora_weight: adapters of stacked experts are not supported"));
            }
            if let Some(field) = fields.keys().next() {
                return Err(wrong(&format!("{field} is not one of name, path, base_model_name")));
            }
            (name, path, Some(base).filter(|base| !base.is_empty()))
        }
    };
    match name.trim().is_empty() || path.is_empty() {
        true => Err(wrong(form)),
        false => Ok(LoraModule { name, path, base_model_name }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_are_named_in_vllms_two_forms() {
        let named = |base: Option<&str>| LoraModule {
            name: "a".into(),
            path: "/x=y".into(),
            base_model_name: base.map(String::from),
        };
        assert_eq!(module("a=/x=y").unwrap(), named(None));
        let json = r#"{"name": "a", "path": "/x=y", "base_model_name": "b", "is_3d_lora_weight": false}"#;
        assert_eq!(module(json).unwrap(), named(Some("b")));
        for bad in ["a", "=x", "a=", "{", r#"{"name": "a"}"#, r#"{"name": 1, "path": "b"}"#] {
            assert!(module(bad).unwrap_err().to_string().contains("--lora-modules"), "{bad}");
        }
        let error = module(r#"{"name": "a", "path": "b", "local_path": "c"}"#).unwrap_err().to_string();
        assert!(error.contains("local_path"), "{error}");
    }
}
