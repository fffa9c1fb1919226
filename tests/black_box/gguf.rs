//! A GGUF file is a whole model: settings, tokenizer, chat template and weights, with nothing beside it. What its
//! numbers are worth is compared in `every_model.rs`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::http;
use crate::server::{Server, run};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("model/tests/fixtures").join(name)
}

/// A folder of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("quire-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn one_file_is_tokenised_and_chats_as_it_was_made_to() {
    let folder = Folder::new("one-gguf");
    std::fs::copy(fixture("gguf-llama/model.gguf"), folder.0.join("one.gguf")).expect("a copy");
    let server = Server::start(&[folder.path(), "--served-model-name", "one"]);
    let ask = async |path: &str, body: Value| http::post(server.http, path, &body).await.ok();
    let texts = std::fs::read(fixture("gguf-llama/texts.json")).expect("texts");
    let texts: Value = serde_json::from_slice(&texts).expect("JSON");
    let texts = texts.as_array().expect("an array");
    for text in texts.iter().filter(|text| text["text"] != "").step_by(5) {
        let found = ask("/tokenize", json!({"prompt": text["text"]})).await;
        assert_eq!(found["tokens"], text["ids"], "{text}");
    }
    let messages = json!([{"role": "user", "content": "Hello  world"}]);
    let templated = ask("/tokenize", json!({"messages": messages})).await;
    let written = "<s>[user] Hello  world</s>[assistant] ";
    let plain = ask("/tokenize", json!({"prompt": written, "add_special_tokens": false})).await;
    assert_eq!(templated["tokens"], plain["tokens"]);
    let answer =
        ask("/v1/chat/completions", json!({"messages": messages, "max_tokens": 5, "ignore_eos": true})).await;
    assert_eq!(answer["model"], "one");
    assert_eq!(answer["usage"]["prompt_tokens"], templated["count"]);
    assert_eq!(answer["usage"]["completion_tokens"], 5);
}

#[test]
fn what_cannot_be_served_is_refused_by_name() {
    let folder = Folder::new("bad-gguf");
    let whole = std::fs::read(fixture("gguf-llama/model.gguf")).expect("a file");
    std::fs::write(folder.0.join("cut.gguf"), &whole[..whole.len() - 1000]).expect("written");
    let cut = folder.0.join("cut.gguf");
    let refused = |args: &[&str]| {
        let output =
            run(&[&["serve", "--port", "0", "--grpc-port", "0"], args].concat(), Duration::from_secs(30));
        assert!(!output.status.success(), "{args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let told = refused(&[cut.to_str().expect("UTF-8")]);
    assert!(told.contains("cut.gguf") && told.contains("reach beyond the end of the file"), "{told}");
    std::fs::write(folder.0.join("whole.gguf"), &whole).expect("written");
    let told = refused(&[folder.path()]);
    assert!(told.contains("more than one GGUF model, such as cut.gguf and whole.gguf"), "{told}");
    let told =
        refused(&[folder.0.join("whole.gguf").to_str().expect("UTF-8"), "--load-format", "safetensors"]);
    assert!(told.contains("--load-format safetensors"), "{told}");
    let split = fixture("gguf-llama3-split/model-00002-of-00002.gguf");
    let told = refused(&[split.to_str().expect("UTF-8")]);
    assert!(told.contains("the first part is the one to give: model-00001-of-00002.gguf"), "{told}");
}
