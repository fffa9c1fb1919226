//! Black-box tests: the release binary over real sockets, as clients and operators meet it.
//!
//! Tools come first ([`server`], [`http`], [`grpc`], [`metrics`], [`ask`], [`crowd`]), then one file for
//! each thing that is promised. A test that holds an invariant of ARCHITECTURE.md bears its number.

mod ask;
mod crowd;
mod grpc;
mod http;
mod metrics;
mod server;

mod admin;
mod advisories;
mod bad_grpc;
mod bad_http;
mod bad_requests;
mod chat;
#[cfg(feature = "cuda")]
mod compile_kernels;
mod completions;
mod dialects;
mod disconnect;
mod embeddings;
mod endpoints;
mod every_model;
mod flags;
mod golden;
mod inference;
mod invariance;
mod lifecycle;
mod loading;
mod ollama;
mod overload;
mod pooled_requests;
mod scoring;
mod shutdown;
mod soak;
mod streams;
mod structured;
mod tls;
mod tools;
mod typed_events;
