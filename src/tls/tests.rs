//! Both ports over TLS, with certificates made on the spot: who gets in, who does not, and what happens when files
//! change.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use quire_proto::vllm::control_client::ControlClient;
use quire_proto::vllm::{GetModelInfoRequest, ModelInfo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::*;
use crate::simulated::{self, Simulation};
use crate::{grpc, http, listen};

/// Signs certificates, for servers and for clients.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Certificate and key in PEM.
    fn issue(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    /// A client that trusts this authority, and has a certificate itself or not.
    fn client(&self, identity: Option<(String, String)>, alpn: &str) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                builder
                    .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
                    .unwrap()
            }
        };
        config.alpn_protocols = vec![alpn.into()];
        TlsConnector::from(Arc::new(config))
    }
}

/// Files in a folder that goes with them.
struct Files(PathBuf);

impl Files {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("quire-tls-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Of a server with this identity.
    fn config(&self, (certificate, key): (String, String)) -> TlsConfig {
        TlsConfig {
            cert_file: self.write("cert.pem", &certificate),
            key_file: Some(self.write("key.pem", &key)),
            client_ca_file: None,
            client_auth: ClientAuth::None,
            refresh: false,
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server on two ports; it ends with the senders.
struct Server {
    http: SocketAddr,
    grpc: SocketAddr,
    tls: Arc<Tls>,
    _stop: watch::Sender<bool>,
}

impl Server {
    async fn start(config: TlsConfig) -> Self {
        let simulation = Simulation { max_num_seqs: 4, max_model_len: 256, step_us: 0.0 };
        let (_, app) = simulated::start(&simulation).unwrap();
        let app = Arc::new(app);
        let tls = Arc::new(Tls::load(config).unwrap());
        let (stop, stopped) = watch::channel(false);
        let mut addresses = Vec::new();
        for (protocol, router) in [
            (Protocol::Http, http::router(app.clone())),
            (Protocol::Grpc, grpc::routes(app.clone()).into_axum_router()),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push(listener.local_addr().unwrap());
            tokio::spawn(listen::serve(listener, Some(tls.clone()), protocol, router, stopped.clone()));
        }
        Self { http: addresses[0], grpc: addresses[1], tls, _stop: stop }
    }
}

async fn connect(to: SocketAddr, client: &TlsConnector) -> std::io::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(to).await?;
    client.connect(ServerName::try_from("localhost").unwrap(), socket).await
}

/// `GET /health` over HTTP/1.1 or HTTP/2, whichever was agreed on.
async fn health(to: SocketAddr, client: &TlsConnector) -> Result<u16, String> {
    let stream = connect(to, client).await.map_err(|error| error.to_string())?;
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let request = hyper::Request::get("https://localhost/health").header("host", "localhost");
    let request = request.body(Empty::<bytes::Bytes>::new()).unwrap();
    let io = TokioIo::new(stream);
    let say = |error: hyper::Error| format!("{error:?}");
    let response = if http2 {
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.map_err(say)?;
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(say)?
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(say)?;
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(say)?
    };
    let status = response.status().as_u16();
    response.into_body().collect().await.map_err(say)?;
    Ok(status)
}

/// A call of the gRPC port.
async fn model(to: SocketAddr, client: TlsConnector) -> Result<ModelInfo, tonic::Status> {
    let connector = tower::service_fn(move |_: hyper::Uri| {
        let client = client.clone();
        async move { connect(to, &client).await.map(TokioIo::new) }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
    let channel = endpoint.connect_with_connector(connector).await;
    let channel = channel.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    ControlClient::new(channel).get_model_info(GetModelInfoRequest {}).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn both_ports_speak_tls_and_their_versions_of_http() {
    let (authority, files) = (Authority::new(), Files::new());
    let server = Server::start(files.config(authority.issue("server"))).await;
    for alpn in ["h2", "http/1.1"] {
        assert_eq!(health(server.http, &authority.client(None, alpn)).await, Ok(200), "{alpn}");
    }
    assert!(!model(server.grpc, authority.client(None, "h2")).await.unwrap().served_model_name.is_empty());
    // gRPC needs HTTP/2, and says so before a request is made.
    assert!(connect(server.grpc, &authority.client(None, "http/1.1")).await.is_err());
    // Who does not trust our authority does not talk to us; who speaks no TLS gets nothing.
    assert!(health(server.http, &Authority::new().client(None, "h2")).await.is_err());
    let mut plain = TcpStream::connect(server.http).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut plain, b"GET /health HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut plain, &mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}

#[tokio::test]
async fn clients_prove_who_they_are() {
    let (authority, clients, files) = (Authority::new(), Authority::new(), Files::new());
    for client_auth in [ClientAuth::Required, ClientAuth::Optional] {
        let server = Server::start(TlsConfig {
            client_ca_file: Some(files.write("clients.pem", &clients.0.pem())),
            client_auth,
            ..files.config(authority.issue("server"))
        })
        .await;
        let good = || authority.client(Some(clients.issue("client")), "h2");
        assert_eq!(health(server.http, &good()).await, Ok(200));
        model(server.grpc, good()).await.unwrap();
        let stranger = authority.client(Some(authority.issue("stranger")), "h2");
        assert!(health(server.http, &stranger).await.is_err(), "signed by another authority");
        let unnamed = authority.client(None, "h2");
        let admitted = client_auth == ClientAuth::Optional;
        assert_eq!(health(server.http, &unnamed).await.is_ok(), admitted);
        assert_eq!(model(server.grpc, unnamed).await.is_ok(), admitted);
    }
}

/// The name in the certificate that a client is shown.
async fn shown(server: &Server, authority: &Authority) -> Vec<u8> {
    let stream = connect(server.http, &authority.client(None, "h2")).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn changed_files_are_read_again_and_broken_ones_are_not_used() {
    let (authority, files) = (Authority::new(), Files::new());
    let config = TlsConfig { refresh: true, ..files.config(authority.issue("first")) };
    let server = Server::start(config.clone()).await;
    let first = shown(&server, &authority).await;
    // The next client looks at the files.
    let look = || server.tls.current.lock().unwrap().checked = Instant::now() - CHECK_INTERVAL;
    files.write("cert.pem", "nonsense, and of another length");
    look();
    assert_eq!(shown(&server, &authority).await, first, "the old one stays");
    files.config(authority.issue("second"));
    look();
    let second = shown(&server, &authority).await;
    assert_ne!(second, first);
    assert!(second.windows(6).any(|bytes| bytes == b"second"));

    let still = Server::start(TlsConfig { refresh: false, ..config }).await;
    files.config(authority.issue("third"));
    still.tls.current.lock().unwrap().checked = Instant::now() - CHECK_INTERVAL;
    assert_eq!(shown(&still, &authority).await, second, "without the flag nothing is read again");
}

#[tokio::test]
async fn invariant_7_slow_handshakes_hold_up_nobody() {
    let (authority, files) = (Authority::new(), Files::new());
    let server = Server::start(files.config(authority.issue("server"))).await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(server.http).await.unwrap());
    }
    assert_eq!(health(server.http, &authority.client(None, "h2")).await, Ok(200));
}

#[test]
fn invariant_9_bad_files_are_named() {
    let (authority, files) = (Authority::new(), Files::new());
    let good = files.config(authority.issue("server"));
    let says = |config: &TlsConfig| {
        let error = anyhow::Error::from(Tls::load(config.clone()).unwrap_err());
        format!("{error:#}")
    };
    let empty = files.write("empty.pem", "");
    let other_key = files.write("other.pem", &authority.issue("other").1);
    for (config, flag, file, what) in [
        (
            TlsConfig { cert_file: "/no/such.pem".into(), ..good.clone() },
            "ssl-certfile",
            "/no/such.pem",
            "No such file",
        ),
        (
            TlsConfig { cert_file: empty.clone(), ..good.clone() },
            "ssl-certfile",
            "empty.pem",
            "no certificate",
        ),
        (
            TlsConfig { key_file: Some("/no/key".into()), ..good.clone() },
            "ssl-keyfile",
            "/no/key",
            "No such file",
        ),
        (
            TlsConfig { key_file: Some(empty.clone()), ..good.clone() },
            "ssl-keyfile",
            "empty.pem",
            "no private key",
        ),
        (TlsConfig { key_file: None, ..good.clone() }, "ssl-certfile", "cert.pem", "no private key"),
        (
            TlsConfig { key_file: Some(other_key), ..good.clone() },
            "ssl-keyfile",
            "other.pem",
            "does not belong",
        ),
        (
            TlsConfig { client_ca_file: Some(empty), client_auth: ClientAuth::Required, ..good.clone() },
            "ssl-ca-certs",
            "empty.pem",
            "no certificate",
        ),
    ] {
        let said = says(&config);
        assert!([flag, file, what].iter().all(|word| said.contains(word)), "{flag} {file} {what}: {said}");
    }
    let both = authority.issue("server");
    let one_file = files.write("both.pem", &format!("{}{}", both.0, both.1));
    Tls::load(TlsConfig { cert_file: one_file, key_file: None, ..good }).unwrap();
}
