//! tmp
use quire::{config::*, load, server};
use std::sync::Arc;
use std::time::Duration;
#[tokio::main]
async fn main() {
    let t = std::time::Instant::now();
    tracing_subscriber::fmt().init();
    let e = EngineConfig {
        model: ModelSource::Demo,
        served_model_names: vec![],
        max_model_len: None,
        max_num_seqs: 256,
        max_num_batched_tokens: 2048,
        block_size: 16,
        kv_cache_memory_bytes: None,
        gpu_memory_utilization: 0.92,
        enable_prefix_caching: true,
        scheduling_policy: Default::default(),
        long_prefill_token_threshold: 0,
        max_num_queued_reqs: 8192,
        seed: 0,
        dtype: WeightDtype::Auto,
        load_format: LoadFormat::Auto,
        max_logprobs: Some(20),
        chat_template: None,
        tokenizer: None,
    };
    let s = ServerConfig {
        host: "127.0.0.1".parse().unwrap(),
        port: 8000,
        grpc_port: Some(50051),
        api_keys: vec![],
        shutdown_timeout: Duration::from_secs(30),
        enable_log_requests: false,
        max_body_bytes: 32 << 20,
        allowed_origins: vec![],
        enable_request_id_headers: false,
        sse_keep_alive_interval: Duration::ZERO,
        stall_timeout: Duration::from_secs(60),
    };
    let l = server::Listeners::bind(&s).await.unwrap();
    let loaded = load::start(&e, false, |_| ()).unwrap();
    let (engine, app) = loaded.into_app(s);
    println!("ready in {:?}", t.elapsed());
    server::serve(Arc::new(app), l).await.unwrap();
    drop(engine);
}
