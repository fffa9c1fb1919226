//! [`ToyGrammar`]: a grammar without meaning, for tests of those who obey grammars.
//!
//! A small machine drawn from a seed. In some of its states everything may come, in some a few tokens, in
//! many only one; in some the output may or must end; in a few the matcher gives up. It complains of tokens
//! that it did not allow, and of questions after its end.

use super::rng::{fold, mix};
use crate::grammar::{Grammar, GrammarError, GrammarMatcher};
use crate::request::TokenId;

/// See the module's text.
#[derive(Debug, Clone, Copy)]
pub struct ToyGrammar {
    /// Two grammars of different seeds have nothing in common.
    pub seed: u64,
    /// Tokens that there are.
    pub vocab_size: u32,
    /// The end token.
    pub eos: TokenId,
    /// States in which the matcher gives up, out of 1000.
    pub failures: u32,
}

/// What may come in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Allowed {
    Everything,
    /// Those that [`ToyGrammar::is_in_set`] draws.
    Set,
    Only(TokenId),
    /// The matcher cannot tell.
    Failure,
}

const NUM_STATES: u64 = 48;
/// Forced tokens that are taken at once: there are circles of states that force each other.
const MOST_FORCED: usize = 20;

impl ToyGrammar {
    /// The text of the errors that [`Self::failures`] asks for.
    pub const GIVES_UP: &str = "the toy grammar gives up";

    /// As a request takes it.
    pub fn grammar(self) -> Grammar {
        Grammar::new(move || Box::new(ToyMatcher { grammar: self, state: 0, is_over: false }))
    }

    fn allowed(&self, state: u64) -> Allowed {
        let hash = mix(fold(self.seed, state));
        let token = (hash >> 32) as u32 % self.vocab_size;
        match hash % 1000 {
            kind if kind < u64::from(self.failures) => Allowed::Failure,
            0..150 => Allowed::Everything,
            150..460 => Allowed::Only(token),
            460..500 => Allowed::Only(self.eos),
            _ => Allowed::Set,
        }
    }

    /// A quarter of all tokens, and one that is there in any case.
    fn is_in_set(&self, state: u64, token: TokenId) -> bool {
        let hash = mix(fold(self.seed, state));
        token == (hash >> 32) as u32 % self.vocab_size || mix(fold(hash, u64::from(token))).is_multiple_of(4)
    }
}

#[derive(Debug)]
struct ToyMatcher {
    grammar: ToyGrammar,
    state: u64,
    is_over: bool,
}

impl ToyMatcher {
    fn allowed(&self) -> Result<Allowed, GrammarError> {
        assert!(!self.is_over, "the toy grammar is asked after its end");
        match self.grammar.allowed(self.state) {
            Allowed::Failure => Err(GrammarError::Stuck(ToyGrammar::GIVES_UP.into())),
            allowed => Ok(allowed),
        }
    }
}

impl GrammarMatcher for ToyMatcher {
    fn fill_mask(&mut self, mask: &mut [u32]) -> Result<bool, GrammarError> {
        let allowed = self.allowed()?;
        let may_come = |token| match allowed {
            Allowed::Everything | Allowed::Failure => true,
            Allowed::Only(only) => token == only,
            Allowed::Set => self.grammar.is_in_set(self.state, token),
        };
        if allowed == Allowed::Everything {
            return Ok(false);
        }
        for (word, bits) in mask.iter_mut().enumerate() {
            let first = 32 * word as u32;
            let tokens = first..self.grammar.vocab_size.min(first + 32);
            *bits =
                tokens.filter(|token| may_come(*token)).fold(0, |bits, token| bits | 1 << (token - first));
        }
        Ok(true)
    }

    fn accept(&mut self, token: TokenId) -> Result<(), GrammarError> {
        let fits = match self.allowed()? {
            Allowed::Everything | Allowed::Failure => true,
            Allowed::Only(only) => token == only,
            Allowed::Set => self.grammar.is_in_set(self.state, token),
        };
        if !fits {
            return Err(GrammarError::Broken(format!("the toy grammar did not allow token {token}").into()));
        }
        self.is_over = token == self.grammar.eos;
        self.state = fold(self.state, u64::from(token)) % NUM_STATES;
        Ok(())
    }

    fn take_forced(&mut self, out: &mut Vec<TokenId>) -> Result<(), GrammarError> {
        for _ in 0..MOST_FORCED {
            let Ok(Allowed::Only(token)) = self.allowed() else { break };
            out.push(token);
            self.accept(token)?;
            if self.is_over {
                break;
            }
        }
        Ok(())
    }
}
