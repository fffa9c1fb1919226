//! TLS for both listeners: certificate, key and clients' authorities from files, read again when they change.
//!
//! Files are looked at when a client shakes hands, at most every [`CHECK_INTERVAL`], so that a renewed certificate
//! needs neither a restart nor a thread that waits for it. If the new files cannot be used, the old ones stay.

#[cfg(test)]
mod tests;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::{Error as RustlsError, RootCertStore, ServerConfig};

use crate::config::{ClientAuth, TlsConfig};
use crate::listen::Protocol;

/// How often files are looked at, at most.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// The certificate in use.
#[derive(Debug)]
pub struct Tls {
    config: TlsConfig,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    http: Arc<ServerConfig>,
    grpc: Arc<ServerConfig>,
    /// Of the files when they were last read.
    stamps: Vec<Stamp>,
    checked: Instant,
}

/// What changes when a file does: time, length and inode (secrets of Kubernetes are replaced by links).
type Stamp = Option<(SystemTime, u64, u64)>;

/// The files cannot be used. Names the flag and the file.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum TlsError {
    #[error("--{flag} {}: cannot be read", path.display())]
    Read { flag: &'static str, path: PathBuf, source: std::io::Error },
    #[error("--{flag} {}: there is no certificate in PEM in it", path.display())]
    NoCertificate { flag: &'static str, path: PathBuf },
    #[error("--{flag} {}: there is no private key in PEM in it (PKCS #8, PKCS #1 or SEC 1, not encrypted)", path.display())]
    NoKey { flag: &'static str, path: PathBuf },
    #[error("--{flag} {}: {reason}", path.display())]
    Bad { flag: &'static str, path: PathBuf, reason: String },
}

impl Tls {
    /// Reads the files.
    pub fn load(config: TlsConfig) -> Result<Self, TlsError> {
        let stamps = stamps(&config);
        let (http, grpc) = read(&config)?;
        let current = Mutex::new(Current { http, grpc, stamps, checked: Instant::now() });
        Ok(Self { config, current })
    }

    /// What to shake hands with now.
    pub(crate) fn current(&self, protocol: Protocol) -> Arc<ServerConfig> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if self.config.refresh && current.checked.elapsed() >= CHECK_INTERVAL {
            current.checked = Instant::now();
            self.refresh(&mut current);
        }
        match protocol {
            Protocol::Http => current.http.clone(),
            Protocol::Grpc => current.grpc.clone(),
        }
    }

    fn refresh(&self, current: &mut Current) {
        let stamps = stamps(&self.config);
        if stamps == current.stamps {
            return;
        }
        // Also if they are of no use: they are not read again before they change again.
        current.stamps = stamps;
        match read(&self.config) {
            Ok((http, grpc)) => {
                (current.http, current.grpc) = (http, grpc);
                tracing::info!("the TLS certificate was read again");
            }
            Err(error) => {
                let error = anyhow::Error::from(error);
                tracing::error!("TLS goes on with the old certificate: {error:#}");
            }
        }
    }
}

fn stamps(config: &TlsConfig) -> Vec<Stamp> {
    let files = [Some(&config.cert_file), config.key_file.as_ref(), config.client_ca_file.as_ref()];
    let stamp = |path: &PathBuf| {
        let file = std::fs::metadata(path).ok()?;
        Some((file.modified().ok()?, file.len(), file.ino()))
    };
    files.into_iter().flatten().map(stamp).collect()
}

/// Settings for both ports: they differ in the versions of HTTP they offer.
fn read(config: &TlsConfig) -> Result<(Arc<ServerConfig>, Arc<ServerConfig>), TlsError> {
    let chain = certificates("ssl-certfile", &config.cert_file)?;
    let (key_flag, key_file) = match &config.key_file {
        Some(file) => ("ssl-keyfile", file),
        None => ("ssl-certfile", &config.cert_file),
    };
    let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| match error {
        PemError::Io(source) => TlsError::Read { flag: key_flag, path: key_file.clone(), source },
        PemError::NoItemsFound => TlsError::NoKey { flag: key_flag, path: key_file.clone() },
        error => bad(key_flag, key_file, error),
    })?;
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has suites for TLS 1.2 and 1.3");
    let builder = match client_verifier(config)? {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let server = builder.with_single_cert(chain, key).map_err(|error| match error {
        RustlsError::InconsistentKeys(_) => {
            let cert_file = config.cert_file.display();
            bad(key_flag, key_file, format!("the key does not belong to the certificate in {cert_file}"))
        }
        error => bad("ssl-certfile", &config.cert_file, error),
    })?;
    let for_port = |protocol: Protocol| {
        let mut server = server.clone();
        server.alpn_protocols = protocol.alpn();
        Arc::new(server)
    };
    Ok((for_port(Protocol::Http), for_port(Protocol::Grpc)))
}

type Verifier = Arc<dyn tokio_rustls::rustls::server::danger::ClientCertVerifier>;

fn client_verifier(config: &TlsConfig) -> Result<Option<Verifier>, TlsError> {
    const FLAG: &str = "ssl-ca-certs";
    let Some(file) = config.client_ca_file.as_ref().filter(|_| config.client_auth != ClientAuth::None) else {
        return Ok(None);
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(FLAG, file)? {
        roots.add(certificate).map_err(|error| bad(FLAG, file, error))?;
    }
    let provider = Arc::new(ring::default_provider());
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = match config.client_auth {
        ClientAuth::Required => builder,
        ClientAuth::Optional | ClientAuth::None => builder.allow_unauthenticated(),
    };
    let verifier = builder.build().map_err(|error: VerifierBuilderError| bad(FLAG, file, error))?;
    Ok(Some(verifier))
}

fn certificates(flag: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = |error: PemError| match error {
        PemError::Io(source) => TlsError::Read { flag, path: path.into(), source },
        error => bad(flag, path, error),
    };
    let found = CertificateDer::pem_file_iter(path).map_err(read)?;
    let certificates = found.collect::<Result<Vec<_>, _>>().map_err(read)?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate { flag, path: path.into() });
    }
    Ok(certificates)
}

fn bad(flag: &'static str, path: &Path, reason: impl ToString) -> TlsError {
    TlsError::Bad { flag, path: path.into(), reason: reason.to_string() }
}
