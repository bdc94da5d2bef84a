//! `migrate __workload`: a TCP server whose memory changes all the time and is always verifiable.

use std::io::{self, BufWriter, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::memory::{Memory, PAGE_BYTES, mix};
use super::wire::{Op, Reply, Request};

/// How often a writer thread writes its share.
const TICK: Duration = Duration::from_millis(10);

/// What the workload does.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Memory that is filled and verified.
    #[arg(long, default_value_t = 256)]
    memory_mib: u64,
    /// Writer threads.
    #[arg(long, default_value_t = 8)]
    threads: u32,
    /// Rate at which they write, all together (10^6 bytes per second).
    #[arg(long, default_value_t = 20)]
    dirty_mb_per_s: u64,
    /// Address to serve.
    #[arg(long, default_value = "0.0.0.0:7000")]
    listen: SocketAddr,
}

/// Serves until killed. Prints `ready ADDRESS` once the memory is filled and the port is bound.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let count = usize::try_from(options.memory_mib.saturating_mul(1 << 20) / PAGE_BYTES as u64)
        .context("--memory-mib is too large")?;
    let memory = Arc::new(Memory::new(count.max(1)));
    start_writers(&memory, options.threads, options.dirty_mb_per_s)?;
    let listener =
        TcpListener::bind(options.listen).with_context(|| format!("listen on {}", options.listen))?;
    println!("ready {}", listener.local_addr()?);
    loop {
        // Accept fails for a moment when descriptors run out; the server goes on.
        let Ok((stream, _)) = listener.accept() else { continue };
        let memory = Arc::clone(&memory);
        let spawned = thread::Builder::new().name("connection".into()).spawn(move || serve(&memory, &stream));
        if let Err(error) = spawned {
            eprintln!("connection refused: {error}");
        }
    }
}

/// Starts `threads` threads that write together at this rate (10^6 bytes per second), each its own pages.
pub(crate) fn start_writers(memory: &Arc<Memory>, threads: u32, dirty_mb_per_s: u64) -> anyhow::Result<()> {
    let writers = usize::try_from(threads.max(1)).unwrap_or(1).min(memory.len());
    let pages_per_second = dirty_mb_per_s.saturating_mul(1_000_000) / PAGE_BYTES as u64 / writers as u64;
    for writer in 0..writers {
        let memory = Arc::clone(memory);
        thread::Builder::new()
            .name(format!("writer-{writer}"))
            .spawn(move || write_forever(&memory, writer, writers, pages_per_second))
            .context("start a writer thread")?;
    }
    Ok(())
}

/// Writes pages `first`, `first + step`, ... in an order that looks random, at a steady rate.
fn write_forever(memory: &Memory, first: usize, step: usize, pages_per_second: u64) {
    let mine = (memory.len() - first).div_ceil(step);
    let start = Instant::now();
    let mut written: u64 = 0;
    loop {
        let elapsed = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let due = elapsed.saturating_mul(pages_per_second) / 1000;
        // After a pause the threads do not make up for the writes that they missed.
        written = written.max(due.saturating_sub(pages_per_second / 20));
        while written < due {
            let pick = usize::try_from(mix(written ^ (first as u64) << 48) % mine as u64).unwrap_or(0);
            memory.write(first + pick * step);
            written += 1;
        }
        thread::sleep(TICK);
    }
}

/// Answers one connection until it closes.
fn serve(memory: &Memory, stream: &TcpStream) {
    if let Err(error) = answer_all(memory, stream) {
        eprintln!("connection lost: {error}");
    }
}

fn answer_all(memory: &Memory, stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut out = BufWriter::new(stream);
    let mut counter = 0;
    while let Some(request) = Request::read_from(stream)? {
        counter += 1;
        answer(memory, &request, counter).write_to(&mut out)?;
        out.flush()?;
    }
    Ok(())
}

fn answer(memory: &Memory, request: &Request, counter: u64) -> Reply {
    let count = memory.len() as u64;
    let blank = Reply { sound: true, seq: request.seq, counter, page: 0, version: 0, checksum: 0 };
    match request.op {
        Op::Read => {
            let page = request.key % count;
            match memory.read(usize::try_from(page).unwrap_or(0)) {
                Some(seen) => Reply { page, version: seen.version, checksum: seen.checksum, ..blank },
                None => Reply { page, sound: false, ..blank },
            }
        }
        Op::CheckAll => {
            let wrong = memory.check_all() as u64;
            Reply { page: count, version: wrong, sound: wrong == 0, ..blank }
        }
        Op::Written => Reply { page: memory.written(), ..blank },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_count_and_name_their_page() {
        let memory = Memory::new(4);
        let reply = answer(&memory, &Request { op: Op::Read, seq: 9, key: 6 }, 3);
        assert_eq!((reply.seq, reply.counter, reply.page, reply.version, reply.sound), (9, 3, 2, 1, true));
        let reply = answer(&memory, &Request { op: Op::CheckAll, seq: 10, key: 0 }, 4);
        assert_eq!((reply.page, reply.version, reply.sound), (4, 0, true));
        memory.write(1);
        assert_eq!(answer(&memory, &Request { op: Op::Written, seq: 11, key: 0 }, 5).page, 5);
    }
}
