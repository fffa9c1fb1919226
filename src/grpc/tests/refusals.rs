//! Bad requests: each is refused at once, with the path of the field.

use quire_proto::vllm::candidate_tokens::Select;
use quire_proto::vllm::decoding_parameters::{StringChoices, StructuredOutput};

use super::*;

type Change = fn(&mut GenerateRequest);

const INVALID: &[(&str, Change)] = &[
    ("prompt", |r| r.prompt = None),
    ("prompt", |r| r.prompt = Some(Prompt::TokenIds(TokenIds::default()))),
    ("prompt", |r| r.prompt = Some(Prompt::TokenIds(TokenIds { ids: vec![VOCAB_SIZE] }))),
    ("prompt", |r| r.prompt = Some(Prompt::TokenIds(TokenIds { ids: vec![1; 2 << 20] }))),
    ("temperature", |r| r.temperature = Some(2.5)),
    ("temperature", |r| r.temperature = Some(f32::NAN)),
    ("sampling.num_sequences", |r| sampling(r).num_sequences = 10_000),
    ("sampling.num_sequences", |r| {
        sampling(r).num_sequences = 2;
        r.temperature = None;
    }),
    ("sampling.top_p", |r| sampling(r).top_p = Some(0.0)),
    ("sampling.min_p", |r| sampling(r).min_p = Some(-0.5)),
    ("decoding.presence_penalty", |r| decoding(r).presence_penalty = 3.0),
    ("decoding.frequency_penalty", |r| decoding(r).frequency_penalty = -3.0),
    ("decoding.repetition_penalty", |r| decoding(r).repetition_penalty = -1.0),
    ("decoding.logit_bias", |r| decoding(r).logit_bias = [(VOCAB_SIZE, 1.0)].into()),
    ("decoding.allowed_token_ids", |r| decoding(r).allowed_token_ids = vec![VOCAB_SIZE]),
    ("decoding.bad_words_token_ids", |r| decoding(r).bad_words_token_ids = vec![TokenIds::default()]),
    ("decoding.json", |r| structured(r, StructuredOutput::Json("{".into()))),
    ("decoding.json", |r| structured(r, StructuredOutput::Json("{}".into()))),
    ("decoding.regex", |r| structured(r, StructuredOutput::Regex("(".into()))),
    ("decoding.choice", |r| structured(r, StructuredOutput::Choice(StringChoices::default()))),
    ("decoding.grammar", |r| structured(r, StructuredOutput::Grammar("root ::= x".into()))),
    ("decoding.structural_tag", |r| structured(r, StructuredOutput::StructuralTag("[]".into()))),
    ("stopping.max_new_tokens", |r| stopping(r).max_new_tokens = MAX_MODEL_LEN),
    ("stopping.min_new_tokens", |r| stopping(r).min_new_tokens = 6),
    ("stopping.stop_token_ids", |r| stopping(r).stop_token_ids = vec![VOCAB_SIZE]),
    ("stopping.stop_strings", |r| stopping(r).stop_strings = vec![String::new()]),
    ("stopping.stop_strings", |r| stopping(r).stop_strings = vec!["x".into(); 1000]),
    ("stopping.thinking_token_budget", |r| stopping(r).thinking_token_budget = Some(100)),
    ("response.output_candidates", |r| {
        response(r).output_candidates = Some(CandidateTokens { select: Some(Select::TopN(21)) });
    }),
    ("response.output_candidates", |r| {
        response(r).output_candidates = Some(CandidateTokens { select: Some(Select::All(true)) });
    }),
    ("response.output_candidates", |r| response(r).output_candidates = Some(CandidateTokens::default())),
    ("response.output_candidates.token_ids", |r| {
        let select = Some(Select::TokenIds(TokenIds { ids: vec![VOCAB_SIZE] }));
        response(r).output_candidates = Some(CandidateTokens { select });
    }),
    ("response.prompt_candidates", |r| {
        response(r).prompt_candidates = Some(CandidateTokens { select: Some(Select::TopN(21)) });
    }),
    ("kv.cache_salt", |r| {
        r.kv = Some(KvCacheParameters { cache_salt: "a/b".into(), ..Default::default() });
    }),
    ("kv.kv_transfer_params", |r| {
        r.kv = Some(KvCacheParameters {
            kv_transfer_params: Some(prost_types::Struct::default()),
            ..Default::default()
        });
    }),
    ("kv.ec_transfer_params", |r| {
        r.kv = Some(KvCacheParameters {
            ec_transfer_params: Some(prost_types::Struct::default()),
            ..Default::default()
        });
    }),
    ("kv_hints", |r| {
        r.kv_hints = Some(KvHintsEnvelope { actions: vec![KvHintAction::default()], ..Default::default() });
    }),
    ("media", |r| r.media = vec![MediaItem::default()]),
    ("watermarking", |r| r.watermarking = Some(true)),
    ("engine_reasoning_gate", |r| r.engine_reasoning_gate = Some(EngineReasoningGate::default())),
];

fn sampling(request: &mut GenerateRequest) -> &mut RandomSampling {
    request.sampling.get_or_insert_default()
}

fn structured(request: &mut GenerateRequest, kind: StructuredOutput) {
    decoding(request).structured_output = Some(kind);
}

fn decoding(request: &mut GenerateRequest) -> &mut DecodingParameters {
    request.decoding.get_or_insert_default()
}

fn stopping(request: &mut GenerateRequest) -> &mut StoppingCriteria {
    request.stopping.get_or_insert_default()
}

fn response(request: &mut GenerateRequest) -> &mut ResponseOptions {
    request.response.get_or_insert_default()
}

#[tokio::test]
async fn a_bad_field_is_named() {
    let server = TestServer::start(Options::default()).await;
    for (field, change) in INVALID {
        let mut bad = request(&[1, 2, 3], 5);
        change(&mut bad);
        let (messages, end) = server.stream(bad.clone()).await;
        assert!(messages.is_empty(), "{field}");
        assert_invalid(&end.expect_err(field), field);
        assert_invalid(&server.inference().generate(bad).await.expect_err(field), field);
    }
    // Nobody else was harmed.
    assert!(server.inference().generate(request(&[1, 2, 3], 5)).await.is_ok());
    server.settled().await;
}

#[tokio::test]
async fn harmless_values_of_what_is_not_supported_pass() {
    let server = TestServer::start(Options::default()).await;
    let mut fine = request(&[1, 2, 3], 5);
    fine.watermarking = Some(false);
    fine.kv_hints = Some(KvHintsEnvelope::default());
    fine.session_id = Some("conversation 1".into());
    fine.model = "alias".into();
    stopping(&mut fine).thinking_token_budget = Some(-1);
    response(&mut fine).output_candidates = Some(CandidateTokens { select: Some(Select::All(false)) });
    server.inference().generate(fine).await.unwrap();
}

#[tokio::test]
async fn one_answer_holds_one_sequence() {
    let server = TestServer::start(Options::default()).await;
    let mut two = request(&[1, 2, 3], 5);
    sampling(&mut two).num_sequences = 2;
    assert_invalid(&server.inference().generate(two).await.unwrap_err(), "sampling.num_sequences");
}

#[tokio::test]
async fn unknown_models_and_adapters() {
    let server = TestServer::start(Options::default()).await;
    let unknown = GenerateRequest { model: "other".into(), ..request(&[1], 1) };
    assert_eq!(server.inference().generate(unknown).await.unwrap_err().code(), Code::NotFound);
    let adapter = GenerateRequest { lora_name: "pirate".into(), ..request(&[1], 1) };
    let status = server.inference().generate(adapter).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().starts_with("lora_name: "));
}

#[tokio::test]
async fn metadata_is_checked() {
    let server = TestServer::start(Options::default()).await;
    let with = |key: &'static str, value: &str| {
        let mut call = tonic::Request::new(request(&[1], 1));
        call.metadata_mut().insert(key, value.parse().unwrap());
        call
    };
    for bad in ["1", "-1", "x", ""] {
        let status = server.inference().generate(with("x-data-parallel-rank", bad)).await.unwrap_err();
        assert_invalid(&status, "x-data-parallel-rank");
    }
    server.inference().generate(with("x-data-parallel-rank", "0")).await.unwrap();
    for bad in ["", "1", "S", "1s", "-1S", "123456789S"] {
        let status = server.inference().generate(with("grpc-timeout", bad)).await.unwrap_err();
        assert_invalid(&status, "grpc-timeout");
    }
    server.inference().generate(with("grpc-timeout", "1M")).await.unwrap();
}

#[tokio::test]
async fn a_message_above_the_limit_is_refused() {
    let server = TestServer::start(Options::default()).await;
    let mut huge = request(&[], 1);
    huge.prompt = Some(Prompt::Text("a".repeat(crate::grpc::MAX_MESSAGE_BYTES + 1)));
    let status = server.inference().generate(huge).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
}
