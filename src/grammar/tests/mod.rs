//! Grammars over the demo model's vocabulary: what they let through and what they refuse.

mod bombs;
mod kinds;
mod notations;
mod schemas;
mod thinking;
mod walk;
mod wrappers;

use std::sync::{Arc, LazyLock};

use quire_model::SamplingDefaults;
use quire_scheduler::TokenId;

use super::{Constraint, GrammarCompiler, GrammarRefusal, JsonOptions};
use crate::demo;
use crate::text::Tokenizer;
use crate::validate::RequestLimits;

/// More than the tokenizer knows, as models have it.
const VOCAB_SIZE: u32 = 2100;
/// `<|im_end|>`, and `<|endoftext|>`.
const ENDS: [TokenId; 2] = [0, 2];

static TOKENIZER: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::from_bytes(demo::TOKENIZER, Some(demo::TOKENIZER_CONFIG)).unwrap());

static COMPILER: LazyLock<GrammarCompiler> = LazyLock::new(|| {
    let limits = RequestLimits {
        max_model_len: 4096,
        vocab_size: VOCAB_SIZE,
        max_logprobs: None,
        eos_token_ids: Arc::new(ENDS),
        defaults: SamplingDefaults::default(),
        stream_interval: 1,
        thinking: None,
    };
    GrammarCompiler::new(&TOKENIZER, &limits)
});

#[track_caller]
fn refusal(constraint: &Constraint) -> String {
    match COMPILER.compile(constraint) {
        Ok(_) => panic!("{constraint:?} should be refused"),
        Err(GrammarRefusal(why)) => why,
    }
}
