//! [`Grammar`]: what the output of a request may be, as masks over the vocabulary.
//!
//! The seam between those who know schemas and regular expressions (the program) and those who choose tokens
//! (the runner). The scheduler itself only carries it along.

use std::fmt;
use std::sync::Arc;

use crate::request::{FinishReason, TokenId};

/// A compiled grammar, shared by the sequences that must follow it.
#[derive(Clone)]
pub struct Grammar {
    start: Arc<dyn Fn() -> Box<dyn GrammarMatcher> + Send + Sync>,
}

impl Grammar {
    /// `start` makes a matcher for one sequence, at the beginning of its output.
    pub fn new(start: impl Fn() -> Box<dyn GrammarMatcher> + Send + Sync + 'static) -> Self {
        Self { start: Arc::new(start) }
    }

    /// A matcher for one sequence, at the beginning of its output.
    pub fn matcher(&self) -> Box<dyn GrammarMatcher> {
        (self.start)()
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Grammar")
    }
}

/// The same compiled grammar, not merely an equal one.
impl PartialEq for Grammar {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.start, &other.start)
    }
}

/// One sequence's place in its grammar. Runners call it through [`crate::Matching`], on threads of their own and
/// from one at a time. Nothing is asked of it any more after an error, nor after an end token of the model, unless it
/// [outlives](Self::outlives_end) that.
///
/// A step waits for these calls, those of all its sequences: an implementation bounds its own work, and gives
/// an error when that is not enough.
pub trait GrammarMatcher: fmt::Debug + Send {
    /// Writes which tokens may come next: bit `t % 32` of word `t / 32` for token `t`. `mask` has a bit for
    /// every token of the model, and all its words are written. False, and nothing written, if every token
    /// may come. Where the output may end, the model's end tokens are among those allowed.
    fn fill_mask(&mut self, mask: &mut [u32]) -> Result<bool, GrammarError>;

    /// Takes in the next token of the output.
    fn accept(&mut self, token: TokenId) -> Result<(), GrammarError>;

    /// Takes in the tokens that must come next whatever the model thinks of them, and appends them to `out`.
    /// If the output can only end, that is an end token.
    fn take_forced(&mut self, out: &mut Vec<TokenId>) -> Result<(), GrammarError>;

    /// Whether it goes on to be asked after an end token of the model that the request ignores.
    fn outlives_end(&self) -> bool {
        false
    }
}

/// Why a sequence cannot go on under its grammar: a sentence for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// The grammar lets nothing follow, or takes more than it may. A request with this grammar ends so every time.
    #[error("{0}")]
    Stuck(Arc<str>),
    /// A defect of the matcher, or of who asks it.
    #[error("{0}")]
    Broken(Arc<str>),
}

impl From<GrammarError> for FinishReason {
    fn from(error: GrammarError) -> Self {
        match error {
            GrammarError::Stuck(reason) => Self::Impossible(reason),
            GrammarError::Broken(reason) => Self::Error(reason),
        }
    }
}
