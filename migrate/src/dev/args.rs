//! `migrate dev ...`: the command line of the hosts.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Subcommand;

use super::plan::{DEFAULT_DIR, Layout, MAX_NODES};
use super::state::State;
use super::up::{Lifetime, up};
use super::{down, enter};
use crate::bundle;
use crate::cli::block_on;
use crate::exit::{Exit, Failure};
use crate::settings::Settings;

/// Where the hosts' files are.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Place {
    /// Directory of the hosts; several sets may stand side by side in different ones.
    #[arg(long, env = "MIGRATE_DEV_DIR", default_value = DEFAULT_DIR)]
    dir: PathBuf,
}

impl Place {
    fn layout(&self) -> Result<Layout, Failure> {
        let dir = std::path::absolute(&self.dir).map_err(|error| Failure::usage("find --dir", error))?;
        Ok(Layout::new(dir))
    }
}

/// What to do with the hosts.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make nodes, a coordinator and a client host; returns when every node is Ready.
    #[command(after_help = "Examples:
  migrate dev up
  eval \"$(migrate dev env)\"
  migrate get nodes
  migrate dev exec client -- ping -c1 10.77.0.11
  migrate dev down")]
    Up {
        /// Nodes: node-a, node-b, ...
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_NODES)))]
        nodes: u8,
        /// Bulk streams of a migration (`bulk_streams` of the agents); 0 = as many as fit the machine.
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=16))]
        bulk_streams: u32,
        #[command(flatten)]
        place: Place,
    },
    /// Remove the hosts and everything that was made for them.
    Down {
        #[command(flatten)]
        place: Place,
        /// Leave the hosts' files, the logs among them.
        #[arg(long)]
        keep_logs: bool,
    },
    /// Print the environment that makes `migrate` talk to the hosts' coordinator.
    Env {
        #[command(flatten)]
        place: Place,
    },
    /// Run a command inside a host: a node, `client` or `coordinator`.
    Exec {
        #[command(flatten)]
        place: Place,
        /// The host.
        host: String,
        /// The command.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Make an OCI bundle that runs a program installed on this machine.
    Bundle(bundle::Options),
}

/// Does what the command says.
pub(crate) fn run(command: &Command, settings: &Settings) -> Result<Exit, Failure> {
    match command {
        Command::Up { nodes, bulk_streams, place } => {
            let layout = place.layout()?;
            let running = block_on(async {
                tokio::select! {
                    outcome = up(&layout, *nodes, *bulk_streams, Lifetime::UntilDown) => outcome,
                    () = interrupted() => Err(Failure::new(Exit::Other, "bring up hosts", "interrupted")),
                }
            });
            if let Err(failure) = &running
                && failure.happened == "interrupted"
            {
                remove(&layout, false)?;
            }
            let running = running?;
            if !settings.quiet {
                let hosts = running.state.hosts.len() - 1;
                println!("{hosts} hosts are up in {}", layout.dir().display());
                println!("eval \"$(migrate dev env{})\"", place_flag(&layout));
            }
            Ok(Exit::Ok)
        }
        Command::Down { place, keep_logs } => {
            let left = remove(&place.layout()?, *keep_logs)?;
            if !settings.quiet {
                for path in left {
                    println!("left: {}", path.display());
                }
            }
            Ok(Exit::Ok)
        }
        Command::Env { place } => {
            let layout = place.layout()?;
            let state = load(&layout, "print the environment")?;
            let coordinator = state.coordinator.unwrap_or_default();
            println!("export MIGRATE_COORDINATOR={}", quote(&coordinator));
            println!("export MIGRATE_TLS_DIR={}", quote(&layout.credentials("admin").to_string_lossy()));
            println!("export MIGRATE_DEV_DIR={}", quote(&layout.dir().to_string_lossy()));
            Ok(Exit::Ok)
        }
        Command::Exec { place, host, command } => {
            let layout = place.layout()?;
            let tried = format!("run a command on {host}");
            let state = load(&layout, &tried)?;
            let Some(process) = state.host(host) else {
                let names: Vec<_> = state.hosts.iter().map(|(name, _)| name.as_str()).collect();
                return Err(Failure::usage(tried, "there is no such host")
                    .advise(format!("these are: {}", names.join(", "))));
            };
            let code =
                enter::exec(&layout, process, command).map_err(|error| Failure::local(tried, &error))?;
            // The command's own exit code, whatever it means.
            std::process::exit(code.into());
        }
        Command::Bundle(options) => {
            let made = bundle::make(options).map_err(|error| Failure::local("make a bundle", &error))?;
            if !settings.quiet {
                println!("{}", made.display());
            }
            Ok(Exit::Ok)
        }
    }
}

/// Returns at the first SIGINT, SIGTERM or SIGHUP.
pub(crate) async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let Ok(mut signals) = kinds.into_iter().map(signal).collect::<std::io::Result<Vec<_>>>() else {
        // Without handlers the signals end the program by themselves.
        return std::future::pending().await;
    };
    let [a, b, c] = &mut signals[..] else { return };
    tokio::select! {
        _ = a.recv() => {}
        _ = b.recv() => {}
        _ = c.recv() => {}
    }
}

fn remove(layout: &Layout, keep_logs: bool) -> Result<Vec<PathBuf>, Failure> {
    let tried = format!("take down the hosts in {}", layout.dir().display());
    down::down(layout, keep_logs).map_err(|error| Failure::local(tried, &error))
}

fn load(layout: &Layout, tried: &str) -> Result<State, Failure> {
    let state = State::load(layout).map_err(|error| Failure::local(tried, &error))?;
    let failure =
        Failure::new(Exit::Other, tried, format_args!("no hosts are up in {}", layout.dir().display()))
            .advise(format!("migrate dev up{}", place_flag(layout)));
    state.filter(State::lives).ok_or(failure)
}

fn place_flag(layout: &Layout) -> String {
    let dir = layout.dir().to_string_lossy();
    if dir == DEFAULT_DIR { String::new() } else { format!(" --dir {}", quote(&dir)) }
}

/// A word for a POSIX shell; plain words stay as they are.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:,@%+=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(quote("/run/gantry-dev"), "/run/gantry-dev");
        assert_eq!(quote(""), "''");
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's"), "'it'\\''s'");
    }
}
