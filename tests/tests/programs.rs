//! More real programs under load, moved there and back.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use tests::{client, programs, residue, suite};

fn main() -> ExitCode {
    if let Some(code) = client::run_if_asked().or_else(residue::run_if_asked) {
        return code;
    }
    suite::main(programs::CASES)
}
