//! What a model's folder may be: whatever is wrong with it ends the start with a sentence that names it, and what the
//! operator wants otherwise is so.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::http;
use crate::server::{Server, run};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/model/tests/fixtures");

/// A copy of a small model, to be spoilt.
struct Copy(PathBuf);

impl Copy {
    fn of(fixture: &str, name: &str) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("spoilt-{name}"));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).expect("a folder");
        for file in std::fs::read_dir(Path::new(FIXTURES).join(fixture)).expect("a fixture") {
            let path = file.expect("a file").path();
            std::fs::copy(&path, dir.join(path.file_name().expect("a name"))).expect("copied");
        }
        Self(dir)
    }

    /// Changes the file's header, whose length stays what it was.
    fn change_header(&self, change: impl FnOnce(String) -> String) {
        let path = self.0.join("model.safetensors");
        let mut file = std::fs::read(&path).expect("weights");
        let len = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
        let header = String::from_utf8(file[8..8 + len].to_vec()).expect("UTF-8");
        let changed = change(header.clone());
        assert_ne!(header, changed, "nothing was changed");
        let padded = format!("{changed:len$}");
        assert_eq!(padded.len(), len, "the header has another length: {changed}");
        file[8..8 + len].copy_from_slice(padded.as_bytes());
        std::fs::write(&path, file).expect("written");
    }

    fn cut_weights(&self, len: impl FnOnce(usize) -> usize) {
        let path = self.0.join("model.safetensors");
        let mut file = std::fs::read(&path).expect("weights");
        file.truncate(len(file.len()));
        std::fs::write(&path, file).expect("written");
    }

    fn change_config(&self, change: impl FnOnce(&mut Value)) {
        let path = self.0.join("config.json");
        let mut config = serde_json::from_slice(&std::fs::read(&path).expect("a config")).expect("JSON");
        change(&mut config);
        std::fs::write(&path, config.to_string()).expect("written");
    }

    /// The server must say all these words and end, soon and by itself.
    fn assert_refused(&self, flags: &[&str], words: &[&str]) {
        let tokenizer = format!("{FIXTURES}/tokenizer");
        let folder = self.0.to_str().expect("UTF-8");
        let fixed = ["serve", folder, "--tokenizer", &tokenizer, "--port", "0", "--grpc-port", "0"];
        let output = run(&[&fixed[..], flags].concat(), Duration::from_secs(20));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{folder} was accepted");
        for word in words {
            assert!(said.contains(word), "{folder}: {word:?} is not in {said}");
        }
        assert!(!said.contains("panicked"), "{said}");
    }
}

const NORM: &str = "model.layers.1.input_layernorm.weight";

#[test]
fn invariant_10_a_checkpoint_that_does_not_fit_is_named() {
    let spoilt = |name: &str| Copy::of("llama-tied-linear", name);
    let missing = spoilt("missing");
    missing.change_header(|header| header.replace(NORM, "model.layers.1.input_layernorm.weighs"));
    missing.assert_refused(&[], &["has no tensor", NORM]);
    let truncated = spoilt("truncated");
    truncated.cut_weights(|len| len - 1);
    truncated.assert_refused(&[], &["model.safetensors is damaged", "truncated"]);
    let only_a_length = spoilt("only-a-length");
    only_a_length.cut_weights(|_| 8);
    only_a_length.assert_refused(&[], &["model.safetensors is damaged", "only 0 follow"]);
    let overlapping = spoilt("overlapping");
    overlapping.change_header(|header| header.replacen("\"data_offsets\":[0,", "\"data_offsets\":[2,", 1));
    overlapping.assert_refused(&[], &["model.safetensors is damaged", "data_offsets are [2, "]);
    let other_type = spoilt("other-type");
    other_type.change_header(|header| header.replacen("\"BF16\"", "\"I16\" ", 1));
    other_type.assert_refused(&[], &["is stored as I16"]);
    let misshapen = spoilt("misshapen");
    misshapen.change_config(|config| config["vocab_size"] = json!(98));
    misshapen.assert_refused(&[], &["has shape", "config.json implies"]);
    let unused = spoilt("unused");
    unused.change_config(|config| config["num_hidden_layers"] = json!(1));
    unused.assert_refused(&[], &["does not use", "model.layers.1."]);
    let pickled = spoilt("pickled");
    std::fs::rename(pickled.0.join("model.safetensors"), pickled.0.join("pytorch_model.bin"))
        .expect("renamed");
    std::fs::remove_file(pickled.0.join("expected.safetensors")).expect("removed");
    pickled.assert_refused(&[], &["no weights in", "pytorch_model.bin", "save_pretrained"]);
}

#[test]
fn invariant_10_an_unknown_model_is_refused_with_the_known_ones() {
    let model = Copy::of("llama-tied-linear", "unknown");
    let flags = ["--hf-overrides", r#"{"architectures": ["NoSuchForCausalLM"]}"#];
    model.assert_refused(
        &flags,
        &["\"NoSuchForCausalLM\" is not supported", "LlamaForCausalLM", "supported:"],
    );
    model.assert_refused(&["--hf-overrides", "[1]"], &["--hf-overrides", "must be a JSON object"]);
    model.assert_refused(&["--load-format", "pt"], &["--load-format", "possible values"]);
    model.assert_refused(&["--kv-cache-dtype", "nvfp4"], &["--kv-cache-dtype", "int8_per_token_head"]);
}

#[tokio::test]
async fn fields_of_the_config_are_what_the_operator_says() {
    let (folder, tokenizer) = (format!("{FIXTURES}/llama-tied-linear"), format!("{FIXTURES}/tokenizer"));
    let overrides = r#"{"max_position_embeddings": 48, "rope_parameters": {"factor": 2.0}}"#;
    let server = Server::start(&[&folder, "--tokenizer", &tokenizer, "--hf-overrides", overrides]);
    let models = http::get(server.http, "/v1/models").await.json();
    assert_eq!(models["data"][0]["max_model_len"], 48, "{models}");
}

#[tokio::test]
async fn narrower_keys_and_values_make_more_blocks_of_the_same_memory() {
    let mut blocks = Vec::new();
    for dtype in ["auto", "bfloat16", "fp8", "int8"] {
        let flags = ["--kv-cache-dtype", dtype, "--kv-cache-memory-bytes", "8M", "--max-model-len", "64"];
        let server = Server::start(&flags);
        let metrics = http::get(server.http, "/metrics").await.text();
        let info =
            metrics.lines().find(|line| line.starts_with("vllm:cache_config_info")).expect("the cache");
        let name = ["float32", "bfloat16", "fp8_e4m3", "int8_per_token_head"][blocks.len()];
        assert!(info.contains(&format!("cache_dtype=\"{name}\"")), "{info}");
        let (_, rest) = info.split_once("num_gpu_blocks=\"").expect("blocks");
        let num_blocks: f64 = rest.split('"').next().expect("a number").parse().expect("a number");
        blocks.push(num_blocks);
        let body = json!({"prompt": "Hello", "max_tokens": 8, "ignore_eos": true});
        assert_eq!(http::post(server.http, "/v1/completions", &body).await.status, 200, "{dtype}");
    }
    let ratios = [blocks[1] / blocks[0], blocks[2] / blocks[0], blocks[3] / blocks[0]];
    // A head of the demo model has 32 numbers, or 32 bytes and a scale of four.
    for (ratio, expected) in ratios.into_iter().zip([2.0, 4.0, 128.0 / 36.0]) {
        assert!((ratio / expected - 1.0).abs() < 0.02, "{blocks:?}");
    }
}
