//! What a client may send to `/v1/messages` and `/v1/messages/count_tokens`: [`MessageRequest`].

use serde_json::{Map, Value, json};

use super::conversation::{message_schema, push_message, push_system, text_schema};
use crate::chat::{Conversation, ToolChoice};
use crate::grammar::Constraint;
use crate::http::chat::check_tools;
use crate::http::error::excerpt;
use crate::http::fields::{Fields, expected_got};
use crate::http::part::{Part, Wrong, each, none_of};
use crate::http::sampling::{self, max_tokens_schema, priority, request_id};
use crate::http::structured::Structured;
use crate::validate::{MAX_STOP_STRINGS, SamplingFields};

/// A request, typed but not yet checked against the model.
#[derive(Debug)]
pub(super) struct MessageRequest {
    pub(super) model: Option<String>,
    pub(super) request_id: Option<String>,
    pub(super) conversation: Conversation,
    pub(super) tool_choice: ToolChoice,
    pub(super) single_tool_call: bool,
    pub(super) include_reasoning: bool,
    /// What the answer must look like.
    pub(super) structured: Option<Structured>,
    pub(super) sampling: SamplingFields,
    pub(super) priority: i32,
    pub(super) cache_salt: Option<String>,
    pub(super) stream: bool,
}

impl MessageRequest {
    /// Reads the fields of `/v1/messages`; errors stay in `fields`.
    pub(super) fn read(fields: &mut Fields) -> Self {
        let mut request = Self::read_prompt(fields);
        request.sampling.max_tokens = fields.int("max_tokens");
        if request.sampling.max_tokens.is_none() {
            fields.missing("max_tokens");
        }
        fields.describe("max_tokens", max_tokens_schema);
        request
    }

    /// Reads the fields of `/v1/messages/count_tokens`, where nothing need be said of the answer.
    pub(super) fn read_prompt(fields: &mut Fields) -> Self {
        let mut kwargs = fields.map("chat_template_kwargs").unwrap_or_default();
        let (include_reasoning, thinking_token_budget) = read_thinking(fields, &mut kwargs);
        let structured = read_output(fields, &mut kwargs);
        let tools = read_tools(fields);
        let (tool_choice, single_tool_call) = read_tool_choice(fields, &tools);
        let messages = read_messages(fields);
        // Anthropic's way to begin the answer for the model.
        let continue_final_message = messages.last().is_some_and(|message| message["role"] == "assistant");
        if continue_final_message
            && messages.last().is_some_and(|message| message.get("tool_calls").is_some())
        {
            fields.wrong(
                "messages",
                "after tool_use blocks the user's message with their tool_result is missing",
            );
        }
        let request = Self {
            model: fields.string("model"),
            request_id: request_id(fields),
            conversation: Conversation {
                messages,
                tools: Some(tools).filter(|tools| !tools.is_empty()),
                add_generation_prompt: !continue_final_message,
                continue_final_message,
                kwargs,
                ..Conversation::default()
            },
            tool_choice,
            single_tool_call,
            include_reasoning,
            structured,
            sampling: SamplingFields { thinking_token_budget, ..read_sampling(fields) },
            priority: priority(fields),
            cache_salt: fields.string("cache_salt"),
            stream: fields.bool("stream").unwrap_or(false),
        };
        describe(fields);
        request
    }
}

/// What is known of the fields beyond their types, for `/openapi.json`.
fn describe(fields: &Fields) {
    sampling::describe(fields);
    fields.describe("messages", |_| json!({ "items": message_schema(), "minItems": 1 }));
    fields.describe(
        "system",
        |_| json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": text_schema() }] }),
    );
    fields.describe(
        "stop_sequences",
        |_| json!({ "items": { "type": "string", "minLength": 1 }, "maxItems": MAX_STOP_STRINGS }),
    );
    let tool = || {
        let properties = json!({
            "type": { "const": "custom" },
            "name": { "type": "string", "minLength": 1 },
            "description": { "type": "string" },
            "input_schema": { "type": "object" },
            "strict": { "type": "boolean" },
        });
        json!({ "type": "object", "properties": properties, "required": ["name", "input_schema"] })
    };
    fields.describe("tools", |_| json!({ "items": tool() }));
    fields.describe("tool_choice", |_| {
        let properties = json!({
            "type": { "enum": ["none", "auto", "any", "tool"] },
            "name": { "type": "string", "minLength": 1 },
            "disable_parallel_tool_use": { "type": "boolean" },
        });
        json!({ "type": "object", "properties": properties, "required": ["type"] })
    });
}

fn read_sampling(fields: &mut Fields) -> SamplingFields {
    let stop = fields.strings("stop_sequences").unwrap_or_default();
    if stop.len() > MAX_STOP_STRINGS {
        fields
            .wrong("stop_sequences", format!("at most {MAX_STOP_STRINGS} are supported, got {}", stop.len()));
    }
    SamplingFields {
        temperature: fields.real("temperature"),
        top_p: fields.real("top_p"),
        top_k: fields.int("top_k"),
        seed: fields.int("seed"),
        ignore_eos: fields.bool("ignore_eos").unwrap_or(false),
        max_tokens_param: "max_tokens",
        stop,
        ..SamplingFields::default()
    }
}

fn read_messages(fields: &mut Fields) -> Vec<Value> {
    let mut messages = Vec::new();
    let system = fields.take("system").map_or(Ok(()), |system| push_system(system, &mut messages));
    if let Err(wrong) = system {
        fields.wrong_part(wrong.within("system"));
    }
    let Some(sent) = fields.list("messages") else {
        fields.missing("messages");
        return messages;
    };
    if sent.is_empty() {
        fields.wrong("messages", "at least one message is required");
    }
    if let Err(wrong) = each("messages", sent, |message| push_message(message, &mut messages)) {
        fields.wrong_part(wrong);
    }
    messages
}

/// `thinking`: whether reasoning is shown, and how many tokens of it there may be; the template is told what it can
/// be told.
fn read_thinking(fields: &mut Fields, kwargs: &mut Map<String, Value>) -> (bool, Option<i64>) {
    let Some(mut thinking) = fields.nested("thinking") else { return (true, None) };
    let kind = thinking.string("type");
    thinking.describe("type", |_| json!({ "enum": ["enabled", "adaptive", "disabled"] }));
    let enabled = match kind.as_deref() {
        Some("enabled" | "adaptive") => true,
        Some("disabled") => false,
        Some(other) => {
            let message =
                format!("expected \"enabled\", \"adaptive\" or \"disabled\", got {:?}", excerpt(other));
            thinking.wrong("type", message);
            false
        }
        None => {
            thinking.missing("type");
            false
        }
    };
    let shown = match thinking.string("display").as_deref() {
        None | Some("summarized") => true,
        Some("omitted") => false,
        Some(other) => {
            let message = format!("expected \"summarized\" or \"omitted\", got {:?}", excerpt(other));
            thinking.wrong("display", message);
            true
        }
    };
    let budget = thinking.int("budget_tokens");
    if budget.is_some_and(|budget| budget < 0) {
        thinking.wrong("budget_tokens", "must be at least 0");
    }
    fields.absorb(thinking);
    kwargs.entry("enable_thinking").or_insert(enabled.into());
    (enabled && shown, budget.filter(|_| enabled))
}

/// `output_config`, and `output_format` as its part `format` was called first.
fn read_output(fields: &mut Fields, kwargs: &mut Map<String, Value>) -> Option<Structured> {
    let mut structured = None;
    if let Some(mut config) = fields.nested("output_config") {
        if let Some(effort) = config.string("effort") {
            // It is up to the template what comes of it.
            kwargs.entry("reasoning_effort").or_insert(effort.into());
        }
        structured = read_format(&mut config, "format", "output_config.format");
        fields.absorb(config);
    }
    read_format(fields, "output_format", "output_format").or(structured)
}

/// The object `name`, which is called `param` in errors.
fn read_format(fields: &mut Fields, name: &str, param: &str) -> Option<Structured> {
    let mut format = fields.nested(name)?;
    let schema = format.map("schema");
    match format.string("type").as_deref() {
        Some("json_schema") if schema.is_none() => format.missing("schema"),
        Some("json_schema") => (),
        Some(other) => format.wrong("type", format!("expected \"json_schema\", got {:?}", excerpt(other))),
        None => format.missing("type"),
    }
    fields.absorb(format);
    let constraint = Constraint::JsonSchema(Value::Object(schema?));
    Some(Structured { constraint, param: param.into() })
}

/// Tools in chat's form.
fn read_tools(fields: &mut Fields) -> Vec<Value> {
    let tools = fields.list("tools").unwrap_or_default();
    let tools = each("tools", tools, read_tool).unwrap_or_else(|wrong| {
        fields.wrong_part(wrong);
        Vec::new()
    });
    check_tools(&tools, fields);
    tools
}

fn read_tool(tool: Value) -> Result<Value, Wrong> {
    let mut tool = Part::new(tool)?;
    if let Some(kind) = tool.string("type")?.filter(|kind| kind != "custom") {
        let message = format!(
            "tools of type {:?} are not supported: only those with an input_schema, which the client runs itself",
            excerpt(&kind)
        );
        return Err(Wrong::new(".type", message));
    }
    let mut function = Map::from_iter([("name".to_owned(), tool.name("name")?.into())]);
    if let Some(description) = tool.string("description")? {
        function.insert("description".into(), description.into());
    }
    let schema = tool.object("input_schema")?.ok_or_else(|| Part::missing("input_schema"))?;
    function.insert("parameters".into(), schema.into());
    if tool.flag("strict")? {
        function.insert("strict".into(), true.into());
    }
    Ok(json!({"type": "function", "function": function}))
}

/// What the model may do with the tools, and whether it may call only one.
fn read_tool_choice(fields: &mut Fields, tools: &[Value]) -> (ToolChoice, bool) {
    let auto = if tools.is_empty() { ToolChoice::None } else { ToolChoice::Auto };
    match fields.take("tool_choice").map_or(Ok((auto.clone(), false)), |choice| choose(choice, auto, tools)) {
        Ok(chosen) => chosen,
        Err(wrong) => {
            fields.wrong_part(wrong.within("tool_choice"));
            (ToolChoice::None, false)
        }
    }
}

fn choose(choice: Value, auto: ToolChoice, tools: &[Value]) -> Result<(ToolChoice, bool), Wrong> {
    if !choice.is_object() {
        return Err(Wrong::new("", expected_got("an object", &choice)));
    }
    let mut choice = Part::new(choice)?;
    let single = choice.flag("disable_parallel_tool_use")?;
    let chosen = match choice.required_string("type")?.as_str() {
        "none" => ToolChoice::None,
        "auto" => auto,
        "any" if tools.is_empty() => {
            return Err(Wrong::new(".type", "\"any\" is allowed only when tools are given"));
        }
        "any" => ToolChoice::Required,
        "tool" => {
            let name = choice.name("name")?;
            if !tools.iter().any(|tool| tool["function"]["name"] == *name) {
                let message = format!("there is no tool {:?} in tools", excerpt(&name));
                return Err(Wrong::new(".name", message));
            }
            ToolChoice::Named(name)
        }
        other => return Err(none_of("type", "\"auto\", \"any\", \"tool\" or \"none\"", other)),
    };
    Ok((chosen, single))
}
