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
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(stream);
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: keep-alive\r\n\r\n");
    let mut downloads = 0;
    let mut longest = Duration::ZERO;
    let mut last = Instant::now();
    while !stop() {
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
        ensure!(hash(&content) == sha256, "download {downloads} has a wrong hash");
        downloads += 1;
    }
    Ok((downloads, longest))
}
