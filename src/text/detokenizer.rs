//! Token ids to text, one at a time, for a stream.
//!
//! What a stream emits is exactly what decoding the whole sequence would give, never half a character: bytes
//! that are only the beginning of a character wait for the rest. One rule of the `tokenizers` decoder is not
//! kept, because it would need unlimited lookahead: where a run of byte tokens (`<0xE4><0xBD>…`) is invalid
//! anywhere, that decoder replaces *every* byte of the run with U+FFFD; here the valid characters of the run
//! stay.

use std::sync::Arc;

use super::Tokenizer;
use super::pieces::{Joining, Piece, Pieces, Start};

/// Tokens of the prompt that give the first new token its context, for decoders without a table (vLLM's
/// number).
const CONTEXT_TOKENS: usize = 5;

/// Tokens that may wait for a character to be complete, for decoders without a table. No character has more
/// bytes than 4, so text that still ends in U+FFFD after this many tokens really contains it.
const MAX_HELD_TOKENS: usize = 16;

/// The detokenizer of one sequence.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special_tokens: bool,
    /// Special tokens that are not left out.
    kept: Arc<[u32]>,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    Table(TableState),
    Context(ContextState),
}

impl Detokenizer {
    /// A detokenizer for what follows `prompt_ids`. The prompt decides whether a leading space belongs to the
    /// text, and may end within a character that the first new token completes.
    ///
    /// `spaces_between_special_tokens: false` matters only to decoders that put spaces between tokens
    /// (WordPiece): an added token that follows another one is then written without the space. As in vLLM it
    /// has no effect when special tokens are skipped.
    pub fn new(
        tokenizer: &Tokenizer,
        prompt_ids: &[u32],
        skip_special_tokens: bool,
        spaces_between_special_tokens: bool,
    ) -> Self {
        let is_visible = |id: u32| !(skip_special_tokens && tokenizer.is_special(id));
        let state = match tokenizer.pieces() {
            Some(pieces) => {
                let visible = || prompt_ids.iter().copied().filter(|&id| is_visible(id));
                State::Table(TableState::after_prompt(tokenizer, pieces, visible))
            }
            None => {
                let mut ids: Vec<u32> = prompt_ids
                    .iter()
                    .rev()
                    .copied()
                    .filter(|&id| is_visible(id))
                    .take(CONTEXT_TOKENS)
                    .collect();
                ids.reverse();
                State::Context(ContextState {
                    context: tokenizer.decode_in_context(&ids, skip_special_tokens),
                    num_emitted: ids.len(),
                    ids,
                    joins_added: !skip_special_tokens && !spaces_between_special_tokens,
                    last_was_added: false,
                })
            }
        };
        Self { tokenizer: tokenizer.clone(), skip_special_tokens, kept: Arc::default(), state }
    }

    /// Leaves these tokens in the text, special or not: they tell a reader where something begins and ends.
    pub fn keeping(self, kept: Arc<[u32]>) -> Self {
        Self { kept, ..self }
    }

    /// Takes the next token and appends the text that is now certain.
    pub fn push(&mut self, id: u32, out: &mut String) {
        if self.skip_special_tokens && self.tokenizer.is_special(id) && !self.kept.contains(&id) {
            return;
        }
        match (&mut self.state, self.tokenizer.pieces()) {
            (State::Table(state), Some(pieces)) => state.push(&self.tokenizer, pieces, id, out),
            (State::Context(state), _) => state.push(&self.tokenizer, id, out),
            (State::Table(_), None) => {
                unreachable!("a table state is made only for a tokenizer with a table")
            }
        }
    }

    /// Appends what was held back, at the end of the sequence: an incomplete character becomes U+FFFD.
    pub fn finish(&mut self, out: &mut String) {
        match (&mut self.state, self.tokenizer.pieces()) {
            (State::Table(state), Some(pieces)) => state.flush(pieces.joining, out),
            (State::Context(state), _) => state.flush(&self.tokenizer, out),
            (State::Table(_), None) => {
                unreachable!("a table state is made only for a tokenizer with a table")
            }
        }
    }
}

/// State over the flat table.
#[derive(Clone, Debug)]
struct TableState {
    /// The beginning of a character, at most 3 bytes between two calls.
    pending: Vec<u8>,
    start: Start,
}

impl TableState {
    fn after_prompt<I>(tokenizer: &Tokenizer, pieces: &Pieces, prompt: impl Fn() -> I) -> Self
    where
        I: DoubleEndedIterator<Item = u32>,
    {
        let mut state = Self { pending: Vec::new(), start: pieces.start };
        let mut sink = String::new();
        for id in prompt() {
            if state.start == Start::Plain {
                break;
            }
            state.push(tokenizer, pieces, id, &mut sink);
        }
        // UTF-8 synchronises itself: what is pending at the end depends on the last 3 bytes alone.
        let mut num_bytes = 0;
        let mut tail = Vec::new();
        for id in prompt().rev() {
            if num_bytes >= 3 {
                break;
            }
            num_bytes += pieces.get(id).map_or(0, |piece| match piece {
                Piece::Text(text) => text.len(),
                Piece::Bytes(bytes) => bytes.len(),
            });
            tail.push(id);
        }
        let mut end = Self { pending: Vec::new(), start: Start::Plain };
        for &id in tail.iter().rev() {
            end.push(tokenizer, pieces, id, &mut sink);
        }
        state.pending = end.pending;
        state
    }

    fn push(&mut self, tokenizer: &Tokenizer, pieces: &Pieces, id: u32, out: &mut String) {
        let Some(piece) = pieces.get(id) else { return };
        match piece {
            Piece::Text(text) if self.pending.is_empty() && self.start == Start::Plain => out.push_str(text),
            Piece::Text(_) if matches!(self.start, Start::FirstToken { .. }) => {
                self.push_first(tokenizer, id, out);
            }
            Piece::Text(text) if pieces.joining == Joining::ByteTokens => {
                self.flush(pieces.joining, out);
                self.emit(text, out);
            }
            Piece::Text(text) => self.push_bytes(text.as_bytes(), pieces.joining, out),
            Piece::Bytes(bytes) => self.push_bytes(bytes, pieces.joining, out),
        }
    }

    #[cold]
    fn push_first(&mut self, tokenizer: &Tokenizer, id: u32, out: &mut String) {
        if let Start::FirstToken { replacement } = self.start {
            out.extend(tokenizer.token_str(id).unwrap_or_default().chars().filter(|&c| c != replacement));
        }
        self.start = Start::Plain;
    }

    fn push_bytes(&mut self, bytes: &[u8], joining: Joining, out: &mut String) {
        let mut pending = std::mem::take(&mut self.pending);
        pending.extend_from_slice(bytes);
        let mut at = 0;
        loop {
            match std::str::from_utf8(&pending[at..]) {
                Ok(text) => {
                    self.emit(text, out);
                    at = pending.len();
                    break;
                }
                Err(error) => {
                    let valid = &pending[at..at + error.valid_up_to()];
                    self.emit(std::str::from_utf8(valid).unwrap_or_default(), out);
                    at += valid.len();
                    let Some(num_invalid) = error.error_len() else { break };
                    self.emit_invalid(num_invalid, joining, out);
                    at += num_invalid;
                }
            }
        }
        pending.drain(..at);
        self.pending = pending;
    }

    fn flush(&mut self, joining: Joining, out: &mut String) {
        if !self.pending.is_empty() {
            self.emit_invalid(self.pending.len(), joining, out);
            self.pending.clear();
        }
    }

    fn emit_invalid(&mut self, num_bytes: usize, joining: Joining, out: &mut String) {
        let count = if joining == Joining::Stream { 1 } else { num_bytes };
        for _ in 0..count {
            self.emit("\u{FFFD}", out);
        }
    }

    fn emit(&mut self, text: &str, out: &mut String) {
        let mut text = text;
        while let Start::Strip { content, count } = self.start {
            let Some(next) = text.chars().next() else { return };
            if count == 0 || next != content {
                self.start = Start::Plain;
            } else {
                self.start = Start::Strip { content, count: count - 1 };
                text = &text[content.len_utf8()..];
            }
        }
        out.push_str(text);
    }
}

/// State for any decoder: decodes a short window with and without the new tokens and emits the difference.
#[derive(Clone, Debug)]
struct ContextState {
    /// The window: tokens whose text is out, then tokens that wait.
    ids: Vec<u32>,
    num_emitted: usize,
    /// Text of the emitted tokens of the window.
    context: String,
    joins_added: bool,
    last_was_added: bool,
}

impl ContextState {
    fn push(&mut self, tokenizer: &Tokenizer, id: u32, out: &mut String) {
        let is_added = tokenizer.is_added(id);
        let joins = self.joins_added && is_added && self.last_was_added;
        self.last_was_added = is_added;
        self.ids.push(id);
        let text = tokenizer.decode_in_context(&self.ids, false);
        let waits = text.ends_with('\u{FFFD}') && self.ids.len() - self.num_emitted < MAX_HELD_TOKENS;
        if waits || text.len() <= self.context.len() {
            return;
        }
        if joins {
            out.push_str(&tokenizer.token_str(id).unwrap_or_default());
        } else {
            out.push_str(self.new_text(&text));
        }
        self.ids.drain(..self.num_emitted);
        self.num_emitted = self.ids.len();
        self.context = tokenizer.decode_in_context(&self.ids, false);
    }

    fn flush(&mut self, tokenizer: &Tokenizer, out: &mut String) {
        let text = tokenizer.decode_in_context(&self.ids, false);
        out.push_str(self.new_text(&text));
        self.num_emitted = self.ids.len();
        self.context = text;
    }

    fn new_text<'a>(&self, text: &'a str) -> &'a str {
        text.get(self.context.len()..).unwrap_or_default()
    }
}
