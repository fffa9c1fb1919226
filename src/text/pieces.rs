//! The flat table from token id to output bytes, for the decoders where a token's bytes do not depend on its
//! neighbours: byte-level BPE, SentencePiece-like sequences (Replace, ByteFallback, Fuse, Strip) and
//! Metaspace.
//!
//! These cover nearly every generative model, and with them detokenizing is appending a slice. Other decoders
//! (WordPiece, CTC, `</w>` suffixes) have no table and go through the tokenizer's own decoder.

use tokenizers::decoders::DecoderWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{Decoder, Tokenizer};

use super::TextError;

/// What the start of a whole text loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// Nothing is special about it, or it has passed.
    Plain,
    /// Up to `count` leading characters `content` are removed (`Strip` after `Fuse`).
    Strip { content: char, count: usize },
    /// The first token loses every `replacement` (`Metaspace`).
    FirstToken { replacement: char },
}

/// How the bytes of neighbouring tokens join, which decides what becomes of invalid bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Joining {
    /// One byte stream; an invalid sequence is one U+FFFD as in lossy UTF-8 decoding (byte-level BPE).
    Stream,
    /// Only byte tokens (`<0xE4>`) join with each other; each invalid byte is one U+FFFD.
    ByteTokens,
}

/// What a token contributes to the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// Valid UTF-8 on its own, and the usual case.
    Text(&'a str),
    /// Part of a character.
    Bytes(&'a [u8]),
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    start: u32,
    len: u32,
    is_text: bool,
    is_known: bool,
}

/// The table. Texts lie in one string and the rest in one byte vector, so that it is two allocations.
#[derive(Debug)]
pub(super) struct Pieces {
    entries: Vec<Entry>,
    text: String,
    bytes: Vec<u8>,
    pub(super) joining: Joining,
    pub(super) start: Start,
}

impl Pieces {
    /// Builds the table for ids below `num_ids`; `None` where the decoder needs its context.
    pub(super) fn build(tokenizer: &Tokenizer, num_ids: usize) -> Result<Option<Self>, TextError> {
        let Some(plan) = tokenizer.get_decoder().map(Plan::of).transpose()?.flatten() else {
            return Ok(None);
        };
        let mut table = Self {
            entries: Vec::with_capacity(num_ids),
            text: String::new(),
            bytes: Vec::new(),
            joining: plan.joining,
            start: plan.start,
        };
        for id in 0..num_ids as u32 {
            let piece = tokenizer.id_to_token(id).map(|token| plan.output(token)).transpose()?;
            table.add(piece);
        }
        Ok(Some(table))
    }

    /// The piece of `id`; `None` for ids that the vocabulary does not have.
    pub(super) fn get(&self, id: u32) -> Option<Piece<'_>> {
        let entry = self.entries.get(id as usize)?;
        let range = entry.start as usize..(entry.start + entry.len) as usize;
        match entry {
            Entry { is_known: false, .. } => None,
            Entry { is_text: true, .. } => Some(Piece::Text(&self.text[range])),
            Entry { is_text: false, .. } => Some(Piece::Bytes(&self.bytes[range])),
        }
    }

    fn add(&mut self, piece: Option<Output>) {
        let mut entry = Entry { start: 0, len: 0, is_text: false, is_known: piece.is_some() };
        let output = piece.unwrap_or(Output { bytes: Vec::new(), is_byte_token: false });
        entry.len = output.bytes.len() as u32;
        match String::from_utf8(output.bytes) {
            Ok(text) if !output.is_byte_token => {
                entry.is_text = true;
                entry.start = self.text.len() as u32;
                self.text.push_str(&text);
            }
            not_text => {
                let bytes = not_text.map_or_else(|error| error.into_bytes(), String::into_bytes);
                entry.start = self.bytes.len() as u32;
                self.bytes.extend_from_slice(&bytes);
            }
        }
        self.entries.push(entry);
    }
}

struct Output {
    bytes: Vec<u8>,
    is_byte_token: bool,
}

/// How to compute a token's bytes, read off the decoder.
struct Plan<'a> {
    kind: Kind<'a>,
    joining: Joining,
    start: Start,
}

enum Kind<'a> {
    ByteLevel {
        byte_of: Box<[Option<u8>; 0x144]>,
    },
    /// Stages that see one token at a time, then perhaps byte tokens.
    Stages {
        stages: Vec<&'a DecoderWrapper>,
        byte_fallback: bool,
    },
    Metaspace {
        replacement: char,
    },
}

impl<'a> Plan<'a> {
    fn of(decoder: &'a DecoderWrapper) -> Result<Option<Self>, TextError> {
        Ok(match decoder {
            DecoderWrapper::ByteLevel(_) => Some(Self {
                kind: Kind::ByteLevel { byte_of: byte_level_alphabet() },
                joining: Joining::Stream,
                start: Start::Plain,
            }),
            DecoderWrapper::Metaspace(metaspace) => {
                let replacement = metaspace.get_replacement();
                let keeps_first = metaspace.get_prepend_scheme() == PrependScheme::Never;
                Some(Self {
                    kind: Kind::Metaspace { replacement },
                    joining: Joining::ByteTokens,
                    start: if keeps_first { Start::Plain } else { Start::FirstToken { replacement } },
                })
            }
            DecoderWrapper::Sequence(sequence) => match sequence.get_decoders() {
                [single] => Self::of(single)?,
                stages => Self::of_stages(stages)?,
            },
            stage => Self::of_stages(std::slice::from_ref(stage))?,
        })
    }

    /// Accepts `(Replace | Strip)* ByteFallback? (Fuse Strip?)?`, the order in which each stage's effect on a
    /// token is known without its neighbours.
    fn of_stages(decoders: &'a [DecoderWrapper]) -> Result<Option<Self>, TextError> {
        let mut stages = Vec::new();
        let (mut byte_fallback, mut fused, mut start) = (false, false, Start::Plain);
        for decoder in decoders {
            match decoder {
                DecoderWrapper::Strip(strip) if strip.stop > 0 => {
                    return Err(TextError::BadFile {
                        file: "tokenizer.json",
                        message:
                            "a decoder that strips the end of the text cannot stream (Strip.stop must be 0)"
                                .into(),
                    });
                }
                DecoderWrapper::Strip(strip) if fused && start == Start::Plain => {
                    start = Start::Strip { content: strip.content, count: strip.start };
                }
                DecoderWrapper::Replace(_) | DecoderWrapper::Strip(_) if !fused && !byte_fallback => {
                    stages.push(decoder);
                }
                DecoderWrapper::ByteFallback(_) if !fused && !byte_fallback => byte_fallback = true,
                DecoderWrapper::Fuse(_) if !fused => fused = true,
                _ => return Ok(None),
            }
        }
        let kind = Kind::Stages { stages, byte_fallback };
        Ok(Some(Self { kind, joining: Joining::ByteTokens, start }))
    }

    fn output(&self, token: String) -> Result<Output, TextError> {
        let mut output = Output { bytes: Vec::new(), is_byte_token: false };
        match &self.kind {
            Kind::ByteLevel { byte_of } => {
                let mapped = token.chars().map(|c| byte_of.get(c as usize).copied().flatten());
                // A token with a character outside the alphabet is an added token in plain text.
                output.bytes = mapped.collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.into_bytes());
            }
            Kind::Stages { stages, byte_fallback } => {
                let mut text = token;
                for stage in stages {
                    text = stage.decode(vec![text]).map_err(|error| TextError::BadFile {
                        file: "tokenizer.json",
                        message: format!("decoder: {error}"),
                    })?;
                }
                match byte_token(&text).filter(|_| *byte_fallback) {
                    Some(byte) => output = Output { bytes: vec![byte], is_byte_token: true },
                    None => output.bytes = text.into_bytes(),
                }
            }
            Kind::Metaspace { replacement } => output.bytes = token.replace(*replacement, " ").into_bytes(),
        }
        Ok(output)
    }
}

/// The byte of a token like `<0x0A>`.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// GPT-2's printable alphabet for bytes: printable Latin-1 stands for itself, and the other 68 bytes are
/// numbered upwards from U+0100 in order.
fn byte_level_alphabet() -> Box<[Option<u8>; 0x144]> {
    let mut byte_of = Box::new([None; 0x144]);
    let mut next = 0x100;
    for byte in 0..=u8::MAX {
        if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
            byte_of[usize::from(byte)] = Some(byte);
        } else {
            byte_of[next] = Some(byte);
            next += 1;
        }
    }
    byte_of
}
