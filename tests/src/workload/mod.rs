//! Programs that are moved, and clients that check them.

pub mod connections;
pub mod http;
pub mod lines;
pub mod load;
pub mod memcached;
pub mod nginx;
pub mod python;
pub mod redis;
pub mod system;

/// A python3 program with threads, timers, a pipe to a child, a unix socket and a deleted file, which checks
/// itself and answers `check` on TCP port 7000.
pub const PYTHON_PROGRAM: &str = include_str!("program.py");

/// A python3 program that changes files in the directories that are its arguments, and compares them all the time;
/// it answers `check` on TCP port 7000.
pub const FILES_PROGRAM: &str = include_str!("files.py");

/// A python3 program that gives back, replaces, swaps and shares its memory, and compares it with what it knows; it
/// answers as [`PYTHON_PROGRAM`].
pub const MEMORY_PROGRAM: &str = include_str!("memory.py");

/// A python3 program that mounts for itself and checks its mounts and the files on them; it answers as
/// [`PYTHON_PROGRAM`], and `uncover` by unmounting what covers something.
pub const MOUNTS_PROGRAM: &str = include_str!("mounts.py");

/// A python3 program that answers on TCP and UDP port 7000, asks there, and captures what passes; see its text.
pub const PACKETS_PROGRAM: &str = include_str!("packets.py");

/// A python3 program that holds what cannot move; its argument is `lease`, `netlink` or `uring`.
pub const HOLDER_PROGRAM: &str = include_str!("holder.py");

/// A python3 program that sends an agent or a coordinator what no peer sends.
pub const HOSTILE_PROGRAM: &str = include_str!("hostile.py");

/// A script that gives interfaces, rules, mounts and control groups to a container.
pub const STATE_SCRIPT: &str = include_str!("state.sh");

/// A python3 program that answers `check` on TCP port 7000 and does nothing else, unless it has a directory of files to
/// change.
pub const SERVED_PROGRAM: &str = include_str!("served.py");

/// A python3 program with processes, threads and descriptors in any number; it answers `check` and `verify` on TCP port
/// 7000.
pub const POPULATION_PROGRAM: &str = include_str!("population.py");

/// A python3 program whose eight processes share memory and a listening socket; it answers as [`POPULATION_PROGRAM`], each
/// process one connection at a time.
pub const SHARED_PROGRAM: &str = include_str!("shared.py");

/// An HTTP server under Node.js: `/file` on port 8080 is [`nginx::content`] of 16384 words.
pub const NODE_PROGRAM: &str = include_str!("server.js");

/// The same in a JVM.
pub const JAVA_PROGRAM: &str = include_str!("Server.java");

/// The same under python3, slowly and for one connection at a time: there is always somebody who waits to be accepted.
pub const QUEUED_PROGRAM: &str = include_str!("queued.py");

/// Sessions with a PostgreSQL server; its arguments are address, port and how many. It answers as a client process does.
pub const POSTGRES_CLIENT: &str = include_str!("postgres.py");

/// A python3 program with connections to its own unix socket that it accepts only when it is asked to.
pub const RELUCTANT_PROGRAM: &str = include_str!("reluctant.py");

/// A python3 program that has bash on a terminal and sits at it, with jobs in the background, the foreground and
/// stopped; it answers as [`PYTHON_PROGRAM`].
pub const SHELL_PROGRAM: &str = include_str!("shell.py");

/// A python3 program whose 32 workers share 256 MiB with it as copy-on-write; it answers as [`POPULATION_PROGRAM`], one
/// connection at a time.
pub const FORKED_PROGRAM: &str = include_str!("forked.py");
