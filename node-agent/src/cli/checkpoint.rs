//! `checkpoint`: a process tree into a directory. See [`super::archive`].

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufWriter, IntoInnerError, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use engine::checkpoint::{SaveError, save};
use engine::source::{External, Namespaces, Source, SourceError, TreeSpec};

use super::archive::{self, CHECKPOINT, FILES, Summed};
use super::complain;
use super::description::Description;
use crate::files;
use crate::runtime::tmpfs_areas;
use crate::telemetry::chain;

/// The tree cannot be captured; it runs on.
const REFUSED: u8 = 3;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The tree's root.
    #[arg(long)]
    pid: i32,
    /// A directory that does not exist yet, or is empty.
    #[arg(long)]
    out: PathBuf,
    /// Let the tree run on.
    #[arg(long)]
    leave_running: bool,
    /// Names a mount of the tree that comes from outside of it: KEY:MOUNT-POINT.
    #[arg(long, value_name = "KEY:PATH", value_parser = key_path)]
    external_mount: Vec<(String, PathBuf)>,
}

/// Parses `KEY:PATH`.
pub(super) fn key_path(text: &str) -> Result<(String, PathBuf), String> {
    match text.rsplit_once(':') {
        Some((key, path)) if !key.is_empty() && path.starts_with('/') => {
            Ok((key.to_owned(), PathBuf::from(path)))
        }
        _ => Err("must be KEY:PATH with an absolute path".to_owned()),
    }
}

pub(super) fn main(args: &Args) -> ExitCode {
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let refused = error.chain().find_map(|cause| match cause.downcast_ref::<SourceError>() {
                Some(SourceError::Refused(list)) => Some(list),
                _ => None,
            });
            for refusal in refused.into_iter().flatten() {
                complain(&format!("refused: {refusal}"));
            }
            complain(&format!("{error:#}"));
            if refused.is_some() { ExitCode::from(REFUSED) } else { ExitCode::FAILURE }
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let named: BTreeMap<PathBuf, String> =
        args.external_mount.iter().map(|(key, path)| (path.clone(), key.clone())).collect();
    let mut description = Description::of(args.pid, &named)?;
    let own = |kind: &str| description.namespaces.iter().any(|own| own == kind);
    archive::create(&args.out)?;
    let spec = TreeSpec {
        root: args.pid,
        cgroup: None,
        externals: stdio(args.pid, own("mount"))?,
        terminals: Vec::new(),
        namespaces: if own("pid") { Namespaces::Own } else { Namespaces::Host },
        mounts: engine::source::MountNamespaces::default(),
    };
    let mut source = Source::attach(&spec).context("cannot attach to the tree")?;
    match write(&mut source, args, &mut description) {
        Ok(()) if args.leave_running => {
            source.abort().context("the checkpoint is complete, but the tree cannot be let go")
        }
        Ok(()) => source.kill().context("the checkpoint is complete, but the tree cannot be ended"),
        Err(error) => {
            if let Err(abort) = source.abort() {
                complain(&format!("the tree was not let go in order: {}", chain(&abort)));
            }
            let _ = fs::remove_file(args.out.join(CHECKPOINT));
            let _ = fs::remove_file(args.out.join(FILES));
            Err(error)
        }
    }
}

fn write(source: &mut Source, args: &Args, description: &mut Description) -> anyhow::Result<()> {
    let stream = BufWriter::with_capacity(1 << 20, Summed::create(&args.out, CHECKPOINT)?);
    let what = |name: &str| format!("cannot write {}", args.out.join(name).display());
    // One round while it runs, then what changed meanwhile: the freeze is short and the file little longer.
    let (stream, _) = match save(source, 1, stream) {
        Err(SaveError::Source(error)) => return Err(error).context("cannot capture the tree"),
        result => result.with_context(|| what(CHECKPOINT))?,
    };
    let finish =
        |stream: BufWriter<Summed>| stream.into_inner().map_err(IntoInnerError::into_error)?.finish();
    let checkpoint = finish(stream).with_context(|| what(CHECKPOINT))?;
    let files = finish(tmpfs(args, description)?).with_context(|| what(FILES))?;
    description.seal([(CHECKPOINT.to_owned(), checkpoint), (FILES.to_owned(), files)].into())?;
    archive::complete(&args.out, description)
}

/// The contents of the tree's tmpfs mounts, while it stands still: each batch after its length.
fn tmpfs(args: &Args, description: &Description) -> anyhow::Result<BufWriter<Summed>> {
    let mut stream = BufWriter::new(Summed::create(&args.out, FILES)?);
    let everywhere = description.external_keys();
    let spec = description.spec(&everywhere)?;
    let areas = tmpfs_areas(&spec, args.pid).context("cannot open the tree's tmpfs mounts")?;
    let mut source = files::Source::new(areas, PathBuf::new());
    source.last(&files::Suspects::default(), &mut |batch| {
        let length = u32::try_from(batch.len()).map_err(std::io::Error::other)?;
        stream.write_all(&length.to_le_bytes())?;
        stream.write_all(batch)
    })?;
    Ok(stream)
}

/// Standard streams of the root process that whoever restores it must supply: terminals, pipes, sockets, and
/// files of a file tree that is not its own.
fn stdio(pid: i32, own_mounts: bool) -> anyhow::Result<Vec<External>> {
    let mut externals: Vec<External> = Vec::new();
    for (number, key) in ["stdin", "stdout", "stderr"].into_iter().enumerate() {
        let path = format!("/proc/{pid}/fd/{number}");
        let Ok(file) = fs::metadata(&path) else { continue };
        let kind = file.file_type();
        // null, zero and the like are the same everywhere, whatever mount they were opened on.
        let plain = kind.is_char_device() && rustix::fs::major(file.rdev()) == 1;
        let terminal = kind.is_char_device() && !plain;
        let outside = own_mounts && !plain && !is_visible(pid, number)?;
        let known = externals.iter().any(|external| (external.dev, external.ino) == (file.dev(), file.ino()));
        if (terminal || kind.is_fifo() || kind.is_socket() || outside) && !known {
            externals.push(External { key: key.to_owned(), dev: file.dev(), ino: file.ino() });
        }
    }
    Ok(externals)
}

/// The file behind a descriptor is on a mount of the process.
fn is_visible(pid: i32, fd: usize) -> anyhow::Result<bool> {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}"))?;
    let id = info
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))
        .and_then(|id| id.trim().parse::<i32>().ok());
    let mounts = engine::proc::mountinfo::parse(&fs::read(format!("/proc/{pid}/mountinfo"))?)?;
    Ok(mounts.iter().any(|mount| Some(mount.id) == id))
}
