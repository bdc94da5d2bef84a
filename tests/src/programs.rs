//! More real programs under load, moved there and back: what makes connections all the time, run-times with threads and
//! compilers of their own, a shell with jobs.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::cluster::{Background, Cluster, wait_for};
use crate::lifecycle::moves;
use crate::suite::Case;
use crate::workload::{
    JAVA_PROGRAM, NODE_PROGRAM, POSTGRES_CLIENT, QUEUED_PROGRAM, RELUCTANT_PROGRAM, SHELL_PROGRAM, http,
    memcached, nginx, python,
};

/// All of them.
pub const CASES: &[Case] = &[
    Case { name: "nginx_with_a_new_connection_for_each_request_moves", programs: &["nginx"], run: visited },
    Case {
        name: "a_server_whose_clients_always_wait_to_be_accepted_moves",
        programs: &["python3"],
        run: queued,
    },
    Case { name: "memcached_moves_there_and_back", programs: &["memcached"], run: memcached_server },
    Case {
        name: "postgresql_with_open_sessions_moves_there_and_back",
        programs: &["pg_ctlcluster", "setpriv"],
        run: postgres,
    },
    Case { name: "a_node_js_server_moves_there_and_back", programs: &["node"], run: node_server },
    Case { name: "a_server_in_a_jvm_moves_there_and_back", programs: &["java", "javac"], run: java_server },
    Case {
        name: "bash_with_jobs_on_a_terminal_moves_there_and_back",
        programs: &["python3", "bash"],
        run: shell,
    },
    Case {
        name: "what_stands_in_the_way_for_a_moment_is_given_time",
        programs: &["python3"],
        run: reluctant,
    },
];

const THERE_AND_BACK: &[&str] = &["node-b", "node-a"];

/// Words of the file that is served.
const WORDS: u32 = 16_384;

/// Ends a case well when its clients had so many right answers and no wrong one.
fn judge(cluster: Cluster, name: &str, clients: Background, least: u64) -> Result<()> {
    let verdict = clients.verdict()?;
    ensure!(verdict.replies > least, "too few answers to mean anything: {verdict:?}");
    println!("{name}: {verdict:?}");
    cluster.passed();
    Ok(())
}

fn visited() -> Result<()> {
    let cluster = Cluster::up()?;
    let content = nginx::content(WORDS);
    let address = nginx::start(&cluster, "visited", "10.77.0.110", &content)?;
    let clients =
        cluster.client(&["visit", &address.to_string(), nginx::PATH, &http::hash(&content), "4"])?;
    moves(&cluster, "visited", &["node-b", "node-a", "node-b", "node-a"])?;
    judge(cluster, "visited", clients, 50)
}

/// Eight clients are served one after the other: seven wait at any moment.
fn queued() -> Result<()> {
    let cluster = Cluster::up()?;
    let name = "queued";
    let bundle = cluster.make_bundle(name, &["/data"], &["/usr/bin/python3", "/data/queued.py"])?;
    fs::write(bundle.join("rootfs/data/queued.py"), QUEUED_PROGRAM)?;
    cluster.start_bundle(name, "node-a", "10.77.0.117/24", &bundle)?;
    let address: SocketAddr = "10.77.0.117:8080".parse()?;
    cluster.wait_for_port(address)?;
    let hash = http::hash(&nginx::content(WORDS));
    let clients = cluster.client(&["visit", &address.to_string(), nginx::PATH, &hash, "8"])?;
    moves(&cluster, name, THERE_AND_BACK)?;
    judge(cluster, name, clients, 20)
}

fn memcached_server() -> Result<()> {
    let cluster = Cluster::up()?;
    let address = memcached::start(&cluster, "memcached", "10.77.0.111")?;
    let clients = cluster.client(&["memcached", &address.to_string(), "4"])?;
    moves(&cluster, "memcached", THERE_AND_BACK)?;
    judge(cluster, "memcached", clients, 500)
}

/// Its processes share System V and POSIX memory, semaphores and listening sockets; it must not be root.
fn postgres() -> Result<()> {
    let cluster = Cluster::up()?;
    let (name, ip) = ("postgres", "10.77.0.116");
    let versions = fs::read_dir("/usr/lib/postgresql").context("look for PostgreSQL")?;
    let mut programs: Vec<_> = versions.flatten().map(|version| version.path().join("bin")).collect();
    programs.sort();
    let programs = programs.last().context("a version of PostgreSQL")?.display();
    let script = format!(
        "mkdir /data/run && chown 65534:65534 /data/run && cd /data/run &&
         as='setpriv --reuid 65534 --regid 65534 --clear-groups' &&
         $as {programs}/initdb -D /data/run/db -A trust --no-sync --no-locale -E UTF8 &&
         echo 'host all all all trust' >> db/pg_hba.conf &&
         exec $as {programs}/postgres -D /data/run/db -h 0.0.0.0 -k /data/run -c shared_buffers=16MB"
    );
    cluster.run_container(name, "node-a", &format!("{ip}/24"), &["/data"], &["/bin/sh", "-c", &script])?;
    cluster.wait_for_port(format!("{ip}:5432").parse()?)?;
    let client = cluster.dir().join("postgres.py");
    fs::write(&client, POSTGRES_CLIENT)?;
    let sessions =
        cluster.client_program(&["python3", client.to_str().unwrap_or_default(), ip, "5432", "3"])?;
    moves(&cluster, name, THERE_AND_BACK)?;
    judge(cluster, name, sessions, 20)
}

fn node_server() -> Result<()> {
    serves("node", "10.77.0.112", ("server.js", NODE_PROGRAM), &["/usr/bin/node", "/data/server.js"])
}

fn java_server() -> Result<()> {
    let command = ["/usr/bin/java", "-Xmx128m", "/data/Server.java"];
    serves("java", "10.77.0.113", ("Server.java", JAVA_PROGRAM), &command)
}

/// Moves a program that serves [`nginx::content`].
fn serves(name: &str, ip: &str, (file, text): (&str, &str), command: &[&str]) -> Result<()> {
    let cluster = Cluster::up()?;
    let bundle = cluster.make_bundle(name, &["/data"], command)?;
    fs::write(bundle.join("rootfs/data").join(file), text)?;
    cluster.start_bundle(name, "node-a", &format!("{ip}/24"), &bundle)?;
    let address: SocketAddr = format!("{ip}:8080").parse()?;
    cluster.wait_for_port(address)?;
    let hash = http::hash(&nginx::content(WORDS));
    let clients = cluster.client(&["http", &address.to_string(), nginx::PATH, &hash, "3"])?;
    moves(&cluster, name, THERE_AND_BACK)?;
    judge(cluster, name, clients, 50)
}

fn shell() -> Result<()> {
    let cluster = Cluster::up()?;
    let address = python::start(&cluster, "shell", "10.77.0.114", SHELL_PROGRAM, &[], None)?;
    let clients = cluster.client(&["lines", &address.to_string(), "1"])?;
    moves(&cluster, "shell", THERE_AND_BACK)?;
    judge(cluster, "shell", clients, 20)
}

/// A connection that waits to be accepted stands against the switchover: the container runs on between two attempts, and
/// moves as soon as it has accepted.
fn reluctant() -> Result<()> {
    let cluster = Cluster::up()?;
    let name = "reluctant";
    let address = python::start(&cluster, name, "10.77.0.115", RELUCTANT_PROGRAM, &[], None)?.to_string();
    let clients = cluster.client(&["lines", &address, "2"])?;
    for (number, node) in (1..).zip(THERE_AND_BACK) {
        cluster.client_once(&["ask", &address, "come", "ok"])?;
        let migration =
            cluster.must(["move", name, "--to", node, "--max-downtime", "2s", "--detach", "-o", "name"])?;
        let migration = migration.stdout.trim().trim_start_matches("migration/");
        let looked = || cluster.must(["get", "migrations", migration, "-o", "json"]).ok()?.json().ok();
        let said = |text: &str| {
            let found = looked()?;
            let events = found.pointer("/status/events")?.as_array()?;
            events.iter().any(|event| event.as_str().is_some_and(|event| event.contains(text))).then_some(())
        };
        wait_for("an attempt that fails", Duration::from_secs(20), || {
            said("attempt 1 at the switchover").and(said("to a unix socket wait to be accepted"))
        })?;
        cluster.client_once(&["ask", &address, "accept", "ok"])?;
        let kind = format!("migration/{migration}");
        cluster.must(["wait", &kind, "--for", "condition=Succeeded", "--timeout", "20s"])?;
        ensure!(cluster.node_of(name)? == *node, "move {number}: {name} is not on {node}: {:?}", looked());
    }
    // Now nothing passes by itself: it is refused, with everything as it was.
    cluster.client_once(&["ask", &address, "come", "ok"])?;
    let refused = cluster.migrate(["move", name, "--to", "node-b", "--max-downtime", "2s"])?;
    ensure!(refused.code == 3 && refused.stderr.contains("wait to be accepted"), "{refused:?}");
    ensure!(cluster.node_of(name)? == "node-a", "{name} is not where it was");
    cluster.client_once(&["ask", &address, "accept", "ok"])?;
    judge(cluster, "reluctant", clients, 50)
}
