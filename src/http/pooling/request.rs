//! What requests to be pooled have in common: [`PoolingFields`], and [`PooledTexts`] of those that take texts one by
//! one.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use crate::chat::Conversation;
use crate::embed::{EmbedInput, EmbedOptions, Embedding, MAX_INPUTS, PoolTask, Truncation, embed};
use crate::http::chat::read_conversation;
use crate::http::error::{ApiError, excerpt};
use crate::http::fields::Fields;
use crate::http::json::Prompt;
use crate::http::prompt::inputs_schema;
use crate::http::sampling::{self, choose_id, priority, request_id};
use crate::http::{HttpState, RequestName};

/// Texts in `input`, or a conversation in `messages`, and what is to become of them.
#[derive(Debug)]
pub(crate) struct PooledTexts {
    common: PoolingFields,
    source: Source,
    use_activation: Option<bool>,
    /// Numbers of a vector to keep.
    pub(super) dimensions: Option<i64>,
}

#[derive(Debug)]
enum Source {
    Inputs(Vec<EmbedInput>),
    /// One conversation, as the chat template writes it.
    Chat(Box<Conversation>),
}

/// What a request gave, under which name and id.
pub(super) struct Pooled {
    pub(super) id: String,
    pub(super) model: String,
    pub(super) vectors: Vec<Embedding>,
}

impl PooledTexts {
    /// Reads the fields; errors stay in `fields`.
    pub(super) fn read(fields: &mut Fields) -> Self {
        let source = if fields.has("messages") {
            Source::Chat(Box::new(conversation(fields)))
        } else {
            Source::Inputs(inputs(fields))
        };
        let use_activation = fields.bool("use_activation").or(fields.bool("normalize"));
        Self { source, use_activation, common: PoolingFields::read(fields), dimensions: None }
    }

    /// Computes what was asked for. `task` as in [`EmbedOptions`].
    pub(super) async fn run(
        self,
        state: &Arc<HttpState>,
        prefix: &str,
        name: RequestName,
        task: Option<PoolTask>,
    ) -> Result<Pooled, ApiError> {
        let chat = matches!(self.source, Source::Chat(_));
        let given = self.common.add_special_tokens;
        let (model, options) = self.common.resolve(state, prefix, name).await?;
        let options = EmbedOptions {
            task,
            // Templates write those tokens themselves.
            add_special_tokens: given.unwrap_or(!chat),
            input_param: if chat { "messages" } else { "input" },
            dimensions: self.dimensions,
            use_activation: self.use_activation,
            ..options
        };
        let inputs = match self.source {
            Source::Inputs(inputs) => inputs,
            Source::Chat(conversation) => {
                let shared = state.clone();
                let render = move || -> Result<_, ApiError> { shared.render(&conversation) };
                vec![EmbedInput::Text(state.app.text_pool.run(render).await??)]
            }
        };
        let vectors = embed(&state.app, inputs, &options).await?;
        Ok(Pooled { id: options.request_id, model, vectors })
    }
}

/// Unlike where an answer is wanted, the template does not begin one unless asked.
fn conversation(fields: &mut Fields) -> Conversation {
    let asked = fields.has("add_generation_prompt");
    let conversation = read_conversation(fields);
    Conversation { add_generation_prompt: asked && conversation.add_generation_prompt, ..conversation }
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

/// How many tokens texts had. Nothing is generated, and nothing comes from the prefix cache.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct PoolingUsage {
    prompt_tokens: u64,
    total_tokens: u64,
    completion_tokens: u64,
    prompt_tokens_details: Option<()>,
}

impl PoolingUsage {
    pub(super) fn of(vectors: &[Embedding]) -> Self {
        Self::of_tokens(vectors.iter().map(|one| u64::from(one.prompt_tokens)).sum())
    }

    pub(super) fn of_tokens(prompt_tokens: u64) -> Self {
        Self { prompt_tokens, total_tokens: prompt_tokens, ..Self::default() }
    }
}

/// Everything but the texts.
#[derive(Debug, Default)]
pub(crate) struct PoolingFields {
    pub(crate) model: Option<String>,
    pub(crate) request_id: Option<String>,
    pub(crate) truncate: Option<Truncation>,
    pub(crate) pad: bool,
    pub(crate) add_special_tokens: Option<bool>,
    pub(crate) priority: i32,
    pub(crate) cache_salt: Option<String>,
}

impl PoolingFields {
    /// Reads the fields; errors stay in `fields`.
    pub(crate) fn read(fields: &mut Fields) -> Self {
        let common = Self {
            model: fields.string("model"),
            request_id: request_id(fields),
            truncate: truncation(fields),
            pad: padding(fields),
            add_special_tokens: fields.bool("add_special_tokens"),
            priority: priority(fields),
            cache_salt: fields.string("cache_salt"),
        };
        sampling::describe(fields);
        common
    }

    /// The model's name and the request's, and how its texts are embedded.
    pub(crate) async fn resolve(
        self,
        state: &HttpState,
        prefix: &str,
        name: RequestName,
    ) -> Result<(String, EmbedOptions), ApiError> {
        let served = state.served(self.model).await?;
        let request_id = choose_id(prefix, name.sent.as_deref(), self.request_id.or(name.given))?;
        let options = EmbedOptions {
            request_id,
            add_special_tokens: self.add_special_tokens.unwrap_or(true),
            truncate: self.truncate,
            pad: self.pad,
            priority: self.priority,
            cache_salt: self.cache_salt,
            adapter: served.adapter,
            ..EmbedOptions::default()
        };
        Ok((served.name, options))
    }
}

fn padding(fields: &mut Fields) -> bool {
    let padding = fields.string("padding");
    fields.describe("padding", |_| json!({ "enum": ["max_length", "do_not_pad"] }));
    match padding.as_deref() {
        None | Some("do_not_pad") => false,
        Some("max_length") => true,
        Some(other) => {
            let message = format!("must be \"max_length\" or \"do_not_pad\", got {:?}", excerpt(other));
            fields.wrong("padding", message);
            false
        }
    }
}

/// `truncate_prompt_tokens` and `truncation_side`. Unlike prompts to be continued, texts keep their beginning
/// (as in vLLM).
fn truncation(fields: &mut Fields) -> Option<Truncation> {
    let side = fields.string("truncation_side");
    fields.describe("truncation_side", |_| json!({ "enum": ["left", "right"] }));
    let keep_end = match side.as_deref() {
        None | Some("right") => false,
        Some("left") => true,
        Some(other) => {
            let message = format!("must be \"left\" or \"right\", got {:?}", excerpt(other));
            fields.wrong("truncation_side", message);
            false
        }
    };
    let max_tokens = fields.int("truncate_prompt_tokens")?;
    if max_tokens < -1 || max_tokens == 0 {
        let message = format!("must be at least 1, or -1 for what the context allows, got {max_tokens}");
        fields.wrong("truncate_prompt_tokens", message);
    }
    // What does not fit in 32 bits is above any context.
    let max_tokens = (max_tokens > 0).then(|| u32::try_from(max_tokens).unwrap_or(u32::MAX));
    Some(Truncation { max_tokens, keep_end })
}
