//! Thoughts in an output, told from the rest token by token: [`ThoughtTracker`] counts them, and
//! [`ThinkingMarks::within`] cuts them short after so many. What ends them then is forced, by the same road as a
//! grammar's tokens, so that a budget holds in any batch, after a preemption and on every device.

use std::sync::Arc;

use quire_scheduler::{Grammar, GrammarError, GrammarMatcher, TokenId};

use crate::text::Tokenizer;

/// How the served model marks its thoughts. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ThinkingMarks {
    begins: Arc<[String]>,
    ends: Arc<[String]>,
    /// What is written where a budget is spent; its text is among `ends`.
    forced: Arc<[TokenId]>,
    tokenizer: Tokenizer,
}

/// Where an output begins, as far as thoughts go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThinkingStart {
    /// In the thoughts, of which the prompt has so many tokens already. The model may write the marker itself, and
    /// then they begin after it.
    Inside {
        /// Tokens of the prompt behind the marker.
        spent: u32,
    },
    /// In the thoughts if the marker comes first.
    Marker,
    /// Wherever the marker comes.
    Anywhere,
    /// There will be none.
    Never,
}

impl ThinkingMarks {
    /// `begins` and `ends` are the texts of the markers, `forced` is what ends thoughts that went on too long.
    /// `None` if the vocabulary cannot express that.
    pub fn new(
        begins: impl Iterator<Item = String>,
        ends: impl Iterator<Item = String>,
        forced: &str,
        tokenizer: &Tokenizer,
    ) -> Option<Self> {
        Some(Self {
            begins: begins.collect(),
            ends: ends.chain([forced.to_owned()]).collect(),
            forced: tokenizer.encode(forced, false).ok()?.into(),
            tokenizer: tokenizer.clone(),
        })
    }

    /// The tokens that are forced.
    pub fn forced(&self) -> &[TokenId] {
        &self.forced
    }

    /// Where an output that continues this prompt begins: inside if the last marker in the prompt begins thoughts.
    pub fn start_after(&self, prompt: &[TokenId]) -> ThinkingStart {
        let most = self.begins.iter().chain(&*self.ends).map(String::len).max().unwrap_or(0);
        // From the end, because the last marker decides: the bytes seen so far, in reverse order.
        let mut text = Vec::new();
        for (behind, &token) in prompt.iter().rev().enumerate() {
            let bytes = self.tokenizer.token_bytes(token);
            text.splice(0..0, bytes.iter().copied());
            let window = &text[..text.len().min(bytes.len() + most)];
            let last = |marks: &[String]| {
                marks.iter().filter_map(|mark| memchr::memmem::rfind(window, mark.as_bytes())).max()
            };
            match (last(&self.begins), last(&self.ends)) {
                (Some(begin), end) if end.is_none_or(|end| begin > end) => {
                    // A marker ends with the token that completes it.
                    let mark = self.begins.iter().filter(|mark| window[begin..].starts_with(mark.as_bytes()));
                    let end = begin + mark.map(String::len).max().unwrap_or(0);
                    return ThinkingStart::Inside { spent: self.tokens_behind(prompt, behind + 1, end) };
                }
                (_, Some(_)) => return ThinkingStart::Anywhere,
                _ => text.truncate(most),
            }
        }
        ThinkingStart::Anywhere
    }

    /// Of the last `count` tokens of the prompt, those that begin at byte `at` of their text or later.
    fn tokens_behind(&self, prompt: &[TokenId], count: usize, at: usize) -> u32 {
        let mut begins_at = 0;
        let mut behind = 0;
        for &token in &prompt[prompt.len() - count..] {
            behind += u32::from(begins_at >= at);
            begins_at += self.tokenizer.token_bytes(token).len();
        }
        behind
    }

    /// `grammar` for an output that has at most `budget` tokens of thoughts.
    pub fn within(&self, budget: u32, start: ThinkingStart, grammar: Option<&Grammar>) -> Grammar {
        let (marks, grammar) = (self.clone(), grammar.cloned());
        Grammar::new(move || {
            Box::new(ThinkingBudget {
                tracker: ThoughtTracker::new(&marks, start),
                inner: grammar.as_ref().map(Grammar::matcher),
                budget,
            })
        })
    }
}

/// Follows an output, a token at a time, into its thoughts and out of them.
#[derive(Debug, Clone)]
pub struct ThoughtTracker {
    marks: ThinkingMarks,
    place: Place,
    /// The end of the output, as far as a marker may be in it.
    tail: Vec<u8>,
    num_tokens: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before any thoughts. `anywhere` = the marker need not come first.
    Before { anywhere: bool },
    /// In the thoughts. `fresh` = nothing has come that is not the beginning of a marker.
    Inside { spent: u32, fresh: bool },
    /// Behind them.
    Over,
}

impl ThoughtTracker {
    /// At the beginning of an output.
    pub fn new(marks: &ThinkingMarks, start: ThinkingStart) -> Self {
        let place = match start {
            ThinkingStart::Inside { spent } => Place::Inside { spent, fresh: spent == 0 },
            ThinkingStart::Marker => Place::Before { anywhere: false },
            ThinkingStart::Anywhere => Place::Before { anywhere: true },
            ThinkingStart::Never => Place::Over,
        };
        Self { marks: marks.clone(), place, tail: Vec::new(), num_tokens: 0 }
    }

    /// Tokens of thoughts so far. Of a marker of several tokens, those before the last count.
    pub fn num_tokens(&self) -> u32 {
        self.num_tokens
    }

    /// Takes in the next token.
    pub fn take(&mut self, token: TokenId) {
        if self.place == Place::Over {
            return;
        }
        self.tail.extend(self.marks.tokenizer.token_bytes(token));
        let found = |marks: &[String]| {
            marks.iter().any(|mark| memchr::memmem::find(&self.tail, mark.as_bytes()).is_some())
        };
        // Whether what has come may still become a marker at the beginning.
        let text = self.tail.trim_ascii_start();
        let undecided = self.marks.begins.iter().any(|mark| mark.as_bytes().starts_with(text));
        self.place = match self.place {
            Place::Before { .. } if found(&self.marks.begins) => Place::Inside { spent: 0, fresh: false },
            Place::Before { anywhere } if anywhere || undecided => Place::Before { anywhere },
            Place::Inside { .. } if found(&self.marks.ends) => Place::Over,
            Place::Inside { fresh: true, .. } if found(&self.marks.begins) => {
                self.num_tokens = 0;
                Place::Inside { spent: 0, fresh: false }
            }
            Place::Inside { spent, fresh } => {
                self.num_tokens += 1;
                Place::Inside { spent: spent + 1, fresh: fresh && undecided }
            }
            Place::Before { .. } | Place::Over => Place::Over,
        };
        let keep = match self.place {
            Place::Inside { spent: 0, fresh: false } | Place::Over => 0,
            // All of it is blanks and the beginning of a marker.
            Place::Before { anywhere: false } => self.tail.trim_ascii_start().len(),
            _ => {
                let marks = self.marks.begins.iter().chain(&*self.marks.ends);
                marks.map(String::len).max().unwrap_or(0)
            }
        };
        self.tail.drain(..self.tail.len().saturating_sub(keep));
    }
}

#[derive(Debug)]
struct ThinkingBudget {
    tracker: ThoughtTracker,
    /// What the output must be besides.
    inner: Option<Box<dyn GrammarMatcher>>,
    budget: u32,
}

impl GrammarMatcher for ThinkingBudget {
    fn fill_mask(&mut self, mask: &mut [u32]) -> Result<bool, GrammarError> {
        self.inner.as_mut().map_or(Ok(false), |inner| inner.fill_mask(mask))
    }

    fn accept(&mut self, token: TokenId) -> Result<(), GrammarError> {
        if let Some(inner) = &mut self.inner {
            inner.accept(token)?;
        }
        self.tracker.take(token);
        Ok(())
    }

    fn take_forced(&mut self, out: &mut Vec<TokenId>) -> Result<(), GrammarError> {
        let tracker = &mut self.tracker;
        if matches!(tracker.place, Place::Inside { spent, .. } if spent >= self.budget) {
            for &token in &*tracker.marks.forced {
                if let Some(inner) = &mut self.inner {
                    inner.accept(token)?;
                }
                out.push(token);
            }
            tracker.place = Place::Over;
        }
        let Some(inner) = &mut self.inner else { return Ok(()) };
        let from = out.len();
        inner.take_forced(out)?;
        out[from..].iter().for_each(|token| tracker.take(*token));
        Ok(())
    }

    fn outlives_end(&self) -> bool {
        self.inner.is_none()
    }
}
