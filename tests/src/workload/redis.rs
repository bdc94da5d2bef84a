//! A checking client for redis-server: every reply is known beforehand, so a lost, repeated or changed one
//! is seen at once. It never reconnects.

use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::cluster::Cluster;

const COMMAND: &[&str] =
    &["/usr/bin/redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir", "/data"];

/// Starts it on the first node and fills it with `keys` values; answers where it serves.
///
/// # Errors
/// When it does not start or take them.
pub fn start(cluster: &Cluster, name: &str, ip: &str, keys: u64) -> Result<SocketAddr> {
    let address: SocketAddr = format!("{ip}:6379").parse()?;
    cluster.run_container(name, "node-a", &format!("{ip}/24"), &["/data"], COMMAND)?;
    cluster.wait_for_port(address)?;
    cluster.client_once(&["redis-fill", &address.to_string(), &keys.to_string()])?;
    Ok(address)
}

/// Bytes of one value.
pub const VALUE_BYTES: usize = 4096;

/// The value that belongs to a key: reproducible, and different for every key.
#[must_use]
pub fn value_of(key: u64) -> Vec<u8> {
    let mut state = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut value = Vec::with_capacity(VALUE_BYTES);
    while value.len() < VALUE_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        value.extend_from_slice(&state.to_le_bytes());
    }
    value
}

/// One connection that speaks RESP.
#[derive(Debug)]
pub struct Redis {
    reader: BufReader<TcpStream>,
}

/// A reply of the server.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// `+OK`
    Simple(String),
    /// `:n`
    Integer(i64),
    /// `$n` and so many bytes; `None` is nil.
    Bulk(Option<Vec<u8>>),
}

impl Redis {
    /// Connects, once and for all.
    ///
    /// # Errors
    /// When nobody answers within five seconds.
    pub fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Queues a command without reading its reply.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send(&mut self, args: &[&[u8]]) -> Result<()> {
        let mut request = format!("*{}\r\n", args.len()).into_bytes();
        for arg in args {
            request.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
            request.extend_from_slice(arg);
            request.extend_from_slice(b"\r\n");
        }
        self.reader.get_mut().write_all(&request)?;
        Ok(())
    }

    /// Reads one reply.
    ///
    /// # Errors
    /// When the connection is gone, the server answers an error, or the reply is not RESP.
    pub fn receive(&mut self) -> Result<Reply> {
        let line = self.line()?;
        let (kind, rest) = line.split_at_checked(1).context("empty reply")?;
        match kind {
            "+" => Ok(Reply::Simple(rest.to_owned())),
            ":" => Ok(Reply::Integer(rest.parse()?)),
            "$" if rest == "-1" => Ok(Reply::Bulk(None)),
            "$" => {
                let mut value = vec![0; rest.parse::<usize>()? + 2];
                self.reader.read_exact(&mut value)?;
                value.truncate(value.len() - 2);
                Ok(Reply::Bulk(Some(value)))
            }
            _ => bail!("the server answered {line:?}"),
        }
    }

    /// A command and its reply.
    ///
    /// # Errors
    /// As [`Redis::send`] and [`Redis::receive`].
    pub fn call(&mut self, args: &[&[u8]]) -> Result<Reply> {
        self.send(args)?;
        self.receive()
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        let mut byte = [0];
        loop {
            self.reader.read_exact(&mut byte)?;
            if byte[0] == b'\n' {
                break;
            }
            line.push(byte[0]);
        }
        line.pop();
        Ok(String::from_utf8_lossy(&line).into_owned())
    }
}

/// Fills the server with `keys` values, pipelined.
///
/// # Errors
/// When a reply is not `+OK`.
pub fn fill(address: SocketAddr, keys: u64) -> Result<()> {
    let mut redis = Redis::connect(address)?;
    let batch = 256;
    let mut key = 0;
    while key < keys {
        let end = keys.min(key + batch);
        for k in key..end {
            redis.send(&[b"SET", format!("key:{k}").as_bytes(), &value_of(k)])?;
        }
        for k in key..end {
            ensure!(redis.receive()? == Reply::Simple("OK".into()), "SET key:{k} was not answered by OK");
        }
        key = end;
    }
    Ok(())
}

/// One client under load until `stop` says so: a counter of its own that must rise by exactly one each time,
/// and random values that must be what they were. Answers the number of replies and the longest gap.
///
/// # Errors
/// The first wrong, lost or repeated reply, and any loss of the connection.
pub fn check(address: SocketAddr, id: usize, keys: u64, stop: &dyn Fn() -> bool) -> Result<(u64, Duration)> {
    let mut redis = Redis::connect(address)?;
    let counter = format!("counter:{id}");
    ensure!(redis.call(&[b"SET", counter.as_bytes(), b"0"])? == Reply::Simple("OK".into()), "SET counter");
    let mut replies = 0_u64;
    let mut expected = 0_i64;
    let mut longest = Duration::ZERO;
    let mut state = id as u64 * 2 + 1;
    let mut last = Instant::now();
    while !stop() {
        expected += 1;
        let reply = redis.call(&[b"INCR", counter.as_bytes()])?;
        ensure!(
            reply == Reply::Integer(expected),
            "client {id}: INCR answered {reply:?}, expected {expected}"
        );
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let key = (state >> 33) % keys.max(1);
        if keys > 0 {
            let reply = redis.call(&[b"GET", format!("key:{key}").as_bytes()])?;
            ensure!(reply == Reply::Bulk(Some(value_of(key))), "client {id}: key:{key} has a wrong value");
        }
        replies += 2;
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    Ok((replies, longest))
}

/// Reads every value and compares it.
///
/// # Errors
/// The first value that is not what was written.
pub fn verify(address: SocketAddr, keys: u64) -> Result<()> {
    let mut redis = Redis::connect(address)?;
    let batch = 256;
    let mut key = 0;
    while key < keys {
        let end = keys.min(key + batch);
        for k in key..end {
            redis.send(&[b"GET", format!("key:{k}").as_bytes()])?;
        }
        for k in key..end {
            ensure!(redis.receive()? == Reply::Bulk(Some(value_of(k))), "key:{k} has a wrong value");
        }
        key = end;
    }
    Ok(())
}
