//! How the program starts, rests and refuses to start.

use std::time::Duration;

use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::server::{Server, TICKS_PER_SECOND, run};
use crate::{grpc, http};

/// The promise is half a second on a machine at rest. Here other tests run beside it, so the limit is
/// wider and the figure is printed.
#[tokio::test]
async fn ready_soon_after_the_process_starts() {
    let server = Server::start(&[]);
    let response = http::get(server.http, "/ready").await;
    let took = server.started.elapsed();
    eprintln!("first 200 of /ready {:.0} ms after the process was started", took.as_secs_f64() * 1e3);
    assert_eq!(response.status, 200, "the line on stdout says that it is ready");
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn an_idle_server_uses_no_cpu() {
    let server = Server::start(&[]);
    let body = serde_json::json!({"prompt": "Hello", "max_tokens": 20, "ignore_eos": true});
    http::post(server.http, "/v1/completions", &body).await.ok();
    server.until_idle().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = server.cpu_ticks();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = server.cpu_ticks() - before;
    eprintln!("{used} ticks of 1/{TICKS_PER_SECOND} s in two idle seconds");
    assert!(used <= 2, "{used} ticks of CPU in two idle seconds");
}

#[tokio::test]
async fn health_says_serving_by_every_name() {
    let server = Server::shared(&[]);
    for path in ["/health", "/ready", "/ping"] {
        assert_eq!(http::get(server.http, path).await.status, 200, "{path}");
    }
    let mut client = HealthClient::new(grpc::channel(server.grpc).await);
    for service in ["", "vllm.Inference", "vllm.Control"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = client.check(request).await.expect("known").into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service:?}");
    }
    let request = HealthCheckRequest { service: "vllm.Nothing".to_owned() };
    let error = client.check(request).await.expect_err("unknown");
    assert_eq!(error.code(), tonic::Code::NotFound);
}

#[test]
fn a_taken_port_is_a_clear_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port().to_string();
    for (flag, other) in [("--port", "--grpc-port"), ("--grpc-port", "--port")] {
        refuses(&["--host", "127.0.0.1", flag, &port, other, "0"], &port);
    }
}

#[test]
fn invariant_9_wrong_flags_are_clear_errors() {
    refuses(&["--max-num-seqs", "many"], "--max-num-seqs");
    refuses(&["--max-num-seqs", "0"], "max-num-seqs");
    refuses(&["--scheduling-policy", "random"], "--scheduling-policy");
    refuses(&["--load-format", "pickle"], "--load-format");
    refuses(&["--dtype", "int3"], "--dtype");
    refuses(&["--gpu-memory-utilization", "1.5"], "gpu-memory-utilization");
    refuses(&["--block-size", "0"], "block-size");
    refuses(&["--shutdown-timeout", "-1"], "--shutdown-timeout");
    refuses(&["--max-model-len", "100000"], "max-model-len");
    refuses(&["--kv-cache-memory-bytes", "10000"], "kv-cache-memory-bytes");
    refuses(&["--tensor-parallel-size", "2"], "--tensor-parallel-size");
    refuses(&["--no-such-flag"], "--no-such-flag");
}

#[test]
fn invariant_10_a_model_that_cannot_be_read_is_a_clear_error() {
    refuses(&["/no/such/folder"], "/no/such/folder");
    let empty = tempdir("empty");
    refuses(&[empty.to_str().expect("UTF-8")], "config.json");
}

/// `quire serve` with these arguments must end by itself, soon, with an error that names `naming`.
fn refuses(args: &[&str], naming: &str) {
    let mut all = vec!["serve"];
    all.extend(args);
    if !args.iter().any(|arg| arg.contains("port")) {
        all.extend(["--port", "0", "--grpc-port", "0"]);
    }
    let output = run(&all, Duration::from_secs(10));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{args:?} was accepted");
    assert!(said.contains(naming), "{args:?}: the error does not name {naming}: {said}");
    assert!(!said.contains("panicked"), "{args:?}: {said}");
}

fn tempdir(name: &str) -> std::path::PathBuf {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&path).expect("a folder");
    path
}
