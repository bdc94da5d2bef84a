//! The process that runs on the client host. A test binary starts itself there with `__client` as its first
//! argument; closing the child's standard input ends the run, and the verdict is one JSON line.

use std::io::Read as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::workload::{http, redis};

/// What the clients of one run saw.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Verdict {
    /// Replies that were checked and right.
    pub replies: u64,
    /// The longest time any client waited between two replies, milliseconds.
    pub longest_gap_ms: f64,
    /// What was wrong; empty when nothing was.
    pub errors: Vec<String>,
}

/// Runs as a client process when the arguments say so.
#[must_use]
pub fn run_if_asked() -> Option<ExitCode> {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).map(String::as_str) != Some("__client") {
        return None;
    }
    Some(match run(&args[2..]) {
        Ok(verdict) => {
            println!("{}", serde_json::to_string(&verdict).unwrap_or_default());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("client: {error:#}");
            ExitCode::FAILURE
        }
    })
}

fn run(args: &[String]) -> Result<Verdict> {
    let arg = |index: usize| args.get(index).map(String::as_str).context("too few arguments");
    let address: SocketAddr = arg(1)?.parse()?;
    match arg(0)? {
        // redis-fill ADDRESS KEYS
        "redis-fill" => redis::fill(address, arg(2)?.parse()?).map(|()| Verdict::default()),
        // redis-verify ADDRESS KEYS
        "redis-verify" => redis::verify(address, arg(2)?.parse()?).map(|()| Verdict::default()),
        // redis ADDRESS KEYS CLIENTS
        "redis" => {
            let keys = arg(2)?.parse()?;
            Ok(many(arg(3)?.parse()?, &|id, stop| redis::check(address, id, keys, stop)))
        }
        // http ADDRESS PATH SHA256 CLIENTS
        "http" => {
            let (path, sha256) = (arg(2)?, arg(3)?);
            Ok(many(arg(4)?.parse()?, &|_, stop| http::check(address, path, sha256, stop)))
        }
        // lines ADDRESS CLIENTS: asks `check` and expects `ok N ...` with N rising by one
        "lines" => Ok(many(arg(2)?.parse()?, &|id, stop| crate::workload::lines::check(address, id, stop))),
        other => bail!("no client is called {other}"),
    }
}

type Check<'a> = dyn Fn(usize, &dyn Fn() -> bool) -> Result<(u64, Duration)> + Sync + 'a;

/// Runs `clients` threads until standard input is closed.
fn many(clients: usize, check: &Check<'_>) -> Verdict {
    let stop = AtomicBool::new(false);
    let mut verdict = Verdict::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|id| {
                let stop = &stop;
                scope.spawn(move || check(id, &|| stop.load(Ordering::Relaxed)))
            })
            .collect();
        let mut rest = Vec::new();
        if let Err(error) = std::io::stdin().read_to_end(&mut rest) {
            verdict.errors.push(format!("standard input: {error}"));
        }
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            match thread.join() {
                Ok(Ok((replies, longest))) => {
                    verdict.replies += replies;
                    verdict.longest_gap_ms = verdict.longest_gap_ms.max(longest.as_secs_f64() * 1e3);
                }
                Ok(Err(error)) => verdict.errors.push(format!("{error:#}")),
                Err(_) => verdict.errors.push("a client thread panicked".into()),
            }
        }
    });
    verdict
}
