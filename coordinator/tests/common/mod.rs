//! A real coordinator process, and agents that speak the real protocol and do what a test scripts.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

pub(crate) mod agent;
pub(crate) mod behaviour;
pub(crate) mod evacuate;
pub(crate) mod process;

use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::identity::Role;
use proto::tls::{Expect, Tls, TlsFiles, channel_lazy};
use proto::v1::coordinator_client::CoordinatorClient;
use proto::v1::{
    CreateMigrationRequest, GetMigrationRequest, Migration, MigrationSpec, Node, NodeState, Phase,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::transport::Channel;

pub(crate) use agent::Agent;
pub(crate) use behaviour::Behaviour;
pub(crate) use process::Process;

/// The longest that a test waits for anything.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// A certificate authority with a directory for each peer.
pub(crate) struct Pki {
    dir: TempDir,
    pem: String,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { dir: tempfile::tempdir().unwrap(), pem, issuer: rcgen::Issuer::new(params, key) }
    }

    /// Issues credentials for an identity such as `node-a.node.gantry`.
    pub(crate) fn issue(&self, dns: &str) -> PathBuf {
        self.issue_with(dns, |_| {})
    }

    /// The same with something changed in the certificate.
    pub(crate) fn issue_with(
        &self,
        dns: &str,
        change: impl FnOnce(&mut rcgen::CertificateParams),
    ) -> PathBuf {
        let dir = self.dir.path().join(dns);
        if dir.exists() {
            return dir;
        }
        std::fs::create_dir(&dir).unwrap();
        let files = TlsFiles::in_dir(&dir);
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![dns.to_owned()]).unwrap();
        // Under the authority's own name it would look as if it had signed itself.
        params.distinguished_name.push(rcgen::DnType::CommonName, dns);
        change(&mut params);
        std::fs::write(&files.ca, &self.pem).unwrap();
        std::fs::write(&files.cert, params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        dir
    }

    pub(crate) fn tls(&self, dns: &str) -> Tls {
        Tls::load(&TlsFiles::in_dir(&self.issue(dns))).unwrap()
    }
}

/// A coordinator and its agents.
pub(crate) struct World {
    pub(crate) pki: Pki,
    pub(crate) process: Process,
    pub(crate) api: CoordinatorClient<Channel>,
}

impl World {
    pub(crate) fn start() -> Self {
        Self::with("")
    }

    /// With more lines in the configuration.
    pub(crate) fn with(more: &str) -> Self {
        let pki = Pki::new();
        let process = Process::start(&pki, more);
        let api = client(&pki, &process, "alice.admin.gantry");
        Self { pki, process, api }
    }

    pub(crate) fn client(&self, dns: &str) -> CoordinatorClient<Channel> {
        client(&self.pki, &self.process, dns)
    }

    /// Starts an agent and waits until its node is Ready.
    pub(crate) async fn agent(&mut self, name: &str, behaviour: Behaviour) -> Agent {
        let agent = Agent::start(&self.pki, &self.process.address, name, behaviour);
        self.node(name, NodeState::Ready).await;
        agent
    }

    /// Waits until a node is in a state.
    pub(crate) async fn node(&mut self, name: &str, state: NodeState) -> Node {
        let api = self.api.clone();
        until(&format!("{name} is {state:?}"), || {
            let mut api = api.clone();
            let name = name.to_owned();
            async move {
                let node = api.get_node(proto::v1::GetNodeRequest { name }).await.ok()?.into_inner();
                (node.state() == state).then_some(node)
            }
        })
        .await
    }

    pub(crate) async fn create(&mut self, container: &str, target: &str) -> Migration {
        self.try_create(container, target).await.unwrap()
    }

    pub(crate) async fn try_create(
        &mut self,
        container: &str,
        target: &str,
    ) -> Result<Migration, tonic::Status> {
        let spec =
            MigrationSpec { container: container.into(), target_node: target.into(), ..Default::default() };
        let request = CreateMigrationRequest { spec: Some(spec), ..CreateMigrationRequest::default() };
        self.api.create_migration(request).await.map(tonic::Response::into_inner)
    }

    /// Waits until a migration is in a phase.
    pub(crate) async fn phase(&self, name: &str, phase: Phase) -> Migration {
        self.migration(name, &format!("is {phase:?}"), |m| m.phase() == phase).await
    }

    /// Waits until something holds for a migration.
    pub(crate) async fn migration(
        &self,
        name: &str,
        what: &str,
        holds: impl Fn(&Migration) -> bool,
    ) -> Migration {
        let mut last = None;
        let end = tokio::time::Instant::now() + LIMIT;
        while tokio::time::Instant::now() < end {
            let mut api = self.api.clone();
            if let Ok(found) = api.get_migration(GetMigrationRequest { name: name.to_owned() }).await {
                let found = found.into_inner();
                if holds(&found) {
                    return found;
                }
                last = Some(found);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never came true: {name} {what}; it is {last:#?}; log in {}", self.process.log().display());
    }
}

pub(crate) fn client(pki: &Pki, process: &Process, dns: &str) -> CoordinatorClient<Channel> {
    let channel = channel_lazy(&process.address, &Expect::Any(Role::Coordinator), &pki.tls(dns)).unwrap();
    CoordinatorClient::new(channel)
}

/// Waits until `found` finds something.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, found: impl Fn() -> F) -> T {
    let end = tokio::time::Instant::now() + LIMIT;
    loop {
        if let Some(found) = found().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < end, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The reason in an error.
pub(crate) fn reason(status: &tonic::Status) -> String {
    proto::error::ErrorDetails::of(status).reason
}

/// What an address answers by plain HTTP.
pub(crate) async fn get(address: &str, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(LIMIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

/// Text of a file, empty when it is not there.
pub(crate) fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
