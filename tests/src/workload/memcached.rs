//! A checking client for memcached: values, counters and compare-and-swap over one connection that stays.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::redis::value_of;
use crate::cluster::Cluster;

/// Values of each client.
const KEYS: u64 = 256;

/// Starts it on the first node; answers where it serves.
///
/// # Errors
/// When it does not start.
pub fn start(cluster: &Cluster, name: &str, ip: &str) -> Result<SocketAddr> {
    let command = ["/usr/bin/memcached", "-u", "root", "-l", "0.0.0.0", "-m", "256", "-t", "4"];
    cluster.run_container(name, "node-a", &format!("{ip}/24"), &["/data"], &command)?;
    let address = format!("{ip}:11211").parse()?;
    cluster.wait_for_port(address)?;
    Ok(address)
}

/// Sets, gets and counts until `stop` says so; answers the number of replies and the longest wait for one.
///
/// # Errors
/// A value that is lost or another one, a count that is not exact, the end of the connection.
pub fn check(address: SocketAddr, id: usize, stop: &dyn Fn() -> bool) -> Result<(u64, Duration)> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut link = BufReader::new(stream);
    let mut longest = Duration::ZERO;
    ask(&mut link, format!("set count-{id} 0 0 1\r\n0\r\n").as_bytes(), "STORED")?;
    let mut turn = 0;
    while !stop() {
        let began = Instant::now();
        let key = turn % KEYS;
        if turn >= KEYS {
            // What was stored a round of all keys ago.
            ensure!(
                get(&mut link, id, key)? == value_of(turn - KEYS),
                "client {id}: value {key} has changed"
            );
        }
        let value = value_of(turn);
        let head = format!("set value-{id}-{key} 0 0 {}\r\n", value.len());
        ask(&mut link, &[head.as_bytes(), &value, b"\r\n"].concat(), "STORED")?;
        turn += 1;
        ask(&mut link, format!("incr count-{id} 1\r\n").as_bytes(), &turn.to_string())?;
        longest = longest.max(began.elapsed());
    }
    Ok((turn, longest))
}

fn ask(link: &mut BufReader<TcpStream>, question: &[u8], expected: &str) -> Result<()> {
    link.get_mut().write_all(question)?;
    let mut line = String::new();
    link.read_line(&mut line)?;
    ensure!(line.trim_end() == expected, "memcached answered {line:?} instead of {expected:?}");
    Ok(())
}

fn get(link: &mut BufReader<TcpStream>, id: usize, key: u64) -> Result<Vec<u8>> {
    link.get_mut().write_all(format!("get value-{id}-{key}\r\n").as_bytes())?;
    let mut line = String::new();
    link.read_line(&mut line)?;
    let length =
        line.split_ascii_whitespace().nth(3).with_context(|| format!("memcached answered {line:?}"))?;
    let mut value = vec![0; length.parse()?];
    link.read_exact(&mut value)?;
    line.clear();
    link.read_line(&mut line)?;
    link.read_line(&mut line)?;
    ensure!(line == "\r\nEND\r\n", "memcached ended a value with {line:?}");
    Ok(value)
}
