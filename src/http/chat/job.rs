//! [`ChatJob`]: what every API that chats asks for in the end, and its way into the engine.

use std::sync::Arc;

use quire_scheduler::Adapter;

use super::calling::{Asked, Calling, Reading};
use crate::chat::{ChatParser, ChatStream, Conversation, ToolChoice};
use crate::engine::GenerateRequest;
use crate::grammar::Constraint;
use crate::http::HttpState;
use crate::http::error::ApiError;
use crate::http::prompt::{Truncate, truncation};
use crate::http::structured::compile;
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
    /// At most one call is made (`parallel_tool_calls: false`).
    pub(crate) single_tool_call: bool,
    /// Whether reasoning is shown apart; if not, it is left out.
    pub(crate) include_reasoning: bool,
    /// What the answer must look like.
    pub(crate) constraint: Option<Constraint>,
    /// The field that says so, for errors.
    pub(crate) constraint_param: String,
    pub(crate) sampling: SamplingFields,
    pub(crate) bad_words: Vec<String>,
    pub(crate) priority: i32,
    pub(crate) cache_salt: Option<String>,
    /// The adapter it runs with.
    pub(crate) adapter: Option<Adapter>,
    pub(crate) truncate: Option<Truncate>,
    /// Whether the tokenizer adds its own; templates write those tokens themselves.
    pub(crate) add_special_tokens: bool,
}

/// A chat request that the engine can take.
#[derive(Debug)]
pub(crate) struct PreparedChat {
    pub(crate) request: GenerateRequest,
    /// What the template made of the conversation.
    pub(crate) prompt_text: String,
    parser: ChatParser,
}

impl ChatJob {
    /// Renders, tokenizes and checks, the expensive parts on the text pool.
    pub(crate) async fn prepare(self, state: &Arc<HttpState>) -> Result<PreparedChat, ApiError> {
        // Before its template, which a model that is pooled need not have.
        state.app.engine.check_room(1, false)?;
        let chat = &state.app.chat;
        let Self { mut conversation, mut sampling, bad_words, add_special_tokens, .. } = self;
        let asked = self.constraint.map(|constraint| Asked { constraint, param: self.constraint_param });
        let calling = Calling {
            tools: conversation.tools.as_deref(),
            choice: &self.tool_choice,
            single: self.single_tool_call,
        };
        let Reading { mut parser, asked, kept_special_tokens } = calling.reading(asked, &state.app)?;
        chat.complete(&mut conversation, self.tool_choice != ToolChoice::None);
        let truncate = truncation(self.truncate, sampling.max_tokens, &state.app.limits)?;
        let (raw_prompt, include_reasoning) = (self.raw_prompt, self.include_reasoning);
        let shared = state.clone();
        let work = move || -> Result<_, ApiError> {
            let app = &shared.app;
            let text = match raw_prompt {
                Some(text) => text,
                None => {
                    let text = shared.render(&conversation)?;
                    let continues = conversation.continue_final_message;
                    parser = parser.with_reasoning(&app.chat, &text, continues, include_reasoning);
                    text
                }
            };
            let ids = shared.encoder.encode(&text, add_special_tokens, truncate)?;
            let bad_words = shared.encoder.bad_words(&bad_words)?;
            let compiled = asked.map(|asked| compile(&app.grammars, &asked.constraint, &asked.param));
            let grammar =
                compiled.transpose()?.map(|grammar| parser.after_reasoning(grammar, &app.tokenizer));
            Ok((ids, bad_words, grammar, parser, text))
        };
        let (ids, bad_words, grammar, parser, prompt_text) = state.app.text_pool.run(work).await??;
        if sampling.thinking_token_budget.is_some()
            && let Some(marks) = &state.app.limits.thinking
        {
            sampling.thinking_start = Some(parser.thinking_start(marks, &ids, grammar.is_some()));
        }
        sampling.bad_words_token_ids = bad_words;
        sampling.grammar = grammar;
        sampling.kept_special_tokens = kept_special_tokens;
        let fields = RequestFields {
            external_id: self.id,
            prompt_token_ids: ids,
            priority: self.priority,
            cache_salt: self.cache_salt,
            bypass_prefix_cache: false,
            adapter: self.adapter,
        };
        let request = generate_request(fields, sampling, &state.app.limits)?;
        Ok(PreparedChat { request, prompt_text, parser })
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
