//! The chunks of a streamed chat answer.

use bytes::{BufMut, BytesMut};

use crate::chat::ChatDelta;

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
        let reply = &pen.reply;
        pen.begin(index, out);
        if delta.content.is_empty() && delta.finish.is_some() {
            out.put_slice(b",\"delta\":{}");
        } else {
            out.put_slice(b",\"delta\":{\"content\":");
            put_json(out, &delta.content);
            out.put_slice(b"}");
        }
        out.put_slice(b",\"logprobs\":");
        if reply.wants_logprobs && !delta.logprobs.is_empty() {
            put_json(out, &ChatLogprobs::new(&delta.logprobs, &reply.names));
        } else {
            out.put_slice(b"null");
        }
        match &delta.finish {
            None => out.put_slice(b",\"finish_reason\":null"),
            Some(finish) => {
                out.put_slice(b",\"finish_reason\":");
                put_json(out, &delta.finish_reason());
                out.put_slice(b",\"stop_reason\":");
                put_json(out, &StopReason(Some(finish)));
            }
        }
        if reply.return_token_ids {
            out.put_slice(b",\"token_ids\":");
            put_json(out, &delta.token_ids);
        }
        out.put_slice(b"}]");
        pen.end(prompt, choice, delta.finish.is_some(), out);
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
