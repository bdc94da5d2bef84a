//! Two guests on a LAN of their own: an agent in each, the coordinator and the client beside the first one.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::fetch::{self, Kernel, Series};
use super::guest::{Guest, Machine};
use super::image::Image;
use crate::cluster::{self, wait_for};

/// The argument that makes a test binary do the first guest's part: what is expected follows.
pub(super) const ASKED: &str = "__pair";
/// Longest time for all moves.
const LIMIT: Duration = Duration::from_secs(300);
/// Guests, numbered by their network cards.
const NODES: [&str; 2] = ["node-1", "node-2"];
/// Addresses of the container that starts on each.
const ADDRESSES: [&str; 2] = ["10.77.0.101", "10.77.0.102"];

/// What both guests do first: a bridge on the LAN, a bundle and an agent.
const NODE: &str = "\
number=$(cut -d: -f6 /sys/class/net/eth0/address); number=${number#0}
brctl addbr br0 && brctl addif br0 eth0 && ip link set eth0 up && ip link set br0 up || exit 1
ip addr add 10.77.0.1$number/24 dev br0 || exit 1
migrate dev bundle --out /bundle -- /usr/bin/migrate __workload --memory-mib 32 --threads 2 --dirty-mb-per-s 2 || exit 1
migrate __node-agent serve --config /etc/gantry/node-$number.toml >/tmp/agent.log 2>&1 &
";

/// What a kernel of the first series says to a container from the second one's, and the other way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Moves there and back.
    Moves,
    /// Refused in both directions before anything is frozen, with this text.
    Refused(&'static str),
}

impl Expected {
    /// What two kernels with different vDSOs say to each other.
    pub const OTHER_KERNEL: Self = Self::Refused("its vDSO differs");
}

/// Boots a guest of each series and moves a self-checking writer between them.
///
/// # Errors
/// With what the guests printed.
pub fn run(series: [Series; 2], expected: Expected) -> Result<()> {
    let work = tempfile::tempdir()?;
    let socket = work.path().join("lan");
    let credentials = work.path().join("credentials");
    issue(&credentials)?;
    let mut guests = Vec::new();
    for (number, series) in series.into_iter().enumerate() {
        let kernel = fetch::kernel(series)?;
        let image = work.path().join(NODES[number]);
        pack(&kernel, number, expected, &credentials, &image)?;
        let machine = Machine { memory: 1024, lan: Some((socket.clone(), number == 0)) };
        guests.push(Guest::boot(NODES[number], &kernel, &image, &machine)?);
        if number == 0 {
            wait_for("the LAN's socket", Duration::from_secs(10), || socket.exists().then_some(()))?;
        }
    }
    let second = guests.pop().context("two guests")?;
    let first = guests.pop().context("two guests")?;
    match first.finish(LIMIT) {
        Ok(output) => {
            print!("{output}");
            Ok(())
        }
        Err(error) => Err(error.context(second.told())),
    }
}

/// Certificates of everybody.
fn issue(dir: &Path) -> Result<()> {
    let authority = dir.join("ca");
    let pki = |args: &[&str]| -> Result<()> {
        let mut command = Command::new(cluster::binary()?);
        let output = command.arg("pki").args(args).arg("--dir").arg(&authority).output()?;
        ensure!(output.status.success(), "pki {args:?}: {output:?}");
        Ok(())
    };
    pki(&["init"])?;
    let peers = [("node", NODES[0]), ("node", NODES[1]), ("coordinator", "coordinator"), ("admin", "admin")];
    for (role, name) in peers {
        pki(&["issue", "--role", role, name, "--out", dir.join(name).to_str().context("a path in UTF-8")?])?;
    }
    Ok(())
}

fn pack(kernel: &Kernel, number: usize, expected: Expected, credentials: &Path, to: &Path) -> Result<()> {
    let mut image = Image::new(kernel)?;
    image.binary(cluster::binary()?, "usr/bin/migrate")?;
    image.binary(&std::env::current_exe()?, "usr/bin/cases")?;
    for name in NODES.iter().chain(&["coordinator", "admin"]) {
        for file in ["ca.crt", "tls.crt", "tls.key"] {
            let text = std::fs::read_to_string(credentials.join(name).join(file))?;
            image.write(&format!("etc/gantry/{name}/{file}"), &text)?;
        }
    }
    image.write(
        "etc/gantry/coordinator.toml",
        &config("coordinator", 1, "listen = \"0.0.0.0:7443\"\ntls_dir = \"/etc/gantry/coordinator\"\n"),
    )?;
    for (number, name) in (1..).zip(NODES) {
        let tls = format!(
            "[tls]\nca = \"/etc/gantry/{name}/ca.crt\"\ncert = \"/etc/gantry/{name}/tls.crt\"\nkey = \"/etc/gantry/{name}/tls.key\"\n"
        );
        let text = format!(
            "name = \"{name}\"\nlisten = \"10.77.0.1{number}:7444\"\npeer_listen = \"10.77.0.1{number}:7445\"\n\
             coordinator = \"10.77.0.11:7443\"\nbridge = \"br0\"\n{tls}"
        );
        image.write(&format!("etc/gantry/{name}.toml"), &config("agent", number, &text))?;
    }
    let mut script = format!("export {}=/usr/bin/migrate\n{NODE}", cluster::BINARY);
    if number == 0 {
        let argument = match expected {
            Expected::Moves => "moves",
            Expected::Refused(text) => text,
        };
        script.push_str("migrate __coordinator serve --config /etc/gantry/coordinator.toml >/tmp/coordinator.log 2>&1 &\n");
        script.push_str("export MIGRATE_COORDINATOR=10.77.0.11:7443 MIGRATE_TLS_DIR=/etc/gantry/admin\n");
        script.push_str(&format!("cases {ASKED} '{argument}' && exit 0\ntail -n 20 /tmp/*.log; exit 1\n"));
    } else {
        // It is switched off when the first one has ended.
        script.push_str("tail -f /tmp/agent.log\n");
    }
    image.write("run.sh", &script)?;
    image.pack(to)
}

fn config(name: &str, number: usize, text: &str) -> String {
    format!("state_dir = \"/var/lib/{name}-{number}\"\n{text}")
}

/// The first guest's part.
pub(super) fn inside(expected: &str) -> Result<()> {
    let migrate = |args: &[&str]| -> Result<(i32, String)> {
        let finished = cluster::run(Command::new(cluster::binary()?).args(args))?;
        Ok((finished.code, finished.stdout + &finished.stderr))
    };
    let must = |args: &[&str]| -> Result<String> {
        let (code, text) = migrate(args)?;
        ensure!(code == 0, "migrate {args:?}: {code}: {text}");
        Ok(text)
    };
    wait_for("both nodes are Ready", Duration::from_secs(60), || {
        let (_, text) = migrate(&["get", "nodes"]).ok()?;
        (text.matches("Ready").count() == 2 && !text.contains("NotReady")).then_some(())
    })?;
    for (start, address) in ADDRESSES.into_iter().enumerate() {
        let (from, to) = (NODES[start], NODES[1 - start]);
        if expected == "moves" && from == NODES[1] {
            continue;
        }
        must(&["run", from, "--node", from, "--bundle", "/bundle", "--ip", &format!("{address}/24")])?;
        let mut client = Command::new(cluster::binary()?);
        client.args([
            "__client",
            "--connect",
            &format!("{address}:7000"),
            "--connections",
            "2",
            "--interval",
            "20ms",
            "--connect-timeout",
            "60s",
        ]);
        let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut told = BufReader::new(client.stdout.take().context("its output is piped")?);
        let mut line = String::new();
        told.read_line(&mut line)?;
        ensure!(line.contains("connected"), "the client of {from} says {line:?}");
        if expected == "moves" {
            for node in [to, from] {
                must(&["move", from, "--to", node, "--max-downtime", cluster::PATIENCE])?;
            }
        } else {
            let (code, text) = migrate(&["move", from, "--to", to])?;
            ensure!(code == 3 && text.contains(expected), "{code}: {text}");
        }
        // The end of its input ends the run.
        drop(client.stdin.take());
        line.clear();
        told.read_to_string(&mut line)?;
        let status = client.wait()?;
        let report: Value = serde_json::from_str(line.lines().last().unwrap_or_default())?;
        ensure!(status.success() && report["pages_wrong"] == 0, "the clients saw {report}");
        println!(
            "{from}: {} replies, {} pages right, longest gap {} ms",
            report["replies"], report["pages_checked"], report["max_gap_ms"]
        );
        must(&["stop", "container", from])?;
        must(&["delete", "container", from])?;
    }
    Ok(())
}
