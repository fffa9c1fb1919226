//! What a client may send to `POST /v1/responses`: [`ResponseRequest`].

use serde_json::{Map, Value};

use super::input::normalize;
use super::tools::Tools;
use crate::grammar::Constraint;
use crate::http::error::excerpt;
use crate::http::fields::{Fields, expected_got};
use crate::http::part::each;
use crate::http::prompt::{Truncate, TruncationSide};
use crate::http::sampling::{logit_bias, priority, request_id};
use crate::http::structured::{self, Structured};
use crate::validate::SamplingFields;

/// A request, typed but not yet checked against the model and the store.
#[derive(Debug)]
pub(super) struct ResponseRequest {
    pub(super) model: Option<String>,
    pub(super) request_id: Option<String>,
    /// Normalised; references are not resolved yet.
    pub(super) input: Vec<Value>,
    pub(super) instructions: Option<String>,
    pub(super) previous_response_id: Option<String>,
    pub(super) tools: Tools,
    pub(super) parallel_tool_calls: bool,
    /// `text.format` as it was sent.
    pub(super) format: Value,
    /// What the answer must look like.
    pub(super) structured: Option<Structured>,
    pub(super) effort: Option<String>,
    pub(super) summary: Option<String>,
    pub(super) include_reasoning: bool,
    pub(super) wants_logprobs: bool,
    pub(super) top_logprobs: i64,
    pub(super) max_output_tokens: Option<i64>,
    pub(super) wants_encrypted_reasoning: bool,
    pub(super) sampling: SamplingFields,
    pub(super) truncate: Option<Truncate>,
    pub(super) priority: i32,
    pub(super) cache_salt: Option<String>,
    pub(super) chat_template_kwargs: Map<String, Value>,
    pub(super) stream: bool,
    pub(super) background: bool,
    pub(super) store: bool,
    pub(super) echoed: Echoed,
}

/// Said back and nothing else: names and labels for the client's own bookkeeping, and a limit on the calls
/// of tools that the server runs, of which there are none.
#[derive(Debug)]
pub(super) struct Echoed {
    pub(super) max_tool_calls: Option<i64>,
    pub(super) metadata: Map<String, Value>,
    pub(super) prompt_cache_key: Option<String>,
    pub(super) safety_identifier: Option<String>,
    pub(super) service_tier: Option<String>,
    pub(super) user: Option<String>,
}

impl ResponseRequest {
    /// Reads the fields; errors stay in `fields`.
    pub(super) fn read(fields: &mut Fields) -> Self {
        let stream = fields.bool("stream").unwrap_or(false);
        let (store, background) =
            (fields.bool("store").unwrap_or(true), fields.bool("background").unwrap_or(false));
        if background && stream {
            fields.wrong("background", "cannot be true together with stream: ask for the response by its id");
        }
        if background && !store {
            fields.wrong("background", "background can only be used when `store` is true");
        }
        let (effort, summary) = read_reasoning(fields);
        let (format, constraint) = read_text(fields);
        let structured = read_form(fields, constraint);
        let include = read_include(fields);
        let top_logprobs = fields.int("top_logprobs").unwrap_or(0);
        let wants_logprobs = top_logprobs != 0 || include.logprobs;
        let mut sampling = read_sampling(fields);
        sampling.logprobs = wants_logprobs.then_some(top_logprobs);
        read_stream_options(fields);
        let request = Self {
            model: fields.string("model"),
            request_id: request_id(fields),
            input: read_input(fields),
            instructions: fields.string("instructions"),
            previous_response_id: fields.string("previous_response_id"),
            tools: Tools::read(fields),
            parallel_tool_calls: fields.bool("parallel_tool_calls").unwrap_or(true),
            format,
            structured,
            effort,
            summary,
            include_reasoning: fields.bool("include_reasoning").unwrap_or(true),
            wants_logprobs,
            top_logprobs,
            max_output_tokens: sampling.max_tokens,
            wants_encrypted_reasoning: include.encrypted_reasoning,
            sampling,
            truncate: read_truncation(fields),
            priority: priority(fields),
            cache_salt: fields.string("cache_salt"),
            chat_template_kwargs: fields.map("chat_template_kwargs").unwrap_or_default(),
            stream,
            background,
            store,
            echoed: Echoed {
                max_tool_calls: fields.int("max_tool_calls"),
                metadata: fields.map("metadata").unwrap_or_default(),
                prompt_cache_key: fields.string("prompt_cache_key"),
                safety_identifier: fields.string("safety_identifier"),
                service_tier: fields.string("service_tier"),
                user: fields.string("user"),
            },
        };
        super::describe::request(fields);
        request
    }
}

fn read_sampling(fields: &mut Fields) -> SamplingFields {
    SamplingFields {
        temperature: fields.real("temperature"),
        top_p: fields.real("top_p"),
        top_k: fields.int("top_k"),
        min_p: fields.real("min_p"),
        presence_penalty: fields.real("presence_penalty"),
        frequency_penalty: fields.real("frequency_penalty"),
        repetition_penalty: fields.real("repetition_penalty"),
        seed: fields.int("seed"),
        max_tokens: fields.int("max_output_tokens"),
        max_tokens_param: "max_output_tokens",
        min_tokens: fields.int("min_tokens"),
        ignore_eos: fields.bool("ignore_eos").unwrap_or(false),
        stop: fields.string_or_strings("stop").unwrap_or_default(),
        stop_token_ids: fields.ints("stop_token_ids").unwrap_or_default(),
        include_stop_str_in_output: fields.bool("include_stop_str_in_output").unwrap_or(false),
        logit_bias: logit_bias(fields),
        logprobs_param: "top_logprobs",
        skip_special_tokens: fields.bool("skip_special_tokens"),
        ..SamplingFields::default()
    }
}

fn read_input(fields: &mut Fields) -> Vec<Value> {
    let items = match fields.take("input") {
        None => {
            fields.missing("input");
            return Vec::new();
        }
        Some(Value::String(text)) => vec![super::input::user_message(text)],
        Some(Value::Array(items)) => items,
        Some(other) => {
            fields.wrong("input", expected_got("a string or a list of items", &other));
            return Vec::new();
        }
    };
    each("input", items, normalize).unwrap_or_else(|wrong| {
        fields.wrong_part(wrong);
        Vec::new()
    })
}

/// `reasoning`: effort and summary. The effort is for the template to make something of.
fn read_reasoning(fields: &mut Fields) -> (Option<String>, Option<String>) {
    let Some(mut reasoning) = fields.nested("reasoning") else { return (None, None) };
    let effort = reasoning.string("effort");
    let older = reasoning.string("generate_summary");
    let summary = reasoning.string("summary").or(older);
    if let Some(summary) = summary.as_deref().filter(|&summary| summary != "auto") {
        // "auto" is the most detailed there is, which is none.
        let message =
            format!("only \"auto\" is supported, got {:?}: nothing here writes summaries", excerpt(summary));
        reasoning.wrong("summary", message);
    }
    fields.absorb(reasoning);
    (effort, summary)
}

/// `text`: the format, and the verbosity, of which there is one.
fn read_text(fields: &mut Fields) -> (Value, Option<Constraint>) {
    let plain = || serde_json::json!({"type": "text"});
    let Some(mut text) = fields.nested("text") else { return (plain(), None) };
    if let Some(verbosity) = text.string("verbosity").filter(|verbosity| verbosity != "medium") {
        let message = format!(
            "only \"medium\" is supported, got {:?}: the model has no such setting",
            excerpt(&verbosity)
        );
        text.wrong("verbosity", message);
    }
    let mut sent = plain();
    let mut constraint = None;
    if let Some(mut format) = text.nested("format") {
        let kind = format.string("type");
        sent = match kind.as_deref() {
            Some("text") => plain(),
            Some("json_object") => {
                constraint = Some(Constraint::JsonObject);
                serde_json::json!({"type": "json_object"})
            }
            Some("json_schema") => {
                let (sent, schema) = read_json_schema(&mut format);
                constraint = Some(Constraint::JsonSchema(schema));
                sent
            }
            Some(other) => {
                let message = format!(
                    "expected \"text\", \"json_object\" or \"json_schema\", got {:?}",
                    excerpt(other)
                );
                format.wrong("type", message);
                plain()
            }
            None => {
                format.missing("type");
                plain()
            }
        };
        text.absorb(format);
    }
    fields.absorb(text);
    (sent, constraint)
}

/// What `text.format` asks for, or vLLM's own fields.
fn read_form(fields: &mut Fields, format: Option<Constraint>) -> Option<Structured> {
    let extra = structured::read(fields);
    match (format, extra) {
        (Some(_), Some(Structured { param, .. })) => {
            fields.wrong("text.format", format!("it and {param} are given; an answer has one form"));
            None
        }
        (Some(constraint), None) => Some(Structured { constraint, param: "text.format".into() }),
        (None, extra) => extra,
    }
}

/// The format to say back, and the schema in it. Answers always follow it, strict or not.
fn read_json_schema(format: &mut Fields) -> (Value, Value) {
    let schema = format.map("schema").map(Value::Object).unwrap_or_else(|| {
        format.missing("schema");
        Value::Null
    });
    let sent = serde_json::json!({
        "type": "json_schema",
        "name": format.string("name"),
        "description": format.string("description"),
        "schema": schema,
        "strict": format.bool("strict"),
    });
    (sent, schema)
}

#[derive(Debug, Default)]
struct Include {
    logprobs: bool,
    encrypted_reasoning: bool,
}

fn read_include(fields: &mut Fields) -> Include {
    let mut include = Include::default();
    for (index, what) in fields.strings("include").unwrap_or_default().iter().enumerate() {
        match what.as_str() {
            "message.output_text.logprobs" => include.logprobs = true,
            "reasoning.encrypted_content" => include.encrypted_reasoning = true,
            other => {
                let message = format!(
                    "only \"message.output_text.logprobs\" and \"reasoning.encrypted_content\" are supported, got {:?}",
                    excerpt(other)
                );
                fields.wrong(format!("include[{index}]"), message);
            }
        }
    }
    include
}

/// `truncation`: "auto" takes away what is too much at the beginning.
fn read_truncation(fields: &mut Fields) -> Option<Truncate> {
    match fields.string("truncation").as_deref() {
        None | Some("disabled") => None,
        Some("auto") => Some(Truncate { max_tokens: None, side: TruncationSide::Left }),
        Some(other) => {
            let message = format!("expected \"auto\" or \"disabled\", got {:?}", excerpt(other));
            fields.wrong("truncation", message);
            None
        }
    }
}

fn read_stream_options(fields: &mut Fields) {
    let Some(mut options) = fields.nested("stream_options") else { return };
    if options.bool("include_obfuscation") == Some(true) {
        options.wrong("include_obfuscation", "only false is supported: events are as long as what they say");
    }
    fields.absorb(options);
}
