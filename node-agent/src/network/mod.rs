//! The network of containers: one veth pair each, its host end on the node's bridge.
//!
//! The host end's name is derived from the container's, so that an agent finds it again after a restart.
//! Inside, the link is `eth0`. Everything goes through rtnetlink(7); no tool is executed.
//!
//! [`Lock`] holds a container's traffic at the source of a migration, [`Port`] brings it back at the target.

mod address;
mod frame;
mod hold;
mod lock;
mod newcomers;
mod port;
pub mod state;
mod veth;

use std::path::Path;

pub use address::{Addressing, Cidr, Mac, ParseError};
pub use lock::{Lock, lift_leftovers};
pub use newcomers::Unsettled;
pub use port::Port;
pub use veth::{create, enslave, host_end, remove};

/// Name of a container's link inside of it.
pub const INSIDE: &str = "eth0";

/// Why something of a container's network could not be done.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct NetworkError {
    /// What was tried, for example `attach gv12345678 to br0`.
    pub what: String,
    /// Why it failed.
    #[source]
    pub source: std::io::Error,
}

/// Names the operation that failed.
trait Context<T> {
    /// `what` completes the sentence "cannot ...".
    fn during(self, what: impl FnOnce() -> String) -> Result<T, NetworkError>;
}

impl<T, E: Into<std::io::Error>> Context<T> for Result<T, E> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T, NetworkError> {
        self.map_err(|source| NetworkError { what: what(), source: source.into() })
    }
}

/// Whether the network namespace of this process has an interface of that name.
#[must_use]
pub fn has_link(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

/// Whether the network namespace of this process has a bridge of that name.
#[must_use]
pub fn has_bridge(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).join("bridge").is_dir()
}
