//! How fast the link to another agent is: a connection of its own carries some MiB that mean nothing.

use std::time::{Duration, Instant};

use crate::peer::{self, ANSWER_TIMEOUT, DialError};
use crate::session::agent::Agent;
use crate::session::clocks::HostClocks;
use crate::transfer::link::{Link, LinkError};
use crate::transfer::message::{Hello, PeerMessage, Purpose};

/// What one message carries, bytes.
const PIECE: usize = 512 << 10;
/// A connection begins slowly: what it carries first does not count.
const BEGINNING: u64 = 4 << 20;
/// The most that one measurement sends after that.
const MOST: u64 = 64 << 20;
/// How long it sends.
const TIME: Duration = Duration::from_millis(200);
/// Of what such a connection carries a migration gets this part: it reads and writes memory, too. Measured as *bulk/raw* by
/// the benchmark.
const SHARE: f64 = 0.6;

/// A link as measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rate {
    /// What a migration gets through.
    pub(crate) bytes_per_second: f64,
    /// The shortest way there and back.
    pub(crate) round_trip: Duration,
}

/// Measures the link to a node. Within the node's budget of bandwidth, if it has one.
pub(crate) fn link(agent: &Agent, node: &str, address: &str) -> Result<Rate, DialError> {
    let hello = Hello {
        versions: agent.versions.to_vec(),
        migration: String::new(),
        epoch: 0,
        container: String::new(),
        incarnation: agent.incarnation,
        peer_incarnation: 0,
        address: agent.peer_address.clone(),
        purpose: Purpose::Probe,
    };
    let mut link = peer::dial(agent, node, address, hello)?;
    let failed = |source: LinkError| DialError::Link { node: node.to_owned(), source };
    let mut round_trip = Duration::MAX;
    for _ in 0..3 {
        round_trip = round_trip.min(ask(&mut link).map_err(failed)?);
    }
    let limit = agent.budget.limit();
    send(&mut link, BEGINNING, Duration::MAX, limit).map_err(failed)?;
    ask(&mut link).map_err(failed)?;
    let began = Instant::now();
    let sent = send(&mut link, MOST, TIME, limit).map_err(failed)?;
    ask(&mut link).map_err(failed)?;
    let took = began.elapsed().saturating_sub(round_trip).as_secs_f64().max(1e-6);
    #[expect(clippy::cast_precision_loss, reason = "some MiB, and rates need no more than 52 bits")]
    let (sent, budget) = (sent as f64, if limit == 0 { f64::MAX } else { limit as f64 });
    Ok(Rate { bytes_per_second: (sent / took * SHARE).min(budget), round_trip })
}

/// Asks for a sign of life, which comes when all that was sent before has been read.
fn ask(link: &mut Link) -> Result<Duration, LinkError> {
    let began = Instant::now();
    link.send(&PeerMessage::AskClocks)?;
    match link.recv(ANSWER_TIMEOUT, &mut || false)? {
        PeerMessage::Clocks(_) => Ok(began.elapsed()),
        _ => Err(LinkError::Closed(link.peer().to_string())),
    }
}

/// Sends until it is enough, of bytes or of time; with a limit, no more than that allows in [`TIME`].
fn send(link: &mut Link, most: u64, time: Duration, limit: u64) -> Result<u64, LinkError> {
    let most = if limit == 0 { most } else { most.min(limit / 5).max(PIECE as u64) };
    let piece = PeerMessage::Warm { padding: vec![0; PIECE] };
    let (began, mut sent) = (Instant::now(), 0);
    while sent < most && began.elapsed() < time {
        link.send(&piece)?;
        sent += PIECE as u64;
    }
    Ok(sent)
}

/// The other end: reads, and answers.
pub(crate) fn serve(link: &mut Link) -> Result<(), LinkError> {
    let mut left = 2 * (BEGINNING + MOST);
    loop {
        match link.recv(ANSWER_TIMEOUT, &mut || false) {
            Ok(PeerMessage::Warm { padding }) if padding.len() as u64 <= left => left -= padding.len() as u64,
            Ok(PeerMessage::AskClocks) => link.send(&PeerMessage::Clocks(HostClocks::now()))?,
            Err(LinkError::Closed(_)) => return Ok(()),
            Ok(_) => return Err(LinkError::Closed(link.peer().to_string())),
            Err(error) => return Err(error),
        }
    }
}
