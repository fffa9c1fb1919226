//! The way back: an [`OutputStream`] carries what the output thread produced to one client.
//!
//! Its mailbox holds at most one delta a sequence. If the client reads slower than the engine writes,
//! deltas grow together (bounded by `max_tokens`) and nobody waits for anybody. A client that goes away
//! drops the stream, which aborts what is unfinished.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use quire_scheduler::{RequestId, TokenId};

use super::handle::Abort;

/// News of one sequence since the last delta of it.
#[derive(Debug, Default)]
pub struct OutputDelta {
    /// Which of the `n` sequences.
    pub index: u32,
    /// Set on the first delta of a sequence.
    pub prompt: Option<PromptOutput>,
    /// New text. May lag behind the tokens: half characters and possible stop strings are held back.
    pub text: String,
    /// New tokens, a final stop token included.
    pub token_ids: Vec<TokenId>,
    /// One a token of `token_ids` if asked for, else empty.
    pub logprobs: Vec<TokenLogprobs>,
    /// The prompt as one vector, before normalisation: with the end of a pooled request.
    pub embedding: Option<Vec<f32>>,
    /// Set on the last delta of a sequence.
    pub finish: Option<Finish>,
}

/// What is known of the prompt once it has been computed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PromptOutput {
    /// Prompt tokens taken from the prefix cache.
    pub num_cached_tokens: u32,
    /// If asked for (sequence 0 only): one entry a prompt token, `None` for the first.
    pub logprobs: Option<Vec<Option<TokenLogprobs>>>,
}

/// Log-probability of one token, and of the best alternatives.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token.
    pub token: TokenId,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// 1 = the most likely.
    pub rank: u32,
    /// Best first; as many as asked for.
    pub top: Vec<(TokenId, f32)>,
}

/// How a sequence ended, as the client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finish {
    /// The kind of end.
    pub kind: FinishKind,
    /// What stopped it, if `kind` is `Stop`.
    pub stop: Option<StopCause>,
    /// What went wrong, if `kind` is `Error`.
    pub error: Option<FinishError>,
    /// Tokens generated, a final stop token included.
    pub num_output_tokens: u32,
    /// When it got where.
    pub timings: Timings,
}

/// When a sequence got where, since its request arrived; `None` if it never did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Into a step for the first time.
    pub scheduled: Option<Duration>,
    /// To its first token.
    pub first_token: Option<Duration>,
    /// To its last token.
    pub last_token: Option<Duration>,
}

/// What went wrong: a sentence for the client, and whose doing it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FinishError {
    /// The request rules out itself what could come next; sent again, it ends in the same way.
    #[error("{0}")]
    OfRequest(Arc<str>),
    /// Something failed here.
    #[error("{0}")]
    OfServer(Arc<str>),
}

/// vLLM's finish reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishKind {
    /// An end token, a stop token or a stop string; for a pooled request, its prompt is computed.
    Stop,
    /// `max_tokens` or the context length.
    Length,
    /// The server or an operator ended it.
    Abort,
    /// The request failed.
    Error,
    /// The same tokens came again and again (`repetition_detection`).
    Repetition,
}

impl FinishKind {
    /// The word used in JSON and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
            Self::Repetition => "repetition",
        }
    }
}

/// What ended a sequence with [`FinishKind::Stop`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopCause {
    /// The model's own end token.
    Eos(TokenId),
    /// One of the request's stop tokens.
    Token(TokenId),
    /// One of the request's stop strings.
    Text(Arc<str>),
}

/// The receiving end of one request's output. Dropping it aborts what has not finished.
#[derive(Debug)]
pub struct OutputStream {
    mailbox: Arc<Mailbox>,
    abort: Abort,
    ids: Vec<RequestId>,
    unfinished: usize,
    /// Swapped with the mailbox's, so that reading allocates nothing.
    current: OutputDelta,
}

impl OutputStream {
    pub(super) fn new(mailbox: Arc<Mailbox>, abort: Abort, ids: Vec<RequestId>) -> Self {
        Self { mailbox, abort, unfinished: ids.len(), ids, current: OutputDelta::default() }
    }

    /// Waits for news of any sequence. `None` once every sequence has finished.
    ///
    /// Cancel safe: nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<&mut OutputDelta> {
        if poll_fn(|cx| self.poll_current(cx)).await { Some(&mut self.current) } else { None }
    }

    /// [`next`](Self::next) for those who are polled themselves.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<&mut OutputDelta>> {
        let more = ready!(self.poll_current(cx));
        Poll::Ready(more.then_some(&mut self.current))
    }

    /// Whether `current` now holds news; false at the end.
    fn poll_current(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.unfinished == 0 {
            return Poll::Ready(false);
        }
        clear(&mut self.current);
        if !self.mailbox.take_into(&mut self.current) {
            self.mailbox.waker.register(cx.waker());
            // The output thread may have put something there between the look and the registration.
            if !self.mailbox.take_into(&mut self.current) {
                return Poll::Pending;
            }
        }
        self.unfinished -= usize::from(self.current.finish.is_some());
        Poll::Ready(true)
    }
}

impl Drop for OutputStream {
    fn drop(&mut self) {
        self.mailbox.closed.store(true, Ordering::Relaxed);
        if self.unfinished > 0 {
            self.ids.iter().for_each(|&id| self.abort.send(id));
        }
    }
}

fn clear(delta: &mut OutputDelta) {
    delta.prompt = None;
    delta.text.clear();
    delta.token_ids.clear();
    delta.logprobs.clear();
    delta.embedding = None;
    delta.finish = None;
}

/// Where the output thread leaves deltas for one request: one place a sequence.
#[derive(Debug)]
pub(super) struct Mailbox {
    /// `n` deltas; the flag says whether there is anything in it.
    places: Mutex<Vec<(bool, OutputDelta)>>,
    waker: AtomicWaker,
    closed: AtomicBool,
}

impl Mailbox {
    pub(super) fn new(n: u32) -> Self {
        let place = |index| (false, OutputDelta { index, ..OutputDelta::default() });
        Self {
            places: Mutex::new((0..n).map(place).collect()),
            waker: AtomicWaker::new(),
            closed: AtomicBool::new(false),
        }
    }

    /// Adds news of sequence `index` by `write`, which says whether the reader is to be told of it now.
    pub(super) fn put(&self, index: u32, write: impl FnOnce(&mut OutputDelta) -> bool) {
        let mut places = self.lock();
        let (full, delta) = &mut places[index as usize];
        let is_due = write(delta);
        *full |= is_due;
        drop(places);
        if is_due {
            self.waker.wake();
        }
    }

    /// Whether the reader has gone.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    fn take_into(&self, out: &mut OutputDelta) -> bool {
        let mut places = self.lock();
        let Some((full, delta)) = places.iter_mut().find(|(full, _)| *full) else { return false };
        *full = false;
        out.index = delta.index;
        std::mem::swap(out, delta);
        true
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(bool, OutputDelta)>> {
        // A panic while writing leaves at worst a delta that was half extended; the sequence is then
        // ended with an error by the output thread, so going on is right.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
