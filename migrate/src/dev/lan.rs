//! Joins the hosts: a bridge in a namespace of its own, and from it a link to every host. A node has a bridge too,
//! which its link and its containers are ports of, so that containers are on the LAN themselves.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use sys::net::Netlink;
use sys::net::link::NewLink;
use sys::ns::{Kind, in_netns};

use super::plan::{Host, NODE_BRIDGE, PREFIX_V4, PREFIX_V6, Role, UPLINK};

const BRIDGE: &str = "lan0";

/// Makes the bridge in the namespace of process `lan`.
pub(crate) fn create(lan: i32) -> Result<()> {
    within(&namespace_of(lan)?, |net| {
        up(net, "lo")?;
        net.add_bridge(BRIDGE)?;
        up(net, BRIDGE)
    })
    .context("make the LAN")
}

/// Joins the namespace of process `pid` to the LAN as `host`.
pub(crate) fn attach(lan: i32, host: &Host, pid: i32) -> Result<()> {
    let (lan, own) = (namespace_of(lan)?, namespace_of(pid)?);
    // Link names have at most 15 bytes; the hosts' names have at most 11.
    within(&lan, |net| {
        let port = NewLink { name: &host.name, ..NewLink::default() };
        let uplink = NewLink { name: UPLINK, netns: Some(own.as_fd()), ..NewLink::default() };
        net.add_veth(&port, &uplink)?;
        let (port, bridge) = (net.link(&host.name)?.index, net.link(BRIDGE)?.index);
        net.set_master(port, Some(bridge))?;
        up(net, &host.name)
    })
    .and_then(|()| within(&own, |net| configure(net, host)))
    .with_context(|| format!("join {} to the LAN", host.name))
}

fn configure(net: &mut Netlink, host: &Host) -> Result<()> {
    up(net, "lo")?;
    let uplink = net.link(UPLINK)?;
    let addressed = match host.role {
        Role::Node => {
            net.add_bridge(NODE_BRIDGE)?;
            let bridge = net.link(NODE_BRIDGE)?.index;
            // Set by hand it stays: a bridge otherwise takes the lowest address among its ports, and changes it
            // when a container arrives.
            net.set_mac(bridge, uplink.mac.as_slice().try_into().context("an Ethernet address")?)?;
            net.set_master(uplink.index, Some(bridge))?;
            up(net, NODE_BRIDGE)?;
            bridge
        }
        Role::Coordinator | Role::Client => uplink.index,
    };
    up(net, UPLINK)?;
    net.add_address(addressed, host.v4.into(), PREFIX_V4)?;
    net.add_address(addressed, host.v6.into(), PREFIX_V6)?;
    Ok(())
}

fn up(net: &mut Netlink, name: &str) -> Result<()> {
    let index = net.link(name)?.index;
    Ok(net.set_up(index, true)?)
}

fn namespace_of(pid: i32) -> Result<OwnedFd> {
    sys::ns::open(pid, Kind::Net).with_context(|| format!("open the network namespace of process {pid}"))
}

/// Runs `work` with a socket that speaks to a network namespace.
fn within(namespace: &OwnedFd, work: impl FnOnce(&mut Netlink) -> Result<()> + Send) -> Result<()> {
    let run = || work(&mut Netlink::open().context("open a netlink socket")?);
    in_netns(namespace.as_fd(), run).context("enter a network namespace")?
}
