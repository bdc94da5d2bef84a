//! Names and addresses of the hosts, and where their files lie.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// The most nodes: their names are `node-a` to `node-z`.
pub(crate) const MAX_NODES: u8 = 26;
/// The directory when none is given.
pub(crate) const DEFAULT_DIR: &str = "/run/gantry-dev";
/// The name of the host that holds the LAN's bridge and runs nothing.
pub(crate) const LAN: &str = "lan";
/// The coordinator's host, and its name in its certificate.
pub(crate) const COORDINATOR: &str = "coordinator";
/// The host that clients run on.
pub(crate) const CLIENT: &str = "client";
/// Bits of the LAN's network, IPv4.
pub(crate) const PREFIX_V4: u8 = 24;
/// Bits of the LAN's network, IPv6.
pub(crate) const PREFIX_V6: u8 = 64;
/// The bridge in each node that containers are attached to.
pub(crate) const NODE_BRIDGE: &str = "br0";
/// Each host's link to the LAN.
pub(crate) const UPLINK: &str = "eth0";
/// The coordinator's port.
pub(crate) const COORDINATOR_PORT: u16 = 7443;
/// The port of an agent's API.
pub(crate) const AGENT_PORT: u16 = 7444;
/// The port of the agents' own protocol.
pub(crate) const PEER_PORT: u16 = 7445;
/// Where daemons serve metrics on their hosts.
pub(crate) const METRICS_PORT: u16 = 7446;

/// What a host is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Runs an agent and containers.
    Node,
    /// Runs the coordinator.
    Coordinator,
    /// Runs clients.
    Client,
}

/// One host on the LAN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

impl Host {
    fn new(name: impl Into<String>, role: Role, number: u8) -> Self {
        Self {
            name: name.into(),
            role,
            v4: Ipv4Addr::new(10, 77, 0, number),
            v6: Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, number.into()),
        }
    }

    /// An address of this host.
    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        (self.v4, port).into()
    }
}

/// The coordinator's host.
pub(crate) fn coordinator() -> Host {
    Host::new(COORDINATOR, Role::Coordinator, 2)
}

/// All hosts: the coordinator, the client and `nodes` nodes. Containers are given addresses from .100 up.
pub(crate) fn hosts(nodes: u8) -> Vec<Host> {
    let mut all = vec![coordinator(), Host::new(CLIENT, Role::Client, 3)];
    all.extend(
        (0..nodes.min(MAX_NODES))
            .map(|i| Host::new(format!("node-{}", char::from(b'a' + i)), Role::Node, 11 + i)),
    );
    all
}

/// Where the files of one set of hosts lie.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// The files under `dir`, an absolute path.
    pub(crate) fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What was made; see [`super::state`].
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.join("dev.json")
    }

    /// Held while the hosts are brought up or down.
    pub(crate) fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// The authority.
    pub(crate) fn authority(&self) -> PathBuf {
        self.dir.join("pki/ca")
    }

    /// A peer's credentials.
    pub(crate) fn credentials(&self, name: &str) -> PathBuf {
        self.dir.join("pki").join(name)
    }

    /// A host's own files, as seen from the machine.
    pub(crate) fn host(&self, name: &str) -> PathBuf {
        self.dir.join("hosts").join(name)
    }

    /// A host's own files, as seen from the host itself: the same path on every host, as on real machines.
    pub(crate) fn local(&self) -> PathBuf {
        self.dir.join("local")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_names_and_addresses_of_their_own() {
        let hosts = hosts(3);
        let names: Vec<_> = hosts.iter().map(|h| h.name.as_str()).collect();
        assert_eq!(names, ["coordinator", "client", "node-a", "node-b", "node-c"]);
        assert_eq!(hosts[2].at(AGENT_PORT).to_string(), "10.77.0.11:7444");
        assert_eq!(hosts[3].v6.to_string(), "fd00:77::c");
        let last = super::hosts(u8::MAX).pop().unwrap();
        assert_eq!((last.name.as_str(), last.v4), ("node-z", Ipv4Addr::new(10, 77, 0, 36)));
    }
}
