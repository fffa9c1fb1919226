//! Quire serves large language models: paged KV cache, continuous batching, one small program.
//!
//! This crate is the program; `main.rs` only calls [`cli::run`]. The way of a request goes through
//! [`http`] or [`grpc`], [`text`], [`engine`] and back. See ARCHITECTURE.md.

pub mod app;
pub mod config;
pub mod engine;
pub mod grpc;
pub mod http;
pub mod metrics;
pub mod text;
pub mod validate;
