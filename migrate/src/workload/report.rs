//! What the clients saw, as they print it at their end.

use serde::{Deserialize, Serialize};

use super::wire::Reply;

/// A time without a reply on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Gap {
    /// When it began, milliseconds since 1970.
    pub(crate) at_unix_ms: f64,
    /// How long it was, from one reply to the next.
    pub(crate) ms: f64,
}

/// One connection's record.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct ConnectionReport {
    pub(crate) index: u32,
    pub(crate) sent: u64,
    pub(crate) replies: u64,
    /// Replies that were repeated, out of order, wrong or older than one before.
    pub(crate) wrong: u64,
    pub(crate) max_gap: Option<Gap>,
    pub(crate) gaps: Vec<Gap>,
    /// Replies in each 100 ms of the run.
    #[serde(skip)]
    pub(crate) per_tick: Vec<u64>,
    /// Why the connection ended early.
    pub(crate) error: Option<String>,
    /// What the first wrong reply was.
    pub(crate) first_wrong: Option<String>,
}

/// How many pages the server had written at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Written {
    pub(crate) at_unix_ms: f64,
    pub(crate) pages: u64,
}

/// What the client prints at its end.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) connections: u32,
    pub(crate) connections_lost: u32,
    pub(crate) requests: u64,
    pub(crate) replies: u64,
    /// Requests that never had a right reply.
    pub(crate) requests_lost: u64,
    pub(crate) replies_wrong: u64,
    pub(crate) max_gap_ms: f64,
    /// Pages that the server verified at the end; `None` when it could not be asked.
    pub(crate) pages_checked: Option<u64>,
    /// How many of them were wrong.
    pub(crate) pages_wrong: Option<u64>,
    /// When the run began, milliseconds since 1970.
    pub(crate) began_unix_ms: f64,
    /// Replies of all connections in each 100 ms since then.
    pub(crate) replies_per_100ms: Vec<u64>,
    /// What the server had written, every 100 ms; empty unless it was asked.
    pub(crate) written: Vec<Written>,
    pub(crate) per_connection: Vec<ConnectionReport>,
}

impl Report {
    /// The longest silence of any connection that overlaps the given time (milliseconds since 1970).
    pub(crate) fn longest_gap_between(&self, from_ms: f64, to_ms: f64) -> f64 {
        let all = self.per_connection.iter().flat_map(|c| &c.gaps);
        all.filter(|gap| gap.at_unix_ms <= to_ms && gap.at_unix_ms + gap.ms >= from_ms)
            .map(|gap| gap.ms)
            .fold(0.0, f64::max)
    }

    /// True when every request was answered rightly on the connection it was made on.
    pub(crate) fn nothing_lost(&self) -> bool {
        self.connections_lost == 0
            && self.requests_lost == 0
            && self.replies_wrong == 0
            && self.pages_checked.is_some()
            && self.pages_wrong == Some(0)
    }
}

/// Puts the connections' records together with the answer to the check of every page.
pub(crate) fn summarise(per_connection: Vec<ConnectionReport>, check: Option<Reply>) -> Report {
    let sum = |f: fn(&ConnectionReport) -> u64| per_connection.iter().map(f).sum::<u64>();
    let requests = sum(|c| c.sent);
    let replies = sum(|c| c.replies);
    let lost = per_connection.iter().filter(|c| c.error.is_some()).count();
    let ticks = per_connection.iter().map(|c| c.per_tick.len()).max().unwrap_or(0);
    let in_tick = |tick| per_connection.iter().filter_map(|c| c.per_tick.get(tick)).sum();
    let replies_per_100ms = (0..ticks).map(in_tick).collect();
    let longest = per_connection.iter().filter_map(|c| c.max_gap).map(|g| g.ms).fold(0.0, f64::max);
    Report {
        connections: u32::try_from(per_connection.len()).unwrap_or(u32::MAX),
        connections_lost: u32::try_from(lost).unwrap_or(u32::MAX),
        requests,
        replies,
        requests_lost: requests.saturating_sub(replies),
        replies_wrong: sum(|c| c.wrong),
        max_gap_ms: longest,
        pages_checked: check.map(|reply| reply.page),
        pages_wrong: check.map(|reply| reply.version),
        replies_per_100ms,
        per_connection,
        ..Report::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_attributed_to_their_time() {
        let gaps = vec![Gap { at_unix_ms: 1000.0, ms: 50.0 }, Gap { at_unix_ms: 3000.0, ms: 7.0 }];
        let connection = ConnectionReport { gaps, ..Default::default() };
        let report = summarise(vec![connection], None);
        assert!((report.longest_gap_between(1020.0, 1500.0) - 50.0).abs() < 1e-9);
        assert!((report.longest_gap_between(2000.0, 4000.0) - 7.0).abs() < 1e-9);
        assert!(report.longest_gap_between(1051.0, 2999.0).abs() < 1e-9);
    }
}
