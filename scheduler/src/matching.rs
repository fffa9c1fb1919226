//! [`Matching`]: one output and its grammar, kept in step: the rules that hold for every runner, whatever it
//! computes with. Which tokens may come, which must, what happens at the end and when a matcher fails.
//!
//! # Forced tokens
//!
//! Where the grammar leaves one token, sampling it would be a whole step for nothing, so a runner appends such
//! tokens at once ([`Matching::take_forced`]). The output is the one that sampling gives, token by token, in
//! all cases: a forced token that the other parameters exclude is not taken, and the next mask is empty, as it
//! would have been. A request that wants log-probabilities gets no forced tokens, since each of its tokens
//! needs its own row of logits. Nothing about other requests matters: more than one token left to compute is
//! an ordinary row.
//!
//! # The end
//!
//! An end token ends the grammar. If the request goes on nevertheless (`ignore_eos`), anything may follow, as
//! in vLLM.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::grammar::{Grammar, GrammarError, GrammarMatcher};
use crate::request::{SamplingParams, TokenId};

/// Why a request ends whose grammar allows only what its other parameters exclude.
pub const NOTHING_LEFT: &str = "the grammar allows no token here that the other sampling parameters \
     (allowed_token_ids, bad_words, logit_bias, min_tokens) leave";

/// See the module's text. A panic of the matcher is an error of this sequence, no more.
#[derive(Debug)]
pub struct Matching {
    matcher: Box<dyn GrammarMatcher>,
    sampling: Arc<SamplingParams>,
    vocab_size: usize,
    output: Vec<TokenId>,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Within the grammar.
    Inside,
    /// What must come next is excluded.
    DeadEnd,
    /// An end token has come, or as many tokens as the request may have.
    Over,
}

impl Matching {
    /// Words of a mask over so many tokens.
    pub fn mask_words(vocab_size: usize) -> usize {
        vocab_size.div_ceil(32)
    }

    /// At the end of `output`, which was generated under `grammar` (the one of `sampling`) before.
    pub fn start(
        grammar: &Grammar,
        sampling: &Arc<SamplingParams>,
        vocab_size: usize,
        output: &[TokenId],
    ) -> Result<Self, GrammarError> {
        let expected = sampling.max_tokens.min(MAX_RESERVED_TOKENS) as usize;
        let mut this = Self {
            matcher: guarded(|| Ok(grammar.matcher()))?,
            sampling: sampling.clone(),
            vocab_size,
            output: Vec::with_capacity(expected.max(output.len())),
            place: Place::Inside,
        };
        output.iter().try_for_each(|token| this.accept(*token))?;
        Ok(this)
    }

    /// Which tokens may come next, as [`GrammarMatcher::fill_mask`] says it. The other parameters are not in
    /// the mask.
    pub fn fill_mask(&mut self, mask: &mut [u32]) -> Result<bool, GrammarError> {
        match self.place {
            Place::Inside => guarded(|| self.matcher.fill_mask(mask)),
            Place::DeadEnd => {
                mask.fill(0);
                Ok(true)
            }
            Place::Over => Ok(false),
        }
    }

    /// Takes in the next token.
    pub fn accept(&mut self, token: TokenId) -> Result<(), GrammarError> {
        if self.place == Place::Inside {
            guarded(|| self.matcher.accept(token))?;
        }
        self.push(token);
        Ok(())
    }

    /// Takes in the tokens that must come next, and appends them to `forced`. To be called after
    /// [`Self::accept`], if at all.
    pub fn take_forced(&mut self, forced: &mut Vec<TokenId>) -> Result<(), GrammarError> {
        if self.place != Place::Inside || self.sampling.logprobs.is_some() {
            return Ok(());
        }
        let from = forced.len();
        if let Err(error) = guarded(|| self.matcher.take_forced(forced)) {
            forced.truncate(from);
            return Err(error);
        }
        for at in from..forced.len() {
            let token = forced[at];
            if token as usize >= self.vocab_size {
                let reason = format!("the grammar forces token {token} of {}", self.vocab_size);
                forced.truncate(from);
                return Err(GrammarError(reason.into()));
            }
            if self.sampling.excludes(&self.output, token) {
                self.place = Place::DeadEnd;
            } else {
                self.push(token);
            }
            if self.place != Place::Inside {
                // What ended the output belongs to it, what is excluded does not.
                forced.truncate(at + usize::from(self.place == Place::Over));
                break;
            }
        }
        Ok(())
    }

    fn push(&mut self, token: TokenId) {
        self.output.push(token);
        let is_last = self.output.len() >= self.sampling.max_tokens as usize;
        if is_last || self.sampling.eos_token_ids.contains(&token) {
            self.place = Place::Over;
        }
    }
}

/// Tokens for which memory is reserved at the start, as for a runner's own record of the sequence.
const MAX_RESERVED_TOKENS: u32 = 16_384;

fn guarded<T>(call: impl FnOnce() -> Result<T, GrammarError>) -> Result<T, GrammarError> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        let reason = format!("the grammar's matcher panicked: {}", text.unwrap_or("no message"));
        Err(GrammarError(reason.into()))
    })
}
