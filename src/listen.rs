//! Connections: bound ports, the loop that accepts, TLS handshakes, HTTP on what comes out of them.
//!
//! Both front ends are a [`Router`]; what differs between the ports is which versions of HTTP they speak.
//! A slow handshake holds up nobody: each runs by itself, has limited time, and there are only so many at once.

use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tower::ServiceExt;

use crate::tls::Tls;

/// Connections that may wait to be accepted. With the usual 128, a burst of new streams waits a second for
/// its second attempt.
const BACKLOG: u32 = 4096;
/// How long a client may take to send its request's head.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to agree on keys.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// TLS handshakes at once; others wait to be accepted.
const MAX_HANDSHAKES: usize = 1024;
/// Streams of an HTTP/2 connection at once. A gateway has one connection for all of its requests, and what bounds
/// those is `--max-num-queued-reqs`; this bounds what one client can open without asking for anything.
pub const MAX_CONCURRENT_STREAMS: u32 = 4096;
/// How often a silent HTTP/2 client is asked whether it is still there. One that has vanished without a word would
/// otherwise hold its requests. Pings of clients are answered, however many and whether or not a call is open.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(60);
/// How long it may take to say so (gRPC's default).
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Where connections come from.
#[derive(Debug)]
pub enum Socket {
    /// A port.
    Tcp(TcpListener),
    /// A file. Who may open it may connect, and there is no TLS.
    Unix(UnixListener),
}

impl From<TcpListener> for Socket {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    async fn accept(&self) -> std::io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(socket, _)| Accepted::Tcp(socket)),
            Self::Unix(listener) => listener.accept().await.map(|(socket, _)| Accepted::Unix(socket)),
        }
    }
}

/// Which versions of HTTP a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1, and HTTP/2 if the client begins with it.
    Http,
    /// HTTP/2 alone, as gRPC needs it.
    Grpc,
}

impl Protocol {
    /// Names for a TLS client to choose from (ALPN), best first.
    pub fn alpn(self) -> Vec<Vec<u8>> {
        match self {
            Self::Http => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Self::Grpc => vec![b"h2".to_vec()],
        }
    }

    fn connections(self) -> auto::Builder<TokioExecutor> {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_READ_TIMEOUT);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
            .keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
        match self {
            Self::Http => builder,
            Self::Grpc => builder.http2_only(),
        }
    }
}

/// Takes a port, with room for many to wait.
pub fn bind(addr: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restarted server must not wait until the old one's connections are forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// Takes a file as a socket. One that a server left behind is replaced; any other file stays.
pub fn bind_file(path: &Path) -> std::io::Result<UnixListener> {
    let is_socket =
        |path: &Path| std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if is_socket(path) && std::os::unix::net::UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

/// Answers on a port until told to stop, and then until its connections have ended.
pub async fn serve(
    listener: impl Into<Socket>,
    tls: Option<Arc<Tls>>,
    protocol: Protocol,
    router: Router,
    mut stopped: watch::Receiver<bool>,
) {
    let listener = listener.into();
    let connections = GracefulShutdown::new();
    let builder = protocol.connections();
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if handshakes.len() < MAX_HANDSHAKES => match accepted {
                Ok(Accepted::Unix(socket)) => serve_connection(socket, &builder, &router, &connections),
                Ok(Accepted::Tcp(socket)) => {
                    // Tokens are small and late: do not let the kernel wait for more of them.
                    let _ = socket.set_nodelay(true);
                    match &tls {
                        None => serve_connection(socket, &builder, &router, &connections),
                        Some(tls) => drop(handshakes.spawn(shake_hands(socket, tls.clone(), protocol))),
                    }
                }
                Err(error) => {
                    // Out of file descriptors, most likely: let some connections end first.
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(Duration::from_millis(50)).await;
                }
            },
            Some(ended) = handshakes.join_next() => {
                if let Ok(Some(stream)) = ended {
                    serve_connection(stream, &builder, &router, &connections);
                }
            }
            _ = stopped.changed() => break,
        }
    }
    drop((listener, handshakes));
    connections.shutdown().await;
}

async fn shake_hands(socket: TcpStream, tls: Arc<Tls>, protocol: Protocol) -> Option<TlsStream<TcpStream>> {
    let acceptor = TlsAcceptor::from(tls.current(protocol));
    match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!("a TLS handshake took too long");
            None
        }
    }
}

fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    builder: &auto::Builder<TokioExecutor>,
    router: &Router,
    connections: &GracefulShutdown,
) {
    let router = router.clone();
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        router.clone().oneshot(request.map(axum::body::Body::new))
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
    let connection = connections.watch(connection);
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended with an error");
        }
    });
}
