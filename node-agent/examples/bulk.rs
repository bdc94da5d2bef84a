//! How fast bulk streams are on this machine: TLS 1.3 over loopback, batches of 1 MiB, sender and receiver
//! in one process. `cargo run --release -p node-agent --example bulk [GiB [STREAMS]]`.

use std::io;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use engine::PageSink;
use image::frame::FrameReader;
use image::packed::Codec;
use image::pages::{Batch, Owner, Run, RunKind};
use node_agent::transfer::bulk::{Apply, BulkEvent, BulkSender, Gate, Terms, receive};
use node_agent::transfer::pace::Budget;
use node_agent::transfer::squeeze::Compression;
use node_agent::transfer::stream::TlsStream;
use proto::identity::{Identity, Role};
use proto::tls::{Tls, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// Counts pages in place of writing them: what is measured is the stream.
#[derive(Clone, Debug, Default)]
struct Count(Arc<AtomicU64>);

impl Apply for Count {
    fn apply(&self, batch: &Batch<'_>) -> io::Result<()> {
        self.0.fetch_add(batch.data.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

fn main() -> Result<()> {
    let gib: u64 = std::env::args().nth(1).map_or(Ok(4), |arg| arg.parse()).context("GiB")?;
    let streams: u32 = std::env::args().nth(2).map_or(Ok(1), |arg| arg.parse()).context("STREAMS")?;
    let dir = tempfile::tempdir()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let issue = |name: &str| -> Result<Tls> {
        let key = KeyPair::generate()?;
        let cert = CertificateParams::new(vec![format!("{name}.node.gantry")])?.signed_by(&key, &ca)?;
        let dir = dir.path().join(name);
        std::fs::create_dir(&dir)?;
        let files = TlsFiles::in_dir(&dir);
        std::fs::write(&files.ca, ca.pem())?;
        std::fs::write(&files.cert, cert.pem())?;
        std::fs::write(&files.key, key.serialize_pem())?;
        Ok(Tls::load(&files)?)
    };
    let (source, target) = (issue("node-a")?, issue("node-b")?);

    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let (events, reports) = mpsc::channel();
    let gate = Gate::new();
    let count = Count::default();
    gate.expect(streams);
    gate.open(1, count.clone());
    let receiver = std::thread::spawn(move || -> Result<()> {
        let mut threads = Vec::new();
        for number in 0..streams {
            let (tcp, _) = listener.accept()?;
            let stream = TlsStream::accept(&target, tcp)?;
            let (gate, events) = (Arc::clone(&gate), events.clone());
            threads.push(std::thread::spawn(move || {
                receive(number, FrameReader::new(stream), &gate, None, &Budget::new(0), &events);
            }));
        }
        drop(events);
        threads.into_iter().try_for_each(std::thread::JoinHandle::join).map_err(|_| anyhow!("it panicked"))
    });

    let peer = Identity::new(Role::Node, "node-b")?;
    let connect = || TlsStream::connect(&source, &peer, &address);
    let terms = Terms {
        bandwidth: 0,
        budget: Arc::new(Budget::new(0)),
        compression: Compression::Auto,
        codecs: Codec::ALL.to_vec(),
    };
    let mut sender = BulkSender::new(connect()?, 0, terms, || false);
    for _ in 1..streams {
        sender.add(connect()?, 0)?;
    }
    let data: Vec<u8> = (0..1 << 20).map(|n: u32| n.to_le_bytes()[1]).collect();
    let rounds = 4;
    for round in 0..rounds {
        let began = Instant::now();
        sender.begin(round, 1)?;
        for batch in 0..gib * 1024 / u64::from(rounds) {
            let runs = [Run { addr: batch << 20, pages: 256, kind: RunKind::Data }];
            PageSink::batch(&mut sender, &Batch { owner: Owner::Process(1), runs: &runs, data: &data })?;
        }
        sender.end(round)?;
        match reports.recv_timeout(Duration::from_secs(10))? {
            BulkEvent::Round { bytes, error: None, .. } => {
                let seconds = began.elapsed().as_secs_f64();
                #[expect(clippy::cast_precision_loss, reason = "a rate")]
                let rate = bytes as f64 / seconds / 1e9;
                println!("round {round}: {bytes} bytes in {:.1} ms: {rate:.2} GB/s", seconds * 1e3);
            }
            other => bail!("{other:?}"),
        }
    }
    println!("by stream: {:?}", sender.sent_by_stream());
    drop(sender);
    receiver.join().map_err(|_| anyhow!("the receiver panicked"))??;
    Ok(())
}
