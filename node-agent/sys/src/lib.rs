//! Every kernel interface of the engine, and the only unsafe code of the product.
//!
//! One module an interface. Each `unsafe` block says which invariant it relies on; every structure that
//! crosses into the kernel has its size and offsets asserted at compile time. x86-64 Linux only.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("Gantry's engine knows x86-64 Linux only");

mod abi;
mod loopback;

// Tracing and code run inside a target (owner: sys core).
pub mod clone;
pub mod mem;
pub mod ptrace;
pub mod regs;
pub mod restart;
pub mod seccomp;
pub mod tape;

// The other kernel interfaces (owner: sys rest).
pub mod cgroup;
pub mod cpu;
pub mod diag;
pub mod fanotify;
pub mod fds;
pub mod huge;
pub mod kcmp;
pub mod keys;
pub mod landlock;
pub mod mount;
pub mod mqueue;
pub mod net;
pub mod ns;
pub mod pagemap;
pub mod pidfd;
pub mod prctl;
pub mod sock;
pub mod sysv;
pub mod tcp;
pub mod tty;
pub mod udp;
pub mod uffd;

/// What a failed system call answered.
pub use nix::errno::Errno;
/// Result of one kernel operation.
pub type Result<T> = std::result::Result<T, Errno>;
