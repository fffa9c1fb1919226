//! `openengine.v1`.

use quire_proto::openengine::v1 as wire;
use quire_proto::openengine::v1::control_client::ControlClient as OpenControl;
use quire_proto::openengine::v1::generate_request::Input;
use quire_proto::openengine::v1::generate_response::Event;
use quire_proto::openengine::v1::guided_decoding::Guide;
use quire_proto::openengine::v1::inference_client::InferenceClient as OpenInference;
use quire_proto::openengine::v1::stop_condition::Condition;
use quire_proto::openengine::v1::stop_match::Match;
use quire_proto::openengine::v1::subscribe_kv_events_response::Event as KvResponse;
use quire_proto::openengine::v1::{abort_request::Target, candidate_token_selection::Selection};

use super::*;

fn asks(prompt: &[u32], max_tokens: u32) -> wire::GenerateRequest {
    wire::GenerateRequest {
        input: Some(Input::TokenIds(wire::TokenIds { ids: prompt.to_vec() })),
        sampling: Some(wire::SamplingParams { seed: Some(5), ..Default::default() }),
        stopping: Some(wire::StoppingOptions { max_tokens: Some(max_tokens), ..Default::default() }),
        response: Some(wire::ResponseOptions::default()),
        ..Default::default()
    }
}

fn control(server: &TestServer) -> OpenControl<Channel> {
    OpenControl::new(server.channel.clone())
}

async fn generate(
    server: &TestServer,
    request: impl tonic::IntoRequest<wire::GenerateRequest>,
) -> (Vec<wire::GenerateResponse>, Result<(), Status>) {
    let mut stream = match OpenInference::new(server.channel.clone()).generate(request).await {
        Ok(response) => response.into_inner(),
        Err(status) => return (Vec::new(), Err(status)),
    };
    let mut messages = Vec::new();
    loop {
        match stream.message().await {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => return (messages, Ok(())),
            Err(status) => return (messages, Err(status)),
        }
    }
}

/// One output put together.
#[derive(Debug, Default, PartialEq)]
struct Output {
    tokens: Vec<wire::TokenInfo>,
    text: String,
    finished: Option<wire::GenerationFinished>,
}

/// The prompt, the outputs and the usage of a call that must end well; checks what holds for each.
async fn outputs(
    server: &TestServer,
    request: wire::GenerateRequest,
) -> (Option<wire::PromptOutput>, Vec<Output>, wire::Usage) {
    let (messages, end) = generate(server, request).await;
    end.unwrap();
    let (mut prompt, mut outputs) = (None, Vec::<Output>::new());
    let last = messages.len() - 1;
    for (at, message) in messages.iter().enumerate() {
        assert_eq!(message.usage.is_some(), at == last, "usage is on the last response");
        assert!(!message.request_id.is_empty());
        let index = match message.event.clone().expect("never empty") {
            Event::Prompt(tokens) => {
                assert!(prompt.replace(tokens).is_none() && outputs.is_empty(), "once, and first");
                continue;
            }
            Event::Token(token) => {
                let index = token.output_index.unwrap() as usize;
                outputs.resize_with(outputs.len().max(index + 1), Output::default);
                assert!(outputs[index].finished.is_none(), "news of an output after its end");
                outputs[index].tokens.extend(token.tokens);
                outputs[index].text.push_str(&token.text);
                continue;
            }
            Event::Finished(finished) => (finished.output_index.unwrap(), finished),
            other => panic!("{other:?}"),
        };
        assert!(outputs[index.0 as usize].finished.replace(index.1).is_none());
    }
    assert!(outputs.iter().all(|output| output.finished.is_some()));
    let usage = messages[last].usage.unwrap();
    let num_tokens: usize = outputs.iter().map(|output| output.tokens.len()).sum();
    assert_eq!(usage.completion_tokens as usize, num_tokens);
    assert_eq!(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
    (prompt, outputs, usage)
}

fn ids(output: &Output) -> Vec<u32> {
    output.tokens.iter().map(|token| token.token_id).collect()
}

#[tokio::test]
async fn outputs_come_as_events_and_the_last_bears_the_usage() {
    let server = TestServer::start(Options::default()).await;
    let mut request = asks(&(10..60).collect::<Vec<_>>(), 12);
    let sampling = request.sampling.as_mut().unwrap();
    sampling.num_sequences = Some(3);
    let (prompt, all, usage) = outputs(&server, request).await;
    assert_eq!((prompt, all.len()), (None, 3));
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (50, 36));
    assert_ne!(ids(&all[0]), ids(&all[1]));
    for output in &all {
        assert_eq!(output.text, server.app.tokenizer.decode(&ids(output), true));
        assert_eq!(output.finished.as_ref().unwrap().reason(), wire::FinishReason::Length);
        assert!(output.tokens.iter().all(|token| token.logprob.is_none() && token.candidates.is_empty()));
    }
    // The same as by another dialect.
    let (messages, _) = server.stream(super::request(&(10..60).collect::<Vec<_>>(), 12)).await;
    let other: Vec<u32> =
        messages.iter().filter_map(|m| m.outputs.clone()).flat_map(|output| output.token_ids).collect();
    assert_eq!(ids(&all[0]), other);
    server.settled().await;
}

#[tokio::test]
async fn logprobs_and_candidates() {
    let server = TestServer::start(Options::default()).await;
    let mut request = asks(&[10, 11, 12, 13], 4);
    let top = |n| Some(wire::CandidateTokenSelection { selection: Some(Selection::TopN(n)) });
    request.response = Some(wire::ResponseOptions {
        return_prompt_logprobs: Some(true),
        prompt_logprob_start: Some(1),
        return_output_logprobs: Some(true),
        output_candidates: top(2),
        ..Default::default()
    });
    let (prompt, all, _) = outputs(&server, request).await;
    let prompt = prompt.unwrap();
    assert_eq!(prompt.tokens.iter().map(|token| token.token_id).collect::<Vec<_>>(), [11, 12, 13]);
    assert_eq!((prompt.tokens[0].logprob, prompt.tokens[0].rank), (Some(-1.0), Some(1)));
    for token in &all[0].tokens {
        assert!(token.logprob.is_some() && token.rank.is_some());
        assert_eq!(token.token, server.app.tokenizer.token_text(token.token_id));
    }
}

#[tokio::test]
async fn what_stopped_an_output_is_told() {
    let server = TestServer::start(Options::default()).await;
    let (_, free, _) = outputs(&server, asks(&[3, 4, 5], 30)).await;
    let stop = ids(&free[0])[6];
    let mut request = asks(&[3, 4, 5], 30);
    let condition = Some(Condition::StopTokenId(stop));
    request.stopping.as_mut().unwrap().conditions = vec![wire::StopCondition { condition }];
    let (_, stopped, _) = outputs(&server, request).await;
    let finished = stopped[0].finished.clone().unwrap();
    assert_eq!(finished.reason(), wire::FinishReason::Stop);
    assert_eq!(finished.stop_match.unwrap().r#match, Some(Match::StopTokenId(stop)));

    let chars: Vec<char> = free[0].text.chars().collect();
    let word: String = chars[chars.len() / 2..chars.len() / 2 + 4].iter().collect();
    let mut request = asks(&[3, 4, 5], 30);
    let condition = Some(Condition::StopText(word.clone()));
    request.stopping.as_mut().unwrap().conditions = vec![wire::StopCondition { condition }];
    for keep in [false, true] {
        request.stopping.as_mut().unwrap().include_stop_in_output = Some(keep);
        let (_, stopped, _) = outputs(&server, request.clone()).await;
        let finished = stopped[0].finished.clone().unwrap();
        assert_eq!(finished.stop_match.unwrap().r#match, Some(Match::StopText(word.clone())));
        assert_eq!(stopped[0].text.ends_with(&word), keep, "{:?}", stopped[0].text);
    }
}

type Change = fn(&mut wire::GenerateRequest);

fn sampling(request: &mut wire::GenerateRequest) -> &mut wire::SamplingParams {
    request.sampling.as_mut().unwrap()
}

fn guided(guide: Guide) -> Option<wire::GuidedDecoding> {
    Some(wire::GuidedDecoding { guide: Some(guide), backend: String::new() })
}

const INVALID: &[(&str, Change)] = &[
    ("input", |r| r.input = None),
    ("input", |r| r.input = asks(&[VOCAB_SIZE], 1).input),
    ("media", |r| r.media = vec![Default::default()]),
    ("kv.session", |r| {
        r.kv = Some(wire::KvOptions { session: Some(Default::default()), ..Default::default() })
    }),
    ("kv.cache_salt", |r| {
        r.kv = Some(wire::KvOptions { cache_salt: Some("a/b".into()), ..Default::default() })
    }),
    ("sampling.temperature", |r| sampling(r).temperature = Some(3.0)),
    ("sampling.top_k", |r| sampling(r).top_k = Some(-2)),
    ("sampling.top_p", |r| sampling(r).top_p = Some(0.0)),
    ("sampling.min_p", |r| sampling(r).min_p = Some(2.0)),
    ("sampling.seed", |r| sampling(r).seed = Some(u64::MAX)),
    ("sampling.num_sequences", |r| sampling(r).num_sequences = Some(0)),
    ("stopping.max_tokens", |r| r.stopping.as_mut().unwrap().max_tokens = Some(0)),
    ("stopping.min_tokens", |r| r.stopping.as_mut().unwrap().min_tokens = Some(50)),
    ("stopping.conditions", |r| r.stopping.as_mut().unwrap().conditions = vec![Default::default()]),
    ("response.output_candidates.token_ids", |r| {
        let selection = Some(Selection::TokenIds(wire::TokenIds { ids: vec![1] }));
        r.response.as_mut().unwrap().output_candidates = Some(wire::CandidateTokenSelection { selection });
    }),
    ("response.prompt_candidates", |r| {
        r.response.as_mut().unwrap().prompt_candidates = Some(Default::default());
    }),
    ("guided.backend", |r| {
        r.guided = Some(wire::GuidedDecoding { guide: None, backend: "xgrammar".into() });
    }),
    ("guided.json_schema", |r| r.guided = guided(Guide::JsonSchema("{".into()))),
    ("guided.regex", |r| r.guided = guided(Guide::Regex("(".into()))),
    ("guided.choice", |r| r.guided = guided(Guide::Choice(Default::default()))),
];

#[tokio::test]
async fn invariant_9_12_bad_requests_are_refused_by_name() {
    let server = TestServer::start(Options::default()).await;
    for (field, change) in INVALID {
        let mut request = asks(&[1, 2, 3], 4);
        change(&mut request);
        assert_invalid(&generate(&server, request).await.1.expect_err(field), field);
    }
    let other = wire::GenerateRequest { model: "other".into(), ..asks(&[1], 1) };
    assert_eq!(generate(&server, other).await.1.unwrap_err().code(), Code::NotFound);
    let lora = wire::GenerateRequest { lora_name: "other".into(), ..asks(&[1], 1) };
    assert_eq!(generate(&server, lora).await.1.unwrap_err().code(), Code::FailedPrecondition);
    for (key, values) in [
        ("openengine-priority", vec!["high"]),
        ("openengine-priority", vec!["1", "1"]),
        ("openengine-target-dp-rank", vec!["1"]),
        ("openengine-target-dp-rank", vec!["-1"]),
        ("openengine-routing-key", vec!["a", "b"]),
    ] {
        let mut call = tonic::Request::new(asks(&[1], 1));
        values.iter().for_each(|value| _ = call.metadata_mut().append(key, value.parse().unwrap()));
        assert_invalid(&generate(&server, call).await.1.unwrap_err(), key);
    }
    let mut call = tonic::Request::new(asks(&[1], 1));
    for (key, value) in
        [("openengine-priority", "-5"), ("openengine-target-dp-rank", "0"), ("openengine-routing-key", "x")]
    {
        call.metadata_mut().insert(key, value.parse().unwrap());
    }
    generate(&server, call).await.1.unwrap();
    server.settled().await;
}

#[tokio::test]
async fn a_constraint_holds() {
    let server = TestServer::start(Options::default()).await;
    let mut request = asks(&[1, 2, 3], 20);
    let choices = vec!["yes".into(), "no".into()];
    request.guided = guided(Guide::Choice(wire::ChoiceConstraint { choices }));
    let (_, all, _) = outputs(&server, request).await;
    assert!(["yes", "no"].contains(&all[0].text.as_str()), "{:?}", all[0].text);
}

/// The choice has ended where `min_tokens` does not let it end.
#[tokio::test]
async fn a_request_that_contradicts_itself_is_an_invalid_argument() {
    let server = TestServer::start(Options::default()).await;
    let mut request = asks(&[1, 2, 3], 50);
    request.guided = guided(Guide::Choice(wire::ChoiceConstraint { choices: vec!["yes".into()] }));
    request.stopping =
        Some(wire::StoppingOptions { max_tokens: Some(50), min_tokens: Some(40), ..Default::default() });
    let (messages, end) = generate(&server, request).await;
    end.unwrap();
    let Some(Event::Error(error)) = &messages.last().unwrap().event else { panic!("{messages:?}") };
    assert_eq!(error.code(), wire::ErrorCode::InvalidArgument);
    assert!(!error.retryable && error.message.contains("grammar"), "{error:?}");
    server.settled().await;
}

#[tokio::test]
async fn what_fails_later_is_an_error_in_a_call_that_ends_well() {
    let failures = SimFailures { row: 10_000, ..SimFailures::default() };
    let server = TestServer::start(Options { failures, ..Options::default() }).await;
    let (messages, end) = generate(&server, asks(&[1, 2], 5)).await;
    end.unwrap();
    let Some(Event::Error(error)) = &messages.last().unwrap().event else { panic!("{messages:?}") };
    assert_eq!(error.code(), wire::ErrorCode::Internal);
    assert!(error.message.contains("injected"), "{error:?}");
    server.settled().await;
}

#[tokio::test]
async fn invariant_6_aborts_deadlines_and_cancellation_free_the_engine() {
    let server = TestServer::start(Options { step_ms: 5, ..Options::default() }).await;
    let mut client = OpenInference::new(server.channel.clone());
    let mut stream = client.generate(asks(&[1; 100], 3000)).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    drop(stream);
    server.settled().await;
    let mut call = tonic::Request::new(asks(&[1; 100], 3000));
    call.set_timeout(Duration::from_millis(150));
    assert_eq!(generate(&server, call).await.1.unwrap_err().code(), Code::DeadlineExceeded);
    server.settled().await;

    let named = wire::GenerateRequest { request_id: "mine".into(), ..asks(&[1; 100], 3000) };
    let mut stream = client.generate(named).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    let abort = async |target| control(&server).abort(wire::AbortRequest { target }).await;
    let status =
        async |id: &str| abort(Some(Target::RequestId(id.into()))).await.unwrap().into_inner().status();
    assert_eq!(status("other").await, wire::AbortStatus::AlreadyFinished);
    assert_eq!(status("mine").await, wire::AbortStatus::Aborted);
    let mut last = None;
    while let Some(message) = stream.message().await.unwrap() {
        last = message.event;
    }
    let Some(Event::Finished(finished)) = last else { panic!("{last:?}") };
    assert_eq!(finished.reason(), wire::FinishReason::Cancelled);
    let all = Some(Target::AllRequests(wire::AllRequests {}));
    assert_eq!(abort(all).await.unwrap_err().code(), Code::PermissionDenied);
    assert_invalid(&abort(None).await.unwrap_err(), "target");
    server.settled().await;
}

#[tokio::test]
async fn routers_learn_what_they_need() {
    let server = TestServer::start(Options::default()).await;
    let mut control = control(&server);
    let info = control.get_server_info(wire::GetServerInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.schema_revision, info.minimum_client_revision), (1, 1));
    assert_eq!((info.engine_role(), info.engine_name.as_str()), (wire::EngineRole::Aggregated, "quire"));
    assert_eq!(info.capacity.unwrap().total_kv_blocks, Some(1000));
    let about = |model: &str| wire::GetModelInfoRequest { model: model.into() };
    let model = control.get_model_info(about("alias")).await.unwrap().into_inner();
    assert_eq!((model.served_model_name.as_str(), model.max_context_length), ("pebble", Some(MAX_MODEL_LEN)));
    assert_eq!(control.get_model_info(about("other")).await.unwrap_err().code(), Code::NotFound);
    for include_per_rank in [false, true] {
        let load = control.get_load(wire::GetLoadRequest { include_per_rank }).await.unwrap().into_inner();
        assert_eq!((load.running_requests, load.queued_requests), (Some(0), Some(0)));
        assert_eq!((load.used_kv_blocks, load.total_kv_blocks), (Some(0), Some(1000)));
        assert_eq!(
            (load.ranks.len(), load.instance_id == info.instance_id),
            (usize::from(include_per_rank), true)
        );
    }
    let mut health = async |change: fn(&mut wire::HealthRequest)| {
        let mut request = wire::HealthRequest::default();
        change(&mut request);
        control.health(request).await.map(|answer| answer.into_inner().state())
    };
    assert_eq!(health(|_| ()).await.unwrap(), wire::HealthState::Ready);
    assert_eq!(health(|r| r.include_inference_probe = true).await.unwrap(), wire::HealthState::Ready);
    assert_eq!(
        health(|r| r.role = wire::EngineRole::Prefill.into()).await.unwrap(),
        wire::HealthState::NotReady
    );
    assert_eq!(health(|r| r.model = "other".into()).await.unwrap_err().code(), Code::NotFound);
    server.app.engine.start_draining();
    assert_eq!(health(|_| ()).await.unwrap(), wire::HealthState::Draining);
}

#[tokio::test]
async fn kv_events_begin_where_the_client_says() {
    let server = TestServer::start(Options::default()).await;
    let subscribe = async |start_sequence_number, include_snapshot| {
        let data_parallel_ranks = vec![0];
        let request =
            wire::SubscribeKvEventsRequest { data_parallel_ranks, include_snapshot, start_sequence_number };
        control(&server).subscribe_kv_events(request).await.map(tonic::Response::into_inner)
    };
    let batch = async |stream: &mut tonic::Streaming<wire::SubscribeKvEventsResponse>| match stream
        .message()
        .await
        .unwrap()
        .unwrap()
        .event
    {
        Some(KvResponse::Batch(batch)) => batch,
        other => panic!("{other:?}"),
    };
    let mut live = subscribe(0, false).await.unwrap();
    outputs(&server, asks(&(10..60).collect::<Vec<_>>(), 1)).await;
    let first = batch(&mut live).await;
    let Some(wire::kv_event::Event::BlockStored(stored)) = &first.events[0].event else {
        panic!("{first:?}")
    };
    assert_eq!((first.sequence_number, stored.block_hashes.len(), stored.block_size), (1, 3, 16));
    assert_eq!(stored.token_ids, (10..58).collect::<Vec<u32>>());
    for n in 0..110 {
        outputs(&server, asks(&[500 + n; 20], 1)).await;
    }
    assert_eq!(subscribe(1, false).await.unwrap_err().code(), Code::OutOfRange);
    let snapshot = batch(&mut subscribe(1, true).await.unwrap()).await;
    assert_eq!((snapshot.sequence_number, snapshot.events.len()), (111, 1 + 3 + 110));
    assert_eq!(batch(&mut subscribe(111, false).await.unwrap()).await.sequence_number, 111);
}
