//! [`Matcher`]: one sequence's place in its grammar, over llguidance's parser.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use quire_scheduler::{GrammarError, GrammarMatcher, TokenId};

use super::compiler::gist;

/// A matcher at the beginning of an output.
pub(super) struct Matcher {
    parser: llguidance::Matcher,
    end_token_ids: Arc<[TokenId]>,
    /// The one that ends the output where it can only end.
    end_token_id: TokenId,
    /// An end token has come.
    has_ended: bool,
}

impl Matcher {
    pub(super) fn new(
        parser: llguidance::Matcher,
        end_token_ids: Arc<[TokenId]>,
        end_token_id: TokenId,
    ) -> Self {
        Self { parser, end_token_ids, end_token_id, has_ended: false }
    }

    fn check(&self) -> Result<(), GrammarError> {
        match self.parser.get_error() {
            Some(message) => Err(error(&message)),
            None => Ok(()),
        }
    }
}

impl GrammarMatcher for Matcher {
    fn fill_mask(&mut self, mask: &mut [u32]) -> Result<bool, GrammarError> {
        let allowed = guarded(|| self.parser.compute_mask_or_eos())?;
        let words = allowed.as_slice();
        let len = words.len().min(mask.len());
        mask[..len].copy_from_slice(&words[..len]);
        mask[len..].fill(0);
        Ok(true)
    }

    fn accept(&mut self, token: TokenId) -> Result<(), GrammarError> {
        // A parser that can only end has stopped, and takes nothing any more.
        if self.end_token_ids.contains(&token)
            && (self.parser.is_stopped() || guarded(|| self.parser.is_accepting())?)
        {
            self.has_ended = true;
            return self.check();
        }
        guarded(|| self.parser.consume_token(token))
    }

    fn take_forced(&mut self, out: &mut Vec<TokenId>) -> Result<(), GrammarError> {
        if self.has_ended {
            return Ok(());
        }
        if !self.parser.is_stopped() {
            let forced = guarded(|| Ok(self.parser.consume_ff_tokens()))?;
            self.check()?;
            out.extend(forced);
        }
        if self.parser.is_stopped() {
            self.check()?;
            out.push(self.end_token_id);
            self.has_ended = true;
        }
        Ok(())
    }
}

impl fmt::Debug for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Matcher").field("stopped", &self.parser.is_stopped()).finish_non_exhaustive()
    }
}

/// A defect in the parser must not take more than its own request.
fn guarded<T>(work: impl FnOnce() -> anyhow::Result<T>) -> Result<T, GrammarError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(message)) => Err(error(&message.to_string())),
        Err(_) => Err(error(PANIC)),
    }
}

/// How llguidance begins to tell of a panic of its own, which it catches too.
const PANIC: &str = "panic: ";

fn error(message: &str) -> GrammarError {
    if message.starts_with(PANIC) {
        return GrammarError::Broken("the grammar's parser failed".into());
    }
    let why = match message.starts_with("NoExtensionBias") {
        true => "no token of the model can follow".to_owned(),
        false => gist(message),
    };
    GrammarError::Stuck(format!("the output cannot go on under its grammar: {why}").into())
}
