//! What a client may send to `/v1/completions`, and the work on its text.

use std::sync::Arc;

use quire_scheduler::Grammar;
use serde_json::json;

use crate::http::HttpState;
use crate::http::error::ApiError;
use crate::http::fields::Fields;
use crate::http::json::Prompt;
use crate::http::prompt::{TruncationSide, prompt_schema, truncate_ids};
use crate::http::sampling::{CommonFields, logprobs_schema};
use crate::http::structured::{Structured, compile};

/// OpenAI's default.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// A request, typed but not yet checked against the model.
#[derive(Debug)]
pub(crate) struct CompletionRequest {
    pub(crate) common: CommonFields,
    pub(crate) prompt: Prompt,
    /// `max_tokens` 0 with `echo`: the client wants the prompt scored and no more. One token is generated,
    /// because a prompt is computed by going one step beyond it, and is not shown.
    pub(crate) echo_only: bool,
}

impl CompletionRequest {
    pub(crate) fn read(mut fields: Fields) -> Result<Self, ApiError> {
        let mut common = CommonFields::read(&mut fields);
        let prompt = fields.prompt("prompt").unwrap_or_else(|| {
            // In the words that clients of vLLM look for.
            if !fields.has_errors() {
                fields.wrong("prompt", "Either prompt or prompt_embeds must be provided and non-empty.");
            }
            fields.missing("prompt");
            Prompt::Ids(Vec::new())
        });
        let sampling = &mut common.sampling;
        sampling.logprobs = fields.int("logprobs");
        sampling.logprobs_param = "logprobs";
        fields.describe("logprobs", logprobs_schema);
        // 0 is for `echo` alone.
        fields.describe(
            "max_tokens",
            |app| json!({ "minimum": 0, "exclusiveMaximum": app.limits.max_model_len }),
        );
        fields.describe("prompt", prompt_schema);
        sampling.default_max_tokens = Some(DEFAULT_MAX_TOKENS);
        fields.finish()?;
        let echo_only = common.echo && sampling.max_tokens == Some(0);
        if echo_only {
            if sampling.logprob_token_ids.is_some() {
                let message = "logprob_token_ids are of generated tokens, and max_tokens 0 asks for none";
                return Err(ApiError::bad_param("logprob_token_ids", message));
            }
            sampling.max_tokens = Some(1);
        }
        if common.echo && sampling.logprobs.is_some() {
            if common.stream && sampling.n.is_some_and(|n| n > 1) {
                // The scores of the prompt come with the first choice; the others would have to wait.
                let message = "echo with logprobs and n above 1 cannot be streamed; set stream to false";
                return Err(ApiError::bad_param("echo", message));
            }
            sampling.prompt_logprobs = sampling.prompt_logprobs.or(sampling.logprobs);
        }
        Ok(Self { common, prompt, echo_only })
    }
}

/// Work on the text of a request.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) prompt: Prompt,
    pub(crate) bad_words: Vec<String>,
    pub(crate) add_special_tokens: bool,
    pub(crate) truncate: Option<(usize, TruncationSide)>,
    pub(crate) echo: bool,
    pub(crate) structured: Option<Structured>,
}

/// One prompt as the engine will get it.
#[derive(Debug, PartialEq)]
pub(crate) struct Prepared {
    pub(crate) ids: Vec<u32>,
    pub(crate) echo: Option<String>,
}

/// What the work comes to.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) prompts: Vec<Prepared>,
    /// In tokens.
    pub(crate) bad_words: Vec<Vec<u32>>,
    pub(crate) grammar: Option<Grammar>,
}

impl Work {
    /// Does it, on the text pool if it is more than a copy.
    pub(crate) async fn run(self, state: &Arc<HttpState>) -> Result<Done, ApiError> {
        let text = matches!(self.prompt, Prompt::Text(_) | Prompt::Texts(_));
        if !text && !self.echo && self.bad_words.is_empty() && self.structured.is_none() {
            return self.prepare(state);
        }
        let shared = state.clone();
        state.app.text_pool.run(move || self.prepare(&shared)).await?
    }

    fn prepare(self, state: &HttpState) -> Result<Done, ApiError> {
        let (encoder, tokenizer) = (&state.encoder, &state.app.tokenizer);
        let Self { prompt, bad_words, add_special_tokens, truncate, echo, structured } = self;
        let from_text = |text: String| -> Result<Prepared, ApiError> {
            let ids = encoder.encode(&text, add_special_tokens, truncate)?;
            let echo = echo.then(|| if truncate.is_some() { tokenizer.decode(&ids, false) } else { text });
            Ok(Prepared { ids, echo })
        };
        let from_ids = |mut ids: Vec<u32>| {
            if let Some((keep, side)) = truncate {
                truncate_ids(&mut ids, keep, side);
            }
            let echo = echo.then(|| tokenizer.decode(&ids, false));
            Prepared { ids, echo }
        };
        let prompts = match prompt {
            Prompt::Text(text) => vec![from_text(text)?],
            Prompt::Texts(texts) => texts.into_iter().map(from_text).collect::<Result<_, _>>()?,
            Prompt::Ids(ids) => vec![from_ids(ids)],
            Prompt::IdLists(lists) => lists.into_iter().map(from_ids).collect(),
            Prompt::Invalid { message, .. } => return Err(ApiError::bad_param("prompt", message)),
        };
        let bad_words = encoder.bad_words(&bad_words)?;
        let compile = |asked: Structured| compile(&state.app.grammars, &asked.constraint, &asked.param);
        let grammar = structured.map(compile).transpose()?;
        Ok(Done { prompts, bad_words, grammar })
    }
}
