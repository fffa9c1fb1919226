//! `vllm.grpc.engine.VllmEngine`.

use quire_proto::smg::grpc::common::kv_cache_event::Data;
use quire_proto::smg::grpc::common::{
    FlushCacheRequest, GetTokenizerRequest, KvEventBatch, StartProfileRequest, SubscribeKvEventsRequest,
};
use quire_proto::vllm::grpc::engine as wire;
use quire_proto::vllm::grpc::engine::generate_complete::MatchedStop;
use quire_proto::vllm::grpc::engine::generate_request::Input;
use quire_proto::vllm::grpc::engine::generate_response::Response;
use quire_proto::vllm::grpc::engine::sampling_params::Constraint;
use quire_proto::vllm::grpc::engine::vllm_engine_client::VllmEngineClient;
use sha2::{Digest, Sha256};

use super::*;

fn client(server: &TestServer) -> VllmEngineClient<Channel> {
    VllmEngineClient::new(server.channel.clone())
}

fn asks(prompt: &[u32], max_tokens: u32) -> wire::GenerateRequest {
    wire::GenerateRequest {
        input: Some(Input::Tokenized(wire::TokenizedInput {
            input_ids: prompt.to_vec(),
            ..Default::default()
        })),
        sampling_params: Some(wire::SamplingParams {
            max_tokens: Some(max_tokens),
            seed: Some(5),
            ..Default::default()
        }),
        stream: true,
        ..Default::default()
    }
}

fn params(request: &mut wire::GenerateRequest) -> &mut wire::SamplingParams {
    request.sampling_params.as_mut().unwrap()
}

/// All messages, and how the call ended.
async fn generate(
    server: &TestServer,
    request: wire::GenerateRequest,
) -> (Vec<Response>, Result<(), Status>) {
    let mut stream = match client(server).generate(request).await {
        Ok(response) => response.into_inner(),
        Err(status) => return (Vec::new(), Err(status)),
    };
    let mut messages = Vec::new();
    loop {
        match stream.message().await {
            Ok(Some(message)) => messages.push(message.response.expect("never empty")),
            Ok(None) => return (messages, Ok(())),
            Err(status) => return (messages, Err(status)),
        }
    }
}

/// The wholes by index, from a call that must end well; checks what holds for every stream.
async fn wholes(server: &TestServer, request: wire::GenerateRequest) -> Vec<wire::GenerateComplete> {
    let (messages, end) = generate(server, request.clone()).await;
    end.unwrap();
    let mut chunks: Vec<Vec<wire::GenerateStreamChunk>> = Vec::new();
    let mut wholes = Vec::new();
    for message in messages {
        match message {
            Response::Chunk(chunk) => {
                assert!(request.stream, "chunks come only if asked for");
                assert_eq!(chunk.completion_tokens as usize, chunk.token_ids.len());
                let index = chunk.index as usize;
                chunks.resize(chunks.len().max(index + 1), Vec::new());
                chunks[index].push(chunk);
            }
            Response::Complete(whole) => {
                assert_eq!(whole.completion_tokens as usize, whole.output_ids.len());
                if request.stream {
                    let sent: Vec<u32> = chunks[whole.index as usize]
                        .iter()
                        .flat_map(|chunk| chunk.token_ids.clone())
                        .collect();
                    assert_eq!(sent, whole.output_ids, "the chunks are the whole");
                }
                wholes.push(whole);
            }
        }
    }
    wholes.sort_by_key(|whole| whole.index);
    let indices: Vec<_> = wholes.iter().map(|whole| whole.index).collect();
    let n = request.sampling_params.as_ref().map_or(1, |params| params.n.max(1));
    assert_eq!(indices, (0..n).collect::<Vec<_>>(), "one whole a sequence");
    wholes
}

#[tokio::test]
async fn a_stream_is_the_whole_in_pieces() {
    let server = TestServer::start(Options::default()).await;
    let mut request = asks(&(10..60).collect::<Vec<_>>(), 12);
    params(&mut request).n = 3;
    let streamed = wholes(&server, request.clone()).await;
    request.stream = false;
    let whole = wholes(&server, request).await;
    assert_eq!(streamed.len(), 3);
    for (streamed, whole) in streamed.iter().zip(&whole) {
        assert_eq!(streamed.output_ids, whole.output_ids);
        assert_eq!((whole.completion_tokens, whole.prompt_tokens), (12, 50));
        assert_eq!(whole.finish_reason, "length");
        assert_eq!(whole.matched_stop, None);
    }
    assert_ne!(whole[0].output_ids, whole[1].output_ids);
    assert_eq!(whole[0].cached_tokens, 48, "the second time the prefix is there");
    server.settled().await;
}

#[tokio::test]
async fn logprobs_come_where_they_are_asked_for() {
    let server = TestServer::start(Options::default()).await;
    let mut request = asks(&[10, 11, 12, 13], 5);
    let plain = wholes(&server, request.clone()).await.remove(0);
    assert_eq!((plain.output_logprobs, plain.input_logprobs), (None, None));
    params(&mut request).logprobs = Some(2);
    params(&mut request).prompt_logprobs = Some(0);
    request.stream = false;
    let whole = wholes(&server, request.clone()).await.remove(0);
    let output = whole.output_logprobs.unwrap();
    assert_eq!((output.token_logprobs.len(), &output.token_ids), (5, &whole.output_ids));
    let input = whole.input_logprobs.unwrap();
    assert_eq!(input.token_ids, [10, 11, 12, 13]);
    assert_eq!(input.token_logprobs[0].value, None, "nothing precedes the first token");
    assert_eq!((input.token_logprobs[1].value, input.top_logprobs.len()), (Some(-1.0), 0));

    request.stream = true;
    let (messages, _) = generate(&server, request).await;
    let mut logprobs = Vec::new();
    for (at, message) in messages.iter().enumerate() {
        let Response::Chunk(chunk) = message else { continue };
        assert_eq!(chunk.input_logprobs.is_some(), at == 0, "once");
        logprobs.extend(chunk.output_logprobs.clone().unwrap().token_logprobs);
    }
    assert_eq!(logprobs, output.token_logprobs);
}

#[tokio::test]
async fn what_stopped_a_sequence_is_named() {
    let server = TestServer::start(Options::default()).await;
    let free = wholes(&server, asks(&[3, 4, 5], 30)).await.remove(0);
    let stop = free.output_ids[6];
    let mut request = asks(&[3, 4, 5], 30);
    params(&mut request).stop_token_ids = vec![stop];
    let stopped = wholes(&server, request).await.remove(0);
    assert_eq!(stopped.finish_reason, "stop");
    assert_eq!(stopped.matched_stop, Some(MatchedStop::MatchedTokenId(stop)));
    assert_eq!(stopped.output_ids.last(), Some(&stop));

    let text = server.app.tokenizer.decode(&free.output_ids, true);
    let chars: Vec<char> = text.chars().collect();
    let word: String = chars[chars.len() / 2..chars.len() / 2 + 4].iter().collect();
    let mut request = asks(&[3, 4, 5], 30);
    params(&mut request).stop = vec![word.clone()];
    params(&mut request).skip_special_tokens = true;
    let stopped = wholes(&server, request).await.remove(0);
    assert_eq!(stopped.matched_stop, Some(MatchedStop::MatchedStopStr(word)));
    assert!(stopped.output_ids.len() < 30);
}

#[tokio::test]
async fn text_prompts_are_tokenized_and_prompts_truncated() {
    let server = TestServer::start(Options::default()).await;
    let text = "The quick brown fox jumps";
    let len = server.app.tokenizer.encode(text, true).unwrap().len() as u32;
    let mut request = asks(&[], 1);
    request.input = Some(Input::Text(text.into()));
    assert_eq!(wholes(&server, request.clone()).await[0].prompt_tokens, len);
    params(&mut request).truncate_prompt_tokens = Some(2);
    assert_eq!(wholes(&server, request.clone()).await[0].prompt_tokens, 2);
    let long = vec![7; 5000];
    let mut request = asks(&long, 1);
    params(&mut request).truncate_prompt_tokens = Some(-1);
    assert_eq!(wholes(&server, request).await[0].prompt_tokens, MAX_MODEL_LEN - 1);
}

type Change = fn(&mut wire::GenerateRequest);

const INVALID: &[(&str, Change)] = &[
    ("input", |r| r.input = None),
    ("input", |r| r.input = asks(&[], 1).input),
    ("input", |r| r.input = asks(&[VOCAB_SIZE], 1).input),
    ("data_parallel_rank", |r| r.data_parallel_rank = Some(1)),
    ("data_parallel_rank", |r| r.data_parallel_rank = Some(-1)),
    ("mm_inputs", |r| r.mm_inputs = Some(Default::default())),
    ("extra_mm_inputs", |r| r.extra_mm_inputs = vec![Default::default()]),
    ("media_refs", |r| r.media_refs = Some(Default::default())),
    ("kv_transfer_params", |r| r.kv_transfer_params = Some(Default::default())),
    ("kv_transfer_params_json", |r| r.kv_transfer_params_json = Some("{}".into())),
    ("sampling_params.temperature", |r| params(r).temperature = Some(3.0)),
    ("sampling_params.top_p", |r| params(r).top_p = 1.5),
    ("sampling_params.min_p", |r| params(r).min_p = -0.5),
    ("sampling_params.presence_penalty", |r| params(r).presence_penalty = 3.0),
    ("sampling_params.frequency_penalty", |r| params(r).frequency_penalty = f32::NAN),
    ("sampling_params.repetition_penalty", |r| params(r).repetition_penalty = -1.0),
    ("sampling_params.n", |r| params(r).n = 100_000),
    ("sampling_params.max_tokens", |r| params(r).max_tokens = Some(0)),
    ("sampling_params.min_tokens", |r| params(r).min_tokens = 100),
    ("sampling_params.stop", |r| params(r).stop = vec![String::new()]),
    ("sampling_params.stop_token_ids", |r| params(r).stop_token_ids = vec![VOCAB_SIZE]),
    ("sampling_params.logprobs", |r| params(r).logprobs = Some(1000)),
    ("sampling_params.prompt_logprobs", |r| params(r).prompt_logprobs = Some(-2)),
    ("sampling_params.logit_bias", |r| params(r).logit_bias = [(-1, 1.0)].into()),
    ("sampling_params.truncate_prompt_tokens", |r| params(r).truncate_prompt_tokens = Some(0)),
    ("sampling_params.json_schema", |r| params(r).constraint = Some(Constraint::JsonSchema("{".into()))),
    ("sampling_params.regex", |r| params(r).constraint = Some(Constraint::Regex("(".into()))),
    ("sampling_params.choice", |r| params(r).constraint = Some(Constraint::Choice(Default::default()))),
    ("sampling_params.structural_tag", |r| {
        params(r).constraint = Some(Constraint::StructuralTag("1".into()));
    }),
];

#[tokio::test]
async fn invariant_9_12_bad_requests_are_refused_by_name() {
    let server = TestServer::start(Options::default()).await;
    for (field, change) in INVALID {
        let mut request = asks(&[1, 2, 3], 4);
        change(&mut request);
        let (_, end) = generate(&server, request).await;
        assert_invalid(&end.expect_err(field), field);
    }
    server.settled().await;
}

#[tokio::test]
async fn a_constraint_holds() {
    let server = TestServer::start(Options::default()).await;
    let mut request = asks(&[1, 2, 3], 20);
    let choices = vec!["yes".into(), "no".into()];
    params(&mut request).constraint = Some(Constraint::Choice(wire::ChoiceConstraint { choices }));
    let whole = wholes(&server, request).await.remove(0);
    let text = server.app.tokenizer.decode(&whole.output_ids, true);
    assert!(["yes", "no"].contains(&text.as_str()), "{text:?}");

    // The choice has ended where `min_tokens` does not let it end.
    let mut request = asks(&[1, 2, 3], 50);
    let choices = vec!["yes".into()];
    params(&mut request).constraint = Some(Constraint::Choice(wire::ChoiceConstraint { choices }));
    params(&mut request).min_tokens = 40;
    let (_, end) = generate(&server, request).await;
    assert_eq!(end.unwrap_err().code(), Code::InvalidArgument);
    server.settled().await;
}

#[tokio::test]
async fn invariant_6_aborts_deadlines_and_cancellation_free_the_engine() {
    let server = TestServer::start(Options { step_ms: 5, ..Options::default() }).await;
    let mut request = asks(&[1; 100], 3000);
    params(&mut request).n = 2;
    // The client goes away.
    let mut stream = client(&server).generate(request.clone()).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    drop(stream);
    server.settled().await;
    // Its time is over.
    let mut call = tonic::Request::new(request.clone());
    call.set_timeout(Duration::from_millis(150));
    let mut stream = client(&server).generate(call).await.unwrap().into_inner();
    let status = loop {
        match stream.message().await {
            Ok(message) => assert!(message.is_some(), "ended without a status"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    server.settled().await;
    // An operator, or the gateway for its own client.
    request.request_id = "mine".into();
    let mut stream = client(&server).generate(request).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    let names = wire::AbortRequest { request_ids: vec!["other".into(), "mine".into()] };
    client(&server).abort(names).await.unwrap();
    let mut reasons = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        if let Some(Response::Complete(whole)) = message.response {
            reasons.push(whole.finish_reason);
        }
    }
    assert_eq!(reasons, ["abort", "abort"]);
    server.settled().await;
}

#[tokio::test]
async fn failures_and_overload_are_statuses() {
    let failures = SimFailures { row: 10_000, ..SimFailures::default() };
    let server = TestServer::start(Options { failures, ..Options::default() }).await;
    let (_, end) = generate(&server, asks(&[1, 2], 5)).await;
    assert_eq!(end.unwrap_err().code(), Code::Internal);
    let options = Options { step_ms: 5, max_num_queued_reqs: 1, ..Options::default() };
    let server = TestServer::start(options).await;
    let _running = client(&server).generate(asks(&[1], 4000)).await.unwrap();
    let (_, end) = generate(&server, asks(&[1], 1)).await;
    assert_eq!(end.unwrap_err().code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn gateways_learn_what_they_need() {
    let server = TestServer::start(Options { step_ms: 5, ..Options::default() }).await;
    let mut engine = client(&server);
    let health = engine.health_check(wire::HealthCheckRequest {}).await.unwrap().into_inner();
    assert!(health.healthy && !health.message.is_empty());
    let model = engine.get_model_info(wire::GetModelInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((model.model_path.as_str(), model.served_model_name.as_str()), ("models/pebble", "pebble"));
    assert_eq!((model.max_context_length, model.vocab_size), (MAX_MODEL_LEN, VOCAB_SIZE));
    assert_eq!((model.eos_token_ids, model.is_generation), (vec![2, 0], true));
    let info = engine.get_server_info(wire::GetServerInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.server_type.as_str(), info.data_parallel_size, info.block_size), ("vllm-grpc", 1, 16));
    assert_eq!((info.max_num_seqs, info.active_requests, info.is_paused), (32, 0, false));

    let mut stream = client(&server).generate(asks(&[1; 64], 3000)).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    let loads = engine.get_loads(wire::GetLoadsRequest::default()).await.unwrap().into_inner();
    assert_eq!((loads.dp_rank_count, loads.loads.len()), (1, 1));
    assert!(loads.timestamp.starts_with("20") && loads.timestamp.ends_with('Z'), "{}", loads.timestamp);
    let load = &loads.loads[0];
    assert_eq!((load.num_running_reqs, load.num_waiting_reqs, load.num_total_reqs), (1, 0, 1));
    assert_eq!((load.max_total_num_tokens, load.max_running_requests), (16_000, 32));
    assert!(load.num_used_tokens >= 64 && load.token_usage > 0.0);
    let rank = wire::GetLoadsRequest { dp_rank: Some(3), ..Default::default() };
    assert_invalid(&engine.get_loads(rank).await.unwrap_err(), "dp_rank");

    server.app.engine.start_draining();
    assert!(!engine.health_check(wire::HealthCheckRequest {}).await.unwrap().into_inner().healthy);
}

#[tokio::test]
async fn the_tokenizer_comes_as_an_archive() {
    let server = TestServer::start(Options::default()).await;
    let mut stream = client(&server).get_tokenizer(GetTokenizerRequest {}).await.unwrap().into_inner();
    let (mut archive, mut digest) = (Vec::new(), String::new());
    while let Some(chunk) = stream.message().await.unwrap() {
        assert!(digest.is_empty(), "the digest is on the last chunk");
        archive.extend(chunk.data);
        digest = chunk.sha256;
    }
    let expected: String = Sha256::digest(&archive).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest, expected);
    assert!(archive.starts_with(b"PK\x03\x04"));
}

#[tokio::test]
async fn operators_flush_the_cache_if_they_may() {
    let server = TestServer::start(Options { step_ms: 5, ..Options::default() }).await;
    let flush = |timeout_s| FlushCacheRequest { timeout_s };
    let status = client(&server).flush_cache(flush(0.0)).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("--enable-admin"));
    assert_eq!(
        client(&server).start_profile(StartProfileRequest::default()).await.unwrap_err().code(),
        Code::Unimplemented
    );
    let tokenized = Some(wire::TokenizedInput { input_ids: vec![1], ..Default::default() });
    let embed = wire::EmbedRequest { tokenized, ..Default::default() };
    assert_eq!(client(&server).embed(embed).await.unwrap_err().code(), Code::Unimplemented);

    let server = TestServer::start(Options { step_ms: 5, enable_admin: true, ..Options::default() }).await;
    let prompt: Vec<u32> = (10..100).collect();
    let cached = async || wholes(&server, asks(&prompt, 1)).await[0].cached_tokens;
    assert_eq!((cached().await, cached().await), (0, 80));
    assert!(client(&server).flush_cache(flush(10.0)).await.unwrap().into_inner().success);
    assert_eq!(cached().await, 0);
    let mut running = client(&server).generate(asks(&[1], 4000)).await.unwrap().into_inner();
    running.message().await.unwrap().expect("it has begun, and holds blocks");
    assert!(!client(&server).flush_cache(flush(0.0)).await.unwrap().into_inner().success);
    for bad in [-1.0, f32::NAN, f32::INFINITY, 1e9] {
        assert_invalid(&client(&server).flush_cache(flush(bad)).await.unwrap_err(), "timeout_s");
    }
}

#[tokio::test]
async fn kv_events_tell_of_blocks_and_begin_with_what_there_is() {
    let server = TestServer::start(Options::default()).await;
    let subscribe = async |start_sequence_number| {
        let request = SubscribeKvEventsRequest { start_sequence_number, ..Default::default() };
        client(&server).subscribe_kv_events(request).await.unwrap().into_inner()
    };
    let mut live = subscribe(0).await;
    let prompt: Vec<u32> = (10..60).collect();
    wholes(&server, asks(&prompt, 1)).await;
    let first: KvEventBatch = live.message().await.unwrap().unwrap();
    assert_eq!((first.sequence_number, first.dp_rank, first.snapshot.is_some()), (1, Some(0), false));
    let Some(Data::Stored(stored)) = &first.events[0].data else { panic!("{first:?}") };
    let tokens: Vec<u32> = stored.blocks.iter().flat_map(|block| block.token_ids.clone()).collect();
    assert_eq!((tokens, stored.parent_block_hash), (prompt[..48].to_vec(), None));
    assert!(stored.blocks.iter().all(|block| block.block_size == 16 && block.token_ids.len() == 16));

    assert_eq!(subscribe(1).await.message().await.unwrap().unwrap(), first, "replayed");
    // More than is kept: who comes now gets the state.
    for n in 0..120 {
        wholes(&server, asks(&[500 + n; 20], 1)).await;
    }
    let mut late = subscribe(1).await;
    let snapshot = late.message().await.unwrap().unwrap();
    assert!(matches!(snapshot.events[0].data, Some(Data::Cleared(_))));
    let place = snapshot.snapshot.unwrap();
    assert_eq!((place.index, place.count, place.blocks), (0, 1, 123));
    assert_eq!(snapshot.sequence_number, 121);
    // A subscription does not hold up the end.
    server.app.engine.start_draining();
    assert_eq!(late.message().await.unwrap(), None);
}
