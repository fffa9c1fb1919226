//! The CUDA driver as Rust values: a context, a stream, memory, events, modules and graphs, each freed when
//! dropped. A thin layer over cudarc's raw bindings; it exists because the hot loop may neither allocate nor
//! count references nor track events, which cudarc's own safe layer does.
//!
//! Device addresses are plain numbers. A wrong one cannot harm the host: the device faults, and the next call
//! reports an error that is [`CudaError::is_fatal`]. So functions that take them are safe to call; what is
//! `unsafe` here is only the crossing into C.

mod context;
mod error;
mod event;
mod graph;
mod memory;
mod module;
mod stream;

pub use context::{Context, DeviceAttributes, driver_version, is_driver_present};
pub use error::CudaError;
pub use event::Event;
pub use graph::Graph;
pub use memory::{DeviceMemory, PinnedMemory};
pub use module::{Function, Module};
pub use stream::Stream;
