//! `POST /tokenize` and `POST /detokenize`: what the model sees, without running it.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use super::HttpState;
use super::chat::read_conversation;
use super::error::ApiError;
use super::fields::Fields;
use super::json::Prompt;
use super::openapi::Operation;
use super::prompt::token_id_schema;
use super::reply::json;
use crate::chat::Conversation;

#[derive(Serialize, JsonSchema)]
struct Tokenized {
    count: usize,
    max_model_len: u32,
    tokens: Vec<u32>,
    /// In the vocabulary's own spelling.
    token_strs: Option<Vec<String>>,
}

#[derive(Serialize, JsonSchema)]
struct Detokenized {
    prompt: String,
}

/// A text, or a conversation that goes through the chat template first.
#[derive(Debug)]
enum Source {
    Text(String),
    Chat(Box<Conversation>),
}

#[derive(Debug)]
struct TokenizeRequest {
    model: Option<String>,
    return_token_strs: bool,
    add_special_tokens: bool,
    source: Source,
}

impl TokenizeRequest {
    fn read(fields: &mut Fields) -> Self {
        let model = fields.string("model");
        let return_token_strs = fields.bool("return_token_strs").unwrap_or(false);
        let chat = fields.has("messages");
        let add_special_tokens = fields.bool("add_special_tokens").unwrap_or(!chat);
        let source = if chat {
            Source::Chat(Box::new(read_conversation(fields)))
        } else {
            let prompt = fields.prompt("prompt");
            fields.describe("prompt", |_| json!({ "type": "string" }));
            match prompt {
                Some(Prompt::Text(text)) => Source::Text(text),
                Some(_) => {
                    fields.wrong("prompt", "expected a string");
                    Source::Text(String::new())
                }
                None => {
                    fields.missing("prompt");
                    Source::Text(String::new())
                }
            }
        };
        Self { model, return_token_strs, add_special_tokens, source }
    }
}

#[derive(Debug)]
struct DetokenizeRequest {
    model: Option<String>,
    tokens: Vec<u32>,
}

impl DetokenizeRequest {
    fn read(fields: &mut Fields) -> Self {
        let model = fields.string("model");
        let tokens = match fields.prompt("tokens") {
            Some(Prompt::Ids(ids)) => ids,
            Some(_) => {
                fields.wrong("tokens", "expected a list of token ids");
                Vec::new()
            }
            None => {
                fields.missing("tokens");
                Vec::new()
            }
        };
        fields.describe("tokens", |app| json!({ "type": "array", "items": token_id_schema(app) }));
        Self { model, tokens }
    }
}

/// How `/tokenize` tells of itself.
pub(crate) fn describe_tokenize(op: &mut Operation<'_>) {
    op.about("The tokens of a text or of a conversation")
        .takes(|mut fields| drop(TokenizeRequest::read(&mut fields)))
        .answers::<Tokenized>();
}

/// How `/detokenize` tells of itself.
pub(crate) fn describe_detokenize(op: &mut Operation<'_>) {
    op.about("The text of tokens")
        .takes(|mut fields| drop(DetokenizeRequest::read(&mut fields)))
        .answers::<Detokenized>();
}

/// The handler of `/tokenize`.
pub(crate) async fn tokenize(
    State(state): State<Arc<HttpState>>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let request = TokenizeRequest::read(&mut fields);
    fields.finish()?;
    let TokenizeRequest { model, return_token_strs, add_special_tokens, source } = request;
    state.check_model(model.as_deref())?;
    let shared = state.clone();
    let work = move || -> Result<_, ApiError> {
        let text = match source {
            Source::Chat(mut conversation) => {
                shared.app.chat.complete(&mut conversation, true);
                shared.render(&conversation)?
            }
            Source::Text(text) => text,
        };
        let tokens = shared.encoder.encode(&text, add_special_tokens, None)?;
        let spelling = |&id: &u32| shared.app.tokenizer.token_str(id).unwrap_or_default();
        let token_strs = return_token_strs.then(|| tokens.iter().map(spelling).collect());
        Ok((tokens, token_strs))
    };
    let (tokens, token_strs) = state.app.text_pool.run(work).await??;
    let max_model_len = state.app.limits.max_model_len;
    Ok(json(&Tokenized { count: tokens.len(), max_model_len, tokens, token_strs }))
}

/// The handler of `/detokenize`.
pub(crate) async fn detokenize(
    State(state): State<Arc<HttpState>>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let request = DetokenizeRequest::read(&mut fields);
    fields.finish()?;
    let DetokenizeRequest { model, tokens } = request;
    state.check_model(model.as_deref())?;
    let vocab_size = state.app.limits.vocab_size;
    if let Some(id) = tokens.iter().find(|&&id| id >= vocab_size) {
        let message = format!("token id {id} is out of vocabulary; ids go from 0 to {}", vocab_size - 1);
        return Err(ApiError::bad_param("tokens", message));
    }
    let tokenizer = state.app.tokenizer.clone();
    let prompt = state.app.text_pool.run(move || tokenizer.decode(&tokens, false)).await?;
    Ok(json(&Detokenized { prompt }))
}
