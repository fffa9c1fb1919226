//! The listeners and their end: binds both ports, serves until a signal, drains, stops.
//!
//! A SIGTERM or SIGINT starts the drain: `/ready` and gRPC health say no, new requests get a 503 or
//! UNAVAILABLE, running ones may finish for `--shutdown-timeout`. What is left then is aborted, with a
//! proper last message to its client. A second signal stops at once.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::app::App;
use crate::config::ServerConfig;
use crate::listen::{self, Protocol, Socket};
use crate::tls::{Tls, TlsError};
use crate::{grpc, http};

/// How long connections may take to flush once the engine is empty.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// How long aborted requests may take to tell their clients.
const ABORT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the drain looks whether the engine is empty.
const DRAIN_POLL: Duration = Duration::from_millis(10);

/// Both ports, bound and not yet served, and what proves who answers there. Made before the model is loaded, so
/// that a taken port or a bad certificate is known at once.
#[derive(Debug)]
pub struct Listeners {
    http: Socket,
    /// The file that is the HTTP socket, if it is one.
    file: Option<PathBuf>,
    grpc: Option<TcpListener>,
    tls: Option<Arc<Tls>>,
}

impl Listeners {
    /// Reads certificates and binds, inside a tokio runtime. The error names the file or the address.
    pub fn bind(config: &ServerConfig) -> Result<Self, ListenError> {
        let tls = config.tls.clone().map(Tls::load).transpose()?.map(Arc::new);
        let http = match &config.uds {
            Some(path) => Socket::Unix(
                listen::bind_file(path)
                    .map_err(|source| ListenError::BindFile { path: path.clone(), source })?,
            ),
            None => bind(SocketAddr::new(config.host, config.port))?.into(),
        };
        // Who wants a file to connect to wants no port for the network to connect to.
        let host = if config.uds.is_some() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { config.host };
        let grpc = config.grpc_port.map(|port| bind(SocketAddr::new(host, port))).transpose()?;
        Ok(Self { http, file: config.uds.clone(), grpc, tls })
    }

    /// Where HTTP listens, with the port the system chose; `None` = in a file.
    pub fn http_addr(&self) -> Option<std::io::Result<SocketAddr>> {
        match &self.http {
            Socket::Tcp(listener) => Some(listener.local_addr()),
            Socket::Unix(_) => None,
        }
    }

    /// Where gRPC listens, if it does.
    pub fn grpc_addr(&self) -> Option<std::io::Result<SocketAddr>> {
        self.grpc.as_ref().map(TcpListener::local_addr)
    }
}

/// The listeners could not be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ListenError {
    #[error("cannot listen on {addr} (choose another with --port, --grpc-port or --host)")]
    Bind { addr: SocketAddr, source: std::io::Error },
    #[error("cannot listen in the file {}: see --uds", path.display())]
    BindFile { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
}

fn bind(addr: SocketAddr) -> Result<TcpListener, ListenError> {
    listen::bind(addr).map_err(|source| ListenError::Bind { addr, source })
}

/// Serves until the process is told to end, or the engine dies. Returns whether the end was orderly.
/// `signals` are listened to from the moment they were made.
pub async fn serve(app: Arc<App>, listeners: Listeners, mut signals: Signals) -> std::io::Result<bool> {
    let serving = Serving::start(&app, listeners);
    let orderly = tokio::select! {
        () = told_to_end(&app, &mut signals) => {
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
    file: Option<PathBuf>,
    grpc: Option<JoinHandle<()>>,
}

impl Serving {
    /// Begins to answer on both ports.
    pub fn start(app: &Arc<App>, listeners: Listeners) -> Self {
        let (stop, stopped) = watch::channel(false);
        let Listeners { http, file, grpc, tls } = listeners;
        let spawn = |listener: Socket, protocol, router| {
            tokio::spawn(listen::serve(listener, tls.clone(), protocol, router, stopped.clone()))
        };
        let http = spawn(http, Protocol::Http, http::router(app.clone()));
        let grpc = grpc.map(|listener| {
            spawn(listener.into(), Protocol::Grpc, grpc::routes(app.clone()).into_axum_router())
        });
        Self { stop, http, file, grpc }
    }

    /// Takes no more connections, and gives those there are a moment to say their last.
    pub async fn stop(self) {
        // The listeners read this; they are there until they have.
        let _ = self.stop.send(true);
        if let Some(file) = &self.file {
            // If somebody else has removed it, so much the better.
            let _ = std::fs::remove_file(file);
        }
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

async fn told_to_end(app: &App, signals: &mut Signals) {
    tokio::select! {
        () = signals.next() => (),
        () = app.shutdown.notified() => tracing::info!("an operator asked for the shutdown"),
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

/// The signals that end a server. Until they are made, such a signal ends the process at once.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Listens from now on. Inside a tokio runtime.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => (),
            _ = self.interrupt.recv() => (),
        }
    }
}
