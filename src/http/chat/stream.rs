//! The chunks of a streamed chat answer.

use bytes::{BufMut, BytesMut};
use serde::Serialize;

use crate::chat::{ChatDelta, ToolCallDelta};

use crate::http::logprobs::{ChatLogprobs, PromptLogprobs};
use crate::http::reply::StopReason;
use crate::http::sse::{Choice, Pen, put_json};

/// Writes chunks with `delta`.
#[derive(Debug)]
pub(crate) struct ChatWriter {
    /// Whose message it is.
    pub(crate) role: String,
}

impl ChatWriter {
    /// Writes one delta of choice `index` of prompt number `prompt`.
    pub(crate) fn write(
        &self,
        pen: &Pen,
        prompt: usize,
        index: usize,
        choice: &mut Choice,
        delta: &ChatDelta,
        out: &mut BytesMut,
    ) {
        if !std::mem::replace(&mut choice.started, true) {
            self.write_first(pen, prompt, index, choice, delta, out);
        }
        if delta.is_silent() && pen.may_skip_tokens() {
            return;
        }
        let mut chunks = Chunks { pen, prompt, index, choice, delta, out, first: true };
        let finishes = delta.finish.is_some();
        let calls = !delta.tool_calls.is_empty();
        if !delta.reasoning.is_empty() {
            chunks.write(finishes && !calls && delta.content.is_empty(), |out| {
                out.put_slice(b"\"reasoning\":");
                put_json(out, &delta.reasoning);
            });
        }
        if !delta.content.is_empty() {
            chunks.write(finishes && !calls, |out| {
                out.put_slice(b"\"content\":");
                put_json(out, &delta.content);
            });
        }
        for call in &delta.tool_calls {
            chunks.write(false, |out| {
                out.put_slice(b"\"tool_calls\":[");
                put_json(out, &CallChunk::new(call));
                out.put_slice(b"]");
            });
        }
        if finishes && (calls || chunks.first) {
            // Clients want the end of calls in a chunk of its own.
            chunks.write(true, |_| ());
        } else if chunks.first {
            // Tokens whose text is held back.
            chunks.write(false, |out| out.put_slice(b"\"content\":\"\""));
        }
    }

    /// The role, what is known of the prompt, and the message to be continued if it is to be echoed.
    fn write_first(
        &self,
        pen: &Pen,
        prompt: usize,
        index: usize,
        choice: &Choice,
        delta: &ChatDelta,
        out: &mut BytesMut,
    ) {
        let reply = &pen.reply;
        // Nothing has been generated as far as this chunk goes.
        let choice = &Choice { completion_tokens: 0, ..choice.clone() };
        pen.begin(index, out);
        out.put_slice(b",\"delta\":{\"role\":");
        put_json(out, &self.role);
        out.put_slice(b",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]");
        if reply.return_token_ids {
            out.put_slice(b",\"prompt_token_ids\":");
            put_json(out, &*reply.prompts[prompt].ids);
        }
        if let Some(text) = &reply.prompts[prompt].text {
            out.put_slice(b",\"prompt_text\":");
            put_json(out, text);
        }
        if reply.wants_prompt_logprobs {
            let entries = delta.prompt.as_ref().and_then(|prompt| prompt.logprobs.as_deref());
            let tokenizer = &reply.names.tokenizer;
            out.put_slice(b",\"prompt_logprobs\":");
            put_json(out, &entries.map(|entries| PromptLogprobs { entries, tokenizer }));
        }
        pen.end(prompt, choice, false, out);
        if let Some(echo) = reply.prompts[prompt].echo.as_deref().filter(|echo| !echo.is_empty()) {
            pen.begin(index, out);
            out.put_slice(b",\"delta\":{\"content\":");
            put_json(out, echo);
            out.put_slice(b"},\"logprobs\":null,\"finish_reason\":null}]");
            pen.end(prompt, choice, false, out);
        }
    }
}

/// The chunks that one delta becomes. What is known of the tokens goes with the first, the end with the last.
struct Chunks<'a> {
    pen: &'a Pen,
    prompt: usize,
    index: usize,
    choice: &'a mut Choice,
    delta: &'a ChatDelta,
    out: &'a mut BytesMut,
    /// None has been written.
    first: bool,
}

impl Chunks<'_> {
    /// `fields` writes what is in the chunk's `delta`. `last` = the answer ends with this chunk.
    fn write(&mut self, last: bool, fields: impl FnOnce(&mut BytesMut)) {
        let (reply, delta, out) = (&self.pen.reply, self.delta, &mut *self.out);
        let first = std::mem::replace(&mut self.first, false);
        self.pen.begin(self.index, out);
        out.put_slice(b",\"delta\":{");
        fields(out);
        out.put_slice(b"},\"logprobs\":");
        if first && reply.wants_logprobs && !delta.logprobs.is_empty() {
            put_json(out, &ChatLogprobs::new(&delta.logprobs, &reply.names));
        } else {
            out.put_slice(b"null");
        }
        match &delta.finish {
            Some(finish) if last => {
                out.put_slice(b",\"finish_reason\":");
                put_json(out, &delta.finish_reason());
                out.put_slice(b",\"stop_reason\":");
                put_json(out, &StopReason(Some(finish)));
            }
            _ => out.put_slice(b",\"finish_reason\":null"),
        }
        if first && reply.return_token_ids {
            out.put_slice(b",\"token_ids\":");
            put_json(out, &delta.token_ids);
        }
        out.put_slice(b"}]");
        self.pen.end(self.prompt, self.choice, last, out);
    }
}

/// A piece of a call: on the first of a call, id, type and name; then more of its arguments.
#[derive(Serialize)]
struct CallChunk<'a> {
    index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: FunctionChunk<'a>,
}

#[derive(Serialize)]
struct FunctionChunk<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
}

impl<'a> CallChunk<'a> {
    fn new(call: &'a ToolCallDelta) -> Self {
        let start = call.start.as_ref();
        Self {
            index: call.index,
            id: start.map(|start| &*start.id),
            r#type: start.map(|_| "function"),
            function: FunctionChunk { name: start.map(|start| &*start.name), arguments: &call.arguments },
        }
    }
}
