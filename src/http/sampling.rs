//! The fields that completions and chat have in common: [`CommonFields`]. Reads and types them; ranges
//! are checked by [`crate::validate`], with the prompt at hand.

use serde_json::{Value, json};

use crate::app::App;
use crate::validate::{
    MAX_LOGPROB_TOKEN_IDS, MAX_PATTERN_SIZE, MAX_STOP_STRING_BYTES, MAX_STOP_STRINGS, MAX_TOKEN_LIST, N,
    PENALTY, REPETITION_PENALTY, RepetitionFields, SHARE, SamplingFields, TEMPERATURE, TOP_K,
};

use super::error::{ApiError, excerpt};
use super::fields::Fields;
use super::prompt::{Truncate, TruncationSide, token_id_schema};
use super::structured::{self, Structured};

/// Characters in `request_id` or `X-Request-Id`.
pub(crate) const MAX_REQUEST_ID_CHARS: usize = 256;

/// What both kinds of request can ask for.
#[derive(Debug)]
pub(crate) struct CommonFields {
    pub(crate) model: Option<String>,
    pub(crate) request_id: Option<String>,
    pub(crate) sampling: SamplingFields,
    pub(crate) bad_words: Vec<String>,
    /// What the answer must look like.
    pub(crate) structured: Option<Structured>,
    pub(crate) priority: i32,
    pub(crate) cache_salt: Option<String>,
    pub(crate) truncate: Option<Truncate>,
    pub(crate) add_special_tokens: Option<bool>,
    pub(crate) echo: bool,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) continuous_usage: bool,
    pub(crate) return_token_ids: bool,
    pub(crate) return_tokens_as_token_ids: bool,
}

impl CommonFields {
    /// Reads the fields; errors stay in `fields`.
    pub(crate) fn read(fields: &mut Fields) -> Self {
        let stream = fields.bool("stream").unwrap_or(false);
        let (include_usage, continuous_usage) = stream_options(fields, stream);
        let common = Self {
            model: fields.string("model"),
            request_id: request_id(fields),
            bad_words: fields.strings("bad_words").unwrap_or_default(),
            structured: structured::read(fields),
            priority: priority(fields),
            cache_salt: fields.string("cache_salt"),
            truncate: truncate(fields),
            add_special_tokens: fields.bool("add_special_tokens"),
            echo: fields.bool("echo").unwrap_or(false),
            stream,
            include_usage,
            continuous_usage: include_usage && continuous_usage,
            return_token_ids: fields.bool("return_token_ids").unwrap_or(false),
            return_tokens_as_token_ids: fields.bool("return_tokens_as_token_ids").unwrap_or(false),
            sampling: sampling_params(fields),
        };
        describe(fields);
        common
    }
}

/// The id for the client, as sent in `X-Request-Id`, else in `request_id`, else drawn.
pub(crate) fn choose_id(
    prefix: &str,
    header: Option<&str>,
    field: Option<String>,
) -> Result<String, ApiError> {
    Ok(format!("{prefix}-{}", choose_base(header, field)?))
}

/// The part of an id that the client may choose.
pub(crate) fn choose_base(header: Option<&str>, field: Option<String>) -> Result<String, ApiError> {
    Ok(match (header, field) {
        (Some(header), _) if header.chars().count() > MAX_REQUEST_ID_CHARS => {
            let message = format!("X-Request-Id has at most {MAX_REQUEST_ID_CHARS} characters");
            return Err(ApiError::bad_param("X-Request-Id", message));
        }
        (Some(header), _) if !header.is_empty() => header.to_owned(),
        (_, Some(field)) => field,
        _ => uuid::Uuid::new_v4().simple().to_string(),
    })
}

/// The fields of vLLM's `SamplingParams` that every endpoint reads in the same way.
pub(crate) fn sampling_params(fields: &mut Fields) -> SamplingFields {
    SamplingFields {
        n: fields.int("n"),
        temperature: fields.real("temperature"),
        top_p: fields.real("top_p"),
        top_k: fields.int("top_k"),
        min_p: fields.real("min_p"),
        presence_penalty: fields.real("presence_penalty"),
        frequency_penalty: fields.real("frequency_penalty"),
        repetition_penalty: fields.real("repetition_penalty"),
        seed: fields.int("seed"),
        max_tokens: fields.int("max_tokens"),
        max_tokens_param: "max_tokens",
        min_tokens: fields.int("min_tokens"),
        ignore_eos: fields.bool("ignore_eos").unwrap_or(false),
        stop: fields.string_or_strings("stop").unwrap_or_default(),
        stop_token_ids: fields.ints("stop_token_ids").unwrap_or_default(),
        include_stop_str_in_output: fields.bool("include_stop_str_in_output").unwrap_or(false),
        logit_bias: logit_bias(fields),
        allowed_token_ids: fields.ints("allowed_token_ids"),
        prompt_logprobs: fields.int("prompt_logprobs"),
        logprob_token_ids: fields.ints("logprob_token_ids"),
        repetition_detection: repetition_detection(fields),
        stream_interval: fields.int("stream_interval"),
        thinking_token_budget: fields.int("thinking_token_budget"),
        skip_special_tokens: fields.bool("skip_special_tokens"),
        spaces_between_special_tokens: fields.bool("spaces_between_special_tokens"),
        // The rest is the endpoint's: it differs, or needs the tokenizer.
        ..SamplingFields::default()
    }
}

fn repetition_detection(fields: &mut Fields) -> Option<RepetitionFields> {
    let mut nested = fields.nested("repetition_detection")?;
    let detection = RepetitionFields {
        min_pattern_size: nested.int("min_pattern_size"),
        max_pattern_size: nested.int("max_pattern_size"),
        min_count: nested.int("min_count"),
    };
    let size = |_: &App| json!({ "minimum": 0, "maximum": MAX_PATTERN_SIZE });
    nested.describe("min_pattern_size", size);
    nested.describe("max_pattern_size", size);
    nested.describe("min_count", |_| json!({ "minimum": 0 }));
    fields.absorb(nested);
    Some(detection)
}

/// What is known of those of these fields that were read, beyond their types, for `/openapi.json`. The rest, such
/// as that `min_tokens` is at most `max_tokens`, is in no schema.
pub(crate) fn describe(fields: &Fields) {
    let range = |name, min: Value, max: Value| {
        fields.describe(name, |_| json!({ "minimum": min, "maximum": max }));
    };
    range("n", json!(N.start()), json!(N.end()));
    range("temperature", json!(TEMPERATURE.start()), json!(TEMPERATURE.end()));
    range("top_k", json!(TOP_K.start()), json!(TOP_K.end()));
    range("min_p", json!(SHARE.start()), json!(SHARE.end()));
    range("presence_penalty", json!(PENALTY.start()), json!(PENALTY.end()));
    range("frequency_penalty", json!(PENALTY.start()), json!(PENALTY.end()));
    range("seed", json!(i64::MIN), json!(i64::MAX));
    range("priority", json!(i32::MIN), json!(i32::MAX));
    fields.describe("top_p", |_| json!({ "exclusiveMinimum": SHARE.start(), "maximum": SHARE.end() }));
    range("repetition_penalty", json!(REPETITION_PENALTY.start()), json!(REPETITION_PENALTY.end()));
    fields.describe("min_tokens", |_| json!({ "minimum": 0 }));
    fields.describe(
        "logprob_token_ids",
        |app| json!({ "items": token_id_schema(app), "minItems": 1, "maxItems": MAX_LOGPROB_TOKEN_IDS }),
    );
    fields.describe("stream_interval", |_| json!({ "minimum": 1 }));
    fields.describe("thinking_token_budget", |app| match app.limits.thinking {
        Some(_) => json!({ "minimum": -1 }),
        None => json!({ "const": -1 }),
    });
    fields.describe("model", |app| json!({ "enum": app.all_names() }));
    fields.describe("request_id", |_| json!({ "minLength": 1, "maxLength": MAX_REQUEST_ID_CHARS }));
    fields.describe("prompt_logprobs", logprobs_schema);
    fields.describe("truncation_side", |_| json!({ "enum": ["left", "right"] }));
    fields.describe(
        "truncate_prompt_tokens",
        |_| json!({ "anyOf": [{ "const": -1 }, { "type": "integer", "minimum": 1 }] }),
    );
    for name in ["stop_token_ids", "allowed_token_ids"] {
        fields.describe(name, |app| json!({ "items": token_id_schema(app), "maxItems": MAX_TOKEN_LIST }));
    }
    fields.describe("allowed_token_ids", |_| json!({ "minItems": 1 }));
    fields.describe("logit_bias", |_| {
        json!({ "propertyNames": { "pattern": "^[0-9]+$" }, "additionalProperties": { "type": "number" } })
    });
    let stop = || json!({ "type": "string", "minLength": 1, "maxLength": MAX_STOP_STRING_BYTES });
    fields.describe(
        "stop",
        |_| json!({ "anyOf": [stop(), { "type": "array", "items": stop(), "maxItems": MAX_STOP_STRINGS }] }),
    );
}

/// How many log-probabilities may be asked for, for `/openapi.json`.
pub(crate) fn logprobs_schema(app: &App) -> Value {
    match app.limits.max_logprobs.filter(|max| *max < app.limits.vocab_size) {
        Some(max) => json!({ "minimum": 0, "maximum": max }),
        None => json!({ "minimum": -1 }),
    }
}

/// How many tokens may be asked for, for `/openapi.json`.
pub(crate) fn max_tokens_schema(app: &App) -> Value {
    json!({ "minimum": 1, "exclusiveMaximum": app.limits.max_model_len })
}

/// Whether the usage is wanted at the end of a stream, and whether on each chunk.
pub(crate) fn stream_options(fields: &mut Fields, stream: bool) -> (bool, bool) {
    let Some(mut options) = fields.nested("stream_options") else { return (false, false) };
    let include_usage = options.bool("include_usage").unwrap_or(false);
    let continuous_usage = options.bool("continuous_usage_stats").unwrap_or(false);
    fields.absorb(options);
    if !stream {
        fields.wrong("stream_options", "allowed only when stream is true");
    }
    (include_usage, continuous_usage)
}

pub(crate) fn logit_bias(fields: &mut Fields) -> Vec<(i64, f64)> {
    const MAX_NAMED: usize = 10;
    let mut biases = Vec::new();
    let mut bad_keys = Vec::new();
    for (key, value) in fields.map("logit_bias").unwrap_or_default() {
        match (key.parse(), value.as_f64()) {
            (Ok(id), Some(bias)) => biases.push((id, bias)),
            (Err(_), _) if bad_keys.len() < MAX_NAMED => bad_keys.push(format!("{:?}", excerpt(&key))),
            (Err(_), _) => break,
            (_, None) => {
                fields.wrong(format!("logit_bias.{key}"), "expected a number");
                break;
            }
        }
    }
    if !bad_keys.is_empty() {
        fields.wrong("logit_bias", format!("keys must be token ids, got {}", bad_keys.join(", ")));
    }
    biases
}

pub(crate) fn request_id(fields: &mut Fields) -> Option<String> {
    let id = fields.string("request_id")?;
    if id.is_empty() || id.chars().count() > MAX_REQUEST_ID_CHARS {
        fields.wrong("request_id", format!("must have 1 to {MAX_REQUEST_ID_CHARS} characters"));
        return None;
    }
    Some(id)
}

pub(crate) fn priority(fields: &mut Fields) -> i32 {
    let priority = fields.int("priority").unwrap_or(0);
    i32::try_from(priority).unwrap_or_else(|_| {
        fields.wrong("priority", format!("must fit in 32 bits, got {priority}"));
        0
    })
}

fn truncate(fields: &mut Fields) -> Option<Truncate> {
    let side = match fields.string("truncation_side").as_deref() {
        None | Some("left") => TruncationSide::Left,
        Some("right") => TruncationSide::Right,
        Some(other) => {
            let message = format!("must be \"left\" or \"right\", got {:?}", excerpt(other));
            fields.wrong("truncation_side", message);
            TruncationSide::Left
        }
    };
    let max_tokens = fields.int("truncate_prompt_tokens")?;
    if max_tokens < -1 || max_tokens == 0 {
        let message = format!("must be at least 1, or -1 for what the context allows, got {max_tokens}");
        fields.wrong("truncate_prompt_tokens", message);
    }
    Some(Truncate { max_tokens: u32::try_from(max_tokens).ok(), side })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::json;

    fn read(json: &str) -> (CommonFields, Result<(), ApiError>) {
        let mut fields = Fields::new(json::parse(json.as_bytes()).unwrap());
        let common = CommonFields::read(&mut fields);
        (common, fields.finish())
    }

    #[test]
    fn every_common_field_is_read() {
        let (common, end) = read(
            r#"{"model":"m","request_id":"r","n":2,"temperature":0.5,"top_p":0.9,"top_k":5,"min_p":0.1,
                "presence_penalty":1,"frequency_penalty":-1,"repetition_penalty":1.1,"seed":7,"max_tokens":3,
                "min_tokens":1,"ignore_eos":true,"stop":"x","stop_token_ids":[4],"include_stop_str_in_output":true,
                "logit_bias":{"5":-100,"6":1.5},"allowed_token_ids":[1,2],"prompt_logprobs":2,
                "skip_special_tokens":false,"spaces_between_special_tokens":false,"bad_words":["a"],"priority":-3,
                "cache_salt":"s","truncate_prompt_tokens":8,"truncation_side":"right","add_special_tokens":false,
                "echo":true,"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true},
                "return_token_ids":true,"return_tokens_as_token_ids":true}"#,
        );
        end.unwrap();
        let s = &common.sampling;
        assert_eq!(
            (s.n, s.temperature, s.top_p, s.top_k, s.min_p),
            (Some(2), Some(0.5), Some(0.9), Some(5), Some(0.1))
        );
        assert_eq!(
            (s.presence_penalty, s.frequency_penalty, s.repetition_penalty),
            (Some(1.0), Some(-1.0), Some(1.1))
        );
        assert_eq!((s.seed, s.max_tokens, s.min_tokens, s.ignore_eos), (Some(7), Some(3), Some(1), true));
        assert_eq!((&*s.stop, &*s.stop_token_ids), (&["x".to_owned()][..], &[4][..]));
        assert_eq!(s.logit_bias, [(5, -100.0), (6, 1.5)]);
        assert_eq!((s.allowed_token_ids.as_deref(), s.prompt_logprobs), (Some(&[1, 2][..]), Some(2)));
        assert_eq!((s.skip_special_tokens, s.spaces_between_special_tokens), (Some(false), Some(false)));
        assert!(s.include_stop_str_in_output && common.echo && common.stream);
        assert!(common.include_usage && common.continuous_usage);
        assert!(common.return_token_ids && common.return_tokens_as_token_ids);
        assert_eq!(common.truncate, Some(Truncate { max_tokens: Some(8), side: TruncationSide::Right }));
        assert_eq!((common.priority, common.cache_salt.as_deref()), (-3, Some("s")));
        assert_eq!((common.add_special_tokens, common.bad_words.len()), (Some(false), 1));
    }

    #[test]
    fn bad_combinations_are_named() {
        for (json, expected) in [
            (r#"{"stream_options":{"include_usage":true}}"#, "\"param\":\"stream_options\""),
            (r#"{"logit_bias":{"x":1}}"#, "\"param\":\"logit_bias\""),
            (r#"{"logit_bias":{"1":"a"}}"#, "\"param\":\"logit_bias.1\""),
            (r#"{"priority":3000000000}"#, "\"param\":\"priority\""),
            (r#"{"truncate_prompt_tokens":0}"#, "\"param\":\"truncate_prompt_tokens\""),
            (r#"{"truncation_side":"up"}"#, "\"param\":\"truncation_side\""),
            (r#"{"request_id":""}"#, "\"param\":\"request_id\""),
        ] {
            let json_error = read(json).1.unwrap_err().to_json();
            assert!(json_error.contains(expected), "{json}: {json_error}");
        }
    }

    #[test]
    fn ids_come_from_the_header_first() {
        assert_eq!(choose_id("cmpl", Some("h"), Some("f".into())).unwrap(), "cmpl-h");
        assert_eq!(choose_id("cmpl", None, Some("f".into())).unwrap(), "cmpl-f");
        assert_eq!(choose_id("cmpl", Some(""), None).unwrap().len(), "cmpl-".len() + 32);
        assert!(choose_id("cmpl", Some(&"h".repeat(257)), None).is_err());
    }
}
