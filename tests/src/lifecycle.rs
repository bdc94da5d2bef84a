//! Real programs under load, moved there and back: every client checks every answer and never reconnects.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::{Cluster, wait_for};
use crate::suite::Case;
use crate::workload::{
    FILES_PROGRAM, MEMORY_PROGRAM, MOUNTS_PROGRAM, PYTHON_PROGRAM, http, nginx, python, redis, system,
};

/// All of them.
pub const CASES: &[Case] = &[
    Case {
        name: "redis_with_512_mib_under_load_moves_three_times",
        programs: &["redis-server"],
        run: redis_server,
    },
    Case {
        name: "nginx_with_keep_alive_downloads_moves_there_and_back",
        programs: &["nginx"],
        run: nginx_server,
    },
    Case {
        name: "python_with_threads_timers_pipes_moves_there_and_back",
        programs: &["python3"],
        run: python_program,
    },
    Case {
        name: "memory_that_is_moved_and_given_back_moves_there_and_back",
        programs: &["python3"],
        run: memory,
    },
    Case {
        name: "userns_python_keeps_its_ids_and_moves_there_and_back",
        programs: &["python3", "setpriv", "renice", "ionice"],
        run: user_namespace,
    },
    Case { name: "files_that_change_all_the_time_move_there_and_back", programs: &["python3"], run: files },
    Case {
        name: "network_state_moves_there_and_back_with_connections_through_its_rules",
        programs: &["python3", "nft", "nsenter", "pgrep"],
        run: network,
    },
    Case {
        name: "system_container_with_open_ssh_sessions_moves_there_and_back",
        programs: system::PROGRAMS,
        run: system_container,
    },
    Case {
        name: "what_monitoring_names_is_exported_while_a_container_moves",
        programs: &["python3", "curl"],
        run: crate::monitoring::what_is_named_is_exported,
    },
    Case {
        name: "an_authority_is_replaced_while_a_container_serves_and_moves",
        programs: &["python3", "curl"],
        run: crate::renewal::authority,
    },
    Case {
        name: "agents_of_adjacent_versions_move_a_container_there_and_back",
        programs: &["python3"],
        run: crate::versions::adjacent,
    },
    Case {
        name: "a_node_is_drained_and_filled_again",
        programs: &["redis-server", "python3"],
        run: crate::evacuation::drain,
    },
    Case {
        name: "moves_and_drains_are_drawn_in_place",
        programs: &["setsid"],
        run: crate::terminal::live_view,
    },
    Case { name: "mounts_made_by_a_program_move_there_and_back", programs: &["python3"], run: mounts },
];

/// A pause of which the log shows where it went.
const LONG_MS: f64 = 2000.0;

/// Moves `name` to each node in turn and expects it to serve there.
pub(crate) fn moves(cluster: &Cluster, name: &str, nodes: &[&str]) -> Result<()> {
    for node in nodes {
        let migration = cluster.move_to(name, node)?;
        let phase = migration.pointer("/status/phase").and_then(Value::as_str);
        ensure!(phase == Some("Succeeded"), "the move ended as {migration}");
        ensure!(cluster.node_of(name)? == *node, "{name} is not on {node}");
        let pause = migration.pointer("/status/downtime/totalMs").unwrap_or(&Value::Null);
        println!("{name} -> {node}: paused for {pause} ms");
        if pause.as_f64().is_some_and(|ms| ms > LONG_MS) {
            println!("its steps: {}", migration.pointer("/status/downtime").unwrap_or(&Value::Null));
        }
    }
    Ok(())
}

fn redis_server() -> Result<()> {
    let cluster = Cluster::up()?;
    let keys = 131_072;
    let at = redis::start(&cluster, "redis", "10.77.0.100", keys)?.to_string();
    let keys = keys.to_string();
    let clients = cluster.client(&["redis", &at, &keys, "8"])?;
    moves(&cluster, "redis", &["node-b", "node-a", "node-b"])?;
    let verdict = clients.verdict()?;
    ensure!(verdict.replies > 1000, "too few replies to mean anything: {verdict:?}");
    cluster.client_once(&["redis-verify", &at, &keys])?;
    println!("redis: {verdict:?}");
    cluster.passed();
    Ok(())
}

fn nginx_server() -> Result<()> {
    let cluster = Cluster::up()?;
    let content = nginx::content(4_000_000);
    let address = nginx::start(&cluster, "nginx", "10.77.0.101", &content)?;
    let clients = cluster.client(&["http", &address.to_string(), nginx::PATH, &http::hash(&content), "4"])?;
    moves(&cluster, "nginx", &["node-b", "node-a"])?;
    let verdict = clients.verdict()?;
    ensure!(verdict.replies > 4, "too few downloads to mean anything: {verdict:?}");
    println!("nginx: {verdict:?}");
    cluster.passed();
    Ok(())
}

fn memory() -> Result<()> {
    let cluster = Cluster::up()?;
    let address = python::start(&cluster, "memory", "10.77.0.102", MEMORY_PROGRAM, &[], None)?;
    let clients = cluster.client(&["lines", &address.to_string(), "1"])?;
    for node in ["node-b", "node-a", "node-b"] {
        patient_move(&cluster, "memory", node)?;
    }
    let verdict = clients.verdict()?;
    ensure!(verdict.replies > 20, "too few replies to mean anything: {verdict:?}");
    println!("memory: {verdict:?}");
    cluster.passed();
    Ok(())
}

fn python_program() -> Result<()> {
    let cluster = Cluster::up()?;
    let address = python::start(&cluster, "python", "10.77.0.102", PYTHON_PROGRAM, &[], None)?;
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

/// Moves what never stops writing, and expects it there.
fn patient_move(cluster: &Cluster, name: &str, node: &str) -> Result<()> {
    cluster.patient_move(name, node)?;
    ensure!(cluster.node_of(name)? == node, "{name} is not on {node}");
    Ok(())
}

/// An init, daemons, a console and a getty. Two people are logged in: one works and has a stopped job, the other has
/// typed half a line.
fn system_container() -> Result<()> {
    let cluster = Cluster::up()?;
    let address: SocketAddr = "10.77.0.103:22".parse()?;
    let bundle = cluster.dir().join("bundles/system");
    let out = bundle.to_str().unwrap_or_default();
    cluster.must(["dev", "bundle", "--out", out, "--", "/usr/bin/busybox"])?;
    let key = system::furnish(&bundle)?;
    cluster.start_bundle("system", "node-a", "10.77.0.103/24", &bundle)?;
    cluster.wait_for_port(address)?;
    let program = bundle.join("session.py");
    std::fs::write(&program, system::SESSION_PROGRAM)?;
    let mut session = cluster.client_program(&[
        "python3",
        program.to_str().unwrap_or_default(),
        &address.ip().to_string(),
        key.to_str().unwrap_or_default(),
    ])?;
    session.progress()?;
    for (turn, node) in (2..).zip(["node-b", "node-a", "node-b"]) {
        patient_move(&cluster, "system", node)?;
        session.progress()?;
        logged(&cluster, &format!("turn {turn} of the session"))?;
    }
    for text in ["the system starts", "Please press Enter to activate this console", "login: "] {
        logged(&cluster, text)?;
    }
    // cron's next job comes when its minute is over, wherever it is then.
    let ticks = || {
        let shown = cluster.migrate(["exec", "system", "--", "/bin/cat", "/var/log/ticks"]).ok()?;
        Some(shown.stdout.lines().count())
    };
    let before = ticks().unwrap_or(0);
    wait_for("cron goes on", Duration::from_secs(90), || ticks().filter(|now| *now > before))?;
    let verdict = session.verdict()?;
    ensure!(verdict.replies > 50, "too few replies to mean anything: {verdict:?}");
    println!("system: {verdict:?}");
    cluster.passed();
    Ok(())
}

fn logged(cluster: &Cluster, text: &str) -> Result<()> {
    wait_for(&format!("the log says {text:?}"), Duration::from_secs(10), || {
        let logs = cluster.migrate(["logs", "system"]).ok()?;
        (logs.code == 0 && logs.stdout.contains(text)).then_some(())
    })
}

/// What the container changes in its network: everything that its program could have done with CAP_NET_ADMIN.
const NETWORK: &str = "
ip addr add 10.77.0.222/24 dev eth0
ip addr add fd77::5/64 dev eth0 nodad
ip route add 198.51.100.0/24 via 10.77.0.1 metric 5
ip route add 10.77.0.0/24 dev eth0 table 42; ip route add default via 10.77.0.1 table 42
ip rule add from 10.77.0.222 table 42 pref 100
ip link add va index 20 mtu 1400 type veth peer name vb index 21
ip link add br0 index 30 type bridge forward_delay 0
ip link set vb master br0
ip link set va up; ip link set vb up; ip link set br0 up
ip addr add 192.0.2.1/24 dev va
ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev va nud permanent
echo 77 > /proc/sys/net/core/somaxconn
echo 1 > /proc/sys/net/ipv4/conf/va/proxy_arp
nft -f - <<END
table inet guard {
  set friends { type ipv4_addr; flags interval; elements = { 10.77.0.0/16, 192.0.2.7 } }
  chain input {
    type filter hook input priority 0; policy drop;
    iif lo accept
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
    ct state invalid counter drop
    ct state established counter accept comment \"established\"
    ip saddr @friends tcp dport 7000 ct state new counter accept
  }
}
END
";

/// What tells the state, without counters.
const SHOWN: &str = "
ip -o addr show | sed 's/valid_lft.*//; s/ nodad//; s/@[a-z0-9]*//' | sort
ip -4 route show table all; ip rule
ip -o link show | sed 's/@[a-z0-9]*:/:/; s/state .* mode/mode/; s/link-netnsid [0-9]*//' | sort
ip neigh show nud permanent
cat /proc/sys/net/core/somaxconn /proc/sys/net/ipv4/conf/va/proxy_arp /proc/sys/net/netfilter/nf_conntrack_tcp_loose
nft -s list ruleset
";

fn network() -> Result<()> {
    let cluster = Cluster::up()?;
    let address: SocketAddr = "10.77.0.103:7000".parse()?;
    let bundle = cluster.dir().join("bundles/net");
    let out = bundle.to_str().unwrap_or_default();
    let command =
        ["dev", "bundle", "--out", out, "--rw", "/data", "--", "/usr/bin/python3", "/data/program.py"];
    cluster.must(command)?;
    std::fs::write(bundle.join("rootfs/data/program.py"), PYTHON_PROGRAM)?;
    cluster.start_bundle("net", "node-a", "10.77.0.103/24", &bundle)?;
    cluster.wait_for_port(address)?;
    let inside = |node: &str, script: &str| -> Result<String> {
        let find = "pid=$(pgrep -o -f 'python3 /data/program.py$') && exec nsenter -t $pid -n sh -ec \"$1\"";
        let ran = cluster.exec_ok(node, &["sh", "-c", find, "sh", script])?;
        Ok(ran.stdout)
    };
    inside("node-a", NETWORK)?;
    let clients = cluster.client(&["lines", &address.to_string(), "3"])?;
    // The second address serves, and answers by its own table.
    cluster.wait_for_port("10.77.0.222:7000".parse()?)?;
    // From here on only a connection that is known may talk: one whose entry was lost would hang.
    inside("node-a", "echo 0 > /proc/sys/net/netfilter/nf_conntrack_tcp_loose")?;
    let passed = |node: &str| -> Result<u64> {
        let rules = inside(node, "nft list chain inet guard input")?;
        let line = rules.lines().find(|line| line.contains("established\"")).unwrap_or_default();
        let packets = line.split_whitespace().skip_while(|word| *word != "packets").nth(1);
        packets
            .and_then(|packets| packets.parse().ok())
            .ok_or_else(|| anyhow::anyhow!("no counter in {rules}"))
    };
    // IPv6 examines its addresses, and a bridge its port, in their own time.
    let settled = |node: &str| {
        wait_for("the network is settled", Duration::from_secs(20), || {
            let shown = inside(node, "ip addr").ok()?;
            (!shown.contains("tentative") && !shown.contains("NO-CARRIER")).then_some(())
        })
    };
    settled("node-a")?;
    let before = inside("node-a", SHOWN)?;
    let mut counted = passed("node-a")?;
    ensure!(counted > 0, "nothing passed the rules");
    for node in ["node-b", "node-a", "node-b"] {
        moves(&cluster, "net", &[node])?;
        settled(node)?;
        let after = inside(node, SHOWN)?;
        ensure!(before == after, "on {node}:\n{after}\nbefore:\n{before}");
        let now = passed(node)?;
        ensure!(now >= counted, "the counter went back from {counted} to {now}");
        counted = now;
        cluster.wait_for_port("10.77.0.222:7000".parse()?)?;
    }
    let verdict = clients.verdict()?;
    ensure!(verdict.replies > 100, "too few replies to mean anything: {verdict:?}");
    println!("network: {verdict:?}, {counted} packets through the rules");
    // What cannot be made again is refused, and the container runs on.
    inside("node-b", "ip link add x0 type vxlan id 7 dstport 4789 local 192.0.2.1")?;
    let check = cluster.migrate(["check", "net"])?;
    ensure!(check.code != 0 && check.stdout.contains("x0 is of kind vxlan"), "{check:?}");
    let refused = cluster.migrate(["move", "net", "--to", "node-a"])?;
    ensure!(refused.code != 0 && format!("{refused:?}").contains("x0 is of kind vxlan"), "{refused:?}");
    ensure!(cluster.node_of("net")? == "node-b", "it is where it was");
    cluster.wait_for_port(address)?;
    cluster.passed();
    Ok(())
}

fn mounts() -> Result<()> {
    let cluster = Cluster::up()?;
    let address: SocketAddr = "10.77.0.103:7000".parse()?;
    let bundle = cluster.dir().join("bundles/mounts");
    let out = bundle.to_str().unwrap_or_default();
    let command = ["/usr/bin/python3", "/data/program.py"];
    cluster.must([&["dev", "bundle", "--out", out, "--rw", "/data", "--"][..], &command].concat())?;
    std::fs::write(bundle.join("rootfs/data/program.py"), MOUNTS_PROGRAM)?;
    let path = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    for set in ["bounding", "effective", "permitted"] {
        let list = config.pointer_mut(&format!("/process/capabilities/{set}")).and_then(Value::as_array_mut);
        let list = list.context("the bundle has no capabilities")?;
        list.extend(["CAP_SYS_ADMIN", "CAP_SYS_CHROOT"].map(Value::from));
    }
    std::fs::write(&path, config.to_string())?;
    cluster.start_bundle("mounts", "node-a", "10.77.0.103/24", &bundle)?;
    cluster.wait_for_port(address)?;
    let clients = cluster.client(&["lines", &address.to_string(), "2"])?;
    moves(&cluster, "mounts", &["node-b", "node-a", "node-b"])?;
    let verdict = clients.verdict()?;
    ensure!(verdict.replies > 100, "too few replies to mean anything: {verdict:?}");
    println!("mounts: {verdict:?}");
    cluster.client_once(&["ask", &address.to_string(), "uncover", "ok below"])?;
    cluster.passed();
    Ok(())
}
