//! Stop strings in a stream against the rule said naively over the whole text: the match that is complete
//! first ends it, and of several that are complete together the one listed first.

use quire::text::StopMatcher;

use super::input::{Input, cut};

const MAX_TEXT_BYTES: usize = 512;

/// One byte of options, up to four stop strings, the places to cut, and the text.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let options = input.byte();
    let include = options & 1 == 1;
    let stops: Vec<String> = (0..(options >> 1) & 3).map(|_| input.text()).collect();
    let cuts = input.piece();
    let text = input.text();
    let text = &text[..text.floor_char_boundary(MAX_TEXT_BYTES)];

    let (expected, expected_match) = naive(text, &stops, include);
    let mut matcher = StopMatcher::new(&stops, include);
    let (mut out, mut matched) = (String::new(), None);
    for piece in cut(text, cuts) {
        matched = matched.or(matcher.push(piece, &mut out));
        assert!(expected.starts_with(&out), "{out:?} was emitted of {expected:?}");
    }
    matcher.finish(&mut out);
    assert_eq!((out, matched), (expected, expected_match), "{text:?} {stops:?}");
}

fn naive(text: &str, stops: &[String], include: bool) -> (String, Option<usize>) {
    for end in 1..=text.len() {
        for (index, stop) in stops.iter().enumerate() {
            if !stop.is_empty() && text.as_bytes()[..end].ends_with(stop.as_bytes()) {
                let kept = if include { end } else { end - stop.len() };
                return (text[..kept].to_owned(), Some(index));
            }
        }
    }
    (text.to_owned(), None)
}
