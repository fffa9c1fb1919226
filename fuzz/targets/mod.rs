//! What each fuzz target checks: a function from any bytes that panics if a promise is broken. The fuzzers
//! call them with what they make up, `tests/fuzz.rs` with the corpus that is kept.
#![allow(dead_code, reason = "each fuzzer uses one of them")]

pub mod chat_parser;
pub mod detokenizer;
pub mod gguf;
pub mod grpc_request;
pub mod http_request;
pub mod input;
pub mod model_config;
pub mod safetensors;
pub mod server;
pub mod stop_strings;
pub mod template;

/// A target by name.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const ALL: &[Target] = &[
    ("chat_parser", chat_parser::run),
    ("detokenizer", detokenizer::run),
    ("gguf", gguf::run),
    ("grpc_request", grpc_request::run),
    ("http_request", http_request::run),
    ("model_config", model_config::run),
    ("safetensors", safetensors::run),
    ("stop_strings", stop_strings::run),
    ("template", template::run),
];
