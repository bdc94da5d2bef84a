//! Whether to compress, and how: by what the link takes and what compression gives, both measured.
//!
//! A batch that travels as it is costs `1/link` seconds a byte; compressed it costs `1/speed + ratio/link`. The sum is what
//! one thread needs for both in turn; in truth the kernel's buffers let them overlap a little, so that compression is
//! chosen rather too late than too early.

use std::time::Duration;

use image::packed::Codec;

/// What a migration's policy says about compression.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Whatever brings most bytes over the link.
    #[default]
    Auto,
    /// None.
    Off,
    /// lz4, always.
    Lz4,
    /// zstd, always.
    Zstd,
}

/// Nothing is tried on links that take more than this, bytes a second: no codec is faster.
const FAST: f64 = 4e8;
/// Bytes after which a link's rate is believed: more than the kernel's buffers hold.
const TELLING: f64 = (16 << 20) as f64;
/// How much older measurements count for each new one.
const FADE: f64 = 0.95;
/// One batch in so many is compressed to see what it gives.
const PROBE: u32 = 64;
/// Compression must be better by this factor.
const WORTH: f64 = 0.9;

/// Measurements of one stream, and what follows from them. Pure: time comes from outside.
#[derive(Clone, Debug)]
pub struct Squeeze {
    policy: Compression,
    /// The codecs that the other side reads.
    known: Vec<Codec>,
    /// A limit that is kept by waiting, bytes a second; 0 = none.
    limit: u64,
    /// Bytes written, and seconds that it took, fading.
    link: (f64, f64),
    seen: f64,
    gains: [Option<Gain>; Codec::ALL.len()],
    since_probe: u32,
    /// Which codec is tried next.
    next_probe: usize,
}

/// What a codec gives.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Gain {
    /// Bytes a second that it takes in.
    speed: f64,
    /// Bytes out for one in.
    ratio: f64,
}

impl Squeeze {
    /// Nothing is known yet. `known`: what the other side reads. `limit`: bytes a second that are sent at most, 0 = no limit.
    #[must_use]
    pub fn new(policy: Compression, known: Vec<Codec>, limit: u64) -> Self {
        Self {
            policy,
            known,
            limit,
            link: (0.0, 0.0),
            seen: 0.0,
            gains: [None; Codec::ALL.len()],
            since_probe: 0,
            next_probe: 0,
        }
    }

    /// How the next batch travels; `None` = as it is.
    pub fn choose(&mut self) -> Option<Codec> {
        let chosen = match self.policy {
            Compression::Off => None,
            Compression::Lz4 => Some(Codec::Lz4),
            Compression::Zstd => Some(Codec::Zstd),
            Compression::Auto => self.best(),
        };
        chosen.filter(|codec| self.known.contains(codec))
    }

    fn best(&mut self) -> Option<Codec> {
        let link = self.link_rate()?;
        if link > FAST {
            return None;
        }
        let plain = 1.0 / link;
        let cost = |gain: Gain| 1.0 / gain.speed + gain.ratio / link;
        let known = Codec::ALL.into_iter().zip(self.gains);
        let best = known
            .filter_map(|(codec, gain)| Some((codec, cost(gain?))))
            .min_by(|(_, one), (_, two)| one.total_cmp(two))
            .filter(|(_, cost)| *cost < WORTH * plain);
        self.since_probe += 1;
        if self.since_probe >= PROBE || self.gains.iter().any(Option::is_none) {
            self.since_probe = 0;
            let probe = Codec::ALL[self.next_probe % Codec::ALL.len()];
            self.next_probe += 1;
            return Some(probe);
        }
        best.map(|(codec, _)| codec)
    }

    /// Bytes a second that the link takes, when that is known.
    fn link_rate(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
        let limit = (self.limit > 0).then_some(self.limit as f64);
        let measured = (self.seen >= TELLING).then(|| self.link.0 / self.link.1.max(1e-9));
        match (limit, measured) {
            (Some(limit), Some(measured)) => Some(measured.min(limit)),
            (limit, measured) => limit.or(measured),
        }
    }

    /// A batch went out: `bytes` on the link, written in `took`; `packed` when it was compressed.
    pub fn sent(&mut self, bytes: u64, took: Duration, packed: bool) {
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
        let bytes = bytes as f64;
        let took = took.as_secs_f64();
        self.seen += bytes;
        // While this side computes the link empties its buffers: a batch that went out at once says nothing then.
        if packed && bytes > 2.0 * took * self.link.0 / self.link.1.max(1e-9) {
            // But for that the link may have become better: what is believed of it grows, until it is seen again.
            self.link.1 *= 0.998;
            return;
        }
        self.link = (self.link.0 * FADE + bytes, self.link.1 * FADE + took);
    }

    /// A codec made `after` bytes of `before` in `took`.
    pub fn packed(&mut self, codec: Codec, before: usize, after: usize, took: Duration) {
        #[expect(clippy::cast_precision_loss, reason = "a batch is no longer than 4 MiB")]
        let (before, after) = (before.max(1) as f64, after as f64);
        let new = Gain { speed: before / took.as_secs_f64().max(1e-9), ratio: after / before };
        let place = Codec::ALL.iter().position(|known| *known == codec);
        let Some(gain) = place.and_then(|place| self.gains.get_mut(place)) else { return };
        *gain = Some(gain.map_or(new, |old| Gain {
            speed: 0.8 * old.speed + 0.2 * new.speed,
            ratio: 0.8 * old.ratio + 0.2 * new.ratio,
        }));
    }

    /// No limit holds any more; what was measured under one says nothing about the link.
    pub fn unlimited(&mut self) {
        if self.limit > 0 {
            (self.limit, self.link, self.seen) = (0, (0.0, 0.0), 0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// Sends `batches` of 1 MiB over a link of `rate` bytes a second with codecs of (speed, ratio), and says how many
    /// seconds it took and how many batches were compressed with each.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "sizes are small and positive"
    )]
    fn run(squeeze: &mut Squeeze, batches: usize, rate: f64, codecs: [(f64, f64); 2]) -> (f64, [usize; 2]) {
        let (mut total, mut used) = (0.0, [0; 2]);
        for _ in 0..batches {
            let mut wire = MIB as f64;
            let chosen = squeeze.choose();
            if let Some(codec) = chosen {
                let place = codec as usize - 1;
                used[place] += 1;
                let (speed, ratio) = codecs[place];
                let took = MIB as f64 / speed;
                total += took;
                squeeze.packed(codec, MIB, (MIB as f64 * ratio) as usize, Duration::from_secs_f64(took));
                wire *= ratio.min(1.0);
            }
            let took = wire / rate;
            total += took;
            squeeze.sent(wire as u64, Duration::from_secs_f64(took), chosen.is_some());
        }
        (total, used)
    }

    fn auto(limit: u64) -> Squeeze {
        Squeeze::new(Compression::Auto, Codec::ALL.to_vec(), limit)
    }

    const LZ4: (f64, f64) = (6e8, 0.5);
    const ZSTD: (f64, f64) = (3e8, 0.3);

    #[test]
    fn a_fast_link_compresses_nothing() {
        let (_, used) = run(&mut auto(0), 2000, 1.5e9, [LZ4, ZSTD]);
        assert_eq!(used, [0, 0]);
    }

    #[test]
    fn a_slow_link_takes_the_codec_that_gives_most() {
        let (took, used) = run(&mut auto(0), 1000, 5e6, [LZ4, ZSTD]);
        assert!(used[1] > 900 && used[0] < 50, "{used:?}");
        assert!(took < 0.4 * 1000.0 * MIB as f64 / 5e6, "{took}");
        // Where zstd costs more than it saves, lz4 remains.
        let (took, used) = run(&mut auto(0), 2000, 1.5e8, [LZ4, (1.2e8, 0.3)]);
        assert!(used[0] > 1800 && used[1] < 60, "{used:?}");
        assert!(took < 0.85 * 2000.0 * MIB as f64 / 1.5e8, "{took}");
    }

    #[test]
    fn what_cannot_be_compressed_is_tried_now_and_then_only() {
        let (_, used) = run(&mut auto(0), 3200, 1e8, [(6e8, 1.0), (3e8, 1.0)]);
        assert!(used[0] + used[1] <= 3200 / 64 + 4, "{used:?}");
    }

    #[test]
    fn a_limit_is_a_link_and_ends_with_it() {
        let mut squeeze = auto(10_000_000);
        let (_, used) = run(&mut squeeze, 100, 1e7, [LZ4, ZSTD]);
        assert!(used[1] > 90, "known from the first batch on: {used:?}");
        squeeze.unlimited();
        assert_eq!(run(&mut squeeze, 300, 2e9, [LZ4, ZSTD]).1, [0, 0]);
    }

    #[test]
    fn a_link_that_becomes_fast_is_noticed() {
        let mut squeeze = auto(0);
        run(&mut squeeze, 300, 1e7, [LZ4, ZSTD]);
        run(&mut squeeze, 3000, 2e9, [LZ4, ZSTD]);
        assert_eq!(run(&mut squeeze, 1000, 2e9, [LZ4, ZSTD]).1, [0, 0]);
    }

    #[test]
    fn policies_are_obeyed_as_far_as_the_other_side_reads_it() {
        for (policy, expected) in [
            (Compression::Off, None),
            (Compression::Lz4, Some(Codec::Lz4)),
            (Compression::Zstd, Some(Codec::Zstd)),
        ] {
            assert_eq!(Squeeze::new(policy, Codec::ALL.to_vec(), 1).choose(), expected);
            assert_eq!(Squeeze::new(policy, Vec::new(), 1).choose(), None);
        }
    }
}
