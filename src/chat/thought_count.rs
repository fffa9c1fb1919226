//! [`ThoughtCount`]: how many of an answer's tokens are thoughts.

use std::sync::Arc;

use quire_scheduler::TokenId;

use crate::grammar::ThoughtTracker;

/// The markers of thoughts as tokens. Empty where the vocabulary has no tokens for them: they may then be cut
/// in any way.
#[derive(Debug, Default, Clone)]
pub(super) struct ThoughtMarks {
    /// The tokens that, one after the other, begin thoughts.
    pub(super) begin: Arc<[TokenId]>,
    /// Each of them ends thoughts.
    pub(super) ends: Arc<[TokenId]>,
}

/// The state after some of the tokens.
#[derive(Debug, Clone)]
pub(super) struct ThoughtCount {
    marks: ThoughtMarks,
    /// Thoughts may begin again after they have ended.
    again: bool,
    inside: bool,
    /// Tokens of the beginning that have come.
    num_begun: usize,
    num_tokens: u32,
    /// Where markers have no tokens of their own.
    tracker: Option<ThoughtTracker>,
}

impl ThoughtCount {
    /// `inside` = the prompt has begun the thoughts.
    pub(super) fn new(marks: ThoughtMarks, inside: bool, again: bool) -> Self {
        Self { marks, again, inside, num_begun: 0, num_tokens: 0, tracker: None }
    }

    /// Where markers have no tokens of their own, `tracker` counts, which looks at the text of each token; so it does
    /// not matter which tokens come together.
    pub(super) fn tracked_by(self, tracker: Option<ThoughtTracker>) -> Self {
        Self { tracker: tracker.filter(|_| self.marks.ends.is_empty()), ..self }
    }

    /// Tokens of thoughts so far, markers excluded.
    pub(super) fn num_tokens(&self) -> u32 {
        self.num_tokens
    }

    /// Takes tokens in. `inside` = what the text before them said: it decides where markers have no tokens of their
    /// own and nothing tracks them, and may lag a few tokens behind.
    pub(super) fn push(&mut self, token_ids: &[TokenId], inside: bool) {
        if let Some(tracker) = &mut self.tracker {
            token_ids.iter().for_each(|&id| tracker.take(id));
            self.num_tokens = tracker.num_tokens();
            return;
        }
        if self.marks.ends.is_empty() {
            self.num_tokens += if inside { token_ids.len() as u32 } else { 0 };
            return;
        }
        for id in token_ids {
            if self.begins(*id) {
                self.inside = self.num_tokens == 0 || self.again;
            } else if self.marks.ends.contains(id) {
                self.inside = false;
            } else if self.num_begun == 0 {
                self.num_tokens += u32::from(self.inside);
            }
        }
    }

    /// Whether the beginning is complete with this token.
    fn begins(&mut self, id: TokenId) -> bool {
        let begin = &self.marks.begin;
        if begin.get(self.num_begun) == Some(&id) {
            self.num_begun += 1;
        } else {
            self.num_begun = usize::from(begin.first() == Some(&id));
        }
        let complete = self.num_begun > 0 && self.num_begun == begin.len();
        if complete {
            self.num_begun = 0;
        }
        complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(begin: &[u32], again: bool, inside: bool, token_ids: &[u32]) -> u32 {
        let marks = ThoughtMarks { begin: begin.into(), ends: [9].into() };
        let mut whole = ThoughtCount::new(marks.clone(), inside, again);
        whole.push(token_ids, false);
        let mut streamed = ThoughtCount::new(marks, inside, again);
        token_ids.iter().for_each(|id| streamed.push(&[*id], true));
        assert_eq!(streamed.num_tokens(), whole.num_tokens());
        whole.num_tokens()
    }

    #[test]
    fn tokens_between_the_marks_count() {
        assert_eq!(count(&[1], false, false, &[5, 1, 5, 5, 9, 5]), 2);
        assert_eq!(count(&[1], false, true, &[1, 5, 5, 9, 5, 1, 5]), 2);
        assert_eq!(
            count(&[1, 2, 3], true, false, &[1, 2, 3, 5, 9, 4, 1, 7, 3, 5, 9, 1, 1, 2, 3, 5, 5, 9]),
            3
        );
        assert_eq!(count(&[], false, true, &[5, 9, 5]), 1);
    }

    #[test]
    fn without_marks_the_text_decides() {
        let mut count = ThoughtCount::new(ThoughtMarks::default(), true, false);
        count.push(&[1, 2], true);
        count.push(&[3], false);
        assert_eq!(count.num_tokens(), 2);
    }
}
