//! `migrate demo`: the project's main job on one machine, from nothing to a table, in under a minute.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use proto::v1::{
    CreateContainerRequest, CreateMigrationRequest, Migration, MigrationSpec, RunContainerRequest,
};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::api::Api;
use crate::bundle;
use crate::dev::args::interrupted;
use crate::dev::host::own_program;
use crate::dev::plan::{CLIENT, Layout};
use crate::dev::up::{self, Lifetime, Running};
use crate::dev::{down, plan, preflight};
use crate::exit::{self, Exit, Failure};
use crate::progress::View;
use crate::render::table::Table;
use crate::render::{resource, units};
use crate::settings::{Output, Settings};
use crate::verbs::container::new_request_id;
use crate::verbs::moving;
use crate::verbs::refused;
use crate::workload::client::unix_ms;
use crate::workload::report::Report;

/// The container's name, address and port.
const CONTAINER: &str = "web";
const ADDRESS: &str = "10.77.0.100";
const PORT: u16 = 7000;
/// How long the clients talk to the container before, between and after the moves.
const TRAFFIC: Duration = Duration::from_secs(1);
/// How long the workload may take to fill its memory, and the client to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Needs root. Everything it makes is removed at the end, also after Ctrl-C.
Exit code 0 says: both moves succeeded and no connection, request or page of memory was lost.")]
pub(crate) struct Options {
    /// Memory of the container, all of it checked.
    #[arg(long, default_value_t = 256)]
    memory_mib: u32,
    /// How fast it writes to its memory (10^6 bytes per second).
    #[arg(long, default_value_t = 20)]
    dirty_mb_per_s: u32,
    /// Threads that write.
    #[arg(long, default_value_t = 8)]
    threads: u32,
    /// Clients, each with one connection that must survive.
    #[arg(long, default_value_t = 16)]
    connections: u32,
    /// Leave the hosts' logs and say where they are.
    #[arg(long)]
    keep_logs: bool,
}

/// One move as measured.
#[derive(Debug)]
struct Move {
    migration: Migration,
    /// Milliseconds since 1970, on the clock that the client uses.
    from_ms: f64,
    to_ms: f64,
}

/// `migrate demo`.
pub(crate) async fn run(options: &Options, settings: &Settings) -> Result<Exit, Failure> {
    preflight::check("run the demo")?;
    let dir = std::env::temp_dir().join(format!("gantry-demo-{}", &new_request_id()[..8]));
    let layout = Layout::new(dir);
    let outcome = tokio::select! {
        outcome = measure(&layout, options, settings) => outcome,
        () = interrupted() => Err(Failure::new(Exit::Other, "finish the demo", "interrupted")),
    };
    let outcome = outcome.map_err(|failure| with_logs(failure, &layout, options.keep_logs));
    clean_up(&layout, options.keep_logs)?;
    let (moves, report) = outcome?;
    print(settings, &moves, &report);
    Ok(if report.nothing_lost() { Exit::Ok } else { Exit::Other })
}

/// Adds the last line of every log, as the files are about to go.
fn with_logs(mut failure: Failure, layout: &Layout, keep_logs: bool) -> Failure {
    if failure.happened != "interrupted" && failure.details.is_empty() {
        failure.details = up::last_words(layout);
    }
    if !keep_logs && !failure.details.is_empty() {
        failure.advice = "`migrate demo --keep-logs` leaves the whole logs".into();
    }
    failure
}

fn clean_up(layout: &Layout, keep_logs: bool) -> Result<(), Failure> {
    let clean = || -> anyhow::Result<()> {
        let left = down::down(layout, keep_logs)?;
        if keep_logs {
            println!("logs: {}", layout.host("").display());
            return Ok(());
        }
        if left.is_empty() {
            return Ok(());
        }
        std::fs::remove_dir_all(layout.dir()).with_context(|| format!("remove {}", layout.dir().display()))
    };
    clean().map_err(|error| Failure::local("remove what the demo made", &error))
}

/// Says what is being done, unless a program reads.
fn note(settings: &Settings, text: &str) {
    if !settings.quiet && !matches!(settings.output, Some(Output::Json | Output::Yaml | Output::Name)) {
        println!("{text}");
    }
}

async fn measure(
    layout: &Layout,
    options: &Options,
    settings: &Settings,
) -> Result<(Vec<Move>, Report), Failure> {
    note(settings, "hosts node-a, node-b, coordinator and client (network namespaces)");
    let running = up::up(layout, 2, 0, Lifetime::Tied).await?;
    let here = up::settings(layout, &running.state);
    let mut api = Api::connect(&here).await?;
    note(
        settings,
        &format!(
            "container {CONTAINER} on node-a: {} MiB, {} threads writing {} MB/s; {} clients",
            options.memory_mib, options.threads, options.dirty_mb_per_s, options.connections
        ),
    );
    start_container(&mut api, layout, options).await?;
    let mut client = Client::start(layout, options).await?;
    let mut moves = Vec::new();
    for (index, to) in [(1, "node-b"), (2, "node-a")] {
        client.listen(TRAFFIC).await?;
        let mut view = View::new(settings);
        let moved = move_once(&mut api, &here, index, to, &mut view).await;
        view.clear();
        moves.push(moved?);
    }
    client.listen(TRAFFIC).await?;
    let report = client.finish().await?;
    drop::<Running>(running);
    Ok((moves, report))
}

async fn start_container(api: &mut Api, layout: &Layout, options: &Options) -> Result<(), Failure> {
    let tried = "start the container";
    let program = own_program().map_err(|error| Failure::local(tried, &error))?;
    let command = [
        program.to_string_lossy().into_owned(),
        "__workload".into(),
        format!("--memory-mib={}", options.memory_mib),
        format!("--threads={}", options.threads),
        format!("--dirty-mb-per-s={}", options.dirty_mb_per_s),
        format!("--listen=0.0.0.0:{PORT}"),
    ];
    let wanted = bundle::Options {
        out: layout.dir().join("bundle"),
        rw: Vec::new(),
        userns: None,
        command: command.to_vec(),
    };
    let bundle = bundle::make(&wanted).map_err(|error| Failure::local(tried, &error))?;
    let request = CreateContainerRequest {
        request_id: new_request_id(),
        node: "node-a".into(),
        container: Some(RunContainerRequest {
            name: CONTAINER.into(),
            bundle: bundle.to_string_lossy().into_owned(),
            ip: format!("{ADDRESS}/{}", plan::PREFIX_V4),
            ..RunContainerRequest::default()
        }),
    };
    api.client.create_container(request).await.map_err(refused(tried)).map(drop)
}

async fn move_once(
    api: &mut Api,
    here: &Settings,
    index: u32,
    to: &str,
    view: &mut View,
) -> Result<Move, Failure> {
    let tried = format!("move {CONTAINER} to {to}");
    let request = CreateMigrationRequest {
        request_id: new_request_id(),
        name: format!("{CONTAINER}-{index}"),
        spec: Some(MigrationSpec {
            container: CONTAINER.into(),
            target_node: to.into(),
            ..MigrationSpec::default()
        }),
        ..CreateMigrationRequest::default()
    };
    let from_ms = unix_ms();
    let name = moving::create(api, request, &tried).await?.name;
    let migration = moving::follow(api, &name, here, view).await?;
    match exit::of_migration(&migration) {
        Some(Exit::Ok) => Ok(Move { migration, from_ms, to_ms: unix_ms() }),
        other => Err(moving::failed(&migration, &tried, other.unwrap_or(Exit::Other))),
    }
}

/// The client process on the client host. It ends when its standard input closes, and so with this program.
#[derive(Debug)]
struct Client {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Client {
    /// Starts it and waits until all its connections stand.
    async fn start(layout: &Layout, options: &Options) -> Result<Self, Failure> {
        let tried = "start the clients";
        let start = || -> anyhow::Result<Self> {
            let program = own_program()?;
            let log = std::fs::File::create(layout.host(CLIENT).join("client.log"))?;
            let mut child = Command::new(&program)
                .args(["dev", "exec", "--dir"])
                .args([layout.dir(), &PathBuf::from(CLIENT), &PathBuf::from("--"), &program])
                .arg("__client")
                .arg(format!("--connect={ADDRESS}:{PORT}"))
                .arg(format!("--connections={}", options.connections))
                .arg(format!("--connect-timeout={}s", PATIENCE.as_secs()))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(log)
                // Ctrl-C is for this program, which then ends it.
                .process_group(0)
                .kill_on_drop(true)
                .spawn()?;
            let lines = BufReader::new(child.stdout.take().context("its standard output")?).lines();
            Ok(Self { child, lines })
        };
        let mut client = start().map_err(|error| Failure::local(tried, &error))?;
        let line = client.line(PATIENCE * 2).await?;
        match serde_json::from_str::<Value>(&line) {
            Ok(event) if event["event"] == "connected" => Ok(client),
            _ => Err(Failure::new(Exit::Other, tried, format_args!("it says {line:?}"))),
        }
    }

    async fn line(&mut self, limit: Duration) -> Result<String, Failure> {
        let tried = "hear from the clients";
        match tokio::time::timeout(limit, self.lines.next_line()).await {
            Ok(Ok(Some(line))) => Ok(line),
            Ok(Ok(None)) => Err(Failure::new(Exit::Other, tried, "they ended early")),
            Ok(Err(error)) => Err(Failure::new(Exit::Other, tried, error)),
            Err(_) => {
                Err(Failure::new(Exit::Other, tried, format_args!("silence for {} s", limit.as_secs())))
            }
        }
    }

    /// Lets the clients talk for a while.
    async fn listen(&mut self, time: Duration) -> Result<(), Failure> {
        tokio::time::sleep(time).await;
        // Not `wait`, which would close its standard input and so end it.
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            _ => Err(Failure::new(Exit::Other, "keep the clients talking", "they ended early")),
        }
    }

    /// Ends the run and answers what the clients saw.
    async fn finish(mut self) -> Result<Report, Failure> {
        drop(self.child.stdin.take());
        let line = self.line(PATIENCE * 2).await?;
        serde_json::from_str(&line)
            .map_err(|error| Failure::new(Exit::Other, "read the clients' report", error))
    }
}

fn print(settings: &Settings, moves: &[Move], report: &Report) {
    let object = object(moves, report);
    match settings.output.unwrap_or_default() {
        Output::Json => println!("{object}"),
        Output::Yaml => print!("{}", crate::verbs::yaml(&object)),
        _ => print!("{}", text(moves, report)),
    }
}

fn object(moves: &[Move], report: &Report) -> Value {
    let moves: Vec<_> = moves
        .iter()
        .map(|m| {
            let downtime = m.migration.downtime.clone().unwrap_or_default();
            let mut parts = serde_json::Map::new();
            for (name, ms) in resource::downtime_parts(&downtime) {
                parts.insert(format!("{}_ms", name.replace('-', "_")), json!(ms));
            }
            json!({
                "container": CONTAINER,
                "from": m.migration.source_node,
                "to": m.migration.target_node,
                "rounds": m.migration.rounds.len(),
                "bytes": m.migration.bytes_sent,
                "total_ms": m.migration.total_seconds * 1000.0,
                "downtime_ms": downtime.total_ms,
                "client_max_gap_ms": report.longest_gap_between(m.from_ms, m.to_ms),
                "downtime": parts,
            })
        })
        .collect();
    json!({
        "ok": report.nothing_lost(),
        "connections": report.connections,
        "connections_lost": report.connections_lost,
        "requests": report.requests,
        "requests_lost": report.requests_lost,
        "replies_wrong": report.replies_wrong,
        "pages_checked": report.pages_checked,
        "pages_wrong": report.pages_wrong,
        "moves": moves,
    })
}

fn text(moves: &[Move], report: &Report) -> String {
    let mut table = Table::new(&[
        "CONTAINER",
        "FROM",
        "TO",
        "ROUNDS",
        "SENT",
        "TOTAL",
        "DOWNTIME",
        "freeze",
        "last-pages",
        "capture",
        "wire",
        "restore",
        "commit",
        "network",
        "LONGEST CLIENT GAP",
    ]);
    for m in moves {
        let downtime = m.migration.downtime.clone().unwrap_or_default();
        let mut row = vec![
            CONTAINER.into(),
            m.migration.source_node.clone(),
            m.migration.target_node.clone(),
            m.migration.rounds.len().to_string(),
            units::bytes(m.migration.bytes_sent),
            units::seconds(m.migration.total_seconds),
            units::ms(downtime.total_ms),
        ];
        row.extend(resource::downtime_parts(&downtime).map(|(_, ms)| format!("{ms:.2}")));
        row.push(units::ms(report.longest_gap_between(m.from_ms, m.to_ms)));
        table.row(row);
    }
    let mut out = format!("\n{}\n", table.render(None));
    out.push_str(&format!(
        "{} connections, {} requests: {} connections lost, {} replies lost, {} replies wrong\n",
        report.connections,
        report.requests,
        report.connections_lost,
        report.requests_lost,
        report.replies_wrong
    ));
    match (report.pages_checked, report.pages_wrong) {
        (Some(pages), Some(wrong)) => {
            out.push_str(&format!("{pages} pages of memory checked: {wrong} wrong\n"))
        }
        _ => out.push_str("the container could not be asked to check its memory\n"),
    }
    for connection in &report.per_connection {
        let what = connection.error.as_ref().or(connection.first_wrong.as_ref());
        if let Some(what) = what {
            out.push_str(&format!("connection {}: {what}\n", connection.index));
        }
    }
    out.push_str(if report.nothing_lost() { "nothing was lost\n" } else { "SOMETHING WAS LOST\n" });
    out
}

#[cfg(test)]
mod tests {
    use proto::v1::{Downtime, Round};

    use super::*;
    use crate::workload::report::{ConnectionReport, Gap};

    fn sample() -> (Vec<Move>, Report) {
        let migration = Migration {
            source_node: "node-a".into(),
            target_node: "node-b".into(),
            rounds: vec![Round::default(); 3],
            bytes_sent: 1000,
            total_seconds: 1.5,
            downtime: Some(Downtime { total_ms: 5.0, freeze_ms: 1.0, ..Downtime::default() }),
            ..Migration::default()
        };
        let gaps = vec![Gap { at_unix_ms: 150.0, ms: 7.0 }, Gap { at_unix_ms: 900.0, ms: 70.0 }];
        let report = Report {
            connections: 1,
            connections_lost: 0,
            requests: 10,
            replies: 10,
            requests_lost: 0,
            replies_wrong: 0,
            max_gap_ms: 70.0,
            pages_checked: Some(4),
            pages_wrong: Some(0),
            per_connection: vec![ConnectionReport { gaps, ..ConnectionReport::default() }],
            ..Report::default()
        };
        (vec![Move { migration, from_ms: 100.0, to_ms: 200.0 }], report)
    }

    #[test]
    fn the_object_has_the_documented_fields() {
        let (moves, report) = sample();
        let object = object(&moves, &report);
        assert_eq!(
            (&object["ok"], &object["connections_lost"], &object["requests_lost"]),
            (&json!(true), &json!(0), &json!(0))
        );
        let first = &object["moves"][0];
        assert_eq!(
            (&first["from"], &first["to"], &first["rounds"]),
            (&json!("node-a"), &json!("node-b"), &json!(3))
        );
        assert_eq!(
            (&first["bytes"], &first["total_ms"], &first["downtime_ms"]),
            (&json!(1000), &json!(1500.0), &json!(5.0))
        );
        assert_eq!(first["client_max_gap_ms"], 7.0, "only gaps during this move count");
        assert_eq!(first["downtime"]["freeze_ms"], 1.0);
        crate::render::documented::compare("Demo", &object);
        assert!(text(&moves, &report).contains("nothing was lost"));
    }

    #[test]
    fn a_wrong_page_or_an_unasked_server_is_a_loss() {
        let (moves, mut report) = sample();
        report.pages_wrong = Some(1);
        assert!(text(&moves, &report).contains("SOMETHING WAS LOST"));
        report.pages_wrong = None;
        report.pages_checked = None;
        assert_eq!(object(&moves, &report)["ok"], false);
    }
}
