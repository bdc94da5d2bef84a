//! `migrate __bare`: what copying memory alone costs on this machine, to hold migrations against.
//!
//! One process is watched and written to, another takes its pages over a loopback connection to their final places;
//! nothing else is moved. Rounds go on while they shrink, then the first process is stopped and the rest is sent. At
//! the end both memories must be equal. The figures are a lower limit that is taken in the same run as a migration's.

mod source;
mod target;
mod wire;

use std::io::{BufRead as _, BufReader, BufWriter, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use proto::identity::{Identity, Role};
use proto::tls::{Expect, Tls, TlsFiles};
use rustls::{ClientConnection, StreamOwned};
use sys::mem::{Run, read_runs};
use sys::pagemap::Pagemap;

use self::wire::Header;
use crate::pki::Authority;
use crate::workload::memory::PAGE_BYTES;

/// Bytes that one read takes from the source's memory.
const BATCH: usize = 1 << 20;
/// Pieces of memory that one read takes.
const RUNS: usize = 256;
/// Rounds at most.
const ROUNDS: u32 = 12;
/// Bytes that tell how fast the connection alone is.
const RAW: usize = 256 << 20;
/// A round this small is not worth another one.
const FEW: usize = 1 << 20;

/// What the loop moves.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Memory that is filled.
    #[arg(long, default_value_t = 256)]
    memory_mib: u64,
    /// Threads that write to it.
    #[arg(long, default_value_t = 8)]
    threads: u32,
    /// Rate at which they write, all together (10^6 bytes per second).
    #[arg(long, default_value_t = 0)]
    dirty_mb_per_s: u64,
    /// Plain TCP instead of TLS 1.3.
    #[arg(long)]
    plain: bool,
}

impl Options {
    fn pages(&self) -> Result<usize> {
        let pages = self.memory_mib.saturating_mul(1 << 20) / PAGE_BYTES as u64;
        usize::try_from(pages).ok().filter(|&pages| pages > 0).context("--memory-mib is out of range")
    }

    fn args(&self) -> Vec<String> {
        let mut args = vec![
            "--memory-mib".to_owned(),
            self.memory_mib.to_string(),
            "--threads".to_owned(),
            self.threads.to_string(),
            "--dirty-mb-per-s".to_owned(),
            self.dirty_mb_per_s.to_string(),
        ];
        if self.plain {
            args.push("--plain".to_owned());
        }
        args
    }
}

/// What it took.
#[derive(Debug, serde::Serialize)]
struct Figures {
    resident_bytes: u64,
    sent_bytes: u64,
    rounds: u32,
    total_ms: f64,
    pause_ms: f64,
    /// How fast the same connection takes bytes that are nobody's memory.
    raw_bytes_per_second: f64,
}

/// Runs it once and prints one JSON object.
pub(crate) fn run(options: &Options) -> Result<()> {
    let dir = std::env::temp_dir().join(format!("gantry-bare-{}", std::process::id()));
    let figures = measure(options, &dir);
    let removed = std::fs::remove_dir_all(&dir);
    println!("{}", serde_json::to_string(&figures?)?);
    removed.with_context(|| format!("remove {}", dir.display()))
}

/// One of the two processes.
pub(crate) fn end(name: &str, options: &Options, dir: &Path) -> Result<()> {
    if name == "source" { source::run(options) } else { target::run(options, dir) }
}

/// A process of the loop, killed on drop.
struct End(Child);

impl End {
    /// Starts it and reads the one line that it prints when it is ready.
    fn start(name: &str, options: &Options, dir: &Path) -> Result<(Self, String)> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(format!("__bare-{name}"))
            .arg(dir)
            .args(options.args())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start the {name}"))?;
        let stdout = child.stdout.take();
        let end = Self(child);
        let mut line = String::new();
        BufReader::new(stdout.context("stdout")?).read_line(&mut line)?;
        Ok((end, line.trim().to_owned()))
    }

    fn pid(&self) -> Result<i32> {
        Ok(i32::try_from(self.0.id())?)
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

fn measure(options: &Options, dir: &Path) -> Result<Figures> {
    let validity = Duration::from_secs(3600);
    let authority = Authority::init(&dir.join("ca"))?;
    let target_name = Identity::new(Role::Node, "target")?;
    authority.issue(&target_name, validity, &dir.join("target"))?;
    authority.issue(&Identity::new(Role::Node, "source")?, validity, &dir.join("source"))?;

    let (target, port) = End::start("target", options, &dir.join("target"))?;
    let (source, place) = End::start("source", options, &dir.join("source"))?;
    let (begin, end) = place.split_once(' ').context("the source did not start")?;
    let range: Range<u64> = begin.parse()?..end.parse()?;
    let tcp = TcpStream::connect(("127.0.0.1", port.parse::<u16>()?)).context("connect")?;
    wire::tune(&tcp)?;
    let stream: Box<dyn Stream> = if options.plain {
        Box::new(tcp)
    } else {
        let tls = Tls::load(&TlsFiles::in_dir(&dir.join("source")))?;
        let expect = Expect::Peer(target_name);
        let mut client = ClientConnection::new(tls.client_config(&expect), expect.server_name())?;
        client.set_buffer_limit(None);
        while client.is_handshaking() {
            client.complete_io(&mut &tcp).context("TLS handshake")?;
        }
        Box::new(StreamOwned::new(client, tcp))
    };
    let pid = source.pid()?;
    let stream = BufWriter::with_capacity(BATCH, stream);
    let mut copy = Copy { pid, pagemap: Pagemap::open(pid)?, range, stream, buffer: vec![0; BATCH], sent: 0 };
    let raw_bytes_per_second = copy.raw()?;
    let figures = Figures { raw_bytes_per_second, ..copy.all()? };
    let equal = copy.digests_are_equal()?;
    drop((source, target));
    ensure!(equal, "the copy is not what the source holds");
    Ok(figures)
}

struct Copy {
    pid: i32,
    pagemap: Pagemap,
    range: Range<u64>,
    /// Pages that lie alone are sent with others, as a migration does.
    stream: BufWriter<Box<dyn Stream>>,
    buffer: Vec<u8>,
    sent: usize,
}

impl Copy {
    /// Sends bytes that have no place, and answers how many a second arrive.
    fn raw(&mut self) -> Result<f64> {
        let began = Instant::now();
        for _ in 0..RAW / BATCH {
            Header::Nowhere { len: BATCH }.write(&mut self.stream)?;
            self.stream.write_all(&self.buffer)?;
        }
        self.round_trip()?;
        Ok(RAW as f64 / began.elapsed().as_secs_f64())
    }

    /// Waits until everything that was sent is where it belongs.
    fn round_trip(&mut self) -> Result<()> {
        Header::Round.write(&mut self.stream)?;
        self.stream.flush()?;
        Ok(self.stream.get_mut().read_exact(&mut [0])?)
    }

    fn all(&mut self) -> Result<Figures> {
        let began = Instant::now();
        let mut last = usize::MAX;
        let mut rounds = 0;
        loop {
            let bytes = self.round()?;
            rounds += 1;
            // Below a mebibyte, or four fifths of the round before: more rounds do not lower the floor.
            if bytes <= FEW || bytes > last / 5 * 4 || rounds == ROUNDS {
                break;
            }
            last = bytes;
        }
        let stopped = Instant::now();
        self.stop()?;
        self.round()?;
        Ok(Figures {
            resident_bytes: self.range.end - self.range.start,
            sent_bytes: self.sent as u64,
            rounds: rounds + 1,
            total_ms: began.elapsed().as_secs_f64() * 1e3,
            pause_ms: stopped.elapsed().as_secs_f64() * 1e3,
            raw_bytes_per_second: 0.0,
        })
    }

    fn stop(&self) -> Result<()> {
        let pid = Pid::from_raw(self.pid);
        kill(pid, Signal::SIGSTOP)?;
        let status = waitpid(pid, Some(WaitPidFlag::WUNTRACED))?;
        ensure!(matches!(status, WaitStatus::Stopped(..)), "the source ended: {status:?}");
        Ok(())
    }

    /// Sends what was written since the last round, and waits until it is in its place.
    fn round(&mut self) -> Result<usize> {
        let mut written = Vec::new();
        self.pagemap.scan_written(self.range.clone(), true, &mut written)?;
        let mut bytes = 0;
        let mut batch: Vec<Run> = Vec::new();
        let mut held = 0;
        for range in written {
            let mut at = range.start;
            while at < range.end {
                let len = usize::try_from(range.end - at)?.min(BATCH - held);
                batch.push(Run { address: at, len });
                at += len as u64;
                bytes += len;
                held += len;
                if held == BATCH || batch.len() == RUNS {
                    self.send(&batch, held)?;
                    batch.clear();
                    held = 0;
                }
            }
        }
        self.send(&batch, held)?;
        self.round_trip()?;
        self.sent += bytes;
        Ok(bytes)
    }

    /// Reads `len` bytes with one call and sends each run with its place.
    fn send(&mut self, runs: &[Run], len: usize) -> Result<()> {
        let buffer = self.buffer.get_mut(..len).context("buffer")?;
        let read = if runs.is_empty() { 0 } else { read_runs(self.pid, runs, buffer)? };
        ensure!(read == len, "the source's memory went away");
        let mut rest = &*buffer;
        for run in runs {
            let (part, after) = rest.split_at_checked(run.len).context("buffer")?;
            rest = after;
            let offset = usize::try_from(run.address - self.range.start)?;
            Header::Run { offset, len: run.len }.write(&mut self.stream)?;
            self.stream.write_all(part)?;
        }
        Ok(())
    }

    /// The source stands still.
    fn digests_are_equal(&mut self) -> Result<bool> {
        Header::Digest.write(&mut self.stream)?;
        self.stream.flush()?;
        let mut ours = 0;
        for address in self.range.clone().step_by(BATCH) {
            let len = usize::try_from(self.range.end - address)?.min(BATCH);
            let part = self.buffer.get_mut(..len).context("buffer")?;
            let read = read_runs(self.pid, &[Run { address, len }], part)?;
            ensure!(read == len, "the source's memory went away");
            ours = wire::digest(ours, part);
        }
        let mut theirs = [0; 8];
        self.stream.get_mut().read_exact(&mut theirs)?;
        Ok(u64::from_le_bytes(theirs) == ours)
    }
}
