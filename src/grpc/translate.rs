//! Between the wire and the engine: a `GenerateRequest` becomes fields for [`crate::validate`], an
//! [`OutputDelta`] becomes a `SequenceOutput`. No I/O and no waiting, so that it can be tested as is.

use quire_model::SamplingDefaults;
use quire_proto::vllm::candidate_token_info::TokenInfo;
use quire_proto::vllm::candidate_tokens::Select;
use quire_proto::vllm::finish_info::{FinishReason, StopReason};
use quire_proto::vllm::{
    CandidateTokenInfo, CandidateTokens, FinishInfo, GenerateRequest, PromptInfo, ResponseOptions,
    SequenceOutput,
};
use quire_scheduler::TokenId;
use tonic::Status;

use super::call::truncate;
use super::status::invalid_field;
use crate::engine::{Finish, FinishKind, OutputDelta, PromptOutput, StopCause, TokenLogprobs};
use crate::validate::{RequestFields, SamplingFields};

/// What the client wants to see of a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Shape {
    prompt_token_ids: bool,
    prompt_logprobs: bool,
    prompt_candidates: bool,
    text: bool,
    token_ids: bool,
    logprobs: bool,
    candidates: bool,
    /// They are tokens of the client's choice.
    chosen_candidates: bool,
}

/// Refuses what Quire does not do, by the name of the field.
pub(super) fn refuse_unsupported(request: &GenerateRequest) -> Result<(), Status> {
    let kv = request.kv.as_ref();
    let refusals = [
        ("media", !request.media.is_empty(), "this model takes text only"),
        ("watermarking", request.watermarking == Some(true), "watermarking is not supported"),
        (
            "kv_hints",
            request.kv_hints.as_ref().is_some_and(|hints| !hints.actions.is_empty()),
            "KV cache hints are not supported",
        ),
        (
            "engine_reasoning_gate",
            request.engine_reasoning_gate.is_some(),
            "the engine runs no reasoning parser",
        ),
        (
            "kv.kv_transfer_params",
            kv.is_some_and(|kv| kv.kv_transfer_params.is_some()),
            "KV transfer is not supported",
        ),
        (
            "kv.ec_transfer_params",
            kv.is_some_and(|kv| kv.ec_transfer_params.is_some()),
            "encoder cache transfer is not supported",
        ),
    ];
    match refusals.into_iter().find(|&(_, present, _)| present) {
        Some((path, _, reason)) => Err(invalid_field(path, reason)),
        None => Ok(()),
    }
}

/// The sampling fields, and what to send back. Takes the vectors out of the request.
pub(super) fn sampling(
    request: &mut GenerateRequest,
    defaults: &SamplingDefaults,
) -> Result<(SamplingFields, Shape), Status> {
    let random = request.sampling.unwrap_or_default();
    let decoding = request.decoding.take().unwrap_or_default();
    let stopping = request.stopping.take().unwrap_or_default();
    let response = request.response.take().unwrap_or_default();
    let shape = shape(&response);
    let temperature = request.temperature.map(f64::from).or(defaults.temperature);
    // Without the text, stop strings could not be found.
    let detokenize = shape.text || !stopping.stop_strings.is_empty();
    let allowed = decoding.allowed_token_ids;
    let logprob_token_ids = match &response.output_candidates {
        Some(CandidateTokens { select: Some(Select::TokenIds(chosen)) }) => {
            Some(chosen.ids.iter().map(|&id| i64::from(id)).collect())
        }
        _ => None,
    };
    let fields = SamplingFields {
        n: Some(i64::from(random.num_sequences.max(1))),
        temperature: Some(temperature.unwrap_or(0.0)),
        top_p: random.top_p.map(f64::from),
        top_k: random.top_k.map(i64::from),
        min_p: random.min_p.map(f64::from),
        presence_penalty: Some(decoding.presence_penalty.into()),
        frequency_penalty: Some(decoding.frequency_penalty.into()),
        repetition_penalty: Some(match decoding.repetition_penalty {
            0.0 => 1.0,
            penalty => penalty.into(),
        }),
        seed: random.seed,
        max_tokens: given(stopping.max_new_tokens),
        max_tokens_param: "stopping.max_new_tokens",
        default_max_tokens: None,
        min_tokens: Some(stopping.min_new_tokens.into()),
        ignore_eos: stopping.ignore_eos,
        thinking_token_budget: stopping.thinking_token_budget,
        stop: stopping.stop_strings,
        stop_token_ids: stopping.stop_token_ids.into_iter().map(i64::from).collect(),
        include_stop_str_in_output: stopping.include_stop_strings,
        logit_bias: decoding.logit_bias.into_iter().map(|(id, bias)| (id.into(), bias.into())).collect(),
        allowed_token_ids: (!allowed.is_empty()).then(|| allowed.into_iter().map(i64::from).collect()),
        bad_words_token_ids: decoding.bad_words_token_ids.into_iter().map(|word| word.ids).collect(),
        logprobs: num_logprobs(OUTPUT_CANDIDATES, response.output_logprobs, response.output_candidates)?,
        logprobs_param: OUTPUT_CANDIDATES,
        prompt_logprobs: num_logprobs(
            "response.prompt_candidates",
            response.prompt_logprobs,
            response.prompt_candidates,
        )?,
        skip_special_tokens: response.skip_special_tokens,
        grammar: None,
        detokenize: Some(detokenize),
        logprob_token_ids,
        ..SamplingFields::default()
    };
    Ok((fields, shape))
}

/// Everything else. The prompt has been turned into tokens.
pub(super) fn request_fields(
    request: GenerateRequest,
    external_id: String,
    mut prompt_token_ids: Vec<TokenId>,
) -> RequestFields {
    if let Some(keep) = given::<u32>(request.truncate_prompt_tokens) {
        truncate(&mut prompt_token_ids, keep as usize);
    }
    let kv = request.kv.unwrap_or_default();
    RequestFields {
        external_id,
        prompt_token_ids,
        priority: request.priority,
        cache_salt: Some(kv.cache_salt).filter(|salt| !salt.is_empty()),
        bypass_prefix_cache: kv.bypass_prefix_cache,
        adapter: None,
    }
}

impl Shape {
    /// Whether the prompt's facts come from sequence 0 alone.
    pub(super) fn needs_prompt_logprobs(&self) -> bool {
        self.prompt_logprobs || self.prompt_candidates
    }

    /// The first message of a stream.
    pub(super) fn prompt_info(&self, prompt_token_ids: &[TokenId], prompt: &PromptOutput) -> PromptInfo {
        let mut info = PromptInfo { num_prompt_tokens: prompt_token_ids.len() as u32, ..Default::default() };
        if self.prompt_token_ids {
            info.token_ids = prompt_token_ids.to_vec();
        }
        let entries = prompt.logprobs.as_deref().unwrap_or_default();
        if self.prompt_logprobs {
            info.logprobs = entries.iter().map(|e| e.as_ref().map_or(0.0, |e| e.logprob)).collect();
            info.ranks = entries.iter().map(|e| e.as_ref().map_or(0, |e| e.rank)).collect();
        }
        if self.prompt_candidates {
            let candidates =
                |e: &Option<TokenLogprobs>| e.as_ref().map(|e| candidates(e, false)).unwrap_or_default();
            info.candidate_tokens = entries.iter().map(candidates).collect();
        }
        info
    }

    /// What is new, moved out of the delta. `num_cached_tokens` goes with the end of the sequence.
    pub(super) fn sequence_output(&self, delta: &mut OutputDelta, num_cached_tokens: u32) -> SequenceOutput {
        let mut output = SequenceOutput {
            index: delta.index,
            num_tokens: delta.token_ids.len() as u32,
            finish_info: delta.finish.as_ref().map(|finish| finish_info(finish, num_cached_tokens)),
            ..Default::default()
        };
        if self.text {
            output.text = std::mem::take(&mut delta.text);
        }
        if self.token_ids {
            output.token_ids = std::mem::take(&mut delta.token_ids);
        }
        if self.logprobs {
            output.logprobs = delta.logprobs.iter().map(|entry| entry.logprob).collect();
            output.ranks = delta.logprobs.iter().map(|entry| entry.rank).collect();
        }
        if self.candidates {
            let entries = delta.logprobs.iter();
            output.candidate_tokens =
                entries.map(|entry| candidates(entry, self.chosen_candidates)).collect();
        }
        output
    }
}

/// Adds a later output of the same sequence to an earlier one, for the unary answer.
pub(super) fn append(whole: &mut SequenceOutput, part: SequenceOutput) {
    whole.text.push_str(&part.text);
    whole.num_tokens += part.num_tokens;
    whole.token_ids.extend(part.token_ids);
    whole.logprobs.extend(part.logprobs);
    whole.ranks.extend(part.ranks);
    whole.candidate_tokens.extend(part.candidate_tokens);
    whole.finish_info = part.finish_info;
}

fn shape(response: &ResponseOptions) -> Shape {
    let wanted = |candidates: &Option<CandidateTokens>| {
        let select = candidates.as_ref().and_then(|candidates| candidates.select.as_ref());
        select.is_some_and(|select| !matches!(select, Select::All(false)))
    };
    Shape {
        prompt_token_ids: response.prompt_token_ids,
        prompt_logprobs: response.prompt_logprobs,
        prompt_candidates: wanted(&response.prompt_candidates),
        text: response.output_text.unwrap_or(true),
        token_ids: response.output_token_ids,
        logprobs: response.output_logprobs,
        candidates: wanted(&response.output_candidates),
        chosen_candidates: matches!(
            &response.output_candidates,
            Some(CandidateTokens { select: Some(Select::TokenIds(_)) })
        ),
    }
}

const OUTPUT_CANDIDATES: &str = "response.output_candidates";

/// The engine's `logprobs`: none, that of the token itself (0), or that of the best as well (-1 = all).
fn num_logprobs(
    path: &str,
    logprobs: bool,
    candidates: Option<CandidateTokens>,
) -> Result<Option<i64>, Status> {
    let own = logprobs.then_some(0);
    match candidates.map(|candidates| candidates.select) {
        None | Some(Some(Select::All(false))) => Ok(own),
        Some(Some(Select::TopN(n))) => Ok(Some(n.into())),
        Some(Some(Select::All(true))) => Ok(Some(-1)),
        // These are asked for apart, and only of generated tokens.
        Some(Some(Select::TokenIds(_))) if path == OUTPUT_CANDIDATES => Ok(Some(0)),
        Some(Some(Select::TokenIds(_))) => {
            Err(invalid_field(&format!("{path}.token_ids"), "of prompts only the best are told"))
        }
        Some(None) => Err(invalid_field(path, "one of top_n and all is needed")),
    }
}

/// The best tokens at a position, in order, so that the place is the rank; or tokens of the client's choice, whose rank
/// is not known but for the one that was generated.
fn candidates(entry: &TokenLogprobs, chosen: bool) -> CandidateTokenInfo {
    let info = |(place, &(id, logprob)): (u32, &(TokenId, f32))| {
        let rank = match chosen {
            false => place,
            true if id == entry.token => entry.rank,
            true => 0,
        };
        TokenInfo { id, logprob, rank }
    };
    CandidateTokenInfo { tokens: (1..).zip(&entry.top).map(info).collect() }
}

fn finish_info(finish: &Finish, num_cached_tokens: u32) -> FinishInfo {
    let reason = match finish.kind {
        FinishKind::Stop | FinishKind::Repetition => FinishReason::Stop,
        FinishKind::Length => FinishReason::Length,
        // An error ends the call with a status, and does not come here.
        FinishKind::Abort | FinishKind::Error => FinishReason::Aborted,
    };
    let stop_reason = finish.stop.as_ref().map(|cause| match cause {
        StopCause::Eos(id) => StopReason::EosTokenId(*id),
        StopCause::Token(id) => StopReason::StopTokenId(*id),
        StopCause::Text(text) => StopReason::StopString(text.to_string()),
    });
    FinishInfo {
        num_output_tokens: finish.num_output_tokens,
        finish_reason: reason.into(),
        stop_reason,
        kv_transfer_params: None,
        ec_transfer_params: None,
        num_cached_tokens: Some(num_cached_tokens),
    }
}

/// Where [`crate::validate`]'s names are in a `GenerateRequest`.
pub(super) fn field_path(param: &str) -> &str {
    match param {
        "n" => "sampling.num_sequences",
        "top_k" => "sampling.top_k",
        "top_p" => "sampling.top_p",
        "min_p" => "sampling.min_p",
        "presence_penalty" => "decoding.presence_penalty",
        "frequency_penalty" => "decoding.frequency_penalty",
        "repetition_penalty" => "decoding.repetition_penalty",
        "logit_bias" => "decoding.logit_bias",
        "allowed_token_ids" => "decoding.allowed_token_ids",
        "bad_words" => "decoding.bad_words_token_ids",
        "min_tokens" => "stopping.min_new_tokens",
        "thinking_token_budget" => "stopping.thinking_token_budget",
        "stop" => "stopping.stop_strings",
        "stop_token_ids" => "stopping.stop_token_ids",
        "prompt_logprobs" => "response.prompt_candidates",
        "logprob_token_ids" => "response.output_candidates.token_ids",
        "cache_salt" => "kv.cache_salt",
        "input_tokens" => "prompt",
        path => path,
    }
}

/// 0 on the wire = not given.
fn given<T: From<u32>>(value: u32) -> Option<T> {
    (value != 0).then(|| value.into())
}
