//! Connections that say nothing for a long time, held by one thread.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors that a client has besides.
const BESIDES: u64 = 256;

/// Connections whose answers are counted by the program that is asked.
#[derive(Debug)]
pub struct Held {
    streams: Vec<TcpStream>,
    /// How many answers each has had.
    answers: u64,
}

impl Held {
    /// Makes them, and asks on each of them once, so that none still waits to be accepted.
    ///
    /// # Errors
    /// When one cannot be made or is not answered rightly.
    pub fn connect(address: SocketAddr, count: usize) -> Result<Self> {
        let wanted = count as u64 + BESIDES;
        let allowed = allow_descriptors(wanted)?;
        ensure!(allowed >= wanted, "RLIMIT_NOFILE is {allowed} and cannot be raised");
        let mut held = Self { streams: Vec::with_capacity(count), answers: 1 };
        for number in 0..count {
            let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))
                .with_context(|| format!("connection {number}"))?;
            stream.set_read_timeout(Some(Duration::from_secs(30)))?;
            ask(&stream).with_context(|| format!("connection {number}"))?;
            hear(&stream, 1).with_context(|| format!("connection {number}"))?;
            held.streams.push(stream);
        }
        Ok(held)
    }

    /// Asks on all of them at once and checks every answer.
    ///
    /// # Errors
    /// The first connection that is gone or is not answered rightly.
    pub fn ask_all(&mut self) -> Result<u64> {
        self.answers += 1;
        for (number, stream) in self.streams.iter().enumerate() {
            ask(stream).with_context(|| format!("ask on connection {number}"))?;
        }
        for (number, stream) in self.streams.iter().enumerate() {
            hear(stream, self.answers).with_context(|| format!("hear from connection {number}"))?;
        }
        Ok(self.streams.len() as u64)
    }
}

/// Lets this process, and those that it starts, have so many descriptors, or as many as it may; answers how many these
/// are.
///
/// # Errors
/// When the limit cannot be read.
pub fn allow_descriptors(wanted: u64) -> Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft >= wanted {
        return Ok(soft);
    }
    // More than the hard limit takes CAP_SYS_RESOURCE.
    match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)) {
        Ok(()) => Ok(wanted),
        Err(_) => {
            let most = hard.min(wanted);
            setrlimit(Resource::RLIMIT_NOFILE, most, hard)?;
            Ok(most)
        }
    }
}

fn ask(mut stream: &TcpStream) -> Result<()> {
    Ok(stream.write_all(b"check\n")?)
}

fn hear(mut stream: &TcpStream, number: u64) -> Result<()> {
    let mut line = Vec::new();
    let mut part = [0; 64];
    while line.last() != Some(&b'\n') {
        let read = stream.read(&mut part)?;
        ensure!(read > 0, "it was closed");
        line.extend_from_slice(part.get(..read).context("part")?);
    }
    let expected = format!("ok {number} {number}\n");
    ensure!(line == expected.as_bytes(), "{:?} instead of {expected:?}", String::from_utf8_lossy(&line));
    Ok(())
}
