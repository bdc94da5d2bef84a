//! The command line.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::runtime;

/// Runs the node agent with `args`, the program's name first.
#[must_use]
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().skip(1).collect();
    if let Some(code) = runtime::hidden_role(&args) {
        return code;
    }
    ExitCode::from(2)
}
