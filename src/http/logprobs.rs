//! Log-probabilities in the three shapes of the API: of completions, of chat, and of prompts.
//!
//! JSON has no infinity: what is less likely than e^-9999 is written as -9999.0, as in vLLM.

use std::collections::HashSet;

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
#[derive(Debug, Default, Serialize)]
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

    /// The next token. Its alternatives are the likeliest, and the token itself if it is not among them.
    pub(crate) fn push(&mut self, entry: &TokenLogprobs, names: &TokenNames) {
        self.push_token(entry.token, names);
        self.token_logprobs.push(Some(finite(entry.logprob)));
        let mut top = Top::default();
        for &(token, logprob) in &entry.top {
            top.push(names.name(token), logprob);
        }
        if !entry.top.iter().any(|&(token, _)| token == entry.token) {
            top.push(names.name(entry.token), entry.logprob);
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

/// Names with their logprobs, best first. Different tokens can have the same text (parts of characters
/// all read U+FFFD); the likeliest keeps the name.
#[derive(Debug, Default)]
struct Top {
    entries: Vec<(String, f32)>,
    /// A set, because there can be as many entries as the vocabulary has.
    names: HashSet<String>,
}

impl Top {
    fn push(&mut self, name: String, logprob: f32) {
        if self.names.insert(name.clone()) {
            self.entries.push((name, finite(logprob)));
        }
    }
}

impl Serialize for Top {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.entries.iter().map(|(name, logprob)| (name, logprob)))
    }
}

/// `logprobs` of a choice of a chat answer.
#[derive(Debug, Default, Serialize)]
pub(crate) struct ChatLogprobs {
    content: Vec<ChatToken>,
}

#[derive(Debug, Serialize)]
struct ChatToken {
    token: String,
    logprob: f32,
    /// UTF-8, exact also where the token is only part of a character.
    bytes: Vec<u8>,
    top_logprobs: Vec<ChatTop>,
}

#[derive(Debug, Serialize)]
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

impl Serialize for PromptLogprobs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let tokenizer = self.tokenizer;
        let known = self.entries.iter().map(Option::as_ref);
        serializer.collect_seq(known.map(|entry| entry.map(|entry| PromptEntry { entry, tokenizer })))
    }
}

struct PromptEntry<'a> {
    entry: &'a TokenLogprobs,
    tokenizer: &'a Tokenizer,
}

impl Serialize for PromptEntry<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Logprob {
            logprob: f32,
            rank: u32,
            decoded_token: String,
        }
        let TokenLogprobs { token, logprob, rank, top } = self.entry;
        let value = |token, logprob, rank| Logprob {
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

fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}
