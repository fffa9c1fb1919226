//! LoRA adapters through the real server: the demo model's own, and one made louder.

use std::path::{Path, PathBuf};

use quire_proto::vllm;
use serde_json::{Value, json};

use crate::server::{Server, command};
use crate::{grpc, http};

const PIRATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/pebble/pebble-pirate-lora");
const PROMPTS: [&str; 3] = ["Tell me about the sea.", "Who are you?", "What is two plus three?"];

/// The demo model's adapter with another factor, in a folder of its own.
fn louder(name: &str, alpha: u32) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("lora-{name}"));
    std::fs::create_dir_all(&dir).expect("a folder");
    let weights = std::fs::read(Path::new(PIRATE).join("adapter_model.safetensors")).expect("it is there");
    std::fs::write(dir.join("adapter_model.safetensors"), weights).expect("written");
    let config = std::fs::read(Path::new(PIRATE).join("adapter_config.json")).expect("it is there");
    let mut config: Value = serde_json::from_slice(&config).expect("JSON");
    config["lora_alpha"] = alpha.into();
    std::fs::write(dir.join("adapter_config.json"), config.to_string()).expect("written");
    dir
}

async fn ask(server: &Server, model: &str, prompt: &str) -> String {
    let body = json!({
        "model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 24, "temperature": 0,
        "logprobs": true,
    });
    let answer = http::post(server.http, "/v1/chat/completions", &body).await.ok();
    assert_eq!(answer["model"], model, "{answer}");
    answer["choices"][0].to_string()
}

/// What each model says to each prompt.
async fn ask_all(server: &Server, models: &[&str]) -> Vec<String> {
    let mut answers = Vec::new();
    for model in models {
        for prompt in PROMPTS {
            answers.push(ask(server, model, prompt).await);
        }
    }
    answers
}

/// Alone, one after the other (the second time out of the prefix cache), and all at once in chunks with too little
/// memory: the same log-probabilities to the last digit.
#[tokio::test(flavor = "multi_thread")]
async fn invariant_8_the_company_of_other_adapters_changes_no_bit() {
    let loud = louder("crowd", 40);
    let modules = [format!("pirate={PIRATE}"), format!("loud={}", loud.display())];
    let models = ["pebble", "pirate", "loud"];
    let flags = ["--enable-lora", "--max-loras", "2", "--lora-modules", &modules[0], &modules[1]];
    let server = Server::start(&flags);
    let alone = ask_all(&server, &models).await;
    assert!(alone[3].contains("Arr"), "{}", alone[3]);
    let mut different = alone.clone();
    different.dedup();
    assert_eq!(different.len(), alone.len(), "every model has its own words");
    assert_eq!(ask_all(&server, &models).await, alone);

    for max_loras in ["1", "2"] {
        let mut flags = flags.to_vec();
        flags[2] = max_loras;
        flags.extend(["--max-num-batched-tokens", "32", "--max-num-seqs", "8", "--max-model-len", "128"]);
        flags.extend(["--kv-cache-memory-bytes", "700000"]);
        let crowded = Server::start(&flags);
        for _ in 0..2 {
            let asked = models.iter().flat_map(|model| PROMPTS.map(|prompt| ask(&crowded, model, prompt)));
            assert_eq!(futures_util::future::join_all(asked).await, alone, "--max-loras {max_loras}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_come_and_go_while_requests_run() {
    let loud = louder("updates", 40);
    let server = Server::start(&["--enable-lora", "--max-loras", "2", "--allow-runtime-lora-updating"]);
    let load = |name: &str, path: &Path, in_place: bool| {
        let body = json!({"lora_name": name, "lora_path": path, "load_inplace": in_place});
        async move { http::post(server.http, "/v1/load_lora_adapter", &body).await }
    };
    let plain = ask(&server, "pebble", PROMPTS[0]).await;
    let answer = load("pirate", Path::new(PIRATE), false).await;
    assert_eq!((answer.status, &*answer.text()), (200, "Success: LoRA adapter 'pirate' added successfully."));
    let pirate = ask(&server, "pirate", PROMPTS[0]).await;
    assert_ne!(pirate, plain);

    // A long answer is under way while its adapter is replaced, and forgotten.
    let body =
        json!({"model": "pirate", "prompt": "Arr", "max_tokens": 600, "ignore_eos": true, "temperature": 0});
    let whole = http::post(server.http, "/v1/completions", &body).await.ok();
    let running = tokio::spawn(async move { http::post(server.http, "/v1/completions", &body).await.ok() });
    assert_eq!(load("pirate", &loud, true).await.status, 200);
    let loud = ask(&server, "pirate", PROMPTS[0]).await;
    assert!(loud != pirate && loud != plain, "the old blocks are not for the new weights");
    let body = json!({"lora_name": "pirate"});
    assert_eq!(http::post(server.http, "/v1/unload_lora_adapter", &body).await.status, 200);
    let gone = http::post(server.http, "/v1/completions", &json!({"model": "pirate", "prompt": "a"})).await;
    assert_eq!(gone.status, 404, "{}", gone.text());
    let running = running.await.expect("it runs to its end");
    let text = &running["choices"][0]["text"];
    assert!(*text == whole["choices"][0]["text"], "{running}");
    assert_eq!(ask(&server, "pebble", PROMPTS[0]).await, plain);
    server.until_idle().await;
    let metrics = http::get(server.http, "/metrics").await.text();
    assert!(
        metrics.contains(r#"vllm:lora_requests_info{max_lora="2",running_lora_adapters="""#),
        "{metrics}"
    );
}

#[tokio::test]
async fn grpc_loads_lists_uses_and_unloads() {
    let server = Server::start(&["--enable-lora", "--allow-runtime-lora-updating"]);
    let mut control = grpc::control(server.grpc).await;
    let load = vllm::LoadLoraRequest { lora_name: "pirate".into(), source_path: PIRATE.into() };
    let adapter = control.load_lora(load.clone()).await.expect("loaded").into_inner().adapter.expect("it");
    assert_eq!((adapter.lora_id, &*adapter.lora_name, &*adapter.source_path), (1, "pirate", PIRATE));
    assert_eq!(control.load_lora(load).await.expect_err("twice").code(), tonic::Code::AlreadyExists);
    let listed = control.list_loras(vllm::ListLorasRequest {}).await.expect("listed").into_inner().adapters;
    assert_eq!(listed, [adapter]);
    let info = control.get_server_info(vllm::GetServerInfoRequest {}).await.expect("told").into_inner();
    assert_eq!(info.max_loras, 1);
    let request = |model: &str, lora_name: &str| vllm::GenerateRequest {
        model: model.into(),
        lora_name: lora_name.into(),
        prompt: Some(vllm::generate_request::Prompt::Text("Once".into())),
        stopping: Some(vllm::StoppingCriteria { max_new_tokens: 12, ..Default::default() }),
        ..Default::default()
    };
    let text = async |model: &str, lora_name: &str| {
        let answer = grpc::generate(server.grpc, request(model, lora_name)).await;
        answer.outputs.expect("an output").text
    };
    let plain = text("", "").await;
    let pirate = text("", "pirate").await;
    assert_ne!(plain, pirate);
    assert_eq!(text("pirate", "").await, pirate);
    let unknown = grpc::try_generate(server.grpc, request("", "parrot")).await.expect_err("not loaded");
    assert_eq!(unknown.code(), tonic::Code::NotFound);
    let unload = vllm::UnloadLoraRequest { lora_name: "pirate".into() };
    control.unload_lora(unload.clone()).await.expect("unloaded");
    assert_eq!(control.unload_lora(unload).await.expect_err("gone").code(), tonic::Code::NotFound);
}

/// What cannot be is said before the server serves, by the name of the flag.
#[test]
fn invariant_9_adapters_that_do_not_fit_stop_the_start() {
    let pirate = format!("pirate={PIRATE}");
    for (flags, told) in [
        (vec!["--lora-modules", &pirate], "--enable-lora"),
        (vec!["--max-loras", "2"], "--enable-lora"),
        (
            vec!["--enable-lora", "--max-lora-rank", "4", "--lora-modules", &pirate],
            "greater than max_lora_rank 4",
        ),
        (vec!["--enable-lora", "--lora-modules", "a=/nowhere"], "No adapter found for /nowhere"),
        (vec!["--enable-lora", "--lora-modules", "pirate"], "--lora-modules pirate"),
        (vec!["--enable-lora", "--max-loras", "3", "--max-cpu-loras", "2"], "--max-cpu-loras 2"),
        (vec!["--enable-lora", "--lora-target-modules", "qkv"], "gate_proj, k_proj"),
        (
            vec!["--enable-lora", "--lora-target-modules", "q_proj", "--lora-modules", &pirate],
            "adapters cannot change \"model.layers.0.mlp.down_proj\"",
        ),
    ] {
        let mut all = vec!["serve", "--port", "0", "--grpc-port", "0"];
        all.extend(&flags);
        let output = command(&all).output().expect("the binary starts");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && stderr.contains(told), "{flags:?}: {stderr}");
    }
}
