//! An agent as a process, with credentials and a directory of its own.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failed step is the test's failure")]

use std::fs;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::tls::{Expect, Tls, TlsFiles, connect};
use proto::v1;
use proto::v1::node_agent_client::NodeAgentClient;
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;

use super::unique;

pub(crate) struct Ca {
    pem: String,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    dir: tempfile::TempDir,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: rcgen::Issuer::new(params, key), dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn issue(&self, dns: &str) -> PathBuf {
        let dir = self.dir.path().join(dns);
        fs::create_dir_all(&dir).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::new(vec![dns.to_owned()])
            .unwrap()
            .signed_by(&key, &self.issuer)
            .unwrap();
        fs::write(dir.join("ca.crt"), &self.pem).unwrap();
        fs::write(dir.join("tls.crt"), cert.pem()).unwrap();
        fs::write(dir.join("tls.key"), key.serialize_pem()).unwrap();
        dir
    }

    pub(crate) fn tls(&self, dns: &str) -> Tls {
        Tls::load(&TlsFiles::in_dir(&self.issue(dns))).unwrap()
    }
}

/// An address that nobody has, until it is bound to: a loopback address of its own, because a port of 127.0.0.1 that was
/// let go may be given to anybody who asks for any.
pub(crate) fn free_address() -> SocketAddr {
    let [one, two, three, ..] = RandomState::new().build_hasher().finish().to_be_bytes();
    TcpListener::bind((Ipv4Addr::new(127, one & 127 | 1, two, three), 0)).unwrap().local_addr().unwrap()
}

/// An agent process with a directory and a control group of its own.
pub(crate) struct Agent {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) ca: Rc<Ca>,
    pub(crate) name: String,
    pub(crate) listen: SocketAddr,
    pub(crate) peers: SocketAddr,
    pub(crate) parent: String,
    process: Option<Child>,
}

impl Agent {
    pub(crate) fn new(extra: &str) -> Self {
        Self::named("node-a", Rc::new(Ca::new()), extra)
    }

    pub(crate) fn named(name: &str, ca: Rc<Ca>, extra: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("gantry-daemon-").tempdir().unwrap();
        let tls = ca.issue(&format!("{name}.node.gantry"));
        let (listen, peers, parent) = (free_address(), free_address(), unique("gantry-test"));
        let config = format!(
            "name = \"{name}\"\nstate_dir = {:?}\nlisten = \"{listen}\"\npeer_listen = \"{peers}\"\n\
             cgroup_parent = \"{parent}\"\n{extra}\n[tls]\nca = {:?}\ncert = {:?}\nkey = {:?}\n",
            dir.path().join("state"),
            tls.join("ca.crt"),
            tls.join("tls.crt"),
            tls.join("tls.key"),
        );
        fs::write(dir.path().join("agent.toml"), config).unwrap();
        Self { dir, ca, name: name.to_owned(), listen, peers, parent, process: None }
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.path().join("agent.toml")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.path().join("agent.log")
    }

    pub(crate) fn start(&mut self) {
        self.start_with(Command::new(env!("CARGO_BIN_EXE_node-agent")));
    }

    /// Starts it with a command that takes the agent's arguments.
    pub(crate) fn start_with(&mut self, mut command: Command) {
        let log = fs::File::options().append(true).create(true).open(self.log()).unwrap();
        let child = command
            .args(["serve", "--config"])
            .arg(self.config())
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(child);
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().unwrap().id()
    }

    pub(crate) fn signal(&mut self, signal: Signal) -> std::process::ExitStatus {
        let mut child = self.process.take().unwrap();
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        child.wait().unwrap()
    }

    /// Waits for an agent that was ended by something else.
    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        self.process.take().unwrap().wait().unwrap()
    }

    pub(crate) async fn client(&self, dns: &str) -> NodeAgentClient<Channel> {
        let tls = self.ca.tls(dns);
        let expect = Expect::Peer(format!("{}.node.gantry", self.name).parse().unwrap());
        for _ in 0..600 {
            if let Ok(channel) = connect(&self.listen.to_string(), &expect, &tls).await {
                return NodeAgentClient::new(channel);
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("the agent does not serve:\n{}", fs::read_to_string(self.log()).unwrap_or_default());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.signal(Signal::SIGKILL);
        }
        let layout = node_agent::runtime::cgroup::Layout::read().unwrap();
        let containers = self.dir.path().join("state/containers");
        for entry in fs::read_dir(containers).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let cgroup = node_agent::runtime::cgroup::Cgroup::at(&layout, &self.parent, &name);
            let _ = cgroup.kill(std::time::Duration::from_secs(5));
            let _ = cgroup.remove();
        }
        node_agent::runtime::cgroup::remove_parent(&layout, &self.parent);
    }
}

/// Moves a container and gives how that ended at the source.
pub(crate) async fn try_migrate(
    (source, from): (&Agent, &mut NodeAgentClient<Channel>),
    (target, to): (&Agent, &mut NodeAgentClient<Channel>),
    container: &str,
    epoch: u64,
) -> v1::MigrationStatus {
    let migration = format!("{container}-{epoch}");
    let prepare = v1::PrepareRequest {
        migration: migration.clone(),
        epoch,
        container: container.to_owned(),
        source_node: source.name.clone(),
        memory_bytes: 0,
    };
    let prepared = to.prepare(prepare).await.unwrap().into_inner();
    let start = v1::StartRequest {
        migration: migration.clone(),
        epoch,
        container: container.to_owned(),
        target_node: target.name.clone(),
        target_address: prepared.peer_address,
        target_incarnation: prepared.incarnation,
        policy: None,
    };
    from.start(start).await.unwrap();
    let watch = v1::GetAgentMigrationRequest { migration };
    let mut states = from.watch_migration(watch).await.unwrap().into_inner();
    let mut last = v1::MigrationStatus::default();
    while let Some(state) = states.next().await {
        last = state.unwrap();
    }
    last
}

/// Moves a container; it must succeed.
pub(crate) async fn migrate(
    source: (&Agent, &mut NodeAgentClient<Channel>),
    target: (&Agent, &mut NodeAgentClient<Channel>),
    container: &str,
    epoch: u64,
) {
    let last = try_migrate(source, target, container, epoch).await;
    assert_eq!(
        last.phase(),
        v1::Phase::Succeeded,
        "{} {}; see {:?}",
        last.reason,
        last.message,
        last.refusals
    );
}
