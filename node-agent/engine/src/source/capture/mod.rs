//! Everything but the contents of memory, read while nothing runs.

pub(crate) mod directories;
pub(crate) mod epoll;
pub(crate) mod files;
mod filters;
pub(crate) mod ghosts;
pub(crate) mod image;
pub(crate) mod inet;
pub(crate) mod netlink;
pub(crate) mod options;
pub(crate) mod pipes;
pub(crate) mod raw;
mod switches;
pub(crate) mod table;
pub(crate) mod threads;
pub(crate) mod tty;
pub(crate) mod unix;
