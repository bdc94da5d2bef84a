//! The node agent.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    node_agent::run(std::env::args_os())
}
