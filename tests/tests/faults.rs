//! Faults on real processes: whatever fails, exactly one copy serves in the end, on the connections that its
//! clients had before, and nothing of the failed attempt is left on either node.

#![forbid(unsafe_code)]

use std::fs;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use tests::cluster::{Cluster, Finished, wait_for};
use tests::faults::RESTART;
use tests::matrix::{self, Fault};
use tests::stage::{NAME, Stage};
use tests::suite::{self, Case};
use tests::workload::{HOLDER_PROGRAM, HOSTILE_PROGRAM};
use tests::{aborts, crash};
use tests::{client, residue};

const PYTHON: &[&str] = &["python3", "ip", "tc", "nft"];

fn main() -> ExitCode {
    if let Some(code) = client::run_if_asked().or_else(residue::run_if_asked) {
        return code;
    }
    let verdict = suite::main(&[
        Case {
            name: "an_abort_at_any_boundary_leaves_the_source_as_it_was",
            programs: PYTHON,
            // The program of the fault matrix gives up at all of them.
            run: || on_stage(|stage| aborts::returns(stage, 3)),
        },
        Case {
            name: "cancelling_works_until_the_commit_and_is_refused_after",
            programs: PYTHON,
            run: || on_stage(aborts::every_cancel),
        },
        Case {
            name: "a_killed_source_agent_leaves_one_copy",
            programs: PYTHON,
            run: || on_stage(aborts::every_source_kill),
        },
        Case {
            name: "a_killed_target_agent_leaves_one_copy",
            programs: PYTHON,
            run: || on_stage(aborts::every_target_kill),
        },
        Case {
            name: "a_killed_coordinator_changes_nothing",
            programs: PYTHON,
            run: || on_stage(coordinator_killed),
        },
        Case {
            name: "what_cannot_move_is_refused_by_name_and_never_frozen",
            programs: PYTHON,
            run: refusals,
        },
        Case { name: "a_cut_link_leaves_one_copy", programs: PYTHON, run: || on_stage(cut_links) },
        Case {
            name: "a_slow_link_and_one_that_loses_packets_harm_nothing",
            programs: &["python3", "ip", "tc", "nft"],
            run: || on_stage(bad_links),
        },
        Case {
            name: "a_full_disk_at_the_target_is_the_reason",
            programs: PYTHON,
            run: || on_stage(full_disk),
        },
        Case { name: "strangers_and_rubbish_are_turned_away", programs: PYTHON, run: || on_stage(hostile) },
        Case { name: "an_agent_killed_at_any_moment_hurts_nothing", programs: PYTHON, run: random_kills },
        Case {
            name: "a_session_that_panics_ends_as_if_its_agent_was_killed",
            programs: PYTHON,
            run: || on_stage(aborts::panics),
        },
        Case {
            name: "a_process_that_is_stopped_cut_off_or_killed_anywhere_leaves_one_copy",
            programs: PYTHON,
            run: || {
                on_stage(|stage| sample(stage, &[(Fault::Kill, 60), (Fault::Stop, 110), (Fault::Cut, 110)]))
            },
        },
        Case { name: "a_disk_that_is_full_anywhere_leaves_one_copy", programs: PYTHON, run: full_disks },
        Case {
            name: "a_failing_disk_at_the_commit_point_never_leads_back",
            programs: PYTHON,
            run: || on_stage(bad_journal),
        },
    ]);
    match STAGE.lock().map(|mut stage| stage.take()) {
        Ok(Some(stage)) => match stage.passed() {
            Ok(()) => verdict,
            Err(error) => {
                eprintln!("at the end: {error:#}");
                ExitCode::FAILURE
            }
        },
        _ => verdict,
    }
}

/// The hosts and the container that the cases share: bringing them up takes longer than most faults.
static STAGE: Mutex<Option<Stage>> = Mutex::new(None);

/// Runs a case on the shared stage, then moves the container once more. A case that fails leaves a stage that is
/// looked at and removed; the next one makes another.
fn on_stage(case: impl FnOnce(&mut Stage) -> Result<()>) -> Result<()> {
    let mut shared = STAGE.lock().map_err(|_| anyhow!("a case has panicked"))?;
    let mut stage = match shared.take() {
        Some(stage) => stage,
        None => Stage::new()?,
    };
    case(&mut stage)?;
    stage.clean_move().context("the ordinary move after it")?;
    *shared = Some(stage);
    Ok(())
}

/// While the coordinator is away the agents go on; the command that follows the move finds its end.
fn coordinator_killed(stage: &mut Stage) -> Result<()> {
    let host = "coordinator";
    for (phase, point) in [
        ("PreCopy", "session-source-precopy-round"),
        ("Switchover", "session-source-switchover-captured"),
        ("Switchover", "session-source-switchover-appended"),
    ] {
        let before = stage.last();
        stage.cluster.failpoints(stage.source(), &format!("{point}=1*sleep(1000)"))?;
        let moving = stage.start_move()?;
        stage.cluster.wait_phase(NAME, &before, &[phase])?;
        let killed = stage.cluster.kill_daemon(host)?;
        let finished = moving.finish()?;
        stage.cluster.wait_restarted(host, killed)?;
        stage.ended(&finished, 0)?;
    }
    for point in [
        "drive-after-check",
        "drive-after-epoch",
        "drive-after-prepare",
        "drive-before-start",
        "drive-after-start",
    ] {
        stage.cluster.failpoints(host, &format!("{point}=kill"))?;
        let old = stage.cluster.kill_daemon(host)?;
        stage.cluster.wait_restarted(host, old)?;
        stage.cluster.wait_ready()?;
        let armed = stage.cluster.daemon(host);
        let moving = stage.start_move()?;
        let died = wait_for(&format!("the coordinator dies at {point}"), RESTART, || {
            (stage.cluster.daemon(host) != armed).then_some(())
        });
        stage.cluster.failpoints(host, "")?;
        died?;
        let finished = moving.finish()?;
        ensure!(matches!(finished.code, 0 | 4), "{point}: {finished:?}");
        stage.ended(&finished, finished.code)?;
        println!("{point}: exit code {}", finished.code);
    }
    Ok(())
}

/// An error of the sync that makes COMMITTED durable is no way back: the outcome is unknown until it has been tried
/// again with success, and then it is what was written.
fn bad_journal(stage: &mut Stage) -> Result<()> {
    for (source, target) in [
        ("journal-sync=1*return->off", ""),
        ("journal-sync=1*return->off\njournal-rewrite=2*return->off", ""),
        ("", "journal-sync=1*return->off"),
    ] {
        let before = stage.last();
        stage.cluster.failpoints(stage.source(), source)?;
        stage.cluster.failpoints(stage.target(), target)?;
        let finished = stage.start_move()?.finish()?;
        ensure!(matches!(finished.code, 0 | 8), "{source}{target}: {finished:?}");
        stage.cluster.wait_phase(NAME, &before, &["Succeeded"])?;
        stage.ended(&Finished { code: 0, ..finished }, 0).with_context(|| format!("{source}{target}"))?;
    }
    Ok(())
}

fn refusals() -> Result<()> {
    let cluster = Cluster::up()?;
    for (number, kind, what) in
        [(10, "lease", "LEASE"), (11, "netlink", "netlink socket"), (12, "uring", "io_uring")]
    {
        let bundle = cluster.dir().join("bundles").join(kind);
        let out = bundle.to_str().context("path")?;
        let command = [
            "dev",
            "bundle",
            "--out",
            out,
            "--rw",
            "/data",
            "--",
            "/usr/bin/python3",
            "/data/holder.py",
            kind,
        ];
        cluster.must(command)?;
        fs::write(bundle.join("rootfs/data/holder.py"), HOLDER_PROGRAM)?;
        cluster.start_bundle(kind, "node-a", &format!("10.77.0.1{number}/24"), &bundle)?;
        wait_for(&format!("{kind} holds it"), Duration::from_secs(10), || {
            cluster.migrate(["logs", kind]).ok().filter(|logs| logs.stdout.contains("holds"))
        })?;
        let before = frozen_microseconds(&cluster, kind)?;
        for verb in ["move", "check"] {
            let refused = cluster.migrate([verb, kind, "--to", "node-b"])?;
            ensure!(refused.code == 3, "{kind}: exit code 3 was expected of {refused:?}");
            let text = format!("{}{}", refused.stdout, refused.stderr);
            for word in ["pid 1", "fd 3", what] {
                ensure!(text.contains(word), "{kind}: {verb} does not say {word}: {refused:?}");
            }
        }
        ensure!(frozen_microseconds(&cluster, kind)? == before, "{kind} was frozen, though it cannot move");
        ensure!(cluster.node_of(kind)? == "node-a", "{kind} is not on node-a");
    }
    ensure!(cluster.residue("node-b")?.count("process python3") == 0, "something is left on node-b");
    cluster.passed();
    Ok(())
}

/// How long a container's control group has ever been frozen, as the kernel counts it.
fn frozen_microseconds(cluster: &Cluster, container: &str) -> Result<u64> {
    let script = "cat /sys/fs/cgroup/unified/*-node-a/\"$0\"/cgroup.stat.local || cat /sys/fs/cgroup/*-node-a/\"$0\"/cgroup.stat.local";
    let text = cluster.exec_ok("node-a", &["sh", "-c", script, container])?.stdout;
    text.lines()
        .find_map(|line| line.strip_prefix("frozen_usec "))
        .with_context(|| format!("no frozen_usec in {text:?}"))?
        .parse()
        .context("frozen_usec")
}

/// Takes the target's link to the LAN down when the move is in `phase`, waiting at `source` or `target`, and up
/// again after `down`.
fn cut(stage: &mut Stage, phase: &str, source: &str, target: &str, down: Duration, code: i32) -> Result<()> {
    let (began, before, node) = (Instant::now(), stage.last(), stage.target());
    stage.cluster.failpoints(stage.source(), source)?;
    stage.cluster.failpoints(node, target)?;
    let mut moving = stage.start_move()?;
    stage.cluster.wait_phase(NAME, &before, &[phase])?;
    stage.cluster.exec_ok(node, &["ip", "link", "set", "eth0", "down"])?;
    let was_down = Instant::now();
    let waited = if code == 4 {
        // It must be given back while the link is still down.
        wait_for("the source gives up", Duration::from_secs(20), || moving.has_ended().then_some(()))
            .and_then(|()| stage.clients.progress())
    } else {
        wait_for("time passes", down * 2, || (was_down.elapsed() > down).then_some(()))
            .map(|()| client::Verdict::default())
    };
    let served = was_down.elapsed();
    stage.cluster.exec_ok(node, &["ip", "link", "set", "eth0", "up"])?;
    let gap = waited.context("with the link down")?.longest_gap_ms;
    let finished = moving.finish()?;
    stage.ended(&finished, code).with_context(|| format!("cut in {phase} at {source}{target}"))?;
    println!(
        "cut in {phase} at {source}{target}: ended or went on after {:.1} s, gap {:.0} ms, settled after {:.1} s",
        served.as_secs_f64(),
        stage.gap_ms.max(gap),
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

fn cut_links(stage: &mut Stage) -> Result<()> {
    let down = Duration::from_secs(2);
    cut(stage, "PreCopy", "session-source-precopy-round=sleep(700)", "", down, 4)?;
    cut(stage, "Switchover", "session-source-switchover-captured=sleep(700)", "", down, 4)?;
    cut(stage, "Switchover", "", "session-target-switchover-restored=sleep(700)", down, 4)?;
    // On a busy machine the link may be down before the commit record is written: then the source gives up, as above.
    for _ in 0..5 {
        match cut(stage, "Switchover", "session-source-switchover-appended=sleep(700)", "", down, 0) {
            Err(error) if format!("{error:#}").contains("Finished { code: 4,") => stage.settled()?,
            other => return other,
        }
    }
    bail!("the link was always down before the commit record was written")
}

/// A link of 1 MB/s, one that becomes that slow while the container stands still, and one that loses every twentieth
/// packet: the container is moved, or it is given back with a reason.
fn bad_links(stage: &mut Stage) -> Result<()> {
    const SLOW: &[&str] = &[
        "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "8mbit", "burst", "64kb", "latency",
        "400ms",
    ];
    const FAST: &[&str] = &["tc", "qdisc", "del", "dev", "eth0", "root"];
    const LOSSY: &[&str] = &[
        "nft",
        "add table inet lossy; add chain inet lossy out { type filter hook output priority 0; }; \
        add rule inet lossy out meta l4proto tcp numgen random mod 100 < 5 drop",
    ];
    const SOUND: &[&str] = &["nft", "delete table inet lossy"];
    for (what, worse, better, point) in [
        ("slow", SLOW, FAST, ""),
        ("slow in the pause", SLOW, FAST, "session-source-switchover-frozen=sleep(500)"),
        ("lossy", LOSSY, SOUND, ""),
    ] {
        let (node, before, began) = (stage.source(), stage.last(), Instant::now());
        stage.cluster.failpoints(node, point)?;
        let moving = if point.is_empty() {
            stage.cluster.exec_ok(node, worse)?;
            stage.start_move()?
        } else {
            let moving = stage.start_move()?;
            stage.cluster.wait_phase(NAME, &before, &["Switchover"])?;
            stage.cluster.exec_ok(node, worse)?;
            moving
        };
        let finished = moving.finish();
        stage.cluster.exec_ok(node, better)?;
        let finished = finished?;
        ensure!(matches!(finished.code, 0 | 4 | 5), "{what}: {finished:?}");
        stage.ended(&finished, finished.code).with_context(|| what.to_owned())?;
        println!(
            "{what}: exit code {} after {:.1} s, gap {:.0} ms {}",
            finished.code,
            began.elapsed().as_secs_f64(),
            stage.gap_ms,
            finished.stderr.lines().next_back().unwrap_or_default()
        );
    }
    Ok(())
}

fn full_disk(stage: &mut Stage) -> Result<()> {
    for directory in ["bundles", "containers"] {
        let node = stage.target();
        let path = stage.cluster.dir().join("local/state").join(directory);
        let path = path.to_str().context("path")?.to_owned();
        // One page, one file: full.
        stage.cluster.exec_ok(node, &["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=2", "full", &path])?;
        stage.cluster.exec_ok(node, &["sh", "-c", "head -c 4096 /dev/zero > \"$0/filler\"", &path])?;
        let finished = stage.start_move()?.finish();
        stage.cluster.exec_ok(node, &["umount", &path])?;
        let finished = finished?;
        stage.ended(&finished, 4).with_context(|| format!("{directory} is full"))?;
        ensure!(
            finished.stderr.contains("No space left"),
            "{directory} is full, and that is not said: {finished:?}"
        );
    }
    Ok(())
}

fn hostile(stage: &mut Stage) -> Result<()> {
    let pki = stage.cluster.dir().join("pki");
    let text = |path: std::path::PathBuf| path.to_str().map(str::to_owned).context("path");
    let (own, other) = (text(pki.join("ca"))?, text(pki.join("other-ca"))?);
    let issue = |ca: &str, role: &str, name: &str, out: &str| -> Result<String> {
        let out = text(pki.join(out))?;
        stage.cluster.must(["pki", "issue", "--dir", ca, "--role", role, name, "--out", &out])?;
        Ok(out)
    };
    stage.cluster.must(["pki", "init", "--dir", &other])?;
    let stranger = issue(&other, "node", "node-a", "stranger")?;
    let foreign_admin = issue(&other, "admin", "admin", "foreign-admin")?;
    let third = issue(&own, "node", "node-c", "third")?;
    let viewer = text(pki.join("viewer"))?;
    let node = text(pki.join(stage.target()))?;

    let refused = stage.cluster.migrate(["get", "nodes", "--tls-dir", &foreign_admin])?;
    ensure!(refused.code == 7, "an admin of another authority: {refused:?}");
    let refused = stage.cluster.migrate(["cordon", "node-a", "--tls-dir", &viewer])?;
    ensure!(refused.code == 7, "a viewer that cordons: {refused:?}");

    let program = text(stage.cluster.dir().join("hostile.py"))?;
    fs::write(&program, HOSTILE_PROGRAM)?;
    let daemons = ["node-a", "node-b", "coordinator"].map(|host| stage.cluster.daemon(host));
    let send = |stage: &Stage, host: &str, port: &str, kind: &str, tls: &[&str]| -> Result<()> {
        let mut command = vec!["python3", &program, host, port, kind];
        command.extend(tls);
        let finished = stage.cluster.exec("client", &command)?;
        ensure!(finished.code == 0, "{kind} to {host}:{port} with {tls:?}: {finished:?}");
        Ok(())
    };
    // Half of it while a migration runs.
    stage.cluster.failpoints(stage.source(), "session-source-precopy-round=1*sleep(4000)")?;
    let before = stage.last();
    let moving = stage.start_move()?;
    stage.cluster.wait_phase(NAME, &before, &["PreCopy"])?;
    let certificates: [&[&str]; 6] = [&[], &["none"], &[&stranger], &[&third], &[&viewer], &[&node]];
    for host in ["10.77.0.11", "10.77.0.12"] {
        for tls in certificates {
            send(stage, host, "7445", "oversized", tls)?;
            send(stage, host, "7445", "garbage", tls)?;
        }
    }
    let finished = moving.finish()?;
    stage.ended(&finished, 0)?;
    for kind in [
        "nothing",
        "half",
        "oversized-state",
        "pages-first",
        "kind-zero",
        "kind-unknown",
        "wrong-version",
        "wrong-magic",
        "wrong-checksum",
        "rubbish",
    ] {
        send(stage, "10.77.0.12", "7445", kind, &[&third])?;
    }
    for (host, port) in [("10.77.0.12", "7444"), ("10.77.0.2", "7443")] {
        for tls in certificates {
            send(stage, host, port, "garbage", tls)?;
        }
        send(stage, host, port, "http2", &[&third])?;
        send(stage, host, port, "http", &[])?;
    }
    stage.settled()?;
    let now = ["node-a", "node-b", "coordinator"].map(|host| stage.cluster.daemon(host));
    ensure!(now == daemons, "a daemon died: {daemons:?} became {now:?}");
    Ok(())
}

/// Some cells of the fault matrix: of each of these faults every so-manieth. `--bin faults` runs all.
fn sample(stage: &mut Stage, faults: &[(Fault, usize)]) -> Result<()> {
    for (fault, every) in faults {
        let cells = matrix::cells(*fault).skip(every / 3).step_by(*every);
        for cell in cells {
            println!("{cell}: {:?}", matrix::run(stage, cell)?);
        }
    }
    Ok(())
}

fn full_disks() -> Result<()> {
    let mut stage = Stage::on(Cluster::up_on_disks(matrix::DISK)?)?;
    sample(&mut stage, &[(Fault::Full, 40)])?;
    stage.passed()
}

fn random_kills() -> Result<()> {
    on_stage(|stage| crash::kills(stage, 10, 1))
}
