//! The agents' own protocol: two kinds of connections, both mutual TLS 1.3 over TCP, both blocking.
//!
//! * *control*: one per migration, [`message::PeerMessage`]s in frames, see [`link`]. Questions between
//!   restarted agents use short control connections of their own.
//! * *bulk*: pages and file changes in frames, see [`bulk`]. One stream or several, as the source's Spec says; the
//!   frames of each carry their own numbers.
//!
//! [`step`] is the order of messages as a pure function; what does not fit is refused and the connection
//! closed. Blocking on purpose: the engine is synchronous and the pause is no place for a scheduler.

pub mod bulk;
pub mod link;
pub mod message;
pub mod pace;
pub mod squeeze;
pub mod step;
pub mod stream;

/// Versions of the agents' protocol that this agent speaks, best first.
pub const PROTOCOL_VERSIONS: [u32; 1] = [3];
