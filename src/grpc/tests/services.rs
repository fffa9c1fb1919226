//! Everything around generation: control, reflection, keys, overload.

use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

use super::*;

#[tokio::test]
async fn routers_learn_what_they_need() {
    let server = TestServer::start(Options::default()).await;
    let info = server.control().get_server_info(GetServerInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.api_version, "vllm");
    assert_eq!((info.max_model_len, info.kv_block_size, info.total_kv_blocks), (MAX_MODEL_LEN, 16, 1000));
    assert_eq!((info.max_running_requests, info.max_batched_tokens), (32, 256));
    assert_eq!(info.parallelism.unwrap().data_parallel_size, 1);
    assert!(!info.instance_id.is_empty() && !info.proto_version.is_empty());
    let model = server.control().get_model_info(GetModelInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((model.model_id.as_str(), model.served_model_name.as_str()), ("models/pebble", "pebble"));
    assert_eq!(model.served_model_aliases, ["alias"]);
    assert!(model.supports_text_input && model.supports_token_ids_input && !model.supports_lora);
    let mut control = server.control();
    assert!(control.list_loras(ListLorasRequest {}).await.unwrap().into_inner().adapters.is_empty());
    let sources = control.get_kv_event_sources(GetKvEventSourcesRequest {}).await.unwrap();
    assert!(sources.into_inner().sources.is_empty());
    assert!(!control.is_paused(IsPausedRequest {}).await.unwrap().into_inner().paused);
    assert!(!control.is_sleeping(IsSleepingRequest {}).await.unwrap().into_inner().sleeping);
}

#[tokio::test]
async fn what_cannot_be_done_is_refused() {
    let server = TestServer::start(Options::default()).await;
    let mut control = server.control();
    let precondition = [
        control.load_lora(LoadLoraRequest::default()).await.map(drop),
        control.unload_lora(UnloadLoraRequest::default()).await.map(drop),
    ];
    for refusal in precondition {
        assert_eq!(refusal.unwrap_err().code(), Code::FailedPrecondition);
    }
    let unimplemented = [
        control.update_weights(UpdateWeightsRequest::default()).await.map(drop),
        control.update_weight_version(UpdateWeightVersionRequest::default()).await.map(drop),
    ];
    for refusal in unimplemented {
        let status = refusal.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
        assert!(status.message().contains("not supported"));
    }
}

#[tokio::test]
async fn a_full_server_answers_at_once() {
    let server =
        TestServer::start(Options { step_ms: 5, max_num_queued_reqs: 1, ..Options::default() }).await;
    let _running = server.inference().generate_stream(request(&[1], 4000)).await.unwrap();
    let status = server.inference().generate(request(&[1], 1)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
    let rendered = server.app.metrics.render(server.app.engine.stats());
    let line = rendered.lines().find(|line| line.starts_with("vllm:admission_rejections_total{")).unwrap();
    assert!(line.ends_with(" 1"), "{line}");
}

#[tokio::test]
async fn keys_are_needed_for_all_but_health() {
    let keys = vec!["secret".into(), "other".into()];
    let server = TestServer::start(Options { api_keys: keys, ..Options::default() }).await;
    for bad in [None, Some("Bearer wrong"), Some("secret")] {
        let mut call = tonic::Request::new(request(&[1], 1));
        let mut question = tonic::Request::new(GetModelInfoRequest {});
        if let Some(bad) = bad {
            call.metadata_mut().insert("authorization", bad.parse().unwrap());
            question.metadata_mut().insert("authorization", bad.parse().unwrap());
        }
        assert_eq!(server.inference().generate(call).await.unwrap_err().code(), Code::Unauthenticated);
        let status = server.control().get_model_info(question).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
    }
    let mut call = tonic::Request::new(request(&[1], 1));
    call.metadata_mut().insert("authorization", "Bearer other".parse().unwrap());
    server.inference().generate(call).await.unwrap();
    let health = HealthClient::new(server.channel.clone()).check(HealthCheckRequest::default()).await;
    health.unwrap();
    let mut reflection = ServerReflectionClient::new(server.channel.clone());
    let questions = tokio_stream::iter([ServerReflectionRequest::default()]);
    let status = reflection.server_reflection_info(questions).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}

/// The two versions have the same messages under two names.
macro_rules! reflection_client {
    ($version:ident, $service:literal) => {
        mod $version {
            use super::*;
            use prost::Message;
            use tonic_reflection::pb::$version::ServerReflectionRequest;
            use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
            use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
            use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;

            pub(super) const ALL_SERVICES: [&str; 7] = [
                "grpc.health.v1.Health",
                $service,
                "openengine.v1.Control",
                "openengine.v1.Inference",
                "vllm.Control",
                "vllm.Inference",
                "vllm.grpc.engine.VllmEngine",
            ];

            pub(super) fn list_services() -> MessageRequest {
                MessageRequest::ListServices(String::new())
            }

            /// Names of services, or of files.
            pub(super) async fn ask(server: &TestServer, question: MessageRequest) -> Vec<String> {
                let request =
                    ServerReflectionRequest { host: String::new(), message_request: Some(question) };
                let requests = tokio_stream::iter([request]);
                let mut client = ServerReflectionClient::new(server.channel.clone());
                let mut answers = client.server_reflection_info(requests).await.unwrap().into_inner();
                let mut names = match answers.message().await.unwrap().unwrap().message_response.unwrap() {
                    MessageResponse::ListServicesResponse(list) => {
                        list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
                    }
                    MessageResponse::FileDescriptorResponse(files) => files
                        .file_descriptor_proto
                        .iter()
                        .map(|file| {
                            prost_types::FileDescriptorProto::decode(&file[..]).unwrap().name().into()
                        })
                        .collect(),
                    other => panic!("{other:?}"),
                };
                names.sort();
                names
            }

            #[tokio::test]
            async fn reflection_knows_all_services() {
                let server = TestServer::start(Options::default()).await;
                assert_eq!(ask(&server, list_services()).await, ALL_SERVICES);
                for (symbol, file) in [
                    ("vllm.Inference", "vllm/inference.proto"),
                    ("vllm.Control.GetServerInfo", "vllm/control.proto"),
                    ("grpc.health.v1.Health", "health.proto"),
                ] {
                    let names = ask(&server, MessageRequest::FileContainingSymbol(symbol.into())).await;
                    assert!(names.iter().any(|name| name.ends_with(file)), "{symbol}: {names:?}");
                }
                let import = "google/protobuf/struct.proto";
                let names = ask(&server, MessageRequest::FileByFilename(import.into())).await;
                assert_eq!(names, [import]);
            }
        }
    };
}

reflection_client!(v1, "grpc.reflection.v1.ServerReflection");
reflection_client!(v1alpha, "grpc.reflection.v1alpha.ServerReflection");

#[tokio::test]
async fn operators_pause_and_end_the_server_if_they_may() {
    let server = TestServer::start(Options::default()).await;
    let mut control = server.control();
    let forbidden = [
        ("Shutdown", control.shutdown(ShutdownRequest {}).await.map(drop)),
        ("PauseGeneration", control.pause_generation(PauseGenerationRequest::default()).await.map(drop)),
        ("ResumeGeneration", control.resume_generation(ResumeGenerationRequest {}).await.map(drop)),
        ("Sleep", control.sleep(SleepRequest::default()).await.map(drop)),
        ("WakeUp", control.wake_up(WakeUpRequest::default()).await.map(drop)),
    ];
    for (name, refusal) in forbidden {
        let status = refusal.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(status.message().contains("--enable-admin") && status.message().contains(name), "{status:?}");
    }

    let server = TestServer::start(Options { step_ms: 2, enable_admin: true, ..Options::default() }).await;
    let mut control = server.control();
    let paused = async || server.control().is_paused(IsPausedRequest {}).await.unwrap().into_inner().paused;
    let mut stream = server.inference().generate_stream(request(&[1; 10], 50)).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    let mode = PauseMode::Keep.into();
    let clash = PauseGenerationRequest { mode, clear_cache: Some(true) };
    assert_invalid(&control.pause_generation(clash).await.unwrap_err(), "clear_cache");
    control.pause_generation(PauseGenerationRequest { mode, clear_cache: None }).await.unwrap();
    assert!(paused().await);
    control.resume_generation(ResumeGenerationRequest {}).await.unwrap();
    assert!(!paused().await);
    while stream.message().await.unwrap().is_some() {}

    let sleep = |level| SleepRequest { level, mode: PauseMode::Wait.into() };
    assert_eq!(control.sleep(sleep(None)).await.unwrap_err().code(), Code::Unimplemented);
    assert_invalid(&control.sleep(sleep(Some(3))).await.unwrap_err(), "level");
    control.sleep(sleep(Some(0))).await.unwrap();
    assert!(control.is_sleeping(IsSleepingRequest {}).await.unwrap().into_inner().sleeping);
    control.wake_up(WakeUpRequest::default()).await.unwrap();
    assert!(!paused().await);

    control.shutdown(ShutdownRequest {}).await.unwrap();
    server.app.shutdown.notified().await;
}

#[tokio::test]
async fn load_reports_are_in_the_trailers() {
    use prost::Message;
    let server = TestServer::start(Options::default()).await;
    let report = |metadata: &tonic::metadata::MetadataMap| {
        let bytes = metadata.get_bin("endpoint-load-metrics-bin").expect("a report").to_bytes().unwrap();
        quire_proto::orca::OrcaLoadReport::decode(bytes).unwrap()
    };
    let mut stream = server.inference().generate_stream(request(&[1; 10], 5)).await.unwrap().into_inner();
    while stream.message().await.unwrap().is_some() {}
    let of_stream = report(&stream.trailers().await.unwrap().expect("trailers"));
    assert_eq!(
        of_stream.named_metrics.keys().collect::<Vec<_>>(),
        ["kv_cache_usage_perc", "num_requests_waiting"]
    );
    assert!((0.0..=1.0).contains(&of_stream.application_utilization));
    // A refusal has them too: balancers want to know most of all then.
    let status = server.inference().generate(GenerateRequest::default()).await.unwrap_err();
    report(status.metadata());
    let info = server.control().get_server_info(GetServerInfoRequest {}).await.unwrap();
    assert!(info.metadata().get_bin("endpoint-load-metrics-bin").is_none(), "only calls that generate");
}

#[tokio::test]
async fn pings_without_calls_are_tolerated() {
    let server = TestServer::start(Options::default()).await;
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let endpoint = endpoint
        .http2_keep_alive_interval(Duration::from_millis(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true);
    let channel = endpoint.connect().await.unwrap();
    // A hundred pings; gRPC's own servers close the connection at the third.
    tokio::time::sleep(Duration::from_millis(500)).await;
    InferenceClient::new(channel).generate(request(&[1], 1)).await.unwrap();
}

#[tokio::test]
async fn invariant_7_messages_are_limited() {
    let server = TestServer::start(Options::default()).await;
    let ids =
        |bytes: usize| GenerateRequest { prompt: Some(Prompt::Text("a".repeat(bytes))), ..request(&[], 1) };
    let mut client = server.inference().max_encoding_message_size(64 << 20);
    let status = client.generate(ids(super::super::MAX_MESSAGE_BYTES)).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    let status = client.generate(ids(8 << 20)).await.unwrap_err();
    assert_invalid(&status, "prompt");
}
