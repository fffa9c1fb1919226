//! TLS as an operator turns it on: flags, the ready line, and refusals at start. What it admits is tested beside
//! `src/tls.rs`.

use std::path::PathBuf;
use std::time::Duration;

use crate::server::{Server, run};

/// A certificate that signs itself, and its key, in files.
fn identity() -> (PathBuf, PathBuf) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("tls");
    std::fs::create_dir_all(&folder).expect("a folder");
    let write = |name: &str, content: String| {
        let path = folder.join(name);
        std::fs::write(&path, content).expect("written");
        path
    };
    (write("cert.pem", made.cert.pem()), write("key.pem", made.signing_key.serialize_pem()))
}

#[tokio::test]
async fn a_server_with_a_certificate_speaks_tls_alone() {
    let (cert, key) = identity();
    let flag = |path: &PathBuf| path.to_str().expect("UTF-8").to_owned();
    let (cert, key) = (flag(&cert), flag(&key));
    let server = Server::start(&["--ssl-certfile", &cert, "--ssl-keyfile", &key, "--enable-ssl-refresh"]);
    for addr in [server.http, server.grpc] {
        let mut socket = tokio::net::TcpStream::connect(addr).await.expect("listens");
        tokio::io::AsyncWriteExt::write_all(&mut socket, b"GET /health HTTP/1.1\r\n\r\n")
            .await
            .expect("sent");
        let mut answer = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut socket, &mut answer).await;
        // A TLS record of the kind "alert", or nothing.
        assert!(answer.first().is_none_or(|&kind| kind == 21), "{answer:?}");
    }
}

#[test]
fn invariant_9_tls_flags_that_make_no_sense_are_refused() {
    let (cert, key) = identity();
    let (cert, key) = (cert.to_str().expect("UTF-8"), key.to_str().expect("UTF-8"));
    for (flags, naming) in [
        (&["--ssl-keyfile", key][..], "--ssl-certfile"),
        (&["--enable-ssl-refresh"], "ssl-certfile"),
        (&["--ssl-certfile", cert, "--ssl-keyfile", cert], "private key"),
        (&["--ssl-certfile", "/no/such/file", "--ssl-keyfile", key], "/no/such/file"),
        (&["--ssl-certfile", cert, "--ssl-keyfile", key, "--ssl-cert-reqs", "2"], "ssl-ca-certs"),
        (&["--ssl-certfile", cert, "--ssl-keyfile", key, "--ssl-ca-certs", cert], "ssl-cert-reqs"),
        (&["--ssl-cert-reqs", "3"], "--ssl-cert-reqs"),
        (&["--ssl-ciphers", "x"], "--ssl-ciphers"),
        (&["--kv-events-config", "{\"publisher\": \"zmq\"}"], "publisher"),
    ] {
        let mut args = vec!["serve", "--port", "0", "--grpc-port", "0"];
        args.extend(flags);
        let output = run(&args, Duration::from_secs(10));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(naming), "{flags:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}
