//! Rows, as objects and as tables.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::bare::Bare;
use super::cases::{Group, NOTHING};

/// Bytes of a MiB.
pub const MIB: f64 = 1_048_576.0;
/// Bytes of a GiB.
pub const GIB: f64 = 1024.0 * MIB;

/// Median, minimum and maximum.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Spread {
    /// Of an even number of values the middle of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// That of some values; zeros when there are none.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or_default();
        let last = values.len().saturating_sub(1);
        Self { median: f64::midpoint(at(last / 2), at(values.len() / 2)), min: at(0), max: at(last) }
    }
}

/// The median alone.
#[must_use]
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    Spread::of(values).median
}

/// What clients missed.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Gaps {
    /// The longest gap of any client in the whole run.
    pub longest_ms: f64,
    /// The longest one in each move.
    pub per_move_ms: Spread,
    /// When it began, after the move was asked for: whether it is the pause.
    pub longest_after_ms: Spread,
    /// The longest one divided by the move's downtime.
    pub over_downtime: Spread,
}

/// What the agents used.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct AgentsUse {
    /// CPU seconds of both in each move, in user and kernel mode.
    pub cpu_seconds_per_move: f64,
    /// The same for each GiB that was sent.
    pub cpu_seconds_per_gib: f64,
    /// The most memory that the source's had resident in a move.
    pub source_peak_mib: Spread,
    /// The same of the target's.
    pub target_peak_mib: Spread,
}

/// Medians divided by those of copying memory alone, taken just before.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ratios {
    /// What they are divided by.
    pub bare: Bare,
    /// Total time.
    pub total_over_bare: f64,
    /// Downtime.
    pub pause_over_bare: f64,
    /// Bytes a second of the first round and of one connection that carries nobody's memory.
    pub bulk_over_raw: f64,
}

/// What was done in pre-copy, divided by what was done in as much time before.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Throughput {
    /// Replies that clients had.
    pub replies: Option<Spread>,
    /// Pages that the container wrote.
    pub writes: Option<Spread>,
}

/// A case as measured; spreads and medians are over its moves.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The case.
    pub name: String,
    /// Its group.
    pub group: Group,
    /// How much of what the group differs in.
    pub amount: u32,
    /// How often it was moved.
    pub moves: usize,
    /// From the freeze until it ran at the target.
    pub downtime_ms: Spread,
    /// What clients missed.
    pub gaps: Gaps,
    /// From the request to the end.
    pub total_seconds: Spread,
    /// Over the wire.
    pub bytes_sent: Spread,
    /// Memory of the container before the first move.
    pub resident_bytes: f64,
    /// Memory of the container as its control group counts it, before the first move and after the last one.
    pub memory_bytes: [f64; 2],
    /// Medians of one by the other.
    pub sent_over_resident: f64,
    /// Rounds, the last one in the pause not among them.
    pub rounds: Spread,
    /// Medians of the parts of the downtime.
    pub split_ms: Vec<(&'static str, f64)>,
    /// Medians of its steps.
    pub steps_ms: BTreeMap<String, f64>,
    /// What the agents used.
    pub agents: AgentsUse,
    /// How fast the first round sent.
    pub bulk_bytes_per_second: Spread,
    /// Against copying memory alone.
    pub ratios: Option<Ratios>,
    /// How much slower the program was meanwhile; `None` when pre-copy was too short to tell.
    pub throughput: Option<Throughput>,
}

/// A case without figures.
#[derive(Clone, Debug, Serialize)]
pub struct Without {
    /// The case.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Everything of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Cases with figures.
    pub rows: Vec<Row>,
    /// Cases that this machine cannot run.
    pub skipped: Vec<Without>,
    /// Cases that failed.
    pub failed: Vec<Without>,
}

impl Report {
    /// Tables to read.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        if !self.rows.is_empty() {
            out.push_str(&moves(&self.rows));
            out.push_str("\nmedians of the downtime's parts, ms\n");
            out.push_str(&split(&self.rows));
        }
        let ratios = ratios(&self.rows);
        if !ratios.is_empty() {
            out.push_str(
                "\nagainst copying memory alone, and the program's pace in pre-copy against before\n",
            );
            out.push_str(&ratios);
        }
        let beyond = beyond(&self.rows);
        if !beyond.is_empty() {
            let _ = writeln!(out, "\nbeyond {NOTHING}, ms");
            out.push_str(&beyond);
        }
        for (what, cases) in [("skipped", &self.skipped), ("FAILED", &self.failed)] {
            for case in cases {
                let _ = writeln!(out, "\n{what}: {}: {}", case.name, case.reason);
            }
        }
        out
    }
}

/// Lines up columns: the first to the left, the others to the right.
fn align(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(String::len);
        cells.chain(header.get(column).map(|title| title.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut out = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (column, (cell, width)) in cells.zip(&widths).enumerate() {
            let _ =
                if column == 0 { write!(text, "{cell:<width$}") } else { write!(text, "  {cell:>width$}") };
        }
        let _ = writeln!(out, "{}", text.trim_end());
    };
    line(&mut header.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    out
}

fn moves(rows: &[Row]) -> String {
    let header = [
        "case",
        "downtime ms",
        "min-max",
        "gap ms",
        "gap/downtime",
        "total s",
        "sent MiB",
        "sent/resident",
        "memory MiB",
        "rounds",
        "CPU s/GiB",
        "source MiB",
        "target MiB",
    ];
    let cells = |row: &Row| {
        vec![
            row.name.clone(),
            format!("{:.1}", row.downtime_ms.median),
            format!("{:.1}-{:.1}", row.downtime_ms.min, row.downtime_ms.max),
            format!("{:.1}", row.gaps.longest_ms),
            format!("{:.2}", row.gaps.over_downtime.median),
            format!("{:.2}", row.total_seconds.median),
            format!("{:.1}", row.bytes_sent.median / MIB),
            format!("{:.2}", row.sent_over_resident),
            row.memory_bytes.map(|bytes| format!("{:.0}", bytes / MIB)).join(" -> "),
            format!("{:.0}", row.rounds.median),
            format!("{:.2}", row.agents.cpu_seconds_per_gib),
            format!("{:.0}", row.agents.source_peak_mib.max),
            format!("{:.0}", row.agents.target_peak_mib.max),
        ]
    };
    align(&header, &rows.iter().map(cells).collect::<Vec<_>>())
}

/// The case, and the names of the parts.
fn parts(row: &Row) -> Vec<&'static str> {
    std::iter::once("case").chain(row.split_ms.iter().map(|(name, _)| *name)).collect()
}

fn split(rows: &[Row]) -> String {
    let cells = |row: &Row| {
        let parts = row.split_ms.iter().map(|(_, ms)| format!("{ms:.1}"));
        std::iter::once(row.name.clone()).chain(parts).collect()
    };
    let header = rows.first().map(parts).unwrap_or_default();
    align(&header, &rows.iter().map(cells).collect::<Vec<_>>())
}

fn ratios(rows: &[Row]) -> String {
    let header =
        ["case", "total/bare", "pause/bare", "bulk MB/s", "raw MB/s", "bulk/raw", "replies", "writes"];
    let ratio = |spread: Option<Spread>| spread.map_or("-".to_owned(), |of| format!("{:.2}", of.median));
    let cells = |row: &Row| {
        let ratios = row.ratios?;
        Some(vec![
            row.name.clone(),
            format!("{:.2}", ratios.total_over_bare),
            format!("{:.2}", ratios.pause_over_bare),
            format!("{:.0}", row.bulk_bytes_per_second.median / 1e6),
            format!("{:.0}", ratios.bare.raw_bytes_per_second / 1e6),
            format!("{:.2}", ratios.bulk_over_raw),
            ratio(row.throughput.and_then(|of| of.replies)),
            ratio(row.throughput.and_then(|of| of.writes)),
        ])
    };
    let rows: Vec<_> = rows.iter().filter_map(cells).collect();
    if rows.is_empty() { String::new() } else { align(&header, &rows) }
}

/// What cases with state cost beyond one without.
fn beyond(rows: &[Row]) -> String {
    let Some(nothing) = rows.iter().find(|row| row.name == NOTHING) else { return String::new() };
    let others: Vec<_> = rows.iter().filter(|row| row.group == Group::State && row.name != NOTHING).collect();
    let cells = |row: &&Row| {
        let parts = row.split_ms.iter().zip(&nothing.split_ms);
        let parts = parts.map(|((_, ms), (_, without))| format!("{:+.1}", ms - without));
        let total = format!("{:+.1}", row.downtime_ms.median - nothing.downtime_ms.median);
        [row.name.clone(), total].into_iter().chain(parts).collect()
    };
    let mut header = parts(nothing);
    header.insert(1, "downtime");
    let cells: Vec<_> = others.iter().map(cells).collect();
    if cells.is_empty() { String::new() } else { align(&header, &cells) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_extremes() {
        let spread = Spread::of([3.0, 1.0, 2.0]);
        assert_eq!((spread.median, spread.min, spread.max), (2.0, 1.0, 3.0));
        assert_eq!((median([1.0, 2.0]), median([7.0])), (1.5, 7.0));
        assert_eq!(median([]), 0.0);
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_owned(), "1000.5".to_owned()], vec!["longer".to_owned(), "2".to_owned()]];
        assert_eq!(align(&["case", "ms"], &rows), "case        ms\na       1000.5\nlonger       2\n");
    }
}
