//! `POST /v1/embeddings`: texts in, one vector each out.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use super::encoding::{EncodingFormat, Vector};
use super::request::PoolingFields;
use crate::chat::Conversation;
use crate::embed::{EmbedInput, EmbedOptions, Embedding, MAX_INPUTS, embed};
use crate::http::chat::read_conversation;
use crate::http::error::{ApiError, excerpt};
use crate::http::fields::Fields;
use crate::http::json::Prompt;
use crate::http::openapi::Operation;
use crate::http::prompt::inputs_schema;
use crate::http::reply::{json, now};
use crate::http::{HttpState, RequestName};

/// A request, typed but not yet checked against the model.
#[derive(Debug)]
pub(crate) struct EmbeddingRequest {
    pub(crate) common: PoolingFields,
    pub(crate) source: EmbedSource,
    pub(crate) encoding: EncodingFormat,
    pub(crate) dimensions: Option<i64>,
    pub(crate) normalize: Option<bool>,
}

/// What is to be embedded.
#[derive(Debug)]
pub(crate) enum EmbedSource {
    Inputs(Vec<EmbedInput>),
    /// One conversation, as the chat template writes it.
    Chat(Box<Conversation>),
}

impl EmbeddingRequest {
    /// Reads the fields; errors stay in `fields`.
    pub(crate) fn read(fields: &mut Fields) -> Self {
        let source = if fields.has("messages") {
            EmbedSource::Chat(Box::new(read_conversation(fields)))
        } else {
            EmbedSource::Inputs(inputs(fields))
        };
        Self {
            source,
            common: PoolingFields::read(fields),
            encoding: encoding(fields),
            dimensions: fields.int("dimensions"),
            normalize: fields.bool("use_activation").or(fields.bool("normalize")),
        }
    }

    /// The embeddings of a request, under which name and id, and how to write them.
    pub(super) async fn run(
        self,
        state: &Arc<HttpState>,
        prefix: &str,
        name: RequestName,
    ) -> Result<Embedded, ApiError> {
        let chat = matches!(self.source, EmbedSource::Chat(_));
        let given = self.common.add_special_tokens;
        let (model, options) = self.common.resolve(state, prefix, name)?;
        let options = EmbedOptions {
            // Templates write those tokens themselves.
            add_special_tokens: given.unwrap_or(!chat),
            input_param: if chat { "messages" } else { "input" },
            dimensions: self.dimensions,
            normalize: self.normalize,
            ..options
        };
        let inputs = match self.source {
            EmbedSource::Inputs(inputs) => inputs,
            EmbedSource::Chat(conversation) => {
                let shared = state.clone();
                let render =
                    move || -> Result<_, ApiError> { Ok(conversation.render(shared.chat_template()?)?) };
                vec![EmbedInput::Text(state.app.text_pool.run(render).await??)]
            }
        };
        let embeddings = embed(&state.app, inputs, &options).await?;
        Ok(Embedded { id: options.request_id, model, embeddings, encoding: self.encoding })
    }
}

/// What a request gave.
pub(super) struct Embedded {
    pub(super) id: String,
    pub(super) model: String,
    pub(super) embeddings: Vec<Embedding>,
    pub(super) encoding: EncodingFormat,
}

/// The body of an answer.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct EmbeddingResponse {
    id: String,
    object: &'static str,
    created: i64,
    model: String,
    data: Vec<EmbeddingData>,
    usage: PoolingUsage,
}

#[derive(Debug, Serialize, JsonSchema)]
struct EmbeddingData {
    index: usize,
    object: &'static str,
    embedding: Vector,
}

/// How many tokens texts had. Nothing is generated, and nothing comes from the prefix cache.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct PoolingUsage {
    prompt_tokens: u64,
    total_tokens: u64,
    completion_tokens: u64,
    prompt_tokens_details: Option<()>,
}

impl PoolingUsage {
    pub(super) fn of<'a>(embeddings: impl IntoIterator<Item = &'a Embedding>) -> Self {
        let prompt_tokens = embeddings.into_iter().map(|one| u64::from(one.prompt_tokens)).sum();
        Self { prompt_tokens, total_tokens: prompt_tokens, ..Self::default() }
    }
}

/// How the route tells of itself.
pub(crate) fn describe(op: &mut Operation<'_>) {
    op.about("A vector for each text")
        .takes(|mut fields| drop(EmbeddingRequest::read(&mut fields)))
        .answers::<EmbeddingResponse>();
}

/// The handler.
pub(crate) async fn embeddings(
    State(state): State<Arc<HttpState>>,
    name: RequestName,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let request = EmbeddingRequest::read(&mut fields);
    fields.finish()?;
    let Embedded { id, model, embeddings, encoding } = request.run(&state, "embd", name).await?;
    let usage = PoolingUsage::of(&embeddings);
    let data = embeddings.into_iter().enumerate().map(|(index, one)| EmbeddingData {
        index,
        object: "embedding",
        embedding: Vector::new(one.values, encoding),
    });
    Ok(json(&EmbeddingResponse { id, object: "list", created: now(), model, data: data.collect(), usage }))
}

/// `input`, in its four forms.
fn inputs(fields: &mut Fields) -> Vec<EmbedInput> {
    let input = fields.text_or_ids("input");
    fields.describe("input", |app| inputs_schema(app, MAX_INPUTS));
    match input {
        Some(Prompt::Text(text)) => vec![EmbedInput::Text(text)],
        Some(Prompt::Texts(texts)) => texts.into_iter().map(EmbedInput::Text).collect(),
        Some(Prompt::Ids(ids)) if ids.is_empty() => Vec::new(),
        Some(Prompt::Ids(ids)) => vec![EmbedInput::Ids(ids)],
        Some(Prompt::IdLists(lists)) => lists.into_iter().map(EmbedInput::Ids).collect(),
        Some(Prompt::Invalid { .. }) | None => {
            fields.missing("input");
            Vec::new()
        }
    }
}

fn encoding(fields: &mut Fields) -> EncodingFormat {
    let mut only = |name: &str, allowed: &[&str]| {
        if let Some(given) = fields.string(name).filter(|given| !allowed.contains(&given.as_str())) {
            fields.wrong(name, format!("must be {}, got {:?}", allowed.join(" or "), excerpt(&given)));
        }
    };
    only("embed_dtype", &["float32"]);
    only("endianness", &["native", "little"]);
    let format = fields.string("encoding_format");
    fields.describe("embed_dtype", |_| json!({ "enum": ["float32"] }));
    fields.describe("endianness", |_| json!({ "enum": ["native", "little"] }));
    fields.describe("encoding_format", |_| json!({ "enum": ["float", "base64"] }));
    match format.as_deref() {
        None | Some("float") => EncodingFormat::Float,
        Some("base64") => EncodingFormat::Base64,
        Some(other) => {
            fields.wrong("encoding_format", format!("must be float or base64, got {:?}", excerpt(other)));
            EncodingFormat::Float
        }
    }
}
