//! [`ChatStream`]: an [`OutputStream`] whose text is read by a [`ChatParser`].

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use super::delta::ChatDelta;
use super::parser::{ChatParser, Reading};
use crate::engine::{Finish, OutputDelta, OutputStream};

/// The receiving end of one chat request. Dropping it aborts what has not finished.
#[derive(Debug)]
pub struct ChatStream {
    output: OutputStream,
    /// One an answer.
    readings: Vec<Reading>,
    current: ChatDelta,
    /// There is more to tell of the answer that `current` is about, before anything new.
    untold: bool,
    /// How that answer has ended, told with the last of it.
    finish: Option<Finish>,
}

impl ChatStream {
    /// Reads the `n` answers of `output`.
    pub fn new(output: OutputStream, n: u32, parser: &ChatParser) -> Self {
        let readings = (0..n).map(|_| parser.start()).collect();
        Self { output, readings, current: ChatDelta::default(), untold: false, finish: None }
    }

    /// Waits for news of any answer. `None` once every answer has finished.
    ///
    /// Cancel safe: nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<&mut ChatDelta> {
        if poll_fn(|cx| self.poll_current(cx)).await { Some(&mut self.current) } else { None }
    }

    /// [`next`](Self::next) for those who are polled themselves.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<&mut ChatDelta>> {
        let more = ready!(self.poll_current(cx));
        Poll::Ready(more.then_some(&mut self.current))
    }

    fn poll_current(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.untold {
            self.tell_more();
            return Poll::Ready(true);
        }
        let Some(delta) = ready!(self.output.poll_next(cx)) else { return Poll::Ready(false) };
        let reading = &mut self.readings[delta.index as usize];
        let last = delta.finish.is_some();
        reading.push(&delta.text, &delta.token_ids, last);
        translate(delta, &mut self.current);
        self.untold = !reading.tell(&mut self.current);
        if self.untold {
            self.finish = self.current.finish.take();
        }
        Poll::Ready(true)
    }

    /// More of what has come with the last tokens.
    fn tell_more(&mut self) {
        let delta = &mut self.current;
        *delta = ChatDelta { index: delta.index, ..ChatDelta::default() };
        self.untold = !self.readings[delta.index as usize].tell(delta);
        if !self.untold {
            delta.finish = self.finish.take();
        }
    }
}

/// All but the text. Swaps instead of copying: both deltas are written again and again.
fn translate(from: &mut OutputDelta, to: &mut ChatDelta) {
    to.index = from.index;
    to.prompt = from.prompt.take();
    to.reasoning.clear();
    to.content.clear();
    to.tool_calls.clear();
    std::mem::swap(&mut to.token_ids, &mut from.token_ids);
    std::mem::swap(&mut to.logprobs, &mut from.logprobs);
    to.finish = from.finish.take();
}
