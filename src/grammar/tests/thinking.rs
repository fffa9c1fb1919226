//! Budgets of thoughts, against counting by hand.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::*;
use crate::grammar::{ThinkingMarks, ThinkingStart, after_text};

const BEGIN: &str = "<think>";
const END: &str = "</think>";

fn marks(forced: &str) -> ThinkingMarks {
    let owned = |text: &str| [text.to_owned()].into_iter();
    ThinkingMarks::new(owned(BEGIN), owned(END), forced, &TOKENIZER).unwrap()
}

fn ids(text: &str) -> Vec<TokenId> {
    TOKENIZER.encode(text, false).unwrap()
}

/// Gives the matcher this output, token by token, but for what it forces; returns what the output came to.
fn follow(grammar: &quire_scheduler::Grammar, wanted: &[TokenId]) -> Vec<TokenId> {
    let mut matcher = grammar.matcher();
    let mut output = Vec::new();
    matcher.take_forced(&mut output).unwrap();
    for &token in wanted {
        matcher.accept(token).unwrap();
        output.push(token);
        matcher.take_forced(&mut output).unwrap();
    }
    output
}

#[test]
fn thoughts_have_at_most_as_many_tokens_as_allowed() {
    let words: Vec<TokenId> = (270..1200).collect();
    let end = ids(END);
    for seed in 0..500 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut some = |most: usize| -> Vec<TokenId> {
            (0..rng.random_range(0..=most)).map(|_| *words.choose(&mut rng).unwrap()).collect()
        };
        let (thoughts, answer) = (some(12), some(5));
        let budget = rng.random_range(0..15u32);
        let start = [
            ThinkingStart::Inside { spent: 0 },
            ThinkingStart::Marker,
            ThinkingStart::Anywhere,
            ThinkingStart::Inside { spent: 3 },
        ][rng.random_range(0..4)];
        let begin = if matches!(start, ThinkingStart::Inside { .. }) { vec![] } else { ids(BEGIN) };
        let spent = if let ThinkingStart::Inside { spent } = start { spent } else { 0 };
        let wanted = [&*begin, &*thoughts, &*end, &*answer].concat();
        let output = follow(&marks(END).within(budget, start, None), &wanted);
        let left = budget.saturating_sub(spent) as usize;
        // The marker is several tokens, which count as thoughts until it is whole.
        let expected = if left < thoughts.len() + end.len() {
            let cut = begin.len() + left;
            [&wanted[..cut], &end, &wanted[cut..]].concat()
        } else {
            wanted.clone()
        };
        assert_eq!(output, expected, "seed {seed}: {start:?}, budget {budget}");
    }
}

#[test]
fn what_is_no_thought_is_not_cut() {
    let text = ids("Yes, <think> is a tag, and so is </think>, of course.");
    for start in [ThinkingStart::Never, ThinkingStart::Marker] {
        assert_eq!(follow(&marks(END).within(0, start, None), &text), text, "{start:?}");
    }
    let twice = ids("<think>a</think>b<think>c d e f g h i j k l m n o p q r s t u v w x y z");
    assert_eq!(follow(&marks(END).within(20, ThinkingStart::Anywhere, None), &twice), twice);
}

#[test]
fn a_marker_that_the_model_writes_itself_begins_the_thoughts_anew() {
    let grammar = marks(END).within(20, ThinkingStart::Inside { spent: 0 }, None);
    let wanted = [ids("\n<think>"), vec![300; 30]].concat();
    let begun = ids("\n<think>").len();
    let output = follow(&grammar, &wanted);
    assert_eq!(output[begun..begun + 20], [300; 20]);
    assert_eq!(output[begun + 20..begun + 20 + ids(END).len()], ids(END));
}

#[test]
fn the_prompt_tells_where_the_thoughts_are() {
    let marks = marks(END);
    let behind = |text: &str| ids(text).len() as u32;
    for (prompt, expected) in [
        ("hello".to_owned(), ThinkingStart::Anywhere),
        (format!("hello{BEGIN}"), ThinkingStart::Inside { spent: 0 }),
        (format!("{BEGIN}a{END} hello"), ThinkingStart::Anywhere),
        (format!("{BEGIN}a{END}{BEGIN}"), ThinkingStart::Inside { spent: 0 }),
    ] {
        assert_eq!(marks.start_after(&ids(&prompt)), expected, "{prompt}");
    }
    let prompt = [ids(&format!("hi{BEGIN}")), ids("\nI wonder")].concat();
    assert_eq!(marks.start_after(&prompt), ThinkingStart::Inside { spent: behind("\nI wonder") });
    let long = [ids(BEGIN), vec![300; 50_000]].concat();
    assert_eq!(marks.start_after(&long), ThinkingStart::Inside { spent: 50_000 });
}

#[test]
fn a_grammar_begins_where_the_thoughts_end() {
    let compiled = COMPILER.compile(&Constraint::Choice(vec!["good".into()])).unwrap();
    let inner = after_text(&compiled, END, None, &TOKENIZER);
    let forced = "So be it.</think>";
    let grammar = marks(forced).within(4, ThinkingStart::Inside { spent: 0 }, Some(&inner));
    let output = follow(&grammar, &[300, 301, 302, 303]);
    let expected = [&[300, 301, 302, 303][..], &ids(forced), &ids("good")].concat();
    assert_eq!(output[..expected.len()], expected);
    assert!(ENDS.contains(&output[expected.len()]), "{output:?}");
}
