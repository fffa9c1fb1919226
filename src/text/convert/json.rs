//! The parts of a tokenizer.json that converters put together.

use serde_json::{Map, Value, json};

/// What a token is: the same numbers in SentencePiece's models and in GGUF's `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Is made by merging.
    Normal,
    /// Stands for what the vocabulary does not have.
    Unknown,
    /// Is never in a text, only between texts.
    Control,
    /// Is found in a text before anything else.
    UserDefined,
    /// Only a place in the list.
    Unused,
    /// A byte.
    Byte,
}

impl Kind {
    pub(super) fn from_number(number: i64) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }

    /// Whether it is found in a text before the text is taken apart.
    pub(super) fn is_added(self) -> bool {
        matches!(self, Self::Unknown | Self::Control | Self::UserDefined)
    }

    /// Whether it is left out when tokens are shown as text.
    pub(super) fn is_special(self) -> bool {
        matches!(self, Self::Unknown | Self::Control)
    }
}

/// A tokenizer.json in the making; `null` where nothing is to be done.
#[derive(Debug, Default)]
pub(super) struct TokenizerJson {
    pub(super) added_tokens: Vec<Value>,
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    pub(super) post_processor: Value,
    pub(super) decoder: Value,
    pub(super) model: Value,
}

impl TokenizerJson {
    pub(super) fn finish(self) -> Value {
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added_tokens,
            "normalizer": self.normalizer,
            "pre_tokenizer": self.pre_tokenizer,
            "post_processor": self.post_processor,
            "decoder": self.decoder,
            "model": self.model,
        })
    }
}

/// `strips_right`: white space after it belongs to it.
pub(super) fn added_token(id: usize, content: &str, is_special: bool, strips_right: bool) -> Value {
    json!({
        "id": id,
        "content": content,
        "single_word": false,
        "lstrip": false,
        "rstrip": strips_right,
        "normalized": false,
        "special": is_special,
    })
}

pub(super) fn bpe(vocab: Map<String, Value>, merges: Vec<(String, String)>) -> Value {
    json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": null,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": false,
        "byte_fallback": false,
        "ignore_merges": false,
        "vocab": vocab,
        "merges": merges,
    })
}

/// Puts `first` before a text and `last` after it, both (id, token); `null` if there is neither.
pub(super) fn post_processor(first: Option<(u64, &str)>, last: Option<(u64, &str)>) -> Value {
    if first.is_none() && last.is_none() {
        return Value::Null;
    }
    let special = |token: Option<(u64, &str)>, part: u8| {
        token.map(|(_, token)| json!({"SpecialToken": {"id": token, "type_id": part}}))
    };
    let text = |name: &str, part: u8| {
        let text = json!({"Sequence": {"id": name, "type_id": part}});
        special(first, part).into_iter().chain([text]).chain(special(last, part))
    };
    let tokens: Map<String, Value> = first
        .into_iter()
        .chain(last)
        .map(|(id, token)| (token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    json!({
        "type": "TemplateProcessing",
        "single": text("A", 0).collect::<Vec<_>>(),
        "pair": text("A", 0).chain(text("B", 1)).collect::<Vec<_>>(),
        "special_tokens": tokens,
    })
}

/// From pieces with a visible space to text. A space that was put before the text is taken away again.
pub(super) fn piece_decoder(byte_fallback: bool, strips_prefix: bool) -> Value {
    let mut decoders = vec![json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "})];
    if byte_fallback {
        decoders.push(json!({"type": "ByteFallback"}));
    }
    decoders.push(json!({"type": "Fuse"}));
    if strips_prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": decoders})
}

/// Spaces become visible, and one is put before each text between special tokens.
pub(super) fn piece_normalizer(adds_prefix: bool) -> Value {
    let visible = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    match adds_prefix {
        true => {
            json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, visible]})
        }
        false => visible,
    }
}
