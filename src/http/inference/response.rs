//! A whole answer of `/inference/v1/generate`. Fields without a value are there as nulls, as in vLLM.

use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use super::logprobs::OutputLogprobs;
use crate::http::logprobs::PromptLogprobs;
use crate::http::reply::{Generated, Reply, StopReason, json, usage};
use crate::http::usage::Usage;

#[derive(Serialize, JsonSchema)]
pub(super) struct Generation<'a> {
    request_id: &'a str,
    output_mode: &'static str,
    choices: Vec<GenerationChoice<'a>>,
    usage: Usage,
    prompt_logprobs: Option<PromptLogprobs<'a>>,
    kv_transfer_params: Option<()>,
}

#[derive(Serialize, JsonSchema)]
struct GenerationChoice<'a> {
    index: usize,
    /// Only with `output_mode` `text`.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    logprobs: Option<OutputLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: StopReason<'a>,
    token_ids: &'a [u32],
}

/// Answer of `/inference/v1/abort_requests`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AbortedRequests")]
pub(super) struct Aborted {
    /// Sequences that were told to end.
    pub(super) num_aborted: usize,
}

/// `outputs` has the `n` sequences of the one prompt.
pub(super) fn whole(reply: &Reply, outputs: Vec<Generated>, text: bool) -> Response {
    let outputs = [outputs];
    let choice = |(index, output)| choice(index, reply, output, text);
    let choices = outputs[0].iter().enumerate().map(choice).collect();
    // The engine scores the prompt once, for the first sequence.
    let prompt_logprobs = outputs[0][0].prompt.logprobs.as_deref();
    let tokenizer = &reply.names.tokenizer;
    json(&Generation {
        request_id: &reply.id,
        output_mode: if text { "text" } else { "tokens" },
        choices,
        usage: usage(reply, &outputs),
        prompt_logprobs: prompt_logprobs.map(|entries| PromptLogprobs { entries, tokenizer }),
        kv_transfer_params: None,
    })
}

fn choice<'a>(index: usize, reply: &Reply, output: &'a Generated, text: bool) -> GenerationChoice<'a> {
    GenerationChoice {
        index,
        text: text.then_some(&*output.text),
        logprobs: reply.wants_logprobs.then(|| OutputLogprobs::new(&output.logprobs, &reply.names, text)),
        finish_reason: output.finish.as_ref().map(|finish| finish.kind.as_str()),
        stop_reason: StopReason(output.finish.as_ref()),
        token_ids: &output.token_ids,
    }
}
