//! What a client may send to `/api/chat` and `/api/generate`: [`OllamaRequest`].

use std::sync::Arc;

use axum::extract::{FromRequest, Request};
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_TYPE, ORIGIN};
use serde_json::{Map, Value, json};

use super::error::OllamaError;
use super::options::read_options;
use crate::chat::{Conversation, ToolChoice};
use crate::grammar::Constraint;
use crate::http::HttpState;
use crate::http::chat::{ChatJob, read_messages};
use crate::http::fields::{Fields, expected_got};
use crate::http::json::Prompt;

/// The fields of a body, whatever its content type says: the examples in Ollama's documentation send JSON as a
/// form. Not so from browsers, which send an `Origin`: a page may send a form to any server without asking it
/// first, but not JSON.
#[derive(Debug)]
pub(crate) struct OllamaFields(pub(super) Fields);

impl FromRequest<Arc<HttpState>> for OllamaFields {
    type Rejection = OllamaError;

    async fn from_request(mut request: Request, state: &Arc<HttpState>) -> Result<Self, OllamaError> {
        if !request.headers().contains_key(ORIGIN) {
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        Ok(Self(Fields::from_request(request, state).await?))
    }
}

/// A request, typed but not yet checked against the model.
#[derive(Debug)]
pub(super) struct OllamaRequest {
    /// As the client wrote it.
    pub(super) model: Option<String>,
    pub(super) stream: bool,
    /// What to answer. `None`: the client wants the model loaded, which it is, and nothing more.
    pub(super) job: Option<ChatJob>,
}

/// The body of `/api/chat`.
pub(super) fn read_chat(fields: &mut Fields) -> OllamaRequest {
    let mut job = read_job(fields);
    let messages = fields.list("messages").unwrap_or_default();
    let empty = messages.is_empty();
    if !empty {
        job.conversation.messages = openai_messages(messages, fields);
    }
    job.conversation.tools = fields.list("tools").filter(|tools| !tools.is_empty());
    if job.conversation.tools.is_some() {
        job.tool_choice = ToolChoice::Auto;
    }
    request(fields, (!empty).then_some(job))
}

/// The body of `/api/generate`.
pub(super) fn read_generate(fields: &mut Fields) -> OllamaRequest {
    let mut job = read_job(fields);
    let prompt = match fields.prompt("prompt") {
        None => String::new(),
        Some(Prompt::Text(text)) => text,
        Some(_) => {
            fields.wrong("prompt", "expected a string");
            String::new()
        }
    };
    let empty = prompt.is_empty();
    let system = fields.string("system").filter(|system| !system.is_empty());
    refuse(fields, "suffix", "the model cannot fill in the middle of a text");
    refuse(fields, "template", "templates in requests are not trusted; see raw");
    refuse(fields, "context", "it is deprecated; send the conversation to /api/chat");
    refuse(fields, "images", TEXT_ONLY);
    if fields.bool("raw").unwrap_or(false) {
        if system.is_some() {
            fields.wrong("system", "a raw prompt is taken as it is; write the system prompt into it");
        }
        job.raw_prompt = Some(prompt);
        job.add_special_tokens = true;
    } else {
        let system = system.map(|system| json!({"role": "system", "content": system}));
        let user = json!({"role": "user", "content": prompt});
        job.conversation.messages = system.into_iter().chain([user]).collect();
    }
    request(fields, (!empty).then_some(job))
}

/// What a request may ask at `/api/show`: the model.
pub(super) fn read_show(fields: &mut Fields) -> Option<String> {
    fields.bool("verbose");
    // `name` is what the field was called in Ollama's first versions.
    let old = fields.string("name");
    fields.string("model").or(old)
}

const TEXT_ONLY: &str = "the model reads text only";

fn request(fields: &mut Fields, job: Option<ChatJob>) -> OllamaRequest {
    // The model stays as long as the server does, whatever is asked for.
    if let Some(value) = fields.take("keep_alive")
        && !(value.is_number() || value.is_string())
    {
        fields.wrong("keep_alive", expected_got("a number or a string", &value));
    }
    OllamaRequest { model: fields.string("model"), stream: fields.bool("stream").unwrap_or(true), job }
}

/// What chat and generate have in common.
fn read_job(fields: &mut Fields) -> ChatJob {
    let mut kwargs = Map::new();
    let think = think(fields, &mut kwargs);
    let mut sampling = read_options(fields);
    sampling.logprobs = logprobs(fields);
    sampling.logprobs_param = "top_logprobs";
    ChatJob {
        conversation: Conversation { add_generation_prompt: true, kwargs, ..Conversation::default() },
        include_reasoning: think != Some(false),
        constraint: constraint(fields),
        constraint_param: "format".into(),
        sampling,
        ..ChatJob::default()
    }
}

/// `think`: a switch, or how hard to think. It is up to the template what comes of it.
fn think(fields: &mut Fields, kwargs: &mut Map<String, Value>) -> Option<bool> {
    let think = match fields.take("think")? {
        Value::Bool(think) => think,
        Value::String(effort) if ["low", "medium", "high"].contains(&effort.as_str()) => {
            kwargs.insert("reasoning_effort".into(), effort.into());
            true
        }
        _ => {
            fields.wrong("think", "must be true, false, \"low\", \"medium\" or \"high\"");
            return None;
        }
    };
    kwargs.insert("enable_thinking".into(), think.into());
    Some(think)
}

fn logprobs(fields: &mut Fields) -> Option<i64> {
    let wanted = fields.bool("logprobs").unwrap_or(false);
    let top = fields.int("top_logprobs").unwrap_or(0);
    if !wanted && top != 0 {
        fields.wrong("top_logprobs", "allowed only when logprobs is true");
    }
    wanted.then_some(top)
}

/// `format`: nothing, `"json"`, or a JSON schema.
fn constraint(fields: &mut Fields) -> Option<Constraint> {
    match fields.take("format")? {
        Value::String(empty) if empty.is_empty() => None,
        Value::String(json) if json == "json" => Some(Constraint::JsonObject),
        schema @ Value::Object(_) => Some(Constraint::JsonSchema(schema)),
        _ => {
            fields.wrong("format", "must be \"json\" or a JSON schema");
            None
        }
    }
}

/// Refuses a field unless it is empty.
fn refuse(fields: &mut Fields, name: &str, why: &str) {
    let empty = |value: &Value| match value {
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        _ => false,
    };
    if fields.take(name).is_some_and(|value| !empty(&value)) {
        fields.wrong(name, format!("not supported: {why}"));
    }
}

/// Ollama's messages differ from OpenAI's in the names of two fields, and in that content is never required.
fn openai_messages(messages: Vec<Value>, fields: &mut Fields) -> Vec<Value> {
    let mut converted = Vec::with_capacity(messages.len());
    for (index, message) in messages.into_iter().enumerate() {
        let Value::Object(mut message) = message else {
            fields.wrong(format!("messages[{index}]"), expected_got("an object", &message));
            return Vec::new();
        };
        let images = message.remove("images");
        if images
            .is_some_and(|images| !images.is_null() && images.as_array().is_none_or(|all| !all.is_empty()))
        {
            fields.wrong(format!("messages[{index}].images"), format!("not supported: {TEXT_ONLY}"));
            return Vec::new();
        }
        for (from, to) in [("thinking", "reasoning"), ("tool_name", "name")] {
            if let Some(value) = message.remove(from) {
                message.insert(to.into(), value);
            }
        }
        if message.get("content").is_none_or(Value::is_null) {
            message.insert("content".into(), "".into());
        }
        converted.push(Value::Object(message));
    }
    read_messages(converted, fields)
}
