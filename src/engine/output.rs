//! The output thread: turns each step's tokens into text and leaves it in the clients' mailboxes.
//!
//! It owns everything about a sequence that is not scheduling: incremental detokenisation, stop strings,
//! log-probabilities, timings for the metrics, and the promise that each sequence ends exactly once for
//! its client. A panic while working for one sequence ends that sequence alone.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use quire_scheduler::{
    FinishReason, RequestId, RequestUpdate, SamplingParams, StepOutputs, TokenId, TokenLogprob,
};

use super::handle::{Abort, Admission, ExternalIds};
use super::kv_events::KvEvents;
use super::request::TextOptions;
use super::stream::{
    Finish, FinishError, FinishKind, Mailbox, PromptOutput, StopCause, Timings, TokenLogprobs,
};
use crate::metrics::{FinishedSequence, Metrics};
use crate::text::{Detokenizer, StopMatcher, Tokenizer};

/// What the output thread is told.
#[derive(Debug)]
pub(super) enum OutputMessage {
    /// A sequence is about to enter the engine.
    Begin(Box<SequenceOutput>),
    /// What a step produced.
    Step(Box<StepOutputs>),
    /// The engine thread has ended: nothing will come of what has not finished.
    EngineGone(Arc<str>),
}

/// One sequence as its client will see it.
#[derive(Debug)]
pub(super) struct SequenceOutput {
    id: RequestId,
    index: u32,
    external_id: Arc<str>,
    prompt_token_ids: Arc<[TokenId]>,
    sampling: Arc<SamplingParams>,
    options: Arc<TextOptions>,
    n: u32,
    /// Name of its adapter.
    adapter: Option<Arc<str>>,
    mailbox: Arc<Mailbox>,
    text: Option<Text>,
    prompt: PromptOutput,
    prompt_sent: bool,
    num_output_tokens: u32,
    num_preemptions: u32,
    arrived: Instant,
    scheduled: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

#[derive(Debug)]
struct Text {
    detokenizer: Detokenizer,
    stop: StopMatcher,
    /// What the detokenizer gave and the stop matcher has not seen.
    fresh: String,
}

impl SequenceOutput {
    #[allow(clippy::too_many_arguments, reason = "one caller, which has exactly these")]
    pub(super) fn new(
        id: RequestId,
        index: u32,
        external_id: Arc<str>,
        prompt_token_ids: Arc<[TokenId]>,
        sampling: Arc<SamplingParams>,
        options: Arc<TextOptions>,
        n: u32,
        adapter: Option<Arc<str>>,
        mailbox: Arc<Mailbox>,
    ) -> Self {
        let prompt_logprobs = sampling.prompt_logprobs.map(|_| vec![None]);
        Self {
            id,
            index,
            external_id,
            prompt_token_ids,
            sampling,
            options,
            n,
            adapter,
            mailbox,
            text: None,
            prompt: PromptOutput { num_cached_tokens: 0, logprobs: prompt_logprobs },
            prompt_sent: false,
            num_output_tokens: 0,
            num_preemptions: 0,
            arrived: Instant::now(),
            scheduled: None,
            first_token: None,
            last_token: None,
        }
    }
}

/// Who is told of a sequence's end before its client is.
pub(super) struct Ledger {
    pub(super) metrics: Arc<Metrics>,
    pub(super) admission: Arc<Admission>,
    pub(super) external: Arc<ExternalIds>,
    pub(super) log_requests: bool,
}

/// The thread's state.
pub(super) struct OutputThread {
    pub(super) tokenizer: Tokenizer,
    pub(super) ledger: Ledger,
    pub(super) abort: Abort,
    /// Zero of the engine's clock.
    pub(super) epoch: Instant,
    /// One goes back to the engine thread for each step worked off.
    pub(super) credits: Sender<()>,
    pub(super) kv_events: Option<Arc<KvEvents>>,
    pub(super) sequences: Sequences,
}

/// The sequences that have not ended, by id.
pub(super) type Sequences = HashMap<RequestId, Box<SequenceOutput>, BuildHasherDefault<IdHasher>>;

/// Ids count up from 1: one multiplication spreads them well enough (Knuth's multiplicative hashing).
#[derive(Debug, Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a RequestId is one u64");
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = id.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

impl OutputThread {
    /// Runs until every sender is gone.
    pub(super) fn run(mut self, messages: &Receiver<OutputMessage>) {
        let mut gone: Option<Arc<str>> = None;
        for message in messages {
            match message {
                OutputMessage::Begin(sequence) => self.begin(sequence),
                OutputMessage::Step(mut step) => {
                    if let Some(kv_events) = self.kv_events.as_ref().filter(|_| !step.kv_events.is_empty()) {
                        kv_events.publish(std::mem::take(&mut step.kv_events));
                    }
                    self.step(&step);
                    // The engine may be gone; then nobody waits for it.
                    let _ = self.credits.send(());
                }
                OutputMessage::EngineGone(reason) => gone = Some(reason),
            }
            if let Some(reason) = &gone {
                self.end_all(reason);
            }
        }
    }

    fn begin(&mut self, mut sequence: Box<SequenceOutput>) {
        if let Some(adapter) = &sequence.adapter {
            self.ledger.metrics.on_adapter_begin(adapter);
        }
        if sequence.options.detokenize {
            let o = &sequence.options;
            let detokenizer = Detokenizer::new(
                &self.tokenizer,
                &sequence.prompt_token_ids,
                o.skip_special_tokens,
                o.spaces_between_special_tokens,
            )
            .keeping(o.kept_special_tokens.clone());
            let stop = StopMatcher::new(&o.stop, o.include_stop_str_in_output);
            sequence.text = Some(Text { detokenizer, stop, fresh: String::new() });
        }
        self.sequences.insert(sequence.id, sequence);
    }

    fn step(&mut self, step: &StepOutputs) {
        let now = Instant::now();
        // Before any client hears of the step, so that whoever looks then finds it counted.
        if step.stats.num_scheduled_tokens > 0 {
            let is_first = |update: &&RequestUpdate| {
                let sequence = self.sequences.get(&update.id);
                !update.tokens.is_empty() && sequence.is_some_and(|sequence| sequence.first_token.is_none())
            };
            let num_first_tokens = step.updates.iter().filter(is_first).count() as u32;
            self.ledger.metrics.on_step(step.stats.num_scheduled_tokens, num_first_tokens);
        }
        for preemption in &step.preemptions {
            self.ledger.metrics.on_preemption(preemption);
            if let Some(sequence) = self.sequences.get_mut(&preemption.id) {
                sequence.num_preemptions = preemption.times;
                tracing::info!(
                    request_id = &*sequence.external_id,
                    tokens_dropped = preemption.num_computed_tokens,
                    times = preemption.times,
                    "preempted: the KV cache is full"
                );
            }
        }
        for update in &step.updates {
            // Unknown: the client has been told of an end already (a stop string matched).
            let Some(sequence) = self.sequences.get_mut(&update.id) else { continue };
            if let Some(first) = update.first_scheduled {
                sequence.scheduled = Some(self.epoch + Duration::from_micros(first.at_us));
            }
            let ledger = &self.ledger;
            let applied = catch_unwind(AssertUnwindSafe(|| sequence.apply(update, step, now, ledger)));
            let ended = applied.unwrap_or_else(|_| {
                let reason = "internal error while turning this request's tokens into text";
                let finish = sequence.fail(FinishError::OfServer(reason.into()));
                sequence.finish(finish, now, ledger);
                true
            });
            if ended {
                if update.finish.is_none() {
                    self.abort.send(update.id);
                }
                self.sequences.remove(&update.id);
            }
        }
    }

    fn end_all(&mut self, reason: &Arc<str>) {
        let now = Instant::now();
        for (_, sequence) in self.sequences.drain() {
            let finish = sequence.fail(FinishError::OfServer(reason.clone()));
            sequence.finish(finish, now, &self.ledger);
        }
    }
}

impl Ledger {
    /// Counts and logs the end, and gives the sequence's place to the next.
    fn close(&self, s: &SequenceOutput, finish: &Finish, now: Instant) {
        let since = |t: Instant| t.duration_since(s.arrived).as_secs_f64();
        let finished = FinishedSequence {
            reason: finish.kind,
            num_prompt_tokens: s.prompt_token_ids.len() as u32,
            num_cached_tokens: s.prompt.num_cached_tokens,
            num_output_tokens: s.num_output_tokens,
            max_tokens: s.sampling.max_tokens,
            index: s.index,
            n: s.n,
            num_preemptions: s.num_preemptions,
            scheduled_s: s.scheduled.map(since),
            first_token_s: s.first_token.map(since),
            last_token_s: s.last_token.map(since),
            finished_s: since(now),
        };
        self.metrics.on_finish(&finished);
        if let Some(adapter) = &s.adapter {
            self.metrics.on_adapter_end(adapter, s.scheduled.is_some());
        }
        if self.log_requests || finish.kind == FinishKind::Error {
            tracing::info!(
                request_id = &*s.external_id,
                reason = finish.kind.as_str(),
                error = finish.error.as_ref().map(tracing::field::display),
                prompt_tokens = finished.num_prompt_tokens,
                cached_tokens = finished.num_cached_tokens,
                output_tokens = finished.num_output_tokens,
                ttft_s = finished.first_token_s,
                total_s = finished.finished_s,
                "request ended"
            );
        }
        self.external.remove(&s.external_id, s.id);
        self.admission.release();
    }
}

impl SequenceOutput {
    /// Takes in one update; says whether the sequence has ended with it.
    fn apply(&mut self, update: &RequestUpdate, step: &StepOutputs, now: Instant, ledger: &Ledger) -> bool {
        if let Some(first) = update.first_scheduled {
            self.prompt.num_cached_tokens = first.num_cached_tokens;
            self.adapter.iter().for_each(|adapter| ledger.metrics.on_adapter_schedule(adapter));
            ledger.metrics.on_prompt(self.prompt_token_ids.len() as u32, first.num_cached_tokens);
        }
        let tokens = &step.tokens[update.tokens.start as usize..update.tokens.end as usize];
        let logprobs = &step.logprobs[update.logprobs.start as usize..update.logprobs.end as usize];
        let generated = self.take_prompt_logprobs(logprobs, &step.top);
        self.time_tokens(tokens.len(), now, &ledger.metrics);
        if self.mailbox.is_closed() {
            // Nobody reads; the engine has been told, and its last word is on the way.
            self.num_output_tokens += tokens.len() as u32;
            let finish = update.finish.as_ref().map(|reason| self.end_for(reason));
            return finish.map(|finish| self.finish(finish, now, ledger)).is_some();
        }
        if tokens.is_empty() && update.finish.is_none() {
            return false;
        }
        let mailbox = self.mailbox.clone();
        let mut ended = false;
        mailbox.put(self.index, |delta| {
            let first = !std::mem::replace(&mut self.prompt_sent, true);
            if first {
                delta.prompt = Some(std::mem::take(&mut self.prompt));
                // Counted again at the end.
                self.prompt.num_cached_tokens = delta.prompt.as_ref().map_or(0, |p| p.num_cached_tokens);
            }
            let (mut used, mut finish) = (0, None);
            for (i, &token) in tokens.iter().enumerate() {
                used = i + 1;
                self.num_output_tokens += 1;
                let last = used == tokens.len();
                let stops =
                    last && matches!(update.finish, Some(FinishReason::Eos(_) | FinishReason::StopToken(_)));
                if let Some(stop) = self.push_token(token, stops, &mut delta.text) {
                    finish = Some(self.end(FinishKind::Stop, Some(stop)));
                    break;
                }
            }
            delta.token_ids.extend_from_slice(&tokens[..used]);
            let wanted = generated.iter().take(used);
            delta.logprobs.extend(wanted.map(|entry| token_logprobs(entry, &step.top)));
            if let (None, Some(reason)) = (&finish, &update.finish) {
                self.flush(&mut delta.text);
                finish = Some(self.end_for(reason));
            }
            if !update.pooled.is_empty() {
                let vector = update.pooled.start as usize..update.pooled.end as usize;
                delta.embedding = Some(step.pooled[vector].to_vec());
            }
            // In one piece with the last token, so that no client sees an end without news.
            if let Some(finish) = finish {
                ledger.close(self, &finish, now);
                delta.finish = Some(finish);
                ended = true;
            }
            first || ended || delta.token_ids.len() >= self.options.interval as usize
        });
        ended
    }

    /// Ends the sequence without news. Whoever hears of the end finds the place free: the ledger is first.
    fn finish(&self, finish: Finish, now: Instant, ledger: &Ledger) {
        ledger.close(self, &finish, now);
        self.mailbox.put(self.index, |delta| {
            delta.finish = Some(finish);
            true
        });
    }

    /// Detokenises one token; gives the stop string if it completed one. The text of a token that ended
    /// the sequence is left out unless the client wants it (vLLM's rule).
    fn push_token(&mut self, token: TokenId, stops: bool, out: &mut String) -> Option<StopCause> {
        let text = self.text.as_mut()?;
        if stops && !self.options.include_stop_str_in_output {
            return None;
        }
        text.fresh.clear();
        text.detokenizer.push(token, &mut text.fresh);
        if self.num_output_tokens <= self.sampling.min_tokens {
            text.stop.pass(&text.fresh, out);
            return None;
        }
        let matched = text.stop.push(&text.fresh, out)?;
        Some(StopCause::Text(self.options.stop[matched].as_str().into()))
    }

    /// Lets out what was held back, at the end of the sequence.
    fn flush(&mut self, out: &mut String) {
        if let Some(text) = &mut self.text {
            text.fresh.clear();
            text.detokenizer.finish(&mut text.fresh);
            text.stop.pass(&text.fresh, out);
            text.stop.finish(out);
        }
    }

    /// Keeps the entries about the prompt and gives back the rest.
    fn take_prompt_logprobs<'a>(
        &mut self,
        entries: &'a [TokenLogprob],
        top: &[(TokenId, f32)],
    ) -> &'a [TokenLogprob] {
        let prompt_len = self.prompt_token_ids.len() as u32;
        let split = entries.partition_point(|entry| entry.position < prompt_len);
        if let Some(kept) = &mut self.prompt.logprobs {
            kept.extend(entries[..split].iter().map(|entry| Some(token_logprobs(entry, top))));
        }
        &entries[split..]
    }

    fn time_tokens(&mut self, num_tokens: usize, now: Instant, metrics: &Metrics) {
        if num_tokens == 0 {
            return;
        }
        if self.first_token.is_none() {
            self.first_token = Some(now);
            metrics.on_first_token(now.duration_since(self.arrived).as_secs_f64());
        }
        let gap = self.last_token.map(|last| now.duration_since(last).as_secs_f64());
        metrics.on_tokens(num_tokens, gap);
        self.last_token = Some(now);
    }

    fn end_for(&self, reason: &FinishReason) -> Finish {
        match reason {
            FinishReason::Eos(id) => self.end(FinishKind::Stop, Some(StopCause::Eos(*id))),
            FinishReason::StopToken(id) => self.end(FinishKind::Stop, Some(StopCause::Token(*id))),
            FinishReason::Length => self.end(FinishKind::Length, None),
            FinishReason::Repetition => self.end(FinishKind::Repetition, None),
            FinishReason::Pooled => self.end(FinishKind::Stop, None),
            FinishReason::Abort => self.end(FinishKind::Abort, None),
            FinishReason::Impossible(why) => self.fail(FinishError::OfRequest(why.clone())),
            FinishReason::Error(why) => self.fail(FinishError::OfServer(why.clone())),
        }
    }

    fn end(&self, kind: FinishKind, stop: Option<StopCause>) -> Finish {
        let since = |t: Instant| t.duration_since(self.arrived);
        let timings = Timings {
            scheduled: self.scheduled.map(since),
            first_token: self.first_token.map(since),
            last_token: self.last_token.map(since),
        };
        Finish { kind, stop, error: None, num_output_tokens: self.num_output_tokens, timings }
    }

    fn fail(&self, error: FinishError) -> Finish {
        Finish { error: Some(error), ..self.end(FinishKind::Error, None) }
    }
}

fn token_logprobs(entry: &TokenLogprob, top: &[(TokenId, f32)]) -> TokenLogprobs {
    TokenLogprobs {
        token: entry.token,
        logprob: entry.logprob,
        rank: entry.rank,
        top: top[entry.top.start as usize..entry.top.end as usize].to_vec(),
    }
}
