//! The coordinator's program. See the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    coordinator::run(std::env::args_os().collect())
}
