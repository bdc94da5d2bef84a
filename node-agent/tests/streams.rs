//! Real migrations over several bulk streams: what they carry is right, and one that is lost costs the migration alone.
//! Needs root.

#![allow(clippy::unwrap_used, reason = "a failed step is the test's failure")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::pair::{Pair, log, nothing_at, runs, told};
use common::wait_for;
use proto::v1;

/// Writes random pages of MIB megabytes, each with its number and how often it was written, some 40 MB/s; checks all of
/// them again and again and says so.
const CHECKED: &str = r"
import random, struct, sys, time
MIB = int(sys.argv[1])
PAGES = MIB * 256
random.seed(4711)
noise = [random.randbytes(4080) for _ in range(13)]
page = lambda number, version: struct.pack('<QQ', number, version) + noise[(number + version) % 13]
data = bytearray().join(page(number, 0) for number in range(PAGES))
versions = [0] * PAGES
n = 0
while True:
    for _ in range(50):
        for _ in range(40):
            number = random.randrange(PAGES)
            versions[number] += 1
            data[number << 12:(number + 1) << 12] = page(number, versions[number])
        time.sleep(0.004)
    bad = [number for number in range(PAGES) if data[number << 12:(number + 1) << 12] != page(number, versions[number])]
    n += 1
    print('BAD' if bad else 'ok', n, bad[:10], flush=True)
";

/// Stands between two agents: counts what the one that dials sends, and cuts connections.
struct Proxy {
    address: String,
    connections: Arc<Mutex<Vec<Connection>>>,
}

struct Connection {
    sockets: [TcpStream; 2],
    sent: Arc<AtomicU64>,
}

impl Proxy {
    fn before(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let connections = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&connections);
        thread::spawn(move || {
            for source in listener.incoming() {
                let (source, target) = (source.unwrap(), TcpStream::connect(&target).unwrap());
                for socket in [&source, &target] {
                    socket.set_nodelay(true).unwrap();
                }
                let (sent, answered) = (Arc::default(), Arc::default());
                pump(&source, &target, &sent);
                pump(&target, &source, &answered);
                all.lock().unwrap().push(Connection { sockets: [source, target], sent });
            }
        });
        Self { address, connections }
    }

    /// Bytes that the source sent on each connection, in the order in which they were opened.
    fn sent(&self) -> Vec<u64> {
        self.connections.lock().unwrap().iter().map(|each| each.sent.load(Ordering::Relaxed)).collect()
    }

    fn cut(&self, number: usize) {
        for socket in &self.connections.lock().unwrap()[number].sockets {
            socket.shutdown(Shutdown::Both).unwrap();
        }
    }
}

/// Carries bytes from one socket to another on a thread of its own, until one of them ends.
fn pump(from: &TcpStream, to: &TcpStream, count: &Arc<AtomicU64>) {
    let (mut from, mut to, count) = (from.try_clone().unwrap(), to.try_clone().unwrap(), Arc::clone(count));
    thread::spawn(move || {
        let mut buffer = vec![0; 256 << 10];
        while let Ok(got @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..got]).is_err() {
                break;
            }
            count.fetch_add(got as u64, Ordering::Relaxed);
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}

/// The session's connection comes first, the bulk streams after it.
const FIRST_STREAM: usize = 1;

fn patient() -> v1::Policy {
    v1::Policy {
        max_downtime: Some(Duration::from_secs(5).try_into().unwrap()),
        compression: v1::Compression::Off.into(),
        ..v1::Policy::default()
    }
}

/// The program has checked all of its memory here, twice more.
fn sound(agent: &common::agent::Agent, name: &str) {
    let checks = || log(agent, name).matches("ok ").count();
    let before = checks();
    wait_for(&format!("{name} checks its memory on {}", agent.name), || checks() >= before + 2);
    assert!(!log(agent, name).contains("BAD"), "{}", log(agent, name));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_writes_all_the_time_moves_over_three_streams_and_has_every_page() {
    let pair = Pair::new("bulk_streams = 3").await;
    let name = pair.run(&["python3", "-u", "-c", CHECKED, "96"], |_| {}).await;
    sound(&pair.one, &name);
    let mut proxy = None;
    let migration = pair
        .begin_through(&name, 1, patient(), |target| proxy.insert(Proxy::before(target)).address.clone())
        .await;
    let ended = pair.follow(&migration, |_| false).await;
    assert_eq!(ended.phase(), v1::Phase::Succeeded, "{}", told(&ended));
    println!("{}", told(&ended));
    sound(&pair.two, &name);

    let proxy = proxy.unwrap();
    let sent = proxy.sent();
    println!("through the proxy: {sent:?}");
    assert_eq!(sent.len(), FIRST_STREAM + 3, "{sent:?}");
    assert!(sent[FIRST_STREAM..].iter().all(|bytes| *bytes > 4 << 20), "each carried a share: {sent:?}");
    assert!(
        ended.events.iter().any(|event| event.starts_with("bytes on 3 bulk streams: ")),
        "{}",
        told(&ended)
    );
    assert!(ended.rounds.len() > 1, "{}", told(&ended));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bandwidth_limit_has_one_stream_however_many_are_configured() {
    let pair = Pair::new("bulk_streams = 3").await;
    let name = pair.run(&["python3", "-u", "-c", CHECKED, "16"], |_| {}).await;
    sound(&pair.one, &name);
    let mut proxy = None;
    let policy = v1::Policy { bandwidth_bytes_per_second: 200_000_000, ..patient() };
    let migration = pair
        .begin_through(&name, 1, policy, |target| proxy.insert(Proxy::before(target)).address.clone())
        .await;
    let ended = pair.follow(&migration, |_| false).await;
    assert_eq!(ended.phase(), v1::Phase::Succeeded, "{}", told(&ended));
    assert_eq!(proxy.unwrap().sent().len(), FIRST_STREAM + 1);
    sound(&pair.two, &name);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_cut_ends_the_migration_and_the_source_runs_on() {
    // Slow enough to be cut within the first round.
    let pair = Pair::new("bulk_streams = 3\nbandwidth = 30000000").await;
    let name = pair.run(&["python3", "-u", "-c", CHECKED, "96"], |_| {}).await;
    sound(&pair.one, &name);
    for (epoch, stream) in (1..).zip([2, 1, 0]) {
        let mut proxy = None;
        let migration = pair
            .begin_through(&name, epoch, patient(), |target| {
                proxy.insert(Proxy::before(target)).address.clone()
            })
            .await;
        let proxy = proxy.unwrap();
        let number = FIRST_STREAM + stream;
        wait_for("all streams are used", || {
            let sent = proxy.sent();
            sent.len() == FIRST_STREAM + 3 && sent[FIRST_STREAM..].iter().all(|bytes| *bytes > 1 << 20)
        });
        proxy.cut(number);
        let ended = pair.follow(&migration, |_| false).await;
        println!("stream {stream} cut: {} {}", ended.reason, ended.message);
        assert_eq!(ended.phase(), v1::Phase::Failed, "{}", told(&ended));
        assert!(["LinkLost", "PeerFailed"].contains(&ended.reason.as_str()), "{}", told(&ended));
        assert!(ended.rounds.is_empty(), "{}", told(&ended));
        sound(&pair.one, &name);
        nothing_at(&pair.two, &name).await;
    }
    let ended = pair.moved(&name, 4, patient()).await;
    assert_eq!(ended.phase(), v1::Phase::Succeeded, "{}", told(&ended));
    runs(&pair.two, &name);
    sound(&pair.two, &name);
}
