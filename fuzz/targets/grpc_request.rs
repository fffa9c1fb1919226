//! Any bytes as a message of any method: a status in time, no failure of the server's own making, and nothing
//! left behind in the engine.

use std::sync::Arc;
use std::sync::OnceLock;

use bytes::{Buf, BufMut, Bytes};
use quire::app::App;
use quire::grpc::routes;
use quire::listen::{Protocol, bind, serve};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::server::{assert_idle, with_server};

/// Methods that any client may call.
const METHODS: &[&str] = &[
    "/vllm.Inference/Generate",
    "/vllm.Inference/GenerateStream",
    "/vllm.Control/GetServerInfo",
    "/vllm.Control/GetModelInfo",
    "/vllm.Control/Abort",
    "/vllm.grpc.engine.VllmEngine/Generate",
    "/vllm.grpc.engine.VllmEngine/GetLoads",
    "/vllm.grpc.engine.VllmEngine/GetTokenizer",
    "/openengine.v1.Inference/Generate",
    "/openengine.v1.Control/GetServerInfo",
];

/// One byte for the method, then the message.
pub fn run(data: &[u8]) {
    let Some((method, message)) = data.split_first() else { return };
    let method = METHODS[usize::from(*method) % METHODS.len()];
    with_server(async |app| {
        let status = call(channel(&app), method, Bytes::copy_from_slice(message)).await;
        // gRPC's own rule makes INTERNAL of a message that is none.
        let is_none = status.message().starts_with("failed to decode Protobuf message");
        let failed = matches!(status.code(), Code::Internal | Code::Unknown);
        assert!(!failed || is_none, "{method}: {status}");
        assert_idle(&app).await;
    });
}

/// Calls a method and reads its answers to the end; how it ended.
async fn call(channel: Channel, method: &'static str, message: Bytes) -> Status {
    let mut client = Grpc::new(channel);
    if let Err(error) = client.ready().await {
        panic!("the server is gone: {error}");
    }
    let path = PathAndQuery::from_static(method);
    let answer = client.server_streaming(Request::new(message), path, Raw).await;
    let mut answers = match answer {
        Ok(answer) => answer.into_inner(),
        Err(status) => return status,
    };
    loop {
        match answers.message().await {
            Ok(Some(_)) => (),
            Ok(None) => return Status::ok(""),
            Err(status) => return status,
        }
    }
}

/// One connection to a listener of this process.
fn channel(app: &Arc<App>) -> Channel {
    static CHANNEL: OnceLock<Channel> = OnceLock::new();
    let connect = || {
        let listener = bind(([127, 0, 0, 1], 0).into()).expect("loopback has a port");
        let address = listener.local_addr().expect("a bound port");
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let serving = serve(listener, None, Protocol::Grpc, routes(app.clone()).into_axum_router(), stopped);
        tokio::spawn(async move {
            // The server would end with it.
            let _stop = stop;
            serving.await;
        });
        Endpoint::from_shared(format!("http://{address}")).expect("an address").connect_lazy()
    };
    CHANNEL.get_or_init(connect).clone()
}

/// Messages as the bytes they are.
#[derive(Debug, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(message.copy_to_bytes(message.remaining())))
    }
}
