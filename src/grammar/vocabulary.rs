//! [`Vocabulary`]: the model's tokens as llguidance wants them, a trie of bytes.

use llguidance::toktrie::{TokRxInfo, TokTrie, TokenizerEnv};
use quire_scheduler::TokenId;

use crate::text::Tokenizer;

/// Set apart from all text, because it is no part of UTF-8: begins the names of special tokens in the trie.
const SPECIAL: u8 = TokTrie::SPECIAL_TOKEN_MARKER;

/// A character of no language, put before a text that must not be taken for the beginning of a sentence.
const LEAD: &str = "\u{2}";

/// Bytes of a token; longer ones (a thousand spaces or so) do not fit into the trie, and are never allowed.
const MAX_TOKEN_BYTES: usize = 1000;

/// Bytes made into tokens at once.
const MAX_FORCED_BYTES: usize = 4096;
/// Tokens at the end of a text that was cut off which may not be the tokens of the whole text.
const UNSURE_TOKENS: usize = 8;

/// The tokens of a model, and its way of making text into them.
pub(super) struct Vocabulary {
    tokenizer: Tokenizer,
    trie: TokTrie,
    /// How text in the middle of a sentence is tokenized; `None` if the tokenizer gives no way to do it.
    lead: Option<&'static str>,
}

impl Vocabulary {
    /// For a model of `vocab_size` tokens, some of which the tokenizer may not know. `end_token_ids`: at least one.
    pub(super) fn new(tokenizer: Tokenizer, vocab_size: usize, end_token_ids: &[TokenId]) -> Self {
        let word = |id| word(&tokenizer, id, end_token_ids.contains(&id));
        let words: Vec<Vec<u8>> = (0..vocab_size as TokenId).map(word).collect();
        let info = TokRxInfo::new(vocab_size as u32, end_token_ids[0]);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(end_token_ids);
        let mut vocabulary = Self { tokenizer, trie, lead: None };
        vocabulary.lead = ["", LEAD].into_iter().find(|lead| vocabulary.is_exact(lead));
        vocabulary
    }

    /// Whether texts survive being tokenized after `lead`.
    fn is_exact(&self, lead: &str) -> bool {
        [r#"{"name":"#, "a b", " a", "Zürich\n"].into_iter().all(|text| self.encode(lead, text).is_some())
    }

    /// The tokens of `text` as they would follow `lead`, if they make up just this text.
    fn encode(&self, lead: &str, text: &str) -> Option<Vec<TokenId>> {
        let mut tokens = self.tokenizer.encode(&format!("{lead}{text}"), false).ok()?;
        if !lead.is_empty() {
            let mut seen = Vec::new();
            let past = tokens.iter().position(|&token| {
                seen.extend_from_slice(self.trie.token(token));
                seen.ends_with(lead.as_bytes())
            })?;
            tokens.drain(..=past);
        }
        let mut rest = text.as_bytes();
        for &token in &tokens {
            rest = rest.strip_prefix(self.trie.token(token))?;
        }
        rest.is_empty().then_some(tokens)
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// The tokens of the beginning of a long text: they are forced tokens, and the rest is asked for again.
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        if bytes.len() > MAX_FORCED_BYTES {
            let mut tokens = self.tokenize_bytes(&bytes[..MAX_FORCED_BYTES]);
            // The last could be others if more of the text were seen.
            tokens.truncate(tokens.len().saturating_sub(UNSURE_TOKENS));
            return tokens;
        }
        let lead = self.lead.unwrap_or_default();
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            // Where the text spells out a special token, the tokenizer would make that token of it.
            self.encode(lead, text).unwrap_or_else(|| self.trie.greedy_tokenize(text.as_bytes()))
        })
    }

    fn tokenize_is_canonical(&self) -> bool {
        self.lead.is_some()
    }
}

/// Names the memory it takes in one line, instead of a hundred thousand tokens.
impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vocabulary").field("tokens", &self.trie.vocab_size()).finish_non_exhaustive()
    }
}

/// The bytes of a token; none for those that no text may contain.
fn word(tokenizer: &Tokenizer, id: TokenId, is_end: bool) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id);
    if is_end || tokenizer.is_special(id) {
        let name = tokenizer.token_str(id).unwrap_or_default();
        return [&[SPECIAL], name.as_bytes()].concat();
    }
    // 0xFF is a lone byte of a byte-level alphabet, for which text has no use.
    let fits = bytes.first() != Some(&SPECIAL) && bytes.len() <= MAX_TOKEN_BYTES;
    if fits { bytes } else { Vec::new() }
}
