//! The agents' own protocol at its ends: who may connect, and what for.
//!
//! Each connection has a thread: TLS, Hello, then it becomes a session, a bulk stream of one, or a question.
//! What is wrong is refused with one line in the log, and nothing is lost by it.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use proto::identity::Role as PeerRole;

use crate::commit::{self, OnCommit, OnDiscard};
use crate::session::agent::{Agent, Mail};
use crate::session::{predict, target};
use crate::telemetry::chain;
use crate::transfer::link::{Link, LinkError};
use crate::transfer::message::{Hello, PeerMessage, Purpose};
use crate::transfer::stream::{ConnectError, TlsStream};

/// How long an answer may take when no work is behind it.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a takeover may take before its source is told to ask again.
const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(20);
/// Connections that have not said Hello yet.
const MAX_STRANGERS: usize = 64;

/// Why another agent could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The node's name cannot be one.
    #[error("{0:?} is no node's name")]
    Name(String, #[source] proto::identity::IdentityError),
    /// No connection.
    #[error("cannot connect to {node} at {address}")]
    Connect {
        /// The node.
        node: String,
        /// Its address.
        address: String,
        /// Why.
        #[source]
        source: ConnectError,
    },
    /// It did not answer Hello.
    #[error("no welcome from {node}")]
    Link {
        /// The node.
        node: String,
        /// Why.
        #[source]
        source: LinkError,
    },
    /// It refused.
    #[error("{node} refused: {reason}")]
    Unwelcome {
        /// The node.
        node: String,
        /// Why.
        reason: String,
    },
    /// It speaks another version, or is another run of the agent than the one that was prepared.
    #[error("{node} {what}")]
    Mismatch {
        /// The node.
        node: String,
        /// What does not match.
        what: &'static str,
    },
}

/// Dials `node` and says `hello`. The link accepts large messages on Ok.
pub(crate) fn dial(agent: &Agent, node: &str, address: &str, hello: Hello) -> Result<Link, DialError> {
    let name = || node.to_owned();
    let expect = Agent::identity(node).map_err(|source| DialError::Name(name(), source))?;
    let stream = TlsStream::connect(&agent.tls, &expect, address).map_err(|source| DialError::Connect {
        node: name(),
        address: address.to_owned(),
        source,
    })?;
    let mut link = Link::new(stream);
    let expected = hello.peer_incarnation;
    let welcomed = link
        .send(&PeerMessage::Hello(hello))
        .and_then(|()| link.recv(ANSWER_TIMEOUT, &mut || false))
        .map_err(|source| DialError::Link { node: name(), source })?;
    match welcomed {
        PeerMessage::Welcome { version, .. } if !agent.versions.contains(&version) => {
            Err(DialError::Mismatch { node: name(), what: "speaks another version of the protocol" })
        }
        PeerMessage::Welcome { incarnation, .. } if expected != 0 && incarnation != expected => {
            Err(DialError::Mismatch { node: name(), what: "was restarted since it was prepared" })
        }
        PeerMessage::Welcome { version, .. } => {
            link.agree(version);
            link.trust();
            Ok(link)
        }
        PeerMessage::Unwelcome { reason } => Err(DialError::Unwelcome { node: name(), reason }),
        _ => Err(DialError::Mismatch { node: name(), what: "did not answer Hello with Welcome" }),
    }
}

/// Asks one question on a connection of its own.
pub(crate) fn ask(
    agent: &Agent,
    node: &str,
    address: &str,
    about: &crate::journal::Begin,
    question: &PeerMessage,
    limit: Duration,
) -> Result<PeerMessage, DialError> {
    let mut link = dial(agent, node, address, hello(agent, about, 0, Purpose::Question))?;
    link.send(question)
        .and_then(|()| link.recv(limit, &mut || false))
        .map_err(|source| DialError::Link { node: node.to_owned(), source })
}

/// How long a question about a commit may wait for its answer.
pub(crate) const QUESTION_TIMEOUT: Duration = Duration::from_secs(25);

/// The Hello of a connection about one session.
pub(crate) fn hello(
    agent: &Agent,
    about: &crate::journal::Begin,
    peer_incarnation: u64,
    purpose: Purpose,
) -> Hello {
    Hello {
        versions: agent.versions.to_vec(),
        migration: about.migration.clone(),
        epoch: about.epoch,
        container: about.container.clone(),
        incarnation: agent.incarnation,
        peer_incarnation,
        address: agent.peer_address.clone(),
        purpose,
    }
}

/// Serves peers for ever, on threads of its own.
///
/// # Errors
/// When the first thread cannot be started.
pub(crate) fn serve(agent: Arc<Agent>, listener: TcpListener) -> io::Result<()> {
    let strangers = Arc::new(AtomicUsize::new(0));
    thread::Builder::new().name("peer-listener".to_owned()).spawn(move || {
        loop {
            match listener.accept() {
                Ok((tcp, _)) => admit(&agent, &strangers, tcp),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a peer's connection");
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    })?;
    Ok(())
}

/// Counts connections that have not been recognised yet.
struct Stranger(Arc<AtomicUsize>);

impl Drop for Stranger {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn admit(agent: &Arc<Agent>, strangers: &Arc<AtomicUsize>, tcp: TcpStream) {
    let before = strangers.fetch_add(1, Ordering::Relaxed);
    let stranger = Stranger(Arc::clone(strangers));
    let from = tcp.peer_addr().map_or_else(|_| "?".to_owned(), |address| address.to_string());
    if before >= MAX_STRANGERS {
        tracing::warn!(from, "too many connections that have not said Hello; closing one");
        return;
    }
    let agent = Arc::clone(agent);
    let spawned = thread::Builder::new().name("peer".to_owned()).spawn(move || {
        if let Err(reason) = greet(&agent, tcp, stranger) {
            tracing::warn!(from, reason, "refused a peer's connection");
        }
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "cannot start a thread for a peer's connection");
    }
}

/// From the accepted socket to the end of whatever it is for. Err is the reason of a refusal.
fn greet(agent: &Arc<Agent>, tcp: TcpStream, stranger: Stranger) -> Result<(), String> {
    let stream = TlsStream::accept(&agent.tls, tcp).map_err(|error| chain(&error))?;
    let mut link = Link::new(stream);
    let message = link.recv(ANSWER_TIMEOUT, &mut || false).map_err(|error| chain(&error))?;
    drop(stranger);
    let PeerMessage::Hello(hello) = message else {
        return Err(format!("{} instead of Hello", message.name()));
    };
    let peer = link.peer().clone();
    if peer.role() != PeerRole::Node {
        return unwelcome(&mut link, format!("{peer} is no node"));
    }
    let Some(version) = hello.versions.iter().copied().find(|version| agent.versions.contains(version))
    else {
        return unwelcome(&mut link, format!("no common protocol version: {:?}", hello.versions));
    };
    link.agree(version);
    let welcome = PeerMessage::Welcome { version, incarnation: agent.incarnation };
    match hello.purpose {
        Purpose::Invalid => unwelcome(&mut link, "no purpose".to_owned()),
        Purpose::Session => match target::open(agent, peer.name(), &hello) {
            Ok(session) => {
                link.trust();
                link.send(&welcome).map_err(|error| chain(&error))?;
                session.run(link);
                Ok(())
            }
            Err(reason) => unwelcome(&mut link, reason),
        },
        Purpose::Bulk(number) => {
            let bulk = {
                let mut table = agent.table();
                table
                    .targets
                    .get_mut(&hello.container)
                    .filter(|handle| handle.epoch == hello.epoch && handle.source_node == peer.name())
                    .and_then(|handle| handle.serving.as_mut()?.bulk.as_mut())
                    .ok_or_else(|| format!("no session of {} takes bulk streams", hello.container))
                    .and_then(|arrivals| arrivals.admit(number))
            };
            let bulk = match bulk {
                Ok(bulk) => bulk,
                Err(reason) => return unwelcome(&mut link, reason),
            };
            link.send(&welcome).map_err(|error| chain(&error))?;
            let (reader, _) = link.into_parts();
            bulk.send((number, reader)).map_err(|_| "the session ended".to_owned())
        }
        Purpose::Question => {
            link.send(&welcome).map_err(|error| chain(&error))?;
            link.trust();
            question(agent, peer.name(), &hello, &mut link)
        }
        Purpose::Probe => {
            link.send(&welcome).map_err(|error| chain(&error))?;
            link.trust();
            predict::serve(&mut link).map_err(|error| chain(&error))
        }
    }
}

fn unwelcome(link: &mut Link, reason: String) -> Result<(), String> {
    let _ = link.send(&PeerMessage::Unwelcome { reason: reason.clone() });
    Err(reason)
}

fn question(agent: &Arc<Agent>, peer: &str, hello: &Hello, link: &mut Link) -> Result<(), String> {
    let message = match link.recv(ANSWER_TIMEOUT, &mut || false) {
        Ok(message) => message,
        Err(LinkError::Closed(_)) => return Ok(()),
        Err(error) => return Err(chain(&error)),
    };
    let answer = match message {
        PeerMessage::Query => {
            PeerMessage::Answer(commit::source_on_query(&agent.source_view(&hello.container), hello.epoch))
        }
        PeerMessage::Commit { .. } => commit_again(agent, peer, hello, message)?,
        PeerMessage::Abort { .. } => abort_again(agent, peer, hello, message)?,
        other => return Err(format!("{} is no question", other.name())),
    };
    tracing::debug!(
        container = hello.container,
        epoch = hello.epoch,
        answer = answer.name(),
        "answered a peer"
    );
    link.send(&answer).map_err(|error| chain(&error))
}

fn commit_again(
    agent: &Arc<Agent>,
    peer: &str,
    hello: &Hello,
    message: PeerMessage,
) -> Result<PeerMessage, String> {
    let view = agent.target_view(&hello.container);
    Ok(match commit::target_on_commit(&view, hello.epoch) {
        OnCommit::Take | OnCommit::UnderWay => {
            mail(agent, peer, hello, message)?.unwrap_or(PeerMessage::Later)
        }
        OnCommit::Ack => {
            PeerMessage::Ack { resumed: Duration::ZERO, took: Duration::ZERO, steps: Vec::new() }
        }
        OnCommit::Stale(epoch, owner) => PeerMessage::Stale { epoch, owner },
        OnCommit::Lost => PeerMessage::Lost,
        OnCommit::Refuse => return Err("Commit for a copy that is not Ready".to_owned()),
    })
}

fn abort_again(
    agent: &Arc<Agent>,
    peer: &str,
    hello: &Hello,
    message: PeerMessage,
) -> Result<PeerMessage, String> {
    let view = agent.target_view(&hello.container);
    Ok(match commit::target_on_abort(&view, hello.epoch) {
        OnDiscard::Discard => mail(agent, peer, hello, message)?.unwrap_or(PeerMessage::Later),
        OnDiscard::Keep => PeerMessage::Done,
    })
}

/// Hands a message to the thread that serves the copy, and waits for its answer.
fn mail(
    agent: &Agent,
    peer: &str,
    hello: &Hello,
    message: PeerMessage,
) -> Result<Option<PeerMessage>, String> {
    let inbox = {
        let table = agent.table();
        let Some(handle) = table.targets.get(&hello.container).filter(|handle| handle.epoch == hello.epoch)
        else {
            return Ok(None);
        };
        if handle.source_node != peer {
            return Err(format!(
                "{peer} is not the source of {}: {} is",
                hello.container, handle.source_node
            ));
        }
        handle.serving.as_ref().map(|serving| serving.inbox.clone())
    };
    let Some(inbox) = inbox else { return Ok(None) };
    let (reply, answer) = sync_channel(1);
    if inbox.send(Mail { message, reply }).is_err() {
        return Ok(None);
    }
    Ok(answer.recv_timeout(TAKEOVER_TIMEOUT).ok())
}
