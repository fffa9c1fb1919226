//! SentencePiece's `tokenizer.model`, for folders that have no tokenizer.json (Llama 2, Mistral, Gemma as published).
//!
//! The file is a protobuf message; of `sentencepiece_model.proto` only what changes tokens is read here. What the model
//! itself does not say (tokens that were added to it, whether texts begin with one) is in tokenizer_config.json, with
//! the defaults of transformers' classes.

use std::collections::{BTreeMap, HashMap};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use serde_json::{Map, Value, json};

use super::Converted;
use super::json::{Kind, TokenizerJson, added_token, bpe, piece_decoder, piece_normalizer, post_processor};
use super::merges::merges_of_scores;

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<NormalizerSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, tag = "1")]
    piece: String,
    #[prost(float, tag = "2")]
    score: f32,
    #[prost(int32, optional, tag = "3", default = "1")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct TrainerSpec {
    #[prost(int32, optional, tag = "3", default = "1")]
    model_type: Option<i32>,
    #[prost(bool, tag = "24")]
    treat_whitespace_as_suffix: bool,
    #[prost(bool, tag = "35")]
    byte_fallback: bool,
    #[prost(int32, optional, tag = "41", default = "1")]
    bos_id: Option<i32>,
    #[prost(int32, optional, tag = "42", default = "2")]
    eos_id: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerSpec {
    #[prost(bytes = "vec", tag = "2")]
    precompiled_charsmap: Vec<u8>,
    #[prost(bool, optional, tag = "3", default = "true")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4", default = "true")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5", default = "true")]
    escape_whitespaces: Option<bool>,
}

const UNIGRAM: i32 = 1;
const BPE: i32 = 2;

/// Reads `tokenizer.model`; `config` is tokenizer_config.json, or null.
///
/// # Errors
/// If the file is no SentencePiece model, or one of a kind that is not supported; in words.
pub fn from_sentencepiece(model: &[u8], config: &Value) -> Result<Converted, String> {
    let proto = ModelProto::decode(model).map_err(|error| format!("not a SentencePiece model: {error}"))?;
    let trainer = proto.trainer.clone().unwrap_or_default();
    let normalizer = proto.normalizer.clone().unwrap_or_default();
    if trainer.treat_whitespace_as_suffix || !normalizer.escape_whitespaces() {
        return Err("white space at the ends of pieces, or that is not escaped, is not supported".into());
    }
    let vocabulary = Vocabulary::new(&proto.pieces, config)?;
    let adds_prefix = config["add_prefix_space"].as_bool().unwrap_or(normalizer.add_dummy_prefix());
    let first_only = adds_prefix && config["legacy"] == false;
    let special = |field: &str, id: i32| match text_of(&config[field]) {
        Some(token) => Some(token),
        None => Some(vocabulary.tokens.get(usize::try_from(id).ok()?)?.0.as_str()),
    };
    let (bos, eos) = (special("bos_token", trainer.bos_id()), special("eos_token", trainer.eos_id()));
    let unknown = vocabulary.tokens.iter().find(|(_, _, kind)| *kind == Kind::Unknown);
    let unknown = unknown.map(|(token, ..)| token.as_str());
    let adds = |field: &str, default| config[field].as_bool().unwrap_or(default);
    let first = bos.filter(|_| adds("add_bos_token", begins_texts(&trainer, config)));
    let last = eos.filter(|_| adds("add_eos_token", false));
    let tokenizer = TokenizerJson {
        added_tokens: vocabulary.added.clone(),
        normalizer: normalizer_json(&normalizer, adds_prefix, first_only),
        pre_tokenizer: match first_only {
            true => {
                json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false})
            }
            false => Value::Null,
        },
        post_processor: post_processor(vocabulary.with_id(first)?, vocabulary.with_id(last)?),
        decoder: piece_decoder(trainer.byte_fallback, adds_prefix),
        model: model_json(&trainer, &vocabulary)?,
    };
    let named = [("bos_token", bos), ("eos_token", eos), ("unk_token", unknown)];
    let config: Map<String, Value> =
        named.into_iter().filter_map(|(field, token)| Some((field.into(), token?.into()))).collect();
    Ok(Converted { tokenizer: tokenizer.finish(), config: config.into() })
}

/// transformers' classes for Llama and Gemma put a token before each text unless they are told not to.
fn begins_texts(trainer: &TrainerSpec, config: &Value) -> bool {
    match config["tokenizer_class"].as_str() {
        Some(class) => ["Llama", "CodeLlama", "Gemma"].iter().any(|name| class.starts_with(name)),
        None => trainer.model_type() == BPE,
    }
}

/// All tokens by id: the pieces, and what was added to them.
struct Vocabulary {
    /// (token, score, kind)
    tokens: Vec<(String, f64, Kind)>,
    /// As in a tokenizer.json.
    added: Vec<Value>,
}

impl Vocabulary {
    fn new(pieces: &[Piece], config: &Value) -> Result<Self, String> {
        let mut tokens = Vec::with_capacity(pieces.len());
        for (id, piece) in pieces.iter().enumerate() {
            let kind = Kind::from_number(piece.kind().into());
            let kind =
                kind.ok_or_else(|| format!("piece {id} has type {}; allowed: 1 to 6", piece.kind()))?;
            if !piece.score.is_finite() {
                return Err(format!("piece {id} has score {}", piece.score));
            }
            tokens.push((piece.piece.clone(), f64::from(piece.score), kind));
        }
        if tokens.is_empty() {
            return Err("not a SentencePiece model: it has no pieces".into());
        }
        let mut added = BTreeMap::new();
        for (id, (token, _, kind)) in tokens.iter().enumerate().filter(|(_, (.., kind))| kind.is_added()) {
            added.insert(id, added_token(id, token, kind.is_special(), false));
        }
        for (id, token, json) in added_by(config)? {
            match tokens.len() {
                len if id < len => tokens[id] = (token, tokens[id].1, tokens[id].2),
                len if id == len => tokens.push((token, 0.0, Kind::UserDefined)),
                len => {
                    return Err(format!(
                        "tokenizer_config.json adds token {id} to {len} others; one is missing"
                    ));
                }
            }
            added.insert(id, json);
        }
        let mut seen = HashMap::new();
        for (id, (token, ..)) in tokens.iter().enumerate() {
            if let Some(other) = seen.insert(token.as_str(), id) {
                return Err(format!("{token:?} is token {other} and token {id}"));
            }
        }
        Ok(Self { tokens, added: added.into_values().collect() })
    }

    fn with_id<'t>(&self, token: Option<&'t str>) -> Result<Option<(u64, &'t str)>, String> {
        let Some(token) = token else { return Ok(None) };
        match self.tokens.iter().position(|(known, ..)| known == token) {
            Some(id) => Ok(Some((id as u64, token))),
            None => Err(format!("no piece is the special token {token:?}")),
        }
    }
}

/// `added_tokens_decoder` of tokenizer_config.json: (id, token, as in a tokenizer.json), by id.
fn added_by(config: &Value) -> Result<Vec<(usize, String, Value)>, String> {
    let Value::Object(added) = &config["added_tokens_decoder"] else { return Ok(Vec::new()) };
    let mut tokens = Vec::with_capacity(added.len());
    for (id, token) in added {
        let bad = || format!("tokenizer_config.json: added_tokens_decoder: {id:?} is not an id with a token");
        let (number, content) = (id.parse::<usize>().map_err(|_| bad())?, text_of(token).ok_or_else(bad)?);
        let mut json = added_token(number, content, false, false);
        for flag in ["single_word", "lstrip", "rstrip", "normalized", "special"] {
            json[flag] = token[flag].as_bool().unwrap_or(false).into();
        }
        tokens.push((number, content.to_owned(), json));
    }
    tokens.sort_unstable_by_key(|(id, ..)| *id);
    Ok(tokens)
}

/// A token of tokenizer_config.json, which may be an object.
fn text_of(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

fn normalizer_json(spec: &NormalizerSpec, adds_prefix: bool, first_only: bool) -> Value {
    let mut steps = Vec::new();
    if !spec.precompiled_charsmap.is_empty() {
        let map = STANDARD.encode(&spec.precompiled_charsmap);
        steps.push(json!({"type": "Precompiled", "precompiled_charsmap": map}));
    }
    if spec.remove_extra_whitespaces() {
        steps.push(json!({"type": "Strip", "strip_left": true, "strip_right": true}));
        steps.push(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}));
    }
    // Otherwise the pre-tokenizer makes spaces visible.
    if !first_only {
        steps.push(piece_normalizer(adds_prefix));
    }
    json!({"type": "Sequence", "normalizers": steps})
}

fn model_json(trainer: &TrainerSpec, vocabulary: &Vocabulary) -> Result<Value, String> {
    let tokens = &vocabulary.tokens;
    let unknown = tokens.iter().position(|(.., kind)| *kind == Kind::Unknown);
    match trainer.model_type() {
        UNIGRAM => {
            let vocab: Vec<(&str, f64)> =
                tokens.iter().map(|(token, score, _)| (token.as_str(), *score)).collect();
            let byte_fallback = trainer.byte_fallback;
            Ok(json!({"type": "Unigram", "unk_id": unknown, "vocab": vocab, "byte_fallback": byte_fallback}))
        }
        BPE => {
            let mergeable = tokens.iter().enumerate();
            let mergeable =
                mergeable.filter(|(_, (.., kind))| matches!(kind, Kind::Normal | Kind::UserDefined));
            let pieces: HashMap<&str, (usize, f64)> =
                mergeable.map(|(id, (token, score, _))| (token.as_str(), (id, *score))).collect();
            let used = tokens.iter().enumerate().filter(|(_, (.., kind))| *kind != Kind::Unused);
            let vocab = used.map(|(id, (token, ..))| (token.clone(), id.into())).collect();
            let mut model = bpe(vocab, merges_of_scores(&pieces));
            model["unk_token"] = unknown.map(|id| tokens[id].0.as_str()).into();
            model["fuse_unk"] = true.into();
            model["byte_fallback"] = trainer.byte_fallback.into();
            Ok(model)
        }
        other => Err(format!("model type {other} is not supported; supported: 1 (Unigram), 2 (BPE)")),
    }
}
