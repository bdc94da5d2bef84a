//! `migrate __client`: many connections that never reconnect, check every reply and time every silence.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

use super::memory::{expected_checksum, mix};
use super::report::{ConnectionReport, Gap, Report, Written, summarise};
use super::wire::{Op, Reply, Request};

/// For how long replies are counted together, and how often the server is asked what it has written.
const TICK: Duration = Duration::from_millis(100);
/// Silences kept of one connection; the longest are what matters.
const GAPS_KEPT: usize = 4096;

/// What the client does.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// The server.
    #[arg(long)]
    connect: SocketAddr,
    /// How long to try to connect: the server may still be starting.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    connect_timeout: Duration,
    /// Connections, each with one request under way.
    #[arg(long, default_value_t = 16)]
    connections: u32,
    /// How long to run; without it, until standard input closes.
    #[arg(long, value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// Pause between a reply and the next request.
    #[arg(long, default_value = "2ms", value_parser = humantime::parse_duration)]
    interval: Duration,
    /// A request without a reply for so long is lost, and its connection with it.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    reply_timeout: Duration,
    /// Shortest silence that is listed with its time.
    #[arg(long, default_value = "2500us", value_parser = humantime::parse_duration)]
    list_gaps_from: Duration,
    /// Ask the server every 100 ms, on one more connection, how many pages it has written.
    #[arg(long)]
    watch_writes: bool,
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64() * 1000.0)
}

/// Runs the client; prints `{"event":"connected",...}` once all connections stand and the [`Report`] at the end.
/// Answers whether nothing was lost.
pub(crate) fn run(options: &Options) -> anyhow::Result<bool> {
    let mut streams = Vec::new();
    for _ in 0..options.connections {
        let stream = connect(options.connect, options.connect_timeout)
            .with_context(|| format!("connect to {}", options.connect))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(options.reply_timeout))?;
        streams.push(stream);
    }
    println!("{}", serde_json::json!({"event": "connected", "connections": streams.len()}));
    let stop = AtomicBool::new(false);
    let watched =
        options.watch_writes.then(|| connect(options.connect, options.connect_timeout)).transpose()?;
    let (began, began_unix_ms) = (Instant::now(), unix_ms());
    let (mut connections, written) = thread::scope(|scope| {
        let handles: Vec<_> = (0..)
            .zip(&streams)
            .map(|(index, stream)| {
                let stop = &stop;
                scope.spawn(move || Connection::new(index, stream, options).run(stop, began))
            })
            .collect();
        let watcher = watched.map(|stream| {
            let (stop, timeout) = (&stop, options.reply_timeout);
            scope.spawn(move || watch_writes(&stream, timeout, stop))
        });
        wait_for_the_end(options.duration);
        stop.store(true, Ordering::Relaxed);
        let connections = handles
            .into_iter()
            .map(|handle| {
                let died =
                    || ConnectionReport { error: Some("client thread died".into()), ..Default::default() };
                handle.join().unwrap_or_else(|_| died())
            })
            .collect::<Vec<_>>();
        (connections, watcher.map(|watcher| watcher.join()))
    });
    let check = check_all(&streams, &mut connections);
    let written = match written {
        Some(Ok(written)) => written.context("ask what the server has written")?,
        Some(Err(_)) => anyhow::bail!("the thread that asks what was written died"),
        None => Vec::new(),
    };
    let report = Report { began_unix_ms, written, ..summarise(connections, check) };
    println!("{}", serde_json::to_string(&report)?);
    Ok(report.nothing_lost())
}

/// Connects, again and again until `limit` is over. Only the first connection of each stream is made so: afterwards
/// nothing reconnects.
fn connect(address: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let start = Instant::now();
    loop {
        match TcpStream::connect_timeout(&address, Duration::from_secs(2)) {
            Err(_) if start.elapsed() < limit => thread::sleep(Duration::from_millis(20)),
            outcome => return outcome,
        }
    }
}

/// Asks again and again how much was written, until `stop`.
fn watch_writes(stream: &TcpStream, timeout: Duration, stop: &AtomicBool) -> io::Result<Vec<Written>> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(timeout))?;
    let mut all = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let request = Request { op: Op::Written, seq: all.len() as u64 + 1, key: 0 };
        request.write_to(stream)?;
        let reply = Reply::read_from(stream)?;
        if (reply.seq, reply.counter) != (request.seq, request.seq) {
            return Err(io::Error::other(format!("reply {} where {} was due", reply.counter, request.seq)));
        }
        all.push(Written { at_unix_ms: unix_ms(), pages: reply.page });
        thread::sleep(TICK);
    }
    Ok(all)
}

fn wait_for_the_end(duration: Option<Duration>) {
    match duration {
        Some(duration) => thread::sleep(duration),
        // The end of standard input, or an error on it, ends the run.
        None => drop(io::copy(&mut io::stdin().lock(), &mut io::sink())),
    }
}

/// Asks over the first living connection for a check of every page.
fn check_all(streams: &[TcpStream], connections: &mut [ConnectionReport]) -> Option<Reply> {
    let (stream, report) = streams.iter().zip(connections).find(|(_, c)| c.error.is_none())?;
    let request = Request { op: Op::CheckAll, seq: report.sent + 1, key: 0 };
    request.write_to(stream).ok()?;
    let reply = Reply::read_from(stream).ok()?;
    (reply.seq == request.seq && reply.counter == report.replies + 1).then_some(reply)
}

struct Connection<'a> {
    stream: &'a TcpStream,
    options: &'a Options,
    report: ConnectionReport,
    /// The newest version seen of each page: none may go back.
    versions: HashMap<u64, u64>,
}

impl<'a> Connection<'a> {
    fn new(index: u32, stream: &'a TcpStream, options: &'a Options) -> Self {
        let report = ConnectionReport { index, ..ConnectionReport::default() };
        Self { stream, options, report, versions: HashMap::new() }
    }

    fn run(mut self, stop: &AtomicBool, began: Instant) -> ConnectionReport {
        let mut last = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            if let Err(error) = self.ask() {
                self.report.error = Some(error.to_string());
                break;
            }
            self.note_silence(last.elapsed());
            self.count(began.elapsed());
            last = Instant::now();
            thread::sleep(self.options.interval);
        }
        self.report
    }

    /// One request and its reply.
    fn ask(&mut self) -> io::Result<()> {
        let seq = self.report.sent + 1;
        // A few thousand keys, so that every connection meets the same pages again and sees their age.
        let key = mix(seq ^ u64::from(self.report.index) << 40) % 2048;
        let request = Request { op: Op::Read, seq, key };
        self.report.sent = seq;
        request.write_to(self.stream)?;
        let reply = Reply::read_from(self.stream)?;
        if let Err(what) = self.judge(&request, &reply) {
            self.report.wrong += 1;
            self.report.first_wrong.get_or_insert(what);
        }
        self.report.replies += 1;
        Ok(())
    }

    fn judge(&mut self, request: &Request, reply: &Reply) -> Result<(), String> {
        if reply.seq != request.seq {
            return Err(format!("reply to request {}, expected {}", reply.seq, request.seq));
        }
        if reply.counter != self.report.replies + 1 {
            return Err(format!(
                "the server counts {} replies, expected {}",
                reply.counter,
                self.report.replies + 1
            ));
        }
        if !reply.sound {
            return Err(format!("the server found page {} damaged", reply.page));
        }
        if reply.checksum != expected_checksum(reply.page, reply.version) {
            return Err(format!("page {} version {} has a wrong checksum", reply.page, reply.version));
        }
        let newest = self.versions.entry(reply.page).or_default();
        if reply.version < *newest {
            return Err(format!("page {} went back from version {newest} to {}", reply.page, reply.version));
        }
        *newest = reply.version;
        Ok(())
    }

    fn count(&mut self, at: Duration) {
        let tick = usize::try_from(at.as_millis() / TICK.as_millis()).unwrap_or(0);
        if self.report.per_tick.len() <= tick {
            self.report.per_tick.resize(tick + 1, 0);
        }
        self.report.per_tick[tick] += 1;
    }

    fn note_silence(&mut self, silence: Duration) {
        let ms = silence.as_secs_f64() * 1000.0;
        let gap = Gap { at_unix_ms: unix_ms() - ms, ms };
        if self.report.max_gap.is_none_or(|longest| ms > longest.ms) {
            self.report.max_gap = Some(gap);
        }
        if silence >= self.options.list_gaps_from {
            if self.report.gaps.len() == GAPS_KEPT {
                let shortest =
                    (0..GAPS_KEPT).min_by(|&a, &b| self.report.gaps[a].ms.total_cmp(&self.report.gaps[b].ms));
                if let Some(shortest) = shortest.filter(|&i| self.report.gaps[i].ms < ms) {
                    self.report.gaps[shortest] = gap;
                }
            } else {
                self.report.gaps.push(gap);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options {
            connect: SocketAddr::from(([127, 0, 0, 1], 1)),
            connections: 1,
            connect_timeout: Duration::ZERO,
            duration: None,
            interval: Duration::ZERO,
            reply_timeout: Duration::from_secs(1),
            list_gaps_from: Duration::from_millis(3),
            watch_writes: false,
        }
    }

    fn pair() -> (TcpStream, TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    /// Lets `connection` ask once while the test answers with what `reply` makes of the request.
    fn exchange(
        connection: &mut Connection<'_>,
        server: &TcpStream,
        reply: impl Fn(&Request) -> Reply + Sync,
    ) {
        thread::scope(|scope| {
            scope.spawn(|| {
                let request = Request::read_from(server).unwrap().unwrap();
                reply(&request).write_to(server).unwrap();
            });
            connection.ask().unwrap();
        });
    }

    fn right(request: &Request, counter: u64, version: u64) -> Reply {
        let checksum = expected_checksum(request.key, version);
        Reply { sound: true, seq: request.seq, counter, page: request.key, version, checksum }
    }

    #[test]
    fn wrong_replies_are_counted() {
        let (client, server) = pair();
        let options = options();
        let mut connection = Connection::new(0, &client, &options);
        exchange(&mut connection, &server, |r| right(r, 1, 5));
        assert_eq!(connection.report.wrong, 0);
        exchange(&mut connection, &server, |r| right(r, 1, 5)); // a repeated reply: the counter stands still
        assert_eq!(connection.report.wrong, 1);
        exchange(&mut connection, &server, |r| Reply { checksum: 0, ..right(r, 3, 5) });
        assert_eq!(connection.report.wrong, 2);
        exchange(&mut connection, &server, |r| Reply { seq: 77, ..right(r, 4, 5) });
        assert_eq!(connection.report.wrong, 3);
        assert!(connection.report.first_wrong.unwrap().contains("counts 1 replies"));
    }

    #[test]
    fn a_page_that_goes_back_is_wrong() {
        let (client, _server) = pair();
        let options = options();
        let mut connection = Connection::new(0, &client, &options);
        let request = Request { op: Op::Read, seq: 1, key: 4 };
        assert!(connection.judge(&request, &right(&request, 1, 9)).is_ok());
        let back = connection.judge(&request, &right(&request, 1, 8)).unwrap_err();
        assert!(back.contains("went back from version 9 to 8"), "{back}");
    }

    #[test]
    fn a_closed_connection_is_lost() {
        let (client, server) = pair();
        drop(server);
        let options = options();
        let report = Connection::new(0, &client, &options).run(&AtomicBool::new(false), Instant::now());
        assert!(report.error.is_some());
        let report = summarise(vec![report], None);
        assert_eq!((report.connections_lost, report.requests_lost), (1, 1));
        assert!(!report.nothing_lost());
    }

    #[test]
    fn replies_are_counted_by_time_over_all_connections() {
        let (client, _server) = pair();
        let options = options();
        let counted = |times: &[u64]| {
            let mut connection = Connection::new(0, &client, &options);
            times.iter().for_each(|ms| connection.count(Duration::from_millis(*ms)));
            connection.report
        };
        let report = summarise(vec![counted(&[5, 99, 100, 310]), counted(&[7])], None);
        assert_eq!(report.replies_per_100ms, [3, 1, 0, 1]);
    }

    #[test]
    fn writes_are_watched_on_a_connection_of_their_own() {
        let (client, server) = pair();
        let stop = AtomicBool::new(false);
        let seen = thread::scope(|scope| {
            let watcher = scope.spawn(|| watch_writes(&client, Duration::from_secs(5), &stop).unwrap());
            let request = Request::read_from(&server).unwrap().unwrap();
            assert_eq!(request.op, Op::Written);
            stop.store(true, Ordering::Relaxed);
            right(&request, 1, 1).write_to(&server).unwrap();
            watcher.join().unwrap()
        });
        assert_eq!(seen.len(), 1);
    }
}
