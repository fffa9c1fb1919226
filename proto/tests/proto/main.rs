//! The generated code is up to date, and the wire is vLLM's.

mod generated;
mod vllm_wire;
