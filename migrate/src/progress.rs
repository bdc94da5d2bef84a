//! The live view of a migration: phase, round, remaining, rates, predicted pause, elapsed. Never a percentage: what
//! remains can grow.

use std::io::{IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use proto::v1::{Migration, Phase};

use crate::render::{resource, table, units};
use crate::settings::{Output, Settings};

/// Lines on standard error, a terminal, that are drawn again over themselves.
#[derive(Debug, Default)]
pub(crate) struct Live {
    /// Columns of each line that is on the screen; the cursor is behind the last one.
    drawn: Vec<usize>,
}

impl Live {
    /// Columns that a line may take: one that fills the last one too would wrap. No limit when the terminal tells none.
    pub(crate) fn columns() -> usize {
        match Self::size() {
            (0, _) => usize::MAX,
            (columns, _) => columns - 1,
        }
    }

    /// Columns and lines of the terminal, zeros when it does not tell.
    fn size() -> (usize, usize) {
        let size = sys::tty::window_size(std::io::stderr().as_fd());
        size.map_or((0, 0), |size| (size.columns.into(), size.rows.into()))
    }

    /// Draws lines in place of those that were drawn before; `paint` may add colours to one.
    pub(crate) fn draw(&mut self, lines: &[String], paint: impl Fn(&str) -> String) {
        let lines = fit(lines, Self::columns(), Self::size().1);
        let painted: Vec<_> = lines.iter().map(|line| paint(line)).collect();
        let text = self.erased() + &painted.join("\n");
        self.drawn = lines.iter().map(|line| line.chars().count()).collect();
        say(&text);
    }

    /// Takes them away, for what is printed next.
    pub(crate) fn clear(&mut self) {
        let text = self.erased();
        self.drawn.clear();
        say(&text);
    }

    /// What takes away what is drawn, also when the terminal has become narrower and wraps it now.
    fn erased(&self) -> String {
        let columns = Self::size().0;
        let wraps = |drawn: &usize| if columns == 0 { 1 } else { drawn.div_ceil(columns).max(1) };
        match self.drawn.iter().map(wraps).sum::<usize>() {
            0 => String::new(),
            1 => "\r\x1b[J".to_owned(),
            rows => format!("\r\x1b[{}A\x1b[J", rows - 1),
        }
    }
}

/// Writes to the terminal. It may be gone: what is shown goes on without it.
fn say(text: &str) {
    let mut stderr = std::io::stderr().lock();
    drop(stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush()));
}

/// Lines that a terminal neither wraps nor scrolls. It has so many rows, or tells none when that is 0.
fn fit(lines: &[String], columns: usize, rows: usize) -> Vec<String> {
    let shown = match rows {
        1.. if lines.len() >= rows => rows.saturating_sub(2),
        _ => lines.len(),
    };
    let mut fitting: Vec<String> =
        lines[..shown].iter().map(|line| line.chars().take(columns).collect()).collect();
    if shown < lines.len() {
        fitting.push(format!("... {} more", lines.len() - shown).chars().take(columns).collect());
    }
    fitting
}

/// Parts in as few lines as they need, each part whole.
fn lay_out(parts: &[String], columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 2 + part.chars().count() <= columns => {
                line.push_str("  ");
                line.push_str(part);
            }
            _ => lines.push(part.clone()),
        }
    }
    lines
}

/// How the view is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Drawn again in place on every change, and every second (standard error is a terminal).
    Live,
    /// One line a change.
    Lines,
    /// Nothing.
    Silent,
}

/// A view of one migration.
#[derive(Debug)]
pub(crate) struct View {
    mode: Mode,
    colour: bool,
    start: Instant,
    last: Option<Migration>,
    told: String,
    live: Live,
}

impl View {
    /// A view as the settings and the terminal have it.
    pub(crate) fn new(settings: &Settings) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let for_people = matches!(settings.output.unwrap_or_default(), Output::Table | Output::Wide);
        let mode = match (settings.quiet, terminal, for_people) {
            (true, _, _) => Mode::Silent,
            (false, true, _) => Mode::Live,
            (false, false, true) => Mode::Lines,
            (false, false, false) => Mode::Silent,
        };
        let colour = terminal && !settings.no_color;
        Self { mode, colour, start: Instant::now(), last: None, told: String::new(), live: Live::default() }
    }

    /// Shows where the migration stands.
    pub(crate) fn show(&mut self, migration: &Migration) {
        match self.mode {
            Mode::Silent => {}
            Mode::Live => {
                self.last = Some(migration.clone());
                self.again();
            }
            Mode::Lines => {
                let text = parts(migration).join("  ");
                if text != self.told {
                    println!("{text}  {}", seconds(self.start.elapsed()));
                    self.told = text;
                }
            }
        }
    }

    /// Shows it once more: time has passed.
    pub(crate) fn again(&mut self) {
        let Some(migration) = &self.last else { return };
        let mut parts = parts(migration);
        parts.push(seconds(self.start.elapsed()));
        let phase = resource::phase(migration.phase());
        let colour = self.colour;
        let paint = |line: &str| {
            if colour { line.replacen(phase, &table::paint(phase), 1) } else { line.to_owned() }
        };
        self.live.draw(&lay_out(&parts, Live::columns()), paint);
    }

    /// Takes the live lines away, for what is printed next.
    pub(crate) fn clear(&mut self) {
        self.live.clear();
    }
}

fn seconds(elapsed: Duration) -> String {
    units::seconds(elapsed.as_secs_f64())
}

/// Where a migration stands.
fn parts(migration: &Migration) -> Vec<String> {
    let mut parts = vec![format!("{} {}", migration.name, resource::phase(migration.phase()))];
    if migration.phase() == Phase::Pending && !migration.message.is_empty() {
        parts.push(format!("waits: {}", migration.message));
    }
    if let Some(round) = migration.rounds.last() {
        parts.push(format!("round {}", round.index));
        if migration.phase() == Phase::PreCopy {
            parts.push(format!("remaining {}", units::bytes(migration.remaining_bytes)));
            parts.push(format!("dirty {}", units::rate(round.dirty_bytes_per_second)));
            parts.push(format!("transfer {}", units::rate(round.transfer_bytes_per_second)));
            parts.push(format!("predicted pause {}", units::ms(round.predicted_pause_ms)));
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use proto::v1::Round;

    use super::*;

    #[test]
    fn a_line_tells_round_rates_and_pause() {
        let mut migration =
            Migration { name: "web-1".into(), phase: Phase::Preparing.into(), ..Migration::default() };
        let line = |migration: &Migration| parts(migration).join("  ");
        assert_eq!(line(&migration), "web-1 Preparing");
        migration.phase = Phase::Pending.into();
        assert_eq!(line(&migration), "web-1 Pending");
        migration.message = "2 leave node-a, its limit".into();
        assert_eq!(line(&migration), "web-1 Pending  waits: 2 leave node-a, its limit");
        migration.phase = Phase::PreCopy.into();
        migration.remaining_bytes = 12 << 20;
        migration.rounds.push(Round {
            index: 2,
            dirty_bytes_per_second: 20e6,
            transfer_bytes_per_second: 1.2e9,
            predicted_pause_ms: 4.13,
            ..Round::default()
        });
        assert_eq!(
            line(&migration),
            "web-1 PreCopy  round 2  remaining 12 MiB  dirty 20 MB/s  transfer 1200 MB/s  predicted pause 4.1 ms"
        );
        migration.phase = Phase::Succeeded.into();
        assert_eq!(line(&migration), "web-1 Succeeded  round 2");
    }

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn parts_stay_whole_where_there_is_room() {
        let parts = lines("web-1 PreCopy\nround 2\nremaining 12 MiB");
        assert_eq!(lay_out(&parts, 100), ["web-1 PreCopy  round 2  remaining 12 MiB"]);
        assert_eq!(lay_out(&parts, 22), ["web-1 PreCopy  round 2", "remaining 12 MiB"]);
        assert_eq!(lay_out(&parts, 21), ["web-1 PreCopy", "round 2", "remaining 12 MiB"]);
    }

    #[test]
    fn lines_fit_the_terminal() {
        assert_eq!(fit(&lines("abc\nde"), 2, 0), ["ab", "de"]);
        assert_eq!(fit(&lines("äöü"), 2, 5), ["äö"]);
        assert_eq!(fit(&lines("abc"), usize::MAX, 0), ["abc"]);
        assert_eq!(fit(&lines("a\nb\nc"), 80, 4), ["a", "b", "c"]);
        assert_eq!(fit(&lines("a\nb\nc\nd"), 80, 4), ["a", "b", "... 2 more"]);
        assert_eq!(fit(&lines("a\nb"), 80, 1), ["... 2 more"]);
    }
}
