//! What there is to be used: `/api/tags`, `/api/ps`, `/api/show`, `/api/version`.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::answer::timestamp;
use super::error::OllamaError;
use super::request::{OllamaFields, read_show};
use super::served;
use crate::app::ModelInfo;
use crate::http::HttpState;
use crate::http::reply::json;

/// The version of Ollama whose API this is: clients compare it with what they need.
const OLLAMA_VERSION: &str = "0.12.11";
/// When a model goes that stays for ever: beyond the lives of clients, and within their types.
const NEVER: &str = "9999-12-31T23:59:59Z";

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaVersion")]
pub(super) struct Version {
    version: &'static str,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaTags")]
pub(super) struct Tags {
    models: Vec<Tag>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaTag")]
pub(super) struct Tag {
    name: String,
    model: String,
    modified_at: String,
    digest: String,
    details: Details,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaProcesses")]
pub(super) struct Processes {
    models: Vec<Process>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaProcess")]
pub(super) struct Process {
    name: String,
    model: String,
    digest: String,
    details: Details,
    expires_at: &'static str,
    context_length: u32,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaDetails")]
pub(super) struct Details {
    parent_model: &'static str,
    format: &'static str,
    family: String,
    families: [String; 1],
    parameter_size: String,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaShown")]
pub(super) struct Shown {
    modified_at: String,
    details: Details,
    model_info: Map<String, Value>,
    capabilities: Vec<&'static str>,
}

/// `GET /api/version`
pub(crate) async fn version() -> Response {
    json(&Version { version: OLLAMA_VERSION })
}

/// `GET /api/tags`: every name that clients may use.
pub(crate) async fn tags(State(state): State<Arc<HttpState>>) -> Response {
    let model = &state.app.model;
    let tag = |name: &String| Tag {
        name: tagged(name),
        model: tagged(name),
        modified_at: loaded_at(model),
        digest: digest(model),
        details: details(model),
    };
    json(&Tags { models: state.app.all_names().iter().map(tag).collect() })
}

/// `GET /api/ps`: the model is loaded, and stays so.
pub(crate) async fn ps(State(state): State<Arc<HttpState>>) -> Response {
    let model = &state.app.model;
    let process = Process {
        name: tagged(model.name()),
        model: tagged(model.name()),
        digest: digest(model),
        details: details(model),
        expires_at: NEVER,
        context_length: state.app.limits.max_model_len,
    };
    json(&Processes { models: vec![process] })
}

/// `POST /api/show`
pub(crate) async fn show(
    State(state): State<Arc<HttpState>>,
    OllamaFields(mut fields): OllamaFields,
) -> Result<Response, OllamaError> {
    let asked = read_show(&mut fields);
    fields.finish()?;
    served(&state, asked).await?;
    let model = &state.app.model;
    let family = family(model);
    let mut model_info = Map::new();
    model_info.insert("general.parameter_count".into(), model.num_parameters.into());
    model_info.insert(format!("{family}.context_length"), state.app.limits.max_model_len.into());
    model_info.insert("general.architecture".into(), family.into());
    let (modified_at, details) = (loaded_at(model), details(model));
    let chat = &state.app.chat;
    let capabilities = [
        ("completion", state.app.pooler.is_none()),
        ("embedding", state.app.pooler.is_some()),
        ("tools", chat.tools.is_some()),
        ("thinking", chat.reasoning.is_some()),
    ];
    let capabilities = capabilities.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect();
    Ok(json(&Shown { modified_at, details, model_info, capabilities }))
}

/// Ollama's names end with a tag.
fn tagged(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') { name.to_owned() } else { format!("{name}:latest") }
}

fn loaded_at(model: &ModelInfo) -> String {
    timestamp(UNIX_EPOCH + Duration::from_secs(model.created.unsigned_abs()))
}

/// Tells models apart, which is what clients take digests for; it is not of the weights.
fn digest(model: &ModelInfo) -> String {
    let name = format!("{}\n{}\n{}", model.root, model.architecture, model.num_parameters);
    Sha256::digest(name).iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn details(model: &ModelInfo) -> Details {
    Details {
        parent_model: "",
        format: "safetensors",
        family: family(model),
        families: [family(model)],
        parameter_size: short_count(model.num_parameters),
    }
}

/// `llama` of LlamaForCausalLM.
fn family(model: &ModelInfo) -> String {
    let name = &model.architecture;
    name.strip_suffix("ForCausalLM").unwrap_or(name).to_ascii_lowercase()
}

/// `7.6B`, `1.2M`, `900K`: as Ollama writes the sizes of models.
fn short_count(number: u64) -> String {
    match number {
        1_000_000_000.. => format!("{:.1}B", number as f64 / 1e9),
        1_000_000.. => format!("{:.1}M", number as f64 / 1e6),
        _ => format!("{}K", number / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_a_tag_unless_they_have_one() {
        for (name, expected) in [
            ("pebble", "pebble:latest"),
            ("org/pebble", "org/pebble:latest"),
            ("pebble:7b", "pebble:7b"),
            ("host:5000/pebble", "host:5000/pebble:latest"),
        ] {
            assert_eq!(tagged(name), expected);
        }
    }

    #[test]
    fn counts_are_short() {
        let counts = [7_616_000_000, 1_234_000, 999_900].map(short_count);
        assert_eq!(counts, ["7.6B", "1.2M", "999K"]);
    }
}
