//! Moves on one host, into another pid namespace, and what tests of them leave behind.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use engine::PageSink;
use engine::source::{Namespaces, Source, TreeSpec};
use engine::target::{Externals, PageWriter, RestoreTimes, Target, TargetOptions};
use image::pages::Batch;
use image::state::Image;

use super::Carrier;

struct Local(PageWriter);

impl PageSink for Local {
    fn batch(&mut self, batch: &Batch<'_>) -> io::Result<()> {
        self.0.apply(batch)
    }
}

pub(crate) struct NoExternals;

impl Externals for NoExternals {
    fn open(&mut self, key: &str) -> io::Result<OwnedFd> {
        Err(io::Error::new(io::ErrorKind::NotFound, key.to_owned()))
    }
}

/// Moves a process tree of the host into a new pid namespace; the original is killed.
/// A tree of processes of this host, in no control group of its own.
pub(crate) fn host_tree(root: i32) -> TreeSpec {
    TreeSpec {
        root,
        cgroup: None,
        externals: Vec::new(),
        terminals: Vec::new(),
        namespaces: Namespaces::Host,
        mounts: engine::source::MountNamespaces::default(),
    }
}

pub(crate) fn migrate(pid: i32) -> (Carrier, Image, RestoreTimes) {
    migrate_as(&host_tree(pid), None)
}

pub(crate) fn migrate_as(spec: &TreeSpec, cgroup: Option<&Path>) -> (Carrier, Image, RestoreTimes) {
    migrate_and(spec, cgroup, || {}, |_, _| {})
}

/// Does something while both sides are stopped: before the source is captured, and before the copy runs.
pub(crate) fn migrate_and(
    spec: &TreeSpec,
    cgroup: Option<&Path>,
    while_frozen: impl FnOnce(),
    while_ready: impl FnOnce(&Carrier, &Image),
) -> (Carrier, Image, RestoreTimes) {
    let mut source = Source::attach(spec).unwrap();
    let (carrier, root) = Carrier::spawn();
    if let Some(cgroup) = cgroup {
        sys::cgroup::add_process(cgroup, carrier.pid).unwrap();
    }
    let options = TargetOptions {
        root,
        netns: None,
        cgroup: cgroup.map(Path::to_owned),
        nested: engine::target::NestedMounts::default(),
    };
    let mut target = Target::build(options).unwrap();
    let mut sink = Local(target.writer());
    for turn in 0..2 {
        let shape = source.shape().unwrap();
        if turn == 0
            && let Some(template) = source.template().unwrap()
        {
            target.reconcile(&template).unwrap();
            source.template_pages(&mut sink).unwrap();
        }
        target.reconcile(&shape).unwrap();
        // Not what the image will say: one thread too many, and one too few, and in a container other users.
        let mut ahead = source.ahead().unwrap();
        for process in &mut ahead {
            process.threads.pop();
            process.threads.push(1 + (process.pid + 7777) % 30_000);
            if turn == 1 && cgroup.is_some() {
                let creds = process.creds.as_mut().unwrap();
                (creds.uid, creds.cap_effective, creds.cap_permitted) = ([65534; 4], 0, 0);
            }
        }
        target.prepare(&ahead).unwrap();
        source.round(&mut sink).unwrap();
    }
    source.freeze().unwrap();
    while_frozen();
    let shape = source.shape().unwrap();
    target.reconcile(&shape).unwrap();
    source.last_pages(&mut sink).unwrap();
    let image = source.capture().unwrap();
    let times = target.restore(&image, &mut NoExternals).unwrap();
    let ready = target.ready().unwrap();
    if let Some(cgroup) = cgroup {
        let freezer = sys::cgroup::Freezer::open(cgroup).unwrap();
        assert!(freezer.is_frozen().unwrap());
    }
    source.kill().unwrap();
    while_ready(&carrier, &image);
    ready.resume().unwrap();
    (carrier, image, times)
}

/// A file of the test's own, removed at its end.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("gantry-{name}-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        Self(path)
    }

    pub(crate) fn dir(name: &str) -> Self {
        let scratch = Self::new(name);
        fs::create_dir(&scratch.0).unwrap();
        scratch
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        fs::read_to_string(&self.0).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/target_support").join(name)
}

/// A cgroup of the v2 hierarchy, removed at the end.
pub(crate) struct Cgroup(pub(crate) PathBuf);

impl Cgroup {
    pub(crate) fn new(name: &str) -> Self {
        let path = sys::cgroup::v2_mount().unwrap().join(format!("gantry-{name}-{}", std::process::id()));
        sys::cgroup::create(&path).unwrap();
        Self(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = sys::cgroup::Freezer::open(&self.0).and_then(|f| f.kill());
        let _ = sys::cgroup::remove(&self.0, std::time::Duration::from_secs(5));
    }
}
