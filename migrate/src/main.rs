//! `migrate`: the admin CLI, and the hosts to try Gantry on.
//!
//! One binary. Called with a first argument that begins with `__` it runs as another program of the project
//! ([`hidden`]), which is how `demo` and `dev` start agents, a coordinator and supervised hosts.

#![forbid(unsafe_code)]

mod api;
mod bare;
mod bundle;
mod cli;
mod demo;
mod dev;
mod exit;
mod hidden;
mod manifest;
mod pki;
mod progress;
mod render;
mod settings;
mod verbs;
mod workload;

use std::process::ExitCode;

use clap::Parser as _;

use crate::exit::{Exit, Failure};

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    if let Some(code) = hidden::run(&args) {
        return code;
    }
    let cli = match cli::Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => {
            let asked_for = !error.use_stderr();
            // A closed pipe is no reason to fail while failing.
            drop(error.print());
            return if asked_for { Exit::Ok } else { Exit::Usage }.into();
        }
    };
    match cli::dispatch(cli) {
        Ok(exit) => exit.into(),
        Err(failure) => report(&failure),
    }
}

fn report(failure: &Failure) -> ExitCode {
    eprintln!("{failure}");
    failure.exit.into()
}
