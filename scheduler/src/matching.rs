//! [`Matching`]: one output and its grammar, kept in step: the rules that hold for every runner, whatever it
//! computes with. Which tokens may come, which must, what happens at the end and when a matcher fails.
//!
//! # Forced tokens
//!
//! Where the grammar leaves nothing to choose, sampling would be whole steps for nothing. So tokens that must come
//! ([`GrammarMatcher::take_forced`]) are found as soon as it is known what comes before them, and a runner
//! appends them at once ([`Matching::take_forced`]). Those it does not take come one by one, as masks of a
//! single token: at the beginning of an output, after a preemption that came between, and for a request that
//! wants log-probabilities, each of whose tokens needs its own row of logits. So an output does not depend on
//! what was taken when. A forced token that the other parameters exclude is not taken; the mask is empty
//! there, as it would be by sampling. Nothing about other requests matters: more than one token left to
//! compute is an ordinary row.
//!
//! # The end
//!
//! An end token ends the grammar. If the request goes on nevertheless (`ignore_eos`), anything may follow, as
//! in vLLM, unless the matcher [outlives](GrammarMatcher::outlives_end) it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::grammar::{Grammar, GrammarError, GrammarMatcher};
use crate::request::{SamplingParams, TokenId};

/// Why a request ends whose grammar allows only what its other parameters exclude.
pub const NOTHING_LEFT: &str = "the grammar allows no token here that the other sampling parameters \
     (allowed_token_ids, bad_words, logit_bias, min_tokens) leave";

/// Why a request ends without a grammar whose parameters together leave nothing to sample.
pub const NOTHING_ALLOWED: &str = "the sampling parameters (allowed_token_ids, bad_words, logit_bias, min_tokens) \
     exclude every token";

/// See the module's text. A panic of the matcher is an error of this sequence, no more.
#[derive(Debug)]
pub struct Matching {
    /// Has taken in all of `output`.
    matcher: Box<dyn GrammarMatcher>,
    sampling: Arc<SamplingParams>,
    vocab_size: usize,
    /// With the forced tokens at its end that nobody has taken yet.
    output: Vec<TokenId>,
    num_untaken: usize,
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
            num_untaken: 0,
            place: Place::Inside,
        };
        this.force()?;
        output.iter().try_for_each(|token| this.accept(*token))?;
        Ok(this)
    }

    /// Which tokens may come next, as [`GrammarMatcher::fill_mask`] says it. The other parameters are not in
    /// the mask.
    pub fn fill_mask(&mut self, mask: &mut [u32]) -> Result<bool, GrammarError> {
        if let Some(token) = self.untaken().first() {
            mask.fill(0);
            mask[*token as usize / 32] = 1 << (token % 32);
            return Ok(true);
        }
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
        if let Some(forced) = self.untaken().first() {
            if token != *forced {
                let reason = format!("token {token} came where the grammar forces {forced}");
                return Err(GrammarError::Broken(reason.into()));
            }
            self.num_untaken -= 1;
            return Ok(());
        }
        if self.place == Place::Inside {
            guarded(|| self.matcher.accept(token))?;
        }
        self.push(token);
        self.force()
    }

    /// Appends to `forced` the tokens that must come next, if the request can have them at once.
    pub fn take_forced(&mut self, forced: &mut Vec<TokenId>) {
        if self.sampling.logprobs.is_none() {
            forced.extend_from_slice(self.untaken());
            self.num_untaken = 0;
        }
    }

    fn untaken(&self) -> &[TokenId] {
        &self.output[self.output.len() - self.num_untaken..]
    }

    /// Finds the tokens that must come next.
    fn force(&mut self) -> Result<(), GrammarError> {
        if self.place != Place::Inside {
            return Ok(());
        }
        let from = self.output.len();
        let Self { matcher, output, .. } = self;
        guarded(|| matcher.take_forced(output))?;
        let to = self.output.len();
        let mut at = from;
        while at < to && self.place == Place::Inside {
            let token = self.output[at];
            if token as usize >= self.vocab_size {
                let reason = format!("the grammar forces token {token} of {}", self.vocab_size);
                return Err(GrammarError::Broken(reason.into()));
            }
            if self.sampling.excludes(&self.output[..at], token) {
                self.place = Place::DeadEnd;
            } else {
                at += 1;
                self.end_by(token, at);
            }
        }
        self.output.truncate(at);
        self.num_untaken = at - from;
        Ok(())
    }

    fn push(&mut self, token: TokenId) {
        self.output.push(token);
        self.end_by(token, self.output.len());
    }

    /// Whether an output of this length ends with this token.
    fn end_by(&mut self, token: TokenId, len: usize) {
        let ends = || {
            self.sampling.eos_token_ids.contains(&token)
                && !(self.sampling.ignore_eos && self.matcher.outlives_end())
        };
        if len >= self.sampling.max_tokens as usize || ends() {
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
        Err(GrammarError::Broken(reason.into()))
    })
}
