//! The mounts of a container as they are, not only as they are configured.
//!
//! When a sandbox has been built its mountinfo is written down ([`record`]). At the source the difference to what is
//! mounted now becomes a [`Tree`]: configured mounts by name, everything else described ([`describe`], pure, with
//! what only the file system can tell from [`explore`]). At the target the tree becomes steps ([`plan`], pure), taken
//! inside the sandbox by [`make`]. Content in memory travels as areas of the file synchronisation.
//!
//! Mount namespaces that processes have beside the container's own ([`nested`]) are parts of the same tree, each with a root
//! directory of its own. At the target they are made from nothing ([`rooms`]), whatever they were copied from at the source.

mod describe;
mod explore;
mod finish;
mod make;
mod nested;
mod options;
mod origins;
mod plan;
mod rooms;
mod spots;
mod tree;
mod whose;

pub(super) use explore::{Explored, explore};
pub(super) use make::{MakeError, Maker};
pub(super) use nested::{Nested, can_nest, nested, shown};
pub(super) use tree::{MemoryArea, Origin, Tree};

/// How what a source says about mounts is laid out.
#[cfg(test)]
pub(crate) fn layouts() -> serde_reflection::Registry {
    crate::formats::layouts!("mounts": Tree, tree::Origin, tree::Shows)
}
