//! The chunks of a stream of tokens.

use bytes::{BufMut, BytesMut};

use super::logprobs::OutputLogprobs;
use crate::engine::OutputDelta;
use crate::http::logprobs::PromptLogprobs;
use crate::http::reply::StopReason;
use crate::http::sse::{Choice, Pen, put_json};

/// Writes chunks with `token_ids`.
#[derive(Debug)]
pub(crate) struct TokenWriter {
    /// Text besides the tokens.
    pub(crate) text: bool,
}

impl TokenWriter {
    /// Writes one delta of choice `index`.
    pub(crate) fn write(
        &self,
        pen: &Pen,
        index: usize,
        choice: &mut Choice,
        delta: &OutputDelta,
        out: &mut BytesMut,
    ) {
        let reply = &pen.reply;
        let first = !std::mem::replace(&mut choice.started, true);
        pen.begin(index, out);
        if self.text {
            out.put_slice(b",\"text\":");
            put_json(out, &delta.text);
        }
        out.put_slice(b",\"logprobs\":");
        let logprobs = reply.wants_logprobs && !delta.logprobs.is_empty();
        put_json(out, &logprobs.then(|| OutputLogprobs::new(&delta.logprobs, &reply.names, self.text)));
        out.put_slice(b",\"finish_reason\":");
        put_json(out, &delta.finish.as_ref().map(|finish| finish.kind.as_str()));
        out.put_slice(b",\"stop_reason\":");
        put_json(out, &StopReason(delta.finish.as_ref()));
        out.put_slice(b",\"token_ids\":");
        put_json(out, &delta.token_ids);
        out.put_slice(b"}]");
        if first && index == 0 && reply.wants_prompt_logprobs {
            let entries = delta.prompt.as_ref().and_then(|prompt| prompt.logprobs.as_deref());
            let tokenizer = &reply.names.tokenizer;
            out.put_slice(b",\"prompt_logprobs\":");
            put_json(out, &entries.map(|entries| PromptLogprobs { entries, tokenizer }));
        }
        pen.end(0, choice, delta.finish.is_some(), out);
    }
}
