//! Hosts on one machine to try things on: nodes, a coordinator and a client, each with its own mount, pid, uts,
//! ipc and network namespace, joined by a LAN.
//!
//! Nothing is named in the machine's own namespaces: the namespaces live as long as the first process of each
//! host ([`supervise`]), and end with it. What must be removed by name are processes, control groups and the
//! directory; [`state`] records them before they are used.

pub(crate) mod args;
pub(crate) mod config;
pub(crate) mod down;
pub(crate) mod enter;
pub(crate) mod forward;
pub(crate) mod host;
pub(crate) mod lan;
pub(crate) mod plan;
pub(crate) mod preflight;
pub(crate) mod process;
pub(crate) mod state;
pub(crate) mod supervise;
pub(crate) mod up;
