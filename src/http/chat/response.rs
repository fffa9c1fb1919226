//! A whole answer of `/v1/chat/completions`. Fields without a value are there as nulls, as in vLLM.

use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use crate::chat::{ChatDelta, ChatStream, ToolCallStart};
use crate::engine::{Finish, PromptOutput, TokenLogprobs};
use crate::http::error::ApiError;
use crate::http::logprobs::{ChatLogprobs, PromptLogprobs};
use crate::http::reply::{Reply, StopReason, check_finish, json};
use crate::http::request_metrics::RequestMetrics;
use crate::http::usage::Usage;

#[derive(Serialize, JsonSchema)]
pub(super) struct ChatCompletion<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    choices: Vec<Choice<'a>>,
    service_tier: Option<()>,
    system_fingerprint: Option<&'a str>,
    usage: Usage,
    metrics: Option<RequestMetrics>,
    prompt_logprobs: Option<PromptLogprobs<'a>>,
    prompt_token_ids: Option<&'a [u32]>,
    prompt_text: Option<&'a str>,
    kv_transfer_params: Option<()>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ChatChoice")]
struct Choice<'a> {
    index: usize,
    message: Message<'a>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: StopReason<'a>,
    token_ids: Option<&'a [u32]>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ChatMessage")]
struct Message<'a> {
    role: &'a str,
    /// Null if there is none, because the model called tools.
    content: Option<String>,
    refusal: Option<()>,
    annotations: Option<()>,
    audio: Option<()>,
    function_call: Option<()>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<CallBody<'a>>,
    reasoning: Option<&'a str>,
}

#[derive(Serialize, JsonSchema)]
struct CallBody<'a> {
    id: &'a str,
    r#type: &'static str,
    function: FunctionBody<'a>,
}

#[derive(Serialize, JsonSchema)]
struct FunctionBody<'a> {
    name: &'a str,
    arguments: &'a str,
}

/// All of one answer.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) prompt: PromptOutput,
    pub(crate) reasoning: String,
    pub(crate) content: String,
    pub(crate) tool_calls: Vec<ToolCall>,
    pub(crate) token_ids: Vec<u32>,
    pub(crate) logprobs: Vec<TokenLogprobs>,
    pub(crate) num_reasoning_tokens: u32,
    /// Always there once collected.
    pub(crate) finish: Option<Finish>,
    /// OpenAI's word for it.
    pub(crate) finish_reason: Option<&'static str>,
}

/// One whole tool call.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct ToolCall {
    /// Its id and the function's name.
    pub(crate) start: ToolCallStart,
    /// A JSON object, as text.
    pub(crate) arguments: String,
}

/// Waits for the ends of all `n` answers, in order of index.
///
/// # Errors
/// 500 if one of them failed; the others are then aborted by dropping the stream.
pub(crate) async fn collect_chat(mut stream: ChatStream, n: u32) -> Result<Vec<Answer>, ApiError> {
    let mut answers: Vec<_> = (0..n).map(|_| Answer::default()).collect();
    while let Some(delta) = stream.next().await {
        answers[delta.index as usize].take(delta)?;
    }
    Ok(answers)
}

impl Answer {
    /// Adds what is new.
    ///
    /// # Errors
    /// 500 if the answer failed.
    pub(crate) fn take(&mut self, delta: &mut ChatDelta) -> Result<(), ApiError> {
        if let Some(prompt) = delta.prompt.take() {
            self.prompt = prompt;
        }
        self.reasoning.push_str(&delta.reasoning);
        self.content.push_str(&delta.content);
        for piece in &mut delta.tool_calls {
            if let Some(start) = piece.start.take() {
                self.tool_calls.push(ToolCall { start, arguments: String::new() });
            }
            self.tool_calls[piece.index as usize].arguments.push_str(&piece.arguments);
        }
        self.token_ids.extend_from_slice(&delta.token_ids);
        self.logprobs.append(&mut delta.logprobs);
        self.num_reasoning_tokens = delta.num_reasoning_tokens;
        self.finish_reason = delta.finish_reason();
        if let Some(finish) = delta.finish.take() {
            self.finish = Some(check_finish(finish)?);
        }
        Ok(())
    }
}

/// `answers` has `n` answers to each prompt in turn, and `roles` says for each prompt whose they are.
pub(super) fn whole(reply: &Reply, answers: &[Answer], roles: &[String]) -> Response {
    let prompt = &reply.prompts[0];
    let n = reply.n as usize;
    let choice = |(index, answer)| choice(index, reply, answer, &roles[index / n]);
    let cached = |answer: &Answer| u64::from(answer.prompt.num_cached_tokens);
    // The engine scores the prompt once, for the first answer.
    let prompt_logprobs = answers[0].prompt.logprobs.as_deref();
    json(&ChatCompletion {
        id: &reply.id,
        object: "chat.completion",
        created: reply.created,
        model: &reply.model,
        choices: answers.iter().enumerate().map(choice).collect(),
        service_tier: None,
        system_fingerprint: reply.style.fingerprint.as_deref(),
        metrics: reply.metrics(answers[0].finish.as_ref()),
        usage: Usage {
            prompt_tokens: reply.prompt_tokens(),
            cached_tokens: reply.cached_tokens(answers.iter().step_by(n).map(cached).sum()),
            completion_tokens: answers.iter().map(|answer| answer.token_ids.len() as u64).sum(),
            reasoning_tokens: answers.iter().map(|answer| u64::from(answer.num_reasoning_tokens)).sum(),
        },
        prompt_logprobs: prompt_logprobs
            .map(|entries| PromptLogprobs { entries, tokenizer: &reply.names.tokenizer }),
        prompt_token_ids: reply.return_token_ids.then_some(&*prompt.ids),
        prompt_text: prompt.text.as_deref(),
        kv_transfer_params: None,
    })
}

fn choice<'a>(index: usize, reply: &'a Reply, answer: &'a Answer, role: &'a str) -> Choice<'a> {
    let echo = reply.prompts[index / reply.n as usize].echo.as_deref().unwrap_or_default();
    let content = format!("{echo}{}", answer.content);
    let call = |call: &'a ToolCall| CallBody {
        id: &call.start.id,
        r#type: "function",
        function: FunctionBody { name: &call.start.name, arguments: &call.arguments },
    };
    let message = Message {
        role,
        content: Some(content).filter(|content| !content.is_empty() || answer.tool_calls.is_empty()),
        refusal: None,
        annotations: None,
        audio: None,
        function_call: None,
        tool_calls: answer.tool_calls.iter().map(call).collect(),
        reasoning: Some(&*answer.reasoning).filter(|reasoning| !reasoning.is_empty()),
    };
    Choice {
        index,
        message,
        logprobs: reply.wants_logprobs.then(|| ChatLogprobs::new(&answer.logprobs, &reply.names)),
        finish_reason: answer.finish_reason,
        stop_reason: StopReason(answer.finish.as_ref()),
        token_ids: reply.return_token_ids.then_some(&*answer.token_ids),
    }
}
