//! What a migration would cost, measured on a program that runs, and compared with what it costs. Needs root.

#![allow(clippy::unwrap_used, reason = "a failed step is the test's failure")]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::pair::{COORDINATOR, Pair, log, runs, told};
use common::wait_for;
use nix::sys::signal::Signal;
use node_agent::runtime::cgroup::{Cgroup, Layout};
use proto::v1;
use tonic::Code;

/// Writes to random pages of 48 MiB, some 40 MB of pages a second, and says how long a turn took that should take 5 ms.
const WRITER: &str = r"
import mmap, random, time
memory = mmap.mmap(-1, 48 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.write(random.randbytes(1 << 20) * 48)
n = 0
while True:
    until = time.monotonic() + 0.005
    for _ in range(50):
        memory[random.randrange(48 << 8) << 12] = n & 255
    time.sleep(max(0, until - time.monotonic()))
    n += 1
    if n % 100 == 0: print('turn', n, flush=True)
";

fn policy() -> v1::Policy {
    v1::Policy {
        max_downtime: Some(Duration::from_secs(5).try_into().unwrap()),
        compression: v1::Compression::Off.into(),
        ..v1::Policy::default()
    }
}

/// Asks the first node about a move to the second.
async fn predict(pair: &Pair, name: &str) -> Result<v1::Forecast, tonic::Status> {
    let targets =
        vec![v1::PredictTarget { node: pair.two.name.clone(), peer_address: pair.two.peers.to_string() }];
    let request = v1::PredictRequest { container: name.to_owned(), policy: Some(policy()), targets };
    let mut one = pair.one.client(COORDINATOR).await;
    Ok(one.predict(request).await?.into_inner().forecasts.remove(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_foreseen_is_near_what_comes() {
    let pair = Pair::new("").await;
    let name = pair.run(&["python3", "-u", "-c", WRITER], |_| {}).await;
    wait_for("it writes", || log(&pair.one, &name).contains("turn 100"));
    let forecast = predict(&pair, &name).await.unwrap();
    let foreseen = forecast.prediction.unwrap();
    println!("{foreseen:?}");
    assert!(foreseen.converges);
    // A busy machine lets it write less.
    let rate = foreseen.dirty_bytes_per_second;
    assert!((10e6..60e6).contains(&rate), "{foreseen:?}");
    assert!((48 << 20..96 << 20).contains(&foreseen.memory_bytes), "{foreseen:?}");
    assert!(foreseen.transfer_bytes_per_second > 5e6, "{foreseen:?}");
    assert!(std::fs::read_dir(pair.one.dir.path().join("state/measuring")).unwrap().next().is_none());

    let ended = pair.moved(&name, 1, policy()).await;
    println!("{}", told(&ended));
    assert_eq!(ended.phase(), v1::Phase::Succeeded, "{}", told(&ended));
    let share = ended.bytes_sent as f64 / foreseen.bytes as f64;
    assert!((0.5..2.0).contains(&share), "{} bytes came: {foreseen:?}", ended.bytes_sent);
    runs(&pair.two, &name);
}

async fn measured(marker: &Path) {
    let until = Instant::now() + Duration::from_secs(20);
    while !marker.exists() {
        assert!(Instant::now() < until, "it is not measured");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_goes_first_and_a_dead_measurement_leaves_nothing() {
    let mut pair = Pair::new("").await;
    let name = pair.run(&["python3", "-u", "-c", WRITER], |_| {}).await;
    let turns = |pair: &Pair| log(&pair.one, &name).matches("turn").count();
    wait_for("it writes", || turns(&pair) > 0);
    let marker = pair.one.dir.path().join("state/measuring").join(&name);

    // The agent dies while it measures: the program runs on, and the next run of the agent takes out what is left.
    let (asked, ()) = tokio::join!(predict(&pair, &name), async {
        measured(&marker).await;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pair.one.pid().cast_signed()), Signal::SIGKILL)
            .unwrap();
    });
    asked.unwrap_err();
    pair.one.signal(Signal::SIGKILL);
    pair.one.start();
    wait_for("the marker is gone", || !marker.exists());
    let before = turns(&pair);
    wait_for("the program runs on", || turns(&pair) > before + 1);

    // A migration ends the measurement that it meets.
    let (asked, moved) = tokio::join!(predict(&pair, &name), async {
        measured(&marker).await;
        pair.moved(&name, 1, policy()).await
    });
    let asked = asked.unwrap_err();
    assert_eq!(asked.code(), Code::FailedPrecondition, "{asked:?}");
    assert!(asked.message().contains("a migration of it begins"), "{asked:?}");
    assert_eq!(moved.phase(), v1::Phase::Succeeded, "{}", told(&moved));
    assert!(!marker.exists());
    runs(&pair.two, &name);
}

/// Recovery thaws, and a copy that a commit froze must never run again: what is frozen is left alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_marker_of_a_dead_measurement_thaws_nobody() {
    let mut pair = Pair::new("").await;
    let name = pair.run(&["python3", "-u", "-c", WRITER], |_| {}).await;
    wait_for("it writes", || log(&pair.one, &name).contains("turn"));
    let cgroup = Cgroup::at(&Layout::read().unwrap(), &pair.one.parent, &name);
    let group = cgroup.groups.iter().find(|group| group.path.join("cgroup.freeze").exists()).unwrap();
    let frozen = |file: &str| std::fs::read_to_string(group.path.join(file)).unwrap();
    std::fs::write(group.path.join("cgroup.freeze"), "1").unwrap();
    wait_for("it is frozen", || frozen("cgroup.events").contains("frozen 1"));
    pair.one.signal(Signal::SIGKILL);
    let markers = pair.one.dir.path().join("state/measuring");
    std::fs::create_dir_all(&markers).unwrap();
    std::fs::write(markers.join(&name), "").unwrap();
    pair.one.start();
    // It recovers before it serves.
    pair.to_one().await;
    assert_eq!(frozen("cgroup.freeze").trim(), "1");
    std::fs::write(group.path.join("cgroup.freeze"), "0").unwrap();
    runs(&pair.one, &name);
}
