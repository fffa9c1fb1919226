//! The tokenizer of a model: `tokenizer.json`, its special tokens and its chat template.

use std::path::Path;
use std::sync::Arc;

use quire_model::gguf::Metadata;
use serde_json::Value;
use tokenizers::utils::truncation::{TruncationParams, TruncationStrategy, truncate_encodings};
use tokenizers::{Encoding, PostProcessor, TruncationDirection};

use super::TextError;
use super::convert::{self, Converted};
use super::detokenizer::Detokenizer;
use super::pieces::{Piece, Pieces};

/// Vocabularies of today end near 300 000; an id beyond this is a broken file and would only cost memory.
const MAX_NUM_IDS: usize = 1 << 24;

const SPECIAL: u8 = 1;
const ADDED: u8 = 2;

/// A cloneable handle to a loaded tokenizer.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tokenizer: tokenizers::Tokenizer,
    pieces: Option<Pieces>,
    /// `SPECIAL | ADDED` by token id.
    flags: Vec<u8>,
    vocab_size: usize,
    special: SpecialTokens,
    templates: Templates,
}

/// The special tokens that `tokenizer_config.json` names, as text. Chat templates see them by these names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos_token: Option<String>,
    /// Ends a text or a turn.
    pub eos_token: Option<String>,
    /// Fills a batch.
    pub pad_token: Option<String>,
    /// Stands for what the vocabulary does not have.
    pub unk_token: Option<String>,
    /// Separates two texts.
    pub sep_token: Option<String>,
    /// Begins a text to be classified.
    pub cls_token: Option<String>,
    /// Hides a token.
    pub mask_token: Option<String>,
}

/// Which tokens of a text, or of a pair of texts, to keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// Own tokens of the first text and of the second; `None` = all.
    pub each: [Option<usize>; 2],
    /// Tokens of the whole; what the post-processor adds is among them, and is not cut off.
    pub all: Option<usize>,
    /// Keep the ends of texts instead of their beginnings.
    pub from_end: bool,
}

/// The tokens of one text, or of two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Ids.
    pub ids: Vec<u32>,
    /// Where the tokens begin that the tokenizer counts to the second text (token type 1), if it tells them apart.
    pub second_text_start: Option<u32>,
}

#[derive(Debug, Default)]
struct Templates {
    default: Option<String>,
    tool_use: Option<String>,
}

impl Tokenizer {
    /// Loads a tokenizer from the contents of `tokenizer.json` and, where there is one,
    /// `tokenizer_config.json`.
    ///
    /// Truncation and padding that `tokenizer.json` may ask for are switched off: a prompt is never shortened
    /// in silence.
    ///
    /// # Errors
    /// [`TextError::BadFile`] where a file does not parse or its decoder cannot stream.
    pub fn from_bytes(tokenizer_json: &[u8], tokenizer_config: Option<&[u8]>) -> Result<Self, TextError> {
        let config = tokenizer_config.map(|bytes| parse_json("tokenizer_config.json", bytes));
        let config = config.transpose()?.unwrap_or_default();
        Self::new(tokenizer_json, SpecialTokens::from_config(&config), Templates::from_config(&config))
    }

    /// Loads `tokenizer.json` from a checkpoint's directory, or else SentencePiece's `tokenizer.model`, and `tokenizer_config.json`,
    /// `special_tokens_map.json` and `chat_template.jinja` where they exist. The last one takes precedence
    /// over a template in the config.
    ///
    /// # Errors
    /// [`TextError::Read`] and [`TextError::BadFile`].
    pub fn from_dir(dir: &Path) -> Result<Self, TextError> {
        let parse_optional = |name: &'static str| match read_optional(&dir.join(name))? {
            Some(bytes) => parse_json(name, &bytes),
            None => Ok(Value::Null),
        };
        let config = parse_optional("tokenizer_config.json")?;
        let map = parse_optional("special_tokens_map.json")?;
        let special = SpecialTokens::from_config(&config).or(SpecialTokens::from_config(&map));
        let path = dir.join("tokenizer.json");
        let (tokenizer_json, special) = match read_optional(&dir.join("tokenizer.model"))? {
            Some(model) if !path.exists() => {
                let bad = |message| TextError::BadFile { file: "tokenizer.model", message };
                let converted = convert::from_sentencepiece(&model, &config).map_err(bad)?;
                let own = SpecialTokens::from_config(&converted.config);
                (converted.tokenizer.to_string().into_bytes(), special.or(own))
            }
            _ => (read(&path)?, special),
        };
        let mut templates = Templates::from_config(&config);
        if let Some(bytes) = read_optional(&dir.join("chat_template.jinja"))? {
            let source = String::from_utf8(bytes).map_err(|error| TextError::BadFile {
                file: "chat_template.jinja",
                message: error.to_string(),
            })?;
            templates = Templates { default: Some(source), tool_use: None };
        }
        Self::new(&tokenizer_json, special, templates)
    }

    /// The tokenizer of a GGUF file.
    ///
    /// # Errors
    /// [`TextError::BadFile`] with the key that is wrong.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, TextError> {
        let bad = |message| TextError::BadFile { file: "the tokenizer of the GGUF file", message };
        Self::from_converted(&convert::from_gguf(metadata).map_err(bad)?)
    }

    fn from_converted(converted: &Converted) -> Result<Self, TextError> {
        let Converted { tokenizer, config } = converted;
        let (special, templates) = (SpecialTokens::from_config(config), Templates::from_config(config));
        Self::new(tokenizer.to_string().as_bytes(), special, templates)
    }

    fn new(json: &[u8], special: SpecialTokens, templates: Templates) -> Result<Self, TextError> {
        let bad = |message: String| TextError::BadFile { file: "tokenizer.json", message };
        let mut tokenizer =
            tokenizers::Tokenizer::from_bytes(json).map_err(|error| bad(error.to_string()))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| bad(error.to_string()))?;

        let num_ids = tokenizer.get_vocab(true).values().max().map_or(0, |&max| max as usize + 1);
        if num_ids > MAX_NUM_IDS {
            return Err(bad(format!("token id {} is above the limit of {MAX_NUM_IDS}", num_ids - 1)));
        }
        let mut flags = vec![0; num_ids];
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            flags[id as usize] = ADDED | if token.special { SPECIAL } else { 0 };
        }
        let pieces = Pieces::build(&tokenizer, num_ids)?;
        let vocab_size = tokenizer.get_vocab_size(true);
        Ok(Self { inner: Arc::new(Inner { tokenizer, pieces, flags, vocab_size, special, templates }) })
    }

    /// Token ids of `text`. With `add_special_tokens` the tokenizer's post-processor may add a beginning or
    /// an end. Special tokens that are written out in `text` become their ids, as in vLLM.
    ///
    /// # Errors
    /// [`TextError::Encode`] where the vocabulary cannot express the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        let encoding = self.inner.tokenizer.encode_fast(text, add_special_tokens);
        let encoding = encoding.map_err(|error| TextError::Encode { message: error.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The same of a text of which only a part may be kept, or of a pair of texts, as models that compare two are
    /// trained on them. If a pair is too long, the longer text is cut first (as in transformers).
    ///
    /// # Errors
    /// [`TextError::Encode`] where the vocabulary cannot express a text.
    pub fn encode_part(
        &self,
        text: &str,
        second: Option<&str>,
        add_special_tokens: bool,
        keep: &Keep,
    ) -> Result<Tokens, TextError> {
        let failed = |error: tokenizers::Error| TextError::Encode { message: error.to_string() };
        let tokenizer = &self.inner.tokenizer;
        let direction = if keep.from_end { TruncationDirection::Left } else { TruncationDirection::Right };
        let encode = |text: &str, limit: Option<usize>| -> Result<Encoding, TextError> {
            let mut encoding = tokenizer.encode_fast(text, false).map_err(failed)?;
            encoding.truncate(limit.unwrap_or(usize::MAX), 0, direction);
            // What was cut off would be processed too, and for pairs in all combinations.
            encoding.take_overflowing();
            Ok(encoding)
        };
        let mut first = encode(text, keep.each[0])?;
        let mut second = second.map(|second| encode(second, keep.each[1])).transpose()?;
        if let Some(all) = keep.all {
            let processor = tokenizer.get_post_processor().filter(|_| add_special_tokens);
            let added = processor.map_or(0, |processor| processor.added_tokens(second.is_some()));
            let (max_length, strategy) = (all.saturating_sub(added), TruncationStrategy::LongestFirst);
            let params = TruncationParams { max_length, strategy, stride: 0, direction };
            (first, second) = truncate_encodings(first, second, &params).map_err(failed)?;
            first.take_overflowing();
            second.iter_mut().for_each(|second| drop(second.take_overflowing()));
        }
        let whole = tokenizer.post_process(first, second, add_special_tokens).map_err(failed)?;
        let mut ids = whole.get_ids().to_vec();
        // Only if there is no room even for what is added.
        ids.truncate(keep.all.unwrap_or(usize::MAX));
        let second_text_start = whole.get_type_ids().iter().position(|of| *of > 0).map(|at| at as u32);
        Ok(Tokens { ids, second_text_start })
    }

    /// The text of a whole sequence. Ids that the vocabulary does not have contribute nothing.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        let mut text = String::new();
        let mut detokenizer = Detokenizer::new(self, &[], skip_special_tokens, true);
        for &id in ids {
            detokenizer.push(id, &mut text);
        }
        detokenizer.finish(&mut text);
        text
    }

    /// The vocabulary's own spelling of a token, for example `Ġhello`.
    pub fn token_str(&self, id: u32) -> Option<String> {
        self.inner.tokenizer.id_to_token(id)
    }

    /// The text of one token as it stands within a text, with its leading space; U+FFFD where it is only part
    /// of a character. This is the `token` of logprobs.
    pub fn token_text(&self, id: u32) -> String {
        match self.piece(id) {
            Some(Piece::Text(text)) => text.to_string(),
            Some(Piece::Bytes(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
            None => self.decode_in_context(&[id], false),
        }
    }

    /// The exact bytes that a token contributes to a text, also where it is only part of a character.
    /// Decoders without byte tokens give the bytes of [`token_text`](Self::token_text).
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        match self.piece(id) {
            Some(Piece::Text(text)) => text.as_bytes().to_vec(),
            Some(Piece::Bytes(bytes)) => bytes.to_vec(),
            None => self.decode_in_context(&[id], false).into_bytes(),
        }
    }

    /// Whether each token's bytes are the same in every text. Not so for WordPiece and other decoders that
    /// look at a token's neighbours.
    pub fn has_token_bytes(&self) -> bool {
        self.inner.pieces.is_some()
    }

    /// Whether `id` is a special token, which `skip_special_tokens` removes from the text.
    pub fn is_special(&self, id: u32) -> bool {
        self.has_flag(id, SPECIAL)
    }

    /// Number of tokens, with the added ones.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab_size
    }

    /// Id of a token by the vocabulary's own spelling.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.tokenizer.token_to_id(token)
    }

    /// Id of the token that ends a text.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.token_to_id(self.special_tokens().eos_token.as_deref()?)
    }

    /// Id of the token that begins a text.
    pub fn bos_token_id(&self) -> Option<u32> {
        self.token_to_id(self.special_tokens().bos_token.as_deref()?)
    }

    /// Id of the token that fills a batch.
    pub fn pad_token_id(&self) -> Option<u32> {
        self.token_to_id(self.special_tokens().pad_token.as_deref()?)
    }

    /// The special tokens as text.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.inner.special
    }

    /// Source of the model's chat template.
    pub fn chat_template_source(&self) -> Option<&str> {
        self.inner.templates.default.as_deref()
    }

    /// Source of the template that the model wants instead when the request has tools.
    pub fn tool_use_template_source(&self) -> Option<&str> {
        self.inner.templates.tool_use.as_deref()
    }

    pub(super) fn pieces(&self) -> Option<&Pieces> {
        self.inner.pieces.as_ref()
    }

    pub(super) fn is_added(&self, id: u32) -> bool {
        self.has_flag(id, ADDED)
    }

    /// The text of `ids` by the tokenizer's own decoder, whatever its kind.
    pub(super) fn decode_in_context(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        // The decoder can fail only on a regex that exceeds its step limit; that text is then lost, not the
        // stream.
        self.inner.tokenizer.decode(ids, skip_special_tokens).unwrap_or_default()
    }

    fn piece(&self, id: u32) -> Option<Piece<'_>> {
        self.pieces()?.get(id)
    }

    fn has_flag(&self, id: u32, flag: u8) -> bool {
        self.inner.flags.get(id as usize).is_some_and(|flags| flags & flag != 0)
    }
}

impl SpecialTokens {
    fn from_config(config: &Value) -> Self {
        let token = |name: &str| match &config[name] {
            Value::String(token) => Some(token.clone()),
            Value::Object(added_token) => added_token.get("content")?.as_str().map(String::from),
            _ => None,
        };
        Self {
            bos_token: token("bos_token"),
            eos_token: token("eos_token"),
            pad_token: token("pad_token"),
            unk_token: token("unk_token"),
            sep_token: token("sep_token"),
            cls_token: token("cls_token"),
            mask_token: token("mask_token"),
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            bos_token: self.bos_token.or(other.bos_token),
            eos_token: self.eos_token.or(other.eos_token),
            pad_token: self.pad_token.or(other.pad_token),
            unk_token: self.unk_token.or(other.unk_token),
            sep_token: self.sep_token.or(other.sep_token),
            cls_token: self.cls_token.or(other.cls_token),
            mask_token: self.mask_token.or(other.mask_token),
        }
    }

    /// The tokens that are set, by the names that templates use.
    pub(super) fn named(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
            ("pad_token", &self.pad_token),
            ("unk_token", &self.unk_token),
            ("sep_token", &self.sep_token),
            ("cls_token", &self.cls_token),
            ("mask_token", &self.mask_token),
        ]
        .into_iter()
        .filter_map(|(name, token)| Some((name, token.as_deref()?)))
    }
}

impl Templates {
    /// `chat_template` is one source, or a list of `{"name", "template"}`.
    fn from_config(config: &Value) -> Self {
        match &config["chat_template"] {
            Value::String(source) => Self { default: Some(source.clone()), tool_use: None },
            Value::Array(named) => {
                let find = |name: &str| {
                    let entry = named.iter().find(|entry| entry["name"] == name)?;
                    entry["template"].as_str().map(String::from)
                };
                Self { default: find("default"), tool_use: find("tool_use") }
            }
            _ => Self::default(),
        }
    }
}

fn parse_json(file: &'static str, bytes: &[u8]) -> Result<Value, TextError> {
    serde_json::from_slice(bytes).map_err(|error| TextError::BadFile { file, message: error.to_string() })
}

fn read(path: &Path) -> Result<Vec<u8>, TextError> {
    std::fs::read(path).map_err(|source| TextError::Read { path: path.to_path_buf(), source })
}

fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, TextError> {
    match read(path) {
        Err(TextError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}
