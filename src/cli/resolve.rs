//! What was typed becomes what it means: [`ServeArgs`] to [`EngineConfig`] and [`ServerConfig`].
//! Every error names the flag and says what is allowed.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use quire_model::{KvDtype, gguf};
use quire_scheduler::SchedulingPolicy;
use serde_json::{Map, Value};

use super::args::{
    ActivationDtypeArg, ChatFormatArgs, ConvertArg, DtypeArg, KvCacheDtypeArg, ListenArgs, LoadFormatArg,
    ModelArgs, PolicyArg, RunnerArg, SchedulingArgs, ServeArgs,
};
use crate::config::{
    AnswerConfig, ChatConfig, ClientAuth, CorsConfig, EngineConfig, GenerationConfig, LoadFormat,
    MaxModelLen, ModelSource, RunnerChoice, ServerConfig, TlsConfig, WeightDtype,
};

/// The demo model's name.
pub(super) const DEMO: &str = "pebble";

/// A flag's value cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfigError {
    /// Out of range, or of a form that is not understood.
    #[error("--{flag} {given}: {allowed}")]
    Value {
        /// Without the dashes.
        flag: &'static str,
        /// As typed.
        given: String,
        /// What is allowed.
        allowed: String,
    },
    /// The model is neither a folder nor in the Hugging Face cache.
    #[error(
        "there is no folder {name:?}{looked}; give a Hugging Face folder (nothing is downloaded: \
         `hf download {name}` does that), or no model at all for the demo"
    )]
    NoModel {
        /// As typed.
        name: String,
        /// Where else was looked.
        looked: String,
    },
    /// Both spellings, and they differ.
    #[error("two models were given, {positional:?} and --model {flag:?}; give one")]
    TwoModels {
        /// The one without a flag.
        positional: String,
        /// The one with.
        flag: String,
    },
}

/// Works out what the flags mean. `env` looks up variables.
pub(super) fn resolve(
    args: ServeArgs,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<(EngineConfig, ServerConfig), ConfigError> {
    let server = ServerConfig { answers: args.answers.resolve()?, ..server_config(&args.listen)? };
    let chat = chat_config(args.chat)?;
    let lora = args.lora.resolve()?;
    Ok((
        EngineConfig { chat, lora, ..engine_config(args.model_tag, args.model, args.scheduling, env)? },
        server,
    ))
}

/// The part without sockets. `positional` is the model if it was named without a flag.
pub(super) fn engine_config(
    positional: Option<String>,
    m: ModelArgs,
    s: SchedulingArgs,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<EngineConfig, ConfigError> {
    let (typed, model) = model_source(positional.as_ref(), m.model.as_ref(), env)?;
    if !(s.block_size.is_power_of_two() && s.block_size <= 256) {
        return Err(value("block-size", s.block_size, "must be 1, 2, 4 ... 256: a power of two"));
    }
    let share = s.gpu_memory_utilization;
    if !(share > 0.0 && share <= 1.0) {
        return Err(value("gpu-memory-utilization", share, "must be above 0 and at most 1"));
    }
    let kv_cache_memory_bytes = match s.kv_cache_memory_bytes {
        Some(bytes) => Some(bytes),
        None => cpu_kv_cache_space(env)?,
    };
    let kv_events = s.kv_events_config.and_then(|events| events.0);
    if kv_events.is_some() && !s.enable_prefix_caching {
        let allowed = "needs the prefix cache: leave out --no-enable-prefix-caching";
        return Err(value("kv-events-config", "(enabled)", allowed));
    }
    let runner = runner(&m)?;
    let names = if m.served_model_name.is_empty() { vec![typed] } else { m.served_model_name };
    if let Some(name) = names.iter().find(|name| name.trim().is_empty()) {
        return Err(value("served-model-name", format!("{name:?}"), "must not be empty"));
    }
    Ok(EngineConfig {
        runner,
        pooler: m.pooler_config.unwrap_or_default(),
        model,
        device: m.device,
        served_model_names: names,
        max_model_len: m.max_model_len.unwrap_or(MaxModelLen::Model),
        max_num_seqs: s.max_num_seqs,
        max_num_batched_tokens: s.max_num_batched_tokens,
        block_size: s.block_size,
        kv_cache_memory_bytes,
        gpu_memory_utilization: share,
        enable_prefix_caching: s.enable_prefix_caching,
        hybrid_kv_cache: !s.disable_hybrid_kv_cache_manager,
        scheduling_policy: match s.scheduling_policy {
            PolicyArg::Fcfs => SchedulingPolicy::Fcfs,
            PolicyArg::Priority => SchedulingPolicy::Priority,
        },
        kv_events,
        long_prefill_token_threshold: s.long_prefill_token_threshold,
        max_num_queued_reqs: s.max_num_queued_reqs as usize,
        seed: m.seed,
        dtype: match m.dtype {
            DtypeArg::Auto => WeightDtype::Auto,
            DtypeArg::Float16 => WeightDtype::F16,
            DtypeArg::Bfloat16 => WeightDtype::Bf16,
            DtypeArg::Float32 => WeightDtype::F32,
        },
        kv_cache_dtype: match m.kv_cache_dtype {
            KvCacheDtypeArg::Auto => None,
            KvCacheDtypeArg::Float32 => Some(KvDtype::F32),
            KvCacheDtypeArg::Float16 => Some(KvDtype::F16),
            KvCacheDtypeArg::Bfloat16 => Some(KvDtype::Bf16),
            KvCacheDtypeArg::Fp8E4m3 => Some(KvDtype::Fp8E4m3),
            KvCacheDtypeArg::Fp8E5m2 => Some(KvDtype::Fp8E5m2),
            KvCacheDtypeArg::Int8PerTokenHead => Some(KvDtype::Int8PerTokenHead),
            KvCacheDtypeArg::Fp8PerTokenHead => Some(KvDtype::Fp8PerTokenHead),
        },
        int8_activations: m.activation_dtype == ActivationDtypeArg::Int8,
        hf_overrides: hf_overrides(m.hf_overrides.as_deref())?,
        quantization: m.quantization,
        load_format: match m.load_format {
            LoadFormatArg::Auto => LoadFormat::Auto,
            LoadFormatArg::Safetensors => LoadFormat::Safetensors,
            LoadFormatArg::Gguf => LoadFormat::Gguf,
            LoadFormatArg::Dummy => LoadFormat::Dummy,
        },
        enforce_eager: m.enforce_eager,
        batch_invariant: m.batch_invariant,
        generation_config: match m.generation_config.as_str() {
            "auto" => GenerationConfig::Model,
            "vllm" => GenerationConfig::Api,
            path => GenerationConfig::Folder(generation_folder(path)?),
        },
        override_generation_config: override_generation_config(m.override_generation_config.as_deref())?,
        max_logprobs: u32::try_from(m.max_logprobs).ok(),
        stream_interval: m.stream_interval,
        chat_template: m.chat_template.map(chat_template).transpose()?,
        tokenizer: m.tokenizer.map(|path| folder("tokenizer", path)).transpose()?,
        chat: ChatConfig::default(),
        lora: None,
    })
}

fn chat_config(c: ChatFormatArgs) -> Result<ChatConfig, ConfigError> {
    let kwargs = c.default_chat_template_kwargs.as_deref().map(|text| {
        serde_json::from_str(text)
            .map_err(|_| value("default-chat-template-kwargs", text, "must be a JSON object: '{\"a\": 1}'"))
    });
    Ok(ChatConfig {
        tool_call_parser: c.tool_call_parser,
        reasoning_parser: c.reasoning_parser,
        reasoning: c.reasoning_config,
        enable_auto_tool_choice: c.enable_auto_tool_choice,
        exclude_tools_when_tool_choice_none: c.exclude_tools_when_tool_choice_none,
        default_chat_template_kwargs: kwargs.transpose()?.unwrap_or_default(),
    })
}

fn runner(m: &ModelArgs) -> Result<RunnerChoice, ConfigError> {
    let embeds = m.convert == ConvertArg::Embed;
    let choice = match m.runner {
        RunnerArg::Pooling => RunnerChoice::Pooling,
        RunnerArg::Auto if embeds => RunnerChoice::Pooling,
        RunnerArg::Auto => RunnerChoice::Auto,
        RunnerArg::Generate if embeds => {
            return Err(value("convert", "embed", "contradicts --runner generate"));
        }
        RunnerArg::Generate => RunnerChoice::Generate,
    };
    if m.pooler_config.is_some() && choice == RunnerChoice::Generate {
        return Err(value("pooler-config", "", "contradicts --runner generate"));
    }
    Ok(choice)
}

pub(super) fn value(flag: &'static str, given: impl ToString, allowed: &str) -> ConfigError {
    ConfigError::Value { flag, given: given.to_string(), allowed: allowed.into() }
}

fn server_config(l: &ListenArgs) -> Result<ServerConfig, ConfigError> {
    let host = match l.host.as_str() {
        "" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        text => text.trim_matches(['[', ']']).parse().map_err(|_| {
            value("host", text, "must be an IP address of this machine, 0.0.0.0 or :: for all, or localhost")
        })?,
    };
    if l.grpc && l.grpc_port == l.port && l.port != 0 {
        return Err(value(
            "grpc-port",
            l.grpc_port,
            "must differ from --port (or turn gRPC off with --no-grpc)",
        ));
    }
    if let Some(key) = l.api_key.iter().find(|key| key.is_empty() || !key.is_ascii()) {
        return Err(value("api-key", format!("{key:?}"), "must be of ASCII characters, at least one"));
    }
    Ok(ServerConfig {
        host,
        port: l.port,
        grpc_port: l.grpc.then_some(l.grpc_port),
        api_keys: l.api_key.clone(),
        shutdown_timeout: Duration::from_secs_f64(l.shutdown_timeout),
        enable_log_requests: l.enable_log_requests,
        max_body_bytes: usize::try_from(l.max_body_bytes).unwrap_or(usize::MAX),
        uds: l.uds.clone(),
        cors: CorsConfig {
            origins: listed("allowed-origins", &l.allowed_origins)?,
            methods: listed("allowed-methods", &l.allowed_methods)?,
            headers: listed("allowed-headers", &l.allowed_headers)?,
            credentials: l.allow_credentials,
        },
        root_path: root_path(&l.root_path)?,
        trust_request_chat_template: l.trust_request_chat_template,
        enable_tokenizer_info_endpoint: l.enable_tokenizer_info_endpoint,
        enable_admin: l.enable_admin,
        disable_fastapi_docs: l.disable_fastapi_docs,
        ui: l.ui,
        enable_scale_out: l.enable_scale_out,
        enable_request_id_headers: l.enable_request_id_headers,
        sse_keep_alive_interval: Duration::from_secs_f64(l.sse_keep_alive_interval),
        stall_timeout: Duration::from_secs_f64(l.stall_timeout),
        tls: tls_config(l)?,
        answers: AnswerConfig::default(),
    })
}

fn tls_config(l: &ListenArgs) -> Result<Option<TlsConfig>, ConfigError> {
    let client_auth = match l.ssl_cert_reqs {
        0 => ClientAuth::None,
        1 => ClientAuth::Optional,
        _ => ClientAuth::Required,
    };
    let asks = client_auth != ClientAuth::None;
    let Some(cert_file) = l.ssl_certfile.clone() else {
        return match asks || l.enable_ssl_refresh {
            true => Err(value("ssl-certfile", "(none)", "is needed for TLS")),
            false => Ok(None),
        };
    };
    match &l.ssl_ca_certs {
        None if asks => {
            let allowed = "needs --ssl-ca-certs: whose certificates are good";
            return Err(value("ssl-cert-reqs", l.ssl_cert_reqs, allowed));
        }
        Some(file) if !asks => {
            let allowed = "needs --ssl-cert-reqs 1 or 2; without, no client is asked for a certificate";
            return Err(value("ssl-ca-certs", file.display(), allowed));
        }
        _ => (),
    }
    let (key_file, client_ca_file) = (l.ssl_keyfile.clone(), l.ssl_ca_certs.clone());
    Ok(Some(TlsConfig { cert_file, key_file, client_ca_file, client_auth, refresh: l.enable_ssl_refresh }))
}

/// Words, or vLLM's form of them, a JSON list.
fn listed(flag: &'static str, words: &[String]) -> Result<Vec<String>, ConfigError> {
    let mut all = Vec::new();
    for word in words {
        if word.starts_with('[') {
            let list: Vec<String> = serde_json::from_str(word)
                .map_err(|_| value(flag, word, "must be words, or a JSON list of them: '[\"*\"]'"))?;
            all.extend(list);
        } else {
            all.push(word.clone());
        }
    }
    Ok(all)
}

/// With a slash at its beginning and none at its end.
fn root_path(text: &str) -> Result<String, ConfigError> {
    let path = text.trim_matches('/');
    let fit = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
    if path.split('/').any(|part| part.is_empty() || !part.chars().all(fit)) && !path.is_empty() {
        return Err(value(
            "root-path",
            text,
            "must be a path of letters, digits, '-', '.', '_' and '~': /llm",
        ));
    }
    Ok(if path.is_empty() { String::new() } else { format!("/{path}") })
}

fn generation_folder(path: &str) -> Result<PathBuf, ConfigError> {
    let folder = PathBuf::from(path);
    if folder.join("generation_config.json").is_file() {
        return Ok(folder);
    }
    Err(value("generation-config", path, "must be auto, vllm, or a folder with a generation_config.json"))
}

fn override_generation_config(text: Option<&str>) -> Result<Map<String, Value>, ConfigError> {
    const KNOWN: [&str; 6] =
        ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens"];
    let Some(text) = text else { return Ok(Map::new()) };
    let wrong = |allowed: &str| value("override-generation-config", text, allowed);
    let fields: Map<String, Value> =
        serde_json::from_str(text).map_err(|_| wrong("must be a JSON object: '{\"temperature\": 0.6}'"))?;
    match fields.keys().find(|name| !KNOWN.contains(&name.as_str())) {
        Some(name) => Err(wrong(&format!("{name} is not one of {}", KNOWN.join(", ")))),
        None => Ok(fields),
    }
}

fn hf_overrides(text: Option<&str>) -> Result<Map<String, Value>, ConfigError> {
    let Some(text) = text else { return Ok(Map::new()) };
    serde_json::from_str(text)
        .map_err(|_| value("hf-overrides", text, "must be a JSON object: '{\"rope_theta\": 1000000}'"))
}

/// vLLM's variable for its CPU back end: whole GiB.
fn cpu_kv_cache_space(env: &dyn Fn(&str) -> Option<String>) -> Result<Option<u64>, ConfigError> {
    let Some(text) = env("VLLM_CPU_KVCACHE_SPACE").filter(|text| !text.is_empty()) else { return Ok(None) };
    match text.parse::<u64>().ok().and_then(|gib| gib.checked_mul(1 << 30)) {
        Some(0) => Ok(None),
        Some(bytes) => Ok(Some(bytes)),
        None => Err(value(
            "kv-cache-memory-bytes",
            format!("(VLLM_CPU_KVCACHE_SPACE={text})"),
            "VLLM_CPU_KVCACHE_SPACE must be a whole number of GiB",
        )),
    }
}

/// A file if there is one of that name, else the template itself. A word that is neither is an error.
fn chat_template(text: String) -> Result<String, ConfigError> {
    if text.contains(['{', '\n']) {
        return Ok(text);
    }
    std::fs::read_to_string(&text).map_err(|e| {
        value("chat-template", &text, &format!("must be a readable file or a Jinja template ({e})"))
    })
}

fn folder(flag: &'static str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    if path.is_dir() {
        return Ok(path);
    }
    Err(value(flag, path.display(), "must be a folder with a tokenizer.json"))
}

/// The name as typed, and where the model is.
fn model_source(
    positional: Option<&String>,
    flag: Option<&String>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<(String, ModelSource), ConfigError> {
    let name = match (positional, flag) {
        (Some(positional), Some(flag)) if positional != flag => {
            return Err(ConfigError::TwoModels { positional: positional.clone(), flag: flag.clone() });
        }
        (Some(name), _) | (None, Some(name)) => name.clone(),
        (None, None) => DEMO.into(),
    };
    if name == DEMO {
        return Ok((name, ModelSource::Demo));
    }
    let path = Path::new(&name);
    if path.is_dir() {
        return Ok((name.clone(), folder_source(path.into())?));
    }
    if path.is_file() {
        if path.extension().is_some_and(|extension| extension == "gguf") {
            return Ok((name.clone(), ModelSource::Gguf(path.into())));
        }
        return Err(value("model", name, "is a file; a model is a folder or a .gguf file"));
    }
    let cache = hub_cache(env);
    match cache.as_deref().and_then(|cache| cached_snapshot(cache, &name)) {
        Some(snapshot) => Ok((name, folder_source(snapshot)?)),
        None => {
            let looked =
                cache.map(|c| format!(", nor is it in the cache {}", c.display())).unwrap_or_default();
            Err(ConfigError::NoModel { name, looked })
        }
    }
}

/// A folder of Hugging Face's form, or else one that has a GGUF file.
fn folder_source(folder: PathBuf) -> Result<ModelSource, ConfigError> {
    let Ok(entries) = std::fs::read_dir(&folder) else { return Ok(ModelSource::Folder(folder)) };
    let names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let later_part = |name: &str| gguf::split_name(name).is_some_and(|(_, number, _)| number > 1);
    let mut models: Vec<&String> =
        names.iter().filter(|name| name.ends_with(".gguf") && !later_part(name)).collect();
    models.sort_unstable();
    // Folders of GGUF files may have a config.json too.
    let has_config = names.iter().any(|name| name == "config.json");
    if has_config && names.iter().any(|name| name.ends_with(".safetensors")) {
        return Ok(ModelSource::Folder(folder));
    }
    match models[..] {
        [] => Ok(ModelSource::Folder(folder)),
        [model] => Ok(ModelSource::Gguf(folder.join(model))),
        [first, second, ..] => {
            let reason = format!("has more than one GGUF model, such as {first} and {second}; give the file");
            Err(value("model", folder.display(), &reason))
        }
    }
}

/// Where Hugging Face's tools put what they download.
fn hub_cache(env: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let given = |name| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    given("HF_HUB_CACHE")
        .or_else(|| Some(given("HF_HOME")?.join("hub")))
        .or_else(|| Some(given("XDG_CACHE_HOME")?.join("huggingface/hub")))
        .or_else(|| Some(given("HOME")?.join(".cache/huggingface/hub")))
}

/// `models--ORG--NAME/snapshots/COMMIT`, the commit being the one that `refs/main` names.
fn cached_snapshot(cache: &Path, name: &str) -> Option<PathBuf> {
    let (organisation, model) = name.split_once('/')?;
    if model.contains('/') || [organisation, model].contains(&"..") {
        return None;
    }
    let repository = cache.join(format!("models--{organisation}--{model}"));
    let commit = std::fs::read_to_string(repository.join("refs/main")).ok()?;
    let snapshot = repository.join("snapshots").join(commit.trim());
    snapshot.is_dir().then_some(snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Command;
    use crate::cli::layers;
    use crate::config::DeviceChoice;

    fn resolved(args: &str, vars: &[(&str, &str)]) -> Result<(EngineConfig, ServerConfig), String> {
        let argv = std::iter::once("quire").chain(args.split_whitespace()).map(Into::into).collect();
        let env = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string());
        match layers::parse(argv, &env).map_err(|e| e.to_string())?.command {
            Command::Serve(args) => resolve(*args, &env).map_err(|e| e.to_string()),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn nothing_typed_means_the_demo_model() {
        let (engine, server) = resolved("", &[]).unwrap();
        assert_eq!(
            (engine.model, engine.served_model_names),
            (ModelSource::Demo, vec!["pebble".to_string()])
        );
        assert_eq!(
            (engine.max_num_seqs, engine.max_logprobs, engine.kv_cache_memory_bytes),
            (None, Some(20), None)
        );
        assert_eq!((server.port, server.grpc_port), (8000, Some(50051)));
        assert_eq!(server.host, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        assert_eq!(server.shutdown_timeout, Duration::from_secs(30));
    }

    #[test]
    fn values_are_turned_into_what_they_mean() {
        let args = "serve --max-num-batched-tokens 32 --max-logprobs -1 --host localhost --no-grpc --dtype float \
                    --device cuda:3 --kv-cache-memory-bytes 1GiB --allowed-origins [\"a\",\"b\"] --scheduling-policy priority --disable-hybrid-kv-cache-manager";
        let (engine, server) = resolved(args, &[("VLLM_CPU_KVCACHE_SPACE", "7")]).unwrap();
        assert_eq!((engine.max_num_seqs, engine.max_num_batched_tokens), (None, Some(32)));
        assert_eq!((engine.max_logprobs, engine.device), (None, DeviceChoice::Cuda(3)));
        assert_eq!((engine.kv_cache_memory_bytes, engine.dtype), (Some(1 << 30), WeightDtype::F32));
        assert_eq!(engine.scheduling_policy, SchedulingPolicy::Priority);
        assert!(!engine.hybrid_kv_cache);
        assert_eq!((server.grpc_port, server.cors.origins), (None, vec!["a".to_string(), "b".to_string()]));
        let (engine, _) = resolved("serve", &[("VLLM_CPU_KVCACHE_SPACE", "7")]).unwrap();
        assert_eq!(engine.kv_cache_memory_bytes, Some(7 << 30));
        assert!(engine.hybrid_kv_cache);
    }

    #[test]
    fn paths_before_ours_have_one_slash_at_the_front() {
        for (given, meant) in [("", ""), ("/", ""), ("/llm", "/llm"), ("a/b/", "/a/b")] {
            let (_, server) = resolved(&format!("serve --root-path={given}"), &[]).unwrap();
            assert_eq!(server.root_path, meant, "{given}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let cases = [
            ("serve --block-size 24", "--block-size 24"),
            ("serve --gpu-memory-utilization 1.5", "--gpu-memory-utilization 1.5"),
            ("serve --host example.org", "--host example.org"),
            ("serve --grpc-port 8000", "--grpc-port 8000"),
            ("serve --tokenizer /nowhere/at/all", "--tokenizer"),
            ("serve --chat-template nofile", "--chat-template"),
            ("serve nowhere/at-all", "nowhere/at-all"),
            ("serve a --model b", "--model"),
            ("serve --allowed-origins [a", "--allowed-origins"),
            ("serve --root-path /a{b}", "--root-path /a{b}"),
            ("serve --generation-config nowhere", "--generation-config nowhere"),
            ("serve --override-generation-config {\"top_q\":1}", "top_q is not one of"),
            ("serve --override-generation-config 1", "--override-generation-config 1"),
        ];
        for (args, told) in cases {
            let error = resolved(args, &[]).unwrap_err();
            assert!(error.contains(told), "{args}: {error}");
        }
        let error = resolved("serve", &[("VLLM_CPU_KVCACHE_SPACE", "much")]).unwrap_err();
        assert!(error.contains("VLLM_CPU_KVCACHE_SPACE"), "{error}");
    }

    #[test]
    fn a_model_is_found_in_the_hugging_face_cache() {
        let home = std::env::temp_dir().join(format!("quire-hf-{}", std::process::id()));
        let repository = home.join("hub/models--org--name");
        let snapshot = repository.join("snapshots/c0ffee");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir_all(repository.join("refs")).unwrap();
        std::fs::write(repository.join("refs/main"), "c0ffee").unwrap();
        let (engine, _) = resolved("serve org/name", &[("HF_HOME", home.to_str().unwrap())]).unwrap();
        assert_eq!(
            (engine.model, engine.served_model_names),
            (ModelSource::Folder(snapshot), vec!["org/name".to_string()])
        );
        std::fs::remove_dir_all(home).unwrap();
    }
}
