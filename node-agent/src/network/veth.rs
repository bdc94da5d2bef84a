//! A container's link: made, addressed, attached, removed.

use std::os::fd::{AsFd as _, BorrowedFd};

use sha2::{Digest as _, Sha256};
use sys::Errno;
use sys::net::link::NewLink;
use sys::net::{Netlink, set_sysctl};
use sys::ns::{self, Kind};

use super::{Addressing, Context as _, INSIDE, NetworkError};
use crate::runtime::ContainerName;

/// Name of the host end of a container's link: 15 bytes are all that the kernel takes. `node` tells two
/// agents apart that share a network namespace.
#[must_use]
pub fn host_end(node: &str, name: &ContainerName) -> String {
    let hash = Sha256::digest(format!("{node}/{name}"));
    let hex: String = hash.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    format!("gv{hex}")
}

/// Sets up the network namespace of process `pid`: loopback, and, with an address, a link whose host end
/// is called `outside`, in this process's namespace and up, but attached to nothing. `index` is the number that its
/// other end shall have.
///
/// # Errors
/// What failed. A link that was made goes with the process's namespace.
pub fn create(outside: &str, network: &Addressing, index: Option<u32>, pid: i32) -> Result<(), NetworkError> {
    let netns = ns::open(pid, Kind::Net).during(|| format!("open the network namespace of process {pid}"))?;
    if network.ip.is_some() {
        make_pair(outside, network, index, netns.as_fd())?;
    }
    ns::in_netns(netns.as_fd(), || inside(network))
        .and_then(|done| done)
        .during(|| format!("configure the network behind {outside}"))
}

fn make_pair(
    outside: &str,
    network: &Addressing,
    index: Option<u32>,
    netns: BorrowedFd<'_>,
) -> Result<(), NetworkError> {
    let what = || format!("make the link {outside}");
    let own = ns::open_own(Kind::Net).during(what)?;
    let host = NewLink { name: outside, netns: Some(own.as_fd()), ..NewLink::default() };
    let peer = NewLink { name: INSIDE, mac: Some(network.mac.0), index, ..NewLink::default() };
    // From inside, and the container's end first: the kernel heeds a number of the second one only when the first has
    // one, too, and older kernels (6.1) look for the first one's number and name where the request comes from.
    ns::in_netns(netns, || Netlink::open()?.add_veth(&peer, &host)).and_then(|done| done).during(what)?;
    let mut netlink = Netlink::open().during(what)?;
    // The bridge speaks for the host, not this end.
    optional(set_sysctl(&format!("ipv6/conf/{outside}/disable_ipv6"), "1")).during(what)?;
    let index = netlink.link(outside).during(what)?.index;
    // While it is down: on a link in use it would cost every frame of some microseconds, because the kernel stops
    // the link's queues meanwhile (qdisc_graft). A network lock hangs its filters there.
    netlink.add_clsact(index).during(what)?;
    netlink.set_up(index, true).during(what)
}

/// Duplicate address detection is off: an address that moves is where it was before, and must work at once.
fn inside(network: &Addressing) -> sys::Result<()> {
    let mut netlink = Netlink::open()?;
    let lo = netlink.link("lo")?.index;
    netlink.set_up(lo, true)?;
    let Some(ip) = network.ip else { return Ok(()) };
    for scope in ["all", "default", INSIDE] {
        optional(set_sysctl(&format!("ipv6/conf/{scope}/accept_dad"), "0"))?;
    }
    let link = netlink.link(INSIDE)?.index;
    netlink.set_up(link, true)?;
    netlink.add_address(link, ip.address, ip.prefix)?;
    match network.gateway {
        Some(gateway) => netlink.add_route(None, Some(gateway), link),
        None => Ok(()),
    }
}

/// A host without IPv6 has none of its settings.
fn optional(set: sys::Result<()>) -> sys::Result<()> {
    match set {
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

/// Makes the host end `outside` a port of `bridge`.
///
/// # Errors
/// When the link or the bridge is not there.
pub fn enslave(outside: &str, bridge: &str) -> Result<(), NetworkError> {
    let attach = || {
        let mut netlink = Netlink::open()?;
        let (port, master) = (netlink.link(outside)?.index, netlink.link(bridge)?.index);
        netlink.set_master(port, Some(master))
    };
    attach().during(|| format!("attach {outside} to the bridge {bridge}"))
}

/// Removes a container's link by its host end if it is there. Its other end goes with it.
///
/// # Errors
/// When it cannot be removed.
pub fn remove(outside: &str) -> Result<(), NetworkError> {
    let remove = || {
        let mut netlink = Netlink::open()?;
        match netlink.link(outside) {
            Ok(link) => netlink.delete_link(link.index),
            Err(error) => Err(error),
        }
    };
    match remove() {
        Err(Errno::ENODEV) => Ok(()),
        other => other.during(|| format!("remove {outside}")),
    }
}
