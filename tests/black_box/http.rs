//! A small HTTP client that hides nothing: one connection a request, closed when the caller lets go.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{HeaderMap, Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// No answer to a test may take longer, also on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Response {
    /// Status code.
    pub(crate) status: u16,
    /// Headers.
    pub(crate) headers: HeaderMap,
    /// The body as received.
    pub(crate) body: Bytes,
}

impl Response {
    /// The body, which must be UTF-8.
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).expect("bodies are UTF-8")
    }

    /// The body, which must be JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.text()))
    }

    /// The body of a 200.
    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// A header as text; empty if it is missing.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("headers are ASCII"))
    }
}

/// An answer whose body is still coming. Dropping it closes the connection.
#[derive(Debug)]
pub(crate) struct Open {
    /// Status code.
    pub(crate) status: u16,
    /// Headers.
    pub(crate) headers: HeaderMap,
    body: Incoming,
    received: Vec<u8>,
    /// When the last bytes came.
    pub(crate) last_read: Instant,
    _connection: Connection,
}

#[derive(Debug)]
struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        // Ends the task that owns the socket, and so closes it at once.
        self.0.abort();
    }
}

impl Open {
    /// The next server-sent event with its blank line cut off; `None` at the end of the body, where
    /// nothing may be left over.
    pub(crate) async fn frame(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.received.windows(2).position(|pair| pair == b"\n\n") {
                let frame: Vec<u8> = self.received.drain(..end + 2).collect();
                return Some(String::from_utf8(frame[..end].to_vec()).expect("events are UTF-8"));
            }
            if !self.read().await {
                assert!(self.received.is_empty(), "half an event: {:?}", self.received);
                return None;
            }
        }
    }

    /// The data of the next event: JSON, or `None` for `[DONE]`.
    pub(crate) async fn event(&mut self) -> Option<Value> {
        let frame = self.frame().await.expect("the stream ends with [DONE]");
        let data = frame.strip_prefix("data: ").unwrap_or_else(|| panic!("not a data event: {frame:?}"));
        (data != "[DONE]").then(|| serde_json::from_str(data).expect("events are JSON"))
    }

    /// All events up to `[DONE]`, after which the body must end.
    pub(crate) async fn events(mut self) -> Vec<Value> {
        let mut events = Vec::new();
        while let Some(event) = self.event().await {
            events.push(event);
        }
        assert_eq!(self.frame().await, None, "[DONE] is the last event");
        events
    }

    /// Takes in more of the body; false at its end.
    async fn read(&mut self) -> bool {
        let frame = timeout(PATIENCE, self.body.frame()).await.expect("the server goes on sending");
        self.last_read = Instant::now();
        let Some(frame) = frame else { return false };
        let frame = frame.expect("the body comes whole");
        self.received.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        true
    }

    /// The rest of the body.
    pub(crate) async fn whole(mut self) -> Response {
        while self.read().await {}
        Response { status: self.status, headers: self.headers, body: self.received.into() }
    }
}

/// A request and the start of its answer.
pub(crate) async fn open(
    addr: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Result<Open, hyper::Error> {
    let stream = TcpStream::connect(addr).await.expect("the server listens");
    open_on(stream, method, path, headers, body).await
}

/// The same on a given connection.
pub(crate) async fn open_on(
    stream: TcpStream,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Result<Open, hyper::Error> {
    stream.set_nodelay(true).expect("a TCP socket");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = Connection(tokio::spawn(connection).abort_handle());
    let mut request = Request::builder().method(method).uri(path).header("host", "quire.test");
    for &(name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(body.into())).expect("a valid request");
    let answer = timeout(PATIENCE, sender.send_request(request)).await.expect("the server answers")?;
    let (parts, body) = answer.into_parts();
    Ok(Open {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body,
        received: Vec::new(),
        last_read: Instant::now(),
        _connection: connection,
    })
}

/// A connection whose kernel buffer takes in only about this many bytes that nobody reads.
pub(crate) async fn connect_with_small_buffer(addr: SocketAddr, bytes: u32) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(bytes).expect("the buffer can be set");
    socket.connect(addr).await.expect("the server listens")
}

/// A request and its whole answer.
pub(crate) async fn send(
    addr: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Response {
    let open = open(addr, method, path, headers, body).await.expect("an HTTP answer");
    open.whole().await
}

/// GET.
pub(crate) async fn get(addr: SocketAddr, path: &str) -> Response {
    send(addr, Method::GET, path, &[], "").await
}

/// POST of JSON.
pub(crate) async fn post(addr: SocketAddr, path: &str, body: &Value) -> Response {
    send(addr, Method::POST, path, &[("content-type", "application/json")], body.to_string()).await
}

/// POST of JSON whose answer is streamed.
pub(crate) async fn post_open(addr: SocketAddr, path: &str, body: &Value) -> Open {
    let headers = [("content-type", "application/json")];
    open(addr, Method::POST, path, &headers, body.to_string()).await.expect("an HTTP answer")
}

/// POST of JSON with `stream: true`: all its events.
pub(crate) async fn stream(addr: SocketAddr, path: &str, body: &Value) -> Vec<Value> {
    let mut body = body.clone();
    body["stream"] = true.into();
    let open = post_open(addr, path, &body).await;
    if open.status != 200 {
        let response = open.whole().await;
        panic!("{}: {}", response.status, response.text());
    }
    open.events().await
}

/// Writes these bytes as they are, whatever the server says meanwhile, and gives what it answered.
pub(crate) async fn raw(addr: SocketAddr, request: &[u8]) -> String {
    let stream = TcpStream::connect(addr).await.expect("the server listens");
    let (mut reader, mut writer) = stream.into_split();
    let mut answer = Vec::new();
    let write = async {
        // The server may close before it has read all; its answer is what counts.
        let _ = writer.write_all(request).await;
        writer
    };
    let read = async {
        let mut buffer = [0; 16384];
        while let Ok(n @ 1..) = reader.read(&mut buffer).await {
            answer.extend_from_slice(&buffer[..n]);
        }
    };
    // `writer` lives until the answer is complete: a client that closes early is another test.
    timeout(PATIENCE, async { tokio::join!(write, read) }).await.expect("the server closes");
    String::from_utf8_lossy(&answer).into_owned()
}
