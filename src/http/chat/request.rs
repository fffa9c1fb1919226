//! What a client may send to `/v1/chat/completions`: [`ChatRequest`], and the [`Conversation`] in it, which
//! `/tokenize` takes as well.

use serde_json::{Value, json};

use crate::chat::Conversation;

use super::messages::{message_schema, read_messages};
use crate::http::error::ApiError;
use crate::http::fields::Fields;
use crate::http::sampling::{CommonFields, logprobs_schema, max_tokens_schema};

/// A request, typed but not yet checked against the model.
#[derive(Debug)]
pub(crate) struct ChatRequest {
    pub(crate) common: CommonFields,
    pub(crate) conversation: Conversation,
}

impl ChatRequest {
    pub(crate) fn read(mut fields: Fields) -> Result<Self, ApiError> {
        let mut common = CommonFields::read(&mut fields);
        let sampling = &mut common.sampling;
        // The newer name counts if both are given.
        if let Some(max_tokens) = fields.int("max_completion_tokens") {
            sampling.max_tokens = Some(max_tokens);
            sampling.max_tokens_param = "max_completion_tokens";
        }
        let logprobs = fields.bool("logprobs").unwrap_or(false);
        let top_logprobs = fields.int("top_logprobs").unwrap_or(0);
        if logprobs {
            sampling.logprobs = Some(top_logprobs);
        } else if top_logprobs != 0 {
            fields.wrong("top_logprobs", "allowed only when logprobs is true");
        }
        sampling.logprobs_param = "top_logprobs";
        fields.describe("max_tokens", max_tokens_schema);
        fields.describe("max_completion_tokens", max_tokens_schema);
        fields.describe("top_logprobs", logprobs_schema);
        let tool_choice = fields.take("tool_choice");
        let has_tools = fields.has("tools");
        let conversation = read_conversation(&mut fields);
        fields.finish()?;
        check_tool_choice(has_tools, tool_choice.as_ref())?;
        Ok(Self { common, conversation })
    }
}

/// A model that is shown tools may call them, and nobody here would understand the call. So tools are
/// taken only with the promise that plain text is wanted.
fn check_tool_choice(has_tools: bool, choice: Option<&Value>) -> Result<(), ApiError> {
    let refuse = |message: &str| Err(ApiError::bad_param("tool_choice", message));
    match (has_tools, choice.map(|choice| choice.as_str())) {
        (_, Some(Some("none"))) | (false, None) => Ok(()),
        (false, Some(_)) => refuse("tool_choice is allowed only when tools are given"),
        (true, None | Some(Some("auto"))) => refuse(
            "tool_choice \"auto\" (the default when tools are given) is not supported: parsing of tool calls is \
             not built yet; with tool_choice \"none\" the model sees the tools and answers in text",
        ),
        (true, Some(_)) => refuse(
            "only tool_choice \"none\" is supported: the model sees the tools and answers in text; parsing of tool \
             calls is not built yet",
        ),
    }
}

/// Reads `messages` and all that goes to the template with them.
pub(crate) fn read_conversation(fields: &mut Fields) -> Conversation {
    let messages = match fields.list("messages") {
        Some(messages) => read_messages(messages, fields),
        None => {
            fields.missing("messages");
            Vec::new()
        }
    };
    fields.describe("messages", |_| json!({ "items": message_schema(), "minItems": 1 }));
    let tools = fields.list("tools");
    fields.describe("tools", |_| json!({ "items": tool_schema(), "minItems": 1 }));
    if tools.as_ref().is_some_and(|tools| tools.is_empty()) {
        fields.wrong("tools", "must not be empty; leave it out if there are none");
    }
    let mut kwargs = fields.map("chat_template_kwargs").unwrap_or_default();
    if let Some(effort) = fields.string("reasoning_effort") {
        // It is up to the template what comes of it, as in vLLM.
        kwargs.entry("reasoning_effort").or_insert(effort.into());
    }
    let continue_final_message = fields.bool("continue_final_message").unwrap_or(false);
    let add_generation_prompt = fields.bool("add_generation_prompt");
    if continue_final_message && add_generation_prompt == Some(true) {
        fields.wrong("continue_final_message", "cannot be true together with add_generation_prompt");
    }
    Conversation {
        messages,
        tools,
        documents: fields.list("documents"),
        add_generation_prompt: add_generation_prompt.unwrap_or(!continue_final_message),
        continue_final_message,
        kwargs,
    }
}

fn tool_schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "type": { "const": "function" },
            "function": {
                "type": "object",
                "properties": {
                    "name": { "type": "string", "minLength": 1 },
                    "description": { "type": "string" },
                    "parameters": { "type": "object" },
                },
                "required": ["name"],
            },
        },
        "required": ["type", "function"],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::json;

    fn read(json: &str) -> Result<ChatRequest, String> {
        let fields = Fields::new(json::parse(json.as_bytes()).unwrap());
        ChatRequest::read(fields).map_err(|error| error.to_json())
    }

    fn with(fields: &str) -> String {
        format!(r#"{{"messages":[{{"role":"user","content":"hi"}}],{fields}}}"#)
    }

    #[test]
    fn the_newer_limit_counts() {
        let request = read(&with(r#""max_tokens":5,"max_completion_tokens":7"#)).unwrap();
        assert_eq!(request.common.sampling.max_tokens, Some(7));
        assert_eq!(request.common.sampling.max_tokens_param, "max_completion_tokens");
        assert_eq!(read(&with(r#""max_tokens":5"#)).unwrap().common.sampling.max_tokens, Some(5));
        assert_eq!(read(&with(r#""n":null"#)).unwrap().common.sampling.max_tokens, None);
    }

    #[test]
    fn logprobs_are_a_switch_and_a_number() {
        let logprobs = |fields: &str| read(&with(fields)).map(|request| request.common.sampling.logprobs);
        assert_eq!(logprobs(r#""logprobs":true,"top_logprobs":3"#), Ok(Some(3)));
        assert_eq!(logprobs(r#""logprobs":true,"top_logprobs":null"#), Ok(Some(0)));
        assert_eq!(logprobs(r#""logprobs":false,"top_logprobs":0"#), Ok(None));
        assert!(logprobs(r#""top_logprobs":3"#).unwrap_err().contains("\"param\":\"top_logprobs\""));
        assert!(logprobs(r#""logprobs":3"#).unwrap_err().contains("logprobs: expected a boolean"));
    }

    #[test]
    fn tools_need_tool_choice_none() {
        let tools = r#""tools":[{"type":"function","function":{"name":"f"}}]"#;
        read(&with(&format!(r#"{tools},"tool_choice":"none","parallel_tool_calls":true"#))).unwrap();
        for choice in [
            "",
            r#","tool_choice":"auto""#,
            r#","tool_choice":"required""#,
            r#","tool_choice":{"type":"function","function":{"name":"f"}}"#,
        ] {
            let error = read(&with(&format!("{tools}{choice}"))).unwrap_err();
            assert!(error.contains("\"param\":\"tool_choice\""), "{error}");
        }
        read(&with(r#""tool_choice":"none""#)).unwrap();
        assert!(read(&with(r#""tool_choice":"auto""#)).unwrap_err().contains("\"param\":\"tool_choice\""));
        assert!(read(&with(r#""tools":[]"#)).unwrap_err().contains("\"param\":\"tools\""));
    }

    #[test]
    fn continuing_excludes_a_generation_prompt() {
        let conversation = read(
            r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],
                "continue_final_message":true,"echo":true}"#,
        )
        .unwrap()
        .conversation;
        assert!(!conversation.add_generation_prompt);
        assert_eq!(conversation.answer_role(), "assistant");
        assert_eq!(conversation.echo("assistant").as_deref(), Some("b"));
        assert_eq!(conversation.echo("user"), None);
        let both = r#""continue_final_message":true,"add_generation_prompt":true"#;
        assert!(read(&with(both)).unwrap_err().contains("\"param\":\"continue_final_message\""));
    }

    #[test]
    fn messages_are_required() {
        assert!(read("{}").unwrap_err().contains("messages: this field is required"));
        assert!(read(r#"{"messages":"hi"}"#).unwrap_err().contains("messages: expected a list"));
    }
}
