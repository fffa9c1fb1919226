//! How near texts are to each other: by a model that reads both at once (a cross-encoder), or by the cosine of the
//! angle between their embeddings.

use serde_json::Value;

use crate::embed::{EmbedInput, EmbedOptions, Embedding, PoolTask, Pooler, embed};
use crate::http::HttpState;
use crate::http::error::ApiError;
use crate::http::fields::{Fields, expected_got};

/// Texts of a request, and the field they came in.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) param: &'static str,
    pub(super) texts: Vec<String>,
}

/// What is the same for all pairs, beyond what all pooled requests have.
#[derive(Debug, Clone, Copy)]
pub(super) struct ScoreFields {
    use_activation: Option<bool>,
    /// Own tokens of a query and of a document.
    max_text_tokens: [Option<u32>; 2],
}

impl ScoreFields {
    /// Reads the fields; errors stay in `fields`.
    pub(super) fn read(fields: &mut Fields) -> Self {
        Self {
            use_activation: fields.bool("use_activation"),
            max_text_tokens: ["max_tokens_per_query", "max_tokens_per_doc"].map(|name| limit(fields, name)),
        }
    }
}

/// 0 means none, as in vLLM.
fn limit(fields: &mut Fields, name: &str) -> Option<u32> {
    let given = fields.int(name);
    fields.describe(name, |_| serde_json::json!({ "minimum": 0 }));
    let given = given?;
    if given < 0 {
        fields.wrong(name, format!("{name} must be a non-negative integer, 0 for no limit, got {given}"));
    }
    // What does not fit in 32 bits is above any context.
    (given > 0).then(|| u32::try_from(given).unwrap_or(u32::MAX))
}

/// A field of texts: one or a list, each a string, an object with one in `text`, or an object whose `content` is one
/// part of text.
pub(super) fn texts(fields: &mut Fields, name: &str) -> Vec<String> {
    let Some(value) = fields.take(name) else {
        fields.missing(name);
        return Vec::new();
    };
    let (values, single) = match value {
        Value::Array(values) => (values, false),
        one => (vec![one], true),
    };
    let mut texts = Vec::with_capacity(values.len());
    for (index, value) in values.into_iter().enumerate() {
        match text(value) {
            Ok(text) => texts.push(text),
            Err(value) => {
                let at = if single { name.to_owned() } else { format!("{name}[{index}]") };
                fields.wrong(at, expected_got("a string or an object with a text", &value));
                break;
            }
        }
    }
    texts
}

fn text(value: Value) -> Result<String, Value> {
    let Value::Object(mut object) = value else {
        return if let Value::String(text) = value { Ok(text) } else { Err(value) };
    };
    if let Some(Value::String(text)) = object.remove("text") {
        return Ok(text);
    }
    match object.remove("content").as_ref().and_then(Value::as_array).map(Vec::as_slice) {
        Some([part]) if part["type"] == "text" => part["text"].as_str().map(str::to_owned),
        _ => None,
    }
    .ok_or(Value::Object(object))
}

/// For `/openapi.json`: what [`texts`] takes.
pub(super) fn texts_schema() -> Value {
    let text = serde_json::json!({ "type": "string", "minLength": 1 });
    let object =
        serde_json::json!({ "type": "object", "properties": { "text": text }, "required": ["text"] });
    let one = serde_json::json!({ "anyOf": [text, object] });
    serde_json::json!({ "anyOf": [text, object, { "type": "array", "items": one, "minItems": 1 }] })
}

/// Scores, and how many tokens were computed for them.
pub(super) struct Scores {
    pub(super) scores: Vec<f64>,
    pub(super) prompt_tokens: u64,
}

/// How near each text of the right is to that on the left, or to the only one there.
pub(super) async fn scores(
    state: &HttpState,
    options: EmbedOptions,
    fields: ScoreFields,
    left: Side,
    right: Side,
) -> Result<Scores, ApiError> {
    let limits = [(left.param, "max_tokens_per_query"), (right.param, "max_tokens_per_doc")];
    for (limit, (_, name)) in fields.max_text_tokens.iter().zip(limits) {
        let max = state.app.limits.max_model_len;
        if limit.is_some_and(|limit| limit >= max) {
            let message = format!("{name} must be less than the model's maximum context length ({max})");
            return Err(ApiError::bad_param(name, message));
        }
    }
    match &state.app.pooler {
        Some(pooler) if pooler.task() == PoolTask::Classify => {
            check_one_label(pooler)?;
            by_pairs(state, options, fields, left, right).await
        }
        _ => by_cosine(state, options, fields, left, right).await,
    }
}

fn check_one_label(pooler: &Pooler) -> Result<(), ApiError> {
    match pooler.width {
        1 => Ok(()),
        labels => Err(ApiError::wrong_task(format!(
            "the model has {labels} labels, and scores need a model with one; see /classify"
        ))),
    }
}

async fn by_pairs(
    state: &HttpState,
    options: EmbedOptions,
    fields: ScoreFields,
    left: Side,
    right: Side,
) -> Result<Scores, ApiError> {
    let options = EmbedOptions {
        task: Some(PoolTask::Classify),
        input_param: right.param,
        max_text_tokens: fields.max_text_tokens,
        use_activation: fields.use_activation,
        ..options
    };
    let lefts = left.texts.iter().chain(left.texts.last().into_iter().cycle());
    let pairs = lefts.zip(right.texts).map(|(left, right)| EmbedInput::Pair(left.clone(), right));
    let logits = embed(&state.app, pairs.collect(), &options).await?;
    let scores = logits.iter().filter_map(|one| one.values.first()).map(|score| f64::from(*score)).collect();
    Ok(Scores { scores, prompt_tokens: tokens(&logits) })
}

async fn by_cosine(
    state: &HttpState,
    options: EmbedOptions,
    fields: ScoreFields,
    left: Side,
    right: Side,
) -> Result<Scores, ApiError> {
    let [per_query, per_doc] = fields.max_text_tokens;
    let embed_side = async |side: Side, limit: Option<u32>| {
        let options = EmbedOptions {
            input_param: side.param,
            max_text_tokens: [limit, None],
            use_activation: Some(true),
            ..options.clone()
        };
        let inputs = side.texts.into_iter().map(EmbedInput::Text).collect();
        embed(&state.app, inputs, &options).await
    };
    let (left, right) =
        futures_util::future::try_join(embed_side(left, per_query), embed_side(right, per_doc)).await?;
    let lefts = left.iter().chain(left.last().into_iter().cycle());
    let scores = lefts.zip(&right).map(|(left, right)| cosine(left, right)).collect();
    Ok(Scores { scores, prompt_tokens: tokens(&left) + tokens(&right) })
}

fn tokens(vectors: &[Embedding]) -> u64 {
    vectors.iter().map(|one| u64::from(one.prompt_tokens)).sum()
}

/// Of two vectors of length 1.
fn cosine(left: &Embedding, right: &Embedding) -> f64 {
    let products = left.values.iter().zip(&right.values).map(|(a, b)| f64::from(*a) * f64::from(*b));
    products.sum()
}
