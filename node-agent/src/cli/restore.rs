//! `restore`: a process tree out of a directory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use engine::checkpoint::load;
use engine::target::{Externals, SkeletonRoot, Target, TargetOptions, fits};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use sys::clone::{Spec, spawn_paused};

use super::archive::{Archive, FILES};
use super::checkpoint::key_path;
use super::complain;
use crate::files;
use crate::runtime::bare::Bare;
use crate::runtime::{CONTROL_FD, tmpfs_areas};

/// Largest batch of files, bytes: what the writer cuts at, and an operation more.
const MAX_BATCH: u32 = 8 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The checkpoint's directory.
    #[arg(long)]
    from: PathBuf,
    /// The directory that becomes the tree's root directory.
    #[arg(long)]
    root: Option<PathBuf>,
    /// Where a mount that comes from outside is here: KEY:PATH.
    #[arg(long, value_name = "KEY:PATH", value_parser = key_path)]
    external_mount: Vec<(String, PathBuf)>,
    /// Write the root's pid, as this process sees it, to a file.
    #[arg(long)]
    pidfile: Option<PathBuf>,
    /// End when the tree runs, instead of when it has ended.
    #[arg(long)]
    detach: bool,
}

pub(super) fn main(args: &Args) -> ExitCode {
    match run(args) {
        Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(255)),
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<i32> {
    // All of it is read, and this host compared, before a process is made.
    let archive = Archive::open(&args.from)?;
    fits(&archive.image.host).context("it cannot run here")?;
    let description = &archive.description;
    if description.namespaces.is_empty() {
        return host(args, archive);
    }
    let external: BTreeMap<String, PathBuf> = args.external_mount.iter().cloned().collect();
    let spec = description.spec(&external)?;
    let rootfs = description.rootfs(args.root.as_deref())?;
    let mut bare = Bare::build(&spec, &rootfs).context("cannot build the namespaces")?;
    let areas = tmpfs_areas(&spec, bare.root.pid).context("cannot open the tmpfs mounts")?;
    tmpfs(&archive.files, areas)
        .with_context(|| format!("cannot read {}", args.from.join(FILES).display()))?;
    let channel = bare.channel.take().context("the first process was used already")?;
    let root = SkeletonRoot { pid: bare.root.pid, channel, channel_fd: CONTROL_FD };
    fill(args, archive.checkpoint, root)?;
    if args.detach {
        return Ok(0);
    }
    Ok(bare.wait()?.map_or(255, |exit| exit.status))
}

/// A tree that shares the host's namespaces: its processes get their pids back here.
fn host(args: &Args, archive: Archive) -> anyhow::Result<i32> {
    let Archive { description, checkpoint, .. } = archive;
    if args.root.is_some() || !args.external_mount.is_empty() {
        bail!("the tree shares the host's file tree: --root and --external-mount do not apply");
    }
    let (channel, other) = crate::runtime::socket_pair().context("cannot make a socket pair")?;
    let set_tid = [description.root];
    let child = spawn_paused(&Spec { set_tid: &set_tid, ..Spec::default() }, &[other.as_fd()]);
    let child = child.with_context(|| {
        format!("cannot make process {}; its pid must be free and needs CAP_SYS_ADMIN", description.root)
    })?;
    let root = SkeletonRoot { pid: child.pid, channel, channel_fd: other.as_raw_fd() };
    drop(other);
    fill(args, checkpoint, root)?;
    if args.detach {
        return Ok(0);
    }
    match waitpid(Pid::from_raw(child.pid), None)? {
        WaitStatus::Exited(_, status) => Ok(status),
        WaitStatus::Signaled(_, signal, _) => Ok(128 + signal as i32),
        other => bail!("process {} is neither running nor ended: {other:?}", child.pid),
    }
}

fn fill(args: &Args, file: File, root: SkeletonRoot) -> anyhow::Result<()> {
    let mut target = Target::build(TargetOptions {
        root,
        netns: None,
        cgroup: None,
        nested: engine::target::NestedMounts::default(),
    })
    .context("cannot take over the first process")?;
    if let Err(error) = load(&mut target, &mut Stdio, BufReader::with_capacity(1 << 20, file)) {
        target.discard();
        return Err(error).context("cannot rebuild the tree");
    }
    let ready = target.ready().context("cannot complete the tree")?;
    let pid = ready.root_pid();
    if let Some(path) = &args.pidfile
        && let Err(error) = fs::write(path, format!("{pid}\n"))
    {
        ready.discard();
        return Err(error).with_context(|| format!("cannot write {}", path.display()));
    }
    ready.resume().context("cannot let the tree run")
}

fn tmpfs(file: &File, areas: Vec<files::Area>) -> anyhow::Result<()> {
    let mut stream = BufReader::new(file);
    let mut target = files::Target::new(areas, PathBuf::new());
    let mut length = [0; 4];
    loop {
        match stream.read_exact(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            result => result?,
        }
        let length = u32::from_le_bytes(length);
        if length > MAX_BATCH {
            bail!("it holds a batch of {length} bytes");
        }
        let mut batch = vec![0; usize::try_from(length)?];
        stream.read_exact(&mut batch)?;
        target.apply(&batch).context("cannot fill the tmpfs mounts")?;
    }
}

/// This process's own standard streams.
struct Stdio;

impl Externals for Stdio {
    fn open(&mut self, key: &str) -> io::Result<OwnedFd> {
        match key {
            "stdin" => io::stdin().as_fd().try_clone_to_owned(),
            "stdout" => io::stdout().as_fd().try_clone_to_owned(),
            "stderr" => io::stderr().as_fd().try_clone_to_owned(),
            other => Err(io::Error::new(io::ErrorKind::NotFound, format!("nothing supplies {other}"))),
        }
    }
}
