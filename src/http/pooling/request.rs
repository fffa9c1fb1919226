//! What requests to be pooled have in common: [`PoolingFields`].

use serde_json::json;

use crate::embed::{EmbedOptions, Truncation};
use crate::http::error::{ApiError, excerpt};
use crate::http::fields::Fields;
use crate::http::sampling::{choose_id, priority, request_id};
use crate::http::{HttpState, RequestName};

/// Everything but the texts.
#[derive(Debug, Default)]
pub(crate) struct PoolingFields {
    pub(crate) model: Option<String>,
    pub(crate) request_id: Option<String>,
    pub(crate) truncate: Option<Truncation>,
    pub(crate) add_special_tokens: Option<bool>,
    pub(crate) priority: i32,
    pub(crate) cache_salt: Option<String>,
}

impl PoolingFields {
    /// Reads the fields; errors stay in `fields`.
    pub(crate) fn read(fields: &mut Fields) -> Self {
        Self {
            model: fields.string("model"),
            request_id: request_id(fields),
            truncate: truncation(fields),
            add_special_tokens: fields.bool("add_special_tokens"),
            priority: priority(fields),
            cache_salt: fields.string("cache_salt"),
        }
    }

    /// The model's name and the request's, and how its texts are embedded.
    pub(crate) fn resolve(
        self,
        state: &HttpState,
        prefix: &str,
        name: RequestName,
    ) -> Result<(String, EmbedOptions), ApiError> {
        let model = state.served_name(self.model)?;
        let request_id = choose_id(prefix, name.sent.as_deref(), self.request_id.or(name.given))?;
        let options = EmbedOptions {
            request_id,
            add_special_tokens: self.add_special_tokens.unwrap_or(true),
            truncate: self.truncate,
            priority: self.priority,
            cache_salt: self.cache_salt,
            ..EmbedOptions::default()
        };
        Ok((model, options))
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
