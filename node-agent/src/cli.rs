//! The command line.

mod archive;
mod check;
mod checkpoint;
mod description;
mod inspect;
mod restore;
mod serve;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::runtime;

/// Exit status for a configuration that cannot be used (EX_USAGE of sysexits.h).
const BAD_CONFIG: u8 = 64;

/// Gantry's agent on a node: runs containers and moves them while they run.
#[derive(Debug, Parser)]
#[command(name = "node-agent", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the coordinator and other agents.
    Serve {
        /// Configuration file (TOML).
        #[arg(long)]
        config: PathBuf,
    },
    /// Say what this host can do, or what a process tree has that cannot move.
    Check {
        /// The tree's root.
        #[arg(long)]
        pid: Option<i32>,
        /// Form of the answer.
        #[arg(short, long, value_enum, default_value_t = Format::Text)]
        output: Format,
    },
    /// Show what is in a checkpoint.
    Inspect {
        /// Its directory.
        dir: PathBuf,
        /// Form of the answer.
        #[arg(short, long, value_enum, default_value_t = Format::Text)]
        output: Format,
    },
    /// Write a process tree to a directory.
    Checkpoint(checkpoint::Args),
    /// Let a process tree run on from a directory.
    Restore(restore::Args),
    /// Ask the agent that runs with this configuration whether it serves: exit code 0, else 1. For probes.
    Health {
        /// Configuration file of the agent.
        #[arg(long)]
        config: PathBuf,
    },
    /// Undo or finish what a dead agent left, without a coordinator.
    Recover {
        /// Configuration file of the agent.
        #[arg(long)]
        config: PathBuf,
    },
}

/// Form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Runs the node agent with `args`, the program's name first. Must be called while the process has one
/// thread: it may become a container's shim or first process.
#[must_use]
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    if let Some(code) = runtime::hidden_role(args.get(1..).unwrap_or_default()) {
        return code;
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match cli.command {
        Command::Serve { config } => serve::main(&config),
        Command::Check { pid, output } => check::main(pid, output),
        Command::Inspect { dir, output } => inspect::main(&dir, output),
        Command::Checkpoint(args) => checkpoint::main(&args),
        Command::Restore(args) => restore::main(&args),
        Command::Health { config } => serve::health(&config),
        Command::Recover { config } => serve::recover(&config),
    }
}

/// One line on standard error.
fn complain(message: &str) {
    let _ = writeln!(std::io::stderr(), "node-agent: {message}");
}

/// An answer on standard output; a reader that went away is no error.
fn answer(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
