//! How long a coordinator with a history takes from its start to its first answers.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::identity::Role;
use proto::tls::{Expect, Tls, TlsFiles, connect};
use proto::v1::ListMigrationsRequest;
use proto::v1::coordinator_client::CoordinatorClient;
use serde::Serialize;

use super::usage::Usage;
use crate::bench::report::Spread;
use crate::cluster::binary;

/// Starts; medians are taken over them.
const STARTS: usize = 5;
/// How long a start may take.
const LIMIT: Duration = Duration::from_secs(120);
/// The longest pause between two looks at whether it serves.
const LOOK: Duration = Duration::from_millis(2);

/// What was measured with one store.
#[derive(Debug, Serialize)]
pub struct Figures {
    records: u64,
    store_mib: f64,
    fill_seconds: f64,
    /// Until `grpc.health.v1` says that it serves.
    ready_ms: Spread,
    /// The first list after that: a page of a hundred.
    list_ms: Spread,
    /// When it was ready.
    rss_mib: Spread,
    /// After the list.
    peak_mib: Spread,
}

/// Ends a daemon when it is dropped.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Daemon {
    fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.0.id())?))
    }

    fn stop(mut self) -> Result<()> {
        kill(self.pid()?, Signal::SIGTERM)?;
        let status = self.0.wait()?;
        ensure!(status.success(), "the coordinator ended with {status}");
        Ok(())
    }
}

/// Fills a store with so many migrations, and starts a coordinator on it.
///
/// # Errors
/// When the store cannot be filled, or the coordinator does not serve.
pub fn measure(records: u64) -> Result<Figures> {
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let text = |name: &str| at(name).to_str().map(str::to_owned).context("path");
    let (authority, state) = (text("ca")?, text("state")?);
    run(&["pki", "init", "--dir", &authority])?;
    for (role, name) in [("coordinator", "main"), ("admin", "figures")] {
        run(&["pki", "issue", "--dir", &authority, "--role", role, name, "--out", &text(name)?])?;
    }
    let began = Instant::now();
    let records_text = records.to_string();
    run(&["__coordinator", "fill", "--state-dir", &state, "--migrations", &records_text])?;
    let fill_seconds = began.elapsed().as_secs_f64();
    // A loopback address of its own: nobody takes its port meanwhile.
    let [.., one, two] = std::process::id().to_be_bytes();
    let address = TcpListener::bind((Ipv4Addr::new(127, 98, one, two.max(1)), 0))?.local_addr()?.to_string();
    let config = at("coordinator.toml");
    fs::write(
        &config,
        format!("listen = {address:?}\nstate_dir = {state:?}\ntls_dir = {:?}\n", text("main")?),
    )?;

    let tls = Tls::load(&TlsFiles::in_dir(&at("figures")))?;
    let runtime = tokio::runtime::Runtime::new()?;
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        starts.push(runtime.block_on(start(&config, &at("log"), &address, &tls, records))?);
    }
    let spread = |of: &dyn Fn(&Start) -> f64| Spread::of(starts.iter().map(of));
    Ok(Figures {
        records,
        store_mib: size(&at("state/store"))? as f64 / crate::bench::report::MIB,
        fill_seconds,
        ready_ms: spread(&|start| start.ready.as_secs_f64() * 1e3),
        list_ms: spread(&|start| start.list.as_secs_f64() * 1e3),
        rss_mib: spread(&|start| start.rss_mib),
        peak_mib: spread(&|start| start.peak_mib),
    })
}

fn run(args: &[&str]) -> Result<()> {
    let finished = crate::cluster::run(Command::new(binary()?).args(args))?;
    ensure!(finished.code == 0, "migrate {args:?}: {finished:?}");
    Ok(())
}

struct Start {
    ready: Duration,
    list: Duration,
    rss_mib: f64,
    peak_mib: f64,
}

async fn start(config: &Path, log: &Path, address: &str, tls: &Tls, records: u64) -> Result<Start> {
    let began = Instant::now();
    let mut command = Command::new(binary()?);
    command.args(["__coordinator", "serve", "--config"]).arg(config);
    let daemon = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(log)?).spawn()?;
    let daemon = Daemon(daemon);
    let expect = Expect::Any(Role::Coordinator);
    while let Err(error) = proto::health::ask(address, "gantry.v1.Coordinator", &expect, tls, LIMIT).await {
        ensure!(began.elapsed() < LIMIT, "{error}: {}", fs::read_to_string(log)?);
        tokio::time::sleep(LOOK).await;
    }
    let ready = began.elapsed();
    let rss_mib = Usage::of(daemon.pid()?)?.rss_mib;
    let mut api = CoordinatorClient::new(connect(address, &expect, tls).await?);
    let asked = Instant::now();
    let page = api.list_migrations(ListMigrationsRequest { page_size: 100, ..Default::default() }).await?;
    let list = asked.elapsed();
    let found = page.into_inner().migrations.len() as u64;
    ensure!(found == records.min(100), "the first page has {found} migrations");
    let peak_mib = Usage::of(daemon.pid()?)?.peak_mib;
    drop(api);
    daemon.stop()?;
    Ok(Start { ready, list, rss_mib, peak_mib })
}

/// Bytes of the files beneath a directory.
fn size(dir: &Path) -> Result<u64> {
    let mut all = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        all += if meta.is_dir() { size(&entry.path())? } else { meta.len() };
    }
    Ok(all)
}

/// A table.
#[must_use]
pub fn text(rows: &[Figures]) -> String {
    let head = format!(
        "{:<24} {:>10} {:>10} {:>10} {:>10} {:>10}\n",
        "start of a coordinator", "store MiB", "ready ms", "list ms", "RSS MiB", "peak MiB"
    );
    let row = |row: &Figures| {
        format!(
            "{:<24} {:>10.1} {:>10.0} {:>10.1} {:>10.0} {:>10.0}\n",
            format!("{} migrations", row.records),
            row.store_mib,
            row.ready_ms.median,
            row.list_ms.median,
            row.rss_mib.median,
            row.peak_mib.median
        )
    };
    head + &rows.iter().map(row).collect::<String>()
}
