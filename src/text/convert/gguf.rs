//! The tokenizer in the metadata of a GGUF file: vocabulary, merges or scores, special tokens, chat templates.

use std::collections::HashMap;

use quire_model::gguf::Metadata;
use serde_json::{Map, Value, json};

use super::Converted;
use super::json::{Kind, TokenizerJson, added_token, bpe, piece_decoder, piece_normalizer, post_processor};
use super::merges::merges_of_scores;
use super::splits::Split;

/// Reads the keys `tokenizer.*`. The error names the key that is wrong.
///
/// # Errors
/// If a key is missing, contradicts another, or is of a tokenizer that is not supported.
pub fn from_gguf(metadata: &Metadata) -> Result<Converted, String> {
    let vocabulary = Vocabulary::read(metadata)?;
    let key = "tokenizer.ggml.model";
    let tokenizer = match metadata.word(key)? {
        Some("gpt2") => byte_level(metadata, &vocabulary)?,
        Some("llama") => by_scores(metadata, &vocabulary)?,
        Some(other) => {
            return Err(format!("key {key:?}: {other:?} is not supported; supported: gpt2, llama"));
        }
        None => return Err(format!("key {key:?} is missing")),
    };
    let mut config = Map::new();
    for (field, name) in SPECIAL_TOKENS {
        config.extend(vocabulary.named(metadata, name)?.map(|(_, token)| (field.into(), token.into())));
    }
    config.extend(templates(metadata)?.map(|templates| ("chat_template".into(), templates)));
    Ok(Converted { tokenizer: tokenizer.finish(), config: config.into() })
}

/// Fields of tokenizer_config.json, and what their keys are called.
const SPECIAL_TOKENS: [(&str, &str); 7] = [
    ("bos_token", "bos"),
    ("eos_token", "eos"),
    ("unk_token", "unknown"),
    ("pad_token", "padding"),
    // The key is misspelt in all files.
    ("sep_token", "seperator"),
    ("cls_token", "cls"),
    ("mask_token", "mask"),
];

/// All tokens by id.
struct Vocabulary<'a> {
    tokens: &'a [String],
    kinds: Vec<Kind>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self, String> {
        let key = "tokenizer.ggml.tokens";
        let tokens = metadata.texts(key)?.ok_or_else(|| format!("key {key:?} is missing"))?;
        let key = "tokenizer.ggml.token_type";
        let kinds = match metadata.numbers(key)? {
            None => vec![Kind::Normal; tokens.len()],
            Some(numbers) if numbers.len() != tokens.len() => {
                return Err(format!("key {key:?}: {} entries for {} tokens", numbers.len(), tokens.len()));
            }
            Some(numbers) => {
                let kind = |number: &f64| {
                    let unknown = || format!("key {key:?}: {number} is not a type of token; allowed: 1 to 6");
                    Kind::from_number(*number as i64).ok_or_else(unknown)
                };
                numbers.iter().map(kind).collect::<Result<_, _>>()?
            }
        };
        Ok(Self { tokens, kinds })
    }

    /// (id, token, kind) of all that can be in a text or between texts.
    fn used(&self) -> impl Iterator<Item = (usize, &'a str, Kind)> {
        let all = self.tokens.iter().zip(&self.kinds).enumerate();
        all.map(|(id, (token, kind))| (id, token.as_str(), *kind)).filter(|(.., kind)| *kind != Kind::Unused)
    }

    /// As in a tokenizer.json. Fails if two tokens are the same.
    fn json(&self) -> Result<Map<String, Value>, String> {
        let mut vocab = Map::new();
        for (id, token, _) in self.used() {
            if let Some(other) = vocab.insert(token.into(), id.into()) {
                return Err(format!(
                    "key \"tokenizer.ggml.tokens\": {token:?} is token {other} and token {id}"
                ));
            }
        }
        Ok(vocab)
    }

    fn added(&self, strips_right: impl Fn(&str, Kind) -> bool) -> Vec<Value> {
        let added = self.used().filter(|(.., kind)| kind.is_added());
        added
            .map(|(id, token, kind)| added_token(id, token, kind.is_special(), strips_right(token, kind)))
            .collect()
    }

    /// The token that `tokenizer.ggml.{name}_token_id` tells of.
    fn named(&self, metadata: &Metadata, name: &str) -> Result<Option<(u64, &'a str)>, String> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(id) = metadata.integer(&key)? else { return Ok(None) };
        match usize::try_from(id).ok().and_then(|id| self.tokens.get(id)) {
            Some(token) => Ok(Some((id, token))),
            None => Err(format!("key {key:?}: {id} is not one of the {} tokens", self.tokens.len())),
        }
    }

    /// What is put before and after each text.
    fn post_processor(&self, metadata: &Metadata, adds_first: bool) -> Result<Value, String> {
        let wanted = |name: &str, default| -> Result<Option<(u64, &str)>, String> {
            let adds = metadata.flag(&format!("tokenizer.ggml.add_{name}_token"))?.unwrap_or(default);
            if adds { self.named(metadata, name) } else { Ok(None) }
        };
        Ok(post_processor(wanted("bos", adds_first)?, wanted("eos", false)?))
    }
}

/// Byte-pair encoding of bytes, by merges.
fn byte_level(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<TokenizerJson, String> {
    let split = Split::of_name(metadata.word("tokenizer.ggml.pre")?.unwrap_or("default"))?;
    let key = "tokenizer.ggml.merges";
    let merges = metadata.texts(key)?.ok_or_else(|| format!("key {key:?} is missing"))?;
    let pair = |merge: &String| {
        // The first half may be a space itself.
        let at = merge.char_indices().skip(1).find(|(_, character)| *character == ' ');
        let (at, _) = at.ok_or_else(|| format!("key {key:?}: {merge:?} is not two tokens and a space"))?;
        Ok((merge[..at].to_owned(), merge[at + 1..].to_owned()))
    };
    let mut model = bpe(vocabulary.json()?, merges.iter().map(pair).collect::<Result<_, String>>()?);
    model["ignore_merges"] = split.ignores_merges.into();
    Ok(TokenizerJson {
        added_tokens: vocabulary.added(|_, _| false),
        normalizer: split.normalizer(),
        pre_tokenizer: split.pre_tokenizer(),
        post_processor: vocabulary.post_processor(metadata, split.adds_first)?,
        decoder: json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        model,
    })
}

/// SentencePiece's byte-pair encoding of characters, by scores; bytes for characters that are not there.
fn by_scores(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<TokenizerJson, String> {
    let key = "tokenizer.ggml.scores";
    let scores = metadata.numbers(key)?.ok_or_else(|| format!("key {key:?} is missing"))?;
    if scores.len() != vocabulary.tokens.len() {
        return Err(format!("key {key:?}: {} entries for {} tokens", scores.len(), vocabulary.tokens.len()));
    }
    let mergeable = vocabulary.used().filter(|(.., kind)| matches!(kind, Kind::Normal | Kind::UserDefined));
    let pieces: HashMap<&str, (usize, f64)> =
        mergeable.map(|(id, token, _)| (token, (id, scores[id]))).collect();
    let mut model = bpe(vocabulary.json()?, merges_of_scores(&pieces));
    let unknown = vocabulary.used().find(|(.., kind)| *kind == Kind::Unknown);
    model["unk_token"] = unknown.map(|(_, token, _)| token).into();
    model["fuse_unk"] = true.into();
    model["byte_fallback"] = true.into();

    let adds_prefix = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    // Of this model white space after a special token belongs to it, and no key tells.
    let is_phi3 = metadata.text("general.architecture")? == Some("phi3");
    let strips_right =
        |token: &str, kind| is_phi3 && kind == Kind::Control && !["<s>", "<|endoftext|>"].contains(&token);
    Ok(TokenizerJson {
        added_tokens: vocabulary.added(strips_right),
        normalizer: piece_normalizer(adds_prefix),
        pre_tokenizer: Value::Null,
        post_processor: vocabulary.post_processor(metadata, true)?,
        decoder: piece_decoder(true, adds_prefix),
        model,
    })
}

/// The chat template, or one with those for other uses by name.
fn templates(metadata: &Metadata) -> Result<Option<Value>, String> {
    let key = "tokenizer.chat_template";
    let Some(default) = metadata.text(key)? else { return Ok(None) };
    match metadata.text(&format!("{key}.tool_use"))? {
        None => Ok(Some(default.into())),
        Some(tool_use) => Ok(Some(json!([
            {"name": "default", "template": default},
            {"name": "tool_use", "template": tool_use},
        ]))),
    }
}
