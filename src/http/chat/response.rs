//! A whole answer of `/v1/chat/completions`. Fields without a value are there as nulls, as in vLLM.

use axum::response::Response;
use serde::Serialize;

use crate::http::logprobs::{ChatLogprobs, PromptLogprobs};
use crate::http::reply::{FINGERPRINT, Generated, Reply, StopReason, json, usage};
use crate::http::usage::Usage;

#[derive(Serialize)]
struct ChatCompletion<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    choices: Vec<Choice<'a>>,
    service_tier: Option<()>,
    system_fingerprint: &'static str,
    usage: Usage,
    prompt_logprobs: Option<PromptLogprobs<'a>>,
    prompt_token_ids: Option<&'a [u32]>,
    kv_transfer_params: Option<()>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    message: Message<'a>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: StopReason<'a>,
    token_ids: Option<&'a [u32]>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'a str,
    content: String,
    refusal: Option<()>,
    annotations: Option<()>,
    audio: Option<()>,
    function_call: Option<()>,
    reasoning: Option<()>,
}

/// `outputs` has the `n` sequences of the one prompt.
pub(super) fn whole(reply: &Reply, outputs: &[Vec<Generated>], role: &str) -> Response {
    let (prompt, sequences) = (&reply.prompts[0], &outputs[0]);
    let choice = |(index, sequence)| choice(index, reply, sequence, role);
    // The engine scores the prompt once, for the first sequence.
    let prompt_logprobs = sequences[0].prompt.logprobs.as_deref();
    json(&ChatCompletion {
        id: &reply.id,
        object: "chat.completion",
        created: reply.created,
        model: &reply.model,
        choices: sequences.iter().enumerate().map(choice).collect(),
        service_tier: None,
        system_fingerprint: FINGERPRINT,
        usage: usage(reply, outputs),
        prompt_logprobs: prompt_logprobs
            .map(|entries| PromptLogprobs { entries, tokenizer: &reply.names.tokenizer }),
        prompt_token_ids: reply.return_token_ids.then_some(&*prompt.ids),
        kv_transfer_params: None,
    })
}

fn choice<'a>(index: usize, reply: &'a Reply, sequence: &'a Generated, role: &'a str) -> Choice<'a> {
    let echo = reply.prompts[0].echo.as_deref().unwrap_or_default();
    let message = Message {
        role,
        content: format!("{echo}{}", sequence.text),
        refusal: None,
        annotations: None,
        audio: None,
        function_call: None,
        reasoning: None,
    };
    Choice {
        index,
        message,
        logprobs: reply.wants_logprobs.then(|| ChatLogprobs::new(&sequence.logprobs, &reply.names)),
        finish_reason: sequence.finish.as_ref().map(|finish| finish.kind.as_str()),
        stop_reason: StopReason(sequence.finish.as_ref()),
        token_ids: reply.return_token_ids.then_some(&*sequence.token_ids),
    }
}
