//! The listeners and their end: binds both ports, serves until a signal, drains, stops.
//!
//! A SIGTERM or SIGINT starts the drain: `/ready` and gRPC health say no, new requests get a 503 or
//! UNAVAILABLE, running ones may finish for `--shutdown-timeout`. What is left then is aborted, with a
//! proper last message to its client. A second signal stops at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::transport::server::TcpIncoming;
use tower::ServiceExt;

use crate::app::App;
use crate::config::ServerConfig;
use crate::{grpc, http};

/// Connections that may wait to be accepted. With the usual 128, a burst of new streams waits a second for
/// its second attempt.
const BACKLOG: u32 = 4096;
/// How long a client may take to send its request's head.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long connections may take to flush once the engine is empty.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// How long aborted requests may take to tell their clients.
const ABORT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the drain looks whether the engine is empty.
const DRAIN_POLL: Duration = Duration::from_millis(10);

/// Both ports, bound and not yet served. Made before the model is loaded, so that a taken port is known
/// at once.
#[derive(Debug)]
pub struct Listeners {
    http: TcpListener,
    grpc: Option<TcpListener>,
}

impl Listeners {
    /// Binds, inside a tokio runtime. The error names the address.
    pub fn bind(config: &ServerConfig) -> Result<Self, BindError> {
        let http = bind(SocketAddr::new(config.host, config.port))?;
        let grpc = match config.grpc_port {
            Some(port) => Some(bind(SocketAddr::new(config.host, port))?),
            None => None,
        };
        Ok(Self { http, grpc })
    }

    /// Where HTTP listens, with the port the system chose.
    pub fn http_addr(&self) -> std::io::Result<SocketAddr> {
        self.http.local_addr()
    }

    /// Where gRPC listens, if it does.
    pub fn grpc_addr(&self) -> Option<std::io::Result<SocketAddr>> {
        self.grpc.as_ref().map(TcpListener::local_addr)
    }
}

/// A port could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr} (choose another with --port, --grpc-port or --host)")]
pub struct BindError {
    addr: SocketAddr,
    source: std::io::Error,
}

fn bind(addr: SocketAddr) -> Result<TcpListener, BindError> {
    let listen = || {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restarted server must not wait until the old one's connections are forgotten.
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|source| BindError { addr, source })
}

/// Serves until the process is told to end, or the engine dies. Returns whether the end was orderly.
pub async fn serve(app: Arc<App>, listeners: Listeners) -> std::io::Result<bool> {
    let mut signals = Signals::new()?;
    let serving = Serving::start(&app, listeners);
    let orderly = tokio::select! {
        () = signals.next() => {
            tokio::select! {
                () = drain(&app) => true,
                () = signals.next() => {
                    tracing::warn!("second signal: stopping at once");
                    return Ok(false);
                }
            }
        }
        () = engine_death(&app) => false,
    };
    serving.stop().await;
    Ok(orderly)
}

/// Both listeners at work.
#[derive(Debug)]
pub struct Serving {
    stop: watch::Sender<bool>,
    http: JoinHandle<()>,
    grpc: Option<JoinHandle<()>>,
}

impl Serving {
    /// Begins to answer on both ports.
    pub fn start(app: &Arc<App>, listeners: Listeners) -> Self {
        let (stop, stopped) = watch::channel(false);
        let http = tokio::spawn(serve_http(listeners.http, http::router(app.clone()), stopped.clone()));
        let grpc = listeners.grpc.map(|listener| tokio::spawn(serve_grpc(listener, app.clone(), stopped)));
        Self { stop, http, grpc }
    }

    /// Takes no more connections, and gives those there are a moment to say their last.
    pub async fn stop(self) {
        // The listeners read this; they are there until they have.
        let _ = self.stop.send(true);
        let all = async {
            let _ = self.http.await;
            if let Some(grpc) = self.grpc {
                let _ = grpc.await;
            }
        };
        if timeout(FLUSH_TIMEOUT, all).await.is_err() {
            tracing::warn!("some connections did not close in time");
        }
    }
}

async fn drain(app: &App) {
    app.engine.start_draining();
    let in_flight = app.engine.num_in_flight();
    let limit = app.server.shutdown_timeout;
    tracing::info!(in_flight, timeout_s = limit.as_secs_f64(), "draining: no new requests are taken");
    if !empty_before(app, Instant::now() + limit).await {
        tracing::warn!(in_flight = app.engine.num_in_flight(), "the drain took too long: aborting the rest");
        app.engine.abort_all();
        empty_before(app, Instant::now() + ABORT_TIMEOUT).await;
    }
    tracing::info!("drained");
}

async fn empty_before(app: &App, deadline: Instant) -> bool {
    while app.engine.num_in_flight() > 0 {
        if Instant::now() >= deadline {
            return false;
        }
        sleep(DRAIN_POLL).await;
    }
    true
}

/// Returns when the engine thread has ended. The process then has nothing left to do but to be restarted.
async fn engine_death(app: &App) {
    loop {
        sleep(Duration::from_millis(200)).await;
        if let Some(reason) = app.engine.stats().death() {
            tracing::error!(reason = &**reason, "the engine has stopped");
            return;
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => (),
            _ = self.interrupt.recv() => (),
        }
    }
}

async fn serve_http(listener: TcpListener, router: Router, mut stopped: watch::Receiver<bool>) {
    let connections = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.changed() => break,
        };
        match accepted {
            Ok((socket, _)) => serve_connection(socket, router.clone(), &connections),
            Err(error) => {
                // Out of file descriptors, most likely: let some connections end first.
                tracing::warn!(%error, "cannot accept a connection");
                sleep_until(Instant::now() + Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
}

fn serve_connection(socket: TcpStream, router: Router, connections: &GracefulShutdown) {
    // Tokens are small and late: do not let the kernel wait for more of them.
    let _ = socket.set_nodelay(true);
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        router.clone().oneshot(request.map(axum::body::Body::new))
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_READ_TIMEOUT);
    builder.http2().timer(TokioTimer::new());
    let connection = builder.serve_connection(TokioIo::new(socket), service).into_owned();
    let connection = connections.watch(connection);
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended with an error");
        }
    });
}

async fn serve_grpc(listener: TcpListener, app: Arc<App>, mut stopped: watch::Receiver<bool>) {
    // Tokens are small and late, as above; the server's own option is for sockets that it accepts itself.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let until = async move {
        let _ = stopped.changed().await;
    };
    let server = tonic::transport::Server::builder();
    let served = grpc::routes(server, app).serve_with_incoming_shutdown(incoming, until).await;
    if let Err(error) = served {
        tracing::error!(%error, "the gRPC listener failed");
    }
}
