use std::error::Error as _;
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::StreamExt as _;
use tonic::Code;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use rustls::version;

use super::credentials::{certificates, roots};
use super::*;
use crate::v1::registry_client::RegistryClient;
use crate::v1::registry_server::{Registry, RegistryServer};
use crate::v1::{
    AskDecisionRequest, AskDecisionResponse, HeartbeatRequest, HeartbeatResponse, JoinRequest, JoinResponse,
    ReportOutcomeRequest, ReportOutcomeResponse,
};

/// A certificate authority in memory.
struct Ca {
    pem: String,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: rcgen::Issuer::new(params, key) }
    }

    /// Writes credentials for `dns` that trust this authority.
    fn issue(&self, dns: &str) -> (TempDir, TlsFiles) {
        let dir = tempfile::tempdir().unwrap();
        let files = TlsFiles::in_dir(dir.path());
        std::fs::write(&files.ca, &self.pem).unwrap();
        let (cert, key) = self.pair(dns, |_| {});
        std::fs::write(&files.cert, cert).unwrap();
        std::fs::write(&files.key, key).unwrap();
        (dir, files)
    }

    /// A certificate for `dns` and its key, PEM.
    fn pair(&self, dns: &str, change: impl FnOnce(&mut rcgen::CertificateParams)) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![dns.to_owned()]).unwrap();
        change(&mut params);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn tls(&self, dns: &str) -> Tls {
        let (_dir, files) = self.issue(dns);
        Tls::load(&files).unwrap()
    }
}

fn peer_of(dns: &str) -> Expect {
    Expect::Peer(dns.parse().unwrap())
}

/// Answers Join with the length of the caller's name, so that a test sees that the identity arrived.
struct Echo;

#[tonic::async_trait]
impl Registry for Echo {
    type HeartbeatStream = tokio_stream::Empty<Result<HeartbeatResponse, tonic::Status>>;

    async fn join(
        &self,
        request: tonic::Request<JoinRequest>,
    ) -> Result<tonic::Response<JoinResponse>, tonic::Status> {
        let heartbeat_milliseconds = u32::try_from(peer(&request)?.identity.to_string().len()).unwrap();
        Ok(tonic::Response::new(JoinResponse { heartbeat_milliseconds }))
    }
    async fn heartbeat(
        &self,
        _: tonic::Request<tonic::Streaming<HeartbeatRequest>>,
    ) -> Result<tonic::Response<Self::HeartbeatStream>, tonic::Status> {
        Ok(tonic::Response::new(tokio_stream::empty()))
    }
    async fn report_outcome(
        &self,
        _: tonic::Request<ReportOutcomeRequest>,
    ) -> Result<tonic::Response<ReportOutcomeResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not in this test"))
    }
    async fn ask_decision(
        &self,
        _: tonic::Request<AskDecisionRequest>,
    ) -> Result<tonic::Response<AskDecisionResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not in this test"))
    }
}

async fn serve(tls: &Tls, handshake: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let incoming = server::listen_with(
        listener,
        tls,
        handshake,
        prometheus_client::metrics::counter::Counter::default(),
    );
    let server = tonic::transport::Server::builder().add_service(RegistryServer::new(Echo));
    tokio::spawn(server.serve_with_incoming(incoming));
    address
}

async fn join(address: &str, expect: &Expect, tls: &Tls) -> Result<u32, tonic::Status> {
    let channel =
        connect(address, expect, tls).await.map_err(|e| tonic::Status::unavailable(format!("{e:?}")))?;
    let answer = RegistryClient::new(channel).join(JoinRequest::default()).await?;
    Ok(answer.into_inner().heartbeat_milliseconds)
}

#[tokio::test]
async fn the_right_peers_meet() {
    let ca = Ca::new();
    let address = serve(&ca.tls("main.coordinator.gantry"), HANDSHAKE_TIMEOUT).await;
    let node = ca.tls("node-a.node.gantry");
    let expected = u32::try_from("node/node-a".len()).unwrap();
    assert_eq!(join(&address, &peer_of("main.coordinator.gantry"), &node).await.unwrap(), expected);
    assert_eq!(join(&address, &Expect::Any(Role::Coordinator), &node).await.unwrap(), expected);
}

#[tokio::test]
async fn another_server_is_refused() {
    let ca = Ca::new();
    let address = serve(&ca.tls("main.coordinator.gantry"), HANDSHAKE_TIMEOUT).await;
    let node = ca.tls("node-a.node.gantry");
    for wrong in [peer_of("other.coordinator.gantry"), peer_of("main.node.gantry"), Expect::Any(Role::Node)] {
        let error = connect(&address, &wrong, &node).await.unwrap_err();
        assert!(error.is_refusal(), "{error:?}");
        assert!(format!("{error:?}").contains("WrongPeer"), "{error:?}");
    }
    let stranger = Ca::new().tls("node-a.node.gantry");
    let error = connect(&address, &Expect::Any(Role::Coordinator), &stranger).await.unwrap_err();
    assert!(error.is_refusal(), "{error:?}");
}

#[tokio::test]
async fn nobody_there_is_no_refusal() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let tls = Ca::new().tls("node-a.node.gantry");
    let error = connect(&address, &Expect::Any(Role::Coordinator), &tls).await.unwrap_err();
    assert!(!error.is_refusal(), "{error:?}");
}

/// Trusts the server, and shows a certificate of another authority.
#[tokio::test]
async fn a_client_of_another_authority_is_refused() {
    let ours = Ca::new();
    let address = serve(&ours.tls("main.coordinator.gantry"), HANDSHAKE_TIMEOUT).await;
    let (_dir, files) = Ca::new().issue("alice.admin.gantry");
    std::fs::write(&files.ca, &ours.pem).unwrap();
    let stranger = Tls::load(&files).unwrap();
    let error = join(&address, &Expect::Any(Role::Coordinator), &stranger).await.unwrap_err();
    assert_ne!(error.code(), Code::Ok);
    // The server still serves.
    join(&address, &Expect::Any(Role::Coordinator), &ours.tls("a.node.gantry")).await.unwrap();
}

#[tokio::test]
async fn a_client_without_an_identity_is_refused() {
    let ca = Ca::new();
    let address = serve(&ca.tls("main.coordinator.gantry"), HANDSHAKE_TIMEOUT).await;
    let good = ca.tls("a.node.gantry");
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = rcgen::CertificateParams::new(vec!["example.com".to_owned()]).unwrap();
    let cert = cert.signed_by(&key, &ca.issuer).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let nameless = good.current().with(vec![cert.der().clone()], key);
    let nameless = Tls::of(nameless, &good.files);
    join(&address, &Expect::Any(Role::Coordinator), &nameless).await.unwrap_err();
}

/// No certificate and TLS 1.2, tried with another implementation's client.
#[tokio::test]
async fn no_certificate_and_old_versions_are_refused() {
    let ca = Ca::new();
    let address = serve(&ca.tls("main.coordinator.gantry"), HANDSHAKE_TIMEOUT).await;
    let (_dir, files) = ca.issue("alice.admin.gantry");
    let s_client = |args: &[&str]| {
        let mut command = tokio::process::Command::new("openssl");
        command.args(["s_client", "-connect", &address, "-alpn", "h2", "-CAfile"]).arg(&files.ca).args(args);
        async move { command.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap() }
    };
    let cert = files.cert.to_str().unwrap();
    let key = files.key.to_str().unwrap();
    let good = s_client(&["-cert", cert, "-key", key, "-tls1_3"]).await;
    let text = String::from_utf8_lossy(&good.stdout).into_owned();
    assert!(good.status.success() && text.contains("TLSv1.3"), "{text}");
    assert!(!String::from_utf8_lossy(&good.stderr).contains("alert"), "{good:?}");

    let old = s_client(&["-cert", cert, "-key", key, "-tls1_2"]).await;
    assert!(!old.status.success());
    assert!(String::from_utf8_lossy(&old.stderr).contains("alert protocol version"), "{old:?}");

    // A TLS 1.3 client has finished before the server refuses, so openssl may leave with success: the proof is
    // that the server closes instead of speaking HTTP/2.
    let authorities = certificates("authorities", &files.ca).unwrap();
    let roots = roots(&authorities, &files.ca).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(&address).await.unwrap();
    let name = peer_of("main.coordinator.gantry").server_name();
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    let error = stream.read(&mut [0; 64]).await.unwrap_err();
    assert!(error.to_string().contains("CertificateRequired"), "{error}");
}

#[tokio::test]
async fn a_silent_client_holds_up_nobody_and_is_dropped() {
    let ca = Ca::new();
    let address = serve(&ca.tls("main.coordinator.gantry"), Duration::from_millis(300)).await;
    let mut silent = TcpStream::connect(&address).await.unwrap();
    join(&address, &Expect::Any(Role::Coordinator), &ca.tls("a.node.gantry")).await.unwrap();
    let closed = tokio::time::timeout(Duration::from_secs(5), silent.read(&mut [0; 16])).await;
    assert_eq!(closed.expect("the server drops it in time").unwrap(), 0);
}

#[tokio::test]
async fn listening_ends_with_the_stream() {
    let ca = Ca::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut incoming = listen(listener, &ca.tls("main.coordinator.gantry"));
    let client = ca.tls("a.node.gantry");
    let dialling = tokio::spawn({
        let (address, expect) = (address.to_string(), Expect::Any(Role::Coordinator));
        async move { drop(connect(&address, &expect, &client).await) }
    });
    let connection = incoming.next().await.unwrap().unwrap();
    drop((connection, incoming));
    dialling.await.unwrap();
    let refused = async { while TcpStream::connect(address).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(5), refused).await.expect("the port is closed in time");
}

/// The agents' own protocol: the same configurations, without an async runtime.
#[test]
fn blocking_peers_meet() {
    use std::io::{Read as _, Write as _};
    let ca = Ca::new();
    let server = ca.tls("node-b.node.gantry");
    let client = ca.tls("node-a.node.gantry");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serving = std::thread::spawn(move || {
        let (mut tcp, _) = listener.accept().unwrap();
        let mut session = rustls::ServerConnection::new(server.server_config()).unwrap();
        let mut buf = [0; 5];
        rustls::Stream::new(&mut session, &mut tcp).read_exact(&mut buf).unwrap();
        (peer_identity(session.peer_certificates()).unwrap().to_string(), buf)
    });
    let expect = peer_of("node-b.node.gantry");
    let mut session =
        rustls::ClientConnection::new(client.client_config(&expect), expect.server_name()).unwrap();
    let mut tcp = std::net::TcpStream::connect(address).unwrap();
    rustls::Stream::new(&mut session, &mut tcp).write_all(b"pages").unwrap();
    assert_eq!(serving.join().unwrap(), ("node/node-a".to_owned(), *b"pages"));
}

#[test]
fn errors_name_the_file() {
    let ca = Ca::new();
    let (_dir, files) = ca.issue("a.node.gantry");
    let (_other, other) = ca.issue("b.node.gantry");
    let fails = |files: &TlsFiles, named: &Path| {
        let error = Tls::load(files).unwrap_err();
        assert!(error.to_string().contains(named.to_str().unwrap()), "{error}");
        assert!(error.source().is_some() || matches!(error, TlsError::Empty { .. }), "{error:?}");
    };
    let missing = files.ca.with_file_name("missing");
    fails(&TlsFiles { ca: missing.clone(), ..files.clone() }, &missing);
    fails(&TlsFiles { cert: missing.clone(), ..files.clone() }, &missing);
    fails(&TlsFiles { key: missing.clone(), ..files.clone() }, &missing);
    fails(&TlsFiles { key: files.cert.clone(), ..files.clone() }, &files.cert);
    fails(&TlsFiles { cert: files.key.clone(), ..files.clone() }, &files.key);
    fails(&TlsFiles { key: other.key.clone(), ..files.clone() }, &other.key);
    let (_nobody, nobody) = ca.issue("example.com");
    fails(&nobody, &nobody.cert);
}

/// A new authority comes beside the old one, then in its place; connections that are open stay so.
#[tokio::test]
async fn replaced_files_are_taken_by_the_next_handshake_of_either_side() {
    let (old, new) = (Ca::new(), Ca::new());
    let (_server_dir, server_files) = old.issue("main.coordinator.gantry");
    let (_client_dir, client_files) = old.issue("node-a.node.gantry");
    let (server, client) = (Tls::load(&server_files).unwrap(), Tls::load(&client_files).unwrap());
    let address = serve(&server, HANDSHAKE_TIMEOUT).await;
    let expect = Expect::Any(Role::Coordinator);
    let mut open = RegistryClient::new(connect(&address, &expect, &client).await.unwrap());
    open.join(JoinRequest::default()).await.unwrap();
    assert_eq!(server.reload().unwrap(), Reload::Same);

    let both = format!("{}{}", old.pem, new.pem);
    std::fs::write(&server_files.ca, &both).unwrap();
    assert!(matches!(server.reload().unwrap(), Reload::Taken(_)));
    let (cert, key) =
        new.pair("node-a.node.gantry", |params| params.not_after = rcgen::date_time_ymd(2100, 1, 1));
    std::fs::write(&client_files.ca, &both).unwrap();
    std::fs::write(&client_files.cert, cert).unwrap();
    let before = client.ends();
    let error = client.reload().unwrap_err();
    assert!(matches!(error, TlsError::Use { .. }), "the key is not yet that of the certificate: {error}");
    join(&address, &expect, &client).await.unwrap();
    std::fs::write(&client_files.key, key).unwrap();
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(4_102_444_800);
    assert_eq!(client.reload().unwrap(), Reload::Taken(at));
    assert!(client.ends() == at && before != at);
    // A server that knows the old authority alone would have refused this one.
    join(&address, &expect, &client).await.unwrap();

    std::fs::write(&server_files.ca, &new.pem).unwrap();
    assert!(matches!(server.reload().unwrap(), Reload::Taken(_)));
    let stale = old.tls("node-a.node.gantry");
    join(&address, &expect, &stale).await.unwrap_err();
    join(&address, &expect, &client).await.unwrap();
    open.join(JoinRequest::default()).await.unwrap();
}

#[test]
fn what_cannot_be_used_replaces_nothing() {
    let ca = Ca::new();
    let (_dir, files) = ca.issue("node-a.node.gantry");
    let tls = Tls::load(&files).unwrap();
    let before = tls.ends();
    let put = |(cert, key): (String, String)| {
        std::fs::write(&files.cert, cert).unwrap();
        std::fs::write(&files.key, key).unwrap();
    };
    put(ca.pair("node-b.node.gantry", |_| {}));
    let error = tls.reload().unwrap_err();
    assert!(matches!(error, TlsError::Other { .. }), "{error}");
    assert!(error.to_string().contains("is of node/node-b, not of node/node-a"), "{error}");
    put(ca.pair("node-a.node.gantry", |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1)));
    let error = tls.reload().unwrap_err();
    assert!(error.to_string().contains("ended at 2020-01-01T00:00:00Z"), "{error}");
    std::fs::remove_file(&files.ca).unwrap();
    assert!(matches!(tls.reload().unwrap_err(), TlsError::Read { .. }));
    assert_eq!((tls.identity().name(), tls.ends()), ("node-a", before));
}
