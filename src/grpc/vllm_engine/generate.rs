//! `Generate` of this dialect: a `GenerateRequest` becomes a request of the engine, its news become chunks, and
//! each sequence ends with one `GenerateComplete`.

use std::collections::VecDeque;
use std::sync::Arc;

use quire_proto::vllm::grpc::engine::generate_complete::MatchedStop;
use quire_proto::vllm::grpc::engine::generate_request::Input;
use quire_proto::vllm::grpc::engine::generate_response::Response;
use quire_proto::vllm::grpc::engine::*;
use quire_scheduler::TokenId;
use tonic::Status;

use super::super::call::{Caller, Generation, check_rank_number, checked, tokenize, truncate};
use super::super::status::invalid_field;
use super::super::structured;
use crate::app::App;
use crate::engine::{Finish, PromptOutput, StopCause, TokenLogprobs};
use crate::validate::{RequestFields, SamplingFields};

/// Checks a request and hands it to the engine.
pub(super) async fn submit(app: &App, request: GenerateRequest, caller: &Caller) -> Result<Call, Status> {
    refuse_unsupported(&request)?;
    let mut params = request.sampling_params.unwrap_or_default();
    let constraint = structured::engine_constraint(params.constraint.take())?;
    let grammar = structured::compile(app, constraint).await?;
    let mut prompt_token_ids = match request.input {
        Some(Input::Tokenized(tokenized)) => tokenized.input_ids,
        Some(Input::Text(text)) => tokenize(app, text, "text").await?,
        None => return Err(invalid_field("input", "one of tokenized and text is needed")),
    };
    match params.truncate_prompt_tokens {
        None => (),
        Some(-1) => truncate(&mut prompt_token_ids, app.limits.max_model_len as usize - 1),
        Some(keep @ 1..) => truncate(&mut prompt_token_ids, keep as usize),
        Some(keep) => {
            let message = format!("must be at least 1, or -1 for as many as the model takes, got {keep}");
            return Err(invalid_field("sampling_params.truncate_prompt_tokens", &message));
        }
    }
    let external_id = caller.request_id.clone();
    let fields = RequestFields { external_id, prompt_token_ids, ..RequestFields::default() };
    let streams = request.stream;
    let request = checked(app, fields, SamplingFields { grammar, ..sampling(params) }, field_path)?;
    let sequence = |index| GenerateComplete {
        prompt_tokens: request.prompt_token_ids.len() as u32,
        index,
        ..GenerateComplete::default()
    };
    let sequences = (0..request.n).map(sequence).collect();
    let prompt_token_ids = request.prompt_token_ids.clone();
    let generation = caller.submit(app, request)?;
    Ok(Call { generation, prompt_token_ids, streams, sequences, ready: VecDeque::new() })
}

/// One request on its way back.
pub(super) struct Call {
    generation: Generation,
    prompt_token_ids: Arc<[TokenId]>,
    streams: bool,
    /// What is known of each sequence; sent when it has ended.
    sequences: Vec<GenerateComplete>,
    /// Messages to send before the engine is asked again.
    ready: VecDeque<Response>,
}

impl Call {
    /// The next message; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<GenerateResponse>, Status> {
        loop {
            if let Some(response) = self.ready.pop_front() {
                return Ok(Some(GenerateResponse { response: Some(response) }));
            }
            let Some(delta) = self.generation.next().await? else { return Ok(None) };
            let sequence = &mut self.sequences[delta.index as usize];
            let prompt = delta.prompt.take();
            sequence.cached_tokens = prompt.as_ref().map_or(sequence.cached_tokens, |p| p.num_cached_tokens);
            let input_logprobs = prompt.and_then(|prompt| input_logprobs(&self.prompt_token_ids, &prompt));
            let output_logprobs = output_logprobs(&delta.logprobs);
            sequence.completion_tokens += delta.token_ids.len() as u32;
            sequence.output_ids.extend_from_slice(&delta.token_ids);
            let finish = delta.finish.take();
            if self.streams {
                let chunk = GenerateStreamChunk {
                    completion_tokens: delta.token_ids.len() as u32,
                    token_ids: std::mem::take(&mut delta.token_ids),
                    prompt_tokens: sequence.prompt_tokens,
                    cached_tokens: sequence.cached_tokens,
                    output_logprobs,
                    input_logprobs,
                    index: sequence.index,
                };
                self.ready.push_back(Response::Chunk(chunk));
            } else {
                sequence.input_logprobs = input_logprobs.or(sequence.input_logprobs.take());
                append(&mut sequence.output_logprobs, output_logprobs);
            }
            if let Some(finish) = finish {
                let sequence = std::mem::take(sequence);
                self.ready.push_back(Response::Complete(complete(sequence, &finish)));
            }
        }
    }
}

/// Refuses what Quire does not do, by the name of the field.
fn refuse_unsupported(request: &GenerateRequest) -> Result<(), Status> {
    if let Some(rank) = request.data_parallel_rank {
        check_rank_number("data_parallel_rank", rank.into())?;
    }
    let refusals = [
        ("mm_inputs", request.mm_inputs.is_some(), TEXT_ONLY),
        ("extra_mm_inputs", !request.extra_mm_inputs.is_empty(), TEXT_ONLY),
        ("media_refs", request.media_refs.is_some(), TEXT_ONLY),
        ("kv_transfer_params", request.kv_transfer_params.is_some(), NO_TRANSFER),
        ("kv_transfer_params_json", request.kv_transfer_params_json.is_some(), NO_TRANSFER),
    ];
    match refusals.into_iter().find(|&(_, present, _)| present) {
        Some((path, _, reason)) => Err(invalid_field(path, reason)),
        None => Ok(()),
    }
}

const TEXT_ONLY: &str = "this model takes text only";
const NO_TRANSFER: &str = "KV transfer is not supported";

/// The sampling fields. The model's own defaults are not filled in: the gateway has been told of them by
/// `GetModelInfo`, and cannot say 0 otherwise.
fn sampling(params: SamplingParams) -> SamplingFields {
    let or_one = |value: f32| Some(if value == 0.0 { 1.0 } else { value.into() });
    SamplingFields {
        n: Some(params.n.max(1).into()),
        temperature: Some(params.temperature.map_or(1.0, f64::from)),
        top_p: or_one(params.top_p),
        top_k: Some(params.top_k.into()),
        min_p: Some(params.min_p.into()),
        presence_penalty: Some(params.presence_penalty.into()),
        frequency_penalty: Some(params.frequency_penalty.into()),
        repetition_penalty: or_one(params.repetition_penalty),
        seed: params.seed.map(i64::from),
        max_tokens: params.max_tokens.map(i64::from),
        max_tokens_param: "sampling_params.max_tokens",
        min_tokens: Some(params.min_tokens.into()),
        ignore_eos: params.ignore_eos,
        // Text is made only to look for these.
        detokenize: Some(!params.stop.is_empty()),
        stop: params.stop,
        stop_token_ids: params.stop_token_ids.into_iter().map(i64::from).collect(),
        include_stop_str_in_output: params.include_stop_str_in_output,
        logit_bias: params.logit_bias.into_iter().map(|(id, bias)| (id.into(), bias.into())).collect(),
        logprobs: params.logprobs.map(i64::from),
        logprobs_param: "sampling_params.logprobs",
        prompt_logprobs: params.prompt_logprobs.map(i64::from),
        kept_special_tokens: [].into(),
        skip_special_tokens: Some(params.skip_special_tokens),
        spaces_between_special_tokens: Some(params.spaces_between_special_tokens),
        ..SamplingFields::default()
    }
}

/// Where [`crate::validate`]'s names are in this dialect.
fn field_path(param: &str) -> &str {
    match param {
        "n" => "sampling_params.n",
        "temperature" => "sampling_params.temperature",
        "top_k" => "sampling_params.top_k",
        "top_p" => "sampling_params.top_p",
        "min_p" => "sampling_params.min_p",
        "presence_penalty" => "sampling_params.presence_penalty",
        "frequency_penalty" => "sampling_params.frequency_penalty",
        "repetition_penalty" => "sampling_params.repetition_penalty",
        "logit_bias" => "sampling_params.logit_bias",
        "min_tokens" => "sampling_params.min_tokens",
        "stop" => "sampling_params.stop",
        "stop_token_ids" => "sampling_params.stop_token_ids",
        "prompt_logprobs" => "sampling_params.prompt_logprobs",
        "prompt" | "input_tokens" => "input",
        path => path,
    }
}

fn output_logprobs(entries: &[TokenLogprobs]) -> Option<OutputLogProbs> {
    let candidates = entries.iter().any(|entry| !entry.top.is_empty());
    (!entries.is_empty()).then(|| OutputLogProbs {
        token_logprobs: entries.iter().map(|entry| entry.logprob).collect(),
        token_ids: entries.iter().map(|entry| entry.token).collect(),
        top_logprobs: entries.iter().filter(|_| candidates).map(top_logprobs).collect(),
    })
}

fn input_logprobs(prompt_token_ids: &[u32], prompt: &PromptOutput) -> Option<InputLogProbs> {
    let entries = prompt.logprobs.as_ref()?;
    let value =
        |entry: &Option<TokenLogprobs>| InputTokenLogProb { value: entry.as_ref().map(|e| e.logprob) };
    let candidates = entries.iter().flatten().any(|entry| !entry.top.is_empty());
    let top = |entry: &Option<TokenLogprobs>| entry.as_ref().map(top_logprobs).unwrap_or_default();
    Some(InputLogProbs {
        token_logprobs: entries.iter().map(value).collect(),
        token_ids: prompt_token_ids.to_vec(),
        top_logprobs: entries.iter().filter(|_| candidates).map(top).collect(),
    })
}

fn top_logprobs(entry: &TokenLogprobs) -> TopLogProbs {
    let (token_ids, values) = entry.top.iter().copied().unzip();
    TopLogProbs { values, token_ids }
}

fn append(whole: &mut Option<OutputLogProbs>, part: Option<OutputLogProbs>) {
    match (whole, part) {
        (_, None) => (),
        (Some(whole), Some(part)) => {
            whole.token_logprobs.extend(part.token_logprobs);
            whole.token_ids.extend(part.token_ids);
            whole.top_logprobs.extend(part.top_logprobs);
        }
        (whole, part) => *whole = part,
    }
}

fn complete(sequence: GenerateComplete, finish: &Finish) -> GenerateComplete {
    let matched_stop = finish.stop.as_ref().and_then(|cause| match cause {
        StopCause::Eos(_) => None,
        StopCause::Token(id) => Some(MatchedStop::MatchedTokenId(*id)),
        StopCause::Text(text) => Some(MatchedStop::MatchedStopStr(text.to_string())),
    });
    GenerateComplete { finish_reason: finish.kind.as_str().into(), matched_stop, ..sequence }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_tokens_come_beside_each_one() {
        let entry = |top| TokenLogprobs { token: 300, logprob: -2.0, rank: 7, top };
        let logprobs = output_logprobs(&[entry(vec![(301, -0.5), (302, -1.0)])]).unwrap();
        assert_eq!((logprobs.token_ids, logprobs.token_logprobs), (vec![300], vec![-2.0]));
        let top = TopLogProbs { values: vec![-0.5, -1.0], token_ids: vec![301, 302] };
        assert_eq!(logprobs.top_logprobs, [top]);
        assert!(
            output_logprobs(&[entry(Vec::new())]).unwrap().top_logprobs.is_empty(),
            "none were asked for"
        );
        assert_eq!(output_logprobs(&[]), None);
    }
}
