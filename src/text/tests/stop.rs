//! Stop strings against the rule said naively, on random texts and random pieces.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::StopMatcher;

/// The rule said naively: of all occurrences that end after `min_end`, the one that ends first, then list
/// order.
fn naive(text: &str, stops: &[String], include: bool, min_end: usize) -> (String, Option<usize>) {
    for end in (min_end + 1)..=text.len() {
        for (index, stop) in stops.iter().enumerate() {
            if !stop.is_empty() && text.as_bytes()[..end].ends_with(stop.as_bytes()) {
                let kept = if include { end } else { end - stop.len() };
                return (text[..kept].to_string(), Some(index));
            }
        }
    }
    (text.to_string(), None)
}

fn random_text(rng: &mut StdRng, alphabet: &[char], max_len: usize) -> String {
    let len = rng.random_range(0..=max_len);
    (0..len).map(|_| alphabet[rng.random_range(0..alphabet.len())]).collect()
}

fn random_pieces<'a>(rng: &mut StdRng, text: &'a str) -> Vec<&'a str> {
    let mut pieces = Vec::new();
    let mut from = 0;
    for (at, _) in text.char_indices().skip(1) {
        if rng.random_bool(0.4) {
            pieces.push(&text[from..at]);
            from = at;
        }
    }
    pieces.push(&text[from..]);
    pieces
}

#[test]
fn agrees_with_a_naive_search_for_every_way_to_cut_the_text() {
    for seed in 0..20_000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let alphabet: &[char] = if seed % 2 == 0 { &['a', 'b'] } else { &['a', 'é', '🦊', '🦋'] };
        let text = random_text(&mut rng, alphabet, 24);
        let num_stops = rng.random_range(0..5);
        let stops: Vec<String> = (0..num_stops).map(|_| random_text(&mut rng, alphabet, 5)).collect();
        let include = rng.random_bool(0.5);
        let pieces = random_pieces(&mut rng, &text);
        let num_passed = if rng.random_bool(0.5) { rng.random_range(0..=pieces.len()) } else { 0 };
        let min_end = pieces[..num_passed].iter().map(|piece| piece.len()).sum();
        let (expected, expected_match) = naive(&text, &stops, include, min_end);

        let mut matcher = StopMatcher::new(&stops, include);
        let mut out = String::new();
        let mut matched = None;
        for (index, piece) in pieces.iter().enumerate() {
            if index < num_passed {
                matcher.pass(piece, &mut out);
            } else {
                let found = matcher.push(piece, &mut out);
                assert!(found.is_none() || matched.is_none(), "seed {seed}: two matches");
                matched = matched.or(found);
            }
            assert!(expected.starts_with(&out), "seed {seed}: {out:?} was emitted of {expected:?}");
        }
        matcher.finish(&mut out);
        assert_eq!((out, matched), (expected, expected_match), "seed {seed}: {text:?} {stops:?} {pieces:?}");
    }
}

#[test]
fn holds_back_no_more_than_it_must() {
    let mut matcher = StopMatcher::new(&["</s>".into(), "\n\n".into()], false);
    let mut out = String::new();
    let mut emitted_by = |text: &str| {
        out.clear();
        assert_eq!(matcher.push(text, &mut out), None);
        out.clone()
    };
    assert_eq!(emitted_by("hello"), "hello");
    assert_eq!(emitted_by(" <"), " ");
    assert_eq!(emitted_by("/"), "");
    assert_eq!(emitted_by("b>\n"), "</b>");
    assert_eq!(emitted_by("x"), "\nx");
}

#[test]
fn ties_go_to_the_first_in_the_list() {
    for (stops, kept, index) in [(["b", "ab"], "xa", 0), (["ab", "b"], "x", 0), (["abc", "b"], "xa", 1)] {
        let stops = stops.map(String::from);
        let mut out = String::new();
        assert_eq!(StopMatcher::new(&stops, false).push("xabc", &mut out), Some(index));
        assert_eq!(out, kept);
    }
}
