//! The workload's protocol: fixed-size requests and replies over TCP, little endian.

use std::io::{self, Read, Write};

/// First field of every message.
const MAGIC: u32 = 0x4754_5259;
/// Size of a request in bytes.
const REQUEST_LEN: usize = 24;
/// Size of a reply in bytes.
const REPLY_LEN: usize = 48;

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// Version and checksum of one page.
    Read,
    /// Verify every page: the reply's `page` is how many there are, its `version` how many are wrong.
    CheckAll,
    /// Answer in `page` how many pages have been written.
    Written,
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) op: Op,
    /// Chosen by the client; the reply repeats it.
    pub(crate) seq: u64,
    /// Which page, modulo the number of pages.
    pub(crate) key: u64,
}

/// A reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reply {
    /// False when the server found a page that does not match its checksum or its recorded version.
    pub(crate) sound: bool,
    pub(crate) seq: u64,
    /// How many replies this connection has had, this one included.
    pub(crate) counter: u64,
    pub(crate) page: u64,
    pub(crate) version: u64,
    pub(crate) checksum: u64,
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

impl Request {
    /// Writes the request in one call.
    pub(crate) fn write_to(&self, mut to: impl Write) -> io::Result<()> {
        let mut bytes = [0; REQUEST_LEN];
        let op: u32 = match self.op {
            Op::Read => 1,
            Op::CheckAll => 2,
            Op::Written => 3,
        };
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&op.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.seq.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.key.to_le_bytes());
        to.write_all(&bytes)
    }

    /// Reads one request. `None` when the peer closed between two requests.
    pub(crate) fn read_from(mut from: impl Read) -> io::Result<Option<Self>> {
        let mut bytes = [0; REQUEST_LEN];
        let first = loop {
            match from.read(&mut bytes) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if first == 0 {
            return Ok(None);
        }
        from.read_exact(&mut bytes[first..])?;
        if u32_at(&bytes, 0) != MAGIC {
            return Err(invalid("request without the magic number"));
        }
        let op = match u32_at(&bytes, 4) {
            1 => Op::Read,
            2 => Op::CheckAll,
            3 => Op::Written,
            _ => return Err(invalid("unknown operation")),
        };
        Ok(Some(Self { op, seq: u64_at(&bytes, 8), key: u64_at(&bytes, 16) }))
    }
}

impl Reply {
    /// Writes the reply in one call.
    pub(crate) fn write_to(&self, mut to: impl Write) -> io::Result<()> {
        let mut bytes = [0; REPLY_LEN];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&u32::from(self.sound).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.seq.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.counter.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.page.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.version.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.checksum.to_le_bytes());
        to.write_all(&bytes)
    }

    /// Reads one reply.
    pub(crate) fn read_from(mut from: impl Read) -> io::Result<Self> {
        let mut bytes = [0; REPLY_LEN];
        from.read_exact(&mut bytes)?;
        if u32_at(&bytes, 0) != MAGIC {
            return Err(invalid("reply without the magic number"));
        }
        Ok(Self {
            sound: u32_at(&bytes, 4) == 1,
            seq: u64_at(&bytes, 8),
            counter: u64_at(&bytes, 16),
            page: u64_at(&bytes, 24),
            version: u64_at(&bytes, 32),
            checksum: u64_at(&bytes, 40),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire() {
        let request = Request { op: Op::CheckAll, seq: 7, key: u64::MAX };
        let mut bytes = Vec::new();
        request.write_to(&mut bytes).unwrap();
        assert_eq!(bytes.len(), REQUEST_LEN);
        assert_eq!(Request::read_from(&bytes[..]).unwrap(), Some(request));
        assert_eq!(Request::read_from(&b""[..]).unwrap(), None);
        assert!(Request::read_from(&bytes[..5]).is_err());

        let reply = Reply { sound: true, seq: 1, counter: 2, page: 3, version: 4, checksum: 5 };
        let mut bytes = Vec::new();
        reply.write_to(&mut bytes).unwrap();
        assert_eq!(bytes.len(), REPLY_LEN);
        assert_eq!(Reply::read_from(&bytes[..]).unwrap(), reply);
        bytes[0] ^= 1;
        assert!(Reply::read_from(&bytes[..]).is_err());
    }
}
