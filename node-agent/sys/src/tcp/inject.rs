//! Segments as if from the peer, given to our own stack: how a FIN gets into a receive queue, and an
//! acknowledgement into a send queue.

use std::net::SocketAddr;

use crate::Result;
use crate::loopback::{Packet, checksum};

/// What a segment says.
pub(super) struct Segment {
    /// Its source: the peer.
    pub(super) from: SocketAddr,
    /// Its destination: us.
    pub(super) to: SocketAddr,
    pub(super) seq: u32,
    pub(super) ack: u32,
    /// As on the wire: already scaled down.
    pub(super) window: u16,
    pub(super) fin: bool,
}

const TCP: u8 = 6;

/// Sends it to ourselves.
pub(super) fn inject(segment: &Segment) -> Result<()> {
    let (from, to) = (segment.from, segment.to);
    Packet { from, to, protocol: TCP, hops: 64, class: 0, payload: &tcp(segment) }.send()
}

fn tcp(segment: &Segment) -> [u8; 20] {
    const FIN: u8 = 1;
    const ACK: u8 = 16;
    let mut tcp = [0_u8; 20];
    tcp[..2].copy_from_slice(&segment.from.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&segment.to.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&segment.seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&segment.ack.to_be_bytes());
    tcp[12] = 5 << 4;
    tcp[13] = if segment.fin { FIN | ACK } else { ACK };
    tcp[14..16].copy_from_slice(&segment.window.to_be_bytes());
    let check = checksum(&segment.from, &segment.to, TCP, 20, &tcp);
    tcp[16..18].copy_from_slice(&check.to_be_bytes());
    tcp
}
