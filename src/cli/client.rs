//! A small HTTP/1.1 client for OpenAI-compatible servers, shared by `chat`, `complete` and `bench serve`.
//!
//! Plain http only. Connections are kept and used again; dropping a stream that has not ended drops its
//! connection, which is how a request is aborted.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::sse::SseParser;

/// What went wrong between us and the server.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// The address cannot be used.
    #[error("{url:?} cannot be used: {problem}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Nobody listens there.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Host and port.
        address: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The connection failed on the way.
    #[error("the connection failed: {0}")]
    Http(#[from] hyper::Error),
    /// The server said no.
    #[error("the server answered {status}: {message}")]
    Status {
        /// Its status.
        status: StatusCode,
        /// The error's message, or the body.
        message: String,
    },
    /// The server sent an error in the middle of a stream.
    #[error("the server reported: {0}")]
    InStream(String),
    /// The answer is not what it should be.
    #[error("the answer is not understood: {0}")]
    Answer(String),
}

/// A server. Shared behind an `Arc`.
#[derive(Debug)]
pub(super) struct Client {
    address: String,
    /// Path before every path, without a final slash.
    base_path: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Client {
    /// A client of the server at `url` (`http://host:port/path`).
    pub(super) fn new(url: &str, api_key: Option<&str>) -> Result<Self, ClientError> {
        let refuse = |problem| ClientError::Url { url: url.into(), problem };
        let uri: Uri =
            url.parse().map_err(|_| refuse("it is not an address like http://localhost:8000/v1"))?;
        match uri.scheme_str() {
            Some("http") => (),
            Some("https") => {
                return Err(refuse("only http is spoken here; put a TLS proxy or a tunnel in between"));
            }
            _ => return Err(refuse("it must begin with http://")),
        }
        let host = uri.host().ok_or_else(|| refuse("it names no host"))?;
        let mut headers = Vec::new();
        if let Some(key) = api_key {
            let value = HeaderValue::try_from(format!("Bearer {key}"))
                .map_err(|_| refuse("the API key is not ASCII"))?;
            headers.push((AUTHORIZATION, value));
        }
        Ok(Self {
            address: format!("{host}:{}", uri.port_u16().unwrap_or(80)),
            base_path: uri.path().trim_end_matches('/').into(),
            headers,
            idle: Mutex::new(Vec::new()),
        })
    }

    /// Sends this header with every request.
    pub(super) fn add_header(&mut self, name: &str, value: &str) -> Result<(), ClientError> {
        let refuse = |problem| ClientError::Url { url: format!("{name}={value}"), problem };
        let name = HeaderName::try_from(name)
            .map_err(|_| refuse("the name of the header has characters that are not allowed"))?;
        let value = HeaderValue::try_from(value)
            .map_err(|_| refuse("the value of the header has characters that are not allowed"))?;
        self.headers.push((name, value));
        Ok(())
    }

    /// GET, for JSON.
    pub(super) async fn get(self: &Arc<Self>, path: &str) -> Result<Value, ClientError> {
        let (response, connection) = self.send("GET", path, Bytes::new()).await?;
        let body = response.into_body().collect().await?.to_bytes();
        self.keep(connection);
        serde_json::from_slice(&body).map_err(|e| ClientError::Answer(e.to_string()))
    }

    /// POST of JSON, for a stream of events.
    pub(super) async fn post(self: &Arc<Self>, path: &str, body: Bytes) -> Result<EventStream, ClientError> {
        let (response, connection) = self.send("POST", path, body).await?;
        Ok(EventStream {
            body: response.into_body(),
            parser: SseParser::default(),
            connection: Some(connection),
            client: self.clone(),
        })
    }

    /// The names of the models that the server lists.
    pub(super) async fn models(self: &Arc<Self>, path: &str) -> Result<Vec<String>, ClientError> {
        let list = self.get(path).await?;
        let models = list["data"].as_array().into_iter().flatten();
        let names: Vec<_> = models.filter_map(|model| model["id"].as_str().map(String::from)).collect();
        if names.is_empty() { Err(ClientError::Answer("it lists no model".into())) } else { Ok(names) }
    }

    /// Sends, and waits for a head that says 200.
    async fn send(
        &self,
        method: &str,
        path: &str,
        body: Bytes,
    ) -> Result<(Response<Incoming>, SendRequest<Full<Bytes>>), ClientError> {
        loop {
            let (mut connection, is_fresh) = self.connection().await?;
            match connection.send_request(self.request(method, path, body.clone())).await {
                Ok(response) if response.status() == StatusCode::OK => return Ok((response, connection)),
                Ok(response) => {
                    let status = response.status();
                    let body = response.into_body().collect().await?.to_bytes();
                    self.keep(connection);
                    return Err(ClientError::Status { status, message: error_message(&body) });
                }
                // A kept connection that the server has closed meanwhile: the request was not begun.
                Err(error) if !is_fresh && (error.is_canceled() || error.is_closed()) => continue,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn request(&self, method: &str, path: &str, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base_path))
            .header(HOST, &self.address);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        request.body(Full::new(body)).expect("paths and hosts have been parsed")
    }

    async fn connection(&self) -> Result<(SendRequest<Full<Bytes>>, bool), ClientError> {
        while let Some(mut kept) = self.take_kept() {
            // Right after an answer's end the connection may need a moment more.
            if kept.ready().await.is_ok() {
                return Ok((kept, false));
            }
        }
        let refuse = |source| ClientError::Connect { address: self.address.clone(), source };
        let socket = TcpStream::connect(&self.address).await.map_err(refuse)?;
        socket.set_nodelay(true).map_err(refuse)?;
        let (sender, connection) = handshake(TokioIo::new(socket)).await?;
        // Its errors come out of the requests on it.
        tokio::spawn(connection);
        Ok((sender, true))
    }

    fn take_kept(&self) -> Option<SendRequest<Full<Bytes>>> {
        self.lock().pop()
    }

    fn keep(&self, connection: SendRequest<Full<Bytes>>) {
        self.lock().push(connection);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<SendRequest<Full<Bytes>>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A streamed answer. Dropping it early aborts the request.
#[derive(Debug)]
pub(super) struct EventStream {
    body: Incoming,
    parser: SseParser,
    connection: Option<SendRequest<Full<Bytes>>>,
    client: Arc<Client>,
}

impl EventStream {
    /// Waits for bytes to arrive. False at the end of the stream.
    pub(super) async fn receive(&mut self) -> Result<bool, ClientError> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(data) = frame?.into_data() {
                self.parser.push(&data);
                return Ok(true);
            }
        }
        if let Some(connection) = self.connection.take() {
            self.client.keep(connection);
        }
        Ok(false)
    }

    /// The data of the next event among the bytes that have arrived.
    pub(super) fn next_event(&mut self) -> Option<&[u8]> {
        self.parser.next_event()
    }
}

/// The message of an OpenAI error, or the start of the body.
pub(super) fn error_message(body: &[u8]) -> String {
    let json: Option<Value> = serde_json::from_slice(body).ok();
    let error = json.as_ref().map(|json| json.get("error").unwrap_or(json));
    // `{"error": "Unauthorized"}` is how vLLM refuses a key.
    let message = error.and_then(|error| error.get("message").unwrap_or(error).as_str());
    match message {
        Some(message) => message.into(),
        None => String::from_utf8_lossy(body).chars().take(300).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_in_the_servers_words() {
        let cases = [
            (r#"{"error":{"message":"too long","code":400}}"#, "too long"),
            (r#"{"error":"Unauthorized"}"#, "Unauthorized"),
            (r#"{"message":"gone"}"#, "gone"),
            (r#"{"detail":"other"}"#, r#"{"detail":"other"}"#),
            ("<html>", "<html>"),
        ];
        for (body, message) in cases {
            assert_eq!(error_message(body.as_bytes()), message);
        }
    }

    #[test]
    fn addresses_that_cannot_be_used_are_refused() {
        for (url, told) in
            [("https://h/v1", "only http"), ("h:8000", "http://"), ("http://", "http://localhost")]
        {
            let error = Client::new(url, None).unwrap_err().to_string();
            assert!(error.contains(told) && error.contains(url), "{error}");
        }
        let error = Client::new("http://h", Some("\u{1}")).unwrap_err().to_string();
        assert!(error.contains("key"), "{error}");
    }
}
