//! From text to tokens, with limits: work for the text pool.

use std::sync::OnceLock;

use crate::text::Tokenizer;
use crate::validate::{MAX_BAD_WORDS, MAX_STOP_STRING_BYTES, ParamError, RequestLimits};

use serde_json::{Value, json};

use super::error::ApiError;
use super::json::MAX_PROMPTS;
use crate::app::App;

/// `truncate_prompt_tokens` and `truncation_side`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Truncate {
    /// Tokens to keep; `None` = as many as leave room for the output.
    pub(crate) max_tokens: Option<u32>,
    /// Where tokens are taken away.
    pub(crate) side: TruncationSide,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TruncationSide {
    /// Keeps the end.
    Left,
    /// Keeps the beginning.
    Right,
}

/// Ids that exist, for `/openapi.json`.
pub(crate) fn token_id_schema(app: &App) -> Value {
    json!({ "type": "integer", "minimum": 0, "exclusiveMaximum": app.limits.vocab_size })
}

/// The forms a prompt can have, for `/openapi.json`.
pub(crate) fn prompt_schema(app: &App) -> Value {
    inputs_schema(app, MAX_PROMPTS)
}

/// The same for a list of that length at most.
pub(crate) fn inputs_schema(app: &App, max_items: usize) -> Value {
    let ids = || json!({ "type": "array", "items": token_id_schema(app), "minItems": 1 });
    let list = |items| json!({ "type": "array", "items": items, "minItems": 1, "maxItems": max_items });
    json!({ "anyOf": [{ "type": "string" }, list(json!({ "type": "string" })), ids(), list(ids())] })
}

/// Encodes prompts of one model; shared, and cheap to make.
#[derive(Debug)]
pub(crate) struct Encoder {
    tokenizer: Tokenizer,
    max_model_len: usize,
    /// Bytes of the longest token. Counted when the first long prompt comes: that takes a walk over the
    /// vocabulary.
    max_token_bytes: OnceLock<usize>,
}

impl Encoder {
    pub(crate) fn new(tokenizer: Tokenizer, limits: &RequestLimits) -> Self {
        Self { tokenizer, max_model_len: limits.max_model_len as usize, max_token_bytes: OnceLock::new() }
    }

    /// Encodes a text and truncates it if asked to.
    ///
    /// A text that cannot fit, were all its tokens as long as the longest of the vocabulary, is refused
    /// before any time is spent on encoding it.
    pub(crate) fn encode(
        &self,
        text: &str,
        add_special_tokens: bool,
        truncate: Option<(usize, TruncationSide)>,
    ) -> Result<Vec<u32>, ApiError> {
        let text = match truncate {
            None => {
                self.check_can_fit(text)?;
                text
            }
            Some((keep, side)) => self.shorten(text, keep, side),
        };
        let mut ids = self.tokenizer.encode(text, add_special_tokens)?;
        if let Some((keep, side)) = truncate {
            truncate_ids(&mut ids, keep, side);
        }
        Ok(ids)
    }

    fn check_can_fit(&self, text: &str) -> Result<(), ApiError> {
        if text.len() < self.max_model_len {
            return Ok(());
        }
        let at_least = text.len() / self.max_token_bytes();
        if at_least < self.max_model_len {
            return Ok(());
        }
        let max = self.max_model_len;
        Err(ApiError::bad_param(
            "input_tokens",
            format!(
                "This model's maximum context length is {max} tokens. However, your prompt has {} bytes of text, \
                 which are at least {at_least} input tokens. Please reduce the length of the prompt.",
                text.len()
            ),
        ))
    }

    /// Cuts off what will be truncated anyway. Twice the bound is kept, so that the cut, which can change
    /// the tokens next to it, is far from what remains.
    fn shorten<'a>(&self, text: &'a str, keep: usize, side: TruncationSide) -> &'a str {
        if text.len() <= 2 * keep {
            return text;
        }
        let bytes = (2 * keep).saturating_mul(self.max_token_bytes());
        match side {
            TruncationSide::Left => &text[text.ceil_char_boundary(text.len().saturating_sub(bytes))..],
            TruncationSide::Right => &text[..text.floor_char_boundary(bytes)],
        }
    }

    fn max_token_bytes(&self) -> usize {
        *self.max_token_bytes.get_or_init(|| {
            let ids = 0..u32::try_from(self.tokenizer.vocab_size()).unwrap_or(u32::MAX);
            ids.map(|id| self.tokenizer.token_bytes(id).len()).max().unwrap_or(1).max(1)
        })
    }

    /// Token sequences to forbid: each word as it stands at the start of a text and after a space. vLLM
    /// leaves the second out if it has another number of tokens, and so lets most such words through.
    pub(crate) fn bad_words(&self, words: &[String]) -> Result<Vec<Vec<u32>>, ApiError> {
        check_bad_words(words)?;
        let mut sequences: Vec<Vec<u32>> = Vec::new();
        for word in words {
            let word = word.trim_start();
            let bare = self.tokenizer.encode(word, false)?;
            let spaced = self.tokenizer.encode(&format!(" {word}"), false)?;
            let differs = spaced != bare;
            sequences.push(bare);
            if differs {
                sequences.push(spaced);
            }
        }
        Ok(sequences)
    }
}

/// Keeps at most `keep` ids.
pub(crate) fn truncate_ids(ids: &mut Vec<u32>, keep: usize, side: TruncationSide) {
    match side {
        TruncationSide::Left => drop(ids.drain(..ids.len().saturating_sub(keep))),
        TruncationSide::Right => ids.truncate(keep),
    }
}

/// How many tokens of a prompt to keep.
pub(crate) fn truncation(
    asked: Option<Truncate>,
    max_tokens: Option<i64>,
    limits: &RequestLimits,
) -> Result<Option<(usize, TruncationSide)>, ParamError> {
    let Some(Truncate { max_tokens: keep, side }) = asked else { return Ok(None) };
    let max = limits.max_model_len;
    let keep = match keep {
        Some(keep) if keep > max => {
            let message = format!(
                "truncate_prompt_tokens must not be above the maximum context length ({max}), got {keep}"
            );
            return Err(ParamError::new("truncate_prompt_tokens", message));
        }
        Some(keep) => keep,
        None => {
            let output = u32::try_from(max_tokens.unwrap_or(1).max(1)).unwrap_or(u32::MAX);
            max.saturating_sub(output).max(1)
        }
    };
    Ok(Some((keep as usize, side)))
}

fn check_bad_words(words: &[String]) -> Result<(), ParamError> {
    if words.len() > MAX_BAD_WORDS {
        let message = format!("bad_words has at most {MAX_BAD_WORDS} entries, got {}", words.len());
        return Err(ParamError::new("bad_words", message));
    }
    if words.iter().any(|word| word.trim().is_empty()) {
        return Err(ParamError::new("bad_words", "a bad word must not be empty"));
    }
    if words.iter().any(|word| word.len() > MAX_STOP_STRING_BYTES) {
        let message = format!("a bad word has at most {MAX_STOP_STRING_BYTES} bytes");
        return Err(ParamError::new("bad_words", message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use quire_model::SamplingDefaults;

    use super::*;

    fn limits(max_model_len: u32) -> RequestLimits {
        RequestLimits {
            max_model_len,
            vocab_size: 2048,
            max_logprobs: Some(20),
            eos_token_ids: Arc::new([2]),
            defaults: SamplingDefaults::default(),
            stream_interval: 1,
            thinking: None,
        }
    }

    fn encoder(max_model_len: u32) -> Encoder {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/pebble/model");
        Encoder::new(Tokenizer::from_dir(dir.as_ref()).unwrap(), &limits(max_model_len))
    }

    #[test]
    fn what_cannot_fit_is_refused_and_what_may_fit_is_not() {
        let encoder = encoder(64);
        let longest = encoder.max_token_bytes();
        assert!(longest > 1 && longest < 200, "{longest}");
        assert!(encoder.encode(&"a".repeat(longest * 64), true, None).is_err());
        assert!(encoder.encode(&"a".repeat(longest * 64 - 1), true, None).is_ok());
    }

    #[test]
    fn truncation_keeps_what_encoding_everything_would_keep() {
        let encoder = encoder(64);
        let text = "Größe und Maß, 70 + 89 = 159. Once upon a time there was a pebble. ".repeat(200);
        let all = encoder.tokenizer.encode(&text, true).unwrap();
        for keep in [1, 2, 17, 64] {
            let left = encoder.encode(&text, true, Some((keep, TruncationSide::Left))).unwrap();
            assert_eq!(left, all[all.len() - keep..], "{keep}");
            let right = encoder.encode(&text, true, Some((keep, TruncationSide::Right))).unwrap();
            assert_eq!(right, all[..keep], "{keep}");
            assert!(encoder.shorten(&text, keep, TruncationSide::Left).len() < text.len());
        }
        let short = encoder.encode("a b", true, Some((64, TruncationSide::Left))).unwrap();
        assert_eq!(short, encoder.tokenizer.encode("a b", true).unwrap());
    }

    #[test]
    fn bad_words_are_forbidden_with_and_without_a_space_before_them() {
        let encoder = encoder(64);
        let encode = |text: &str| encoder.tokenizer.encode(text, false).unwrap();
        let sequences = encoder.bad_words(&["the".into()]).unwrap();
        assert_eq!(sequences, [encode("the"), encode(" the")]);
        assert!(encoder.bad_words(&[" ".into()]).is_err());
    }

    #[test]
    fn minus_one_leaves_room_for_the_output() {
        let keep = |asked: Option<u32>, max_tokens| {
            let asked = Truncate { max_tokens: asked, side: TruncationSide::Left };
            truncation(Some(asked), max_tokens, &limits(64)).map(|kept| kept.unwrap().0)
        };
        assert_eq!(keep(None, Some(16)), Ok(48));
        assert_eq!(keep(None, None), Ok(63));
        assert_eq!(keep(None, Some(1000)), Ok(1));
        assert_eq!(keep(Some(5), None), Ok(5));
        assert!(keep(Some(65), None).is_err());
    }
}
