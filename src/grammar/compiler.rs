//! [`GrammarCompiler`]: from a [`Constraint`] to a [`Grammar`], within limits, once for each constraint.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, TokEnv};
use llguidance::{ParserFactory, TokenParser};
use quire_scheduler::{Grammar, TokenId};

use super::cache::GrammarCache;
use super::constraint::Constraint;
use super::limits::parser_limits;
use super::matcher::Matcher;
use super::source;
use super::vocabulary::Vocabulary;
use crate::text::Tokenizer;
use crate::validate::RequestLimits;

/// Why a constraint cannot be honoured: a sentence for the client, who sees it beside the field's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GrammarRefusal(pub String);

impl GrammarRefusal {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// A cloneable handle to the compiler of one model. Compiling takes milliseconds of pure computing, and the
/// first time as long as the vocabulary takes to be sorted: callers use the text pool.
#[derive(Debug, Clone)]
pub struct GrammarCompiler {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tokenizer: Tokenizer,
    vocab_size: usize,
    end_token_ids: Arc<[TokenId]>,
    factory: OnceLock<Result<Factory, GrammarRefusal>>,
    cache: Mutex<GrammarCache>,
}

/// What grammars of one vocabulary share.
struct Factory(ParserFactory);

impl std::fmt::Debug for Factory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Factory")
    }
}

impl GrammarCompiler {
    /// For a model with this tokenizer and these limits. Does no work yet.
    pub fn new(tokenizer: &Tokenizer, limits: &RequestLimits) -> Self {
        let inner = Inner {
            tokenizer: tokenizer.clone(),
            vocab_size: limits.vocab_size as usize,
            end_token_ids: limits
                .eos_token_ids
                .iter()
                .copied()
                .filter(|&id| id < limits.vocab_size)
                .collect(),
            factory: OnceLock::new(),
            cache: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The grammar of a constraint, from the cache if it was asked for before.
    ///
    /// # Errors
    /// If the constraint is empty, too large, not valid in its own notation, or asks for what cannot be enforced.
    pub fn compile(&self, constraint: &Constraint) -> Result<Grammar, GrammarRefusal> {
        let source = source::read(constraint)?;
        let cached = || self.inner.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(grammar) = cached().get(&source.key) {
            return Ok(grammar);
        }
        let grammar = self.inner.grammar(source.grammar)?;
        cached().insert(source.key, grammar.clone());
        Ok(grammar)
    }
}

impl Inner {
    fn grammar(&self, source: llguidance::api::TopLevelGrammar) -> Result<Grammar, GrammarRefusal> {
        let end_token_id = self.end_token_id()?;
        let factory = self.factory()?;
        let parser = factory.create_parser(source).map_err(refusal)?;
        let (prototype, end_token_ids) = (Mutex::new(checked(parser)?), self.end_token_ids.clone());
        Ok(Grammar::new(move || {
            let prototype = prototype.lock().unwrap_or_else(PoisonError::into_inner);
            // What one sequence learns of the automaton is its own, so that it is bounded for each and no two
            // wait for each other.
            Box::new(Matcher::new(prototype.deep_clone(), end_token_ids.clone(), end_token_id))
        }))
    }

    /// The tokenizer's own end token, or the first of the model's.
    fn end_token_id(&self) -> Result<TokenId, GrammarRefusal> {
        let own = self.tokenizer.eos_token_id().filter(|id| self.end_token_ids.contains(id));
        own.or(self.end_token_ids.first().copied())
            .ok_or_else(|| GrammarRefusal::new("the model has no token that ends an output"))
    }

    /// Made by whoever comes first, while others wait.
    fn factory(&self) -> Result<&ParserFactory, GrammarRefusal> {
        let factory = self.factory.get_or_init(|| {
            if !self.tokenizer.has_token_bytes() {
                let message = "the model's tokenizer has no fixed text for each of its tokens";
                return Err(GrammarRefusal::new(message));
            }
            let vocabulary = Vocabulary::new(self.tokenizer.clone(), self.vocab_size, &self.end_token_ids);
            let environment: TokEnv = Arc::new(vocabulary);
            let slices = SlicedBiasComputer::general_slices();
            let factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices);
            let mut factory = factory.map_err(refusal)?;
            factory.quiet();
            *factory.limits_mut() = parser_limits();
            Ok(Factory(factory))
        });
        factory.as_ref().map(|Factory(factory)| factory).map_err(Clone::clone)
    }
}

/// Refuses a grammar that allows no output at all, which is found out at the first mask; what was learnt for that
/// mask stays with the parser.
fn checked(parser: TokenParser) -> Result<llguidance::Matcher, GrammarRefusal> {
    let mut matcher = llguidance::Matcher::new(Ok(parser));
    match matcher.compute_mask_or_eos() {
        Ok(_) => Ok(matcher),
        Err(error) if error.to_string().starts_with("NoExtensionBias") => {
            Err(GrammarRefusal::new("it allows no output at all"))
        }
        Err(error) => Err(refusal(error)),
    }
}

/// What llguidance says of its own limits is for whoever can change them.
fn refusal(error: anyhow::Error) -> GrammarRefusal {
    let message = format!("{error:#}");
    let limits = ["fuel", "grammar) too big", "grammar size", "too many expressions", "too many states"];
    if limits.iter().any(|limit| message.contains(limit)) {
        return GrammarRefusal::new("it is too complex: compiling it takes more steps than are allowed");
    }
    GrammarRefusal(gist(&message))
}

/// llguidance's messages go on with the place in the source, the parser's state, and a trace where it panicked.
/// What is wrong is in the first line, and in those that say so.
pub(super) fn gist(message: &str) -> String {
    const MAX_CHARS: usize = 400;
    let mut lines = message.lines();
    let mut gist = lines.next().unwrap_or_default().trim_end_matches(':').to_owned();
    for error in lines.filter_map(|line| line.strip_prefix("error: ")) {
        gist.push_str(": ");
        gist.push_str(error);
    }
    gist.chars().take(MAX_CHARS).collect()
}
