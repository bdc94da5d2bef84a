//! Workloads and sinks for the tests of the source side.
#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod compare;

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use engine::PageSink;
use engine::source::{External, Namespaces, TreeSpec};
use image::pages::{Batch, Owner, RunKind};

/// A program under test that talks over its standard input and output. Killed when dropped.
pub(crate) struct Workload {
    pub(crate) child: Child,
    pub(crate) input: ChildStdin,
    pub(crate) output: BufReader<ChildStdout>,
}

impl Workload {
    /// Starts a python program; it must print `ready` as its first line.
    pub(crate) fn python(code: &str) -> Self {
        let mut command = Command::new("python3");
        command.args(["-u", "-c", code]);
        Self::start(command)
    }

    pub(crate) fn start(mut command: Command) -> Self {
        // What the test was started with must not show up in the program.
        sys::fds::cloexec_from(3).unwrap();
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut workload = Self { child, input, output };
        assert_eq!(workload.line(), "ready");
        workload
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Sends a line and gives the answer.
    pub(crate) fn ask(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").unwrap();
        self.line()
    }

    /// The tree, with the test's pipes and stderr as external files.
    pub(crate) fn spec(&self) -> TreeSpec {
        TreeSpec {
            root: self.pid(),
            cgroup: None,
            externals: standard_streams(self.pid()),
            terminals: Vec::new(),
            namespaces: Namespaces::Host,
            mounts: engine::source::MountNamespaces::default(),
        }
    }
}

/// Standard input, output and error of a process, as files that the runtime gave it.
pub(crate) fn standard_streams(pid: i32) -> Vec<External> {
    use std::os::linux::fs::MetadataExt;
    let stream = |(fd, key): (i32, &str)| {
        let metadata = std::fs::metadata(format!("/proc/{pid}/fd/{fd}")).unwrap();
        External { key: key.to_owned(), dev: metadata.st_dev(), ino: metadata.st_ino() }
    };
    [(0, "stdin"), (1, "stdout"), (2, "stderr")].map(stream).to_vec()
}

impl Drop for Workload {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A cgroup v2 group of its own, removed when dropped.
pub(crate) struct Cgroup(pub(crate) PathBuf);

impl Cgroup {
    pub(crate) fn new(name: &str) -> Self {
        let path =
            sys::cgroup::v2_mount().unwrap().join(format!("gantry-test-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn add(&self, pid: i32) {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("cgroup.freeze"), "0");
        let _ = std::fs::write(self.0.join("cgroup.kill"), "1");
        wait_until(|| std::fs::remove_dir(&self.0).is_ok() || !self.0.exists());
    }
}

/// What a target would hold, kept here.
#[derive(Default)]
pub(crate) struct Copy {
    pub(crate) pages: BTreeMap<(Owner, u64), Vec<u8>>,
    pub(crate) batches: usize,
}

impl PageSink for Copy {
    fn batch(&mut self, batch: &Batch<'_>) -> io::Result<()> {
        self.batches += 1;
        let mut data = batch.data.chunks_exact(4096);
        for run in batch.runs {
            assert!(run.pages > 0 && run.addr % 4096 == 0);
            for page in 0..u64::from(run.pages) {
                let key = (batch.owner, run.addr + page * 4096);
                match run.kind {
                    RunKind::Data => {
                        self.pages.insert(key, data.next().unwrap().to_vec());
                    }
                    RunKind::Zero => {
                        self.pages.insert(key, vec![0; 4096]);
                    }
                    RunKind::Drop => {
                        self.pages.remove(&key);
                    }
                }
            }
        }
        assert!(data.next().is_none());
        Ok(())
    }
}

/// Waits for a condition, at most ten seconds.
pub(crate) fn wait_until(mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < end, "the condition did not come true in time");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Lines of maps and numbers of descriptors: what must be the same before and after.
pub(crate) fn traces(pid: i32) -> (Vec<String>, Vec<String>) {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut fds: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            format!("{:?} -> {:?}", entry.file_name(), std::fs::read_link(entry.path()))
        })
        .collect();
    fds.sort();
    (maps.lines().map(str::to_owned).collect(), fds)
}

/// Who traces a process; 0 = nobody.
pub(crate) fn tracer(pid: i32) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("TracerPid:")).unwrap();
    line.trim().parse().unwrap()
}

/// Keeps the borrow checker and the reader informed that a descriptor number is wanted.
pub(crate) fn number(fd: &impl AsRawFd) -> i32 {
    fd.as_raw_fd()
}
