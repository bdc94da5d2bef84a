//! `__forward`: lets the machine reach the coordinator without a link between the two: a port of the machine's
//! loopback address, joined to a connection made inside the coordinator's network namespace.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::process::{ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns};
use tokio::net::{TcpListener, TcpStream};

use super::host::own_program;
use super::plan::Layout;
use super::process::Process;

/// A forwarder that listens, and ends when `lifeline` is dropped unless it is told to stay.
#[derive(Debug)]
pub(crate) struct Forwarder {
    pub(crate) process: Process,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    lifeline: ChildStdin,
}

/// Starts a forwarder to `target`, seen from the namespace of `host`.
pub(crate) fn create(layout: &Layout, host: Process, target: SocketAddr) -> Result<Forwarder> {
    let log = layout.dir().join("forwarder.log");
    let log = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let mut child = Command::new(own_program()?)
        .args(["__forward", &host.pid.to_string(), &target.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .process_group(0)
        .spawn()
        .context("start the forwarder")?;
    let process = Process::of(i32::try_from(child.id())?)?;
    let lifeline = child.stdin.take().context("the forwarder's standard input")?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("the forwarder's standard output")?).read_line(&mut line)?;
    let address = line.trim().parse().context("the forwarder ended early")?;
    Ok(Forwarder { process, address, lifeline })
}

impl Forwarder {
    /// Lets it outlive the caller.
    pub(crate) fn stay(mut self) -> Result<()> {
        use std::io::Write as _;
        self.lifeline.write_all(b"stay\n").context("let the forwarder stay")
    }

    /// Ties it to the answer: it ends when that is dropped.
    pub(crate) fn tie(self) -> ChildStdin {
        self.lifeline
    }
}

/// The program `__forward PID TARGET`.
pub(crate) fn run(pid: i32, target: SocketAddr) -> Result<()> {
    let namespace = File::open(format!("/proc/{pid}/ns/net")).context("open the network namespace")?;
    // Bound before the change of namespace: the socket stays in the machine's.
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen")?;
    listener.set_nonblocking(true)?;
    setns(&namespace, CloneFlags::CLONE_NEWNET).context("enter the network namespace")?;
    println!("{}", listener.local_addr()?);
    std::thread::spawn(|| {
        let mut line = String::new();
        if !matches!(std::io::stdin().read_line(&mut line), Ok(read) if read > 0) {
            std::process::exit(0);
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(join(stream, target))),
                // Descriptors may have run out; there will be some again.
                Err(error) => {
                    eprintln!("accept: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    })
}

async fn join(mut near: TcpStream, target: SocketAddr) {
    let joined = async {
        let mut far = TcpStream::connect(target).await?;
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        tokio::io::copy_bidirectional(&mut near, &mut far).await
    };
    if let Err(error) = joined.await {
        eprintln!("forward to {target}: {error}");
    }
}
