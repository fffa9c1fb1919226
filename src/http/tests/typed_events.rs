//! What the APIs with typed events have in common in tests: their frames, and random answers to write.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use crate::chat::{ChatDelta, ChatParser, ToolCallDelta, ToolCallStart};
use crate::engine::{Finish, FinishKind, PromptOutput, StopCause, Timings};

/// The events of a stream: each has its name twice, and nothing else is in between.
#[track_caller]
pub(crate) fn parse(text: &str) -> Vec<Value> {
    assert!(text.ends_with("\n\n"), "{text:?}");
    let frames = text.split_terminator("\n\n").filter(|frame| !frame.starts_with(':'));
    let event = |frame: &str| -> Value {
        let (name, data) = frame.split_once('\n').unwrap_or_else(|| panic!("{frame:?}"));
        let event: Value = serde_json::from_str(data.strip_prefix("data: ").expect(data)).expect(data);
        assert_eq!(event["type"], *name.strip_prefix("event: ").expect(name), "{frame}");
        event
    };
    frames.map(event).collect()
}

/// A random answer in random pieces: reasoning, text and calls in the order in which models write them, now
/// and then with text between calls, and an end of any kind but failure.
pub(crate) fn random_answer(seed: u64) -> Vec<ChatDelta> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut answer = Answer { deltas: Vec::new(), num_calls: 0, rng: StdRng::seed_from_u64(seed ^ 1) };
    if rng.random_bool(0.5) {
        answer.pieces(|text, delta| delta.reasoning.push_str(text));
    }
    for _ in 0..rng.random_range(0..4) {
        if rng.random_bool(0.6) {
            answer.pieces(|text, delta| delta.content.push_str(text));
        } else {
            answer.call(["plain", "custom", "ns__far"].choose(&mut rng).unwrap());
        }
    }
    let kind = if rng.random_bool(0.3) { FinishKind::Length } else { FinishKind::Stop };
    let stop = match rng.random_range(0..3) {
        _ if kind == FinishKind::Length => None,
        0 => Some(StopCause::Text("STOP".into())),
        _ => Some(StopCause::Eos(2)),
    };
    answer.finish(Finish { kind, stop, error: None, num_output_tokens: 0, timings: Timings::default() })
}

/// The same random text of a model, read whole and in random pieces: reasoning, text and calls in any order.
pub(crate) fn read_twice(seed: u64) -> [Vec<ChatDelta>; 2] {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut text = String::from(if rng.random() { "<think>\nHm, \"é\".\n</think>\n\n" } else { "" });
    for index in 0..rng.random_range(1..6) {
        text += &match rng.random_range(0..4) {
            0 | 1 => format!("Text {index}, <tool_cal."),
            2 => format!(
                "<tool_call>\n{{\"name\": \"f{index}\", \"arguments\": {{\"a\": [{index}]}}}}\n</tool_call>"
            ),
            _ => " \n".into(),
        };
    }
    let parser = ChatParser::named(Some("hermes"), Some("qwen3")).unwrap();
    let mut cuts: Vec<usize> =
        text.char_indices().map(|(at, _)| at).filter(|_| rng.random_bool(0.3)).collect();
    cuts.push(text.len());
    [vec![text.len()], cuts].map(|cuts| {
        let (mut reading, mut deltas, mut from) = (parser.start(), Vec::new(), 0);
        for to in cuts {
            reading.push(&text[from..to], &[], to == text.len());
            from = to;
            let mut told = false;
            while !told {
                let mut delta = ChatDelta::default();
                told = reading.tell(&mut delta);
                deltas.push(delta);
            }
        }
        let finish = Finish {
            kind: FinishKind::Stop,
            stop: None,
            error: None,
            num_output_tokens: 0,
            timings: Timings::default(),
        };
        deltas.last_mut().unwrap().finish = Some(finish);
        deltas
    })
}

struct Answer {
    deltas: Vec<ChatDelta>,
    num_calls: u32,
    rng: StdRng,
}

impl Answer {
    /// Adds a text in pieces, each of which goes where `put` says.
    fn pieces(&mut self, put: impl Fn(&str, &mut ChatDelta)) {
        for _ in 0..self.rng.random_range(1..5) {
            let text =
                ["a", " b", "\n", "é", "\"", "\\u", "🦀", "<think>", "{}"].choose(&mut self.rng).unwrap();
            put(text, self.delta());
        }
    }

    fn call(&mut self, name: &str) {
        let index = self.num_calls;
        self.num_calls += 1;
        let start = ToolCallStart { id: format!("call-{index}"), name: name.to_owned() };
        let arguments = r#"{"input": "a \"b\"\nc", "more": [1, 2.5, {}]}"#;
        let mut start = Some(start);
        let mut rest: Vec<char> = arguments.chars().collect();
        while start.is_some() || !rest.is_empty() {
            let piece = rest.drain(..self.rng.random_range(0..=rest.len())).collect();
            let piece = ToolCallDelta { index, start: start.take(), arguments: piece };
            self.delta().tool_calls.push(piece);
        }
    }

    /// The delta to write to: the last one, or a new one.
    fn delta(&mut self) -> &mut ChatDelta {
        let last = self.deltas.last();
        // What is in one delta is read as reasoning, then text, then calls.
        let mixed = last.is_some_and(|delta| !delta.tool_calls.is_empty() || !delta.content.is_empty());
        if last.is_none() || mixed || self.rng.random_bool(0.7) {
            let num_tokens = self.rng.random_range(0..3);
            let prompt =
                self.deltas.is_empty().then_some(PromptOutput { num_cached_tokens: 3, logprobs: None });
            self.deltas.push(ChatDelta { prompt, token_ids: vec![5; num_tokens], ..ChatDelta::default() });
        }
        self.deltas.last_mut().unwrap()
    }

    fn finish(mut self, finish: Finish) -> Vec<ChatDelta> {
        let num_calls = self.num_calls;
        let last = self.delta();
        last.finish = Some(finish);
        last.num_tool_calls = num_calls;
        self.deltas
    }
}
