//! The live view of a migration: phase, round, remaining, rates, predicted pause, elapsed. Never a percentage: what
//! remains can grow.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use proto::v1::{Migration, Phase};

use crate::render::{resource, table, units};
use crate::settings::{Output, Settings};

/// How the view is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// One line, drawn again on every change (standard error is a terminal).
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
    last: String,
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
        Self::with(mode, terminal && !settings.no_color)
    }

    fn with(mode: Mode, colour: bool) -> Self {
        Self { mode, colour, start: Instant::now(), last: String::new() }
    }

    /// Shows where the migration stands.
    pub(crate) fn show(&mut self, migration: &Migration) {
        if self.mode == Mode::Silent {
            return;
        }
        let text = line(migration);
        match self.mode {
            Mode::Live => {
                let elapsed = seconds(self.start.elapsed());
                let phase = resource::phase(migration.phase());
                let shown = if self.colour { text.replacen(phase, &table::paint(phase), 1) } else { text };
                eprint!("\r\x1b[2K{shown}  {elapsed}");
                // The terminal may be gone; the migration goes on.
                drop(std::io::stderr().flush());
            }
            Mode::Lines if text != self.last => {
                println!("{text}  {}", seconds(self.start.elapsed()));
                self.last = text;
            }
            _ => {}
        }
    }

    /// Takes the live line away, for what is printed next.
    pub(crate) fn clear(&mut self) {
        if self.mode == Mode::Live {
            eprint!("\r\x1b[2K");
        }
    }
}

fn seconds(elapsed: Duration) -> String {
    units::seconds(elapsed.as_secs_f64())
}

/// Where a migration stands, in one line.
fn line(migration: &Migration) -> String {
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
    parts.join("  ")
}

#[cfg(test)]
mod tests {
    use proto::v1::Round;

    use super::*;

    #[test]
    fn a_line_tells_round_rates_and_pause() {
        let mut migration =
            Migration { name: "web-1".into(), phase: Phase::Preparing.into(), ..Migration::default() };
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
}
