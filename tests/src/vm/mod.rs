//! Virtual machines with other kernels than this machine's: Debian's cloud kernels under QEMU, emulated (TCG), so
//! that no hardware is needed. What runs inside are the project's own binaries and programs of this machine.
//!
//! * [`fetch`] gets a kernel: through apt, unpacked and never installed.
//! * [`image`] packs an initial file system.
//! * [`guest`] boots it, waits for its end, and shows the console when it does not come up.
//! * [`cases`] is what is done inside, [`pair`] what is done between two.
//! * [`criu`] is a case that compares a move with CRIU.
//!
//! Times in an emulated machine are good for ratios only.

pub mod cases;
pub mod criu;
pub mod fetch;
pub mod guest;
pub mod image;
pub mod pair;

/// Programs that a machine needs to run guests.
pub const PROGRAMS: &[&str] = &[
    "qemu-system-x86_64",
    "setpriv",
    "apt-get",
    "apt-cache",
    "dpkg",
    "cpio",
    "xz",
    "strip",
    "ldd",
    "busybox",
];

/// Cases that stay outside of guests: two furnish a whole system out of this machine's, with its compiler's tools and
/// coreutils; 512 MiB under load are more than an emulated machine copies in its time; one says to ip what that of guests,
/// which is busybox's, does not know; three are about the service, not about kernels, and read files that are not in guests.
pub const TOO_MUCH: &[&str] = &[
    "system_container_with_open_ssh_sessions_moves_there_and_back",
    "userns_python_keeps_its_ids_and_moves_there_and_back",
    "redis_with_512_mib_under_load_moves_three_times",
    "network_state_moves_there_and_back_with_connections_through_its_rules",
    "what_monitoring_names_is_exported_while_a_container_moves",
    "an_authority_is_replaced_while_a_container_serves_and_moves",
    "agents_of_adjacent_versions_move_a_container_there_and_back",
];
