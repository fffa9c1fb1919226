//! [`Reply`]: what both endpoints say around the text they return, and the collecting of whole answers.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

use crate::app::{App, ModelInfo};
use crate::config::Fingerprint;
use crate::engine::{Finish, FinishError, FinishKind, OutputStream, PromptOutput, StopCause, TokenLogprobs};

use super::error::ApiError;
use super::logprobs::TokenNames;
use super::request_metrics::RequestMetrics;
use super::usage::Usage;

/// The answer to one HTTP request, but for its text.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) id: String,
    /// Seconds since 1970.
    pub(crate) created: i64,
    /// The name that the client used.
    pub(crate) model: String,
    /// Choices a prompt.
    pub(crate) n: u32,
    pub(crate) prompts: Vec<ReplyPrompt>,
    pub(crate) names: TokenNames,
    pub(crate) wants_logprobs: bool,
    pub(crate) wants_prompt_logprobs: bool,
    pub(crate) return_token_ids: bool,
    pub(crate) style: ReplyStyle,
    /// Streams: a last chunk with the usage.
    pub(crate) include_usage: bool,
    /// Streams: the usage so far on every chunk.
    pub(crate) continuous_usage: bool,
}

/// What the operator wants of all answers.
#[derive(Debug, Clone)]
pub(crate) struct ReplyStyle {
    /// `system_fingerprint`.
    pub(crate) fingerprint: Option<Arc<str>>,
    /// The usage tells of the prefix cache.
    tells_cached: bool,
    /// An answer of just one choice tells how long it took.
    tells_metrics: bool,
}

impl ReplyStyle {
    pub(crate) fn of(app: &App) -> Self {
        let answers = &app.server.answers;
        Self {
            fingerprint: fingerprint(&answers.fingerprint, &app.model, app.limits.max_model_len),
            tells_cached: answers.prompt_tokens_details,
            tells_metrics: answers.request_metrics,
        }
    }
}

/// One prompt of the request.
#[derive(Debug)]
pub(crate) struct ReplyPrompt {
    pub(crate) ids: Arc<[u32]>,
    /// Text to repeat before the answer.
    pub(crate) echo: Option<String>,
    /// The prompt as text, if the client wants to see it.
    pub(crate) text: Option<String>,
}

impl Reply {
    /// Prompt tokens of the whole request.
    pub(crate) fn prompt_tokens(&self) -> u64 {
        self.prompts.iter().map(|prompt| prompt.ids.len() as u64).sum()
    }

    /// Tokens that were in the prefix cache, if that is told.
    pub(crate) fn cached_tokens(&self, cached_tokens: u64) -> Option<u64> {
        self.style.tells_cached.then_some(cached_tokens)
    }

    /// How long it took, if that is wanted: of several choices, none could be told from the others.
    pub(crate) fn metrics(&self, finish: Option<&Finish>) -> Option<RequestMetrics> {
        let single = self.n == 1 && self.prompts.len() == 1;
        finish.filter(|_| self.style.tells_metrics && single).map(RequestMetrics::of)
    }
}

/// All that one sequence gave.
#[derive(Debug, Default)]
pub(crate) struct Generated {
    pub(crate) prompt: PromptOutput,
    pub(crate) text: String,
    pub(crate) token_ids: Vec<u32>,
    pub(crate) logprobs: Vec<TokenLogprobs>,
    /// Always there once collected.
    pub(crate) finish: Option<Finish>,
}

/// Waits for the ends of all sequences of one prompt, in order of index.
///
/// # Errors
/// As [`check_finish`] if one of them failed; the others are then aborted by dropping the stream.
pub(crate) async fn collect(mut stream: OutputStream, n: u32) -> Result<Vec<Generated>, ApiError> {
    let mut all: Vec<_> = (0..n).map(|_| Generated::default()).collect();
    while let Some(delta) = stream.next().await {
        let one = &mut all[delta.index as usize];
        if let Some(prompt) = delta.prompt.take() {
            one.prompt = prompt;
        }
        one.text.push_str(&delta.text);
        one.token_ids.extend_from_slice(&delta.token_ids);
        one.logprobs.append(&mut delta.logprobs);
        if let Some(finish) = delta.finish.take() {
            one.finish = Some(check_finish(finish)?);
        }
    }
    Ok(all)
}

/// A failed sequence fails the request: with a 400 if its own parameters or its grammar let nothing follow, however
/// far it had come (clients send a 500 again, and it would end in the same way), else with a 500.
pub(crate) fn check_finish(finish: Finish) -> Result<Finish, ApiError> {
    if finish.kind != FinishKind::Error {
        return Ok(finish);
    }
    Err(match finish.error {
        Some(FinishError::OfRequest(reason)) => ApiError::impossible(&*reason),
        Some(FinishError::OfServer(reason)) => ApiError::internal(&*reason),
        None => ApiError::internal("the request failed"),
    })
}

/// Counts what a whole answer took.
pub(crate) fn usage(reply: &Reply, prompts: &[Vec<Generated>]) -> Usage {
    let cached = |sequences: &Vec<Generated>| u64::from(sequences[0].prompt.num_cached_tokens);
    Usage {
        prompt_tokens: reply.prompt_tokens(),
        cached_tokens: reply.cached_tokens(prompts.iter().map(cached).sum()),
        completion_tokens: prompts.iter().flatten().map(|one| one.token_ids.len() as u64).sum(),
        reasoning_tokens: 0,
    }
}

/// `stop_reason`: null for the model's own end, else the token or the text that stopped it, or vLLM's word for
/// what did.
pub(crate) struct StopReason<'a>(pub(crate) Option<&'a Finish>);

impl Serialize for StopReason<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_some_and(|finish| finish.kind == FinishKind::Repetition) {
            return serializer.serialize_str("repetition_detected");
        }
        match self.0.and_then(|finish| finish.stop.as_ref()) {
            None | Some(StopCause::Eos(_)) => serializer.serialize_none(),
            Some(StopCause::Token(token)) => serializer.serialize_u32(*token),
            Some(StopCause::Text(text)) => serializer.serialize_str(text),
        }
    }
}

impl JsonSchema for StopReason<'_> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "StopReason".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["integer", "string", "null"] })
    }
}

/// A 200 with this body.
pub(crate) fn json(body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => ([(CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(error) => ApiError::internal(format!("the answer could not be written: {error}")).into_response(),
    }
}

/// `system_fingerprint`. Servers with the same program, model and limits have the same; the hash is FNV-1a, which no
/// change of the compiler changes.
fn fingerprint(chosen: &Fingerprint, model: &ModelInfo, max_model_len: u32) -> Option<Arc<str>> {
    match chosen {
        Fingerprint::None => None,
        Fingerprint::Custom(text) => Some(text.as_str().into()),
        Fingerprint::Hash => {
            let facts = format!(
                "{}\n{}\n{}\n{max_model_len}\n{}\n{}\n{}",
                model.root,
                model.architecture,
                model.num_parameters,
                model.block_size,
                model.max_num_seqs,
                model.max_num_batched_tokens,
            );
            let step = |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
            let hash = facts.bytes().fold(0x811c_9dc5, step);
            Some(format!("quire-{}-{hash:08x}", env!("CARGO_PKG_VERSION")).into())
        }
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
