//! Pure planning: what is to be done so that skeletons become what an image says.
//!
//! Nothing here touches the kernel. Each plan is checked by property tests that carry it out on a small
//! model of the kernel's rules.

pub mod fds;
pub mod memory;
pub(crate) mod threads;
pub mod tree;
