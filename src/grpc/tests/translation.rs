//! Requests into engine terms and back, without a server.

use quire_model::SamplingDefaults;
use quire_proto::vllm::candidate_tokens::Select;
use quire_proto::vllm::finish_info::{FinishReason, StopReason};

use super::*;
use crate::engine::{
    Finish, FinishKind, GenerateRequest as EngineRequest, OutputDelta, PromptOutput, StopCause, Timings,
    TokenLogprobs,
};
use crate::grpc::translate;
use crate::validate::generate_request;

fn translated(mut request: GenerateRequest, limits: &RequestLimits) -> (EngineRequest, translate::Shape) {
    translate::refuse_unsupported(&request).unwrap();
    let (sampling, shape) = translate::sampling(&mut request, &limits.defaults).unwrap();
    let fields = translate::request_fields(request, "id".into(), vec![1, 2, 3, 4]);
    (generate_request(fields, sampling, limits).unwrap(), shape)
}

#[test]
fn an_empty_request_is_greedy_and_as_long_as_the_context_allows() {
    let (request, _) = translated(GenerateRequest::default(), &limits());
    assert_eq!((request.n, request.seeded, request.text.detokenize), (1, false, true));
    let s = &request.sampling;
    assert_eq!((s.temperature, s.max_tokens, s.min_tokens), (0.0, MAX_MODEL_LEN - 4, 0));
    assert_eq!((s.top_k, s.top_p, s.min_p, s.repetition_penalty), (0, 1.0, 0.0, 1.0));
    assert_eq!((s.logprobs, s.prompt_logprobs, &s.allowed_token_ids), (None, None, &None));
}

#[test]
fn the_models_makers_choose_what_the_client_leaves_open() {
    let mut limits = limits();
    limits.defaults = SamplingDefaults {
        temperature: Some(0.5),
        top_k: Some(7),
        max_new_tokens: Some(100),
        ..SamplingDefaults::default()
    };
    let (request, _) = translated(GenerateRequest::default(), &limits);
    let s = request.sampling;
    assert_eq!((s.temperature, s.top_k, s.max_tokens), (0.5, 7, 100));
    let asked = GenerateRequest { temperature: Some(0.0), ..Default::default() };
    assert_eq!(translated(asked, &limits).0.sampling.temperature, 0.0);
}

#[test]
fn every_field_arrives() {
    let asked = GenerateRequest {
        temperature: Some(0.75),
        sampling: Some(RandomSampling {
            num_sequences: 2,
            top_k: Some(9),
            top_p: Some(0.5),
            min_p: Some(0.25),
            seed: Some(42),
        }),
        decoding: Some(DecodingParameters {
            presence_penalty: 0.5,
            frequency_penalty: -0.5,
            repetition_penalty: 1.5,
            logit_bias: [(3, 2.0), (4, -200.0)].into(),
            allowed_token_ids: vec![9, 3, 4],
            structured_output: None,
            bad_words_token_ids: vec![TokenIds { ids: vec![5, 6] }],
        }),
        stopping: Some(StoppingCriteria {
            max_new_tokens: 20,
            min_new_tokens: 2,
            stop_token_ids: vec![8, 7],
            stop_strings: vec!["end".into()],
            include_stop_strings: true,
            ignore_eos: true,
            thinking_token_budget: None,
        }),
        response: Some(ResponseOptions {
            output_logprobs: true,
            output_candidates: Some(CandidateTokens { select: Some(Select::TopN(3)) }),
            prompt_logprobs: true,
            skip_special_tokens: Some(false),
            ..Default::default()
        }),
        kv: Some(KvCacheParameters {
            bypass_prefix_cache: true,
            cache_salt: "salt".into(),
            ..Default::default()
        }),
        truncate_prompt_tokens: 3,
        priority: -4,
        ..Default::default()
    };
    let (request, _) = translated(asked, &limits());
    assert_eq!(*request.prompt_token_ids, [2, 3, 4]);
    assert_eq!((request.n, request.seeded, request.priority), (2, true, -4));
    assert_eq!((request.cache_salt.as_deref(), request.bypass_prefix_cache), (Some("salt"), true));
    assert!(request.text.include_stop_str_in_output && !request.text.skip_special_tokens);
    assert_eq!(request.text.stop, ["end"]);
    let s = request.sampling;
    assert_eq!((s.temperature, s.top_k, s.top_p, s.min_p, s.seed), (0.75, 9, 0.5, 0.25, 42));
    assert_eq!((s.presence_penalty, s.frequency_penalty, s.repetition_penalty), (0.5, -0.5, 1.5));
    assert_eq!(s.logit_bias, [(3, 2.0), (4, -100.0)]);
    assert_eq!((s.allowed_token_ids, s.bad_words), (Some(vec![3, 4, 9]), vec![vec![5, 6]]));
    assert_eq!((s.max_tokens, s.min_tokens, s.stop_token_ids, s.ignore_eos), (20, 2, vec![7, 8], true));
    assert_eq!((s.logprobs, s.prompt_logprobs), (Some(3), Some(0)));
}

#[test]
fn all_candidates_are_the_whole_vocabulary_where_that_is_allowed() {
    let mut limits = limits();
    limits.max_logprobs = None;
    let select = Some(Select::All(true));
    let response =
        Some(ResponseOptions { prompt_candidates: Some(CandidateTokens { select }), ..Default::default() });
    let (request, _) = translated(GenerateRequest { response, ..Default::default() }, &limits);
    assert_eq!(request.sampling.prompt_logprobs, Some(quire_scheduler::ALL_LOGPROBS));
}

fn entry(token: u32, top: &[(u32, f32)]) -> TokenLogprobs {
    TokenLogprobs { token, logprob: -0.5, rank: 2, top: top.to_vec() }
}

#[test]
fn candidates_are_ranked_and_independent_of_logprobs() {
    let select = Some(Select::TopN(2));
    let response = Some(ResponseOptions {
        output_candidates: Some(CandidateTokens { select: select.clone() }),
        prompt_candidates: Some(CandidateTokens { select }),
        ..Default::default()
    });
    let (_, shape) = translated(GenerateRequest { response, ..Default::default() }, &limits());
    let mut delta = OutputDelta {
        text: "two".into(),
        token_ids: vec![11, 12],
        logprobs: vec![entry(11, &[(10, -0.25), (11, -0.5)]), entry(12, &[(12, -0.1), (3, -4.0)])],
        ..Default::default()
    };
    let output = shape.sequence_output(&mut delta, 0);
    assert_eq!((output.text.as_str(), output.num_tokens), ("two", 2));
    assert!(output.logprobs.is_empty() && output.ranks.is_empty() && output.token_ids.is_empty());
    let ranked: Vec<_> =
        output.candidate_tokens[0].tokens.iter().map(|t| (t.id, t.logprob, t.rank)).collect();
    assert_eq!(ranked, [(10, -0.25, 1), (11, -0.5, 2)]);
    let prompt =
        PromptOutput { num_cached_tokens: 0, logprobs: Some(vec![None, Some(entry(2, &[(2, -0.5)]))]) };
    let info = shape.prompt_info(&[1, 2], &prompt);
    assert!(info.logprobs.is_empty());
    assert_eq!(info.candidate_tokens.iter().map(|c| c.tokens.len()).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn each_end_has_its_reason() {
    let shape = translate::Shape::default();
    for (kind, stop, reason, cause) in [
        (FinishKind::Stop, Some(StopCause::Eos(2)), FinishReason::Stop, Some(StopReason::EosTokenId(2))),
        (FinishKind::Stop, Some(StopCause::Token(9)), FinishReason::Stop, Some(StopReason::StopTokenId(9))),
        (
            FinishKind::Stop,
            Some(StopCause::Text("end".into())),
            FinishReason::Stop,
            Some(StopReason::StopString("end".into())),
        ),
        (FinishKind::Length, None, FinishReason::Length, None),
        (FinishKind::Abort, None, FinishReason::Aborted, None),
    ] {
        let finish =
            Some(Finish { kind, stop, error: None, num_output_tokens: 6, timings: Timings::default() });
        let mut delta = OutputDelta { finish, ..Default::default() };
        let info = shape.sequence_output(&mut delta, 16).finish_info.unwrap();
        assert_eq!((info.finish_reason(), &info.stop_reason), (reason, &cause));
        assert_eq!((info.num_output_tokens, info.num_cached_tokens), (6, Some(16)));
    }
}
