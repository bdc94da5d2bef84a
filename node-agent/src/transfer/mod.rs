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
pub static PROTOCOL_VERSIONS: [u32; 2] = [4, TELLS_NO_ANSWER];
/// In this version a target does not say when its container answered first: [`message::PeerMessage::Served`] is not known.
pub const TELLS_NO_ANSWER: u32 = 3;

/// Those of [`PROTOCOL_VERSIONS`] that are not newer than `newest`; 0 = all.
#[must_use]
pub fn versions_up_to(newest: u32) -> &'static [u32] {
    let known = |version: &u32| newest == 0 || *version <= newest;
    let first = PROTOCOL_VERSIONS.iter().position(known).unwrap_or(PROTOCOL_VERSIONS.len());
    &PROTOCOL_VERSIONS[first..]
}
