//! Grammars that begin late: [`after_text`], such as after the end of a model's reasoning, and [`after_tokens`], such
//! as the header of an answer.

use std::sync::Arc;

use quire_scheduler::{Grammar, GrammarError, GrammarMatcher, TokenId};

use crate::text::Tokenizer;

/// `grammar` for what comes after the first `text` in the output; everything before it may be anything. Where
/// the token that completes `text` holds more than its end, that rest is free as well.
///
/// With `begin`, only an output that begins with these tokens has such a text in it; any other keeps to `grammar`
/// from its beginning.
pub fn after_text(
    grammar: &Grammar,
    text: &str,
    begin: Option<&[TokenId]>,
    tokenizer: &Tokenizer,
) -> Grammar {
    let (grammar, text, tokenizer) = (grammar.clone(), Arc::<[u8]>::from(text.as_bytes()), tokenizer.clone());
    let begin: Option<Arc<[TokenId]>> = begin.map(Into::into);
    Grammar::new(move || {
        Box::new(Gate {
            grammar: grammar.clone(),
            inner: Some(grammar.matcher()),
            text: text.clone(),
            tokenizer: tokenizer.clone(),
            begin: begin.clone().map(|tokens| (tokens, 0)),
            tail: begin.is_none().then(Vec::new),
        })
    })
}

/// `tokens`, and then what `grammar` says.
pub fn after_tokens(grammar: &Grammar, tokens: &[TokenId]) -> Grammar {
    let (grammar, tokens) = (grammar.clone(), Arc::<[TokenId]>::from(tokens));
    Grammar::new(move || Box::new(Header { inner: grammar.matcher(), tokens: tokens.clone(), num_come: 0 }))
}

#[derive(Debug)]
struct Gate {
    grammar: Grammar,
    /// `None` if what has come is no output of `grammar`, but may yet be the beginning that opens the gate.
    inner: Option<Box<dyn GrammarMatcher>>,
    text: Arc<[u8]>,
    tokenizer: Tokenizer,
    /// Opens the gate, if it comes first; and how many of its tokens have come.
    begin: Option<(Arc<[TokenId]>, usize)>,
    /// The last bytes of the output; `None` where the grammar holds: once `text` has come.
    tail: Option<Vec<u8>>,
}

impl GrammarMatcher for Gate {
    fn fill_mask(&mut self, mask: &mut [u32]) -> Result<bool, GrammarError> {
        if self.tail.is_some() {
            return Ok(false);
        }
        let constrained = match &mut self.inner {
            Some(inner) => inner.fill_mask(mask)?,
            None => {
                mask.fill(0);
                true
            }
        };
        if let (true, Some((begin, num_come))) = (constrained, &self.begin) {
            allow(begin[*num_come], mask);
        }
        Ok(constrained)
    }

    fn accept(&mut self, token: TokenId) -> Result<(), GrammarError> {
        if let Some(tail) = &mut self.tail {
            tail.extend(self.tokenizer.token_bytes(token));
            if memchr::memmem::find(tail, &self.text).is_some() {
                self.tail = None;
                self.inner = Some(self.grammar.matcher());
            } else {
                let keep = tail.len().min(self.text.len().saturating_sub(1));
                tail.drain(..tail.len() - keep);
            }
            return Ok(());
        }
        match self.begin.take() {
            Some((begin, num_come)) if begin[num_come] == token => {
                if num_come + 1 == begin.len() {
                    self.tail = Some(Vec::new());
                } else {
                    self.begin = Some((begin, num_come + 1));
                    self.inner = self.inner.take().and_then(|inner| accepted(inner, token));
                }
                Ok(())
            }
            _ => match &mut self.inner {
                Some(inner) => inner.accept(token),
                None => Err(GrammarError::Broken("a token that the mask forbids was taken".into())),
            },
        }
    }

    fn take_forced(&mut self, out: &mut Vec<TokenId>) -> Result<(), GrammarError> {
        match &mut self.inner {
            // Nothing is forced while the gate may yet be opened.
            Some(inner) if self.tail.is_none() && self.begin.is_none() => inner.take_forced(out),
            _ => Ok(()),
        }
    }
}

#[derive(Debug)]
struct Header {
    inner: Box<dyn GrammarMatcher>,
    tokens: Arc<[TokenId]>,
    num_come: usize,
}

impl GrammarMatcher for Header {
    fn fill_mask(&mut self, mask: &mut [u32]) -> Result<bool, GrammarError> {
        let Some(next) = self.tokens.get(self.num_come) else { return self.inner.fill_mask(mask) };
        mask.fill(0);
        allow(*next, mask);
        Ok(true)
    }

    fn accept(&mut self, token: TokenId) -> Result<(), GrammarError> {
        match self.tokens.get(self.num_come) {
            None => self.inner.accept(token),
            Some(next) if *next == token => {
                self.num_come += 1;
                Ok(())
            }
            Some(_) => Err(GrammarError::Broken("a token that the mask forbids was taken".into())),
        }
    }

    fn take_forced(&mut self, out: &mut Vec<TokenId>) -> Result<(), GrammarError> {
        out.extend(&self.tokens[self.num_come..]);
        self.num_come = self.tokens.len();
        self.inner.take_forced(out)
    }
}

fn allow(token: TokenId, mask: &mut [u32]) {
    mask[token as usize / 32] |= 1 << (token % 32);
}

fn accepted(mut inner: Box<dyn GrammarMatcher>, token: TokenId) -> Option<Box<dyn GrammarMatcher>> {
    inner.accept(token).is_ok().then_some(inner)
}
