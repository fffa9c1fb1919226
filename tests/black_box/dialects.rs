//! The three dialects of the gRPC port say the same of the same request, and KV events come when they are turned on.

use quire_proto::openengine::v1 as open;
use quire_proto::openengine::v1::generate_response::Event;
use quire_proto::openengine::v1::inference_client::InferenceClient as OpenInference;
use quire_proto::smg::grpc::common::SubscribeKvEventsRequest;
use quire_proto::vllm::grpc::engine;
use quire_proto::vllm::grpc::engine::generate_response::Response;
use quire_proto::vllm::grpc::engine::vllm_engine_client::VllmEngineClient;
use quire_proto::vllm::{GenerateRequest, ResponseOptions, StoppingCriteria};
use tokio::time::timeout;

use crate::grpc;
use crate::http::PATIENCE;
use crate::server::Server;

const PROMPT: &[u32] = &[300, 301, 302, 303, 304, 305, 306, 307, 308, 309, 310, 311, 312, 313, 314, 315, 316];
const MAX_TOKENS: u32 = 24;

fn engine_request(stream: bool) -> engine::GenerateRequest {
    engine::GenerateRequest {
        input: Some(engine::generate_request::Input::Tokenized(engine::TokenizedInput {
            input_ids: PROMPT.to_vec(),
            ..Default::default()
        })),
        sampling_params: Some(engine::SamplingParams {
            temperature: Some(0.0),
            max_tokens: Some(MAX_TOKENS),
            ignore_eos: true,
            ..Default::default()
        }),
        stream,
        ..Default::default()
    }
}

#[tokio::test]
async fn dialects_agree() {
    let server = Server::shared(&[]);
    let request = GenerateRequest {
        prompt: Some(grpc::tokens(PROMPT)),
        stopping: Some(StoppingCriteria {
            max_new_tokens: MAX_TOKENS,
            ignore_eos: true,
            ..Default::default()
        }),
        response: Some(ResponseOptions { output_token_ids: true, ..Default::default() }),
        ..Default::default()
    };
    let whole = grpc::generate(server.grpc, request).await.outputs.expect("outputs");
    assert_eq!(whole.token_ids.len() as u32, MAX_TOKENS);

    let channel = grpc::channel(server.grpc).await;
    for streams in [false, true] {
        let mut client = VllmEngineClient::new(channel.clone());
        let mut stream = client.generate(engine_request(streams)).await.expect("taken").into_inner();
        let (mut chunks, mut complete) = (Vec::new(), None);
        while let Some(message) =
            timeout(PATIENCE, stream.message()).await.expect("goes on").expect("no error")
        {
            match message.response.expect("never empty") {
                Response::Chunk(chunk) => chunks.extend(chunk.token_ids),
                Response::Complete(sequence) => complete = Some(sequence),
            }
        }
        assert_eq!(complete.expect("an end").output_ids, whole.token_ids);
        assert_eq!(chunks, if streams { whole.token_ids.clone() } else { Vec::new() });
    }

    let request = open::GenerateRequest {
        input: Some(open::generate_request::Input::TokenIds(open::TokenIds { ids: PROMPT.to_vec() })),
        sampling: Some(open::SamplingParams { temperature: Some(0.0), ..Default::default() }),
        stopping: Some(open::StoppingOptions {
            max_tokens: Some(MAX_TOKENS),
            ignore_eos: Some(true),
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut stream = OpenInference::new(channel).generate(request).await.expect("taken").into_inner();
    let (mut tokens, mut text) = (Vec::new(), String::new());
    while let Some(message) = timeout(PATIENCE, stream.message()).await.expect("goes on").expect("no error") {
        if let Some(Event::Token(token)) = message.event {
            tokens.extend(token.tokens.iter().map(|token| token.token_id));
            text.push_str(&token.text);
        }
    }
    assert_eq!((tokens, text), (whole.token_ids, whole.text));
}

#[tokio::test]
async fn kv_events_come_if_they_are_turned_on() {
    let subscribe = async |server: &Server| {
        let mut client = VllmEngineClient::new(grpc::channel(server.grpc).await);
        client.subscribe_kv_events(SubscribeKvEventsRequest::default()).await.map(tonic::Response::into_inner)
    };
    let status = subscribe(&Server::shared(&[])).await.expect_err("off by default");
    assert_eq!(status.code(), tonic::Code::Unimplemented);
    assert!(status.message().contains("--kv-events-config"), "{status:?}");

    let server = Server::start(&["--kv-events-config", "{\"enable_kv_cache_events\": true}"]);
    let mut events = subscribe(&server).await.expect("on");
    let mut client = VllmEngineClient::new(grpc::channel(server.grpc).await);
    let mut stream = client.generate(engine_request(false)).await.expect("taken").into_inner();
    while timeout(PATIENCE, stream.message()).await.expect("goes on").expect("no error").is_some() {}
    let batch =
        timeout(PATIENCE, events.message()).await.expect("an event").expect("no error").expect("a batch");
    assert_eq!((batch.sequence_number, batch.events.len()), (1, 1));
    // An open subscription does not hold up the end.
    server.signal("TERM");
    assert!(server.wait_for_exit(PATIENCE).await.success());
}
