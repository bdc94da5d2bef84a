//! What the tests of moving parts share.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failed step is the test's failure")]

use std::sync::Arc;

use node_agent::runtime::{ContainerName, MovingNode};
use node_agent::session::clocks::Distance;
use node_agent::session::ports::Incoming;

use super::{Lan, Node, chain, request, unique};

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn start(
    node: &Node,
    lan: Option<&Lan>,
    args: &[&str],
    change: impl FnOnce(&mut serde_json::Value),
) -> ContainerName {
    let bundle = node.bundle_with(args, change);
    let name = ContainerName::new(unique("m")).unwrap();
    let mut request = request(&name, &bundle);
    request.ip = lan.map(|lan| format!("{}/24", lan.address(2)).parse().unwrap());
    node.runtime.run(request).unwrap_or_else(|error| panic!("{}", chain(&error)));
    name
}

pub(crate) fn moving(node: &Node) -> MovingNode {
    MovingNode::new(Arc::new(node.reopened()))
}

pub(crate) fn incoming(name: &ContainerName, spec: Vec<u8>) -> Incoming {
    Incoming {
        container: name.to_string(),
        migration: "m-1".to_owned(),
        epoch: 7,
        spec,
        clocks: Distance::default(),
    }
}
