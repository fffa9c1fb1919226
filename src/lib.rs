//! Quire serves large language models: paged KV cache, continuous batching, one small program.
//!
//! This crate is the program; `main.rs` only calls [`cli::run`]. The way of a request goes through
//! [`http`] or [`grpc`], [`text`], [`engine`] and back. See ARCHITECTURE.md.

pub mod adapters;
pub mod api_keys;
pub mod app;
pub mod chat;
pub mod cli;
pub mod config;
pub mod demo;
pub mod device;
pub mod embed;
pub mod engine;
pub mod grammar;
pub mod grpc;
pub mod http;
pub mod listen;
pub mod load;
pub mod load_report;
pub mod metrics;
pub mod server;
pub mod simulated;
pub mod text;
pub mod tls;
pub mod validate;
