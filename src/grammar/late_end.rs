//! [`late_end`]: a grammar whose output ends only when it has to.

use std::sync::Arc;

use quire_scheduler::{Grammar, GrammarError, GrammarMatcher, TokenId};

/// `grammar`, but where the output may end or go on, it goes on: what `ignore_eos` means for an output whose
/// end the grammar decides. Where nothing else can follow, it ends.
pub fn late_end(grammar: &Grammar, end_token_ids: &Arc<[TokenId]>) -> Grammar {
    let (grammar, end_token_ids) = (grammar.clone(), end_token_ids.clone());
    Grammar::new(move || Box::new(LateEnd { inner: grammar.matcher(), end_token_ids: end_token_ids.clone() }))
}

#[derive(Debug)]
struct LateEnd {
    inner: Box<dyn GrammarMatcher>,
    end_token_ids: Arc<[TokenId]>,
}

impl GrammarMatcher for LateEnd {
    fn fill_mask(&mut self, mask: &mut [u32]) -> Result<bool, GrammarError> {
        if !self.inner.fill_mask(mask)? {
            return Ok(false);
        }
        let bit = |&id: &TokenId| (id as usize / 32, 1 << (id % 32));
        let ends: Vec<_> =
            self.end_token_ids.iter().map(bit).filter(|&(word, bit)| mask[word] & bit != 0).collect();
        ends.iter().for_each(|&(word, bit)| mask[word] &= !bit);
        if mask.iter().all(|&word| word == 0) {
            ends.iter().for_each(|&(word, bit)| mask[word] |= bit);
        }
        Ok(true)
    }

    fn accept(&mut self, token: TokenId) -> Result<(), GrammarError> {
        self.inner.accept(token)
    }

    fn take_forced(&mut self, out: &mut Vec<TokenId>) -> Result<(), GrammarError> {
        self.inner.take_forced(out)
    }
}
