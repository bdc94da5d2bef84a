//! A keep-alive HTTP client that downloads one file again and again over one connection and checks its hash.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

/// SHA-256 as hexadecimal digits.
#[must_use]
pub fn hash(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Downloads `path` until `stop` says so; answers the number of downloads and the longest gap between two
/// reads.
///
/// # Errors
/// A download whose hash differs, an error status, and any loss of the connection.
pub fn check(
    address: SocketAddr,
    path: &str,
    sha256: &str,
    stop: &dyn Fn() -> bool,
) -> Result<(u64, Duration)> {
    let mut reader = connect(address)?;
    let mut downloads = 0;
    let mut longest = Duration::ZERO;
    while !stop() {
        let (content, gap) = get(&mut reader, path, "keep-alive")?;
        ensure!(hash(&content) == sha256, "download {downloads} has a wrong hash");
        longest = longest.max(gap);
        downloads += 1;
    }
    Ok((downloads, longest))
}

/// The same over a new connection for each download.
///
/// # Errors
/// A connection that is not made or is lost, a download whose hash differs, an error status.
pub fn visit(
    address: SocketAddr,
    path: &str,
    sha256: &str,
    stop: &dyn Fn() -> bool,
) -> Result<(u64, Duration)> {
    let mut visits = 0;
    let mut longest = Duration::ZERO;
    while !stop() {
        let began = Instant::now();
        let mut reader = connect(address).with_context(|| format!("visit {visits}"))?;
        let (content, _) = get(&mut reader, path, "close")
            .with_context(|| format!("visit {visits} from {:?}", reader.get_ref()))?;
        ensure!(hash(&content) == sha256, "visit {visits} has a wrong hash");
        ensure!(reader.read(&mut [0])? == 0, "visit {visits} does not end");
        longest = longest.max(began.elapsed());
        visits += 1;
    }
    Ok((visits, longest))
}

fn connect(address: SocketAddr) -> Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    Ok(BufReader::new(stream))
}

/// Downloads once; answers what came, and the longest time between two reads.
fn get(reader: &mut BufReader<TcpStream>, path: &str, connection: &str) -> Result<(Vec<u8>, Duration)> {
    let mut last = Instant::now();
    let mut longest = Duration::ZERO;
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: {connection}\r\n\r\n");
    reader.get_mut().write_all(request.as_bytes())?;
    let mut line = String::new();
    reader.read_line(&mut line)?;
    ensure!(line.starts_with("HTTP/1.1 200"), "the server answered {line:?}");
    let mut length = None;
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = Some(value.trim().parse::<usize>()?);
        }
    }
    let mut content = vec![0; length.context("no Content-Length")?];
    let mut filled = 0;
    while filled < content.len() {
        let read = reader.read(&mut content[filled..])?;
        ensure!(read > 0, "the connection ended after {filled} bytes");
        filled += read;
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    Ok((content, longest))
}
