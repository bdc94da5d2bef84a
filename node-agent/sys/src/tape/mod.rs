//! Tapes: lists of system calls that a traced thread makes by itself, at full speed.
//!
//! A short loop walks records `{nr, six arguments, result}` in memory that tracer and tracee share, so ten
//! thousand calls cost one stop. Two forms:
//!
//! * [`source`]: in a live program. **Self-restoring**: a tracer killed at any moment leaves a thread that
//!   runs through the tape by itself and comes out as it was.
//! * [`target`]: in a skeleton that dies with the tracer. Ends with a breakpoint.
//!
//! What a tape does is a [`Program`].

mod area;
mod code;
mod layout;
mod leftovers;
mod program;
mod slack;
pub mod source;
pub mod target;
mod vdso;

pub use layout::Size;
pub use leftovers::{Leftovers, cleanup_leftovers};
pub use program::{Arg, Block, CallFailed, CallId, Outcome, Program};
pub use vdso::{Vdso, VdsoError};

/// Name of the shared memory as it appears in a process's maps (`/memfd:gantry-tape (deleted)`).
pub const AREA_NAME: &str = "gantry-tape";
