//! What a system container holds, on its way into another mount namespace: terminals with sessions, jobs and a line
//! that is being typed; file locks and those who wait for them; inotify watches; descriptors of paths.

#![allow(clippy::unwrap_used, reason = "tests may")]

mod target_support;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use engine::PageSink;
use engine::proc::{stat, tasks};
use engine::source::{Namespaces, Source, TreeSpec};
use engine::target::{Externals, PageWriter, Target, TargetOptions};
use image::pages::Batch;
use image::state::Image;
use target_support::*;

const DEVPTS: &str = "mount -t devpts -o newinstance,ptmxmode=0666 devpts /dev/pts";

struct Local(PageWriter);

impl PageSink for Local {
    fn batch(&mut self, batch: &Batch<'_>) -> io::Result<()> {
        self.0.apply(batch)
    }
}

struct NoExternals;

impl Externals for NoExternals {
    fn open(&mut self, key: &str) -> io::Result<OwnedFd> {
        Err(io::Error::new(io::ErrorKind::NotFound, key.to_owned()))
    }
}

/// A directory and two cgroups of the test's own, removed at its end.
struct Place {
    dir: PathBuf,
    groups: [PathBuf; 2],
}

impl Place {
    fn new(test: &str) -> Self {
        // What the test was started with must not show up in the program.
        sys::fds::cloexec_from(3).unwrap();
        let dir = std::env::temp_dir().join(format!("gantry-tty-{test}-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let groups = ["there", "here"].map(|name| {
            let path = sys::cgroup::v2_mount()
                .unwrap()
                .join(format!("gantry-tty-{test}-{name}-{}", std::process::id()));
            sys::cgroup::create(&path).unwrap();
            path
        });
        Self { dir, groups }
    }

    fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn says(&self, line: &str) -> bool {
        self.log().iter().any(|l| l == line)
    }

    fn is_good(&self) {
        let bad: Vec<String> = self.log().into_iter().filter(|l| !l.starts_with("ok ")).collect();
        assert!(bad.iter().all(|l| l == "ready" || l == "done"), "{bad:#?}");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for group in &self.groups {
            let _ = sys::cgroup::Freezer::open(group).and_then(|f| f.kill());
            let _ = sys::cgroup::remove(group, std::time::Duration::from_secs(5));
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

const FILES: &str = "mount -t tmpfs none /mnt && mkdir /mnt/d && echo 1234567890 > /mnt/f && cp /mnt/f /mnt/g \
    && cp /mnt/f /mnt/h && ln -s nowhere /mnt/link && touch -d @1000 /mnt/f /mnt/g /mnt/h";

fn start(place: &Place, program: &str, prepare: &str) -> (Victim, i32) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/target_support").join(program);
    let (log, go) = (place.dir.join("log"), place.dir.join("go"));
    let command = format!(
        "{prepare} && ip link set lo up && exec setsid python3 {} {} {}",
        script.display(),
        log.display(),
        go.display()
    );
    let victim = Victim::spawn(
        Command::new("unshare").args(["--pid", "--net", "--mount", "--fork", "sh", "-c", &command]),
    );
    wait_until("the program is ready", || place.says("ready"));
    let init = tasks::children(victim.pid()).unwrap()[0];
    for pid in std::iter::once(init).chain(descendants(init)) {
        sys::cgroup::add_process(&place.groups[0], pid).unwrap();
    }
    (victim, init)
}

fn stopped(init: i32) -> usize {
    descendants(init).iter().filter(|pid| stat::read(**pid).is_ok_and(|s| s.state == b'T')).count()
}

fn spec(place: &Place, init: i32) -> TreeSpec {
    TreeSpec {
        root: init,
        cgroup: Some(place.groups[0].clone()),
        externals: Vec::new(),
        terminals: Vec::new(),
        namespaces: Namespaces::Own,
        mounts: engine::source::MountNamespaces::default(),
    }
}

/// Moves a tree into another mount namespace; the original is killed.
fn migrate(place: &Place, victim: Victim, init: i32, prepare: &str) -> (Carrier, Image) {
    let mut source = Source::attach(&spec(place, init)).unwrap();
    let (carrier, root) = Carrier::spawn_with(prepare);
    sys::cgroup::add_process(&place.groups[1], carrier.pid).unwrap();
    let options = TargetOptions {
        root,
        netns: None,
        cgroup: Some(place.groups[1].clone()),
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
        source.round(&mut sink).unwrap();
    }
    source.freeze().unwrap();
    let shape = source.shape().unwrap();
    target.reconcile(&shape).unwrap();
    source.last_pages(&mut sink).unwrap();
    let image = source.capture().unwrap();
    target.restore(&image, &mut NoExternals).unwrap();
    let ready = target.ready().unwrap();
    source.kill().unwrap();
    ready.resume().unwrap();
    drop(victim);
    fs::write(place.dir.join("go"), "").unwrap();
    wait_until("the copy has checked itself", || place.says("done"));
    place.is_good();
    (carrier, image)
}

#[test]
fn a_session_goes_on_with_its_terminal() {
    let place = Place::new("session");
    let (victim, init) = start(&place, "terminals.py", DEVPTS);
    wait_until("a job is stopped", || stopped(init) == 1);
    let (carrier, image) = migrate(&place, victim, init, DEVPTS);
    let lines = image.files.terminals.iter().map(|t| t.line.as_slice()).filter(|l| !l.is_empty());
    assert_eq!(lines.collect::<Vec<_>>(), [b"half a l"]);
    assert_eq!(stopped(carrier.pid), 1, "the stopped job stays stopped");
    let with = descendants(carrier.pid).iter().filter(|pid| stat::read(**pid).unwrap().tty_nr != 0).count();
    assert_eq!(with, 3, "the leader, its job and the stopped one are controlled by it");
}

/// At the source the line that was begun is untouched, and nothing of the question shows.
#[test]
fn an_abandoned_capture_leaves_the_terminals_as_they_were() {
    let place = Place::new("abort");
    let (_victim, init) = start(&place, "terminals.py", DEVPTS);
    wait_until("a job is stopped", || stopped(init) == 1);
    for _ in 0..3 {
        let mut source = Source::attach(&spec(&place, init)).unwrap();
        source.freeze().unwrap();
        source.shape().unwrap();
        source.capture().unwrap();
        source.abort().unwrap();
    }
    fs::write(place.dir.join("go"), "").unwrap();
    wait_until("the program has checked its terminals", || place.says("done"));
    place.is_good();
}

#[test]
fn locks_watches_and_paths_are_held_again() {
    let place = Place::new("locks");
    let (victim, init) = start(&place, "locks.py", FILES);
    let (_carrier, image) = migrate(&place, victim, init, FILES);
    assert_eq!(image.files.locks.len(), 4, "{:?}", image.files.locks);
    assert!(place.says("ok the one who waited has the lock"));
}
