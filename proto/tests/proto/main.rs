//! The generated code is up to date, and the wire is that of vLLM and of the gateway.

mod generated;
mod smg_wire;
mod vllm_wire;
