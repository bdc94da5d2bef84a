//! The other programs that this binary is, by its first argument. They are not in the help.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;

use crate::bare;
use crate::dev;
use crate::workload;

/// Runs the program that the arguments ask for; `None` when they ask for the CLI itself.
pub(crate) fn run(args: &[OsString]) -> Option<ExitCode> {
    let name = args.get(1)?.to_str()?.strip_prefix("__")?;
    let rest = &args[1..];
    Some(match name {
        "node-agent" => node_agent::run(rest.to_vec()),
        // Roles of the node agent's runtime, which executes its own program.
        "shim" | "init" | "exec" => node_agent::run(args.to_vec()),
        "coordinator" => coordinator::run(rest.to_vec()),
        _ => match run_own(name, rest) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("migrate __{name}: {error:#}");
                ExitCode::FAILURE
            }
        },
    })
}

/// Options of a program that takes nothing else.
#[derive(Parser)]
#[command(no_binary_name = false)]
struct Only<A: clap::Args> {
    #[command(flatten)]
    options: A,
}

fn parse<A: clap::Args>(args: &[OsString]) -> Result<A> {
    Ok(Only::<A>::try_parse_from(args)?.options)
}

fn run_own(name: &str, args: &[OsString]) -> Result<ExitCode> {
    let text = |index: usize| args.get(index).and_then(|arg| arg.to_str()).context("an argument is missing");
    let done = |()| ExitCode::SUCCESS;
    match name {
        "workload" => workload::server::run(&parse(args)?).map(done),
        "client" => {
            let nothing_lost = workload::client::run(&parse(args)?)?;
            Ok(if nothing_lost { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        "bare" => bare::run(&parse(args)?).map(done),
        "bare-source" | "bare-target" => {
            let mut rest = args.to_vec();
            let dir = (rest.len() > 1).then(|| rest.remove(1)).context("an argument is missing")?;
            bare::end(name.trim_start_matches("bare-"), &parse(&rest)?, Path::new(&dir)).map(done)
        }
        "host" => dev::host::run(text(1)?, Path::new(text(2)?), Path::new(text(3)?)).map(done),
        "supervise" => dev::supervise::run().map(done),
        "forward" => dev::forward::run(text(1)?.parse()?, text(2)?.parse()?).map(done),
        "enter" => dev::enter::run(&args[1..]).map(done),
        _ => anyhow::bail!("there is no such program"),
    }
}
