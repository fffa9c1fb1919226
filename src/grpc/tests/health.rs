//! Health tells the truth about the engine.

use tonic_health::pb::health_check_response::ServingStatus::{self, NotServing, ServiceUnknown, Serving};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::*;

fn about(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.into() }
}

async fn check(server: &TestServer, service: &str) -> Result<ServingStatus, Status> {
    let answer = HealthClient::new(server.channel.clone()).check(about(service)).await?;
    Ok(answer.into_inner().status())
}

async fn watch(server: &TestServer, service: &str) -> tonic::Streaming<HealthCheckResponse> {
    HealthClient::new(server.channel.clone()).watch(about(service)).await.unwrap().into_inner()
}

async fn next(watch: &mut tonic::Streaming<HealthCheckResponse>) -> Option<ServingStatus> {
    watch.message().await.unwrap().map(|answer| answer.status())
}

#[tokio::test]
async fn draining_is_told_and_ends_the_watches() {
    let server = TestServer::start(Options::default()).await;
    let mut watches = Vec::new();
    for service in [
        "",
        "vllm.Inference",
        "vllm.Control",
        "vllm.grpc.engine.VllmEngine",
        "openengine.v1.Inference",
        "openengine.v1.Control",
    ] {
        assert_eq!(check(&server, service).await.unwrap(), Serving, "{service}");
        watches.push(watch(&server, service).await);
    }
    for watch in &mut watches {
        assert_eq!(next(watch).await, Some(Serving));
    }
    server.app.engine.start_draining();
    for watch in &mut watches {
        assert_eq!(next(watch).await, Some(NotServing));
        assert_eq!(next(watch).await, None, "an open watch would hold up the shutdown");
    }
    assert_eq!(check(&server, "").await.unwrap(), NotServing);
    let (_, end) = server.stream(request(&[1], 1)).await;
    assert_eq!(end.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn unknown_services() {
    let server = TestServer::start(Options::default()).await;
    assert_eq!(check(&server, "other").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(next(&mut watch(&server, "other").await).await, Some(ServiceUnknown));
}

#[tokio::test]
async fn a_stall_is_told_and_so_is_its_end() {
    let stall_timeout = Duration::from_millis(100);
    let server = TestServer::start(Options { step_ms: 1000, stall_timeout, ..Options::default() }).await;
    let mut watch = watch(&server, "").await;
    assert_eq!(next(&mut watch).await, Some(Serving));
    let (mut client, asked) = (server.inference(), request(&[1], 1));
    let call = tokio::spawn(async move { client.generate(asked).await });
    assert_eq!(next(&mut watch).await, Some(NotServing));
    call.await.unwrap().unwrap();
    assert_eq!(next(&mut watch).await, Some(Serving));
}
