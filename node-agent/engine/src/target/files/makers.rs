//! Unix sockets remember who made a pair, connected or listened (SO_PEERCRED): these calls are made by that process.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use image::files::OpenFile;
use image::namespaces::{path_in, split_path};
use image::sockets::PeerCredentials;
use libc::{
    AF_UNIX, SYS_chdir, SYS_close, SYS_connect, SYS_fchdir, SYS_listen, SYS_setgroups, SYS_setresgid,
    SYS_setresuid, SYS_socketpair,
};
use nix::fcntl::OFlag;
use sys::sock::{self, Address};

use super::{Workshop, fail_errno};
use crate::target::attributes::{SECBIT_NO_SETUID_FIXUP, prctl};
use crate::target::error::TargetError;
use crate::target::script::{Block, Call, call};
use crate::target::skeleton::lost;

const AS_IT_WAS: u32 = u32::MAX;

/// socketpair(2) by the process that both ends name; by the agent when it is gone.
pub(super) fn pair(
    file: &OpenFile,
    kind: i32,
    by: Option<&PeerCredentials>,
    shop: &mut Workshop<'_>,
) -> Result<(OwnedFd, OwnedFd), TargetError> {
    let Some(by) = by else {
        return sock::pair(AF_UNIX, kind, 0).map_err(fail_errno(file, "socketpair"));
    };
    let skeleton = shop.tree.get(by.pid)?;
    let call = call!("socketpair", SYS_socketpair, AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, Block::answer(8));
    let (calls, at) = as_maker(by, vec![call]);
    let ran = skeleton.run(shop.tape, &calls)?;
    let numbers = ran.answers.get(at).and_then(|answer| answer.blocks.first());
    let number = |at: usize| {
        let bytes = numbers.and_then(|bytes| bytes.get(at..at + 4)?.try_into().ok());
        bytes.map_or(-1, i32::from_ne_bytes)
    };
    let (one, other) = (number(0), number(4));
    let take = |number| sys::pidfd::getfd(skeleton.pidfd.as_fd(), number);
    let taken = take(one).and_then(|fd| Ok((fd, take(other)?))).map_err(fail_errno(file, "take a pair"))?;
    let close = [call!("close", SYS_close, one), call!("close", SYS_close, other)];
    skeleton.run(shop.tape, &close)?;
    Ok(taken)
}

/// listen(2) by the process that the socket names.
pub(super) fn listen(
    file: &OpenFile,
    fd: BorrowedFd<'_>,
    backlog: i32,
    by: Option<&PeerCredentials>,
    shop: &mut Workshop<'_>,
) -> Result<(), TargetError> {
    let Some(by) = by else { return sock::listen(fd, backlog).map_err(fail_errno(file, "listen")) };
    on(by, fd, shop, |number| vec![call!("listen", SYS_listen, number, backlog)])
}

/// connect(2) to a name of the container by the process that the accepted end names. Names are as that process may know
/// them, but for those that it had through another mount namespace: it goes to their directory.
pub(super) fn connect(
    fd: BorrowedFd<'_>,
    name: &[u8],
    by: &PeerCredentials,
    shop: &mut Workshop<'_>,
) -> Result<(), TargetError> {
    let (space, name) = split_path(name);
    let abstracted = name.first() == Some(&0);
    if !abstracted && space != shop.tree.get(by.pid)?.namespaces.mnt {
        return connect_beyond(fd, &path_in(space, name), by, shop);
    }
    let mut address = Address::Unix(name.to_vec()).to_bytes();
    if !abstracted {
        address.push(0);
    }
    let length = address.len();
    on(by, fd, shop, |number| {
        vec![
            call!("chdir", SYS_chdir, Block::text("/")),
            call!("connect", SYS_connect, number, Block::new(address), length),
        ]
    })
}

/// connect(2) by a process that does not have the name in its own mount namespace.
fn connect_beyond(
    fd: BorrowedFd<'_>,
    name: &[u8],
    by: &PeerCredentials,
    shop: &mut Workshop<'_>,
) -> Result<(), TargetError> {
    let name = String::from_utf8_lossy(name);
    let (parent, leaf) = name.rsplit_once('/').unwrap_or(("", &name));
    let parent = if parent.is_empty() { "/" } else { parent };
    let directory = shop.root.open(by.pid, parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    let mut address = Address::Unix(leaf.as_bytes().to_vec()).to_bytes();
    address.push(0);
    let length = address.len();
    let skeleton = shop.tree.get(by.pid)?;
    let landed =
        shop.channel.plant(&mut skeleton.leader, shop.tape, shop.channel.number, &[fd, directory.as_fd()])?;
    let [socket, directory] = landed[..] else { return Err(lost(by.pid, "a directory did not reach it")) };
    let connect = vec![call!("connect", SYS_connect, socket, Block::new(address), length)];
    let mut calls = vec![call!("fchdir", SYS_fchdir, directory)];
    calls.extend(as_maker(by, connect).0);
    calls.push(call!("chdir", SYS_chdir, Block::text("/")));
    calls.extend([call!("close", SYS_close, socket), call!("close", SYS_close, directory)]);
    skeleton.run(shop.tape, &calls).map(drop)
}

/// Calls on a descriptor that the process has meanwhile.
fn on(
    by: &PeerCredentials,
    fd: BorrowedFd<'_>,
    shop: &mut Workshop<'_>,
    calls: impl FnOnce(i32) -> Vec<Call>,
) -> Result<(), TargetError> {
    let skeleton = shop.tree.get(by.pid)?;
    let number = shop.channel.plant(&mut skeleton.leader, shop.tape, shop.channel.number, &[fd])?;
    let number = number.first().copied().unwrap_or(-1);
    let (mut calls, _) = as_maker(by, calls(number));
    calls.push(call!("close", SYS_close, number));
    skeleton.run(shop.tape, &calls).map(drop)
}

/// Calls as the user that made them; and at which place the first of them is. No capability is lost on the way. The groups
/// are none afterwards: those of the process come with its credentials.
fn as_maker(by: &PeerCredentials, calls: Vec<Call>) -> (Vec<Call>, usize) {
    let none = by.groups.is_empty() && nix::unistd::getgroups().is_ok_and(|own| own.is_empty());
    if (by.uid, by.gid) == (0, 0) && none {
        return (calls, 0);
    }
    // A user namespace may forbid it.
    let groups = |list: &[u32]| {
        let bytes: Vec<u8> = list.iter().flat_map(|group| group.to_le_bytes()).collect();
        call!("setgroups", SYS_setgroups, list.len(), Block::new(bytes)).accept(&[libc::EPERM])
    };
    let ids = |uid: u32, gid: u32| {
        [
            call!("setresgid", SYS_setresgid, AS_IT_WAS, gid, AS_IT_WAS),
            call!("setresuid", SYS_setresuid, AS_IT_WAS, uid, AS_IT_WAS),
        ]
    };
    let bits = |bits: u64| prctl("PR_SET_SECUREBITS", libc::PR_SET_SECUREBITS, bits);
    let mut all = vec![bits(SECBIT_NO_SETUID_FIXUP), groups(&by.groups)];
    all.extend(ids(by.uid, by.gid));
    let at = all.len();
    all.extend(calls);
    all.extend(ids(0, 0));
    all.extend([groups(&[]), bits(0)]);
    (all, at)
}
