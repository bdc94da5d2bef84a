//! What the two ends of the bare loop say to each other.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use crate::workload::memory::mix;

/// What comes next on the connection: two words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// So many bytes for this offset follow.
    Run {
        /// From the beginning of the memory.
        offset: usize,
        /// Bytes.
        len: usize,
    },
    /// So many bytes for no place follow.
    Nowhere {
        /// Bytes.
        len: usize,
    },
    /// Everything of a round has been sent: answer one byte.
    Round,
    /// Answer the digest of the memory, and end.
    Digest,
}

/// Lengths that are no lengths.
const ROUND: u64 = u64::MAX;
const DIGEST: u64 = u64::MAX - 1;
/// An offset that is none.
const NOWHERE: u64 = u64::MAX;

impl Header {
    pub(super) fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut bytes = [0; 16];
        from.read_exact(&mut bytes)?;
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let size = |word: u64| usize::try_from(word).map_err(io::Error::other);
        Ok(match word(8) {
            ROUND => Self::Round,
            DIGEST => Self::Digest,
            len if word(0) == NOWHERE => Self::Nowhere { len: size(len)? },
            len => Self::Run { offset: size(word(0))?, len: size(len)? },
        })
    }

    pub(super) fn write(self, to: &mut impl Write) -> io::Result<()> {
        let (offset, len) = match self {
            Self::Run { offset, len } => (offset as u64, len as u64),
            Self::Nowhere { len } => (NOWHERE, len as u64),
            Self::Round => (0, ROUND),
            Self::Digest => (0, DIGEST),
        };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&offset.to_le_bytes());
        bytes[8..].copy_from_slice(&len.to_le_bytes());
        to.write_all(&bytes)
    }
}

/// Options that a bulk connection wants.
pub(super) fn tune(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)
}

/// Tells two memories apart. `before` is the digest of what lies before this part, whose length is a multiple of eight.
pub(super) fn digest(before: u64, part: &[u8]) -> u64 {
    part.chunks(8).fold(before, |sum, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(sum ^ u64::from_le_bytes(word))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_as_they_were() {
        for header in [
            Header::Run { offset: 4096, len: 1 << 20 },
            Header::Nowhere { len: 7 },
            Header::Round,
            Header::Digest,
        ] {
            let mut bytes = Vec::new();
            header.write(&mut bytes).unwrap();
            assert_eq!(Header::read(&mut bytes.as_slice()).unwrap(), header);
        }
    }

    #[test]
    fn a_digest_sees_one_byte_and_the_order() {
        let one = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
        let mut other = one;
        other[9] ^= 1;
        assert_ne!(digest(0, &one), digest(0, &other));
        other[9] ^= 1;
        assert_eq!(digest(digest(0, &one[..8]), &one[8..]), digest(0, &one), "it goes on from part to part");
        other.rotate_left(8);
        assert_ne!(digest(0, &one), digest(0, &other));
    }
}
