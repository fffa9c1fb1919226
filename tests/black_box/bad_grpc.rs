//! Invariant 12 over gRPC: a bad call gets a status that says whose fault it is and names the field.

use quire_proto::vllm::{self, GenerateRequest};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};

use crate::server::Server;
use crate::{grpc, http};

fn good() -> GenerateRequest {
    GenerateRequest {
        prompt: Some(grpc::text("Hello")),
        stopping: Some(vllm::StoppingCriteria { max_new_tokens: 3, ..Default::default() }),
        ..Default::default()
    }
}

/// The good request with one thing changed, through both methods.
async fn refuses(server: &Server, code: Code, names: &str, change: impl FnOnce(&mut GenerateRequest)) {
    let mut request = good();
    change(&mut request);
    let unary = grpc::try_generate(server.grpc, request.clone()).await;
    let unary = unary.expect_err(&format!("Generate accepts a bad {names}"));
    // An error before the first message may come as the call's answer or as the stream's.
    let stream = match grpc::open_stream(server.grpc, request).await {
        Ok(mut stream) => grpc::next(&mut stream).await.expect_err("GenerateStream accepts it"),
        Err(status) => status,
    };
    for status in [unary, stream] {
        assert_eq!(status.code(), code, "{names}: {status:?}");
        assert!(status.message().contains(names), "does not name {names}: {status:?}");
        assert!(!status.message().contains("panicked"), "{status:?}");
    }
}

async fn invalid(server: &Server, names: &str, change: impl FnOnce(&mut GenerateRequest)) {
    refuses(server, Code::InvalidArgument, names, change).await;
}

async fn assert_serves(server: &Server) {
    let answer = grpc::generate(server.grpc, good()).await;
    assert!(answer.outputs.is_some_and(|output| output.finish_info.is_some()));
}

#[tokio::test]
async fn invariant_12_grpc_values_out_of_range_are_named() {
    let server = Server::shared(&[]);
    for bad in [-0.1, 2.1, f32::NAN, f32::INFINITY] {
        invalid(&server, "temperature", |r| r.temperature = Some(bad)).await;
    }
    let sampling = |change: fn(&mut vllm::RandomSampling)| {
        move |r: &mut GenerateRequest| {
            r.temperature = Some(1.0);
            change(r.sampling.insert(vllm::RandomSampling::default()));
        }
    };
    invalid(&server, "num_sequences", sampling(|s| s.num_sequences = 10_000)).await;
    invalid(&server, "top_p", sampling(|s| s.top_p = Some(0.0))).await;
    invalid(&server, "top_p", sampling(|s| s.top_p = Some(1.1))).await;
    invalid(&server, "top_p", sampling(|s| s.top_p = Some(f32::NAN))).await;
    invalid(&server, "min_p", sampling(|s| s.min_p = Some(-0.1))).await;
    invalid(&server, "min_p", sampling(|s| s.min_p = Some(1.1))).await;

    let decoding = |change: fn(&mut vllm::DecodingParameters)| {
        move |r: &mut GenerateRequest| change(r.decoding.insert(vllm::DecodingParameters::default()))
    };
    invalid(&server, "presence_penalty", decoding(|d| d.presence_penalty = 2.1)).await;
    invalid(&server, "frequency_penalty", decoding(|d| d.frequency_penalty = -2.1)).await;
    invalid(&server, "repetition_penalty", decoding(|d| d.repetition_penalty = -1.0)).await;
    invalid(&server, "repetition_penalty", decoding(|d| d.repetition_penalty = f32::NAN)).await;
    invalid(&server, "logit_bias", decoding(|d| d.logit_bias = [(2048, 1.0)].into())).await;
    invalid(&server, "logit_bias", decoding(|d| d.logit_bias = [(1, f32::NAN)].into())).await;
    invalid(&server, "allowed_token_ids", decoding(|d| d.allowed_token_ids = vec![2048])).await;
    let empty_word =
        |d: &mut vllm::DecodingParameters| d.bad_words_token_ids = vec![vllm::TokenIds::default()];
    invalid(&server, "bad_words", decoding(empty_word)).await;
    let many_words = |d: &mut vllm::DecodingParameters| {
        d.bad_words_token_ids = vec![vllm::TokenIds { ids: vec![5] }; 1000]
    };
    invalid(&server, "bad_words", decoding(many_words)).await;

    let stopping = |change: fn(&mut vllm::StoppingCriteria)| {
        move |r: &mut GenerateRequest| change(r.stopping.as_mut().expect("set"))
    };
    invalid(&server, "max_new_tokens", stopping(|s| s.max_new_tokens = 2048)).await;
    invalid(&server, "max_new_tokens", stopping(|s| s.max_new_tokens = u32::MAX)).await;
    invalid(&server, "min_new_tokens", stopping(|s| s.min_new_tokens = 4)).await;
    invalid(&server, "min_new_tokens", stopping(|s| s.min_new_tokens = u32::MAX)).await;
    invalid(&server, "stop_token_ids", stopping(|s| s.stop_token_ids = vec![2048])).await;
    invalid(&server, "stop_strings", stopping(|s| s.stop_strings = vec!["x".to_owned(); 1000])).await;
    invalid(&server, "stop_strings", stopping(|s| s.stop_strings = vec![String::new()])).await;

    invalid(&server, "cache_salt", |r| {
        r.kv = Some(vllm::KvCacheParameters { cache_salt: "a/b".to_owned(), ..Default::default() });
    })
    .await;
    invalid(&server, "output_candidates", |r| {
        let select = Some(vllm::candidate_tokens::Select::TopN(1000));
        r.response = Some(vllm::ResponseOptions {
            output_logprobs: true,
            output_candidates: Some(vllm::CandidateTokens { select }),
            ..Default::default()
        });
    })
    .await;
    assert_serves(&server).await;
}

/// One answer has room for one sequence; a stream has room for all.
#[tokio::test]
async fn grpc_several_sequences_need_a_stream() {
    let server = Server::shared(&[]);
    let mut request = good();
    request.temperature = Some(1.0);
    request.sampling = Some(vllm::RandomSampling { num_sequences: 3, seed: Some(1), ..Default::default() });
    let status = grpc::try_generate(server.grpc, request.clone()).await.expect_err("no room");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("num_sequences"), "{status:?}");
    let mut ends = [0; 3];
    for output in grpc::generate_stream(server.grpc, request).await.into_iter().filter_map(|m| m.outputs) {
        ends[output.index as usize] += usize::from(output.finish_info.is_some());
    }
    assert_eq!(ends, [1; 3]);
}

#[tokio::test]
async fn invariant_12_grpc_prompts_that_cannot_be_served() {
    let server = Server::shared(&[]);
    invalid(&server, "prompt", |r| r.prompt = None).await;
    invalid(&server, "prompt", |r| r.prompt = Some(grpc::text(""))).await;
    invalid(&server, "prompt", |r| r.prompt = Some(grpc::tokens(&[]))).await;
    invalid(&server, "2048", |r| r.prompt = Some(grpc::tokens(&[5, 2048]))).await;
    invalid(&server, "2048", |r| r.prompt = Some(grpc::tokens(&vec![5; 2048]))).await;
    invalid(&server, "2048", |r| r.prompt = Some(grpc::text(&"word ".repeat(5000)))).await;
    refuses(&server, Code::NotFound, "gpt-4", |r| r.model = "gpt-4".to_owned()).await;
    assert_serves(&server).await;
}

#[tokio::test]
async fn invariant_9_grpc_what_is_not_supported_is_refused_by_name() {
    let server = Server::shared(&[]);
    invalid(&server, "media", |r| r.media = vec![vllm::MediaItem::default()]).await;
    invalid(&server, "watermarking", |r| r.watermarking = Some(true)).await;
    invalid(&server, "thinking_token_budget", |r| {
        r.stopping.as_mut().expect("set").thinking_token_budget = Some(5);
    })
    .await;
    let hints = vllm::KvHintsEnvelope { actions: vec![vllm::KvHintAction::default()], ..Default::default() };
    invalid(&server, "kv_hints", |r| r.kv_hints = Some(hints)).await;
    // Adapters are not enabled: that is the server's state, not the request's form.
    refuses(&server, Code::FailedPrecondition, "lora", |r| r.lora_name = "pirate".to_owned()).await;

    let mut control = grpc::control(server.grpc).await;
    let shutdown = control.shutdown(vllm::ShutdownRequest {}).await.map(drop);
    let pause = control.pause_generation(vllm::PauseGenerationRequest::default()).await.map(drop);
    for refused in [shutdown, pause] {
        let refused = refused.expect_err("operators have to ask for it");
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
        assert!(refused.message().contains("--enable-admin"), "{refused:?}");
    }
    assert_serves(&server).await;
}

#[tokio::test]
async fn invariant_7_grpc_large_messages() {
    let server = Server::start(&[]);
    // Larger than tonic's 4 MiB, and than any context: decoded, and refused for what it is.
    invalid(&server, "2048", |r| r.prompt = Some(grpc::tokens(&vec![300; 4_000_000]))).await;
    let before = server.resident_bytes();
    let error = grpc::try_generate(server.grpc, {
        let mut request = good();
        request.prompt = Some(grpc::text(&"x".repeat(100 << 20)));
        request
    });
    let error = error.await.expect_err("100 MB");
    let refused = [Code::OutOfRange, Code::ResourceExhausted, Code::InvalidArgument];
    assert!(refused.contains(&error.code()), "{error:?}");
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "grew by {grown} bytes");
    assert_serves(&server).await;
}

#[tokio::test]
async fn grpc_keys_are_asked_for() {
    let server = Server::start(&["--api-key", "first-key", "second-key"]);
    let mut client = grpc::inference(server.grpc).await;
    let mut control = grpc::control(server.grpc).await;
    for wrong in ["", "Bearer ", "Bearer wrong", "Bearer first-key2", "first-key"] {
        let mut request = Request::new(good());
        request.metadata_mut().insert("authorization", MetadataValue::from_static(wrong));
        let status = client.generate(request).await.expect_err("a wrong key");
        assert_eq!(status.code(), Code::Unauthenticated, "{wrong:?}: {status:?}");
        let mut request = Request::new(good());
        request.metadata_mut().insert("authorization", MetadataValue::from_static(wrong));
        let status = client.generate_stream(request).await.expect_err("a wrong key");
        assert_eq!(status.code(), Code::Unauthenticated, "{wrong:?}: {status:?}");
    }
    let status = client.generate(good()).await.expect_err("no key");
    assert_eq!(status.code(), Code::Unauthenticated);
    let status = control.get_server_info(vllm::GetServerInfoRequest {}).await.expect_err("no key");
    assert_eq!(status.code(), Code::Unauthenticated);
    for right in ["Bearer first-key", "Bearer second-key"] {
        let mut request = Request::new(good());
        request.metadata_mut().insert("authorization", MetadataValue::from_static(right));
        client.generate(request).await.expect("the right key");
    }
    // Probes have no key.
    let mut health = tonic_health::pb::health_client::HealthClient::new(grpc::channel(server.grpc).await);
    health.check(tonic_health::pb::HealthCheckRequest::default()).await.expect("open");
}

/// Bytes that are no HTTP/2, and HTTP/1 on the wrong port, get no answer and do no harm.
#[tokio::test]
async fn grpc_port_survives_other_protocols() {
    let server = Server::start(&[]);
    for bytes in [
        &b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"[..],
        &[0x16, 3, 1, 2, 0, 1],
        &[0; 64],
    ] {
        let stream = tokio::net::TcpStream::connect(server.grpc).await.expect("listens");
        stream.try_write(bytes).expect("sent");
    }
    assert_serves(&server).await;
    assert_eq!(http::get(server.http, "/health").await.status, 200);
}
