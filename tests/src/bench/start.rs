//! Containers of the cases with their clients, and what must be right at the end.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::cases::{Load, Population};
use super::series::Series;
use crate::client::{Gap, Verdict};
use crate::cluster::{Background, Cluster, binary};
use crate::workload::load::State;
use crate::workload::{FORKED_PROGRAM, POPULATION_PROGRAM, SHARED_PROGRAM, http, load, nginx, python, redis};

/// The container's name.
pub const NAME: &str = "bench";
const IP: &str = "10.77.0.100";
/// Words of nginx's file: 256 KiB, so that a download takes no longer than an answer may.
const WORDS: u32 = 65_536;
/// Clients of redis, nginx and the processes that share memory.
const CLIENTS: &str = "8";
/// Descriptors that a program has besides those that it is asked to have.
const BESIDES: u32 = 256;

/// What is asked when the clients have ended.
#[derive(Debug)]
enum Last {
    /// Nothing: the clients of the own workload ask for a check of every page.
    Asked,
    /// `__client` with these arguments.
    Client(Vec<String>),
    /// What a node shows of a container's state.
    Shown(State, String),
}

/// A container under clients.
#[derive(Debug)]
pub struct Running {
    clients: Background,
    last: Last,
}

/// What the clients of a whole run saw.
#[derive(Debug)]
pub struct Heard {
    /// The longest time any client waited, milliseconds.
    pub longest_gap_ms: f64,
    /// Gaps that were long enough to be listed.
    pub gaps: Vec<Gap>,
    /// Replies by time, when they were counted so.
    pub replies: Series,
    /// Pages that the container had written, by time.
    pub written: Series,
}

/// Starts the container on the first node, and its clients.
///
/// # Errors
/// When one of them does not start.
pub fn start(cluster: &Cluster, load: Load) -> Result<Running> {
    match load {
        Load::Own { mib, dirty } => own(cluster, mib, dirty),
        Load::Redis { keys } => {
            let at = redis::start(cluster, NAME, IP, keys)?.to_string();
            let keys = keys.to_string();
            Running::new(cluster, &["redis", &at, &keys, CLIENTS], &["redis-verify", &at, &keys])
        }
        Load::Nginx => {
            let content = nginx::content(WORDS);
            let at = nginx::start(cluster, NAME, IP, &content)?.to_string();
            let hash = http::hash(&content);
            let file = [at.as_str(), nginx::PATH, &hash];
            let clients = [&["http"][..], &file, &["4"]].concat();
            Running::new(cluster, &clients, &[&["http-once"][..], &file].concat())
        }
        Load::Shared => {
            let at = python::start(cluster, NAME, IP, SHARED_PROGRAM, &[], None)?;
            Running::lines(cluster, &["lines", &at.to_string(), CLIENTS])
        }
        Load::Forked => {
            let at = python::start(cluster, NAME, IP, FORKED_PROGRAM, &[], None)?;
            Running::lines(cluster, &["lines", &at.to_string(), "1"])
        }
        Load::Population(wanted) => {
            let at = population(cluster, &wanted, 0)?;
            Running::lines(cluster, &["lines", &at.to_string(), "1"])
        }
        Load::Connections(count) => {
            let at = population(cluster, &Population::ONE, count)?;
            Running::lines(cluster, &["connections", &at.to_string(), &count.to_string()])
        }
        Load::State(state) => {
            load::start(cluster, NAME, IP, state)?;
            let clients = cluster.client(&["lines", &format!("{IP}:7000"), "1"])?;
            let shown = load::shown(cluster, "node-a", state)?;
            Running { clients, last: Last::Shown(state, shown) }.under_load()
        }
    }
}

/// The workload that ships with us, under its own clients.
fn own(cluster: &Cluster, mib: u32, dirty: u32) -> Result<Running> {
    let address: SocketAddr = format!("{IP}:7000").parse()?;
    let program = binary()?.to_str().context("path")?;
    let (mib, dirty, at) = (mib.to_string(), dirty.to_string(), address.to_string());
    let memory = ["--memory-mib", &mib, "--threads", "8", "--dirty-mb-per-s", &dirty];
    let command = [&[program, "__workload"][..], &memory, &["--listen", "0.0.0.0:7000"]].concat();
    cluster.run_container(NAME, "node-a", &format!("{IP}/24"), &[], &command)?;
    cluster.wait_for_port(address)?;
    let client = [program, "__client", "--connect", &at, "--connections", "4", "--watch-writes"];
    Ok(Running { clients: cluster.client_program(&client)?, last: Last::Asked })
}

fn population(cluster: &Cluster, wanted: &Population, connections: u32) -> Result<SocketAddr> {
    let Population { processes, fan_out, threads, descriptors, mappings } = *wanted;
    let args = [processes, fan_out, threads, descriptors, mappings].map(|number| number.to_string());
    let args = args.each_ref().map(String::as_str);
    let limit = descriptors + connections + processes + BESIDES;
    python::start(cluster, NAME, IP, POPULATION_PROGRAM, &args, Some(limit))
}

impl Running {
    fn new(cluster: &Cluster, clients: &[&str], last: &[&str]) -> Result<Self> {
        let last = Last::Client(last.iter().map(|word| (*word).to_owned()).collect());
        Self { clients: cluster.client(clients)?, last }.under_load()
    }

    /// Clients that ask a line after the other; in the end the program is asked to verify what it has.
    fn lines(cluster: &Cluster, clients: &[&str]) -> Result<Self> {
        let at = clients.get(1).copied().context("no address")?;
        Self::new(cluster, clients, &["ask", at, "verify", "ok sound"])
    }

    /// Waits until every client has had answers.
    fn under_load(mut self) -> Result<Self> {
        self.clients.progress()?;
        Ok(self)
    }

    /// Ends the clients, and verifies what the container has on `node`.
    ///
    /// # Errors
    /// When anything was lost, repeated or changed.
    pub fn finish(self, cluster: &Cluster, node: &str) -> Result<Heard> {
        let heard = match self.last {
            Last::Asked => own_report(self.clients)?,
            Last::Client(_) | Last::Shown(..) => self.clients.verdict()?.into(),
        };
        match self.last {
            Last::Asked => {}
            Last::Client(args) => {
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                cluster.client_once(&args).context("verify what the container has")?;
            }
            Last::Shown(state, before) => {
                let after = load::shown(cluster, node, state)?;
                ensure!(before == after, "after the moves:\n{after}\nbefore:\n{before}");
            }
        }
        Ok(heard)
    }
}

impl From<Verdict> for Heard {
    fn from(verdict: Verdict) -> Self {
        Self {
            longest_gap_ms: verdict.longest_gap_ms,
            gaps: verdict.gaps,
            replies: Series::default(),
            written: Series::default(),
        }
    }
}

/// The report of the clients that ship with us, which end with 0 when nothing was lost and every page is right.
///
/// # Errors
/// When anything was lost, repeated or changed.
pub(crate) fn own_report(clients: Background) -> Result<Heard> {
    let finished = clients.finish()?;
    let report = finished.json()?;
    let number = |path: &str| report.pointer(path).and_then(Value::as_f64);
    let summary: Vec<String> =
        ["connections_lost", "requests_lost", "replies_wrong", "pages_checked", "pages_wrong"]
            .iter()
            .map(|key| format!("{key} {}", report.get(*key).unwrap_or(&Value::Null)))
            .collect();
    ensure!(
        finished.code == 0,
        "the clients saw something wrong: {} {}",
        summary.join(", "),
        finished.stderr
    );
    let list = |key: &str| report.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let gaps = list("per_connection")
        .iter_mut()
        .filter_map(|each| each.get_mut("gaps").map(Value::take))
        .try_fold(Vec::new(), |mut all, gaps| {
            all.extend(serde_json::from_value::<Vec<Gap>>(gaps)?);
            anyhow::Ok(all)
        })?;
    let counts = list("replies_per_100ms").iter().filter_map(Value::as_f64).collect::<Vec<_>>();
    let written = list("written");
    let written =
        written.iter().filter_map(|at| Some((at.get("at_unix_ms")?.as_f64()?, at.get("pages")?.as_f64()?)));
    Ok(Heard {
        longest_gap_ms: number("/max_gap_ms").context("the clients reported no gap")?,
        gaps,
        replies: Series::of_counts(number("/began_unix_ms").unwrap_or_default(), 100.0, &counts),
        written: Series::of_totals(written.collect()),
    })
}
