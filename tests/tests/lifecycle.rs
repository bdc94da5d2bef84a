//! Real programs under load, moved there and back: every client checks every answer and never reconnects.

#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests::client;
use tests::cluster::{Cluster, wait_for};
use tests::suite::{self, Case};
use tests::workload::{FILES_PROGRAM, PYTHON_PROGRAM, http};

fn main() -> ExitCode {
    if let Some(code) = client::run_if_asked() {
        return code;
    }
    suite::main(&[
        Case {
            name: "redis_with_512_mib_under_load_moves_three_times",
            programs: &["redis-server"],
            run: redis,
        },
        Case {
            name: "nginx_with_keep_alive_downloads_moves_there_and_back",
            programs: &["nginx"],
            run: nginx,
        },
        Case {
            name: "python_with_threads_timers_pipes_moves_there_and_back",
            programs: &["python3"],
            run: python,
        },
        Case {
            name: "userns_python_keeps_its_ids_and_moves_there_and_back",
            programs: &["python3", "setpriv", "renice", "ionice"],
            run: user_namespace,
        },
        Case {
            name: "files_that_change_all_the_time_move_there_and_back",
            programs: &["python3"],
            run: files,
        },
    ])
}

/// Moves `name` to each node in turn and expects it to serve there.
fn moves(cluster: &Cluster, name: &str, nodes: &[&str]) -> Result<()> {
    for node in nodes {
        let migration = cluster.move_to(name, node)?;
        let phase = migration.pointer("/status/phase").and_then(Value::as_str);
        ensure!(phase == Some("Succeeded"), "the move ended as {migration}");
        ensure!(cluster.node_of(name)? == *node, "{name} is not on {node}");
        println!("{name} -> {node}: {}", migration.pointer("/status/downtime").unwrap_or(&Value::Null));
    }
    Ok(())
}

fn redis() -> Result<()> {
    let cluster = Cluster::up()?;
    let address: SocketAddr = "10.77.0.100:6379".parse()?;
    let keys = 131_072.to_string();
    cluster.run_container(
        "redis",
        "node-a",
        "10.77.0.100/24",
        &["/data"],
        &[
            "/usr/bin/redis-server",
            "--bind",
            "0.0.0.0",
            "--protected-mode",
            "no",
            "--save",
            "",
            "--dir",
            "/data",
        ],
    )?;
    cluster.wait_for_port(address)?;
    let at = address.to_string();
    cluster.client_once(&["redis-fill", &at, &keys])?;
    let clients = cluster.client(&["redis", &at, &keys, "8"])?;
    moves(&cluster, "redis", &["node-b", "node-a", "node-b"])?;
    let verdict = clients.verdict()?;
    ensure!(verdict.replies > 1000, "too few replies to mean anything: {verdict:?}");
    cluster.client_once(&["redis-verify", &at, &keys])?;
    println!("redis: {verdict:?}");
    cluster.passed();
    Ok(())
}

fn nginx() -> Result<()> {
    let cluster = Cluster::up()?;
    let address: SocketAddr = "10.77.0.101:8080".parse()?;
    let content: Vec<u8> =
        (0..4_000_000_u32).flat_map(|n| (n.wrapping_mul(2_654_435_761)).to_le_bytes()).collect();
    let sha256 = http::hash(&content);
    let configuration = "worker_processes 4; daemon off; error_log stderr; pid /data/nginx.pid;\n\
        events { worker_connections 64; }\n\
        http { access_log off; client_body_temp_path /data/b; proxy_temp_path /data/p; fastcgi_temp_path /data/f;\n\
        uwsgi_temp_path /data/u; scgi_temp_path /data/s; keepalive_requests 1000000;\n\
        server { listen 8080; root /data; } }\n";
    let bundle = cluster.dir().join("bundles/nginx");
    let out = bundle.to_str().unwrap_or_default();
    let command = ["/usr/sbin/nginx", "-c", "/data/nginx.conf", "-e", "stderr", "-g", "user root;"];
    let mut args = vec!["dev", "bundle", "--out", out, "--rw", "/data", "--"];
    args.extend(command);
    cluster.must(args)?;
    std::fs::write(bundle.join("rootfs/data/nginx.conf"), configuration)?;
    std::fs::write(bundle.join("rootfs/data/file"), &content)?;
    cluster.start_bundle("nginx", "node-a", "10.77.0.101/24", &bundle)?;
    cluster.wait_for_port(address)?;
    let clients = cluster.client(&["http", &address.to_string(), "/file", &sha256, "4"])?;
    moves(&cluster, "nginx", &["node-b", "node-a"])?;
    let verdict = clients.verdict()?;
    ensure!(verdict.replies > 4, "too few downloads to mean anything: {verdict:?}");
    println!("nginx: {verdict:?}");
    cluster.passed();
    Ok(())
}

fn python() -> Result<()> {
    let cluster = Cluster::up()?;
    let address: SocketAddr = "10.77.0.102:7000".parse()?;
    let bundle = cluster.dir().join("bundles/python");
    let out = bundle.to_str().unwrap_or_default();
    cluster.must([
        "dev",
        "bundle",
        "--out",
        out,
        "--rw",
        "/data",
        "--",
        "/usr/bin/python3",
        "/data/program.py",
    ])?;
    std::fs::write(bundle.join("rootfs/data/program.py"), PYTHON_PROGRAM)?;
    cluster.start_bundle("python", "node-a", "10.77.0.102/24", &bundle)?;
    cluster.wait_for_port(address)?;
    let clients = cluster.client(&["lines", &address.to_string(), "3"])?;
    moves(&cluster, "python", &["node-b", "node-a", "node-b"])?;
    wait_for("the log is still there", Duration::from_secs(5), || {
        let logs = cluster.migrate(["logs", "python"]).ok()?;
        (logs.code == 0 && logs.stdout.contains("ready")).then_some(())
    })?;
    let verdict = clients.verdict()?;
    ensure!(verdict.replies > 100, "too few replies to mean anything: {verdict:?}");
    println!("python: {verdict:?}");
    cluster.passed();
    Ok(())
}

/// What commands inside see of the container's users: ids and capabilities of its first process and of one with other
/// ids, the mapping, owners on the root and on a tmpfs of files, a directory, a fifo and a socket, of an open pipe, and
/// who may open a file again; priorities that only the host can give; whose a process is that hides itself.
const USERS: &str = "for p in 1 $(cat /data/pid); do
        grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs)' /proc/$p/status; readlink /proc/$p/cwd; done
    cut -d' ' -f19 /proc/$p/stat; ionice -p $p; stat -c '%u:%g' /proc/$(cat /data/hidden)/status
    tr -s ' ' < /proc/1/uid_map; tr -s ' ' < /proc/1/gid_map; cat /proc/1/setgroups
    stat -c '%n %F %u:%g %a' /data/file /tmp/file /tmp/dir /tmp/dir/fifo /tmp/link /dev/null
    cat /data/file /tmp/file; stat -L -c '%u:%g' /proc/$(cat /data/pid)/fd/0; echo x >> /proc/1/fd/1; echo end";

/// The process that this user of the machine has.
fn host_pid_of_user(uid: u32) -> Option<String> {
    let line = format!("\nUid:\t{uid}\t");
    let pids =
        std::fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    pids.filter(|name| name.parse::<u32>().is_ok()).find(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| status.contains(&line))
    })
}

fn user_namespace() -> Result<()> {
    let cluster = Cluster::up()?;
    let address: SocketAddr = "10.77.0.103:7000".parse()?;
    let bundle = cluster.dir().join("bundles/users");
    let out = bundle.to_str().unwrap_or_default();
    let start = "umask 022; echo one > /data/file; chown 1000:1001 /data/file; mkdir -m 2750 /tmp/dir; \
        mkfifo -m 640 /tmp/dir/fifo; chown -R 33:34 /tmp/dir; echo two > /tmp/file; chown -h 44 /tmp/file; \
        ln -s file /tmp/link; chown -h 55:56 /tmp/link; \
        sleep 100000 | setpriv --reuid 33 --regid 34 --groups 44,45 sleep 100000 & echo $! > /data/pid; \
        /usr/bin/python3 -c \"import ctypes, os, signal; ctypes.CDLL(None).prctl(4, 0); \
        open('/data/hidden', 'w').write(str(os.getpid())); signal.pause()\" & \
        exec /usr/bin/python3 /data/program.py";
    let command = ["/bin/sh", "-c", start];
    cluster.must(
        ["dev", "bundle", "--out", out, "--rw", "/data", "--userns", "300000", "--"].iter().chain(&command),
    )?;
    std::fs::write(bundle.join("rootfs/data/program.py"), PYTHON_PROGRAM)?;
    cluster.start_bundle("users", "node-a", "10.77.0.103/24", &bundle)?;
    cluster.wait_for_port(address)?;
    let ask = || -> Result<String> {
        let seen = cluster.must(["exec", "users", "--", "/bin/sh", "-c", USERS])?.stdout;
        ensure!(seen.ends_with("end\n"), "{seen}");
        Ok(seen)
    };
    wait_for("the process that hides itself", Duration::from_secs(20), || {
        std::fs::read_to_string(bundle.join("rootfs/data/hidden")).ok().filter(|pid| !pid.is_empty())
    })?;
    let sleeper = wait_for("the sleeper", Duration::from_secs(20), || host_pid_of_user(300_033))?;
    for command in [["renice", "-n", "-5", "-p"].as_slice(), &["ionice", "-c", "1", "-n", "3", "-p"]] {
        let done = std::process::Command::new(command[0]).args(&command[1..]).arg(&sleeper).output()?;
        ensure!(done.status.success(), "{command:?}: {done:?}");
    }
    let before = ask()?;
    ensure!(before.contains("\n-5\nrealtime: prio 3\n0:0\n"), "{before}");
    for line in ["Uid:\t33\t33\t33\t33", "Groups:\t44 45", " 0 300000 65536", "/tmp/dir/fifo fifo 33:34 640"]
    {
        ensure!(before.contains(line), "{line:?} is missing in:\n{before}");
    }
    let clients = cluster.client(&["lines", &address.to_string(), "3"])?;
    for node in ["node-b", "node-a", "node-b"] {
        moves(&cluster, "users", &[node])?;
        let after = ask()?;
        ensure!(after == before, "on {node}:\n{after}\ninstead of:\n{before}");
    }
    // Still root in there: new users, new files, and not more than that.
    let ask = "touch /data/new /tmp/new && stat -c %u /data/new /tmp/new; chown 0 /usr 2>&1; echo $?";
    let seen = cluster.must(["exec", "users", "--", "/bin/sh", "-c", ask])?.stdout;
    ensure!(seen.starts_with("0\n0\n") && seen.ends_with("\n1\n"), "{seen}");
    let verdict = clients.verdict()?;
    ensure!(verdict.replies > 100, "too few replies to mean anything: {verdict:?}");
    println!("users: {verdict:?}");
    cluster.passed();
    Ok(())
}

/// A program that writes to its root directory, a copied volume, a shared one and a tmpfs without a pause, and
/// compares everything with what it knows.
fn files() -> Result<()> {
    let cluster = Cluster::up()?;
    let address: SocketAddr = "10.77.0.103:7000".parse()?;
    let bundle = cluster.dir().join("bundles/files");
    let out = bundle.to_str().unwrap_or_default();
    let program = ["/usr/bin/python3", "/program.py", "/data", "/volume", "/shared", "/tmp"];
    let mut args = vec!["dev", "bundle", "--out", out, "--rw", "/data", "--"];
    args.extend(program);
    cluster.must(args)?;
    std::fs::write(bundle.join("rootfs/program.py"), FILES_PROGRAM)?;
    let (volume, shared) = (cluster.dir().join("volume"), cluster.dir().join("shared"));
    std::fs::create_dir_all(&volume)?;
    std::fs::create_dir_all(&shared)?;
    std::fs::write(shared.join(".gantry-shared"), "the same on both nodes")?;
    let path = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    for (name, source, mode) in [("/volume", &volume, "sync"), ("/shared", &shared, "shared")] {
        let mount = json!({"destination": name, "type": "bind", "source": source, "options": ["bind", "rw"]});
        let mounts = config.pointer_mut("/mounts").and_then(Value::as_array_mut);
        mounts.ok_or_else(|| anyhow::anyhow!("the bundle has no mounts"))?.push(mount);
        config["annotations"][format!("dev.gantry.mount.{name}")] = json!(mode);
    }
    std::fs::write(&path, config.to_string())?;
    cluster.start_bundle("files", "node-a", "10.77.0.103/24", &bundle)?;
    cluster.wait_for_port(address)?;
    let clients = cluster.client(&["lines", &address.to_string(), "2"])?;
    let left = |dir: &std::path::Path| Ok::<_, anyhow::Error>(std::fs::metadata(dir.join("log"))?.len());
    patient_move(&cluster, "files", "node-b")?;
    let (volume_then, shared_then) = (left(&volume)?, left(&shared)?);
    patient_move(&cluster, "files", "node-a")?;
    patient_move(&cluster, "files", "node-b")?;
    ensure!(left(&volume)? == volume_then, "what was copied is not written to any more");
    ensure!(left(&shared)? > shared_then, "what is shared is the same directory on both nodes");
    let verdict = clients.verdict()?;
    ensure!(verdict.replies > 20, "too few replies to mean anything: {verdict:?}");
    println!("files: {verdict:?}");
    cluster.passed();
    Ok(())
}

/// Moves what never stops writing: the pause may be long on a busy machine.
fn patient_move(cluster: &Cluster, name: &str, node: &str) -> Result<()> {
    cluster.must(["move", name, "--to", node, "--max-downtime", "3s", "-o", "json"])?;
    ensure!(cluster.node_of(name)? == node, "{name} is not on {node}");
    Ok(())
}
