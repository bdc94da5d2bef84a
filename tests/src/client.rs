//! The process that runs on the client host. A test binary starts itself there with `__client` as its first
//! argument. A line on its standard input asks whether every client has answers still, closing it ends the run;
//! the answer to either is a verdict, one JSON line.

use std::fmt;
use std::io::BufRead as _;
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::workload::connections::Held;
use crate::workload::{http, lines, memcached, redis};

/// A time without an answer.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Gap {
    /// When it began, milliseconds since 1970.
    pub at_unix_ms: f64,
    /// How long it was.
    pub ms: f64,
}

/// Milliseconds since 1970.
#[must_use]
pub fn unix_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64() * 1e3)
}

/// What the clients of one run saw.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Verdict {
    /// Replies that were checked and right.
    pub replies: u64,
    /// The longest time any client waited between two replies, milliseconds.
    pub longest_gap_ms: f64,
    /// Gaps of [`LISTED`] and more, those of all clients.
    #[serde(default)]
    pub gaps: Vec<Gap>,
    /// What was wrong; empty when nothing was.
    pub errors: Vec<String>,
}

/// With the number of listed gaps instead of a list that fills screens.
impl fmt::Debug for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verdict")
            .field("replies", &self.replies)
            .field("longest_gap_ms", &self.longest_gap_ms)
            .field("gaps", &self.gaps.len())
            .field("errors", &self.errors)
            .finish()
    }
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
        // connect ADDRESS
        "connect" => {
            TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
            Ok(Verdict::default())
        }
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
        // visit ADDRESS PATH SHA256 CLIENTS: a new connection for each download
        "visit" => {
            let (path, sha256) = (arg(2)?, arg(3)?);
            Ok(many(arg(4)?.parse()?, &|_, stop| http::visit(address, path, sha256, stop)))
        }
        // memcached ADDRESS CLIENTS
        "memcached" => Ok(many(arg(2)?.parse()?, &|id, stop| memcached::check(address, id, stop))),
        // http-once ADDRESS PATH SHA256
        "http-once" => {
            let begun = AtomicBool::new(false);
            http::check(address, arg(2)?, arg(3)?, &|| begun.swap(true, Ordering::Relaxed))?;
            Ok(Verdict::default())
        }
        // lines ADDRESS CLIENTS: asks `check` and expects `ok N ...` with N rising by one
        "lines" => Ok(many(arg(2)?.parse()?, &|id, stop| lines::check(address, id, stop))),
        // connections ADDRESS COUNT: so many say nothing until the end, one more asks all the time
        "connections" => {
            let mut held = Held::connect(address, arg(2)?.parse()?)?;
            let mut verdict = many(1, &|id, stop| lines::check(address, id, stop));
            match held.ask_all() {
                Ok(answers) => verdict.replies += answers,
                Err(error) => verdict.errors.push(format!("{error:#}")),
            }
            Ok(verdict)
        }
        // ask ADDRESS QUESTION ANSWER: one line each
        "ask" => lines::ask(address, arg(2)?, arg(3)?).map(|()| Verdict::default()),
        other => bail!("no client is called {other}"),
    }
}

type Check<'a> = dyn Fn(usize, &dyn Fn() -> bool) -> Result<(u64, Duration)> + Sync + 'a;

/// Shortest gap that is listed with its time.
pub const LISTED: Duration = Duration::from_millis(5);
/// Gaps listed of one client.
const GAPS_KEPT: usize = 20_000;

/// How long a client may take for its next answers when it is asked whether it has any.
const PROGRESS: Duration = Duration::from_secs(40);

/// Runs `clients` threads until standard input is closed.
fn many(clients: usize, check: &Check<'_>) -> Verdict {
    let stop = AtomicBool::new(false);
    let answers: Vec<Mutex<Answers>> = (0..clients).map(|_| Mutex::new(Answers::default())).collect();
    let mut verdict = Verdict::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|id| {
                let (stop, answers) = (&stop, &answers);
                scope.spawn(move || {
                    let ended = check(id, &|| {
                        // Every client looks at this once an answer.
                        if let Ok(mut answers) = answers[id].lock() {
                            answers.another();
                        }
                        stop.load(Ordering::Relaxed)
                    });
                    if let (Err(error), Ok(mut answers)) = (&ended, answers[id].lock()) {
                        answers.error = format!("{error:#}");
                    }
                    ended
                })
            })
            .collect();
        for line in std::io::stdin().lock().lines() {
            if let Err(error) = line {
                verdict.errors.push(format!("standard input: {error}"));
                break;
            }
            let ended = |id: usize| threads[id].is_finished();
            println!("{}", serde_json::to_string(&progress(&answers, &ended)).unwrap_or_default());
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
    for answers in answers.into_iter().filter_map(|answers| answers.into_inner().ok()) {
        verdict.gaps.extend(answers.gaps);
    }
    verdict
}

/// What one client has had.
#[derive(Debug)]
struct Answers {
    count: u64,
    last: Instant,
    longest: Duration,
    gaps: Vec<Gap>,
    /// Why it ended.
    error: String,
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            count: 0,
            last: Instant::now(),
            longest: Duration::ZERO,
            gaps: Vec::new(),
            error: String::new(),
        }
    }
}

impl Answers {
    fn another(&mut self) {
        self.count += 1;
        let gap = self.last.elapsed();
        self.longest = self.longest.max(gap);
        if gap >= LISTED && self.gaps.len() < GAPS_KEPT {
            let ms = gap.as_secs_f64() * 1e3;
            self.gaps.push(Gap { at_unix_ms: unix_ms() - ms, ms });
        }
        self.last = Instant::now();
    }
}

/// Waits until every client has had two more answers, asked for after now. The longest gap is that since this was
/// asked last.
fn progress(answers: &[Mutex<Answers>], ended: &dyn Fn(usize) -> bool) -> Verdict {
    let count = |id: usize| answers[id].lock().map(|answers| answers.count).unwrap_or_default();
    let began = Instant::now();
    let before: Vec<u64> = (0..answers.len()).map(count).collect();
    let mut verdict = Verdict::default();
    for (id, before) in before.iter().enumerate() {
        while count(id) < before + 3 && !ended(id) && began.elapsed() < PROGRESS {
            std::thread::park_timeout(Duration::from_millis(2));
        }
        if ended(id) {
            let why = answers[id].lock().map(|answers| answers.error.clone()).unwrap_or_default();
            verdict.errors.push(format!("client {id} has ended: {why}"));
        } else if count(id) < before + 3 {
            verdict.errors.push(format!("client {id} has had no answer for {PROGRESS:?}"));
        }
        verdict.replies += count(id);
        if let Ok(mut answers) = answers[id].lock() {
            let longest = std::mem::take(&mut answers.longest);
            verdict.longest_gap_ms = verdict.longest_gap_ms.max(longest.as_secs_f64() * 1e3);
        }
    }
    verdict
}
