//! The client of the python program: one question a line.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// Asks until `stop` says so; answers the number of replies and the longest wait for one.
///
/// # Errors
/// When the program reports a fault, an answer is lost or repeated, its counters stand still for ten
/// seconds, or the connection ends.
pub fn check(address: SocketAddr, id: usize, stop: &dyn Fn() -> bool) -> Result<(u64, Duration)> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(stream);
    let mut answers = 0_u64;
    let mut longest = Duration::ZERO;
    // The last total, and since when and for how many answers it has been that.
    let mut progress = (0_u64, Instant::now(), 0_u64);
    while !stop() {
        // Both nodes share the processors with this client.
        std::thread::park_timeout(Duration::from_millis(1));
        let asked = Instant::now();
        reader.get_mut().write_all(b"check\n")?;
        let mut line = String::new();
        reader.read_line(&mut line)?;
        longest = longest.max(asked.elapsed());
        answers += 1;
        let mut words = line.split_whitespace();
        ensure!(words.next() == Some("ok"), "client {id}: the program says {line:?}");
        let number: u64 = words.next().context("no number")?.parse()?;
        ensure!(number == answers, "client {id}: answer {number} where {answers} was due");
        let total: u64 = words.next().context("no total")?.parse()?;
        if total > progress.0 {
            progress = (total, Instant::now(), 0);
        }
        progress.2 += 1;
        ensure!(
            progress.1.elapsed() < Duration::from_secs(10) || progress.2 < 100,
            "client {id}: nothing moves: {line}"
        );
    }
    Ok((answers, longest))
}

/// Asks once.
///
/// # Errors
/// When the answer is another one, or none comes.
pub fn ask(address: SocketAddr, question: &str, expected: &str) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    writeln!(stream, "{question}")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    ensure!(line.trim_end() == expected, "{question}: {line:?} instead of {expected:?}");
    Ok(())
}
