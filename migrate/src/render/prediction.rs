//! What a migration would cost, and what it did cost beside that.

use proto::v1::{CheckMoveResponse, Migration, Prediction};
use serde_json::{Value, json};

use super::resource::{prune, rounded};
use super::table::Table;
use super::units;

/// A prediction, with the names of the resources.
pub(crate) fn value(p: &Prediction) -> Value {
    prune(json!({
        "rounds": p.rounds, "bytes": p.bytes, "totalSeconds": rounded(p.total_seconds),
        "pauseMs": rounded(p.pause_ms), "converges": p.converges, "reason": p.reason,
        "throttlePercent": p.throttle_percent, "dirtyBytesPerSecond": p.dirty_bytes_per_second.round(),
        "workingSetBytes": p.working_set_bytes, "memoryBytes": p.memory_bytes,
        "transferBytesPerSecond": p.transfer_bytes_per_second.round(),
        "time": p.time.as_ref().and_then(units::rfc3339),
    }))
}

/// The predictions of a check: what the container does, and a line for each node.
pub(crate) fn table(answer: &CheckMoveResponse) -> String {
    let Some(first) = answer.candidates.iter().find_map(|candidate| candidate.prediction.as_ref()) else {
        return String::new();
    };
    let mut out = format!(
        "\nwrites {} to {} of {}; files are not foreseen\n",
        units::rate(first.dirty_bytes_per_second),
        units::bytes(first.working_set_bytes),
        units::bytes(first.memory_bytes)
    );
    let mut table = Table::new(&["NODE", "LINK", "ROUNDS", "SENT", "TOTAL", "PAUSE", "WHY"]);
    for candidate in &answer.candidates {
        let Some(p) = &candidate.prediction else { continue };
        let pause = if p.converges { format!("about {}", units::ms(p.pause_ms)) } else { "gives up".into() };
        table.row(vec![
            candidate.node.clone(),
            units::rate(p.transfer_bytes_per_second),
            p.rounds.to_string(),
            units::bytes(p.bytes),
            units::seconds(p.total_seconds),
            pause,
            p.reason.clone(),
        ]);
    }
    out.push_str(&table.render(None));
    out
}

/// What was foreseen of a migration beside what came of it; empty when nothing was.
pub(crate) fn beside(m: &Migration) -> String {
    let Some(p) = &m.predicted else { return String::new() };
    let mut table = Table::new(&["", "PREDICTED", "ACTUAL"]);
    let pause = m.downtime.as_ref().map(|downtime| units::ms(downtime.total_ms)).unwrap_or_default();
    let rows = [
        ("rounds", p.rounds.to_string(), m.rounds.len().to_string()),
        ("sent", units::bytes(p.bytes), units::bytes(m.bytes_sent)),
        ("total", units::seconds(p.total_seconds), units::seconds(m.total_seconds)),
        ("pause", if p.converges { units::ms(p.pause_ms) } else { "gives up".into() }, pause),
    ];
    for (what, foreseen, actual) in rows {
        table.row(vec![what.into(), foreseen, actual]);
    }
    table.render(None)
}
