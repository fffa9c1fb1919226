//! SentencePiece's byte-pair encoding merges whichever neighbours give the piece of the highest score; a tokenizer.json
//! lists pairs in the order in which they are merged. This makes the list of the scores.

use std::collections::HashMap;

/// Longer pieces are not made by merging. It bounds the work: pieces are split everywhere.
const MAX_PIECE_CHARS: usize = 256;

/// All pairs of pieces that make a piece, best first; `pieces` are (piece, score) by id, without those that no text
/// becomes. Of pairs that make the same piece those with a longer first half come first, as transformers orders them.
pub(super) fn merges_of_scores(pieces: &HashMap<&str, (usize, f64)>) -> Vec<(String, String)> {
    struct Pair<'a> {
        score: f64,
        chars: (usize, usize),
        ids: (usize, usize, usize),
        halves: (&'a str, &'a str),
    }
    let mut pairs = Vec::new();
    for (piece, (id, score)) in pieces {
        let num_chars = piece.chars().count();
        if num_chars > MAX_PIECE_CHARS {
            continue;
        }
        for (chars, (at, _)) in piece.char_indices().enumerate().skip(1) {
            let halves = piece.split_at(at);
            if let (Some((left, _)), Some((right, _))) = (pieces.get(halves.0), pieces.get(halves.1)) {
                let chars = (chars, num_chars - chars);
                pairs.push(Pair { score: *score, chars, ids: (*id, *left, *right), halves });
            }
        }
    }
    pairs.sort_unstable_by(|a, b| {
        b.score.total_cmp(&a.score).then(b.chars.cmp(&a.chars)).then(a.ids.cmp(&b.ids))
    });
    pairs.into_iter().map(|pair| (pair.halves.0.to_owned(), pair.halves.1.to_owned())).collect()
}
