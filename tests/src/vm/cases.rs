//! What is done in guests. Outside, [`run`] packs and boots one; inside, [`run_if_asked`] does one case after the other.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::criu;
use super::fetch::{self, Kernel, Series};
use super::guest::{Guest, Machine};
use super::image::Image;
use super::pair;
use crate::cluster::{self, Cluster};
use crate::{client, lifecycle};

/// The argument that makes a test binary do one case: it is followed by the case's name.
const ASKED: &str = "__guest";
/// Longest time for a case, at the speed of an emulated machine.
const CASE: Duration = Duration::from_secs(480);
/// Memory of a self-checking program, MiB, and the rate at which it writes, MB/s.
const WRITER: (&str, &str) = ("8", "1");
/// The same for one whose memory is looked at much more than it is written.
const READER: (&str, &str) = ("32", "0");
/// The same with much more memory: what a look at it costs by the GiB shows in the difference.
const LARGE: (&str, &str) = ("512", "0");
/// The same with huge pages, each of which has one soft-dirty bit, and a page or two written in each of them.
const HUGE: (&str, &str) = ("64", "1");
/// What Debian's python3 has and no test needs.
const UNUSED_PYTHON: &[&str] = &[
    "__pycache__",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "tkinter",
    "turtledemo",
    "pydoc_data",
    "ensurepip",
    "distutils",
    "unittest",
    "config-3.11-x86_64-linux-gnu",
    "asyncio",
    "email",
    "xml",
    "dist-packages",
];

/// Boots a kernel of that series and does the cases in it, each in a process of its own.
///
/// # Errors
/// With what the guest printed, when one fails.
pub fn run(series: Series, names: &[&str]) -> Result<()> {
    let kernel = fetch::kernel(series)?;
    let began = Instant::now();
    let work = tempfile::tempdir()?;
    let packed = work.path().join("image");
    pack(&kernel, names, &packed)?;
    let machine = Machine { memory: 2048, lan: None };
    let guest = Guest::boot(series.prefix(), &kernel, &packed, &machine)?;
    println!("{} is up after {:.1} s", kernel.release, began.elapsed().as_secs_f64());
    let limit = CASE * u32::try_from(names.len()).unwrap_or(1);
    let output = guest.finish(limit)?;
    print!("{output}");
    Ok(())
}

/// An image that does the cases in turn.
fn pack(kernel: &Kernel, names: &[&str], to: &Path) -> Result<()> {
    let mut image = Image::new(kernel)?;
    image.binary(cluster::binary()?, "usr/bin/migrate")?;
    image.binary(&std::env::current_exe()?, "usr/bin/cases")?;
    let cases: Vec<_> = lifecycle::CASES.iter().filter(|case| names.contains(&case.name)).collect();
    for program in cases.iter().flat_map(|case| case.programs) {
        if *program == "python3" {
            image.python(UNUSED_PYTHON)?;
        } else {
            image.program(program)?;
        }
    }
    if names.contains(&criu::NAME) {
        image.program(criu::PROGRAM)?;
    }
    let mut script = format!("export {}=/usr/bin/migrate\n", cluster::BINARY);
    for name in names {
        script.push_str(&format!("cases {ASKED} {name} || exit 1\n"));
    }
    image.write("run.sh", &script)?;
    image.pack(to)
}

/// Does one case when the arguments say so; also the checking client's part.
#[must_use]
pub fn run_if_asked() -> Option<ExitCode> {
    if let Some(code) = client::run_if_asked() {
        return Some(code);
    }
    let args: Vec<String> = std::env::args().collect();
    let name = args.get(2).map_or("", String::as_str);
    let began = Instant::now();
    let result = match args.get(1).map(String::as_str) {
        Some(ASKED) => case(name),
        Some(pair::ASKED) => pair::inside(name),
        _ => return None,
    };
    println!("{name}: {:.1} s", began.elapsed().as_secs_f64());
    Some(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    })
}

fn case(name: &str) -> Result<()> {
    match name {
        "host" => host(),
        "writer" => checked(WRITER),
        "reader" => checked(READER),
        "large" => checked(LARGE),
        "huge" => checked(HUGE),
        criu::NAME => criu::compare(),
        other => {
            let case = lifecycle::CASES.iter().find(|case| case.name == other);
            (case.with_context(|| format!("no case is called {other:?}"))?.run)()
        }
    }
}

/// The tracker that this kernel must give.
fn expected_tracker() -> Result<&'static str> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(if release.starts_with(Series::V6_1.prefix()) { "SoftDirty" } else { "PagemapScan" })
}

/// Everything that the agent asks of a host is here, and what is chosen by probing is what this kernel has.
fn host() -> Result<()> {
    let binary = cluster::binary()?;
    let output = Command::new(binary).args(["__node-agent", "check", "-o", "json"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let facts: Value = serde_json::from_str(&text).with_context(|| format!("{output:?}"))?;
    println!("{text}");
    ensure!(facts["ok"] == true, "the host is not fit");
    ensure!(facts["tracker"] == expected_tracker()?, "another tracker was expected");
    ensure!(facts["cgroup"]["layout"] == "v2", "cgroup v2 alone was expected");
    ensure!(
        facts["missing_capabilities"].as_array().is_some_and(Vec::is_empty),
        "all capabilities were expected"
    );
    Ok(())
}

/// A program that checks every page of its memory, and writes to it all the time, moves there and back.
fn checked((memory, rate): (&str, &str)) -> Result<()> {
    let cluster = Cluster::up()?;
    let binary = cluster::binary()?.to_str().context("a path in UTF-8")?;
    let command = [binary, "__workload", "--memory-mib", memory, "--threads", "2", "--dirty-mb-per-s", rate];
    cluster.run_container("writer", "node-a", "10.77.0.100/24", &[], &command)?;
    let address = "10.77.0.100:7000";
    // It serves as soon as its memory is filled, which takes an emulated machine its time.
    cluster.wait_for_port(address.parse()?)?;
    let clients = cluster.client_program(&[
        binary,
        "__client",
        "--connect",
        address,
        "--connections",
        "2",
        "--interval",
        "20ms",
    ])?;
    for node in ["node-b", "node-a"] {
        let migration = cluster.move_to("writer", node)?;
        ensure!(
            migration.pointer("/status/phase").and_then(Value::as_str) == Some("Succeeded"),
            "{migration}"
        );
        println!("writer -> {node}: {}", migration.pointer("/status/downtime").unwrap_or(&Value::Null));
        // Rounds tell how long they stopped the program, where tracking needs that and only there.
        let stops = stops(&migration);
        println!("stops of rounds, ms: {stops:?}");
        ensure!(stops.is_empty() == (expected_tracker()? == "PagemapScan"), "{migration}");
    }
    let finished = clients.finish()?;
    ensure!(finished.code == 0, "the clients saw: {finished:?}");
    let report = finished.json()?;
    ensure!(report["pages_wrong"] == 0 && report["replies"].as_u64() > Some(50), "{report}");
    println!("{} replies, {} pages right", report["replies"], report["pages_checked"]);
    cluster.passed();
    Ok(())
}

/// How long each round stopped the program, milliseconds, as the migration tells.
pub(super) fn stops(migration: &Value) -> Vec<f64> {
    let text = migration.to_string();
    let told = text.split("it stood still for ").skip(1);
    told.filter_map(|rest| rest.split(" ms").next()?.parse().ok()).collect()
}
