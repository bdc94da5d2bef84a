//! Bulk streams: pages and file changes, by rounds.
//!
//! A stream carries `Begin{round, generation}`, then batches, then `End{round}`, and so on. The receiver does
//! not touch memory before the shape of that generation has been built, and says when a round is in its place.
//! When applying fails it reads on to the end of the round, so that the sender learns the reason from the
//! target's answer instead of a broken pipe.
//!
//! A migration has one stream or several, because TLS takes a processor for each at both sides. The first one, number 0,
//! takes part in every round and carries all files; the others carry pages only, and only of rounds that are worth it.
//! Within a round the streams are independent of each other, which they may be because a round tells of each page once.
//! Between rounds they are not: the end on the first stream names the others that took part, the receivers wait for one
//! another ([`Gate`]), and nothing of a round is applied before the one before it is complete.

mod gate;
mod lane;
mod receive;
mod rounds;
mod send;

use std::sync::Arc;

use image::packed::Codec;
use serde::{Deserialize, Serialize};

pub use self::gate::Gate;
pub use self::receive::{Apply, BulkError, BulkEvent, receive};
pub use self::send::BulkSender;
use super::pace::Budget;
use super::squeeze::Compression;

/// Most bulk streams of one migration.
pub const MAX_STREAMS: u32 = 16;

/// Processors of a source for each stream that it opens when it is not told how many.
const PROCESSORS_A_STREAM: usize = 4;
/// Most streams that a source opens when it is not told how many.
const MOST_BY_ITSELF: usize = 4;

/// How many bulk streams a source with so many processors opens by itself. Each takes a processor for its TLS, at the
/// target, too, and the container runs on meanwhile: so one has three others beside it.
#[must_use]
pub fn streams_for(processors: usize) -> u32 {
    u32::try_from((processors / PROCESSORS_A_STREAM).clamp(1, MOST_BY_ITSELF)).unwrap_or(1)
}

/// A mark between batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mark {
    /// Never sent; a zero is no mark.
    Invalid,
    /// A round begins; its pages need the shape of this generation (0 = no pages will come).
    Begin {
        /// Number of the round: from 0, without gaps on the first stream.
        round: u32,
        /// Generation of the shape.
        generation: u32,
    },
    /// A round has been sent in full, as far as it was on this stream.
    End {
        /// Number of the round.
        round: u32,
        /// On the first stream: which others carry pages of it, bit n for stream n. On the others 0.
        others: u32,
    },
    /// The container stands still: whatever comes now on this stream waits for no budget.
    Urgent,
}

/// What bulk streams obey.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Bytes a second that rounds may send; 0 = no limit.
    pub bandwidth: u64,
    /// What all migrations of this node share.
    pub budget: Arc<Budget>,
    /// Whether to compress.
    pub compression: Compression,
    /// The codecs that the other side reads.
    pub codecs: Vec<Codec>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_has_four_processors() {
        let counts = [0, 1, 2, 4, 7, 8, 12, 15, 16, 64, 512].map(streams_for);
        assert_eq!(counts, [1, 1, 1, 1, 1, 2, 3, 3, 4, 4, 4]);
    }
}
