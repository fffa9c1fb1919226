//! [`Fields`]: a request's body, read field by field with the types the endpoint wants.
//!
//! Wrong types are gathered rather than returned at once, so that the client hears of all of them; what
//! is left unread at the end is judged by [`unsupported`](super::unsupported). Read by hand and not by
//! derived deserialisers, because only so does every error name its field.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use bytes::BytesMut;
use http_body_util::BodyExt;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::HttpState;
use super::error::{ApiError, excerpt};
use super::json::{self, Object, Prompt, kind};
use super::openapi::Recorder;
use super::part::Wrong;
use super::unsupported;
use crate::app::App;

/// Errors listed in one answer (vLLM lists 10 as well).
const MAX_LISTED: usize = 10;
/// A body of which nothing comes for this long is given up.
const BODY_SILENCE: Duration = Duration::from_secs(30);
/// Bodies above this are parsed on the text pool, so that no socket waits.
const PARSE_ELSEWHERE_BYTES: usize = 256 << 10;

/// What is left of the body to read, and the errors so far.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    object: Object,
    /// `stream_options.` within that object, else empty.
    prefix: String,
    errors: Vec<FieldError>,
    /// Takes notes for `/openapi.json`; there are no values then.
    recorder: Option<Recorder>,
}

#[derive(Debug)]
struct FieldError {
    path: String,
    message: String,
}

impl Fields {
    pub(crate) fn new(object: Object) -> Self {
        Self { object, ..Self::default() }
    }

    /// No values, but notes of what is asked for.
    pub(crate) fn recording(recorder: Recorder) -> Self {
        Self { recorder: Some(recorder), ..Self::default() }
    }

    /// true or false; as words too, which clients of vLLM send.
    pub(crate) fn bool(&mut self, name: &str) -> Option<bool> {
        self.note(name, || json!({ "type": "boolean" }));
        self.typed(name, "a boolean", |value| match value.as_str() {
            Some("true") => Ok(true),
            Some("false") => Ok(false),
            _ => value.as_bool().ok_or(value),
        })
    }

    /// An integer of 64 bits; `2.0` is one too.
    pub(crate) fn int(&mut self, name: &str) -> Option<i64> {
        self.note(name, || json!({ "type": "integer" }));
        let value = self.object.values.remove(name)?;
        let int = as_int(&value);
        if int.is_none() {
            // In the words by which clients of vLLM tell this error from others.
            let message = match value.as_f64() {
                Some(number) if number >= 2_f64.powi(63) => format!("must be less_than_equal {}", i64::MAX),
                Some(number) if number <= -2_f64.powi(63) => {
                    format!("must be greater_than_equal {}", i64::MIN)
                }
                _ => expected_got("an integer", &value),
            };
            self.wrong(name, message);
        }
        int
    }

    /// Any number.
    pub(crate) fn real(&mut self, name: &str) -> Option<f64> {
        self.note(name, || json!({ "type": "number" }));
        self.typed(name, "a number", |value| value.as_f64().ok_or(value))
    }

    /// A string.
    pub(crate) fn string(&mut self, name: &str) -> Option<String> {
        self.note(name, || json!({ "type": "string" }));
        self.typed(name, "a string", |value| match value {
            Value::String(text) => Ok(text),
            other => Err(other),
        })
    }

    /// A list of anything.
    pub(crate) fn list(&mut self, name: &str) -> Option<Vec<Value>> {
        self.note(name, || json!({ "type": "array" }));
        self.typed(name, "a list", |value| match value {
            Value::Array(values) => Ok(values),
            other => Err(other),
        })
    }

    /// An object of anything.
    pub(crate) fn map(&mut self, name: &str) -> Option<Map<String, Value>> {
        self.note(name, || json!({ "type": "object" }));
        self.typed(name, "an object", |value| match value {
            Value::Object(map) => Ok(map),
            other => Err(other),
        })
    }

    /// A list of integers.
    pub(crate) fn ints(&mut self, name: &str) -> Option<Vec<i64>> {
        self.note(name, || json!({ "type": "array", "items": { "type": "integer" } }));
        let values = self.list(name)?;
        self.each(name, values, "an integer", |value| as_int(&value).ok_or(value))
    }

    /// A list of strings.
    pub(crate) fn strings(&mut self, name: &str) -> Option<Vec<String>> {
        self.note(name, || json!({ "type": "array", "items": { "type": "string" } }));
        let values = self.list(name)?;
        self.each(name, values, "a string", |value| match value {
            Value::String(text) => Ok(text),
            other => Err(other),
        })
    }

    /// A string, or a list of them.
    pub(crate) fn string_or_strings(&mut self, name: &str) -> Option<Vec<String>> {
        self.note(
            name,
            || json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] }),
        );
        match self.object.values.get(name)? {
            Value::String(_) => self.string(name).map(|text| vec![text]),
            Value::Array(_) => self.strings(name),
            _ => self.typed(name, "a string or a list of strings", Err),
        }
    }

    /// An object whose fields are read in turn; hand it back to [`absorb`](Self::absorb).
    pub(crate) fn nested(&mut self, name: &str) -> Option<Self> {
        let prefix = format!("{}{name}.", self.prefix);
        if let Some(recorder) = &self.recorder {
            return Some(Self { prefix, ..Self::recording(recorder.nested(name)) });
        }
        let mut values = self.map(name)?;
        values.retain(|_, value| !value.is_null());
        Some(Self { object: Object { values, ..Object::default() }, prefix, ..Self::default() })
    }

    /// Takes over the errors of a nested object.
    pub(crate) fn absorb(&mut self, nested: Self) {
        self.errors.extend(nested.errors);
    }

    /// The same for an object whose fields are those of a request: what is refused there is refused here.
    pub(crate) fn absorb_checked(&mut self, mut nested: Self) {
        let values = std::mem::take(&mut nested.object.values);
        for (name, value) in &values {
            if let Some(why) = unsupported::OPENAI.refusal(name, value) {
                nested.wrong(name, format!("not supported: {why}"));
            }
        }
        self.absorb(nested);
    }

    /// A value of any type.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.note(name, || json!({}));
        self.object.values.remove(name)
    }

    /// A field that may be text or token ids.
    pub(crate) fn prompt(&mut self, name: &str) -> Option<Prompt> {
        self.note(name, || json!({}));
        let place = self.object.prompts.iter().position(|(other, _)| *other == name)?;
        match self.object.prompts.swap_remove(place).1 {
            Prompt::Invalid { at, message } => {
                self.wrong(format!("{name}{at}"), message);
                None
            }
            prompt => Some(prompt),
        }
    }

    /// A field that may be text or token ids, where it is not one of those that [`json`] keeps apart: its values
    /// count against the limit of a body.
    pub(crate) fn text_or_ids(&mut self, name: &str) -> Option<Prompt> {
        self.note(name, || json!({}));
        let value = self.object.values.remove(name)?;
        match json::prompt(value) {
            Prompt::Invalid { at, message } => {
                self.wrong(format!("{name}{at}"), message);
                None
            }
            prompt => Some(prompt),
        }
    }

    /// Whether the field is there, not null and not read yet.
    pub(crate) fn has(&self, name: &str) -> bool {
        if let Some(recorder) = &self.recorder {
            return recorder.has(name);
        }
        self.object.values.contains_key(name) || self.object.prompts.iter().any(|(other, _)| *other == name)
    }

    /// Whether anything was wrong so far.
    pub(crate) fn has_errors(&self) -> bool {
        !self.errors.is_empty()
    }

    /// Records an error.
    pub(crate) fn wrong(&mut self, name: impl Into<String>, message: impl Into<String>) {
        let path = format!("{}{}", self.prefix, name.into());
        self.errors.push(FieldError { path, message: message.into() });
    }

    /// Records what is wrong deep in a field.
    pub(crate) fn wrong_part(&mut self, Wrong { at, message }: Wrong) {
        self.wrong(at, message);
    }

    /// Records that a field is missing, unless it was there and wrong.
    pub(crate) fn missing(&mut self, name: &str) {
        if let Some(recorder) = &self.recorder {
            recorder.require(name);
        }
        if !self.errors.iter().any(|error| error.path.starts_with(name)) {
            self.wrong(name, "this field is required");
        }
    }

    /// For `/openapi.json`: what is known of a field beyond its type (`{"minimum": 0}`), or another type for
    /// it (`{"type": "string"}`).
    pub(crate) fn describe(&self, name: &str, describe: impl FnOnce(&App) -> Value) {
        if let Some(recorder) = &self.recorder {
            recorder.describe(name, describe);
        }
    }

    fn note(&self, name: &str, schema: impl FnOnce() -> Value) {
        if let Some(recorder) = &self.recorder {
            recorder.note(name, schema());
        }
    }

    /// To be called when all has been read: the errors, else a refusal of what is not supported.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        self.finish_by(&unsupported::OPENAI)
    }

    /// [`finish`](Self::finish) for an API that knows other fields.
    pub(crate) fn finish_by(self, known: &unsupported::Table) -> Result<(), ApiError> {
        if let Some(first) = self.errors.first() {
            let number = self.errors.len();
            let listed = self.errors.iter().take(MAX_LISTED);
            let listed: Vec<_> = listed.map(|error| format!("{}: {}", error.path, error.message)).collect();
            let errors = if number == 1 { "error" } else { "errors" };
            let message = format!("{number} validation {errors}: {}", listed.join("; "));
            return Err(ApiError::bad_body(message).about(&first.path));
        }
        for (name, value) in &self.object.values {
            if let Some(why) = known.refusal(name, value) {
                return Err(ApiError::bad_param(name, format!("{name} is not supported: {why}")));
            }
            if !known.is_label(name) {
                tracing::debug!(field = excerpt(name), "unknown field in a request");
            }
        }
        match self.object.prompts.first() {
            Some((name, _)) => {
                Err(ApiError::bad_param(*name, format!("{name} is not a field of this endpoint")))
            }
            None => Ok(()),
        }
    }

    fn typed<T>(
        &mut self,
        name: &str,
        expected: &str,
        convert: impl FnOnce(Value) -> Result<T, Value>,
    ) -> Option<T> {
        let value = self.object.values.remove(name)?;
        match convert(value) {
            Ok(value) => Some(value),
            Err(value) => {
                self.wrong(name, expected_got(expected, &value));
                None
            }
        }
    }

    fn each<T>(
        &mut self,
        name: &str,
        values: Vec<Value>,
        expected: &str,
        convert: impl Fn(Value) -> Result<T, Value>,
    ) -> Option<Vec<T>> {
        let mut converted = Vec::with_capacity(values.len());
        for (index, value) in values.into_iter().enumerate() {
            match convert(value) {
                Ok(value) => converted.push(value),
                Err(value) => {
                    self.wrong(format!("{name}[{index}]"), expected_got(expected, &value));
                    return None;
                }
            }
        }
        Some(converted)
    }
}

/// The words for a wrong type.
pub(crate) fn expected_got(expected: &str, value: &Value) -> String {
    format!("expected {expected}, got {}", kind(value))
}

/// Integers, also those that a client's language wrote with a decimal point.
pub(crate) fn as_int(value: &Value) -> Option<i64> {
    // 2^53: above it a float no longer tells neighbouring integers apart.
    const MAX_EXACT: f64 = 9_007_199_254_740_992.0;
    let whole = |number: &f64| number.fract() == 0.0 && number.abs() <= MAX_EXACT;
    value.as_i64().or_else(|| value.as_f64().filter(whole).map(|number| number as i64))
}

impl FromRequest<Arc<HttpState>> for Fields {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Arc<HttpState>) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        check_content_type(&parts.headers)?;
        let body = read_body(&parts.headers, body, state.app.server.max_body_bytes).await?;
        let object = if body.len() > PARSE_ELSEWHERE_BYTES {
            state.app.text_pool.run(move || json::parse(&body)).await??
        } else {
            json::parse(&body)?
        };
        Ok(Self::new(object))
    }
}

/// vLLM answers 400, not 415.
fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return Err(ApiError::bad_body("Content-Type is missing; it must be application/json"));
    };
    let text = value.to_str().unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let json =
        essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"));
    if json {
        return Ok(());
    }
    let message = format!("Content-Type must be application/json, got {}", excerpt(text));
    Err(ApiError::bad_body(message))
}

async fn read_body(headers: &HeaderMap, mut body: Body, max_bytes: usize) -> Result<Bytes, ApiError> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > max_bytes as u64) {
        discard(body);
        return Err(ApiError::body_too_large(max_bytes));
    }
    let mut whole = BytesMut::new();
    loop {
        let next = timeout(BODY_SILENCE, body.frame()).await;
        let Some(frame) = next.map_err(|_| ApiError::body_too_slow(BODY_SILENCE))? else { break };
        let broken = |error| ApiError::bad_body(format!("the request body could not be read: {error}"));
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        if whole.len() + data.len() > max_bytes {
            discard(body);
            return Err(ApiError::body_too_large(max_bytes));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

/// Reads on without keeping anything, while the answer is on its way: a client that is still writing when
/// the connection closes would see a broken pipe instead of our 413.
fn discard(mut body: Body) {
    const MAX_BYTES: usize = 1 << 30;
    const MAX_TIME: Duration = Duration::from_secs(10);
    tokio::spawn(timeout(MAX_TIME, async move {
        let mut seen = 0;
        while let Some(Ok(frame)) = body.frame().await {
            seen += frame.data_ref().map_or(0, Bytes::len);
            if seen > MAX_BYTES {
                break;
            }
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Fields {
        Fields::new(json::parse(json.as_bytes()).unwrap())
    }

    #[test]
    fn nulls_are_unset() {
        let mut f =
            fields(r#"{"temperature":null,"stop":null,"n":null,"stream_options":{"include_usage":null}}"#);
        assert_eq!((f.real("temperature"), f.string_or_strings("stop"), f.int("n")), (None, None, None));
        let mut nested = f.nested("stream_options").unwrap();
        assert_eq!(nested.bool("include_usage"), None);
        f.absorb(nested);
        f.finish().unwrap();
    }

    #[test]
    fn all_wrong_types_are_named() {
        let mut f = fields(
            r#"{"n":"2","temperature":"hot","stop":[1],"stop_token_ids":[1,2.5],"stream":1,
                "stream_options":{"include_usage":"yes"},"logit_bias":[],"prompt":[1,"a"]}"#,
        );
        assert_eq!((f.int("n"), f.real("temperature"), f.bool("stream")), (None, None, None));
        assert_eq!((f.string_or_strings("stop"), f.ints("stop_token_ids")), (None, None));
        assert!(f.map("logit_bias").is_none());
        assert!(f.prompt("prompt").is_none());
        let mut nested = f.nested("stream_options").unwrap();
        nested.bool("include_usage");
        f.absorb(nested);
        let json = f.finish().unwrap_err().to_json();
        for expected in [
            "8 validation errors",
            "n: expected an integer, got a string",
            "temperature: expected a number, got a string",
            "stop[0]: expected a string, got an integer",
            "stop_token_ids[1]: expected an integer, got a number",
            "stream: expected a boolean, got an integer",
            "stream_options.include_usage: expected a boolean, got a string",
            "logit_bias: expected an object, got a list",
            "prompt[1]: ",
            "\"type\":\"Bad Request\"",
            "\"param\":\"n\"",
        ] {
            assert!(json.contains(expected), "{expected} not in {json}");
        }
    }

    #[test]
    fn whole_floats_are_integers_and_big_numbers_are_not() {
        let mut f = fields(r#"{"a":16.0,"b":18446744073709551615,"c":1e300,"d":-9223372036854775808}"#);
        assert_eq!(f.int("a"), Some(16));
        assert_eq!(f.int("b"), None);
        assert_eq!(f.int("c"), None);
        assert_eq!(f.int("d"), Some(i64::MIN));
        assert_eq!(f.errors.len(), 2);
    }

    #[test]
    fn leftovers_are_refused_if_known_and_accepted_if_not() {
        fields(r#"{"user":"u","store":true,"something_else":{"a":1}}"#).finish().unwrap();
        let json = fields(r#"{"best_of":4}"#).finish().unwrap_err().to_json();
        assert!(json.contains("\"param\":\"best_of\"") && json.contains("BadRequestError"), "{json}");
        assert!(fields(r#"{"prompt":"x"}"#).finish().is_err());
    }

    #[test]
    fn content_types() {
        let check = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, value.parse().unwrap());
            check_content_type(&headers).is_ok()
        };
        assert!(check("application/json"));
        assert!(check("Application/JSON; charset=utf-8"));
        assert!(check("application/vnd.api+json"));
        assert!(!check("application/x-www-form-urlencoded"));
        assert!(!check("text/plain"));
        assert!(check_content_type(&HeaderMap::new()).is_err());
    }
}
