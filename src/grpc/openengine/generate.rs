//! `Generate` of this dialect: a `GenerateRequest` becomes a request of the engine, and its news become events of
//! the prompt, of tokens and of ends.

use std::collections::VecDeque;
use std::sync::Arc;

use quire_proto::openengine::v1::candidate_token_selection::Selection;
use quire_proto::openengine::v1::generate_request::Input;
use quire_proto::openengine::v1::generate_response::Event;
use quire_proto::openengine::v1::stop_condition::Condition;
use quire_proto::openengine::v1::stop_match::Match;
use quire_proto::openengine::v1::*;
use quire_scheduler::TokenId;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::super::call::{Caller, Failure, Generation, check_rank_number, checked, tokenize};
use super::super::lora;
use super::super::status::invalid_field;
use super::super::structured;
use crate::app::App;
use crate::engine::{Finish, FinishError, FinishKind, OutputDelta, StopCause, TokenLogprobs};
use crate::text::Tokenizer;
use crate::validate::{RequestFields, SamplingFields};

const PRIORITY: &str = "openengine-priority";
const TARGET_RANK: &str = "openengine-target-dp-rank";
const ROUTING_KEY: &str = "openengine-routing-key";

/// What the metadata say about the order of requests: there, more is more urgent; here, less.
pub(super) fn priority(metadata: &MetadataMap) -> Result<i32, Status> {
    one(metadata, ROUTING_KEY)?;
    if let Some(rank) = one(metadata, TARGET_RANK)? {
        let rank = rank.parse::<u32>().map_err(|_| invalid_field(TARGET_RANK, "not a number"))?;
        check_rank_number(TARGET_RANK, rank.into())?;
    }
    let Some(priority) = one(metadata, PRIORITY)? else { return Ok(0) };
    let priority = priority.parse::<i32>().map_err(|_| invalid_field(PRIORITY, "not a number of 32 bits"))?;
    Ok(priority.saturating_neg())
}

/// A key of the contract; it may be there once.
fn one<'a>(metadata: &'a MetadataMap, key: &'static str) -> Result<Option<&'a str>, Status> {
    let mut values = metadata.get_all(key).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(invalid_field(key, "is there more than once"));
    }
    value.to_str().map(Some).map_err(|_| invalid_field(key, "not ASCII"))
}

/// Checks a request and hands it to the engine.
pub(super) async fn submit(
    app: &App,
    request: GenerateRequest,
    priority: i32,
    caller: &Caller,
) -> Result<Call, Status> {
    let adapter = lora::adapter_of(app, &request.model, &request.lora_name).await?;
    refuse_unsupported(&request)?;
    let response = request.response.unwrap_or_default();
    let shape = Shape {
        prompt: response.return_prompt_logprobs() || response.prompt_candidates.is_some(),
        prompt_logprobs: response.return_prompt_logprobs(),
        prompt_start: response.prompt_logprob_start() as usize,
        logprobs: response.return_output_logprobs(),
        candidates: response.output_candidates.is_some(),
    };
    let constraint = structured::guided(request.guided)?;
    let mut sampling =
        sampling(request.sampling.unwrap_or_default(), request.stopping.unwrap_or_default(), response)?;
    sampling.grammar = structured::compile(app, constraint).await?;
    let prompt_token_ids = match request.input {
        Some(Input::TokenIds(tokens)) => tokens.ids,
        Some(Input::Prompt(text)) => tokenize(app, text, "prompt").await?,
        None => return Err(invalid_field("input", "one of prompt and token_ids is needed")),
    };
    let kv = request.kv.unwrap_or_default();
    let fields = RequestFields {
        external_id: caller.request_id.clone(),
        prompt_token_ids,
        priority,
        bypass_prefix_cache: kv.bypass_prefix_cache(),
        cache_salt: kv.cache_salt,
        adapter,
    };
    let request = checked(app, fields, sampling, field_path)?;
    let (tokenizer, unfinished) = (app.tokenizer.clone(), request.n);
    let usage = Usage { prompt_tokens: request.prompt_token_ids.len() as u32, ..Usage::default() };
    let prompt_token_ids = request.prompt_token_ids.clone();
    Ok(Call {
        generation: caller.submit(app, request)?,
        prompt_token_ids,
        request_id: caller.request_id.clone(),
        tokenizer,
        shape,
        unfinished,
        usage,
        ready: VecDeque::new(),
        failed: false,
    })
}

/// What the client wants to see.
#[derive(Debug, Clone, Copy)]
struct Shape {
    prompt: bool,
    prompt_logprobs: bool,
    /// First position of the prompt to report.
    prompt_start: usize,
    logprobs: bool,
    candidates: bool,
}

/// One request on its way back.
pub(super) struct Call {
    generation: Generation,
    prompt_token_ids: Arc<[TokenId]>,
    request_id: String,
    tokenizer: Tokenizer,
    shape: Shape,
    unfinished: u32,
    usage: Usage,
    /// Events to send before the engine is asked again.
    ready: VecDeque<Event>,
    /// The last word has been said.
    failed: bool,
}

impl Call {
    /// The next response; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<GenerateResponse>, Status> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                let last = self.ready.is_empty() && self.unfinished == 0;
                let usage = last.then_some(self.usage);
                let request_id = self.request_id.clone();
                return Ok(Some(GenerateResponse { request_id, usage, event: Some(event) }));
            }
            if self.failed {
                return Ok(None);
            }
            let delta = match self.generation.next().await {
                Ok(Some(delta)) => delta,
                Ok(None) => return Ok(None),
                Err(Failure::Deadline) => return Err(Failure::Deadline.into()),
                Err(Failure::Engine(error)) => {
                    self.failed = true;
                    let code = match &error {
                        FinishError::OfRequest(_) => ErrorCode::InvalidArgument,
                        FinishError::OfServer(_) => ErrorCode::Internal,
                    };
                    self.ready.push_back(Event::Error(EngineError {
                        code: code.into(),
                        message: error.to_string(),
                        retryable: false,
                    }));
                    continue;
                }
            };
            let finish = delta.finish.take();
            if let Some(prompt) = delta.prompt.take() {
                let cached = self.usage.cached_prompt_tokens.unwrap_or(0);
                self.usage.cached_prompt_tokens = Some(cached.max(prompt.num_cached_tokens));
                if let Some(entries) = prompt.logprobs.filter(|_| self.shape.prompt) {
                    let ids = &self.prompt_token_ids;
                    self.ready.push_back(Event::Prompt(prompt_output(
                        ids,
                        &entries,
                        self.shape,
                        &self.tokenizer,
                    )));
                }
            }
            self.usage.completion_tokens += delta.token_ids.len() as u32;
            self.usage.total_tokens = self.usage.prompt_tokens + self.usage.completion_tokens;
            let index = delta.index;
            if !delta.token_ids.is_empty() || !delta.text.is_empty() {
                self.ready.push_back(Event::Token(token_output(delta, self.shape, &self.tokenizer)));
            }
            if let Some(finish) = finish {
                self.unfinished -= 1;
                self.ready.push_back(Event::Finished(finished(index, &finish)));
            }
        }
    }
}

/// Refuses what Quire does not do, by the name of the field.
fn refuse_unsupported(request: &GenerateRequest) -> Result<(), Status> {
    let response = request.response.as_ref();
    let by_ids = |candidates: Option<&CandidateTokenSelection>| {
        matches!(candidates.and_then(|c| c.selection.as_ref()), Some(Selection::TokenIds(_)))
    };
    const NO_CANDIDATES_BY_ID: &str = "candidates by token id are not supported";
    let refusals = [
        ("media", !request.media.is_empty(), "this model takes text only"),
        (
            "kv.session",
            request.kv.as_ref().is_some_and(|kv| kv.session.is_some()),
            "KV transfer is not supported",
        ),
        (
            "response.prompt_candidates.token_ids",
            by_ids(response.and_then(|r| r.prompt_candidates.as_ref())),
            NO_CANDIDATES_BY_ID,
        ),
        (
            "response.output_candidates.token_ids",
            by_ids(response.and_then(|r| r.output_candidates.as_ref())),
            NO_CANDIDATES_BY_ID,
        ),
    ];
    match refusals.into_iter().find(|&(_, present, _)| present) {
        Some((path, _, reason)) => Err(invalid_field(path, reason)),
        None => Ok(()),
    }
}

fn sampling(
    sampling: SamplingParams,
    mut stopping: StoppingOptions,
    mut response: ResponseOptions,
) -> Result<SamplingFields, Status> {
    let (mut stop, mut stop_token_ids) = (Vec::new(), Vec::new());
    for StopCondition { condition } in std::mem::take(&mut stopping.conditions) {
        match condition {
            Some(Condition::StopText(text)) => stop.push(text),
            Some(Condition::StopTokenId(id)) => stop_token_ids.push(id.into()),
            None => return Err(invalid_field("stopping.conditions", "a condition is empty")),
        }
    }
    let seed = sampling.seed.map(|seed| seed as i64);
    // -1 would mean that there is none.
    if seed == Some(-1) {
        return Err(invalid_field("sampling.seed", "must be less than 2^64 - 1"));
    }
    Ok(SamplingFields {
        n: sampling.num_sequences.map(i64::from),
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        top_k: sampling.top_k.map(i64::from),
        min_p: sampling.min_p,
        presence_penalty: sampling.presence_penalty,
        frequency_penalty: sampling.frequency_penalty,
        repetition_penalty: sampling.repetition_penalty,
        seed,
        max_tokens: stopping.max_tokens.map(i64::from),
        max_tokens_param: "stopping.max_tokens",
        min_tokens: stopping.min_tokens.map(i64::from),
        ignore_eos: stopping.ignore_eos(),
        include_stop_str_in_output: stopping.include_stop_in_output(),
        stop,
        stop_token_ids,
        logprobs: num_logprobs(
            "response.output_candidates",
            response.return_output_logprobs(),
            response.output_candidates.take(),
        )?,
        logprobs_param: "response.output_candidates",
        prompt_logprobs: num_logprobs(
            "response.prompt_candidates",
            response.return_prompt_logprobs(),
            response.prompt_candidates.take(),
        )?,
        ..SamplingFields::default()
    })
}

/// The engine's `logprobs`: none, that of the token itself (0), or that of the best as well (-1 = all).
fn num_logprobs(
    path: &str,
    own: bool,
    candidates: Option<CandidateTokenSelection>,
) -> Result<Option<i64>, Status> {
    match candidates.map(|candidates| candidates.selection) {
        None => Ok(own.then_some(0)),
        Some(Some(Selection::TopN(n))) => Ok(Some(n.into())),
        Some(Some(Selection::All(AllCandidates {}))) => Ok(Some(-1)),
        Some(Some(Selection::TokenIds(_)) | None) => {
            Err(invalid_field(path, "one of top_n and all is needed"))
        }
    }
}

/// Where [`crate::validate`]'s names are in this dialect.
fn field_path(param: &str) -> &str {
    match param {
        "n" => "sampling.num_sequences",
        "temperature" => "sampling.temperature",
        "top_k" => "sampling.top_k",
        "top_p" => "sampling.top_p",
        "min_p" => "sampling.min_p",
        "presence_penalty" => "sampling.presence_penalty",
        "frequency_penalty" => "sampling.frequency_penalty",
        "repetition_penalty" => "sampling.repetition_penalty",
        "min_tokens" => "stopping.min_tokens",
        "stop" | "stop_token_ids" => "stopping.conditions",
        "prompt_logprobs" => "response.prompt_candidates",
        "cache_salt" => "kv.cache_salt",
        "prompt" | "input_tokens" => "input",
        path => path,
    }
}

fn prompt_output(
    ids: &[TokenId],
    entries: &[Option<TokenLogprobs>],
    shape: Shape,
    tokenizer: &Tokenizer,
) -> PromptOutput {
    let info = |(&id, entry): (&TokenId, &Option<TokenLogprobs>)| {
        token_info(id, entry.as_ref(), shape.prompt_logprobs, shape.prompt, tokenizer)
    };
    PromptOutput { tokens: ids.iter().zip(entries).skip(shape.prompt_start).map(info).collect() }
}

fn token_output(delta: &mut OutputDelta, shape: Shape, tokenizer: &Tokenizer) -> TokenOutput {
    let info = |(at, &id): (usize, &TokenId)| {
        token_info(id, delta.logprobs.get(at), shape.logprobs, shape.candidates, tokenizer)
    };
    TokenOutput {
        output_index: Some(delta.index),
        tokens: delta.token_ids.iter().enumerate().map(info).collect(),
        text: std::mem::take(&mut delta.text),
    }
}

fn token_info(
    token_id: TokenId,
    entry: Option<&TokenLogprobs>,
    logprobs: bool,
    candidates: bool,
    tokenizer: &Tokenizer,
) -> TokenInfo {
    let own = entry.filter(|_| logprobs);
    // The best are in order, so that the place is the rank.
    let candidate = |(rank, &(token_id, logprob)): (u32, &(TokenId, f32))| LogProb {
        token_id,
        logprob: logprob.into(),
        token: tokenizer.token_text(token_id),
        rank: Some(rank),
    };
    TokenInfo {
        token_id,
        token: tokenizer.token_text(token_id),
        logprob: own.map(|entry| entry.logprob.into()),
        rank: own.map(|entry| entry.rank),
        candidates: entry
            .filter(|_| candidates)
            .map_or_else(Vec::new, |entry| (1..).zip(&entry.top).map(candidate).collect()),
    }
}

fn finished(index: u32, finish: &Finish) -> GenerationFinished {
    let (reason, message) = match finish.kind {
        FinishKind::Stop | FinishKind::Repetition => (FinishReason::Stop, ""),
        FinishKind::Length => (FinishReason::Length, ""),
        // An error ends the request with an EngineError, and does not come here.
        FinishKind::Abort | FinishKind::Error => {
            (FinishReason::Cancelled, "aborted by an operator or the server")
        }
    };
    let stop_match = finish.stop.as_ref().map(|cause| match cause {
        StopCause::Eos(id) => Match::EosTokenId(*id),
        StopCause::Token(id) => Match::StopTokenId(*id),
        StopCause::Text(text) => Match::StopText(text.to_string()),
    });
    GenerationFinished {
        output_index: Some(index),
        reason: reason.into(),
        message: message.into(),
        stop_match: stop_match.map(|found| StopMatch { r#match: Some(found) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_ranked_by_their_place() {
        let tokenizer = Tokenizer::from_bytes(crate::demo::TOKENIZER, None).unwrap();
        let entry = TokenLogprobs { token: 300, logprob: -2.0, rank: 7, top: vec![(301, -0.5), (302, -1.0)] };
        let info = token_info(300, Some(&entry), true, true, &tokenizer);
        assert_eq!((info.logprob, info.rank), (Some(-2.0), Some(7)));
        let candidates: Vec<_> = info.candidates.iter().map(|c| (c.token_id, c.logprob, c.rank)).collect();
        assert_eq!(candidates, [(301, -0.5, Some(1)), (302, -1.0, Some(2))]);
        let bare = token_info(300, Some(&entry), false, false, &tokenizer);
        assert_eq!((bare.logprob, bare.rank, bare.candidates.len()), (None, None, 0));
    }
}
