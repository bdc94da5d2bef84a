//! The control groups of a container that moves: its own limits as they are, also those that were changed after
//! the start, and the groups that it made below its own.
//!
//! * [`read`] and `members` say at the source what there is; `usage` and the source's own rules refuse.
//! * `known` says what each file is, `translate` says settings of one cgroup version in the other, `sets` maps
//!   CPUs and memory nodes.
//! * [`plan`] says what the target must have; pure.
//! * [`apply`] makes it so: groups and placement early, limits when the copy is complete.

use std::collections::BTreeSet;

use image::groups::Groups;

pub mod apply;
pub mod files;
pub mod host;
mod known;
pub mod members;
mod node;
pub mod plan;
pub mod read;
mod sets;
mod translate;
mod usage;
mod valid;
mod watch;

/// The controllers that a target must have for these groups; cgroup v1 calls `io` `blkio`.
#[must_use]
pub fn needed(groups: &Groups) -> Vec<String> {
    let mut names = BTreeSet::new();
    for group in groups.trees.iter().flat_map(|tree| &tree.groups) {
        names.extend(group.subtree.iter().map(String::as_str));
        for value in &group.values {
            // Everything there becomes everything here, and cgroup v2 freezes without a controller.
            let all = match value.file.as_str() {
                "cpuset.cpus" => value.lines == [groups.cpus.as_str()],
                "cpuset.mems" => value.lines == [groups.mems.as_str()],
                file => file == "freezer.state",
            };
            names.extend(known::controller(&value.file).filter(|_| !all));
        }
    }
    names.into_iter().map(|name| if name == "blkio" { "io" } else { name }.to_owned()).collect()
}

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
