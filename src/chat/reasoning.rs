//! [`ReasoningReader`]: tells what a model thought from what it answers, by the markers around it.
//!
//! Every format is a row of a table. Whether an answer begins within the thoughts is read off the prompt where
//! possible, because a template that switches thinking on or off writes the marker itself. Blanks next to a
//! marker belong to the marker.

use super::window::{Look, Window};
use crate::text::Tokenizer;

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
    /// Tags around the answer proper, which are left out.
    around_answer: &'static [&'static str],
    /// The whole answer comes in channels, one of which is for thoughts.
    channels: bool,
}

/// Thoughts between tags; nothing else is special.
const TAGS: ReasoningFormat = ReasoningFormat {
    names: &[],
    begin: &["<think>"],
    end: &["</think>"],
    starts_inside: false,
    also_ends: &[],
    around_answer: &[],
    channels: false,
};

/// Every format. Examples are in the tests.
const FORMATS: &[ReasoningFormat] = &[
    // `Hm.</think>Yes.`: the template, or the model itself, has written <think>.
    ReasoningFormat { names: &["deepseek_r1", "step5"], starts_inside: true, ..TAGS },
    ReasoningFormat {
        names: &["minimax_m2"],
        starts_inside: true,
        also_ends: &["<minimax:tool_call>"],
        ..TAGS
    },
    // `<think>Hm.</think>Yes.`, and no markers at all with thinking switched off.
    ReasoningFormat {
        names: &["deepseek_v3", "holo2", "hy_v3", "hy_v4", "olmo3", "poolside_v1", "step3"],
        ..TAGS
    },
    // The same as in the models that are published.
    ReasoningFormat {
        names: &["hy_v3", "hy_v4"],
        begin: &["<think:opensource>"],
        end: &["</think:opensource>"],
        ..TAGS
    },
    // As with <think>, and `<think>Hm.<tool_call>...`: the thoughts may lead straight to a call.
    ReasoningFormat {
        names: &[
            "qwen3",
            "glm45",
            "glm47",
            "granite_thinking_parser",
            "ling3",
            "mimo",
            "minicpmv",
            "nemotron_v3",
            "step3p5",
        ],
        also_ends: &["<tool_call>"],
        ..TAGS
    },
    ReasoningFormat { names: &["kimi_k2"], also_ends: &["<|tool_calls_section_begin|>"], ..TAGS },
    ReasoningFormat { names: &["deepseek_v4"], also_ends: &["<｜DSML｜tool_calls>"], ..TAGS },
    ReasoningFormat { names: &["deepseek_v41"], also_ends: &["<｜DSML｜ calls>"], ..TAGS },
    // `[THINK]Hm.[/THINK]Yes.`
    ReasoningFormat {
        names: &["mistral"],
        begin: &["[THINK]"],
        end: &["[/THINK]"],
        also_ends: &["[TOOL_CALLS]"],
        ..TAGS
    },
    // `<seed:think>Hm.</seed:think>Yes.`
    ReasoningFormat {
        names: &["seed_oss"],
        begin: &["<seed:think>"],
        end: &["</seed:think>"],
        also_ends: &["<seed:tool_call>"],
        ..TAGS
    },
    // `<mm:think>Hm.</mm:think>Yes.`
    ReasoningFormat { names: &["minimax_m3"], begin: &["<mm:think>"], end: &["</mm:think>"], ..TAGS },
    // `<ifm|think>Hm.</ifm|think>Yes.`, with a pair of markers for each effort
    ReasoningFormat {
        names: &["k2_horizon"],
        begin: &["<ifm|think>", "<ifm|think_fast>", "<ifm|think_faster>"],
        end: &["</ifm|think>", "</ifm|think_fast>", "</ifm|think_faster>"],
        also_ends: &["<ifm|tool_calls>"],
        ..TAGS
    },
    // `<|plamo:begin_think:plamo|>Hm.<|plamo:end_think:plamo|>Yes.`
    ReasoningFormat {
        names: &["plamo3"],
        begin: &["<|plamo:begin_think:plamo|>"],
        end: &["<|plamo:end_think:plamo|>"],
        also_ends: &["<|plamo:begin_tool_requests:plamo|>"],
        ..TAGS
    },
    // `<|channel>thought
    // Hm.<channel|>Yes.`
    ReasoningFormat {
        names: &["gemma4"],
        begin: &["<|channel>thought\n", "<|channel>"],
        end: &["<channel|>"],
        also_ends: &["<|tool_call>"],
        ..TAGS
    },
    // `<|open|>think<|sep|>Hm.<|close|>think<|sep|><|open|>response<|sep|>Yes.<|close|>response<|sep|>`
    ReasoningFormat {
        names: &["kimi_k3"],
        begin: &["<|open|>think<|sep|>"],
        end: &["<|close|>think<|sep|>"],
        also_ends: &["<|open|>tools<|sep|>"],
        around_answer: &[
            "<|open|>response<|sep|>",
            "<|close|>response<|sep|>",
            "<|close|>message<|sep|>",
            "<|end_of_msg|>",
        ],
        ..TAGS
    },
    // `<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Yes.<|END_RESPONSE|>`, or TEXT for RESPONSE
    ReasoningFormat {
        names: &["cohere_command3", "cohere_command4"],
        begin: &["<|START_THINKING|>"],
        end: &["<|END_THINKING|>"],
        also_ends: &["<|START_ACTION|>"],
        around_answer: &["<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"],
        ..TAGS
    },
    // `<think>Hm.</think><answer>Yes.</answer>`
    ReasoningFormat { names: &["hunyuan_a13b"], around_answer: &["<answer>", "</answer>"], ..TAGS },
    // `<think>Hm.</think><response>Yes.</response>`
    ReasoningFormat { names: &["ernie45"], around_answer: &["<response>", "</response>"], ..TAGS },
    // `Here is my thought process: Hm. Here is my response: Yes.`
    ReasoningFormat {
        names: &["granite"],
        begin: &["Here's my thought process:", "Here is my thought process:"],
        end: &["Here's my response:", "Here is my response:"],
        ..TAGS
    },
    // `<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>`
    ReasoningFormat {
        names: &["openai_gptoss"],
        begin: &["<|channel|>analysis<|message|>"],
        end: &["<|end|>"],
        around_answer: &[
            "<|start|>assistant",
            "<|channel|>final<|message|>",
            "<|channel|>commentary<|message|>",
            "<|channel|>final <|constrain|>json<|message|>",
            "<|call|>",
            "<|return|>",
        ],
        channels: true,
        ..TAGS
    },
];

impl ReasoningFormat {
    /// The format of that name; the first of several.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        FORMATS.iter().find(|format| format.names.contains(&name))
    }

    /// The format of that name; of several, the one whose marker is a token of the model.
    pub(crate) fn of_model(name: &str, tokenizer: &Tokenizer) -> Option<&'static Self> {
        let is_token = |format: &&Self| tokenizer.token_to_id(format.begin[0]).is_some();
        let mut named = FORMATS.iter().filter(|format| format.names.contains(&name));
        named.clone().find(is_token).or(named.next())
    }

    /// All names, sorted.
    pub(crate) fn names() -> Vec<&'static str> {
        let mut names: Vec<_> = FORMATS.iter().flat_map(|format| format.names).copied().collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Whether the whole answer comes in channels.
    pub(crate) fn is_in_channels(&self) -> bool {
        self.channels
    }

    /// All markers.
    pub(crate) fn markers(&self) -> impl Iterator<Item = &'static str> {
        self.begin.iter().chain(self.end).chain(self.around_answer).copied()
    }

    /// The markers that begin the thoughts.
    pub(crate) fn begins(&self) -> &'static [&'static str] {
        self.begin
    }

    /// The markers that end the thoughts.
    pub(crate) fn ends(&self) -> &'static [&'static str] {
        self.end
    }

    /// Everything that ends the thoughts.
    pub(crate) fn all_ends(&self) -> impl Iterator<Item = &'static str> {
        self.end.iter().chain(self.also_ends).copied()
    }

    /// Where an answer to this prompt begins. `continues` = the prompt ends within a message.
    pub(crate) fn start_after(&self, prompt: &str, continues: bool) -> Start {
        let prompt = prompt.trim_end();
        let ends_with = |markers: &[&str]| markers.iter().any(|marker| prompt.ends_with(marker.trim_end()));
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
            if self.at == At::Outside && self.format.around_answer.is_empty() {
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
            At::Start { .. } if self.format.begin.contains(&&*held) => (),
            At::Start { otherwise: Where::Outside } => {
                rest.push_str(&self.blanks);
                rest.push_str(&held);
            }
            At::Start { otherwise: Where::Inside } | At::Inside { .. } => {
                reasoning.push_str(&self.blanks);
                reasoning.push_str(&held);
            }
            At::Ended | At::Outside => {
                rest.push_str(&self.blanks);
                rest.push_str(&held);
            }
        }
        self.blanks.clear();
        self.at = At::Outside;
    }

    fn feed(&mut self, c: char, reasoning: &mut String, rest: &mut String) {
        match self.at {
            At::Start { otherwise } => self.feed_start(c, otherwise, reasoning, rest),
            At::Inside { .. } => self.feed_inside(c, reasoning, rest),
            At::Ended if c.is_whitespace() => (),
            At::Ended | At::Outside => self.feed_outside(c, rest),
        }
    }

    fn feed_outside(&mut self, c: char, rest: &mut String) {
        self.at = At::Outside;
        self.window.push(c);
        loop {
            match self.window.look(self.format.around_answer.iter().copied()) {
                Look::Beginning => return,
                Look::Whole(_) => {
                    self.window.take();
                    self.blanks.clear();
                    self.at = At::Ended;
                    return;
                }
                Look::Neither => match self.window.pop_first() {
                    None => return,
                    Some(c) if c.is_whitespace() => self.blanks.push(c),
                    Some(c) => {
                        rest.push_str(&std::mem::take(&mut self.blanks));
                        rest.push(c);
                    }
                },
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
                let begin = self.window.longest(self.format.begin.iter().copied());
                let held = self.window.take();
                if let Some(begin) = begin {
                    // The beginning of a longer one that it turned out not to be.
                    self.blanks.clear();
                    self.at = At::Inside { empty: true };
                    return self.push(&held[begin.len()..], reasoning, rest);
                }
                match otherwise {
                    Where::Outside => {
                        rest.push_str(&std::mem::take(&mut self.blanks));
                        self.at = At::Outside;
                        self.push(&held, reasoning, rest);
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
                        self.at = At::Outside;
                        self.push(marker, reasoning, rest);
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

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn read<'a>(name: &str, start: Start, pieces: impl IntoIterator<Item = &'a str>) -> (String, String) {
        let mut reader = ReasoningReader::new(ReasoningFormat::named(name).unwrap(), start);
        let (mut reasoning, mut rest) = (String::new(), String::new());
        for piece in pieces {
            reader.push(piece, &mut reasoning, &mut rest);
        }
        reader.finish(&mut reasoning, &mut rest);
        (reasoning, rest)
    }

    #[test]
    fn every_format_reads_its_example() {
        for (name, prompt, text) in [
            ("deepseek_r1", "<｜Assistant｜>", "<think>\nHm.\n</think>\n\nYes."),
            ("deepseek_r1", "<｜Assistant｜>", "Hm.</think>Yes."),
            ("deepseek_r1", "<｜Assistant｜><think>\n", "Hm.\n</think>\n\nYes."),
            ("qwen3", "<|im_start|>assistant\n", "<think>\nHm.\n</think>\n\nYes."),
            ("qwen3", "<|im_start|>assistant\n<think>\n", "Hm.\n</think>\n\nYes."),
            ("minimax_m2", "<think>\n", "Hm.\n</think>\n\nYes."),
            ("kimi_k2", "<|im_middle|>", "<think>Hm.</think>Yes."),
            ("mistral", "[/INST]", "[THINK]Hm.[/THINK]Yes."),
            ("hunyuan_a13b", "", "<think>\nHm.\n</think>\n<answer>\nYes.\n</answer>"),
            ("ernie45", "", "<think>\nHm.\n</think>\n\n<response>\nYes.\n</response>\n"),
            ("seed_oss", "assistant\n", "<seed:think>Hm.</seed:think>Yes."),
            ("granite", "assistant", "Here is my thought process: Hm. Here is my response: Yes."),
            ("gemma4", "model\n", "<|channel>thought\nHm.\n<channel|>Yes."),
            ("gemma4", "model\n", "<|channel>Hm.<channel|>Yes."),
            ("gemma4", "model\n<|channel>thought\n", "Hm.<channel|>Yes."),
            (
                "kimi_k3",
                "<|open|>think<|sep|>",
                "Hm.<|close|>think<|sep|><|open|>response<|sep|>Yes.<|close|>response<|sep|><|close|>message<|sep|>",
            ),
            (
                "cohere_command3",
                "<|CHATBOT_TOKEN|>",
                "<|START_THINKING|> Hm.<|END_THINKING|>\n<|START_RESPONSE|>Yes.<|END_RESPONSE|>",
            ),
            ("cohere_command4", "<|START_THINKING|>", "Hm.<|END_THINKING|><|START_TEXT|>Yes.<|END_TEXT|>"),
            ("minimax_m3", "", "<mm:think>Hm.</mm:think>Yes."),
            ("k2_horizon", "<ifm|think_fast>\n", "Hm.</ifm|think_fast>\nYes."),
            ("plamo3", "", "<|plamo:begin_think:plamo|>Hm.<|plamo:end_think:plamo|>Yes."),
            (
                "openai_gptoss",
                "<|start|>assistant",
                "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>",
            ),
            ("granite", "assistant", "Here's my thought process:\nHm.\n\nHere's my response:\nYes."),
        ] {
            let start = ReasoningFormat::named(name).unwrap().start_after(prompt, false);
            assert_eq!(read(name, start, [text]), ("Hm.".into(), "Yes.".into()), "{name}: {prompt}{text}");
        }
    }

    #[test]
    fn without_thoughts_everything_is_the_answer() {
        for (name, prompt, continues) in [
            ("qwen3", "<|im_start|>assistant\n", false),
            ("qwen3", "<|im_start|>assistant\n<think>\n\n</think>\n\n", false),
            ("deepseek_r1", "<｜Assistant｜></think>", false),
            ("deepseek_r1", "<｜Assistant｜>It is", true),
            ("granite", "assistant", false),
        ] {
            let start = ReasoningFormat::named(name).unwrap().start_after(prompt, continues);
            let text = "\n Yes, <think> is a tag. ";
            assert_eq!(read(name, start, [text]), (String::new(), text.into()), "{name}: {prompt}");
        }
    }

    #[test]
    fn thoughts_that_do_not_end_are_thoughts() {
        assert_eq!(
            read("deepseek_r1", Start::InsideOrMarker, ["Hm, </thin "]),
            ("Hm, </thin ".into(), "".into())
        );
        assert_eq!(read("qwen3", Start::Marker, ["<think>Hm. \n<"]), ("Hm. \n<".into(), "".into()));
        let (hm, rest) = read("kimi_k2", Start::Inside, ["Hm.<|tool_calls_section_begin|>x"]);
        assert_eq!((&*hm, &*rest), ("Hm.", "<|tool_calls_section_begin|>x"));
    }

    #[test]
    fn the_stream_reads_what_the_whole_reads() {
        let parts = [
            "<answer>",
            "</answer>",
            "<think>",
            "</think>",
            " ",
            "\n",
            "Hm",
            "<",
            "think>",
            "[THINK]",
            "[/THINK]",
            "Here is my response:",
            "é",
            "Here is",
        ];
        for seed in 0..2000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let text: String =
                (0..rng.random_range(0..9)).map(|_| parts[rng.random_range(0..parts.len())]).collect();
            let names = ReasoningFormat::names();
            let name = names[rng.random_range(0..names.len())];
            let starts = [Start::Inside, Start::InsideOrMarker, Start::Marker, Start::Outside];
            let start = starts[rng.random_range(0..4)];
            let whole = read(name, start, [&*text]);
            let by_char = text.char_indices().map(|(at, c)| &text[at..at + c.len_utf8()]);
            assert_eq!(read(name, start, by_char), whole, "seed {seed}, {name} {start:?}: {text:?}");
            let num_visible = |text: &str| text.chars().filter(|c| !c.is_whitespace()).count();
            let format = ReasoningFormat::named(name).unwrap();
            let kept = num_visible(&whole.0) + num_visible(&whole.1);
            let without_markers =
                format.markers().fold(text.clone(), |text, marker| text.replace(marker, ""));
            assert!(kept >= num_visible(&without_markers), "seed {seed}, {name}: {text:?}: {whole:?}");
        }
    }
}
