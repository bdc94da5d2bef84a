//! What the runtime gives to migrations, on the real kernel: the sandbox of a copy and its files. Needs root.

#![allow(clippy::unwrap_used, reason = "a failed step is the test's failure")]

mod common;

use std::fs;
use std::io;
use std::time::Duration;

use common::moving::{incoming, moving, start, text};
use common::{Lan, Node, chain, wait_for};
use node_agent::runtime::State;
use node_agent::session::clocks::{Distance, Span};
use node_agent::session::ports::{FileSink, Incoming, Node as _, PortError, Settled};
use serde_json::json;

/// Batches, applied at once.
struct Apply<'a>(&'a mut dyn node_agent::session::ports::FileTarget);

impl FileSink for Apply<'_> {
    fn batch(&mut self, batch: &[u8]) -> io::Result<()> {
        self.0.apply(batch).map_err(io::Error::other)
    }
}

#[test]
fn a_copy_gets_the_same_sandbox_and_files() {
    let (source, target) = (Node::new(None), Node::new(None));
    let script = "mkdir -p /data /tmp/deep; echo one > /data/file; ln /data/file /data/link; \
        echo temporary > /tmp/deep/file; echo shared > /dev/shm/seg; echo started; sleep 1000";
    let name = start(&source, None, &["sh", "-c", script], |_| {});
    wait_for("it has written", || source.log(&name) == "started\n");

    let mut leaving = moving(&source).source(name.as_str()).unwrap();
    let coming = moving(&target);
    let mut copy = coming
        .incoming(&incoming(&name, leaving.spec().unwrap()))
        .unwrap_or_else(|e| panic!("{}", chain(&e)));
    let status = target.runtime.get(&name).unwrap();
    assert_eq!(status.state, State::Incoming);
    let (mut from, mut to) = (leaving.files().unwrap(), copy.files().unwrap());
    let round = from.round(&mut Apply(to.as_mut())).unwrap();
    assert!(round.entries > 5, "{round:?}");
    // Directories in memory come with the mounts.
    let state = leaving.mounts().unwrap().expect("it was never told");
    copy.mounts(&state).unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert!(from.round(&mut Apply(to.as_mut())).unwrap().entries > 2);
    leaving.settle(Settled::Migrating, 7);
    assert_eq!(source.runtime.get(&name).unwrap().state, State::Migrating);
    source.runtime.stop(&name, Duration::ZERO).unwrap_err();
    fs::write(source.runtime.record(&name).unwrap().rootfs.join("data/file"), "two\n").unwrap();
    assert!(leaving.mounts().unwrap().is_none(), "nothing was mounted since");
    from.last(&mut Apply(to.as_mut())).unwrap();
    copy.settle_mounts(std::collections::BTreeMap::new()).unwrap_or_else(|e| panic!("{}", chain(&e)));

    // Its first process waits as pid 1 of namespaces of its own, in the copy's groups, with the socket open.
    let options = copy.options().unwrap();
    let pid = options.root.pid;
    let proc = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    assert!(
        proc("status").lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1")),
        "{}",
        proc("status")
    );
    let link = fs::read_link(format!("/proc/{pid}/fd/{}", options.root.channel_fd)).unwrap();
    assert!(link.to_str().unwrap().starts_with("socket:"), "{}", link.display());
    for ns in ["pid", "mnt", "net", "uts", "ipc", "cgroup"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{ns}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{ns}");
    }
    assert!(copy.cgroup().join("cgroup.procs").exists());
    let mounts = |pid: i32| -> Vec<String> {
        let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        text.lines().map(|line| line.split(' ').nth(4).unwrap().to_owned()).collect()
    };
    let root_pid = source.runtime.get(&name).unwrap().pid.unwrap();
    assert_eq!(mounts(pid), mounts(root_pid));
    let read = |path: &str| fs::read_to_string(format!("/proc/{pid}/root{path}")).unwrap();
    assert_eq!(read("/data/link"), "two\n");
    assert_eq!(read("/tmp/deep/file"), "temporary\n");
    assert_eq!(read("/dev/shm/seg"), "shared\n");
    assert_eq!(target.log(&name), "started\n");

    assert!(moving(&target).reopen(name.as_str(), "m-1").unwrap().is_none(), "it is not complete");
    copy.ready(pid).unwrap();
    assert!(moving(&target).reopen(name.as_str(), "another").unwrap().is_none());
    let mut again = moving(&target).reopen(name.as_str(), "m-1").unwrap().expect("it is complete");
    again.adopt(7).unwrap();
    let status = target.runtime.get(&name).unwrap();
    assert_eq!((status.state, status.epoch), (State::Running, 7));
    moving(&target).kill_incoming(name.as_str(), "m-1").unwrap();
    assert_eq!(target.runtime.get(&name).unwrap().state, State::Running, "an adopted one is not incoming");

    // The source goes.
    leaving.kill().unwrap();
    leaving.remove().unwrap();
    leaving.remove().unwrap();
    assert!(source.runtime.list().unwrap().is_empty());
}

#[test]
fn clocks_of_another_host_do_not_jump_back() {
    let (source, target) = (Node::new(None), Node::new(None));
    let name = start(&source, None, &["sleep", "1000"], |_| {});
    let leaving = moving(&source).source(name.as_str()).unwrap();
    // As from a host that has been up for a thousand seconds longer.
    let longer = Span { least: 999_999_000_000, most: 1_000_000_000_000 };
    let clocks = Distance { monotonic: longer, boottime: longer };
    let request = Incoming { clocks, ..incoming(&name, leaving.spec().unwrap()) };
    let mut copy = moving(&target).incoming(&request).unwrap_or_else(|e| panic!("{}", chain(&e)));
    let pid = copy.options().unwrap().root.pid;
    let offsets = fs::read_to_string(format!("/proc/{pid}/timens_offsets")).unwrap();
    let of = |clock: &str| -> i64 {
        let line = offsets.lines().find(|line| line.starts_with(clock)).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    };
    for clock in ["monotonic", "boottime"] {
        assert_eq!(of(clock), 1000, "{offsets}");
    }
    let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/time")).unwrap();
    assert_ne!(of(&pid.to_string()), of("self"));
    copy.ready(pid).unwrap();
    copy.adopt(7).unwrap();
    // Commands see them, too.
    let uptime = target.exec(&name, &["cat", "/proc/uptime"]);
    let seconds = |text: &str| text.split('.').next().unwrap().parse::<i64>().unwrap();
    let ours = seconds(&fs::read_to_string("/proc/uptime").unwrap());
    assert!(seconds(&text(&uptime.stdout)) > ours + 990, "{}", text(&uptime.stdout));
}

#[test]
fn a_copy_that_is_not_adopted_goes_without_a_trace() {
    let lan = Lan::new();
    let (source, target) = (Node::new(Some(lan.bridge.clone())), Node::new(Some(lan.bridge.clone())));
    let name = start(&source, Some(&lan), &["sleep", "1000"], |_| {});
    let spec = moving(&source).source(name.as_str()).unwrap().spec().unwrap();
    let mut copy =
        moving(&target).incoming(&incoming(&name, spec.clone())).unwrap_or_else(|e| panic!("{}", chain(&e)));
    let record = target.runtime.record(&name).unwrap();
    let is_up = || fs::exists(format!("/sys/class/net/{}", record.link)).unwrap();
    assert!(is_up());
    let master = fs::exists(format!("/sys/class/net/{}/master", record.link)).unwrap();
    assert!(!master, "its host end is attached at commit");
    copy.discard().unwrap();
    copy.discard().unwrap();
    assert!(!is_up() && target.runtime.list().unwrap().is_empty() && !record.bundle.exists());
    // Another agent killed what a dead one was building.
    let copy = moving(&target).incoming(&incoming(&name, spec)).unwrap();
    drop(copy);
    moving(&target).kill_incoming(name.as_str(), "m-1").unwrap();
    moving(&target).kill_incoming(name.as_str(), "m-1").unwrap();
    assert!(!is_up() && target.runtime.list().unwrap().is_empty());
    assert_eq!(source.runtime.get(&name).unwrap().state, State::Running);
}

#[test]
fn what_the_target_lacks_is_refused_by_path() {
    let (source, target) = (Node::new(None), Node::new(None));
    let only_here = source.dir.path().join("only-here");
    fs::create_dir(&only_here).unwrap();
    let name = start(&source, None, &["sleep", "1000"], |config| {
        let mount = json!({"destination": "/only", "type": "bind", "source": only_here, "options": ["bind"]});
        config["mounts"].as_array_mut().unwrap().push(mount);
    });
    let spec = moving(&source).source(name.as_str()).unwrap().spec().unwrap();
    fs::rename(&only_here, source.dir.path().join("gone")).unwrap();
    let error = moving(&target).incoming(&incoming(&name, spec)).err().expect("refused");
    let PortError::Refused(refusals) = error else { panic!("{}", chain(&error)) };
    assert!(refusals[0].to_string().contains("only-here"), "{}", refusals[0]);
    // A shared root directory needs its marker.
    let shared = start(&source, None, &["sleep", "1000"], |config| {
        config["annotations"] = json!({"dev.gantry.rootfs": "shared"});
    });
    let leaving = moving(&source).source(shared.as_str()).unwrap();
    let PortError::Refused(refusals) = leaving.spec().expect_err("refused") else { panic!("not by name") };
    assert!(refusals[0].to_string().contains(".gantry-shared"), "{}", refusals[0]);
    fs::write(source.runtime.record(&shared).unwrap().rootfs.join(".gantry-shared"), "4711").unwrap();
    let spec = leaving.spec().unwrap();
    let mut copy =
        moving(&target).incoming(&incoming(&shared, spec)).unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(
        target.runtime.record(&shared).unwrap().rootfs,
        source.runtime.record(&shared).unwrap().rootfs
    );
    copy.discard().unwrap();
    assert!(source.runtime.record(&shared).unwrap().rootfs.join(".gantry-shared").exists());
}
