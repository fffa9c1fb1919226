//! `POST /v2/embed`: embeddings as Cohere's API has them.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use super::encoding::{Encoding, Vector};
use super::request::PoolingFields;
use crate::embed::{EmbedInput, EmbedOptions, Embedding, MAX_INPUTS, Truncation, embed as embed_all};
use crate::http::error::{ApiError, excerpt};
use crate::http::fields::Fields;
use crate::http::openapi::Operation;
use crate::http::reply;
use crate::http::{HttpState, RequestName};

/// A request, typed but not yet checked against the model.
#[derive(Debug)]
struct CohereRequest {
    common: PoolingFields,
    texts: Vec<String>,
    input_type: Option<String>,
    dimensions: Option<i64>,
    types: Vec<EmbeddingType>,
    /// The most tokens of a text, if it is to be refused beyond.
    max_tokens: Option<u32>,
}

/// `embedding_types`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EmbeddingType {
    Float,
    /// A bit a number, whether it is negative; eight in a signed byte.
    Binary,
    /// The same in unsigned bytes.
    Ubinary,
    Base64,
}

const TYPES: [(&str, EmbeddingType); 4] = [
    ("float", EmbeddingType::Float),
    ("binary", EmbeddingType::Binary),
    ("ubinary", EmbeddingType::Ubinary),
    ("base64", EmbeddingType::Base64),
];

impl CohereRequest {
    fn read(fields: &mut Fields) -> Self {
        let texts = fields.strings("texts");
        fields.describe("texts", |_| json!({ "minItems": 1, "maxItems": MAX_INPUTS }));
        for name in ["images", "inputs"] {
            if fields.take(name).is_some() {
                fields.wrong(name, "is not supported: this server embeds texts; see texts");
            }
            fields.describe(name, |_| json!({ "type": "null" }));
        }
        let texts = texts.unwrap_or_else(|| {
            fields.missing("texts");
            Vec::new()
        });
        let max_tokens = fields.int("max_tokens");
        fields.describe("max_tokens", |_| json!({ "minimum": 1 }));
        if max_tokens.is_some_and(|max| max < 1) {
            fields.wrong("max_tokens", "must be at least 1");
        }
        let max_tokens = max_tokens.map(|max| u32::try_from(max.max(1)).unwrap_or(u32::MAX));
        let truncate = truncation(fields, max_tokens);
        Self {
            texts,
            input_type: fields.string("input_type"),
            dimensions: fields.int("output_dimension"),
            types: types(fields),
            max_tokens: max_tokens.filter(|_| truncate.is_none()),
            common: PoolingFields { truncate, ..PoolingFields::read(fields) },
        }
    }
}

fn truncation(fields: &mut Fields, max_tokens: Option<u32>) -> Option<Truncation> {
    let side = fields.string("truncate");
    fields.describe("truncate", |_| json!({ "enum": ["NONE", "START", "END"] }));
    match side.as_deref() {
        None | Some("END") => Some(Truncation { max_tokens, keep_end: false }),
        Some("START") => Some(Truncation { max_tokens, keep_end: true }),
        Some("NONE") => None,
        Some(other) => {
            fields.wrong("truncate", format!("must be NONE, START or END, got {:?}", excerpt(other)));
            None
        }
    }
}

fn types(fields: &mut Fields) -> Vec<EmbeddingType> {
    let names = TYPES.map(|(name, _)| name);
    let given = fields.strings("embedding_types").unwrap_or_default();
    fields.describe("embedding_types", |_| json!({ "items": { "enum": names } }));
    let mut types = Vec::new();
    for (index, name) in given.iter().enumerate() {
        match TYPES.iter().find(|(known, _)| known == name) {
            Some((_, of)) => types.push(*of),
            None => {
                let message = format!("must be one of {}, got {:?}", names.join(", "), excerpt(name));
                fields.wrong(format!("embedding_types[{index}]"), message);
            }
        }
    }
    if types.is_empty() { vec![EmbeddingType::Float] } else { types }
}

/// The body of an answer.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct CohereResponse {
    id: String,
    embeddings: ByType,
    texts: Vec<String>,
    meta: Meta,
}

/// Those that were asked for; a list of vectors each.
#[derive(Debug, Default, Serialize, JsonSchema)]
struct ByType {
    #[serde(skip_serializing_if = "Option::is_none")]
    float: Option<Vec<Vec<f32>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    binary: Option<Vec<Vec<i8>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ubinary: Option<Vec<Vec<u8>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<Vec<Vector>>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Meta {
    api_version: ApiVersion,
    billed_units: BilledUnits,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ApiVersion {
    version: &'static str,
}

#[derive(Debug, Serialize, JsonSchema)]
struct BilledUnits {
    input_tokens: u64,
    /// Always 0: there are only texts.
    image_tokens: u64,
}

/// How the route tells of itself.
pub(crate) fn describe(op: &mut Operation<'_>) {
    op.about("A vector for each text, in Cohere's form")
        .takes(|mut fields| drop(CohereRequest::read(&mut fields)))
        .answers::<CohereResponse>();
}

/// The handler.
pub(crate) async fn embed(
    State(state): State<Arc<HttpState>>,
    name: RequestName,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let CohereRequest { common, texts, input_type, dimensions, types, max_tokens } =
        CohereRequest::read(&mut fields);
    fields.finish()?;
    let (_, options) = common.resolve(&state, "embd", name).await?;
    let prefix = prefix(&state, input_type.as_deref())?;
    let options = EmbedOptions { input_param: "texts", dimensions, max_prompt_tokens: max_tokens, ..options };
    let inputs = texts.iter().map(|text| EmbedInput::Text(format!("{prefix}{text}"))).collect();
    let vectors = embed_all(&state.app, inputs, &options).await?;
    let input_tokens = vectors.iter().map(|one| u64::from(one.prompt_tokens)).sum();
    let billed_units = BilledUnits { input_tokens, image_tokens: 0 };
    let meta = Meta { api_version: ApiVersion { version: "2" }, billed_units };
    let embeddings = by_type(&vectors, &types)?;
    Ok(reply::json(&CohereResponse { id: options.request_id, embeddings, texts, meta }))
}

/// What the model's makers want before texts of this type.
fn prefix<'a>(state: &'a HttpState, input_type: Option<&str>) -> Result<&'a str, ApiError> {
    let Some(asked) = input_type else { return Ok("") };
    let prompts = state.app.pooler.as_ref().map(|pooler| &pooler.spec.prompts);
    if let Some(prompt) = prompts.and_then(|prompts| prompts.get(asked)) {
        return Ok(prompt);
    }
    let known = prompts.map(|prompts| prompts.keys().map(String::as_str).collect::<Vec<_>>().join(", "));
    let known = known.filter(|known| !known.is_empty());
    let known =
        known.map_or("This model defines none.".to_owned(), |known| format!("Supported values: {known}"));
    Err(ApiError::bad_param("input_type", format!("Unsupported input_type '{}'. {known}", excerpt(asked))))
}

fn by_type(vectors: &[Embedding], types: &[EmbeddingType]) -> Result<ByType, ApiError> {
    let mut all = ByType::default();
    let width = vectors.first().map_or(0, |one| one.values.len());
    let packed = types.iter().any(|of| matches!(of, EmbeddingType::Binary | EmbeddingType::Ubinary));
    if packed && !width.is_multiple_of(8) {
        let message = format!("binary types need a multiple of 8 numbers, and there are {width}");
        return Err(ApiError::bad_param("embedding_types", message));
    }
    for of in types {
        let values = vectors.iter().map(|one| &one.values);
        match of {
            EmbeddingType::Float => all.float = Some(values.cloned().collect()),
            EmbeddingType::Ubinary => all.ubinary = Some(values.map(|values| pack(values)).collect()),
            EmbeddingType::Binary => {
                let signed = |byte: u8| (i16::from(byte) - 128) as i8;
                all.binary = Some(values.map(|one| pack(one).into_iter().map(signed).collect()).collect());
            }
            EmbeddingType::Base64 => {
                all.base64 = Some(values.map(|one| Vector::new(one.clone(), Encoding::BASE64)).collect());
            }
        }
    }
    Ok(all)
}

/// A bit a number, 1 if it is not negative, the first in the highest.
fn pack(values: &[f32]) -> Vec<u8> {
    let byte = |eight: &[f32]| eight.iter().fold(0, |byte, x| byte << 1 | u8::from(*x >= 0.0));
    values.chunks(8).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_packed_from_the_highest_down() {
        let values =
            vec![1.0, -1.0, 0.0, -0.5, -1.0, -1.0, -1.0, 2.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0];
        let vectors = [Embedding { values, prompt_tokens: 1 }];
        let all = by_type(&vectors, &TYPES.map(|(_, of)| of)).unwrap();
        assert_eq!(all.ubinary, Some(vec![vec![0b1010_0001, 0]]));
        assert_eq!(all.binary, Some(vec![vec![33, -128]]));
        assert_eq!(all.base64.unwrap().len(), 1);
        let odd = [Embedding { values: vec![1.0; 9], prompt_tokens: 1 }];
        assert!(by_type(&odd, &[EmbeddingType::Binary]).is_err());
    }
}
