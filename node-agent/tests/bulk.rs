//! Bulk streams over real TLS on loopback: several of one migration end rounds together, and what is wrong ends them.

#![expect(clippy::unwrap_used, reason = "a test may")]

#[path = "peers/support.rs"]
#[allow(dead_code, reason = "certificates alone are used here")]
mod support;

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use engine::PageSink;
use image::codec;
use image::frame::{FrameKind, FrameReader, FrameWriter};
use image::packed::Codec;
use image::pages::{self, Batch, Owner, Run, RunKind};
use node_agent::session::ports::FileSink;
use node_agent::transfer::bulk::{Apply, BulkEvent, BulkSender, Gate, Mark, Terms, receive};
use node_agent::transfer::pace::Budget;
use node_agent::transfer::squeeze::Compression;
use node_agent::transfer::stream::TlsStream;
use proto::identity::{Identity, Role};
use support::Pki;

const SOON: Duration = Duration::from_secs(10);
const PAGE: usize = 4096;

/// The memory of a target: what each page was written last, and in which order; some batches take longer than others.
#[derive(Clone)]
struct Memory(Arc<Mutex<Pages>>, bool);

struct Pages {
    bytes: Vec<u8>,
    log: Vec<u64>,
}

/// A page at which applying fails.
const BAD: u64 = 1 << 40;

impl Memory {
    fn new(pages: usize, uneven: bool) -> Self {
        Self(Arc::new(Mutex::new(Pages { bytes: vec![0; pages * PAGE], log: Vec::new() })), uneven)
    }

    fn log(&self) -> Vec<u64> {
        self.0.lock().unwrap().log.clone()
    }
}

impl Apply for Memory {
    fn apply(&self, batch: &Batch<'_>) -> io::Result<()> {
        // Long enough for another stream to come a round ahead, if it may.
        if self.1 && (batch.runs[0].addr / PAGE as u64).is_multiple_of(8) {
            thread::sleep(Duration::from_millis(20));
        }
        let mut pages = self.0.lock().unwrap();
        for (run, data) in batch.runs.iter().zip(batch.data.chunks_exact(PAGE)) {
            if run.addr == BAD {
                return Err(io::Error::other("a bad page"));
            }
            let at = usize::try_from(run.addr).unwrap();
            pages.bytes[at..at + PAGE].copy_from_slice(data);
            pages.log.push(run.addr);
        }
        Ok(())
    }
}

/// The receiving end of some streams, and the connections to it.
struct Target {
    gate: Arc<Gate<Memory>>,
    events: Receiver<BulkEvent>,
    sockets: Vec<TcpStream>,
    threads: Vec<JoinHandle<()>>,
}

fn connect(count: u32, memory: &Memory) -> (Vec<TlsStream>, Target) {
    let pki = Pki::new();
    let (a, b) = (pki.issue("node-a", "node"), pki.issue("node-b", "node"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (say, events) = channel();
    let gate = Gate::new();
    gate.expect(count);
    gate.open(1, memory.clone());
    let mut target = Target { gate: Arc::clone(&gate), events, sockets: Vec::new(), threads: Vec::new() };
    let mut streams = Vec::new();
    for number in 0..count {
        let (a, address) = (a.clone(), address.clone());
        let dial = thread::spawn(move || {
            TlsStream::connect(&a, &Identity::new(Role::Node, "node-b").unwrap(), &address).unwrap()
        });
        let (tcp, _) = listener.accept().unwrap();
        let stream = TlsStream::accept(&b, tcp).unwrap();
        stream.set_read_timeout(None).unwrap();
        target.sockets.push(stream.socket().unwrap());
        let (gate, say) = (Arc::clone(&gate), say.clone());
        target.threads.push(thread::spawn(move || {
            receive(number, FrameReader::new(stream), &gate, None, &Budget::new(0), &say);
        }));
        let stream = dial.join().unwrap();
        stream.set_bulk().unwrap();
        streams.push(stream);
    }
    (streams, target)
}

impl Target {
    /// The next report, which must be that of a round.
    fn round(&self) -> (u32, Option<String>) {
        match self.events.recv_timeout(SOON).unwrap() {
            BulkEvent::Round { round, error, .. } => (round, error),
            other @ BulkEvent::Ended { .. } => panic!("{other:?}"),
        }
    }

    /// The next report, which must be that of a stream that did what it may not, because of this.
    fn violated(self, stream: u32, because: &str) {
        match self.events.recv_timeout(SOON).unwrap() {
            BulkEvent::Ended { stream: who, error: Some(error) } => {
                assert!(error.is_violation() && error.to_string().contains(because), "{error}");
                assert_eq!(who, stream);
            }
            other => panic!("{other:?}"),
        }
        self.gate.close();
        for socket in &self.sockets {
            let _ = socket.shutdown(Shutdown::Both);
        }
        self.ends();
    }

    /// All receivers end.
    fn ends(self) {
        let deadline = Instant::now() + SOON;
        for thread in self.threads {
            while !thread.is_finished() {
                assert!(Instant::now() < deadline, "a receiver waits for ever");
                thread::sleep(Duration::from_millis(1));
            }
            thread.join().unwrap();
        }
    }

    fn progress(&self, frames: u64) {
        let deadline = Instant::now() + SOON;
        while self.gate.progress() < frames {
            assert!(Instant::now() < deadline, "{} of {frames} frames", self.gate.progress());
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn sender(streams: Vec<TlsStream>, stop: impl Fn() -> bool + Send + Sync + 'static) -> BulkSender {
    let terms = Terms {
        bandwidth: 0,
        budget: Arc::new(Budget::new(0)),
        compression: Compression::Auto,
        codecs: Codec::ALL.to_vec(),
    };
    let mut streams = streams.into_iter();
    let mut sender = BulkSender::new(streams.next().unwrap(), 0, terms, stop);
    for stream in streams {
        sender.add(stream, 0).unwrap();
    }
    sender
}

/// Sends these pages as one batch.
fn send(sink: &mut dyn PageSink, addresses: &[u64], content: impl Fn(u64) -> [u8; PAGE]) -> io::Result<()> {
    let runs: Vec<Run> =
        addresses.iter().map(|addr| Run { addr: *addr, pages: 1, kind: RunKind::Data }).collect();
    let data: Vec<u8> = addresses.iter().flat_map(|addr| content(*addr)).collect();
    sink.batch(&Batch { owner: Owner::Process(1), runs: &runs, data: &data })
}

/// What a page holds that a round wrote.
fn content(addr: u64, round: u32) -> [u8; PAGE] {
    let mut page = [u8::try_from(round).unwrap(); PAGE];
    page[..8].copy_from_slice(&addr.to_le_bytes());
    page
}

#[test]
fn every_page_ends_with_what_was_written_last_over_one_stream_and_several() {
    let pages = 2048;
    for (count, seed) in [(1, 1), (2, 2), (2, 3), (4, 4), (4, 5), (4, 6)] {
        let memory = Memory::new(pages, true);
        let (streams, target) = connect(count, &memory);
        let mut sender = sender(streams, || false);
        let mut random = fastrand::Rng::with_seed(seed);
        let mut expected = vec![None; pages];
        let mut all: Vec<usize> = (0..pages).collect();
        for round in 0..14 {
            // Some rounds are short.
            let size = if round % 4 == 3 { random.usize(..40) } else { 600 + random.usize(..pages - 600) };
            for at in 0..size {
                all.swap(at, at + random.usize(..pages - at));
            }
            sender.begin(round, 1).unwrap();
            for part in all[..size].chunks(16 + random.usize(..64)) {
                let addresses: Vec<u64> = part.iter().map(|page| (page * PAGE) as u64).collect();
                send(&mut sender, &addresses, |addr| content(addr, round)).unwrap();
                part.iter().for_each(|page| expected[*page] = Some(round));
            }
            sender.end(round).unwrap();
            // The source may be one round ahead.
            if round > 0 {
                assert_eq!(target.round(), (round - 1, None));
            }
        }
        assert_eq!(target.round(), (13, None));
        let held = memory.0.lock().unwrap();
        for (page, round) in expected.iter().enumerate() {
            let found = &held.bytes[page * PAGE..(page + 1) * PAGE];
            let wanted = round.map_or([0; PAGE], |round| content((page * PAGE) as u64, round));
            assert!(found == wanted, "page {page} of {count} streams, seed {seed}: {:?}", &found[..9]);
        }
        let sent = sender.sent_by_stream();
        assert_eq!((sent.len(), sender.streams()), (count as usize, count));
        assert_eq!(sent.iter().sum::<u64>(), sender.sent());
        assert!(sent.iter().all(|bytes| *bytes > 1 << 20), "each had its share: {sent:?}");
        drop(held);
        drop(sender);
        target.ends();
    }
}

#[test]
fn a_short_round_touches_the_first_stream_alone() {
    let memory = Memory::new(2048, false);
    let (streams, target) = connect(3, &memory);
    let mut sender = sender(streams, || false);
    let all: Vec<u64> = (0..2048).map(|page| page * PAGE as u64).collect();
    sender.begin(0, 1).unwrap();
    all.chunks(128).for_each(|part| send(&mut sender, part, |addr| content(addr, 0)).unwrap());
    sender.end(0).unwrap();
    assert_eq!(target.round(), (0, None));
    let before = sender.sent_by_stream();
    sender.hurry(Some(SOON)).unwrap();
    sender.begin(1, 1).unwrap();
    // A mebibyte at once, and any number of small ones.
    send(&mut sender, &all[..256], |addr| content(addr, 1)).unwrap();
    all[256..].chunks(8).for_each(|part| send(&mut sender, part, |addr| content(addr, 1)).unwrap());
    sender.end(1).unwrap();
    assert_eq!(target.round(), (1, None));
    let after = sender.sent_by_stream();
    assert!(after[0] > before[0] + 2048 * PAGE as u64, "{before:?} {after:?}");
    assert_eq!(before[1..], after[1..]);
    // In a hurry the others are used as well, when there is much.
    sender.begin(2, 1).unwrap();
    all.chunks(128).for_each(|part| send(&mut sender, part, |addr| content(addr, 2)).unwrap());
    sender.end(2).unwrap();
    assert_eq!(target.round(), (2, None));
    assert!(sender.sent_by_stream()[1] > after[1]);
    assert!(memory.0.lock().unwrap().bytes.chunks_exact(PAGE).all(|page| page[8..] == [2; PAGE - 8]));
}

/// A stream whose frames a test writes itself.
struct Raw(FrameWriter<TlsStream>);

impl Raw {
    fn mark(&mut self, mark: Mark) -> &mut Self {
        self.0.write(FrameKind::Mark, &[&codec::encode(&mark).unwrap()]).unwrap();
        self.0.flush().unwrap();
        self
    }

    fn begin(&mut self, round: u32) -> &mut Self {
        self.mark(Mark::Begin { round, generation: 1 })
    }

    fn end(&mut self, round: u32, others: u32) -> &mut Self {
        self.mark(Mark::End { round, others })
    }

    fn page(&mut self, addr: u64) -> &mut Self {
        let mut head = Vec::new();
        let (runs, data) = ([Run { addr, pages: 1, kind: RunKind::Data }], content(addr, 1));
        let batch = Batch { owner: Owner::Process(1), runs: &runs, data: &data };
        pages::encode_head(&batch, &mut head).unwrap();
        self.0.write(FrameKind::Pages, &[&head, &data]).unwrap();
        self.0.flush().unwrap();
        self
    }
}

fn raw<const N: usize>(memory: &Memory) -> ([Raw; N], Target) {
    let (streams, target) = connect(u32::try_from(N).unwrap(), memory);
    let streams: Vec<Raw> = streams.into_iter().map(|stream| Raw(FrameWriter::new(stream))).collect();
    (streams.try_into().ok().unwrap(), target)
}

#[test]
fn a_later_round_on_a_fast_stream_waits_for_an_earlier_one_on_a_slow_stream() {
    let memory = Memory::new(16, false);
    let ([mut first, mut slow, mut fast], target) = raw(&memory);
    let page = |number: u64| number * PAGE as u64;
    slow.begin(0).page(page(1));
    fast.begin(0).page(page(2)).end(0, 0).begin(1).page(page(5)).end(1, 0);
    first.begin(0).end(0, 0b110).begin(1).page(page(6)).end(1, 0b100);
    // All that can come has come: of the later round no more than that it begins.
    target.progress(2 + 4 + 2);
    assert!(target.events.try_recv().is_err(), "the slow stream is inside the round");
    slow.page(page(3)).end(0, 0);
    assert_eq!(target.round(), (0, None));
    assert_eq!(target.round(), (1, None));
    let log = memory.log();
    assert!(log[..3].iter().all(|addr| *addr <= page(3)), "{log:?}");
    assert!(log[3..].iter().all(|addr| *addr >= page(5)), "{log:?}");
    assert_eq!(log.len(), 5);
}

#[test]
fn what_cannot_be_applied_on_a_further_stream_is_told_with_its_round() {
    let memory = Memory::new(16, false);
    let ([mut first, mut second], target) = raw(&memory);
    first.begin(0).end(0, 0);
    assert_eq!(target.round(), (0, None));
    second.begin(1).page(BAD).page(0).end(1, 0);
    first.begin(1).end(1, 0b10);
    let (round, error) = target.round();
    assert_eq!(round, 1);
    assert!(error.unwrap().contains("a bad page"));
    assert_eq!(memory.log(), [0; 0], "nothing is applied after it");
    // Files belong on the first stream.
    second.begin(2);
    second.0.write(FrameKind::Files, &[b"files"]).unwrap();
    second.end(2, 0);
    first.begin(2).end(2, 0b10);
    let (round, error) = target.round();
    assert_eq!((round, error.unwrap().contains("a stream that carries none")), (2, true));
}

#[test]
fn closing_ends_every_wait() {
    let memory = Memory::new(16, false);
    let ([mut first, mut early, mut shapeless], target) = raw(&memory);
    first.begin(0).end(0, 0b100);
    early.begin(1);
    shapeless.mark(Mark::Begin { round: 0, generation: 7 }).page(0);
    target.progress(4);
    assert!(target.events.try_recv().is_err());
    target.gate.close();
    // The one that waited for a shape reads on.
    target.sockets[2].shutdown(Shutdown::Both).unwrap();
    target.ends();
    assert_eq!(memory.log(), [0; 0]);
}

#[test]
fn a_stream_that_breaks_breaks_the_round() {
    let memory = Memory::new(16, false);
    for clean in [true, false] {
        let ([mut first, mut second, mut third], target) = raw(&memory);
        first.begin(0).end(0, 0b110);
        third.begin(0).end(0, 0).begin(1);
        second.begin(0).page(0);
        target.progress(2 + 3 + 2);
        if clean {
            drop(second);
        } else {
            target.sockets[1].shutdown(Shutdown::Both).unwrap();
        }
        match target.events.recv_timeout(SOON).unwrap() {
            BulkEvent::Ended { stream: 1, error } => assert_eq!(error.is_none(), clean),
            other => panic!("{other:?}"),
        }
        // The first stream tells as well, and the third, which waited for the next round, ends; in any order.
        let told: Vec<String> =
            (0..3).map(|_| format!("{:?}", target.events.recv_timeout(SOON).unwrap())).collect();
        let told = told.join("\n");
        assert!(told.contains("error: Some(\"bulk stream 1"), "{told}");
        target.ends();
    }
}

#[test]
fn what_does_not_belong_on_a_stream_ends_it() {
    type Hostile = fn(&mut [Raw; 2]);
    let cases: [(u32, &str, Hostile); 11] = [
        (0, "a stream that is not there", |[first, _]| _ = first.begin(0).end(0, 0b100)),
        (0, "a stream that is not there", |[first, _]| _ = first.begin(0).end(0, 1 << 31)),
        (0, "a round out of order", |[first, _]| _ = first.begin(1)),
        (0, "out of order", |[first, _]| _ = first.begin(0).end(1, 0)),
        (1, "a round of the future", |[_, second]| _ = second.begin(2)),
        (1, "a mark out of order", |[_, second]| _ = second.end(0, 0)),
        (1, "a mark out of order", |[_, second]| _ = second.begin(0).begin(0)),
        (1, "a mark out of order", |[_, second]| _ = second.begin(0).mark(Mark::Urgent)),
        (1, "a round that began before", |[_, second]| _ = second.begin(0).end(0, 0).begin(0)),
        (1, "an end for other streams", |[_, second]| _ = second.begin(0).end(0, 1)),
        (1, "outside of a round", |[_, second]| _ = second.page(0)),
    ];
    for (stream, because, hostile) in cases {
        let (mut streams, target) = raw(&Memory::new(16, false));
        hostile(&mut streams);
        target.violated(stream, because);
    }
    // A stream that is not said to have taken part; and a round that is over.
    let ([mut first, mut second], target) = raw(&Memory::new(16, false));
    second.begin(0);
    target.progress(1);
    first.begin(0).end(0, 0);
    target.violated(0, "not said to have taken part");
    let ([mut first, mut second], target) = raw(&Memory::new(16, false));
    first.begin(0).end(0, 0);
    assert_eq!(target.round(), (0, None));
    second.begin(0);
    target.violated(1, "a round that is over");
}

#[test]
fn a_sender_tells_which_stream_is_lost_and_never_hangs() {
    let memory = Memory::new(2048, false);
    let (streams, target) = connect(4, &memory);
    let mut sender = sender(streams, || false);
    target.sockets[2].shutdown(Shutdown::Both).unwrap();
    let all: Vec<u64> = (0..2048).map(|page| page * PAGE as u64).collect();
    let began = Instant::now();
    sender.begin(0, 1).unwrap();
    let error = loop {
        assert!(began.elapsed() < 2 * SOON, "nobody noticed");
        let sent = all.chunks(64).try_for_each(|part| send(&mut sender, part, |addr| content(addr, 0)));
        if let Err(error) = sent {
            break error;
        }
    };
    assert!(error.to_string().starts_with("bulk stream 2: "), "{error}");
    // Nor does giving up: the other ones have something to send.
    drop(sender);
    target.gate.close();
    target.ends();
}

#[test]
fn a_cancel_stops_all_streams_and_a_round_ends_with_it() {
    let memory = Memory::new(2048, false);
    let (streams, target) = connect(3, &memory);
    let cancelled = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&cancelled);
    let mut sender = sender(streams, move || flag.load(Ordering::SeqCst));
    let all: Vec<u64> = (0..2048).map(|page| page * PAGE as u64).collect();
    sender.begin(0, 1).unwrap();
    all.chunks(128).for_each(|part| send(&mut sender, part, |addr| content(addr, 0)).unwrap());
    sender.end(0).unwrap();
    assert_eq!(target.round(), (0, None));
    sender.begin(1, 1).unwrap();
    cancelled.store(true, Ordering::SeqCst);
    let error = send(&mut sender, &all[..64], |addr| content(addr, 1)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    let error = FileSink::batch(&mut sender, b"files").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
}

#[test]
fn a_limit_of_bandwidth_has_one_stream() {
    let memory = Memory::new(16, false);
    let (streams, _target) = connect(2, &memory);
    let [one, two] = <[TlsStream; 2]>::try_from(streams).ok().unwrap();
    let terms = Terms {
        bandwidth: 1_000_000,
        budget: Arc::new(Budget::new(0)),
        compression: Compression::Off,
        codecs: Vec::new(),
    };
    let mut sender = BulkSender::new(one, 0, terms, || false);
    assert_eq!(sender.add(two, 0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(sender.streams(), 1);
}
