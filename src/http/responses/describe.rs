//! What `/openapi.json` says of these routes.

use serde_json::{Value, json};

use super::Deleted;
use super::listing::{ItemList, MAX_LIMIT};
use super::object::Response;
use super::request::ResponseRequest;
use crate::http::fields::Fields;
use crate::http::openapi::Operation;
use crate::http::sampling::{self, logprobs_schema, max_tokens_schema};

const UNKNOWN: &str = "There is no such response, or no longer";

pub(crate) fn create(op: &mut Operation<'_>) {
    op.about("Answers items")
        .takes(|mut fields| drop(ResponseRequest::read(&mut fields)))
        .answers::<Response>()
        .streams(
            "Events named by their type, with sequence numbers, from response.created to response.completed",
        );
}

pub(crate) fn retrieve(op: &mut Operation<'_>) {
    op.about("A response that was stored")
        .path_parameter("id")
        .query_parameter("stream", false, json!({ "const": false }))
        .answers::<Response>()
        .refuses(400, "A parameter is wrong")
        .refuses(404, UNKNOWN);
}

pub(crate) fn delete(op: &mut Operation<'_>) {
    op.about("Forgets a response")
        .path_parameter("id")
        .answers::<Deleted>()
        .refuses(400, "The path is not UTF-8")
        .refuses(404, UNKNOWN);
}

pub(crate) fn cancel(op: &mut Operation<'_>) {
    op.about("Ends a response that is being made in the background")
        .path_parameter("id")
        .answers::<Response>()
        .refuses(400, "It is not being made in the background")
        .refuses(404, UNKNOWN);
}

pub(crate) fn input_items(op: &mut Operation<'_>) {
    op.about("What a response was made from, page by page")
        .path_parameter("id")
        .query_parameter("limit", false, json!({ "type": "integer", "minimum": 1, "maximum": MAX_LIMIT }))
        .query_parameter("order", false, json!({ "enum": ["asc", "desc"] }))
        .query_parameter("after", false, json!({ "type": "string" }))
        .answers::<ItemList<'_>>()
        .refuses(400, "A parameter is wrong")
        .refuses(404, UNKNOWN);
}

/// What is known of the fields of a request beyond their types.
pub(super) fn request(fields: &Fields) {
    sampling::describe(fields);
    fields.describe("max_output_tokens", max_tokens_schema);
    fields.describe("top_logprobs", logprobs_schema);
    fields.describe("truncation", |_| json!({ "enum": ["auto", "disabled"] }));
    fields.describe(
        "include",
        |_| json!({ "items": { "enum": ["message.output_text.logprobs", "reasoning.encrypted_content"] } }),
    );
    fields.describe(
        "input",
        |_| json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": item(), "minItems": 1 }] }),
    );
    fields.describe("tools", |_| json!({ "items": tool() }));
    fields.describe("tool_choice", |_| {
        let named =
            object(json!({ "type": { "enum": ["function", "custom"] }, "name": name() }), &["type", "name"]);
        json!({ "anyOf": [{ "enum": ["none", "auto", "required"] }, named] })
    });
}

fn name() -> Value {
    json!({ "type": "string", "minLength": 1 })
}

fn object(properties: Value, required: &[&str]) -> Value {
    json!({ "type": "object", "properties": properties, "required": required })
}

fn text(kinds: &[&str]) -> Value {
    let part = object(json!({ "type": { "enum": kinds }, "text": { "type": "string" } }), &["type", "text"]);
    json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": part }] })
}

fn item() -> Value {
    let string = || json!({ "type": "string" });
    let kind = |kind: &str| json!({ "const": kind });
    let message = |roles: &[&str], kinds: &[&str]| {
        let properties =
            json!({ "type": kind("message"), "role": { "enum": roles }, "content": text(kinds) });
        object(properties, &["role", "content"])
    };
    let output = |name_of_kind: &str| {
        let properties =
            json!({ "type": kind(name_of_kind), "call_id": name(), "output": text(&["input_text"]) });
        object(properties, &["type", "call_id", "output"])
    };
    let call =
        json!({ "type": kind("function_call"), "call_id": name(), "name": name(), "arguments": string() });
    let custom =
        json!({ "type": kind("custom_tool_call"), "call_id": name(), "name": name(), "input": string() });
    json!({ "anyOf": [
        message(&["user", "system", "developer"], &["input_text"]),
        message(&["assistant"], &["output_text"]),
        object(call, &["type", "call_id", "name", "arguments"]),
        object(custom, &["type", "call_id", "name", "input"]),
        output("function_call_output"),
        output("custom_tool_call_output"),
        object(json!({ "type": kind("reasoning"), "encrypted_content": string() }), &["type"]),
        object(json!({ "type": kind("item_reference"), "id": string() }), &["type", "id"]),
    ] })
}

fn tool() -> Value {
    let properties = json!({
        "type": { "enum": ["function", "custom"] },
        "name": name(),
        "description": { "type": "string" },
        "parameters": { "type": "object" },
        "strict": { "type": "boolean" },
    });
    object(properties, &["type", "name"])
}
