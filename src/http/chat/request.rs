//! What a client may send to `/v1/chat/completions`: [`ChatRequest`], and the [`Conversation`] in it, which
//! `/tokenize` takes as well.

use serde_json::{Value, json};

use crate::chat::{Conversation, MAX_TOOLS, ToolChoice};

use super::job::ChatJob;
use super::messages::{message_schema, read_messages, read_messages_at};
use super::tools::{read_tool_choice, read_tools, tool_choice_schema, tool_schema};
use crate::http::error::ApiError;
use crate::http::fields::{Fields, expected_got};
use crate::http::json::MAX_PROMPTS;
use crate::http::sampling::{CommonFields, logprobs_schema, max_tokens_schema};
use crate::http::structured::Structured;

/// A request, typed but not yet checked against the model.
#[derive(Debug)]
pub(crate) struct ChatRequest {
    pub(crate) common: CommonFields,
    pub(crate) conversation: Conversation,
    pub(crate) tool_choice: ToolChoice,
    pub(crate) single_tool_call: bool,
    pub(crate) include_reasoning: bool,
    pub(crate) return_prompt_text: bool,
}

impl ChatRequest {
    pub(crate) fn read(mut fields: Fields) -> Result<Self, ApiError> {
        let messages = list_of_messages(&mut fields);
        let mut request = Self::read_rest(messages, &mut fields);
        fields.finish()?;
        let sampling = &mut request.common.sampling;
        if request.common.echo {
            // As for completions: what is repeated is scored like the answer.
            sampling.prompt_logprobs = sampling.prompt_logprobs.or(sampling.logprobs);
        }
        Ok(request)
    }

    /// Everything but `messages`.
    fn read_rest(messages: Vec<Value>, fields: &mut Fields) -> Self {
        let mut common = CommonFields::read(fields);
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
        let mut conversation = with_messages(messages, fields);
        let tool_choice = read_tool_choice(fields, &mut conversation.tools);
        let single_tool_call = fields.bool("parallel_tool_calls") == Some(false);
        let include_reasoning = fields.bool("include_reasoning").unwrap_or(true);
        let return_prompt_text = fields.bool("return_prompt_text").unwrap_or(false);
        fields.describe("max_tokens", max_tokens_schema);
        fields.describe("max_completion_tokens", max_tokens_schema);
        fields.describe("top_logprobs", logprobs_schema);
        fields.describe("tool_choice", |_| tool_choice_schema());
        Self { common, conversation, tool_choice, single_tool_call, include_reasoning, return_prompt_text }
    }

    /// What is to be done with one conversation.
    pub(super) fn job(&self, id: String, conversation: Conversation) -> ChatJob {
        let common = &self.common;
        let (constraint, constraint_param) = common.structured.clone().map(Structured::into_parts).unzip();
        ChatJob {
            id,
            conversation,
            tool_choice: self.tool_choice.clone(),
            single_tool_call: self.single_tool_call,
            include_reasoning: self.include_reasoning,
            sampling: common.sampling.clone(),
            bad_words: common.bad_words.clone(),
            constraint,
            constraint_param: constraint_param.unwrap_or_default(),
            priority: common.priority,
            cache_salt: common.cache_salt.clone(),
            truncate: common.truncate,
            add_special_tokens: common.add_special_tokens.unwrap_or(false),
            ..ChatJob::default()
        }
    }
}

/// A request with several conversations, alike in all but their messages.
#[derive(Debug)]
pub(super) struct BatchRequest {
    /// Its own conversation has no messages.
    pub(super) request: ChatRequest,
    pub(super) conversations: Vec<Vec<Value>>,
}

impl BatchRequest {
    pub(super) fn read(mut fields: Fields) -> Result<Self, ApiError> {
        let conversations = lists_of_messages(&mut fields);
        let request = ChatRequest::read_rest(Vec::new(), &mut fields);
        fields.describe("messages", |_| {
            let conversation = json!({ "type": "array", "items": message_schema(), "minItems": 1 });
            json!({ "items": conversation, "minItems": 1, "maxItems": MAX_PROMPTS })
        });
        let common = &request.common;
        for (name, asked, why) in [
            ("stream", common.stream, "batches are not streamed"),
            ("prompt_logprobs", common.sampling.prompt_logprobs.is_some(), "batches do not score prompts"),
            ("return_token_ids", common.return_token_ids, "batches do not return tokens"),
            ("return_prompt_text", request.return_prompt_text, "batches do not return prompts"),
        ] {
            if asked {
                fields.wrong(name, format!("not supported: {why}"));
            }
        }
        fields.finish()?;
        Ok(Self { request, conversations })
    }
}

fn lists_of_messages(fields: &mut Fields) -> Vec<Vec<Value>> {
    let lists = fields.list("messages");
    if lists.is_none() {
        fields.missing("messages");
    }
    let lists = lists.unwrap_or_default();
    if lists.len() > MAX_PROMPTS {
        fields.wrong("messages", format!("at most {MAX_PROMPTS} conversations are allowed in one request"));
        return Vec::new();
    }
    let mut conversations = Vec::with_capacity(lists.len());
    for (index, list) in lists.into_iter().enumerate() {
        let at = format!("messages[{index}]");
        match list {
            Value::Array(messages) => conversations.push(read_messages_at(&at, messages, fields)),
            other => fields.wrong(at, expected_got("a list of messages", &other)),
        }
    }
    if conversations.is_empty() {
        fields.missing("messages");
    }
    conversations
}

fn list_of_messages(fields: &mut Fields) -> Vec<Value> {
    match fields.list("messages") {
        Some(messages) => read_messages(messages, fields),
        None => {
            fields.missing("messages");
            Vec::new()
        }
    }
}

/// Reads `messages` and all that goes to the template with them.
pub(crate) fn read_conversation(fields: &mut Fields) -> Conversation {
    let messages = list_of_messages(fields);
    with_messages(messages, fields)
}

/// vLLM's words.
const CONTINUES_AND_PROMPTS: &str =
    "Cannot set both `continue_final_message` and `add_generation_prompt` to True.";

/// Reads all that goes to the template with the messages.
fn with_messages(messages: Vec<Value>, fields: &mut Fields) -> Conversation {
    let tools = read_tools(fields);
    fields.describe("messages", |_| json!({ "items": message_schema(), "minItems": 1 }));
    fields.describe("tools", |_| json!({ "items": tool_schema(), "minItems": 1, "maxItems": MAX_TOOLS }));
    let mut kwargs = fields.map("chat_template_kwargs").unwrap_or_default();
    if let Some(effort) = fields.string("reasoning_effort") {
        // It is up to the template what comes of it, as in vLLM.
        kwargs.entry("reasoning_effort").or_insert(effort.into());
    }
    let continue_final_message = fields.bool("continue_final_message").unwrap_or(false);
    let add_generation_prompt = fields.bool("add_generation_prompt");
    if continue_final_message && add_generation_prompt == Some(true) {
        fields.wrong("continue_final_message", CONTINUES_AND_PROMPTS);
    }
    Conversation {
        messages,
        tools,
        documents: fields.list("documents"),
        add_generation_prompt: add_generation_prompt.unwrap_or(!continue_final_message),
        continue_final_message,
        kwargs,
        template: fields.string("chat_template"),
    }
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
    fn choices_of_tools() {
        let choice = |fields: &str| read(&with(fields)).map(|request| request.tool_choice);
        let tools = r#""tools":[{"type":"function","function":{"name":"f"}},{"type":"function","function":{"name":"g"}}]"#;
        for (given, expected) in [
            ("", ToolChoice::Auto),
            (r#","tool_choice":null"#, ToolChoice::Auto),
            (r#","tool_choice":"auto""#, ToolChoice::Auto),
            (r#","tool_choice":"none""#, ToolChoice::None),
            (r#","tool_choice":"required""#, ToolChoice::Required),
            (r#","tool_choice":{"type":"function","function":{"name":"g"}}"#, ToolChoice::Named("g".into())),
        ] {
            assert_eq!(choice(&format!("{tools}{given}")), Ok(expected), "{given}");
        }
        assert_eq!(choice(r#""tool_choice":"none""#), Ok(ToolChoice::None));
        for wrong in [
            r#""tool_choice":"auto""#.to_owned(),
            format!(r#"{tools},"tool_choice":"any""#),
            format!(r#"{tools},"tool_choice":1"#),
            format!(r#"{tools},"tool_choice":{{"type":"custom"}}"#),
            format!(r#"{tools},"tool_choice":{{"type":"function"}}"#),
            format!(r#"{tools},"tool_choice":{{"type":"function","function":{{"name":"h"}}}}"#),
        ] {
            let error = choice(&wrong).unwrap_err();
            assert!(error.contains("\"param\":\"tool_choice\""), "{wrong}: {error}");
        }
    }

    #[test]
    fn allowed_tools_leave_the_others_out() {
        let request = |mode: &str, name: &str| {
            read(&with(&format!(
                r#""tools":[{{"type":"function","function":{{"name":"f"}}}},{{"type":"function","function":{{"name":"g"}}}}],
                "tool_choice":{{"type":"allowed_tools","allowed_tools":{{"mode":"{mode}","tools":[
                {{"type":"function","function":{{"name":"{name}"}}}}]}}}}"#
            )))
        };
        let read = request("required", "g").unwrap();
        assert_eq!(read.tool_choice, ToolChoice::Required);
        let tools = read.conversation.tools.unwrap();
        assert_eq!((tools.len(), &tools[0]["function"]["name"]), (1, &"g".into()));
        assert!(request("none", "g").is_err() && request("auto", "h").is_err());
    }

    #[test]
    fn tools_that_are_none_are_named() {
        for (tools, at) in [
            ("[]", "tools"),
            ("[3]", "tools[0]"),
            (r#"[{"type":"custom","custom":{"name":"f"}}]"#, "tools[0].type"),
            (r#"[{"type":"function"}]"#, "tools[0].function"),
            (r#"[{"type":"function","function":{}}]"#, "tools[0].function.name"),
            (r#"[{"type":"function","function":{"name":"a b"}}]"#, "tools[0].function.name"),
            (
                r#"[{"type":"function","function":{"name":"f","parameters":[]}}]"#,
                "tools[0].function.parameters",
            ),
            (r#"[{"type":"function","function":{"name":"f","strict":1}}]"#, "tools[0].function.strict"),
            (r#"[{"function":{"name":"f"}},{"function":{"name":"f"}}]"#, "tools[1].function.name"),
        ] {
            let error = read(&with(&format!(r#""tools":{tools}"#))).unwrap_err();
            assert!(error.contains(&format!("\"param\":\"{at}\"")), "{tools}: {error}");
        }
        let many = vec![r#"{"type":"function","function":{"name":"f"}}"#; 129].join(",");
        assert!(read(&with(&format!(r#""tools":[{many}]"#))).unwrap_err().contains("at most 128"));
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
        assert_eq!(conversation.answer_role("model"), "assistant");
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
