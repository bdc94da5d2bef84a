//! Speaking the agents' protocol by hand.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::time::Duration;

use node_agent::session::orders::Prepare;
use node_agent::transfer::PROTOCOL_VERSIONS;
use node_agent::transfer::link::{Link, LinkError};
use node_agent::transfer::message::{Hello, PeerMessage, Purpose};
use node_agent::transfer::stream::TlsStream;
use proto::identity::{Identity, Role as PeerRole};
use proto::tls::Tls;

pub(crate) const SOON: Duration = Duration::from_secs(10);

pub(crate) fn prepare(epoch: u64, container: &str, source: &str) -> Prepare {
    Prepare {
        migration: format!("{container}-{epoch}"),
        epoch,
        container: container.to_owned(),
        source_node: source.to_owned(),
        memory_bytes: 0,
        trace: None,
    }
}

pub(crate) fn hello(epoch: u64, container: &str, incarnation: u64, purpose: Purpose) -> Hello {
    Hello {
        versions: PROTOCOL_VERSIONS.to_vec(),
        migration: format!("{container}-{epoch}"),
        epoch,
        container: container.to_owned(),
        incarnation: 1,
        peer_incarnation: incarnation,
        address: "127.0.0.1:1".to_owned(),
        purpose,
    }
}

pub(crate) fn connect(tls: &Tls, address: &str) -> Link {
    let expect = Identity::new(PeerRole::Node, "node-b").unwrap();
    Link::new(TlsStream::connect(tls, &expect, address).unwrap())
}

/// Says hello and gives the answer.
pub(crate) fn greet(tls: &Tls, address: &str, hello: Hello) -> (Link, PeerMessage) {
    let mut link = connect(tls, address);
    link.send(&PeerMessage::Hello(hello)).unwrap();
    let answer = link.recv(SOON, &mut || false).unwrap();
    link.trust();
    (link, answer)
}

pub(crate) fn refused(answer: &PeerMessage, because: &str) {
    match answer {
        PeerMessage::Unwelcome { reason } => assert!(reason.contains(because), "{reason}"),
        other => panic!("{other:?} instead of a refusal because of {because:?}"),
    }
}

pub(crate) fn closed(link: &mut Link) {
    match link.recv(SOON, &mut || false) {
        Err(LinkError::Closed(_) | LinkError::Frame(..)) => {}
        other => panic!("not closed: {other:?}"),
    }
}
