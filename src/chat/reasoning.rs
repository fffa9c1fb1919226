//! [`ReasoningReader`]: tells what a model thought from what it answers, by the markers around it.
//!
//! Every format is a row of a table. Whether an answer begins within the thoughts is read off the prompt where
//! possible, because a template that switches thinking on or off writes the marker itself. Blanks next to a
//! marker belong to the marker.

use super::window::{Look, Window};

/// How one family of models marks its thoughts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ReasoningFormat {
    /// vLLM's names for it (`--reasoning-parser`).
    pub(crate) names: &'static [&'static str],
    begin: &'static [&'static str],
    end: &'static [&'static str],
    /// Answers begin with thoughts, marker or not, unless the prompt has ended them.
    starts_inside: bool,
    /// These end the thoughts too, and belong to what follows: some models call tools without an end marker.
    also_ends: &'static [&'static str],
}

const fn format(
    names: &'static [&'static str],
    begin: &'static [&'static str],
    end: &'static [&'static str],
) -> ReasoningFormat {
    ReasoningFormat { names, begin, end, starts_inside: false, also_ends: &[] }
}

const THINK: (&[&str], &[&str]) = (&["<think>"], &["</think>"]);

/// Every format. Examples are in the tests.
const FORMATS: &[ReasoningFormat] = &[
    // `Hm.</think>Yes.`: the template, or the model itself, has written <think>.
    ReasoningFormat { starts_inside: true, ..format(&["deepseek_r1", "minimax_m2"], THINK.0, THINK.1) },
    // `<think>Hm.</think>Yes.`, and no markers at all with thinking switched off.
    format(
        &[
            "qwen3",
            "deepseek_v3",
            "glm45",
            "glm47",
            "holo2",
            "nemotron_v3",
            "olmo3",
            "ernie45",
            "step3",
            "step3p5",
            "mimo",
        ],
        THINK.0,
        THINK.1,
    ),
    // `<think>Hm.<|tool_calls_section_begin|>...`: the thoughts may lead straight to a call.
    ReasoningFormat {
        also_ends: &["<|tool_calls_section_begin|>"],
        ..format(&["kimi_k2"], THINK.0, THINK.1)
    },
    // `[THINK]Hm.[/THINK]Yes.`
    format(&["mistral"], &["[THINK]"], &["[/THINK]"]),
    // `<seed:think>Hm.</seed:think>Yes.`
    format(&["seed_oss"], &["<seed:think>"], &["</seed:think>"]),
    // `<think>\nHm.\n</think>\n<answer>\nYes.`: the tags of the answer are markers as well.
    format(&["hunyuan_a13b"], &["<think>"], &["</think>\n<answer>", "</think>"]),
    // `Here is my thought process: Hm. Here is my response: Yes.`
    format(
        &["granite"],
        &["Here's my thought process:", "Here is my thought process:"],
        &["Here's my response:", "Here is my response:"],
    ),
];

impl ReasoningFormat {
    /// The format of that name.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        FORMATS.iter().find(|format| format.names.contains(&name))
    }

    /// All names, sorted.
    pub(crate) fn names() -> Vec<&'static str> {
        let mut names: Vec<_> = FORMATS.iter().flat_map(|format| format.names).copied().collect();
        names.sort_unstable();
        names
    }

    /// All markers.
    pub(crate) fn markers(&self) -> impl Iterator<Item = &'static str> {
        self.begin.iter().chain(self.end).copied()
    }

    /// The markers that begin the thoughts.
    pub(crate) fn begins(&self) -> &'static [&'static str] {
        self.begin
    }

    /// The markers that end the thoughts.
    pub(crate) fn ends(&self) -> &'static [&'static str] {
        self.end
    }

    /// Where an answer to this prompt begins. `continues` = the prompt ends within a message.
    pub(crate) fn start_after(&self, prompt: &str, continues: bool) -> Start {
        let prompt = prompt.trim_end();
        let ends_with = |markers: &[&str]| markers.iter().any(|marker| prompt.ends_with(marker));
        if ends_with(self.begin) {
            Start::Inside
        } else if continues || ends_with(self.end) {
            Start::Outside
        } else if self.starts_inside {
            Start::InsideOrMarker
        } else {
            Start::Marker
        }
    }
}

/// Where an answer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Start {
    /// The prompt has begun the thoughts.
    Inside,
    /// In the thoughts; the model may write the marker itself.
    InsideOrMarker,
    /// In the thoughts if the marker comes first.
    #[default]
    Marker,
    /// In the answer proper.
    Outside,
}

/// The state of reading one answer.
#[derive(Debug, Clone)]
pub(super) struct ReasoningReader {
    format: &'static ReasoningFormat,
    at: At,
    window: Window,
    /// Blanks of which it is not known yet whether they belong to a marker.
    blanks: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before anything. `otherwise` = where we are if no marker comes.
    Start { otherwise: Where },
    /// In the thoughts, of which `empty` = nothing was seen.
    Inside { empty: bool },
    /// After the end marker.
    Ended,
    /// In the answer proper.
    Outside,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    Inside,
    Outside,
}

impl ReasoningReader {
    pub(super) fn new(format: &'static ReasoningFormat, start: Start) -> Self {
        let at = match start {
            Start::Inside => At::Inside { empty: true },
            Start::InsideOrMarker => At::Start { otherwise: Where::Inside },
            Start::Marker => At::Start { otherwise: Where::Outside },
            Start::Outside => At::Outside,
        };
        Self { format, at, window: Window::default(), blanks: String::new() }
    }

    /// Whether what comes now may be thoughts.
    pub(super) fn is_inside(&self) -> bool {
        matches!(self.at, At::Inside { .. } | At::Start { otherwise: Where::Inside })
    }

    /// Takes text in: thoughts go to `reasoning`, the rest to `rest`.
    pub(super) fn push(&mut self, text: &str, reasoning: &mut String, rest: &mut String) {
        for (at, c) in text.char_indices() {
            if self.at == At::Outside {
                rest.push_str(&text[at..]);
                return;
            }
            self.feed(c, reasoning, rest);
        }
    }

    /// Nothing follows: gives out what was held back.
    pub(super) fn finish(&mut self, reasoning: &mut String, rest: &mut String) {
        let held = self.window.take();
        match self.at {
            At::Start { otherwise: Where::Outside } => {
                rest.push_str(&self.blanks);
                rest.push_str(&held);
            }
            At::Start { otherwise: Where::Inside } | At::Inside { .. } => {
                reasoning.push_str(&self.blanks);
                reasoning.push_str(&held);
            }
            At::Ended | At::Outside => (),
        }
        self.blanks.clear();
        self.at = At::Outside;
    }

    fn feed(&mut self, c: char, reasoning: &mut String, rest: &mut String) {
        match self.at {
            At::Start { otherwise } => self.feed_start(c, otherwise, reasoning, rest),
            At::Inside { .. } => self.feed_inside(c, reasoning, rest),
            At::Ended if c.is_whitespace() => (),
            At::Ended | At::Outside => {
                self.at = At::Outside;
                rest.push(c);
            }
        }
    }

    fn feed_start(&mut self, c: char, otherwise: Where, reasoning: &mut String, rest: &mut String) {
        if self.window.is_empty() && c.is_whitespace() {
            self.blanks.push(c);
            return;
        }
        self.window.push(c);
        match self.window.look(self.format.begin.iter().copied()) {
            Look::Beginning => (),
            Look::Whole(_) => {
                self.window.take();
                self.blanks.clear();
                self.at = At::Inside { empty: true };
            }
            Look::Neither => {
                let held = self.window.take();
                match otherwise {
                    Where::Outside => {
                        rest.push_str(&std::mem::take(&mut self.blanks));
                        rest.push_str(&held);
                        self.at = At::Outside;
                    }
                    Where::Inside => {
                        self.blanks.clear();
                        self.at = At::Inside { empty: true };
                        self.push(&held, reasoning, rest);
                    }
                }
            }
        }
    }

    fn feed_inside(&mut self, c: char, reasoning: &mut String, rest: &mut String) {
        self.window.push(c);
        loop {
            match self.window.look(self.format.end.iter().chain(self.format.also_ends).copied()) {
                Look::Beginning => return,
                Look::Whole(marker) => {
                    self.window.take();
                    self.blanks.clear();
                    if self.format.also_ends.contains(&marker) {
                        rest.push_str(marker);
                        self.at = At::Outside;
                    } else {
                        self.at = At::Ended;
                    }
                    return;
                }
                Look::Neither => {
                    let Some(c) = self.window.pop_first() else { return };
                    self.thought(c, reasoning);
                }
            }
        }
    }

    fn thought(&mut self, c: char, reasoning: &mut String) {
        let At::Inside { empty } = &mut self.at else { return };
        if !c.is_whitespace() {
            *empty = false;
            reasoning.push_str(&self.blanks);
            self.blanks.clear();
            reasoning.push(c);
        } else if !*empty {
            self.blanks.push(c);
        }
    }
}
