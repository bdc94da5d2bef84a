//! Certificates, and a node whose containers are a list of what was done to them.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use engine::source::{Namespaces, TreeSpec};
use engine::target::{Externals, TargetOptions};
use image::Refusal;
use image::groups::Groups;
use image::state::HostFacts;
use node_agent::commit::Answer;
use node_agent::session::orders::DecisionSource;
use node_agent::session::ports::{
    ContainerSource, ContainerTarget, CopyTask, Died, EthernetFrame, FileRound, FileSink, FileSource,
    FileTarget, GroupSource, HostState, InBetween, Incoming, NetLock, Node, PortError, Settled, Throttled,
};
use node_agent::session::status::Status;
use node_agent::session::{Migrations, Options};
use proto::tls::{Tls, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// A certificate authority in a directory.
pub(crate) struct Pki {
    dir: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        Self { dir, issuer }
    }

    /// Credentials of `name.role.gantry`.
    pub(crate) fn issue(&self, name: &str, role: &str) -> Tls {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![format!("{name}.{role}.gantry")]).unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let dir = self.dir.path().join(format!("{name}.{role}"));
        std::fs::create_dir_all(&dir).unwrap();
        let files = TlsFiles::in_dir(&dir);
        std::fs::write(&files.ca, self.issuer.pem()).unwrap();
        std::fs::write(&files.cert, cert.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        Tls::load(&files).unwrap()
    }
}

/// What was done, in order, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub(crate) fn add(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// A node with containers that are names.
#[derive(Debug)]
pub(crate) struct FakeNode {
    pub(crate) log: Log,
    pub(crate) dir: PathBuf,
    pub(crate) containers: Mutex<BTreeMap<String, i32>>,
    pub(crate) facts: HostFacts,
}

impl Node for FakeNode {
    fn source(&self, container: &str) -> Result<Box<dyn ContainerSource>, PortError> {
        let pid = self.containers.lock().unwrap().get(container).copied();
        let pid = pid.ok_or_else(|| PortError::NoContainer(container.to_owned()))?;
        Ok(Box::new(FakeContainer {
            name: container.to_owned(),
            pid,
            log: self.log.clone(),
            dir: self.dir.clone(),
        }))
    }

    fn incoming(&self, request: &Incoming) -> Result<Box<dyn ContainerTarget>, PortError> {
        self.log.add(format!("incoming {}", request.container));
        Ok(Box::new(FakeIncoming { log: self.log.clone(), dir: self.dir.clone() }))
    }

    fn reopen(&self, _: &str, _: &str) -> Result<Option<Box<dyn ContainerTarget>>, PortError> {
        Ok(None)
    }

    fn kill_incoming(&self, container: &str, _: &str) -> Result<(), PortError> {
        self.log.add(format!("kill-incoming {container}"));
        Ok(())
    }

    fn bury(&self, container: &str, epoch: u64, died: Died) -> Result<(), PortError> {
        self.log.add(format!("bury {container} {epoch} {died:?}"));
        Ok(())
    }

    fn gives(&self) -> image::state::Gives {
        // An agent with little privilege on an old kernel.
        image::state::Gives {
            timer_ids: false,
            ipc_ids: false,
            guard_pages: false,
            nodes: Vec::new(),
            hard_limits: Some(vec![1024; 16]),
            oom_score_adj: Some(0),
            huge_pages: Vec::new(),
        }
    }

    fn facts(&self) -> HostFacts {
        self.facts.clone()
    }

    fn lacks(&self, _: &str, _: &Groups) -> Vec<Refusal> {
        Vec::new()
    }

    fn memory_free(&self) -> u64 {
        1 << 40
    }
}

struct FakeContainer {
    name: String,
    pid: i32,
    log: Log,
    dir: PathBuf,
}

impl ContainerSource for FakeContainer {
    fn tree(&self) -> TreeSpec {
        TreeSpec {
            root: self.pid,
            cgroup: Some(self.dir.clone()),
            externals: Vec::new(),
            terminals: Vec::new(),
            namespaces: Namespaces::Host,
            mounts: engine::source::MountNamespaces::default(),
        }
    }

    fn mounts(&mut self) -> Result<Option<Vec<u8>>, PortError> {
        self.log.add("mounts");
        Ok(Some(b"mounts".to_vec()))
    }

    fn spec(&self) -> Result<Vec<u8>, PortError> {
        Ok(self.name.clone().into_bytes())
    }

    fn host_refusals(&self) -> Result<Vec<Refusal>, PortError> {
        Ok(Vec::new())
    }

    fn begin_final_state(&mut self) -> Result<(), PortError> {
        Ok(())
    }

    fn final_state(&self) -> Result<Vec<HostState>, PortError> {
        Ok(vec![HostState { kind: "fake".to_owned(), data: b"state".to_vec() }])
    }

    fn cgroup(&self) -> PathBuf {
        self.dir.clone()
    }

    fn groups(&self) -> Box<dyn GroupSource> {
        Box::new(FakeGroups)
    }

    fn lock(&self) -> Result<Box<dyn NetLock>, PortError> {
        Ok(Box::new(FakeLock(self.log.clone())))
    }

    fn files(&self) -> Result<Box<dyn FileSource>, PortError> {
        Ok(Box::new(FakeFiles { log: self.log.clone(), rounds: 0 }))
    }

    fn unthrottle(&self, throttled: &Throttled) -> Result<(), PortError> {
        self.log.add(format!("unthrottle {}", throttled.0.len()));
        Ok(())
    }

    fn settle(&self, how: Settled, epoch: u64) {
        self.log.add(format!("settle {how:?} {epoch}"));
    }

    fn kill(&self) -> Result<(), PortError> {
        self.log.add("kill");
        Ok(())
    }

    fn remove(&self) -> Result<(), PortError> {
        self.log.add("remove");
        Ok(())
    }
}

struct FakeGroups;

impl GroupSource for FakeGroups {
    fn look(&mut self, _: &[(i32, i32)]) -> Result<Groups, PortError> {
        Ok(Groups::default())
    }

    fn counters(&self) -> Vec<String> {
        Vec::new()
    }

    fn cpu_used(&self) -> Result<Duration, PortError> {
        Ok(Duration::ZERO)
    }

    fn plan_throttle(&self, _: f64, before: &Throttled) -> Result<Throttled, PortError> {
        Ok(before.clone())
    }

    fn throttle(&mut self, _: &Throttled) -> Result<(), PortError> {
        Ok(())
    }
}

struct FakeLock(Log);

impl NetLock for FakeLock {
    fn hold_newcomers(&mut self) -> Result<(), PortError> {
        self.0.add("hold newcomers");
        Ok(())
    }

    fn unsettled(&mut self) -> Result<Option<InBetween>, PortError> {
        Ok(None)
    }

    fn engage(&mut self) -> Result<(), PortError> {
        self.0.add("lock");
        Ok(())
    }

    fn held(&mut self, wait: Duration) -> Result<Vec<EthernetFrame>, PortError> {
        std::thread::sleep(wait);
        Ok(Vec::new())
    }

    fn arrivals(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn lift(&mut self) -> Result<(), PortError> {
        self.0.add("lift");
        Ok(())
    }

    fn release(&mut self) -> Result<(), PortError> {
        self.0.add("release");
        Ok(())
    }
}

struct FakeFiles {
    log: Log,
    rounds: u32,
}

impl FileSource for FakeFiles {
    fn ahead(&mut self, _: &[PathBuf], _: &mut dyn FileSink) -> Result<FileRound, PortError> {
        self.log.add("files ahead");
        Ok(FileRound::default())
    }

    fn round(&mut self, sink: &mut dyn FileSink) -> Result<FileRound, PortError> {
        self.rounds += 1;
        self.log.add(format!("files {}", self.rounds));
        if self.rounds < 3 {
            sink.batch(b"content").map_err(|error| PortError::failed("send files", error))?;
        }
        Ok(FileRound { entries: 1, bytes: 7 })
    }

    fn last(&mut self, sink: &mut dyn FileSink) -> Result<FileRound, PortError> {
        self.log.add("files last");
        sink.batch(b"last").map_err(|error| PortError::failed("send files", error))?;
        Ok(FileRound { entries: 1, bytes: 4 })
    }
}

struct FakeIncoming {
    log: Log,
    dir: PathBuf,
}

impl Externals for FakeIncoming {
    fn open(&mut self, _: &str) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::NotFound.into())
    }
}

impl ContainerTarget for FakeIncoming {
    fn options(&mut self) -> Result<TargetOptions, PortError> {
        self.log.add("options");
        let (ours, _) = std::os::unix::net::UnixStream::pair().unwrap();
        let root = engine::target::SkeletonRoot { pid: 1, channel: ours.into(), channel_fd: 3 };
        Ok(TargetOptions { root, netns: None, cgroup: None, nested: engine::target::NestedMounts::default() })
    }

    fn cgroup(&self) -> PathBuf {
        self.dir.clone()
    }

    fn externals(&mut self) -> &mut dyn Externals {
        self
    }

    fn groups(&mut self, _: &Groups, _: &[CopyTask]) -> Result<Vec<String>, PortError> {
        self.log.add("groups");
        Ok(Vec::new())
    }

    fn limits(&mut self, _: &[CopyTask]) -> Result<(), PortError> {
        self.log.add("limits");
        Ok(())
    }

    fn mounts(&mut self, mounts: &[u8]) -> Result<(), PortError> {
        assert_eq!(mounts, b"mounts");
        self.log.add("make mounts");
        Ok(())
    }

    fn settle_mounts(&mut self, _pids: BTreeMap<u64, OwnedFd>) -> Result<(), PortError> {
        self.log.add("settle mounts");
        Ok(())
    }

    fn files(&mut self) -> Result<Box<dyn FileTarget>, PortError> {
        Ok(Box::new(FakeFileTarget(self.log.clone())))
    }

    fn final_state(&mut self, states: &[HostState]) -> Result<(), PortError> {
        self.log.add(format!("final state {}", states.len()));
        Ok(())
    }

    fn ready(&mut self, _: i32) -> Result<(), PortError> {
        self.log.add("ready");
        Ok(())
    }

    fn attach(&mut self) -> Result<(), PortError> {
        self.log.add("attach");
        Ok(())
    }

    fn open(&mut self) -> Result<(), PortError> {
        self.log.add("open");
        Ok(())
    }

    fn announce(&mut self) -> Result<(), PortError> {
        self.log.add("announce");
        Ok(())
    }

    fn deliver(&mut self, frames: &[EthernetFrame]) -> Result<(), PortError> {
        self.log.add(format!("deliver {}", frames.len()));
        Ok(())
    }

    fn first_served(&mut self, _: SystemTime, _: Duration) -> Option<Duration> {
        self.log.add("first served");
        Some(Duration::from_micros(1500))
    }

    fn look_away(&mut self) {
        self.log.add("look away");
    }

    fn adopt(&mut self, epoch: u64) -> Result<(), PortError> {
        self.log.add(format!("adopt {epoch}"));
        Ok(())
    }

    fn discard(&mut self) -> Result<(), PortError> {
        self.log.add("discard");
        Ok(())
    }
}

struct FakeFileTarget(Log);

impl FileTarget for FakeFileTarget {
    fn apply(&mut self, batch: &[u8]) -> Result<(), PortError> {
        self.0.add(format!("apply {}", String::from_utf8_lossy(batch)));
        Ok(())
    }
}

/// A coordinator that knows nothing.
#[derive(Debug)]
pub(crate) struct Silent;

impl DecisionSource for Silent {
    fn ask(&self, _: &str, _: u64) -> Option<Answer> {
        None
    }
}

/// An agent that listens on loopback.
pub(crate) struct TestAgent {
    pub(crate) migrations: Migrations,
    pub(crate) log: Log,
    pub(crate) address: String,
    pub(crate) node: Arc<FakeNode>,
    pub(crate) dir: tempfile::TempDir,
}

impl TestAgent {
    pub(crate) fn new(tls: Tls, containers: &[(&str, i32)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::at(tls, containers, dir)
    }

    /// An agent with this state directory, which may hold an earlier one's journal.
    pub(crate) fn at(tls: Tls, containers: &[(&str, i32)], dir: tempfile::TempDir) -> Self {
        let log = Log::default();
        std::fs::write(dir.path().join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
        let node = Arc::new(FakeNode {
            log: log.clone(),
            dir: dir.path().to_owned(),
            containers: Mutex::new(containers.iter().map(|(name, pid)| ((*name).to_owned(), *pid)).collect()),
            facts: HostFacts { vdso_hash: 1, ..HostFacts::default() },
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let options = Options {
            state_dir: dir.path().to_owned(),
            tls,
            peer_address: address.clone(),
            incarnation: 1 + u64::from(listener.local_addr().unwrap().port()),
            bandwidth: 0,
            bulk_streams: 0,
            versions: node_agent::transfer::versions_up_to(0),
        };
        let migrations =
            Migrations::open(options, Arc::clone(&node) as Arc<dyn Node>, Arc::new(Silent)).unwrap();
        migrations.recover_all();
        migrations.serve(listener).unwrap();
        Self { migrations, log, address, node, dir }
    }

    /// Waits until the status of `migration` satisfies `until`.
    pub(crate) fn wait(&self, migration: &str, until: impl Fn(&Status) -> bool) -> Status {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.migrations.status(migration).filter(&until) {
                return status;
            }
            assert!(Instant::now() < deadline, "{migration}: {:#?}", self.migrations.status(migration));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the log has a line.
    pub(crate) fn wait_log(&self, line: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.log.all().iter().any(|logged| logged == line) {
            assert!(Instant::now() < deadline, "no {line:?} in {:?}", self.log.all());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
