//! [`ChatJob`]: what every API that chats asks for in the end, and its way into the engine.

use std::sync::Arc;

use crate::chat::{ChatParser, ChatStream, Conversation, ToolChoice};
use crate::engine::GenerateRequest;
use crate::grammar::Constraint;
use crate::http::HttpState;
use crate::http::error::ApiError;
use crate::http::prompt::{Truncate, truncation};
use crate::validate::{RequestFields, SamplingFields, generate_request};

/// A chat request, typed but not yet checked against the model.
#[derive(Debug, Default)]
pub(crate) struct ChatJob {
    /// The client's name for it, with the API's prefix.
    pub(crate) id: String,
    pub(crate) conversation: Conversation,
    /// The prompt as text, instead of a conversation that a template makes one of.
    pub(crate) raw_prompt: Option<String>,
    /// What the model may do with the conversation's tools.
    pub(crate) tool_choice: ToolChoice,
    /// Whether reasoning is shown apart; if not, it is left out.
    pub(crate) include_reasoning: bool,
    /// What the answer must look like.
    pub(crate) constraint: Option<Constraint>,
    pub(crate) sampling: SamplingFields,
    pub(crate) bad_words: Vec<String>,
    pub(crate) priority: i32,
    pub(crate) cache_salt: Option<String>,
    pub(crate) truncate: Option<Truncate>,
    /// Whether the tokenizer adds its own; templates write those tokens themselves.
    pub(crate) add_special_tokens: bool,
}

/// A chat request that the engine can take.
#[derive(Debug)]
pub(crate) struct PreparedChat {
    pub(crate) request: GenerateRequest,
    parser: ChatParser,
}

impl ChatJob {
    /// Renders, tokenizes and checks, the expensive parts on the text pool.
    pub(crate) async fn prepare(self, state: &Arc<HttpState>) -> Result<PreparedChat, ApiError> {
        let Self { conversation, raw_prompt, mut sampling, bad_words, add_special_tokens, .. } = self;
        let truncate = truncation(self.truncate, sampling.max_tokens, &state.app.limits)?;
        let shared = state.clone();
        let work = move || -> Result<_, ApiError> {
            let text = match raw_prompt {
                Some(text) => text,
                None => conversation.render(shared.chat_template()?)?,
            };
            let ids = shared.encoder.encode(&text, add_special_tokens, truncate)?;
            Ok((ids, shared.encoder.bad_words(&bad_words)?))
        };
        let (ids, bad_words) = state.app.text_pool.run(work).await??;
        sampling.bad_words_token_ids = bad_words;
        let fields = RequestFields {
            external_id: self.id,
            prompt_token_ids: ids,
            priority: self.priority,
            cache_salt: self.cache_salt,
            bypass_prefix_cache: false,
        };
        let request = generate_request(fields, sampling, &state.app.limits)?;
        Ok(PreparedChat { request, parser: ChatParser::default() })
    }
}

impl PreparedChat {
    /// Hands it to the engine.
    pub(crate) fn submit(self, state: &HttpState) -> Result<ChatStream, ApiError> {
        let n = self.request.n;
        let mut streams = state.submit(vec![self.request])?;
        Ok(ChatStream::new(streams.remove(0), n, &self.parser))
    }
}
