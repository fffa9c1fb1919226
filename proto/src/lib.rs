//! The wire contracts of Quire: message types, clients and servers generated from the `.proto` files in
//! `proto/`.
//!
//! The generated code is checked in, so that building Quire needs neither protoc nor a build script.
//! After a change to a `.proto` file run `UPDATE_GENERATED=1 cargo test -p quire-proto`; without the
//! variable the same test fails if the code is stale.
#![forbid(unsafe_code)]

macro_rules! generated {
    ($file:literal) => {
        include!(concat!("generated/", $file, ".rs"));
    };
}

/// `vllm.Inference` and `vllm.Control`: vLLM's native gRPC interface.
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod vllm {
    generated!("vllm");
    pub mod grpc {
        /// `vllm.grpc.engine.VllmEngine`: the interface of `vllm serve --grpc`.
        pub mod engine {
            generated!("vllm.grpc.engine");
        }
    }
}

/// What the engine interfaces of the Shepherd Model Gateway have in common.
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod smg {
    pub mod grpc {
        pub mod common {
            generated!("smg.grpc.common");
        }
    }
}

/// `openengine.v1.Inference` and `openengine.v1.Control`: a contract of no vendor.
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod openengine {
    pub mod v1 {
        generated!("openengine.v1");
    }
}

/// Load reports for load balancers.
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod orca {
    generated!("xds.data.orca.v3");
}

/// Version of vLLM's schema that [`vllm`] follows; servers report it as `ServerInfo.proto_version`.
pub const VLLM_PROTO_VERSION: &str = "0.6.0";

/// All files of this crate and those they import, as an encoded `google.protobuf.FileDescriptorSet`: what
/// a reflection service needs.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/descriptor.bin");
