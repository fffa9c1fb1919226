//! The chunks of a streamed completion.

use bytes::{BufMut, BytesMut};

use crate::engine::OutputDelta;

use super::response::{hide_stop, prompt_part};
use crate::http::logprobs::{CompletionLogprobs, PromptLogprobs};
use crate::http::reply::StopReason;
use crate::http::sse::{Choice, Pen, put_json};

/// Writes chunks with `text`.
#[derive(Debug)]
pub(crate) struct CompletionStream {
    /// Show only the prompt.
    pub(crate) echo_only: bool,
}

impl CompletionStream {
    /// Writes one delta of choice `index`, which continues prompt number `prompt`.
    pub(crate) fn write(
        &self,
        pen: &Pen,
        prompt: usize,
        index: usize,
        choice: &mut Choice,
        delta: &mut OutputDelta,
        out: &mut BytesMut,
    ) {
        if self.echo_only {
            hide_output(delta);
        }
        let first = !std::mem::replace(&mut choice.started, true);
        let reply = &pen.reply;
        let echo = reply.prompts[prompt].echo.as_deref().filter(|_| first);
        let prompt_first = first && (echo.is_some() || reply.wants_prompt_logprobs);
        if pen.may_skip(delta) && !prompt_first {
            return;
        }
        pen.begin(index, out);
        out.put_slice(b",\"text\":");
        match echo {
            None => put_json(out, &delta.text),
            Some(echo) => put_json(out, &format!("{echo}{}", delta.text)),
        }
        out.put_slice(b",\"logprobs\":");
        write_logprobs(pen, prompt, echo.is_some(), choice, delta, out);
        match &delta.finish {
            None => out.put_slice(b",\"finish_reason\":null,\"stop_reason\":null"),
            Some(finish) => {
                out.put_slice(b",\"finish_reason\":");
                put_json(out, finish.kind.as_str());
                out.put_slice(b",\"stop_reason\":");
                put_json(out, &StopReason(Some(finish)));
            }
        }
        if first && reply.wants_prompt_logprobs {
            let entries = delta.prompt.as_ref().and_then(|prompt| prompt.logprobs.as_deref());
            let tokenizer = &reply.names.tokenizer;
            out.put_slice(b",\"prompt_logprobs\":");
            put_json(out, &entries.map(|entries| PromptLogprobs { entries, tokenizer }));
        }
        if reply.return_token_ids {
            if first {
                out.put_slice(b",\"prompt_token_ids\":");
                put_json(out, &*reply.prompts[prompt].ids);
            }
            out.put_slice(b",\"token_ids\":");
            put_json(out, &delta.token_ids);
        }
        out.put_slice(b"}]");
        pen.end(prompt, choice, delta.finish.is_some(), out);
    }
}

fn write_logprobs(
    pen: &Pen,
    prompt: usize,
    echo: bool,
    choice: &mut Choice,
    delta: &OutputDelta,
    out: &mut BytesMut,
) {
    let reply = &pen.reply;
    if !reply.wants_logprobs || (delta.logprobs.is_empty() && !echo) {
        out.put_slice(b"null");
        return;
    }
    let mut logprobs = CompletionLogprobs::starting_at(choice.next_offset);
    if echo {
        let entries = delta.prompt.as_ref().and_then(|prompt| prompt.logprobs.as_deref());
        prompt_part(&mut logprobs, &reply.prompts[prompt], entries.unwrap_or_default(), &reply.names);
    }
    delta.logprobs.iter().for_each(|entry| logprobs.push(entry, &reply.names));
    choice.next_offset = logprobs.next_offset;
    put_json(out, &logprobs);
}

fn hide_output(delta: &mut OutputDelta) {
    delta.text.clear();
    delta.token_ids.clear();
    delta.logprobs.clear();
    hide_stop(&mut delta.finish);
}
