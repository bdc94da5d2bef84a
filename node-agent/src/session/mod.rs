//! Migrations as this agent runs them: sessions at the source and at the target, on threads of their own.
//!
//! [`Migrations`] is the whole service: `server.rs` gives it orders ([`orders`]) and publishes its
//! [`status::Status`]. A session owns its container, its engine object and its connections while it
//! lasts, and gives the container back when it fails. [`ports`] is what it needs from the node.
//!
//! What is decided when (who owns a container) is in [`crate::commit`], as pure functions.

pub mod clocks;
pub mod metrics;
pub mod migrations;
pub mod orders;
pub mod policy;
pub mod ports;
pub mod predict;
pub mod simulate;
pub mod status;

pub(crate) mod agent;
pub(crate) mod compat;
mod failure;
mod freezing;
mod groups;
mod recover;
mod round;
mod source;
mod streams;
mod switchover;
pub(crate) mod target;
mod throttle;
mod waiting;

pub use migrations::{Migrations, OpenError, Options};
