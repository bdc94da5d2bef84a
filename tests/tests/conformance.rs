//! A program of every row of the conformance suite, in every way; all of them: `cargo run -p tests --bin conformance`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::{Result, ensure};
use tests::conformance::{self, Moves, Outcome, Program, Way};
use tests::suite::{self, Case};

/// Moved beside the first ones: nothing else here has a mount namespace below the container's.
const ALSO: [&str; 1] = ["tree/namespace_mnt_tmp"];

const CASES: &[Case] = &[
    Case {
        name: "a_program_of_every_row_passes_without_a_checkpoint",
        programs: &["python3"],
        run: || sample(Way::Null, &|program| conformance::attempt(program, Way::Null)),
    },
    Case {
        name: "a_program_of_every_row_is_kept_or_refused_on_disk",
        programs: &["python3"],
        run: || sample(Way::Host, &|program| conformance::attempt(program, Way::Host)),
    },
    Case {
        name: "a_program_of_every_row_is_kept_or_refused_on_disk_in_namespaces",
        programs: &["python3", "unshare", "ip"],
        run: || sample(Way::Boxed, &|program| conformance::attempt(program, Way::Boxed)),
    },
    Case {
        name: "a_program_of_every_row_is_kept_or_refused_in_moves",
        programs: &["python3"],
        run: || {
            let moves = Moves::new()?;
            sample(Way::Move, &|program| moves.attempt(program))?;
            moves.passed();
            Ok(())
        },
    },
];

fn main() -> ExitCode {
    if let Err(error) = conformance::apart() {
        eprintln!("conformance: {error:#}");
        // Without root the cases say so themselves.
    }
    suite::main(CASES)
}

/// The first program of each row that can be tried in this way.
fn sample(way: Way, attempt: &dyn Fn(&Program) -> Result<Outcome>) -> Result<()> {
    let all = conformance::all()?;
    let mut wrong = Vec::new();
    let mut rows: Vec<&str> = Vec::new();
    for program in &all {
        let needs: Vec<&str> = program.needs.iter().map(String::as_str).collect();
        let also = way == Way::Move && ALSO.contains(&program.path().as_str());
        if rows.contains(&program.row.as_str()) && !also
            || program.not(way).is_some()
            || suite::missing(&needs).is_some()
        {
            continue;
        }
        rows.push(&program.row);
        match attempt(program) {
            Ok(outcome) => {
                wrong.extend(program.wrong(way, &outcome).map(|why| format!("{}: {why}", program.path())))
            }
            Err(error) => wrong.push(format!("{}: {error:#}", program.path())),
        }
    }
    ensure!(rows.len() > 5, "only {rows:?} could be tried");
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
