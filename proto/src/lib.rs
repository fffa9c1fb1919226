//! The wire contracts of Quire: message types, clients and servers generated from the `.proto` files in
//! `proto/`.
//!
//! The generated code is checked in, so that building Quire needs neither protoc nor a build script.
//! After a change to a `.proto` file run `UPDATE_GENERATED=1 cargo test -p quire-proto`; without the
//! variable the same test fails if the code is stale.
#![forbid(unsafe_code)]

/// `vllm.Inference` and `vllm.Control`: vLLM's native gRPC interface.
#[allow(missing_docs, clippy::all, reason = "generated")]
#[rustfmt::skip]
#[path = "generated/vllm.rs"]
pub mod vllm;

/// Version of vLLM's schema that [`vllm`] follows; servers report it as `ServerInfo.proto_version`.
pub const VLLM_PROTO_VERSION: &str = "0.6.0";

/// All files of this crate and those they import, as an encoded `google.protobuf.FileDescriptorSet`: what
/// a reflection service needs.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/descriptor.bin");
