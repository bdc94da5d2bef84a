//! The command line.

use std::path::PathBuf;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::demo;
use crate::dev;
use crate::exit::{Exit, Failure};
use crate::pki;
use crate::settings::{Output, Settings};
use crate::verbs;

/// Moves running containers between hosts.
#[derive(Debug, Parser)]
#[command(
    name = "migrate",
    version,
    about,
    disable_help_subcommand = true,
    after_help = "Examples:
  migrate demo                                  two hosts on this machine, a container moved there and back
  migrate dev up && eval \"$(migrate dev env)\"   the same hosts, kept running
  migrate run web --node node-a --bundle /srv/web --ip 10.77.0.100/24
  migrate check web --to node-b
  migrate move web --to node-b --max-downtime 20ms
  migrate get migrations -o wide
  migrate drain node-a --dry-run
  migrate apply -f policies.yaml

Exit codes:
  0 ok  1 other  2 usage  3 refused by a check  4 failed, runs at the source (drain: some stay)  5 did not converge, runs at the
  source  6 cancelled  7 coordinator unreachable or not allowed  8 outcome unknown"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Global {
    /// The coordinator: [https://]HOST:PORT.
    #[arg(long, global = true, env = "MIGRATE_COORDINATOR", value_name = "URL")]
    coordinator: Option<String>,
    /// Directory with ca.crt, tls.crt and tls.key.
    #[arg(long, global = true, env = "MIGRATE_TLS_DIR", value_name = "DIR")]
    tls_dir: Option<PathBuf>,
    /// Form of what is printed.
    #[arg(short, long, global = true, env = "MIGRATE_OUTPUT", value_enum)]
    output: Option<Output>,
    /// Print results only.
    #[arg(short, long, global = true)]
    quiet: bool,
    /// No colours.
    #[arg(long, global = true)]
    no_color: bool,
    /// Configuration file [default: ~/.config/gantry/migrate.toml, then /etc/gantry/migrate.toml].
    #[arg(long, global = true, env = "MIGRATE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Global {
    /// The settings that hold: flags and environment over the configuration file.
    pub(crate) fn settings(self) -> Result<Settings, Failure> {
        let file = Settings::load(self.config.as_deref())?;
        let flag = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        Ok(Settings {
            coordinator: self.coordinator.or(file.coordinator),
            tls_dir: self.tls_dir.or(file.tls_dir),
            output: self.output.or(file.output),
            quiet: self.quiet || file.quiet || flag("MIGRATE_QUIET"),
            no_color: self.no_color || file.no_color || flag("MIGRATE_NO_COLOR") || flag("NO_COLOR"),
        })
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Move a container between two hosts made on this machine, and print what it cost.
    Demo(demo::Options),
    /// Hosts on this machine to try things on.
    #[command(subcommand)]
    Dev(dev::args::Command),
    /// List or watch nodes, containers, migrations, policies or evacuations.
    Get(verbs::get::Options),
    /// Everything about one of them.
    Describe(verbs::get::DescribeOptions),
    /// Start a container from an OCI bundle.
    Run(verbs::container::RunOptions),
    /// Stop a container: SIGTERM, then SIGKILL.
    Stop(verbs::container::StopOptions),
    /// Make objects what a file says: migrations, policies, evacuations.
    Apply(verbs::manifest::ApplyOptions),
    /// Forget a stopped container and what its node made for it, or delete a policy.
    Delete(verbs::container::DeleteOptions),
    /// What a container printed.
    Logs(verbs::stream::LogsOptions),
    /// Run a command in a container.
    Exec(verbs::stream::ExecOptions),
    /// Whether a container can move, and where; changes nothing.
    Check(verbs::check::Options),
    /// Move a running container to another node.
    Move(verbs::moving::Options),
    /// Move every container away from a node, and cordon it.
    Drain(verbs::evacuation::DrainOptions),
    /// Begin nothing more; what runs goes on.
    Pause(verbs::evacuation::PauseOptions),
    /// Go on with what was paused.
    Resume(verbs::evacuation::PauseOptions),
    /// Cancel a migration or an evacuation; containers stay where they are.
    Cancel(verbs::migration::CancelOptions),
    /// Wait for a condition.
    Wait(verbs::wait::Options),
    /// Decide who owns a container when nobody reachable can tell.
    Resolve(verbs::migration::ResolveOptions),
    /// Take a node out of placement.
    Cordon(verbs::migration::CordonOptions),
    /// Put a node back into placement.
    Uncordon(verbs::migration::UncordonOptions),
    /// Certificates.
    #[command(subcommand)]
    Pki(pki::Command),
    /// Completions for a shell.
    Completion {
        /// The shell.
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// Does what the command line says.
pub(crate) fn dispatch(cli: Cli) -> Result<Exit, Failure> {
    let settings = cli.global.settings()?;
    match cli.command {
        // These change namespaces or start processes: they run before there is a second thread.
        Command::Dev(command) => dev::args::run(&command, &settings),
        Command::Pki(command) => pki::run(&command),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "migrate", &mut std::io::stdout());
            Ok(Exit::Ok)
        }
        Command::Demo(options) => block_on(demo::run(&options, &settings)),
        Command::Get(options) => block_on(verbs::get::run(options, &settings)),
        Command::Describe(options) => block_on(verbs::get::describe(options, &settings)),
        Command::Run(options) => block_on(verbs::container::run(options, &settings)),
        Command::Stop(options) => block_on(verbs::container::stop(options, &settings)),
        Command::Apply(options) => block_on(verbs::manifest::apply(options, &settings)),
        Command::Drain(options) => block_on(verbs::evacuation::drain(options, &settings)),
        Command::Pause(options) => block_on(verbs::evacuation::pause(options, true, &settings)),
        Command::Resume(options) => block_on(verbs::evacuation::pause(options, false, &settings)),
        Command::Delete(options) => block_on(verbs::container::delete(options, &settings)),
        Command::Logs(options) => block_on(verbs::stream::logs(options, &settings)),
        Command::Exec(options) => block_on(verbs::stream::exec(options, &settings)),
        Command::Check(options) => block_on(verbs::check::run(options, &settings)),
        Command::Move(options) => block_on(verbs::moving::run(options, &settings)),
        Command::Cancel(options) => block_on(verbs::migration::cancel(options, &settings)),
        Command::Wait(options) => block_on(verbs::wait::run(options, &settings)),
        Command::Resolve(options) => block_on(verbs::migration::resolve(options, &settings)),
        Command::Cordon(options) => block_on(verbs::migration::cordon(options, &settings)),
        Command::Uncordon(options) => block_on(verbs::migration::uncordon(options, &settings)),
    }
}

/// Runs a future to its end.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Other, "start", error))?;
    let outcome = runtime.block_on(future);
    // A thread that waits for standard input must not hold the program up.
    runtime.shutdown_background();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn documented_commands_parse() {
        for line in [
            "migrate demo -o json",
            "migrate get nodes",
            "migrate get containers web -o json",
            "migrate get migrations -w -l team=shop",
            "migrate describe migration web-1",
            "migrate dev up --nodes 2 --dir /run/x",
            "migrate dev down",
            "migrate dev env",
            "migrate dev exec client -- ls -l",
            "migrate dev exec --dir /run/x client -- ls -l",
            "migrate dev bundle --out /tmp/redis --rw /data -- /usr/bin/redis-server --bind 0.0.0.0",
            "migrate run web --node node-a --bundle /srv/web --ip 10.77.0.100/24 --mac 02:00:00:00:00:09 --label a=b",
            "migrate stop container web",
            "migrate delete container web",
            "migrate logs web -f",
            "migrate exec web -- ls -l",
            "migrate check web --to node-b",
            "migrate move web --to node-b --max-downtime 50ms --timeout 5m --dry-run",
            "migrate move web --to node-b --detach --request-id 1 -o json",
            "migrate move web --to node-b --bandwidth 50MB --throttle 80 --compression lz4",
            "migrate cancel web-1",
            "migrate move web --to node-b --policy gentle",
            "migrate cancel evacuation/drain-node-a-1 --now",
            "migrate cancel migration/web-1",
            "migrate cordon node-a",
            "migrate uncordon node-a --move-back",
            "migrate drain node-a --dry-run",
            "migrate drain node-a --deadline 10m --max-parallel 4 --policy gentle --move-back --detach",
            "migrate pause evacuation drain-node-a-1",
            "migrate resume evacuation drain-node-a-1",
            "migrate apply -f all.yaml --dry-run",
            "migrate apply -f -",
            "migrate delete -f all.yaml",
            "migrate delete policy gentle",
            "migrate get policies -o yaml",
            "migrate get evacuations drain-node-a-1 -w",
            "migrate describe evacuation drain-node-a-1",
            "migrate wait evacuation/drain-node-a-1 --for=condition=Succeeded",
            "migrate wait policy/gentle --for=condition=Ready",
            "migrate uncordon node-a",
            "migrate resolve web-1 --owner target --i-have-fenced node-a --accept-rollback",
            "migrate wait migration/web-1 --for=condition=Succeeded --timeout 2m",
            "migrate pki init --dir /etc/gantry/ca",
            "migrate pki issue --dir /etc/gantry/ca --role node node-a --out /tmp/x",
            "migrate completion bash",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn wrong_use_is_told_from_help() {
        assert!(parse("migrate move").unwrap_err().use_stderr());
        assert!(parse("migrate move web --to b --node-selector rack=r1").unwrap_err().use_stderr());
        assert!(parse("migrate get pods").unwrap_err().use_stderr());
        assert!(parse("migrate resolve web-1 --owner target").unwrap_err().use_stderr());
        assert!(parse("migrate move web --to b --max-downtime soon").unwrap_err().use_stderr());
        assert!(parse("migrate move web --to b --throttle 100").unwrap_err().use_stderr());
        assert!(parse("migrate move web --to b --bandwidth fast").unwrap_err().use_stderr());
        assert!(parse("migrate drain node-a --max-parallel 0").unwrap_err().use_stderr());
        assert!(parse("migrate delete").unwrap_err().use_stderr());
        assert!(parse("migrate delete policy gentle -f x.yaml").unwrap_err().use_stderr());
        assert!(parse("migrate delete policy").unwrap_err().use_stderr());
        assert!(!parse("migrate --help").unwrap_err().use_stderr());
        let help = Cli::command().render_long_help().to_string();
        assert!(!help.contains("__"), "hidden programs are not in the help");
    }
}
