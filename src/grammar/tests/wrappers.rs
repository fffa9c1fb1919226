//! Grammars that begin late, and grammars that end late.

use std::sync::Arc;

use quire_scheduler::{Grammar, TokenId};

use super::walk::{accepts, allowed, draw};
use super::{COMPILER, Constraint, ENDS, TOKENIZER, VOCAB_SIZE};
use crate::grammar::{after_text, after_tokens, late_end};

fn regex(pattern: &str) -> Grammar {
    COMPILER.compile(&Constraint::Regex(pattern.into())).unwrap()
}

#[test]
fn everything_passes_until_the_text_has_come() {
    let grammar = after_text(&regex("yes|no"), "</think>", None, &TOKENIZER);
    let mut matcher = grammar.matcher();
    let mut mask = vec![7; VOCAB_SIZE.div_ceil(32) as usize];
    for token in TOKENIZER.encode("I think <b> so </thin </think", false).unwrap() {
        assert!(!matcher.fill_mask(&mut mask).unwrap(), "everything is allowed");
        assert!(mask.iter().all(|&word| word == 7), "and nothing written");
        let mut forced = Vec::new();
        matcher.take_forced(&mut forced).unwrap();
        assert!(forced.is_empty());
        matcher.accept(token).unwrap();
    }
    for token in TOKENIZER.encode(">", false).unwrap() {
        matcher.accept(token).unwrap();
    }
    let first: Vec<_> = allowed(matcher.as_mut()).iter().map(|&id| TOKENIZER.token_text(id)).collect();
    assert!(first.iter().all(|text| "yes".starts_with(text) || "no".starts_with(text)), "{first:?}");
    matcher.accept(TOKENIZER.encode("no", false).unwrap()[0]).unwrap();
    let mut rest = Vec::new();
    matcher.take_forced(&mut rest).unwrap();
    assert!(rest.last().is_some_and(|last| ENDS.contains(last)));
}

#[test]
fn the_grammar_holds_from_the_beginning_unless_the_output_opens_the_gate() {
    let ids = |text: &str| TOKENIZER.encode(text, false).unwrap();
    let begin = ids("yes, but");
    assert!(begin.len() > 1);
    let grammar = after_text(&regex("yes!|no"), "so:", Some(&begin), &TOKENIZER);
    let walk = |text: &str| {
        let mut matcher = grammar.matcher();
        let mut mask = vec![0; VOCAB_SIZE.div_ceil(32) as usize];
        let come = ids(text).into_iter().try_for_each(|token| {
            let free = !matcher.fill_mask(&mut mask).unwrap();
            let allowed = free || mask[token as usize / 32] >> (token % 32) & 1 == 1;
            if allowed { matcher.accept(token).map_err(drop) } else { Err(()) }
        });
        come.is_ok()
    };
    for text in ["no", "yes!", "yes, but I think so:no", "yes, but hm, so:yes!"] {
        assert!(walk(text), "{text}");
    }
    for text in ["but no", "yes, no", "yes, but so:maybe", "hm, so:no"] {
        assert!(!walk(text), "{text}");
    }
}

#[test]
fn tokens_that_must_come_first_come_first() {
    let header = TOKENIZER.encode("answer: ", false).unwrap();
    let grammar = after_tokens(&regex("yes|no"), &header);
    for seed in 0..10 {
        let text = draw(&grammar, seed, 50).unwrap();
        assert!(["answer: yes", "answer: no"].contains(&&*text), "{text}");
    }
    let mut matcher = grammar.matcher();
    assert_eq!(allowed(matcher.as_mut()), header[..1]);
    let mut forced = Vec::new();
    matcher.take_forced(&mut forced).unwrap();
    assert_eq!(forced, header);
}

#[test]
fn the_end_is_put_off_while_anything_else_is_allowed() {
    let ends: Arc<[TokenId]> = Arc::new(ENDS);
    let grammar = late_end(&regex("(ab){1,5}"), &ends);
    for seed in 0..10 {
        assert_eq!(draw(&grammar, seed, 100).as_deref(), Some("ababababab"));
    }
    let mut matcher = late_end(&regex("a*"), &ends).matcher();
    for _ in 0..50 {
        let allowed = allowed(matcher.as_mut());
        assert!(!allowed.iter().any(|id| ENDS.contains(id)), "there is always more");
        matcher.accept(allowed[0]).unwrap();
    }
}

#[test]
fn sequences_of_one_grammar_go_their_own_ways() {
    let grammar = regex("(red|green|blue) (cat|dog)");
    let texts: Vec<_> = (0..30).map(|seed| draw(&grammar, seed, 50).unwrap()).collect();
    assert!(texts.iter().all(|text| accepts(&grammar, text)));
    assert!(texts.iter().any(|text| text != &texts[0]));
    let (mut a, mut b) = (grammar.matcher(), grammar.matcher());
    let start = allowed(b.as_mut());
    a.accept(start[0]).unwrap();
    assert_eq!(allowed(b.as_mut()), start);
    assert_ne!(allowed(a.as_mut()), start);
}

#[test]
fn what_the_grammar_does_not_allow_ends_the_sequence_with_a_reason() {
    let mut matcher = regex("abc").matcher();
    let wrong = TOKENIZER.encode("x", false).unwrap()[0];
    let error = matcher.accept(wrong).unwrap_err();
    assert!(error.to_string().starts_with("the output cannot go on under its grammar"), "{error}");
    assert!(!error.to_string().contains('\n'), "{error}");
    assert!(matcher.fill_mask(&mut [0; 66]).is_err(), "and it stays that way");
}
