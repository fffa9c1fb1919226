//! Calls of the gRPC services by their generated clients.

use std::net::SocketAddr;

use quire_proto::vllm;
use quire_proto::vllm::control_client::ControlClient;
use quire_proto::vllm::inference_client::InferenceClient;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use crate::http::PATIENCE;

/// A new connection.
pub(crate) async fn channel(addr: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{addr}")).expect("a URI").connect().await.expect("gRPC listens")
}

/// A client on a connection of its own.
pub(crate) async fn inference(addr: SocketAddr) -> InferenceClient<Channel> {
    InferenceClient::new(channel(addr).await)
}

/// A client on a connection of its own.
pub(crate) async fn control(addr: SocketAddr) -> ControlClient<Channel> {
    ControlClient::new(channel(addr).await)
}

/// `Generate`, which must succeed.
pub(crate) async fn generate(addr: SocketAddr, request: vllm::GenerateRequest) -> vllm::GenerateResponse {
    try_generate(addr, request).await.expect("Generate succeeds")
}

/// `Generate`.
pub(crate) async fn try_generate(
    addr: SocketAddr,
    request: vllm::GenerateRequest,
) -> Result<vllm::GenerateResponse, Status> {
    let mut client = inference(addr).await;
    let answer = timeout(PATIENCE, client.generate(request)).await.expect("the server answers");
    answer.map(tonic::Response::into_inner)
}

/// `GenerateStream`, open.
pub(crate) async fn open_stream(
    addr: SocketAddr,
    request: vllm::GenerateRequest,
) -> Result<Streaming<vllm::GenerateResponse>, Status> {
    let mut client = inference(addr).await;
    let answer = timeout(PATIENCE, client.generate_stream(request)).await.expect("the server answers");
    answer.map(tonic::Response::into_inner)
}

/// `GenerateStream` to its end, which must be a good one.
pub(crate) async fn generate_stream(
    addr: SocketAddr,
    request: vllm::GenerateRequest,
) -> Vec<vllm::GenerateResponse> {
    let mut stream = open_stream(addr, request).await.expect("GenerateStream succeeds");
    let mut messages = Vec::new();
    while let Some(message) = next(&mut stream).await.expect("no error in the stream") {
        messages.push(message);
    }
    messages
}

/// The next message of a stream.
pub(crate) async fn next(
    stream: &mut Streaming<vllm::GenerateResponse>,
) -> Result<Option<vllm::GenerateResponse>, Status> {
    timeout(PATIENCE, stream.message()).await.expect("the server goes on sending")
}

/// A prompt of token ids.
pub(crate) fn tokens(ids: &[u32]) -> vllm::generate_request::Prompt {
    vllm::generate_request::Prompt::TokenIds(vllm::TokenIds { ids: ids.to_vec() })
}

/// A prompt of text.
pub(crate) fn text(text: &str) -> vllm::generate_request::Prompt {
    vllm::generate_request::Prompt::Text(text.to_owned())
}

/// The word HTTP uses for the same.
pub(crate) fn finish_reason(info: &vllm::FinishInfo) -> &'static str {
    use vllm::finish_info::FinishReason::{Aborted, Length, NotFinished, Stop};
    match info.finish_reason() {
        Length => "length",
        Stop => "stop",
        Aborted => "abort",
        NotFinished => panic!("finish_info says that it has not finished"),
    }
}
