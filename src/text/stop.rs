//! Stop strings over a stream of text pieces.
//!
//! The rule is vLLM's: of all occurrences the one that is *complete* first ends the text, and of several that
//! are complete at the same character the one listed first. Text that could still become a match is held
//! back, so a stop string never shows in the stream, not even in part. vLLM holds back a fixed number of
//! characters; here it is exactly the longest tail that is a beginning of some stop string.
//!
//! One Knuth-Morris-Pratt automaton per stop string, fed byte by byte: the cost per byte does not depend on
//! how the text is cut or on what the stop strings look like. Bytes are safe on UTF-8, because a whole string
//! can match only at character boundaries.

/// Matches the stop strings of one sequence.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    include: bool,
    /// Seen and not yet emitted: a beginning of at least one stop string.
    held: String,
    done: bool,
}

impl StopMatcher {
    /// A matcher for `stops`, in order of precedence. Empty strings never match.
    ///
    /// With `include_stop_str_in_output` the matched string itself is emitted, so nothing needs to be held
    /// back.
    pub fn new(stops: &[String], include_stop_str_in_output: bool) -> Self {
        Self {
            patterns: stops.iter().map(|stop| Pattern::new(stop)).collect(),
            include: include_stop_str_in_output,
            held: String::new(),
            done: false,
        }
    }

    /// Takes the next piece of text and appends to `out` what is now certain not to belong to a match.
    ///
    /// Returns the index of the stop string that matched. From then on nothing more is emitted.
    pub fn push(&mut self, text: &str, out: &mut String) -> Option<usize> {
        if self.done {
            return None;
        }
        if self.patterns.is_empty() {
            out.push_str(text);
            return None;
        }
        for (at, byte) in text.bytes().enumerate() {
            let mut matched = None;
            for (index, pattern) in self.patterns.iter_mut().enumerate() {
                if pattern.advance(byte) && matched.is_none() {
                    matched = Some(index);
                }
            }
            if let Some(index) = matched {
                self.emit_match(index, &text[..=at], out);
                return Some(index);
            }
        }
        self.emit_certain(text, out);
        None
    }

    /// Takes text that comes before `min_tokens` is reached: a stop string that is complete within it does
    /// not count. One that begins here and is completed by a later [`push`](Self::push) does, as in vLLM, so
    /// its beginning is held back here too.
    pub fn pass(&mut self, text: &str, out: &mut String) {
        if self.done {
            return;
        }
        for pattern in &mut self.patterns {
            for byte in text.bytes() {
                pattern.advance(byte);
            }
        }
        self.emit_certain(text, out);
    }

    /// Appends what was held back, at the end of a sequence that no stop string ended.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
        self.done = true;
    }

    fn emit_match(&mut self, index: usize, text: &str, out: &mut String) {
        self.held.push_str(text);
        let cut = if self.include { 0 } else { self.patterns[index].bytes.len() };
        out.push_str(&self.held[..self.held.len() - cut]);
        self.held = String::new();
        self.done = true;
    }

    fn emit_certain(&mut self, text: &str, out: &mut String) {
        let keep = if self.include { 0 } else { self.patterns.iter().map(|p| p.matched).max().unwrap_or(0) };
        if keep == 0 && self.held.is_empty() {
            out.push_str(text);
            return;
        }
        self.held.push_str(text);
        let certain = self.held.len() - keep;
        out.push_str(&self.held[..certain]);
        self.held.drain(..certain);
    }
}

#[derive(Clone, Debug)]
struct Pattern {
    bytes: Vec<u8>,
    /// `fallback[n]`: length of the longest proper prefix of the pattern that ends its first `n + 1` bytes.
    fallback: Vec<usize>,
    /// Length of the longest proper prefix of the pattern that ends the text so far.
    matched: usize,
}

impl Pattern {
    fn new(stop: &str) -> Self {
        let bytes = stop.as_bytes().to_vec();
        let mut fallback = vec![0; bytes.len()];
        let mut len = 0;
        for at in 1..bytes.len() {
            while len > 0 && bytes[at] != bytes[len] {
                len = fallback[len - 1];
            }
            len += usize::from(bytes[at] == bytes[len]);
            fallback[at] = len;
        }
        Self { bytes, fallback, matched: 0 }
    }

    /// Takes one byte; true when the pattern is complete with it.
    fn advance(&mut self, byte: u8) -> bool {
        if self.bytes.is_empty() {
            return false;
        }
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.fallback[self.matched - 1];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
        if self.matched < self.bytes.len() {
            return false;
        }
        self.matched = self.fallback[self.matched - 1];
        true
    }
}
