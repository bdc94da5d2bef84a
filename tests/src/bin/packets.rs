//! No packet is lost in a move: what a client with one question at a time, and one that numbers its datagrams, see, and
//! what passes the client's interface and the LAN, captured with packet(7).

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use tests::client;
use tests::cluster::Cluster;
use tests::suite::{self, Case};
use tests::workload::PACKETS_PROGRAM;

/// The shortest retransmission timeout of the kernel, milliseconds, with what a timer may be early.
const TIMEOUT_MS: f64 = 199.0;

/// What a capture saw.
#[derive(Debug, Deserialize)]
struct Seen {
    tcp: u64,
    udp: u64,
    resets: u64,
    again: Vec<Again>,
    /// Packets that the capture itself could not take.
    not_captured: u64,
}

/// A segment that was sent before.
#[derive(Debug, Deserialize)]
struct Again {
    by_client: bool,
    after_ms: f64,
}

/// What became of the numbered datagrams.
#[derive(Debug, Deserialize)]
struct Datagrams {
    sent: u64,
    lost: i64,
    twice: u64,
    backwards_here: u64,
    backwards_there: u64,
}

fn main() -> ExitCode {
    if let Some(code) = client::run_if_asked() {
        return code;
    }
    suite::main(&[Case {
        name: "every_packet_of_moves_there_and_back_arrives_once_and_in_order",
        programs: &["python3"],
        run: packets,
    }])
}

fn packets() -> Result<()> {
    let cluster = Cluster::up()?;
    let bundle = cluster.dir().join("bundles/packets");
    let out = bundle.to_str().context("the path is not UTF-8")?;
    let command = ["/usr/bin/python3", "/data/packets.py", "serve", "7000"];
    let start = ["dev", "bundle", "--out", out, "--rw", "/data", "--"];
    cluster.must(start.iter().chain(&command))?;
    let program = bundle.join("rootfs/data/packets.py");
    std::fs::write(&program, PACKETS_PROGRAM)?;
    cluster.start_bundle("packets", "node-a", "10.77.0.104/24", &bundle)?;
    cluster.wait_for_port("10.77.0.104:7000".parse()?)?;
    let program = program.to_str().context("the path is not UTF-8")?;
    let mut lan = cluster.program_on("lan", &["python3", program, "watch", "7000"])?;
    lan.progress().context("the capture of the LAN")?;
    let mut clients = cluster.program_on("client", &["python3", program, "client", "10.77.0.104", "7000"])?;
    clients.progress()?;
    let mut longest_pause: f64 = 0.0;
    for node in ["node-b", "node-a", "node-b", "node-a"] {
        let migration = cluster.move_to("packets", node)?;
        let pause = migration.pointer("/status/downtime/totalMs").and_then(Value::as_f64);
        let pause = pause.with_context(|| format!("no pause in {migration}"))?;
        let gap = clients.progress()?.longest_gap_ms;
        println!("packets -> {node}: pause {pause:.1} ms, longest gap {gap:.1} ms");
        longest_pause = longest_pause.max(pause);
    }
    let told = clients.finish()?.json()?;
    let at_client: Seen = serde_json::from_value(told.clone())?;
    let datagrams: Datagrams = serde_json::from_value(told["datagrams"].clone())?;
    let on_lan: Seen = serde_json::from_value(lan.finish()?.json()?)?;
    println!("{datagrams:?}\nclient: {at_client:?}\nLAN: {on_lan:?}");
    ensure!(told["errors"].as_array().is_some_and(Vec::is_empty), "the client saw: {told}");
    ensure!(datagrams.sent > 100, "too few datagrams to mean anything: {datagrams:?}");
    let whole = datagrams.lost == 0 && datagrams.twice == 0;
    ensure!(whole, "datagrams were lost or came twice: {datagrams:?}");
    let ordered = datagrams.backwards_here == 0 && datagrams.backwards_there == 0;
    ensure!(ordered, "datagrams overtook each other: {datagrams:?}");
    for (place, seen) in [("client", &at_client), ("LAN", &on_lan)] {
        ensure!(seen.not_captured == 0, "{place}: the capture is not whole: {seen:?}");
        ensure!(seen.tcp > 100 && seen.udp > 100, "{place}: nothing was captured: {seen:?}");
        ensure!(seen.resets == 0, "{place}: a reset: {seen:?}");
        // On a busy machine the pause may be longer than the timeout; then, and only then, a timer may fire.
        let early = |again: &&Again| longest_pause < TIMEOUT_MS || again.after_ms < TIMEOUT_MS;
        let fault = seen.again.iter().filter(|again| again.by_client).find(early);
        ensure!(fault.is_none(), "{place}: sent again: {fault:?}, longest pause {longest_pause} ms");
    }
    cluster.passed();
    Ok(())
}
