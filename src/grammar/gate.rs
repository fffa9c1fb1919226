//! [`after_text`]: a grammar that begins only after a certain text, such as the end of a model's reasoning.

use std::sync::Arc;

use quire_scheduler::{Grammar, GrammarError, GrammarMatcher, TokenId};

use crate::text::Tokenizer;

/// `grammar` for what comes after the first `text` in the output; everything before it may be anything. Where
/// the token that completes `text` holds more than its end, that rest is free as well.
pub fn after_text(grammar: &Grammar, text: &str, tokenizer: &Tokenizer) -> Grammar {
    let (grammar, text, tokenizer) = (grammar.clone(), Arc::<[u8]>::from(text.as_bytes()), tokenizer.clone());
    Grammar::new(move || {
        Box::new(Gate {
            inner: grammar.matcher(),
            text: text.clone(),
            tokenizer: tokenizer.clone(),
            tail: Some(Vec::new()),
        })
    })
}

#[derive(Debug)]
struct Gate {
    inner: Box<dyn GrammarMatcher>,
    text: Arc<[u8]>,
    tokenizer: Tokenizer,
    /// The last bytes of the output; `None` once `text` has come.
    tail: Option<Vec<u8>>,
}

impl GrammarMatcher for Gate {
    fn fill_mask(&mut self, mask: &mut [u32]) -> Result<bool, GrammarError> {
        if self.tail.is_some() { Ok(false) } else { self.inner.fill_mask(mask) }
    }

    fn accept(&mut self, token: TokenId) -> Result<(), GrammarError> {
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
        if self.tail.is_some() { Ok(()) } else { self.inner.take_forced(out) }
    }
}
