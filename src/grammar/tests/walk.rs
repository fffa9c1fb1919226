//! Outputs drawn at random under a grammar's masks, and texts held against it.

use quire_scheduler::{Grammar, GrammarMatcher, TokenId};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::{ENDS, TOKENIZER, VOCAB_SIZE};

/// The tokens that a mask allows.
pub(super) fn allowed(matcher: &mut dyn GrammarMatcher) -> Vec<TokenId> {
    let mut mask = vec![u32::MAX; VOCAB_SIZE.div_ceil(32) as usize];
    assert!(matcher.fill_mask(&mut mask).unwrap());
    assert_eq!(mask[VOCAB_SIZE as usize / 32] >> (VOCAB_SIZE % 32), 0, "bits beyond the vocabulary");
    (0..VOCAB_SIZE).filter(|&id| mask[id as usize / 32] & (1 << (id % 32)) != 0).collect()
}

/// A text drawn at random under the masks, with forced tokens taken now and then. `None` if it had not ended
/// after `max_tokens`.
pub(super) fn draw(grammar: &Grammar, seed: u64, max_tokens: usize) -> Option<String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut matcher = grammar.matcher();
    let mut output: Vec<TokenId> = Vec::new();
    while output.len() < max_tokens {
        if rng.random_bool(0.5) {
            matcher.take_forced(&mut output).unwrap();
        }
        if let Some(end) = output.iter().position(|id| ENDS.contains(id)) {
            assert_eq!(end, output.len() - 1, "nothing follows the end");
            return Some(TOKENIZER.decode(&output[..end], false));
        }
        let allowed = allowed(matcher.as_mut());
        // Towards the end of the output: quotes, brackets and ends close what is open.
        let closing: Vec<_> = allowed.iter().copied().filter(|&id| closes(id)).collect();
        let from = if !closing.is_empty() && rng.random_bool(0.4) { &closing } else { &allowed };
        let token = *from.choose(&mut rng).expect("a mask is never empty");
        matcher.accept(token).unwrap();
        output.push(token);
    }
    None
}

fn closes(id: TokenId) -> bool {
    ENDS.contains(&id) || matches!(TOKENIZER.token_bytes(id)[..], [b'"' | b'}' | b']' | b',' | b':'])
}

/// Whether `text` is an output of the grammar.
pub(super) fn accepts(grammar: &Grammar, text: &str) -> bool {
    let mut matcher = grammar.matcher();
    for token in TOKENIZER.encode(text, false).unwrap() {
        if !allowed_bit(matcher.as_mut(), token) || matcher.accept(token).is_err() {
            return false;
        }
    }
    ENDS.iter().all(|&end| allowed_bit(matcher.as_mut(), end))
}

/// Whether a mask allows the token. Where only one token can follow, a mask has no other, even if it would make
/// the same text in smaller pieces.
fn allowed_bit(matcher: &mut dyn GrammarMatcher, token: TokenId) -> bool {
    allowed(matcher).contains(&token)
}
