//! Two agents over loopback with real certificates: who is let in, what is refused, and what a restarted
//! agent does. Nothing here moves a process: the engine has its own tests, and whole migrations are tested end
//! to end.

#![expect(clippy::unwrap_used, reason = "a test may")]

#[path = "peers/support.rs"]
mod support;
#[path = "peers/talk.rs"]
mod talk;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use image::frame::{FrameKind, FrameWriter, Header};
use image::state::Needs;
use node_agent::commit::{Answer, Owner};
use node_agent::journal::{Begin, Journal, Record};
use node_agent::session::clocks::Distance;
use node_agent::session::orders::{Limits, OrderError, Resolve, Start};
use node_agent::session::status::{Phase, Role};
use node_agent::transfer::link::Link;
use node_agent::transfer::message::{PeerMessage, Purpose};
use node_agent::transfer::stream::TlsStream;
use proto::identity::{Identity, Role as PeerRole};
use proto::tls::Tls;
use support::{Pki, TestAgent};
use talk::{SOON, closed, connect, greet, hello, prepare, refused};

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn only_the_prepared_source_opens_the_session() {
    let pki = Pki::new();
    let a = pki.issue("node-a", "node");
    let b = TestAgent::new(pki.issue("node-b", "node"), &[]);
    let session = |tls: &Tls, epoch, container: &str, incarnation| {
        greet(tls, &b.address, hello(epoch, container, incarnation, Purpose::Session)).1
    };
    refused(&session(&a, 1, "web", 0), "is expected");
    let prepared = b.migrations.prepare(&prepare(3, "web", "node-a")).unwrap();
    let nonce = prepared.incarnation;
    refused(&session(&a, 2, "web", nonce), "not the migration that is expected");
    refused(&session(&a, 3, "web", nonce + 1), "another run of this agent");
    refused(&session(&pki.issue("node-c", "node"), 3, "web", nonce), "not from node-c");
    refused(&session(&pki.issue("ada", "admin"), 3, "web", nonce), "is no node");
    refused(&session(&pki.issue("main", "coordinator"), 3, "web", nonce), "is no node");
    let (mut link, answer) = greet(&a, &b.address, hello(3, "web", nonce, Purpose::Session));
    assert_eq!(answer, PeerMessage::Welcome { version: 4, incarnation: nonce });
    refused(&session(&a, 3, "web", nonce), "is open");
    // And none of these attempts disturbed the one that is open.
    link.send(&PeerMessage::Check {
        facts: b.node.facts.clone(),
        needs: Needs::default(),
        memory_bytes: 1,
        groups: Box::default(),
    })
    .unwrap();
    assert_eq!(link.recv(SOON, &mut || false).unwrap(), PeerMessage::Checked(vec![]));
}

#[test]
fn another_authority_and_another_name_fail_in_the_handshake() {
    let (pki, foreign) = (Pki::new(), Pki::new());
    let b = TestAgent::new(pki.issue("node-b", "node"), &[]);
    let expect = |name| Identity::new(PeerRole::Node, name).unwrap();
    // The client refuses the server.
    assert!(TlsStream::connect(&foreign.issue("node-a", "node"), &expect("node-b"), &b.address).is_err());
    assert!(TlsStream::connect(&pki.issue("node-a", "node"), &expect("node-c"), &b.address).is_err());
    // The server refuses a client that shows no certificate: plain bytes are all that a stranger has.
    let mut tcp = TcpStream::connect(&b.address).unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    tcp.set_read_timeout(Some(SOON)).unwrap();
    let mut rest = Vec::new();
    let _ = tcp.read_to_end(&mut rest);
    assert!(!rest.windows(4).any(|window| window == b"GNTR"), "a stranger got a frame");
    // It serves on.
    b.migrations.prepare(&prepare(1, "web", "node-a")).unwrap();
}

#[test]
fn garbage_and_oversized_frames_close_the_connection_and_nothing_else() {
    let pki = Pki::new();
    let a = pki.issue("node-a", "node");
    let b = TestAgent::new(pki.issue("node-b", "node"), &[]);
    let expect = Identity::new(PeerRole::Node, "node-b").unwrap();
    let oversized = Header { kind: FrameKind::State, sequence: 0, length: 64 << 20, checksum: 0 }.encode();
    let mut wrong_kind = FrameWriter::new(Vec::new());
    wrong_kind.write(FrameKind::Pages, &[&[1; 100]]).unwrap();
    let mut zero = FrameWriter::new(Vec::new());
    zero.write(FrameKind::Message, &[&[0]]).unwrap();
    for bytes in [vec![0xff; 4096], oversized.to_vec(), wrong_kind.into_inner(), zero.into_inner()] {
        let mut stream = TlsStream::connect(&a, &expect, &b.address).unwrap();
        stream.write_all(&bytes).and_then(|()| stream.flush()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut one = [0];
        assert!(matches!(stream.read(&mut one), Ok(0) | Err(_)), "the agent answered garbage");
    }
    b.migrations.prepare(&prepare(1, "web", "node-a")).unwrap();
}

#[test]
fn a_message_out_of_order_ends_the_session_and_its_epoch() {
    let pki = Pki::new();
    let a = pki.issue("node-a", "node");
    let b = TestAgent::new(pki.issue("node-b", "node"), &[]);
    let nonce = b.migrations.prepare(&prepare(1, "web", "node-a")).unwrap().incarnation;
    let (mut link, _) = greet(&a, &b.address, hello(1, "web", nonce, Purpose::Session));
    link.send(&PeerMessage::Commit { held: vec![] }).unwrap();
    match link.recv(SOON, &mut || false).unwrap() {
        PeerMessage::Failed { reason } => assert!(reason.contains("Commit"), "{reason}"),
        other => panic!("{other:?}"),
    }
    closed(&mut link);
    b.wait("web-1", |status| status.phase.is_terminal());
    let again = b.migrations.prepare(&prepare(1, "web", "node-a"));
    assert!(matches!(again, Err(OrderError::Stale { known: 1, .. })), "{again:?}");
    b.migrations.prepare(&prepare(2, "web", "node-a")).unwrap();
}

#[test]
fn a_link_that_is_lost_before_ready_leaves_nothing_behind() {
    let pki = Pki::new();
    let a = pki.issue("node-a", "node");
    let b = TestAgent::new(pki.issue("node-b", "node"), &[]);
    let nonce = b.migrations.prepare(&prepare(1, "web", "node-a")).unwrap().incarnation;
    let (mut link, _) = greet(&a, &b.address, hello(1, "web", nonce, Purpose::Session));
    link.send(&PeerMessage::Check {
        facts: b.node.facts.clone(),
        needs: Needs::default(),
        memory_bytes: 1,
        groups: Box::default(),
    })
    .unwrap();
    link.recv(SOON, &mut || false).unwrap();
    link.send(&PeerMessage::Spec { spec: b"web".to_vec(), clocks: Distance::default(), streams: 1 }).unwrap();
    assert!(matches!(link.recv(SOON, &mut || false).unwrap(), PeerMessage::Prepared { .. }));
    let (_bulk, answer) = greet(&a, &b.address, hello(1, "web", 0, Purpose::Bulk(0)));
    assert!(matches!(answer, PeerMessage::Welcome { .. }));
    drop(link);
    b.wait_log("discard");
    assert_eq!(b.wait("web-1", |status| status.phase.is_terminal()).phase, Phase::Failed);
    b.migrations.prepare(&prepare(2, "web", "node-a")).unwrap();
}

#[test]
fn streams_come_in_order_and_as_many_as_were_announced() {
    let pki = Pki::new();
    let a = pki.issue("node-a", "node");
    let b = TestAgent::new(pki.issue("node-b", "node"), &[]);
    let mut epoch = 0;
    let mut session = |streams: u32| {
        epoch += 1;
        let nonce = b.migrations.prepare(&prepare(epoch, "web", "node-a")).unwrap().incarnation;
        let (mut link, _) = greet(&a, &b.address, hello(epoch, "web", nonce, Purpose::Session));
        let facts = b.node.facts.clone();
        let (needs, groups) = (Needs::default(), Box::default());
        link.send(&PeerMessage::Check { facts, needs, memory_bytes: 1, groups }).unwrap();
        link.recv(SOON, &mut || false).unwrap();
        let spec = PeerMessage::Spec { spec: b"web".to_vec(), clocks: Distance::default(), streams };
        link.send(&spec).unwrap();
        (epoch, link)
    };
    let open = |epoch, number| greet(&a, &b.address, hello(epoch, "web", 0, Purpose::Bulk(number)));
    let failed = |mut link: Link, because: &str| match link.recv(SOON, &mut || false).unwrap() {
        PeerMessage::Failed { reason } => assert!(reason.contains(because), "{reason}"),
        other => panic!("{other:?}"),
    };
    for streams in [0, 17] {
        failed(session(streams).1, "bulk streams");
    }
    let (epoch, mut link) = session(3);
    assert!(matches!(link.recv(SOON, &mut || false).unwrap(), PeerMessage::Prepared { .. }));
    let mut kept = Vec::new();
    for number in 0..3_u32 {
        // Not the next one, not one again, not one that nobody has announced.
        for wrong in [number + 1, number.wrapping_sub(1), 16] {
            refused(&open(epoch, wrong).1, "not the one that is due");
        }
        let (stream, answer) = open(epoch, number);
        assert!(matches!(answer, PeerMessage::Welcome { .. }), "{answer:?}");
        kept.push(stream);
    }
    eventually(
        "no further stream is let in",
        || matches!(open(epoch, 3).1, PeerMessage::Unwelcome { reason } if reason.contains("takes bulk streams")),
    );
    drop(kept);
    drop(link);
    // One that was announced and does not come.
    let (epoch, mut link) = session(2);
    assert!(matches!(link.recv(SOON, &mut || false).unwrap(), PeerMessage::Prepared { .. }));
    let (_stream, answer) = open(epoch, 0);
    assert!(matches!(answer, PeerMessage::Welcome { .. }), "{answer:?}");
    match link.recv(2 * SOON, &mut || false).unwrap() {
        PeerMessage::Failed { reason } => assert!(reason.contains("too few bulk streams"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_target_that_lacks_something_says_what() {
    let pki = Pki::new();
    let a = pki.issue("node-a", "node");
    let b = TestAgent::new(pki.issue("node-b", "node"), &[]);
    let nonce = b.migrations.prepare(&prepare(1, "web", "node-a")).unwrap().incarnation;
    let (mut link, _) = greet(&a, &b.address, hello(1, "web", nonce, Purpose::Session));
    let facts = image::state::HostFacts { vdso_hash: 99, ..b.node.facts.clone() };
    let needs = Needs {
        posix_timers: true,
        guard_pages: true,
        huge_pages: vec![image::state::HugePages { size: 2 << 20, count: 1 }],
        hard_limits: vec![1025; 1],
        oom_score_adj: -1,
        ..Needs::default()
    };
    link.send(&PeerMessage::Check { facts, needs, memory_bytes: u64::MAX, groups: Box::default() }).unwrap();
    match link.recv(SOON, &mut || false).unwrap() {
        PeerMessage::Checked(lacks) => assert_eq!(lacks.len(), 7, "{lacks:?}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_newer_prepare_takes_the_place_of_an_unfinished_session() {
    let pki = Pki::new();
    let a = pki.issue("node-a", "node");
    let b = TestAgent::new(pki.issue("node-b", "node"), &[]);
    let nonce = b.migrations.prepare(&prepare(1, "web", "node-a")).unwrap().incarnation;
    let (mut link, _) = greet(&a, &b.address, hello(1, "web", nonce, Purpose::Session));
    b.migrations.prepare(&prepare(2, "web", "node-a")).unwrap();
    assert!(matches!(link.recv(SOON, &mut || false), Ok(PeerMessage::Failed { .. })));
    let (_, answer) = greet(&a, &b.address, hello(2, "web", nonce, Purpose::Session));
    assert!(matches!(answer, PeerMessage::Welcome { .. }), "{answer:?}");
    assert!(matches!(
        b.migrations.prepare(&prepare(1, "web", "node-a")),
        Err(OrderError::Stale { known: 2, .. })
    ));
}

#[test]
fn a_container_that_is_here_is_not_expected_from_elsewhere() {
    let pki = Pki::new();
    let b = TestAgent::new(pki.issue("node-b", "node"), &[("web", 1)]);
    let order = b.migrations.prepare(&prepare(1, "web", "node-a"));
    assert!(matches!(order, Err(OrderError::Container(_))), "{order:?}");
}

fn ask(tls: &Tls, agent: &TestAgent, epoch: u64, container: &str, question: &PeerMessage) -> PeerMessage {
    let (mut link, answer) = greet(tls, &agent.address, hello(epoch, container, 0, Purpose::Question));
    assert!(matches!(answer, PeerMessage::Welcome { .. }), "{answer:?}");
    link.send(question).unwrap();
    link.recv(SOON, &mut || false).unwrap()
}

#[test]
fn questions_about_what_is_not_known_are_answered_so() {
    let pki = Pki::new();
    let a = pki.issue("node-a", "node");
    let b = TestAgent::new(pki.issue("node-b", "node"), &[("here", 1)]);
    let query = |container, epoch| ask(&a, &b, epoch, container, &PeerMessage::Query);
    assert_eq!(query("web", 1), PeerMessage::Answer(Answer::Unknown));
    assert_eq!(query("here", 1), PeerMessage::Answer(Answer::Unknown), "an epoch that this agent never saw");
    assert_eq!(ask(&a, &b, 1, "web", &PeerMessage::Commit { held: vec![] }), PeerMessage::Lost);
    let abort = PeerMessage::Abort { reason: String::new() };
    assert_eq!(ask(&a, &b, 1, "web", &abort), PeerMessage::Done);
}

/// A start order towards `target`.
fn start(epoch: u64, container: &str, target: &TestAgent, incarnation: u64) -> Start {
    Start {
        migration: format!("{container}-{epoch}"),
        epoch,
        container: container.to_owned(),
        target_node: "node-b".to_owned(),
        target_address: target.address.clone(),
        target_incarnation: incarnation,
        policy: Limits::default(),
        trace: None,
    }
}

/// A pid that no process can have: above the kernel's own limit (PID_MAX_LIMIT, 2^22).
const NOBODY: i32 = 5_000_000;

#[test]
fn a_source_that_fails_gives_the_container_back_and_closes_the_epoch() {
    let pki = Pki::new();
    let a = TestAgent::new(pki.issue("node-a", "node"), &[("web", NOBODY)]);
    let b = TestAgent::new(pki.issue("node-b", "node"), &[]);
    let prepared = b.migrations.prepare(&prepare(1, "web", "node-a")).unwrap();
    a.migrations.start(&start(1, "web", &b, prepared.incarnation)).unwrap();
    let status = a.wait("web-1", |status| status.phase.is_terminal());
    assert_eq!((status.phase, status.reason.as_str()), (Phase::Failed, "EngineFailed"), "{status:#?}");
    assert_eq!(a.log.all(), ["settle Running 1"], "nothing else may have been touched");
    let again = a.migrations.start(&start(1, "web", &b, prepared.incarnation));
    assert!(
        matches!(again, Err(OrderError::Stale { known: 1, owner: Some(Owner::Source), .. })),
        "{again:?}"
    );
    assert!(matches!(a.migrations.abort("web-1", 1, "late"), Err(OrderError::NoMigration(_))));
    let tls = pki.issue("node-b", "node");
    let (mut link, _) = {
        let expect = Identity::new(PeerRole::Node, "node-a").unwrap();
        let mut link = Link::new(TlsStream::connect(&tls, &expect, &a.address).unwrap());
        link.send(&PeerMessage::Hello(hello(1, "web", 0, Purpose::Question))).unwrap();
        let answer = link.recv(SOON, &mut || false).unwrap();
        (link, answer)
    };
    link.send(&PeerMessage::Query).unwrap();
    assert_eq!(link.recv(SOON, &mut || false).unwrap(), PeerMessage::Answer(Answer::Aborted));
}

#[test]
fn a_frozen_container_is_refused_by_name() {
    let pki = Pki::new();
    let a = TestAgent::new(pki.issue("node-a", "node"), &[("web", NOBODY)]);
    let b = TestAgent::new(pki.issue("node-b", "node"), &[]);
    std::fs::write(a.dir.path().join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
    a.migrations.start(&start(1, "web", &b, 1)).unwrap();
    let status = a.wait("web-1", |status| status.phase.is_terminal());
    assert_eq!(status.reason, "Refused");
    assert!(status.refusals[0].reason.contains("frozen"), "{:?}", status.refusals);
}

#[test]
fn orders_for_what_is_not_here_are_refused() {
    let pki = Pki::new();
    let a = TestAgent::new(pki.issue("node-a", "node"), &[]);
    let order = a.migrations.start(&start(1, "web", &a, 1));
    assert!(matches!(order, Err(OrderError::Port(_))), "{order:?}");
    assert!(matches!(a.migrations.abort("web-1", 1, ""), Err(OrderError::NoMigration(_))));
    let resolve = |fenced| Resolve {
        migration: "web-1".into(),
        container: "web".into(),
        epoch: 2,
        owner: Owner::Source,
        fenced,
    };
    assert!(matches!(a.migrations.resolve(&resolve(false)), Err(OrderError::Contrary(_))));
    // A target that was fenced, and whose session has ended, has nothing to lose; told again, it says so again.
    a.migrations.resolve(&resolve(true)).unwrap();
    a.migrations.resolve(&resolve(true)).unwrap();
}

/// A state directory with the journal of an agent that died.
fn journal_of(role: Role, peer: &str, address: &str, more: &[Record]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    let begin = Begin {
        container: "web".to_owned(),
        migration: "web-1".to_owned(),
        epoch: 1,
        boot: std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned(),
        role,
        peer: peer.to_owned(),
        peer_address: address.to_owned(),
        cgroup: dir.path().to_owned(),
        frozen_before: false,
    };
    journal.append_sync(&[Record::Begin(begin)]).unwrap();
    journal.append_sync(more).unwrap();
    dir
}

fn committed() -> Record {
    Record::Committed { container: "web".to_owned(), epoch: 1 }
}

#[test]
fn a_restarted_source_commits_on_and_kills_after_the_ack() {
    let pki = Pki::new();
    let owned = [Record::Owned { container: "web".to_owned(), epoch: 1 }];
    let b = TestAgent::at(
        pki.issue("node-b", "node"),
        &[],
        journal_of(Role::Target, "node-a", "127.0.0.1:1", &owned),
    );
    let dir = journal_of(Role::Source, "node-b", &b.address, &[committed()]);
    let a = TestAgent::at(pki.issue("node-a", "node"), &[("web", NOBODY)], dir);
    let status = a.wait("web-1", |status| status.phase.is_terminal());
    assert_eq!(status.phase, Phase::Succeeded, "{status:#?}");
    assert_eq!(a.log.all(), ["settle Frozen 1", "kill", "remove", "release"], "the lock is lifted last");
    assert!(matches!(
        a.migrations.start(&start(1, "web", &b, 1)),
        Err(OrderError::Stale { known: 1, owner: Some(Owner::Target), .. })
    ));
}

#[test]
fn a_committed_source_stays_frozen_when_the_target_lost_its_copy_until_it_is_resolved() {
    let pki = Pki::new();
    let b = TestAgent::new(pki.issue("node-b", "node"), &[]);
    let dir = journal_of(Role::Source, "node-b", &b.address, &[committed()]);
    let a = TestAgent::at(pki.issue("node-a", "node"), &[("web", NOBODY)], dir);
    let status = a.wait("web-1", |status| status.phase == Phase::OutcomeUnknown);
    assert_eq!(status.reason, "TargetLostCopy");
    assert_eq!(a.log.all(), ["settle Frozen 1"]);
    assert!(matches!(a.migrations.abort("web-1", 1, "please"), Err(OrderError::Committed(_))));
    assert!(matches!(a.migrations.start(&start(2, "web", &b, 1)), Err(OrderError::Unacknowledged { .. })));
    let resolve = |epoch, owner| Resolve {
        migration: "web-1".into(),
        container: "web".into(),
        epoch,
        owner,
        fenced: false,
    };
    assert!(matches!(a.migrations.resolve(&resolve(1, Owner::Target)), Err(OrderError::Stale { .. })));
    a.migrations.resolve(&resolve(2, Owner::Target)).unwrap();
    assert_eq!(a.wait("web-1", |status| status.phase.is_terminal()).reason, "Resolved");
    assert_eq!(a.log.all(), ["settle Frozen 1", "kill", "remove", "release"]);
    assert!(matches!(a.migrations.resolve(&resolve(2, Owner::Source)), Err(OrderError::Stale { .. })));
}

#[test]
fn a_restarted_target_kills_what_was_not_ready_and_says_lost_for_what_died() {
    let pki = Pki::new();
    let a = pki.issue("node-a", "node");
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned();
    let ready = |boot: String| Record::Ready { container: "web".to_owned(), epoch: 1, boot };
    // Nothing ready; ready in this boot and dead; ready before the host's restart.
    for (more, reason) in [
        (vec![], "AgentRestarted"),
        (vec![ready(boot)], "CopyLost"),
        (vec![ready("another boot".to_owned())], "AgentRestarted"),
    ] {
        let dir = journal_of(Role::Target, "node-a", "127.0.0.1:1", &more);
        let b = TestAgent::at(pki.issue("node-b", "node"), &[], dir);
        let status = b.wait("web-1", |status| status.phase.is_terminal());
        assert_eq!(status.reason, reason);
        assert_eq!(b.log.all(), ["kill-incoming web"]);
        eventually("the record ends", || {
            ask(&a, &b, 1, "web", &PeerMessage::Commit { held: vec![] }) == PeerMessage::Lost
        });
    }
}

#[test]
fn a_restarted_source_without_its_copy_tells_nobody_anything() {
    let pki = Pki::new();
    let b = TestAgent::new(pki.issue("node-b", "node"), &[]);
    let a =
        TestAgent::at(pki.issue("node-a", "node"), &[], journal_of(Role::Source, "node-b", &b.address, &[]));
    let status = a.wait("web-1", |status| !status.reason.is_empty());
    // Not Failed: that would be relayed as an abort to a target whose copy may be the last one.
    assert_eq!((status.phase, status.reason.as_str()), (Phase::OutcomeUnknown, "CopyLost"));
    let tls = pki.issue("node-b", "node");
    let expect = Identity::new(PeerRole::Node, "node-a").unwrap();
    let mut link = Link::new(TlsStream::connect(&tls, &expect, &a.address).unwrap());
    link.send(&PeerMessage::Hello(hello(1, "web", 0, Purpose::Question))).unwrap();
    link.recv(SOON, &mut || false).unwrap();
    link.send(&PeerMessage::Query).unwrap();
    assert_eq!(link.recv(SOON, &mut || false).unwrap(), PeerMessage::Answer(Answer::Unknown));
}

/// A socket that is closed with unread data resets its connection, and the reset takes along what the peer had not
/// read yet: the reason of a failure.
#[test]
fn what_was_said_last_arrives_although_the_peer_was_sending() {
    let pki = Pki::new();
    let (a, b) = (pki.issue("node-a", "node"), pki.issue("node-b", "node"));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let failed = PeerMessage::Failed { reason: "the disk is full".to_owned() };
    let said = failed.clone();
    let (begun, wait_begun) = std::sync::mpsc::channel::<()>();
    let target = std::thread::spawn(move || {
        let mut link = Link::new(TlsStream::accept(&b, listener.accept().unwrap().0).unwrap());
        // What the source sent lies unread when the last word is said.
        wait_begun.recv().unwrap();
        link.send(&said).unwrap();
        let began = Instant::now();
        link.close(SOON);
        assert!(began.elapsed() < SOON, "the end of the connection was not seen");
    });
    let mut link = connect(&a, &address);
    let filler = PeerMessage::Abort { reason: "x".repeat(10_000) };
    for _ in 0..4 {
        link.send(&filler).unwrap();
    }
    begun.send(()).unwrap();
    // Goes on sending until it has been closed for writing at the other end and well after.
    let until = Instant::now() + Duration::from_millis(300);
    while Instant::now() < until {
        if link.send(&filler).is_err() {
            break;
        }
    }
    assert_eq!(link.recv(SOON, &mut || false).unwrap(), failed);
    drop(link);
    target.join().unwrap();
}
