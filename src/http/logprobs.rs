//! Log-probabilities in the three shapes of the API: of completions, of chat, and of prompts.
//!
//! JSON has no infinity: what is less likely than e^-9999 is written as -9999.0, as in vLLM.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::engine::TokenLogprobs;
use crate::text::Tokenizer;

/// How tokens are called in answers.
#[derive(Debug, Clone)]
pub(crate) struct TokenNames {
    pub(crate) tokenizer: Tokenizer,
    /// `return_tokens_as_token_ids`: "token_id:7" instead of text, which can be ambiguous.
    pub(crate) as_token_ids: bool,
}

impl TokenNames {
    fn name(&self, token: u32) -> String {
        if self.as_token_ids { format!("token_id:{token}") } else { self.tokenizer.token_text(token) }
    }
}

/// `logprobs` of a choice of a completion: four lists of equal length.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(crate) struct CompletionLogprobs {
    /// Characters of text before the token.
    text_offset: Vec<usize>,
    token_logprobs: Vec<Option<f32>>,
    tokens: Vec<String>,
    top_logprobs: Vec<Option<Top>>,
    /// Where the next token begins.
    #[serde(skip)]
    pub(crate) next_offset: usize,
}

impl CompletionLogprobs {
    /// Continues a stream in which so many characters of tokens have gone before.
    pub(crate) fn starting_at(next_offset: usize) -> Self {
        Self { next_offset, ..Self::default() }
    }

    /// A token of which nothing is known but itself: the first of a prompt.
    pub(crate) fn push_unknown(&mut self, token: u32, names: &TokenNames) {
        self.push_token(token, names);
        self.token_logprobs.push(None);
        self.top_logprobs.push(None);
    }

    /// The next token. Its alternatives are the token itself, which clients of vLLM look for in the first place, and
    /// the likeliest.
    pub(crate) fn push(&mut self, entry: &TokenLogprobs, names: &TokenNames) {
        self.push_token(entry.token, names);
        self.token_logprobs.push(Some(finite(entry.logprob)));
        let mut top = Top::default();
        top.push(names.name(entry.token), entry.logprob);
        for &(token, logprob) in &entry.top {
            if token != entry.token {
                top.push(names.name(token), logprob);
            }
        }
        self.top_logprobs.push(Some(top));
    }

    fn push_token(&mut self, token: u32, names: &TokenNames) {
        let name = names.name(token);
        self.text_offset.push(self.next_offset);
        self.next_offset += name.chars().count();
        self.tokens.push(name);
    }
}

/// Names with their logprobs, in the order in which they came. Different tokens can have the same text (parts of
/// characters all read U+FFFD); the name has the best of their scores.
#[derive(Debug, Default)]
struct Top {
    entries: Vec<(String, f32)>,
    /// Their places. A map, because there can be as many entries as the vocabulary has.
    names: HashMap<String, usize>,
}

impl Top {
    fn push(&mut self, name: String, logprob: f32) {
        let place = *self.names.entry(name.clone()).or_insert(self.entries.len());
        match self.entries.get_mut(place) {
            Some((_, best)) => *best = best.max(finite(logprob)),
            None => self.entries.push((name, finite(logprob))),
        }
    }
}

impl JsonSchema for Top {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Top".into()
    }

    fn json_schema(types: &mut SchemaGenerator) -> Schema {
        BTreeMap::<String, f32>::json_schema(types)
    }
}

impl Serialize for Top {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.entries.iter().map(|(name, logprob)| (name, logprob)))
    }
}

/// `logprobs` of a choice of a chat answer.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(crate) struct ChatLogprobs {
    pub(crate) content: Vec<ChatToken>,
}

/// One token of a chat answer.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct ChatToken {
    token: String,
    logprob: f32,
    /// UTF-8, exact also where the token is only part of a character.
    bytes: Vec<u8>,
    top_logprobs: Vec<ChatTop>,
}

#[derive(Debug, Clone, Serialize, JsonSchema)]
struct ChatTop {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl ChatLogprobs {
    /// The tokens of an answer, or of a part of it.
    pub(crate) fn new(entries: &[TokenLogprobs], names: &TokenNames) -> Self {
        let bytes = |token| names.tokenizer.token_bytes(token);
        let top = |&(token, logprob): &(u32, f32)| ChatTop {
            token: names.name(token),
            logprob: finite(logprob),
            bytes: bytes(token),
        };
        let content = |entry: &TokenLogprobs| ChatToken {
            token: names.name(entry.token),
            logprob: finite(entry.logprob),
            bytes: bytes(entry.token),
            top_logprobs: entry.top.iter().map(top).collect(),
        };
        Self { content: entries.iter().map(content).collect() }
    }
}

/// `prompt_logprobs`: null for the first token, then `{"id": {logprob, rank, decoded_token}}`.
#[derive(Debug)]
pub(crate) struct PromptLogprobs<'a> {
    pub(crate) entries: &'a [Option<TokenLogprobs>],
    pub(crate) tokenizer: &'a Tokenizer,
}

impl JsonSchema for PromptLogprobs<'_> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "PromptLogprobs".into()
    }

    fn json_schema(types: &mut SchemaGenerator) -> Schema {
        Vec::<Option<BTreeMap<u32, PromptLogprob>>>::json_schema(types)
    }
}

impl Serialize for PromptLogprobs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let tokenizer = self.tokenizer;
        let known = self.entries.iter().map(Option::as_ref);
        serializer.collect_seq(known.map(|entry| entry.map(|entry| PromptEntry { entry, tokenizer })))
    }
}

/// What is known of one candidate for a prompt's token.
#[derive(Serialize, JsonSchema)]
struct PromptLogprob {
    logprob: f32,
    rank: u32,
    decoded_token: String,
}

struct PromptEntry<'a> {
    entry: &'a TokenLogprobs,
    tokenizer: &'a Tokenizer,
}

impl Serialize for PromptEntry<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let TokenLogprobs { token, logprob, rank, top } = self.entry;
        let value = |token, logprob, rank| PromptLogprob {
            logprob: finite(logprob),
            rank,
            decoded_token: self.tokenizer.token_text(token),
        };
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry(token, &value(*token, *logprob, *rank))?;
        for (rank, (other, logprob)) in (1..).zip(top) {
            if other != token {
                map.serialize_entry(other, &value(*other, *logprob, rank))?;
            }
        }
        map.end()
    }
}

/// JSON has no infinity; vLLM writes this.
pub(crate) fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json, to_value};

    use super::*;

    fn names(as_token_ids: bool) -> TokenNames {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/pebble/model");
        TokenNames { tokenizer: Tokenizer::from_dir(dir.as_ref()).unwrap(), as_token_ids }
    }

    fn entry(token: u32, logprob: f32, rank: u32, top: &[(u32, f32)]) -> TokenLogprobs {
        TokenLogprobs { token, logprob, rank, top: top.to_vec() }
    }

    #[test]
    fn completions_list_the_token_itself_and_the_best() {
        let names = names(true);
        let mut logprobs = CompletionLogprobs::default();
        logprobs.push_unknown(5, &names);
        logprobs.push(&entry(7, -3.0, 9, &[(8, -0.5), (9, -1.0)]), &names);
        logprobs.push(&entry(8, f32::NEG_INFINITY, 1, &[(8, f32::NEG_INFINITY)]), &names);
        let expected = json!({
            "text_offset": [0, 10, 20],
            "token_logprobs": [null, -3.0, -9999.0],
            "tokens": ["token_id:5", "token_id:7", "token_id:8"],
            "top_logprobs": [
                null,
                {"token_id:7": -3.0, "token_id:8": -0.5, "token_id:9": -1.0},
                {"token_id:8": -9999.0},
            ],
        });
        assert_eq!(to_value(&logprobs).unwrap(), expected);
        // The token itself is the first.
        assert!(serde_json::to_string(&logprobs).unwrap().contains(r#"{"token_id:7":-3.0,"token_id:8""#));
    }

    #[test]
    fn tokens_with_one_name_are_listed_once_with_the_better_score() {
        let names = names(false);
        // Parts of characters, which all read the same.
        let parts: Vec<_> = (0..2048).filter(|&id| names.name(id) == "\u{fffd}").take(2).collect();
        assert_eq!(parts.len(), 2, "the vocabulary has lone bytes");
        let mut logprobs = CompletionLogprobs::default();
        logprobs.push(&entry(parts[1], -2.0, 2, &[(parts[0], -1.0)]), &names);
        assert_eq!(to_value(&logprobs).unwrap()["top_logprobs"], json!([{"\u{fffd}": -1.0}]));
        let chat = to_value(ChatLogprobs::new(&[entry(parts[0], -1.0, 1, &[])], &names)).unwrap();
        assert_eq!(chat["content"][0]["bytes"], json!(names.tokenizer.token_bytes(parts[0])));
    }

    #[test]
    fn chat_lists_the_best_as_they_are() {
        let names = names(true);
        let logprobs = ChatLogprobs::new(&[entry(7, -3.0, 9, &[(8, -0.5), (9, f32::NEG_INFINITY)])], &names);
        let content = &to_value(&logprobs).unwrap()["content"][0];
        assert_eq!((&content["token"], &content["logprob"]), (&json!("token_id:7"), &json!(-3.0)));
        assert_eq!(content["bytes"], json!(names.tokenizer.token_bytes(7)));
        let top: Vec<_> =
            content["top_logprobs"].as_array().unwrap().iter().map(|top| &top["logprob"]).collect();
        assert_eq!(top, [&json!(-0.5), &json!(-9999.0)]);
    }

    #[test]
    fn prompts_list_ids_with_ranks() {
        let tokenizer = names(false).tokenizer;
        let entries = [None, Some(entry(300, -3.0, 9, &[(301, -0.5), (300, -3.0)]))];
        let listed = to_value(PromptLogprobs { entries: &entries, tokenizer: &tokenizer }).unwrap();
        let value = |id: u32, logprob: f64, rank: u32| json!({"logprob": logprob, "rank": rank, "decoded_token": tokenizer.token_text(id)});
        assert_eq!(listed, json!([Value::Null, {"300": value(300, -3.0, 9), "301": value(301, -0.5, 1)}]));
    }
}
