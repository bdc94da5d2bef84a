//! Gantry's gRPC API, its identifiers and the identity of its peers.
//!
//! The messages are generated from `gantry/v1/*.proto`; they stop at each daemon's `server.rs` and client
//! modules and become domain types there.

#![forbid(unsafe_code)]

/// The generated messages, clients and servers of package `gantry.v1`.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::needless_pass_by_value,
    clippy::ptr_as_ptr,
    reason = "generated"
)]
pub mod v1 {
    tonic::include_proto!("gantry.v1");
}

/// The encoded `FileDescriptorSet` of the API, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/gantry.v1.bin"));

pub mod error;
#[cfg(feature = "failpoints")]
pub mod failpoints;
pub mod health;
pub mod identity;
pub mod metrics;
pub mod reflection;
pub mod telemetry;
pub mod tls;
