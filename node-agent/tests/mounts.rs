//! The mounts of a container that changed them itself, on the real kernel: the copy's mountinfo is compared field by
//! field, and the content of what is in memory. Needs root.

#![allow(clippy::unwrap_used, reason = "a failed step is the test's failure")]

mod common;
#[path = "mounts/compare.rs"]
mod compare;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Instant;

use common::{Node, chain, request, unique, wait_for};
use compare::assert_same;
use node_agent::runtime::{ContainerName, MovingNode};
use node_agent::session::clocks::Distance;
use node_agent::session::ports::{
    ContainerSource, ContainerTarget, FileSink, FileSource, FileTarget, Incoming, Node as _, PortError,
};
use serde_json::{Value, json};

/// Batches, applied at once.
struct Apply<'a>(&'a mut dyn FileTarget);

impl FileSink for Apply<'_> {
    fn batch(&mut self, batch: &[u8]) -> io::Result<()> {
        self.0.apply(batch).map_err(|error| io::Error::other(chain(&error)))
    }
}

/// May mount.
fn privileged(config: &mut Value) {
    for set in ["bounding", "effective", "permitted"] {
        let caps = config["process"]["capabilities"][set].as_array_mut().unwrap();
        caps.extend([
            json!("CAP_SYS_ADMIN"),
            json!("CAP_MKNOD"),
            json!("CAP_SYS_CHROOT"),
            json!("CAP_SETFCAP"),
        ]);
    }
}

fn start(node: &Node, change: impl FnOnce(&mut Value)) -> ContainerName {
    let bundle = node.bundle_with(&["sleep", "1000"], |config| {
        privileged(config);
        change(config);
    });
    let config: Value = serde_json::from_slice(&fs::read(bundle.join("config.json")).unwrap()).unwrap();
    if let Some(owner) = config.pointer("/linux/uidMappings/0/hostID").and_then(Value::as_u64) {
        let owner = u32::try_from(owner).ok();
        std::os::unix::fs::chown(bundle.join("rootfs"), owner, owner).unwrap();
    }
    let name = ContainerName::new(unique("mnt")).unwrap();
    node.runtime.run(request(&name, &bundle)).unwrap_or_else(|error| panic!("{}", chain(&error)));
    name
}

fn sh(node: &Node, name: &ContainerName, script: &str) -> String {
    let output = node.exec(name, &["sh", "-ec", script]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{script}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// A move up to the point where processes would be made.
struct Move {
    leaving: Box<dyn ContainerSource>,
    copy: Box<dyn ContainerTarget>,
    from: Box<dyn FileSource>,
    to: Box<dyn FileTarget>,
    pid: i32,
}

impl Move {
    fn begin(source: &Node, target: &Node, name: &ContainerName) -> Self {
        let leaving = MovingNode::new(Arc::new(source.reopened())).source(name.as_str()).unwrap();
        let refusals = leaving.host_refusals().unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert!(refusals.is_empty(), "{refusals:?}");
        let spec = leaving.spec().unwrap();
        let request = Incoming {
            container: name.to_string(),
            migration: "m-1".to_owned(),
            epoch: 7,
            spec,
            clocks: Distance::default(),
        };
        let node = MovingNode::new(Arc::new(target.reopened()));
        let mut copy = node.incoming(&request).unwrap_or_else(|error| panic!("{}", chain(&error)));
        let (from, to) = (leaving.files().unwrap(), copy.files().unwrap());
        let pid = copy.options().unwrap().root.pid;
        Self { leaving, copy, from, to, pid }
    }

    fn mounts(&mut self) -> Result<bool, PortError> {
        let Some(state) = self.leaving.mounts()? else { return Ok(false) };
        self.copy.mounts(&state)?;
        Ok(true)
    }

    fn round(&mut self) {
        self.mounts().unwrap_or_else(|error| panic!("{}", told(&error)));
        self.from.round(&mut Apply(self.to.as_mut())).unwrap_or_else(|error| panic!("{}", chain(&error)));
    }

    fn finish(&mut self) {
        self.mounts().unwrap_or_else(|error| panic!("{}", told(&error)));
        self.from.last(&mut Apply(self.to.as_mut())).unwrap_or_else(|error| panic!("{}", chain(&error)));
        self.copy
            .settle_mounts(std::collections::BTreeMap::new())
            .unwrap_or_else(|error| panic!("{}", told(&error)));
    }

    /// The copy becomes the container, as far as this runtime is concerned.
    fn adopt(mut self) {
        self.copy.ready(self.pid).unwrap();
        self.copy.adopt(7).unwrap();
        self.leaving.kill().unwrap();
        self.leaving.remove().unwrap();
    }
}

fn told(error: &PortError) -> String {
    match error {
        PortError::Refused(list) => list.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        other => chain(other),
    }
}

fn root_pid(node: &Node, name: &ContainerName) -> i32 {
    node.runtime.get(name).unwrap().pid.unwrap()
}

fn read(pid: i32, path: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/root{path}")).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Mounts of this process, without the network namespaces that other tests name meanwhile.
fn own_mounts() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines().filter(|line| !line.contains("/run/netns")).map(str::to_owned).collect()
}

const BINDS: &str = "
mkdir -p /data/dir/in /data/mnt /b /deep /f; echo one > /data/dir/file; echo single > /data/file; touch /data/target
mount --bind /data/dir /b
mount -o remount,bind,ro,nosuid,nodev,noexec,noatime /b
mount --bind /data/file /data/target
mount --bind /usr/share /deep
mount -o remount,bind,nosuid,strictatime /deep
mount --bind /proc/version /f 2>/dev/null || { touch /version; mount --bind /proc/version /version; }
";

const MEMORY: &str = "
mkdir -p /t /sub /t2 /data/mnt
mount -t tmpfs -o size=1m,mode=750,uid=5,gid=6,nr_inodes=500 mine /t
mkdir -p /t/sub/deep /t/inner /t/over; echo two > /t/sub/file; chown 7:8 /t/sub; ln /t/sub/file /t/link
dd if=/dev/urandom of=/t/random bs=1k count=300 2>/dev/null
mount --bind /t/sub /sub
mount -t tmpfs -o size=64k inside /t/inner; echo three > /t/inner/file
echo covered > /t/over/below; mount -t tmpfs -o size=64k over /t/over; echo above > /t/over/above
mount -t tmpfs -o size=64k lower /t2; echo lower > /t2/file; mount -t tmpfs -o size=64k upper /t2; echo upper > /t2/file
mount -t tmpfs -o size=64k readonly /data/mnt; echo fixed > /data/mnt/file; mount -o remount,ro /data/mnt
";

const KINDS: &str = "
mkdir -p /p /s /q /pts /cg /gone /g
mount -t proc -o nosuid second /p
mount -t sysfs -o ro second /s
mount -t mqueue second /q
mount -t devpts -o newinstance,mode=600,ptmxmode=666 second /pts
mount -t cgroup2 second /cg
mount --bind /gone /g; rmdir /gone
umount /dev/mqueue
umount /sys/firmware
mount -o remount,size=1m /dev/shm
mount -o remount,bind,ro /dev/pts
mkdir /sub2; mount -n --move /tmp /sub2
echo moved > /sub2/file
";

const GROUPS: &str = "
mkdir -p /shared /peer /slave /both /alone
mount -t tmpfs -o size=64k shared /shared; mkdir /shared/a /shared/b /shared/c; mount --make-shared /shared
mount --bind /shared /peer
mount --bind /shared/a /both
mount --bind /shared /slave; mount --make-slave /slave; mount --make-shared /slave
mount -t tmpfs -o size=64k seen /shared/b; echo everywhere > /peer/b/file
mount -t tmpfs alone /alone; mount --make-unbindable /alone
";

#[test]
fn mounts_made_inside_are_there_after_the_move_and_move_again() {
    let nodes = [Node::new(None), Node::new(None), Node::new(None)];
    let name = start(&nodes[0], |_| {});
    for script in [BINDS, MEMORY, KINDS, GROUPS] {
        sh(&nodes[0], &name, script);
    }
    let before = own_mounts();
    for pair in nodes.windows(2) {
        let [source, target] = pair else { unreachable!() };
        let root = root_pid(source, &name);
        let mut moving = Move::begin(source, target, &name);
        moving.round();
        sh(source, &name, "echo late >> /t/sub/file; echo late > /t/inner/late");
        moving.finish();
        assert_same(root, moving.pid);
        let pid = moving.pid;
        assert_eq!(read(pid, "/b/file"), "one\n");
        assert_eq!(read(pid, "/data/target"), "single\n");
        assert!(read(pid, "/sub/file").starts_with("two\n") && read(pid, "/sub/file").ends_with("late\n"));
        assert_eq!(read(pid, "/t/link"), read(pid, "/t/sub/file"));
        assert_eq!(read(pid, "/t/inner/late"), "late\n");
        assert_eq!((read(pid, "/t/over/above"), read(pid, "/t2/file")), ("above\n".into(), "upper\n".into()));
        assert_eq!(read(pid, "/data/mnt/file"), "fixed\n");
        assert_eq!(read(pid, "/sub2/file"), "moved\n");
        assert_eq!(
            (read(pid, "/slave/b/file"), read(pid, "/peer/b/file")),
            ("everywhere\n".into(), "everywhere\n".into())
        );
        let random = |pid: i32| fs::read(format!("/proc/{pid}/root/t/random")).unwrap();
        assert_eq!(random(root), random(pid));
        let meta = |pid: i32, path: &str| {
            let meta = fs::metadata(format!("/proc/{pid}/root{path}")).unwrap();
            (meta.mode(), meta.uid(), meta.gid(), meta.mtime_nsec(), meta.nlink())
        };
        for path in ["/t", "/t/sub", "/t/sub/file", "/b", "/data", "/t/inner", "/t/over"] {
            assert_eq!(meta(root, path), meta(pid, path), "{path}");
        }
        // The new /proc shows the container's processes.
        let of = |dir: &str| fs::read(format!("/proc/{pid}/root{dir}/1/stat")).unwrap();
        assert_eq!(of("/p"), of("/proc"));
        moving.adopt();
    }
    // What lay below came along.
    let last = &nodes[2];
    assert_eq!(
        sh(last, &name, "umount /t2; cat /t2/file; umount /t/over; cat /t/over/below"),
        "lower\ncovered\n"
    );
    // A mount in a peer is seen in the others.
    let seen =
        "mount -t tmpfs -o size=4k late /peer/c; echo x > /shared/c/new; cat /slave/c/new; cat /peer/c/new";
    assert_eq!(sh(last, &name, seen), "x\nx\n");
    assert_eq!(own_mounts(), before, "nothing is mounted in the agent's namespace");
}

#[test]
fn what_changes_between_two_looks_is_followed() {
    let (source, target) = (Node::new(None), Node::new(None));
    let name = start(&source, |_| {});
    sh(&source, &name, MEMORY);
    let root = root_pid(&source, &name);
    let mut moving = Move::begin(&source, &target, &name);
    moving.round();
    assert!(!moving.mounts().unwrap(), "nothing changed");
    sh(
        &source,
        &name,
        "umount /sub; umount /t/inner; rmdir /t/inner; mkdir /n; mount -t tmpfs -o size=32k new /n; mkdir /n/x; echo new > /n/x/f
         mount --bind /n/x /sub; umount /t2; mount -o remount,size=2m /t; mount --bind /t/sub /t2; umount /data/mnt",
    );
    moving.round();
    // A bound directory is made anew: the copy must not show the old one.
    sh(
        &source,
        &name,
        "umount /t2; rm -r /t/sub; mkdir /t/sub; echo again > /t/sub/file; mount --bind /t/sub /t2",
    );
    moving.round();
    sh(
        &source,
        &name,
        "umount /n -l; mount -o remount,bind,ro /sub; mkdir /last; mount -t tmpfs -o size=16k last /last; echo frozen > /last/file
         umount /dev/shm; mount -t tmpfs -o size=64k another /dev/shm; echo shm > /dev/shm/seg",
    );
    moving.finish();
    assert_same(root, moving.pid);
    let pid = moving.pid;
    assert_eq!((read(pid, "/sub/f"), read(pid, "/t2/file")), ("new\n".into(), "again\n".into()));
    assert_eq!((read(pid, "/last/file"), read(pid, "/dev/shm/seg")), ("frozen\n".into(), "shm\n".into()));
    assert!(!fs::exists(format!("/proc/{pid}/root/t/inner")).unwrap());
    moving.copy.discard().unwrap();
}

#[test]
fn an_overlay_comes_with_its_layers() {
    let (source, target) = (Node::new(None), Node::new(None));
    let name = start(&source, |_| {});
    let script = "mkdir -p /lower/dir /u /merged; echo low > /lower/file; echo old > /lower/dir/changed; echo x > /lower/removed
        mount -t tmpfs -o size=1m layers /u; mkdir /u/up /u/work
        mount -t overlay -o lowerdir=/lower,upperdir=/u/up,workdir=/u/work over /merged
        echo new > /merged/dir/changed; rm /merged/removed; echo made > /merged/made";
    sh(&source, &name, script);
    let root = root_pid(&source, &name);
    let mut moving = Move::begin(&source, &target, &name);
    moving.round();
    // Looked at before it is complete.
    assert_eq!(read(moving.pid, "/merged/made"), "made\n");
    sh(&source, &name, "echo later > /merged/late; echo again > /merged/made; echo touched >> /merged/file");
    // What is written through the overlay to a file that is in the upper layer already reports no change there.
    let made = format!("/proc/{root}/root/u/up/made");
    let age = || fs::metadata(&made).unwrap().modified().unwrap().elapsed().unwrap();
    wait_for("the file looks old", || age().as_millis() > 200);
    moving.round();
    moving.round();
    sh(&source, &name, "printf Z | dd of=/merged/made conv=notrunc 2>/dev/null");
    moving.finish();
    assert_eq!(read(moving.pid, "/merged/made"), "Zgain\n");
    assert_same(root, moving.pid);
    let pid = moving.pid;
    for path in ["/merged/file", "/merged/dir/changed", "/merged/made", "/merged/late"] {
        assert_eq!(read(pid, path), read(root, path), "{path}");
    }
    assert!(!fs::exists(format!("/proc/{pid}/root/merged/removed")).unwrap());
    moving.copy.discard().unwrap();
}

#[test]
fn what_cannot_move_is_refused_by_name() {
    let (source, target) = (Node::new(None), Node::new(None));
    let only_here = source.dir.path().join("given");
    fs::create_dir_all(only_here.join("sub")).unwrap();
    let name = start(&source, |config| {
        let mount =
            json!({"destination": "/given", "type": "bind", "source": only_here, "options": ["bind"]});
        config["mounts"].as_array_mut().unwrap().push(mount);
    });
    let refusal = |made: &str, gone: &str, expected: &str| {
        sh(&source, &name, made);
        let leaving = MovingNode::new(Arc::new(source.reopened())).source(name.as_str()).unwrap();
        let refusals = leaving.host_refusals().unwrap();
        assert_eq!(refusals.len(), 1, "{refusals:?}");
        assert!(refusals[0].to_string().contains(expected), "{}", refusals[0]);
        sh(&source, &name, gone);
        assert!(leaving.host_refusals().unwrap().is_empty());
    };
    refusal("mkdir /d; mount -t ramfs none /d", "umount /d", "mount /d: a file system of type ramfs");
    refusal(
        "echo x > /x; touch /y; mount --bind /x /y; rm /x",
        "umount /y",
        "mount /y: it shows a file whose name was removed",
    );
    refusal(
        "mkdir -p /r/l /r/u /r/w /m; cd /r; mount -t tmpfs none /r; cd /r; mkdir l u w; mount -t overlay -o lowerdir=l,upperdir=u,workdir=w o /m",
        "umount /m /r",
        "mount /m: its overlay names the layer l relative",
    );

    let covered = start(&source, |_| {});
    sh(&source, &covered, "mount -t tmpfs none /");
    let leaving = MovingNode::new(Arc::new(source.reopened())).source(covered.as_str()).unwrap();
    let refusals = leaving.host_refusals().unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(refusals[0].to_string().contains("mount /: it covers the container's root"), "{refusals:?}");

    // The target lacks what a bind shows.
    sh(&source, &name, "mkdir /part; mount --bind /given/sub /part");
    let before = own_mounts();
    let mut moving = Move::begin(&source, &target, &name);
    let state = moving.leaving.mounts().unwrap().unwrap();
    fs::rename(only_here.join("sub"), only_here.join("moved")).unwrap();
    let error = moving.copy.mounts(&state).unwrap_err();
    let text = told(&error);
    assert!(
        matches!(error, PortError::Refused(_)) && text.contains("mount /part: ") && text.contains("/given"),
        "{text}"
    );
    moving.copy.discard().unwrap();
    assert_eq!(own_mounts(), before);
    assert!(target.runtime.list().unwrap().is_empty());
    wait_for("the sandbox is gone", || !fs::exists(format!("/proc/{}", moving.pid)).unwrap());
    // The source is as it was.
    assert_eq!(sh(&source, &name, "ls /part; echo still"), "still\n");
}

#[test]
fn binds_inside_a_user_namespace_move_and_its_file_systems_are_refused() {
    let (source, target) = (Node::new(None), Node::new(None));
    let name = start(&source, |config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        for key in ["uidMappings", "gidMappings"] {
            config["linux"][key] = json!([{"containerID": 0, "hostID": 200_000, "size": 65536}]);
        }
    });
    let script = "mkdir -p /tmp/a/b /tmp/c /tmp/b; echo bound > /tmp/a/b/file; mount --bind /tmp/a/b /tmp/c
        mount -o remount,bind,ro /tmp/c; touch /tmp/f; mount --bind /tmp/a/b/file /tmp/f; umount /dev/mqueue";
    sh(&source, &name, script);
    let root = root_pid(&source, &name);
    let mut moving = Move::begin(&source, &target, &name);
    moving.round();
    moving.finish();
    assert_same(root, moving.pid);
    assert_eq!(
        (read(moving.pid, "/tmp/c/file"), read(moving.pid, "/tmp/f")),
        ("bound\n".into(), "bound\n".into())
    );
    let owner = |path: &str| fs::metadata(format!("/proc/{}/root{path}", moving.pid)).unwrap().uid();
    assert_eq!((owner("/tmp/a/b"), owner("/tmp/c/file")), (200_000, 200_000));
    moving.copy.discard().unwrap();
    sh(&source, &name, "mkdir /tmp/own; mount -t tmpfs own /tmp/own");
    let leaving = MovingNode::new(Arc::new(source.reopened())).source(name.as_str()).unwrap();
    let refusals = leaving.host_refusals().unwrap_or_else(|error| panic!("{}", chain(&error)));
    let text = refusals[0].to_string();
    assert!(
        text.starts_with("mount /tmp/own: its file system (tmpfs) was mounted in a user namespace"),
        "{text}"
    );
}

#[test]
fn a_hundred_mounts_cost_little_in_the_pause() {
    let (source, target) = (Node::new(None), Node::new(None));
    let name = start(&source, |_| {});
    let script = "mkdir -p /many; mount -t tmpfs -o size=8m many /many; i=0
        while [ $i -lt 50 ]; do mkdir -p /many/s$i /many/b$i /many/t$i; echo $i > /many/s$i/f
        mount --bind /many/s$i /many/b$i; mount -t tmpfs -o size=64k t$i /many/t$i; echo $i > /many/t$i/f; i=$((i+1)); done";
    sh(&source, &name, script);
    let root = root_pid(&source, &name);
    let mut moving = Move::begin(&source, &target, &name);
    let preparing = Instant::now();
    moving.round();
    let preparing = preparing.elapsed();
    moving.round();
    let again = Instant::now();
    assert!(!moving.mounts().unwrap());
    let again = again.elapsed();
    let last = Instant::now();
    moving.from.last(&mut Apply(moving.to.as_mut())).unwrap();
    let last = last.elapsed();
    let settle = Instant::now();
    moving
        .copy
        .settle_mounts(std::collections::BTreeMap::new())
        .unwrap_or_else(|error| panic!("{}", told(&error)));
    let settle = settle.elapsed();
    assert_same(root, moving.pid);
    println!(
        "100 mounts: before the pause {preparing:?}; in it {again:?} to look, {last:?} for files, {settle:?} to settle"
    );
    assert!(again < preparing && settle < preparing, "the pause repeats what was done before it");
    moving.copy.discard().unwrap();
}
