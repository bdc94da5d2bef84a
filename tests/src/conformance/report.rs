//! The table of what was kept, refused and lost.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Outcome, Program, Way};

/// What became of each program in each way; the text says why an attempt failed.
pub type Results = BTreeMap<(String, Way), Result<Outcome, String>>;

const HEAD: &str = "# Conformance

Written by `cargo run -p tests --bin conformance -- --out docs/conformance.md`.

Each line is a program of `tests/conformance/` that sets something up, changes it while it is copied, and checks in the end that
all of it is still so: after a checkpoint and a restore on disk in the host's namespaces (*host*) and in namespaces of its own
(*boxed*), and after live moves of a container to another node and back (*move*). Without any of it every program passes.

*kept*: as it was. *refused*: by name, with the reason and the way out, before anything was frozen; the program goes on as if nothing
had been. **lost**: neither carried nor noticed, as [limits.md](limits.md) says. A dash: it cannot be tried in this way.

";

fn mark(program: &Program, way: Way, results: &Results) -> String {
    match results.get(&(program.path(), way)) {
        None => "·".to_owned(),
        Some(Ok(outcome)) => match (program.wrong(way, outcome), outcome) {
            (Some(_), _) => "**WRONG**".to_owned(),
            (None, Outcome::Kept) => "kept".to_owned(),
            (None, Outcome::Refused(_)) => "refused".to_owned(),
            (None, Outcome::Lost(_)) => "**lost**".to_owned(),
            (None, _) => "–".to_owned(),
        },
        Some(Err(_)) => "**FAILED**".to_owned(),
    }
}

/// The document.
#[must_use]
pub fn table(programs: &[Program], results: &Results) -> String {
    let mut text = HEAD.to_owned();
    let count = |wanted: &str| {
        programs
            .iter()
            .flat_map(|program| Way::ALL.map(|way| mark(program, way, results)))
            .filter(|mark| mark == wanted)
            .count()
    };
    let (kept, refused, lost) = (count("kept"), count("refused"), count("**lost**"));
    let wrong = count("**WRONG**") + count("**FAILED**");
    let _ = writeln!(
        text,
        "{} programs: {kept} times kept, {refused} times refused, {lost} times lost, {wrong} times wrong.\n",
        programs.len()
    );
    let _ = writeln!(text, "| program | what | host | boxed | move |\n|---|---|---|---|---|");
    for program in programs {
        let _ = write!(text, "| `{}` | {} |", program.path(), program.title);
        for way in Way::ALL {
            let _ = write!(text, " {} |", mark(program, way, results));
        }
        text.push('\n');
    }
    text
}
