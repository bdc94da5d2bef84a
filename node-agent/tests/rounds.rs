//! Rounds of real migrations between two agents: what does not converge is throttled or given up, limits are kept, and the
//! container is as before wherever it runs then. Needs root.

#![allow(clippy::unwrap_used, reason = "a failed step is the test's failure")]

mod common;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::agent::Agent;
use common::pair::{Pair, container, log, nothing_at, runs, told};
use common::wait_for;
use nix::sys::signal::Signal;
use node_agent::runtime::cgroup::{Cgroup, Layout};
use node_agent::session::orders::Limits;
use node_agent::session::policy::METADATA;
use node_agent::session::simulate::{Path, Pattern, Workload, simulate};
use proto::v1;

/// Rewrites MIB megabytes, page by page, as fast as its CPU time allows: some hundred MB/s. Says how often.
const WRITER: &str = r"
import sys
MIB = int(sys.argv[1])
data = bytearray(MIB << 20)
pattern = [bytes((i * 37 + j * 11 + 1) % 256 for j in range(4096)) for i in range(7)]
n = 0
while True:
    part = pattern[n % 7]
    for at in range(0, MIB << 20, 4096):
        data[at:at + 4096] = part
        for _ in range(1000): pass
        if at % (1 << 20) == 0: print(n, at, flush=True)
    n += 1
";

/// The settings of a container's CPU bandwidth and what they are.
fn bandwidth(agent: &Agent, name: &str) -> Vec<(PathBuf, String)> {
    let cgroup = Cgroup::at(&Layout::read().unwrap(), &agent.parent, name);
    let files = match cgroup.controller("cpu") {
        Some(dir) => vec![dir.join("cpu.cfs_quota_us"), dir.join("cpu.cfs_period_us")],
        None => vec![cgroup.unified().unwrap().join("cpu.max")],
    };
    files
        .into_iter()
        .map(|file| {
            let text =
                fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            (file, text.trim().to_owned())
        })
        .collect()
}

fn values(settings: Vec<(PathBuf, String)>) -> Vec<String> {
    settings.into_iter().map(|(_, value)| value).collect()
}

fn throttled(status: &v1::MigrationStatus) -> bool {
    status.events.iter().any(|event| event.starts_with("throttled by"))
}

/// A limited link, and a pause that a writer of 16 MiB cannot keep unless it is slowed down.
fn narrow() -> v1::Policy {
    v1::Policy {
        max_downtime: Some(Duration::from_millis(150).try_into().unwrap()),
        bandwidth_bytes_per_second: 20_000_000,
        compression: v1::Compression::Off.into(),
        ..v1::Policy::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_dirties_faster_than_the_link_converges_when_it_is_throttled_and_has_its_limit_at_the_target() {
    let pair = Pair::new("").await;
    let name = pair.run(&["python3", "-u", "-c", WRITER, "16"], |_| {}).await;
    runs(&pair.one, &name);
    let original = values(bandwidth(&pair.one, &name));
    let policy = v1::Policy { max_rounds: 6, ..narrow() };
    let without = pair.moved(&name, 1, policy).await;
    assert_eq!(without.reason, "NotConverged", "{}", told(&without));
    assert!(!throttled(&without));
    runs(&pair.one, &name);

    let policy = v1::Policy { throttle_max_percent: 95, ..narrow() };
    let with = pair.moved(&name, 2, policy).await;
    assert_eq!(with.phase(), v1::Phase::Succeeded, "{}", told(&with));
    assert!(throttled(&with), "{}", told(&with));
    println!("{}", told(&with));
    assert_eq!(values(bandwidth(&pair.two, &name)), original);
    runs(&pair.two, &name);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttle_is_lifted_when_the_migration_is_given_up_and_when_it_is_cancelled() {
    let pair = Pair::new("").await;
    let name = pair.run(&["python3", "-u", "-c", WRITER, "16"], |_| {}).await;
    runs(&pair.one, &name);
    let original = bandwidth(&pair.one, &name);
    // A pause that no throttle reaches.
    let hard = v1::Policy {
        max_downtime: Some(Duration::from_millis(1).try_into().unwrap()),
        max_rounds: 9,
        throttle_max_percent: 60,
        ..narrow()
    };
    let ended = pair.moved(&name, 1, hard).await;
    assert_eq!(ended.reason, "NotConverged", "{}", told(&ended));
    assert!(throttled(&ended), "{}", told(&ended));
    assert_eq!(bandwidth(&pair.one, &name), original);

    let migration = pair.begin(&name, 2, v1::Policy { max_rounds: 100, ..hard }).await;
    pair.follow(&migration, throttled).await;
    assert_ne!(bandwidth(&pair.one, &name), original, "it is throttled now");
    let abort = v1::AbortRequest { migration: migration.clone(), epoch: 2, reason: "enough".to_owned() };
    pair.to_one().await.abort(abort).await.unwrap();
    let ended = pair.follow(&migration, |_| false).await;
    assert_eq!(ended.phase(), v1::Phase::Cancelled, "{}", told(&ended));
    assert_eq!(bandwidth(&pair.one, &name), original);
    runs(&pair.one, &name);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_while_it_throttles_lifts_it_after_its_restart() {
    let mut pair = Pair::new("").await;
    // Its own limit is of another kind than the default.
    let name = pair
        .run(&["python3", "-u", "-c", WRITER, "16"], |config| {
            config["linux"]["resources"]["cpu"] = serde_json::json!({"quota": 90_000, "period": 100_000});
        })
        .await;
    runs(&pair.one, &name);
    let original = bandwidth(&pair.one, &name);
    let hard = v1::Policy {
        max_downtime: Some(Duration::from_millis(1).try_into().unwrap()),
        max_rounds: 100,
        throttle_max_percent: 80,
        ..narrow()
    };
    let migration = pair.begin(&name, 1, hard).await;
    pair.follow(&migration, throttled).await;
    assert_ne!(bandwidth(&pair.one, &name), original, "it is throttled now");
    pair.one.signal(Signal::SIGKILL);
    assert_ne!(bandwidth(&pair.one, &name), original, "nobody has lifted it yet");
    let began = Instant::now();
    pair.one.start();
    wait_for("the throttle is lifted", || bandwidth(&pair.one, &name) == original);
    println!("lifted {:?} after the restart", began.elapsed());
    runs(&pair.one, &name);
    // And it can move on.
    let last = pair.moved(&name, 2, v1::Policy { throttle_max_percent: 95, ..narrow() }).await;
    assert_eq!(last.phase(), v1::Phase::Succeeded, "{}", told(&last));
    assert_eq!(values(bandwidth(&pair.two, &name)), values(original));
}

/// Writes MIB megabytes in turn at RATE megabytes a second.
const PACED: &str = r"
import sys, time
MIB, RATE = int(sys.argv[1]), float(sys.argv[2])
data = bytearray(b'\x01' * (MIB << 20))
pattern = [bytes((i * 37 + j * 11 + 1) % 256 for j in range(4096)) * 16 for i in range(7)]
begin = time.monotonic(); written = 0; n = 0; at = 0
while True:
    part = pattern[n % 7]
    data[at:at + len(part)] = part
    at += len(part); written += len(part)
    if at % (1 << 20) == 0: print(n, at, flush=True)
    if at >= MIB << 20: at = 0; n += 1
    ahead = begin + written / (RATE * 1e6) - time.monotonic()
    if ahead > 0.002: time.sleep(ahead)
";

#[tokio::test(flavor = "multi_thread")]
async fn the_simulator_foresees_what_a_real_migration_does() {
    let pair = Pair::new("").await;
    let (set, rate, bandwidth) = (32.0 * 1_048_576.0, 6e6, 20_000_000);
    let name = pair.run(&["python3", "-u", "-c", PACED, "32", "6"], |_| {}).await;
    runs(&pair.one, &name);
    let policy = v1::Policy {
        bandwidth_bytes_per_second: bandwidth,
        compression: v1::Compression::Off.into(),
        ..v1::Policy::default()
    };
    let real = pair.moved(&name, 1, policy).await;
    assert_eq!(real.phase(), v1::Phase::Succeeded, "{}", told(&real));
    let first = &real.rounds[0];
    let limits = Limits { bandwidth, ..Limits::default() };
    // Of the first round the size is known: what a container uses. The rest is foreseen.
    let workload = Workload { size: first.bytes as f64, rate, working_set: set, pattern: Pattern::Sweep };
    // What the last round of all took, which had next to nothing to send, is what a round costs.
    let fixed = real.rounds.iter().map(|round| round.seconds).fold(f64::MAX, f64::min).min(0.05);
    let course = simulate(
        &limits,
        &workload,
        &Path { rate: 5e8, fixed: Duration::from_secs_f64(fixed), state: METADATA },
    );
    let seconds: f64 = real.rounds.iter().map(|round| round.seconds).sum();
    println!("foreseen: {course:?}\nreal: {seconds:.2} s, {} bytes\n{}", real.bytes_sent, told(&real));
    assert!(course.rounds.abs_diff(real.rounds.len()) <= 2);
    let within =
        |real: f64, foreseen: f64, factor: f64| real <= foreseen * factor && foreseen <= real * factor;
    assert!(within(real.bytes_sent as f64, course.bytes, 1.2), "bytes");
    assert!(within(seconds, course.elapsed.as_secs_f64(), 1.3), "seconds");
    // The pause itself depends on the machine: what the policy foresaw of it is compared.
    let last = real.rounds.last().unwrap();
    let foreseen = course.end.predicted.as_secs_f64() * 1e3;
    assert!(
        within(last.predicted_pause_ms, foreseen, 3.0),
        "{} ms, foreseen {foreseen} ms",
        last.predicted_pause_ms
    );
    runs(&pair.two, &name);
}

/// Bytes that an agent has written to files and sockets so far (proc_pid_io(5)).
fn written(agent: &Agent) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/io", agent.pid())).unwrap();
    text.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse().unwrap()
}

/// Waits until an agent has written `more` bytes than now; gives how many and how long they took.
async fn watch(agent: &Agent, more: u64) -> (u64, Duration) {
    let (begin, before) = (Instant::now(), written(agent));
    while written(agent) < before + more {
        assert!(begin.elapsed() < Duration::from_secs(60), "{} of {more} bytes", written(agent) - before);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (written(agent) - before, begin.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bandwidth_limit_is_kept_and_used_up() {
    let pair = Pair::new("").await;
    let name = pair.run(&["python3", "-u", "-c", PACED, "64", "1"], |_| {}).await;
    runs(&pair.one, &name);
    let bandwidth = 24_000_000;
    let policy = v1::Policy {
        bandwidth_bytes_per_second: bandwidth,
        compression: v1::Compression::Off.into(),
        ..v1::Policy::default()
    };
    let ended = pair.moved(&name, 1, policy).await;
    assert_eq!(ended.phase(), v1::Phase::Succeeded, "{}", told(&ended));
    let first = &ended.rounds[0];
    let ratio = first.bytes as f64 / first.seconds / bandwidth as f64;
    println!("{ratio:.3} of the limit over {:.2} s", first.seconds);
    assert!(first.seconds > 2.0 && (0.95..=1.05).contains(&ratio), "{ratio}: {}", told(&ended));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_migrations_share_the_budget_of_their_node() {
    let budget = 24_000_000_u64;
    let pair = Pair::new(&format!("bandwidth = {budget}")).await;
    let mut names = Vec::new();
    for _ in 0..2 {
        let name = pair.run(&["python3", "-u", "-c", PACED, "64", "1"], |_| {}).await;
        runs(&pair.one, &name);
        names.push(name);
    }
    let policy = v1::Policy { compression: v1::Compression::Off.into(), ..v1::Policy::default() };
    let mut migrations = Vec::new();
    for name in &names {
        migrations.push(pair.begin(name, 1, policy).await);
    }
    // Checks and the files are over, and both are at their memory: 128 MiB.
    watch(&pair.one, 12_000_000).await;
    for window in 0..3 {
        let (bytes, took) = watch(&pair.one, 24_000_000).await;
        let ratio = bytes as f64 / took.as_secs_f64() / budget as f64;
        println!("window {window}: {ratio:.3} of the budget over {took:?}");
        assert!((0.95..=1.05).contains(&ratio), "{ratio} of the budget over {took:?}");
    }
    for (name, migration) in names.iter().zip(&migrations) {
        let ended = pair.follow(migration, |_| false).await;
        assert_eq!(ended.phase(), v1::Phase::Succeeded, "{}", told(&ended));
        runs(&pair.two, name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_compresses_well_is_compressed_when_the_link_is_the_bottleneck() {
    let mut bytes = Vec::new();
    for (compression, bandwidth) in [
        (v1::Compression::Off, 20_000_000),
        (v1::Compression::Auto, 20_000_000),
        (v1::Compression::Lz4, 0),
        (v1::Compression::Zstd, 0),
    ] {
        let pair = Pair::new("").await;
        let name = pair.run(&["python3", "-u", "-c", PACED, "32", "1"], |_| {}).await;
        runs(&pair.one, &name);
        let policy = v1::Policy {
            compression: compression.into(),
            bandwidth_bytes_per_second: bandwidth,
            ..v1::Policy::default()
        };
        let ended = pair.moved(&name, 1, policy).await;
        assert_eq!(ended.phase(), v1::Phase::Succeeded, "{compression:?} {}", told(&ended));
        println!("{compression:?}: {} bytes, {:.2} s", ended.bytes_sent, ended.total_seconds);
        bytes.push(ended.bytes_sent);
        runs(&pair.two, &name);
    }
    assert!(bytes[1..].iter().all(|packed| packed * 2 < bytes[0]), "{bytes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_ends_by_itself_while_it_is_moved_has_ended_and_nothing_is_left() {
    let pair = Pair::new("").await;
    let script = "import sys, os\nx = bytearray(os.urandom(1 << 20)) * 48\nprint('ready', flush=True)\n\
        while not os.path.exists('/tmp/end'): x[0] = (x[0] + 1) % 256\nsys.exit(7)";
    let name = pair.run(&["python3", "-u", "-c", script], |_| {}).await;
    wait_for("it is ready", || log(&pair.one, &name).contains("ready"));
    let policy = v1::Policy {
        bandwidth_bytes_per_second: 10_000_000,
        compression: v1::Compression::Off.into(),
        ..v1::Policy::default()
    };
    let migration = pair.begin(&name, 1, policy).await;
    pair.follow(&migration, |status| status.phase() == v1::Phase::PreCopy).await;
    let pid = container(&pair.one, &name).await.unwrap().pid;
    fs::write(format!("/proc/{pid}/root/tmp/end"), "").unwrap();
    let ended = pair.follow(&migration, |_| false).await;
    assert_eq!(ended.phase(), v1::Phase::Failed, "{}", told(&ended));
    println!("{} {}", ended.reason, ended.message);
    let mut at_source = None;
    for _ in 0..200 {
        at_source = container(&pair.one, &name).await;
        if at_source.as_ref().is_some_and(|container| container.exit_status.is_some()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let at_source = at_source.unwrap();
    assert_eq!(at_source.exit_status, Some(7), "{at_source:?}");
    nothing_at(&pair.two, &name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_forks_without_end_is_moved_or_given_up_and_lives() {
    let pair = Pair::new("").await;
    // Keeps at its limit of processes; each lives for a moment.
    let script = "import os, time\nn = 0\nwhile True:\n try:\n  if os.fork() == 0: time.sleep(0.02); os._exit(0)\n \
        except OSError: pass\n try:\n  while os.waitpid(-1, os.WNOHANG)[0]: pass\n except OSError: pass\n n += 1\n \
        if n % 100 == 0: print(n, flush=True)";
    let name = pair
        .run(&["python3", "-u", "-c", script], |config| {
            config["linux"]["resources"]["pids"] = serde_json::json!({"limit": 40});
        })
        .await;
    runs(&pair.one, &name);
    let policy =
        v1::Policy { timeout: Some(Duration::from_secs(20).try_into().unwrap()), ..v1::Policy::default() };
    let ended = pair.moved(&name, 1, policy).await;
    println!("{}", told(&ended));
    if ended.phase() == v1::Phase::Succeeded {
        runs(&pair.two, &name);
    } else {
        assert!(!ended.reason.is_empty() && !ended.message.is_empty(), "{}", told(&ended));
        runs(&pair.one, &name);
        nothing_at(&pair.two, &name).await;
    }
}
