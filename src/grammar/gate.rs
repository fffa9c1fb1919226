//! [`after_text`]: a grammar that begins only after a certain text, such as the end of a model's reasoning.

use std::sync::Arc;

use quire_scheduler::{Grammar, GrammarError, GrammarMatcher, TokenId};

use crate::text::Tokenizer;

/// `grammar` for what comes after the first `text` in the output; everything before it may be anything. Where
/// the token that completes `text` holds more than its end, that rest is free as well.
///
/// With `begin`, only an output that begins with this token has such a text in it; any other keeps to `grammar`
/// from its beginning.
pub fn after_text(grammar: &Grammar, text: &str, begin: Option<TokenId>, tokenizer: &Tokenizer) -> Grammar {
    let (grammar, text, tokenizer) = (grammar.clone(), Arc::<[u8]>::from(text.as_bytes()), tokenizer.clone());
    Grammar::new(move || {
        Box::new(Gate {
            inner: grammar.matcher(),
            text: text.clone(),
            tokenizer: tokenizer.clone(),
            begin,
            tail: begin.is_none().then(Vec::new),
        })
    })
}

#[derive(Debug)]
struct Gate {
    inner: Box<dyn GrammarMatcher>,
    text: Arc<[u8]>,
    tokenizer: Tokenizer,
    /// Opens the gate, if it comes first.
    begin: Option<TokenId>,
    /// The last bytes of the output; `None` where the grammar holds: once `text` has come.
    tail: Option<Vec<u8>>,
}

impl GrammarMatcher for Gate {
    fn fill_mask(&mut self, mask: &mut [u32]) -> Result<bool, GrammarError> {
        if self.tail.is_some() {
            return Ok(false);
        }
        let constrained = self.inner.fill_mask(mask)?;
        if let (true, Some(begin)) = (constrained, self.begin) {
            mask[begin as usize / 32] |= 1 << (begin % 32);
        }
        Ok(constrained)
    }

    fn accept(&mut self, token: TokenId) -> Result<(), GrammarError> {
        let begin = self.begin.take();
        if begin == Some(token) {
            self.tail = Some(Vec::new());
            return Ok(());
        }
        let Some(tail) = &mut self.tail else { return self.inner.accept(token) };
        tail.extend(self.tokenizer.token_bytes(token));
        if memchr::memmem::find(tail, &self.text).is_some() {
            self.tail = None;
        } else {
            let keep = tail.len().min(self.text.len().saturating_sub(1));
            tail.drain(..tail.len() - keep);
        }
        Ok(())
    }

    fn take_forced(&mut self, out: &mut Vec<TokenId>) -> Result<(), GrammarError> {
        // Nothing is forced while the gate may yet be opened.
        if self.tail.is_some() || self.begin.is_some() { Ok(()) } else { self.inner.take_forced(out) }
    }
}
