//! Log-probabilities as gateways want them, who have the tokenizer themselves: tokens are numbers.

use schemars::JsonSchema;
use serde::Serialize;

use crate::engine::TokenLogprobs;
use crate::http::logprobs::{ChatLogprobs, TokenNames, finite};

/// Of a choice, or of a part of it.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum OutputLogprobs {
    /// With `output_mode` `tokens`.
    Ids(IdLogprobs),
    /// With `output_mode` `text`.
    Names(ChatLogprobs),
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct IdLogprobs {
    content: Vec<Position>,
}

/// The token of one position.
#[derive(Debug, Serialize, JsonSchema)]
struct Position {
    #[serde(flatten)]
    token: Candidate,
    /// The token itself, then the others, the likeliest first.
    top_logprobs: Vec<Candidate>,
}

#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
struct Candidate {
    token_id: u32,
    logprob: f32,
    /// 1 = the likeliest of the vocabulary.
    rank: u32,
}

impl OutputLogprobs {
    pub(super) fn new(entries: &[TokenLogprobs], names: &TokenNames, text: bool) -> Self {
        match text {
            true => Self::Names(ChatLogprobs::new(entries, names)),
            false => Self::Ids(IdLogprobs { content: entries.iter().map(Position::of).collect() }),
        }
    }
}

impl Position {
    fn of(entry: &TokenLogprobs) -> Self {
        let candidate = |token_id, logprob, rank| Candidate { token_id, logprob: finite(logprob), rank };
        let token = candidate(entry.token, entry.logprob, entry.rank);
        let others = (1..).zip(&entry.top).filter(|(_, (other, _))| *other != entry.token);
        let others = others.map(|(rank, &(other, logprob))| candidate(other, logprob, rank));
        Self { token, top_logprobs: std::iter::once(token).chain(others).collect() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{json, to_value};

    use super::*;

    #[test]
    fn the_token_itself_comes_first_and_once() {
        let position = |token, rank, top: &[(u32, f32)]| {
            let entry = TokenLogprobs { token, logprob: -3.0, rank, top: top.to_vec() };
            to_value(Position::of(&entry)).unwrap()
        };
        let itself = json!({"token_id": 7, "logprob": -3.0, "rank": 9});
        let other = json!({"token_id": 8, "logprob": -0.5, "rank": 1});
        let mut expected = itself.clone();
        expected["top_logprobs"] = json!([itself, other]);
        assert_eq!(position(7, 9, &[(8, -0.5)]), expected);
        let alone = position(7, 1, &[(7, -3.0)]);
        assert_eq!(alone["top_logprobs"].as_array().unwrap().len(), 1);
        assert_eq!(position(7, 1, &[])["top_logprobs"].as_array().unwrap().len(), 1);
    }
}
