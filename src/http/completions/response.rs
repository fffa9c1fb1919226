//! A whole answer of `/v1/completions`. Fields without a value are there as nulls, as in vLLM.

use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use crate::engine::{Finish, FinishKind, TokenLogprobs};

use crate::http::logprobs::{CompletionLogprobs, PromptLogprobs, TokenNames};
use crate::http::reply::{Generated, Reply, ReplyPrompt, StopReason, json, usage};
use crate::http::request_metrics::RequestMetrics;
use crate::http::usage::Usage;

#[derive(Serialize, JsonSchema)]
pub(super) struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    choices: Vec<Choice<'a>>,
    service_tier: Option<()>,
    system_fingerprint: Option<&'a str>,
    usage: Usage,
    metrics: Option<RequestMetrics>,
    kv_transfer_params: Option<()>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "CompletionChoice")]
struct Choice<'a> {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: StopReason<'a>,
    token_ids: Option<&'a [u32]>,
    prompt_logprobs: Option<PromptLogprobs<'a>>,
    prompt_token_ids: Option<&'a [u32]>,
}

/// `outputs` has one list a prompt, with its `n` sequences.
pub(super) fn whole(reply: &Reply, mut outputs: Vec<Vec<Generated>>, echo_only: bool) -> Response {
    if echo_only {
        outputs.iter_mut().flatten().for_each(hide_output);
    }
    let mut choices = Vec::new();
    for (prompt, sequences) in reply.prompts.iter().zip(&outputs) {
        // The engine scores the prompt once, for the first sequence.
        let prompt_logprobs = sequences[0].prompt.logprobs.as_deref();
        for sequence in sequences {
            choices.push(choice(choices.len(), reply, prompt, prompt_logprobs, sequence));
        }
    }
    json(&Completion {
        id: &reply.id,
        object: "text_completion",
        created: reply.created,
        model: &reply.model,
        choices,
        service_tier: None,
        system_fingerprint: reply.style.fingerprint.as_deref(),
        usage: usage(reply, &outputs),
        metrics: reply.metrics(outputs[0][0].finish.as_ref()),
        kv_transfer_params: None,
    })
}

/// Logprobs of an echoed prompt.
pub(super) fn prompt_part(
    logprobs: &mut CompletionLogprobs,
    prompt: &ReplyPrompt,
    entries: &[Option<TokenLogprobs>],
    names: &TokenNames,
) {
    for (&token, entry) in prompt.ids.iter().zip(entries) {
        match entry {
            Some(entry) => logprobs.push(entry, names),
            None => logprobs.push_unknown(token, names),
        }
    }
}

fn choice<'a>(
    index: usize,
    reply: &'a Reply,
    prompt: &'a ReplyPrompt,
    prompt_logprobs: Option<&'a [Option<TokenLogprobs>]>,
    sequence: &'a Generated,
) -> Choice<'a> {
    let logprobs = reply.wants_logprobs.then(|| {
        let mut logprobs = CompletionLogprobs::default();
        if prompt.echo.is_some() {
            prompt_part(&mut logprobs, prompt, prompt_logprobs.unwrap_or_default(), &reply.names);
        }
        sequence.logprobs.iter().for_each(|entry| logprobs.push(entry, &reply.names));
        logprobs
    });
    let tokenizer = &reply.names.tokenizer;
    let shown = prompt_logprobs.filter(|_| reply.wants_prompt_logprobs);
    Choice {
        index,
        text: format!("{}{}", prompt.echo.as_deref().unwrap_or_default(), sequence.text),
        logprobs,
        finish_reason: sequence.finish.as_ref().map(|finish| finish.kind.as_str()),
        stop_reason: StopReason(sequence.finish.as_ref()),
        token_ids: reply.return_token_ids.then_some(&*sequence.token_ids),
        prompt_logprobs: shown.map(|entries| PromptLogprobs { entries, tokenizer }),
        prompt_token_ids: reply.return_token_ids.then_some(&*prompt.ids),
    }
}

/// Only the prompt was asked for.
fn hide_output(sequence: &mut Generated) {
    sequence.text.clear();
    sequence.token_ids.clear();
    sequence.logprobs.clear();
    hide_stop(&mut sequence.finish);
}

/// What stopped the output is not to be seen either.
pub(super) fn hide_stop(finish: &mut Option<Finish>) {
    if let Some(finish) = finish
        && finish.kind == FinishKind::Stop
    {
        finish.kind = FinishKind::Length;
        finish.stop = None;
    }
}
