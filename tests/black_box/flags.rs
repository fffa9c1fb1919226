//! vLLM's flags that are honoured: what an operator types is what clients see.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http;
use crate::server::{Server, command};

async fn chat(server: &Server, fields: Value) -> http::Response {
    let mut body = json!({"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 8});
    body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    http::post(server.http, "/v1/chat/completions", &body).await
}

#[tokio::test]
async fn answers_tell_what_the_operator_wants() {
    let server = Server::start(&[
        "--enable-force-include-usage",
        "--enable-per-request-metrics",
        "--enable-prompt-tokens-details=false",
        "--return-tokens-as-token-ids",
        "--fingerprint-mode",
        "custom",
        "--fingerprint-value",
        "mine",
        "--response-role",
        "bard",
        "--root-path",
        "/llm/",
    ]);
    let whole = chat(&server, json!({"logprobs": true})).await.ok();
    assert_eq!(
        (&whole["system_fingerprint"], &whole["choices"][0]["message"]["role"]),
        (&json!("mine"), &json!("bard"))
    );
    assert!(whole["metrics"]["time_to_first_token_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{whole}");
    assert!(whole["usage"].get("prompt_tokens_details").is_none(), "{whole}");
    let token = whole["choices"][0]["logprobs"]["content"][0]["token"].as_str().expect("text");
    assert!(token.starts_with("token_id:"), "{token}");
    let body = json!({"prompt": "a", "stream": true, "max_tokens": 3});
    let events = http::stream(server.http, "/llm/v1/completions", &body).await;
    assert!(events.iter().all(|event| event["usage"]["prompt_tokens"] == 1), "{events:?}");
}

/// The demo model's own generation_config.json says nothing of `max_new_tokens`.
#[tokio::test]
async fn defaults_of_sampling_are_the_operators() {
    let flags = ["--generation-config", "vllm", "--override-generation-config", r#"{"max_new_tokens": 3}"#];
    let server = Server::start(&flags);
    for fields in [json!({"ignore_eos": true, "max_tokens": null}), json!({"ignore_eos": true})] {
        let whole = chat(&server, fields).await.ok();
        assert_eq!(whole["usage"]["completion_tokens"], 3, "{whole}");
    }
}

#[tokio::test]
async fn weights_are_quantised_if_the_operator_says_so() {
    let first = async |flags: &[&str]| -> f64 {
        let whole = chat(&Server::start(flags), json!({"logprobs": true, "temperature": 0})).await.ok();
        whole["choices"][0]["logprobs"]["content"][0]["logprob"].as_f64().expect("a number")
    };
    let plain = first(&[]).await;
    for method in ["int8", "fp8", "nf4", "q8_0", "q4_0", "q4_k"] {
        let quantised = first(&["--quantization", method]).await;
        assert!(quantised != plain && (quantised - plain).abs() < 1.0, "{method}: {quantised} for {plain}");
    }
    for method in ["gptq", "int3"] {
        let output = command(&["serve", "--quantization", method]).output().expect("the binary starts");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && error.contains("--quantization") && error.contains("nf4"),
            "{error}"
        );
    }
}

/// Products of integers change numbers a little, and nothing else; where there are no integers they are refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn activations_are_rounded_if_the_operator_says_so() {
    let first = async |flags: &[&str]| -> f64 {
        let whole = chat(&Server::start(flags), json!({"logprobs": true, "temperature": 0})).await.ok();
        whole["choices"][0]["logprobs"]["content"][0]["logprob"].as_f64().expect("a number")
    };
    for method in ["int8", "q8_0", "q4_0"] {
        let exact = first(&["--quantization", method]).await;
        let rounded = first(&["--quantization", method, "--activation-dtype", "int8"]).await;
        assert!(rounded != exact && (rounded - exact).abs() < 0.5, "{method}: {rounded} for {exact}");
    }
    for flags in
        [&["--activation-dtype", "int8"][..], &["--activation-dtype", "int8", "--quantization", "nf4"]]
    {
        let output = command(&[&["serve"], flags].concat()).output().expect("the binary starts");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains("--activation-dtype int8"), "{error}");
    }
}

/// Asks over the socket, which is closed after the answer.
fn ask(path: &std::path::Path, target: &str) -> Option<String> {
    let mut socket = UnixStream::connect(path).ok()?;
    write!(socket, "GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[test]
fn http_can_be_on_a_file() {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("quire.sock");
    // Left behind by a server that was killed.
    drop(std::os::unix::net::UnixListener::bind(&path));
    let text = path.to_str().expect("UTF-8");
    let mut child = command(&["serve", "--uds", text, "--no-grpc"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts");
    let deadline = Instant::now() + Duration::from_secs(10);
    let answer = loop {
        if let Some(answer) = ask(&path, "/version") {
            break answer;
        }
        assert!(Instant::now() < deadline, "nothing answers in {text}");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"version\""), "{answer}");
    let killed =
        std::process::Command::new("sh").args(["-c", &format!("kill -TERM {}", child.id())]).status();
    assert!(killed.expect("sh runs").success());
    assert!(child.wait().expect("a child").success());
    assert!(!path.exists(), "the file is removed at the end");
}
