//! The directory of a checkpoint: written for nobody else's eyes, and read whole before anything is made of it.
//!
//! | | mode | |
//! |---|---|---|
//! | `DIR` | 0700 | |
//! | `DIR/checkpoint` | 0600 | the engine's stream: address spaces, pages, state |
//! | `DIR/files` | 0600 | contents of the tree's own tmpfs mounts |
//! | `DIR/description.json` | 0600 | its namespaces and mounts, sums of the two; written last |

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufReader, Read, Seek as _, Write};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use image::checkpoint::{CheckpointReader, Item};
use image::pages::RunKind;
use image::state::Image;
use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::description::Description;

/// The engine's stream.
pub(super) const CHECKPOINT: &str = "checkpoint";
/// The contents of tmpfs mounts.
pub(super) const FILES: &str = "files";
const DESCRIPTION: &str = "description.json";

/// Largest description, bytes.
const MAX_DESCRIPTION: u64 = 16 << 20;

/// What a file of the directory must be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sum {
    bytes: u64,
    sha256: String,
}

/// Sums of the files of the directory, by name.
pub(super) type Sums = BTreeMap<String, Sum>;

/// A file that is summed while it is written.
#[derive(Debug)]
pub(super) struct Summed {
    file: File,
    bytes: u64,
    hash: Sha256,
}

impl Summed {
    /// Creates a file of the directory.
    pub(super) fn create(dir: &Path, name: &str) -> anyhow::Result<Self> {
        let path = dir.join(name);
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { file, bytes: 0, hash: Sha256::new() })
    }

    /// Has it on disk.
    pub(super) fn finish(self) -> io::Result<Sum> {
        self.file.sync_all()?;
        Ok(Sum { bytes: self.bytes, sha256: hex(self.hash) })
    }
}

impl Write for Summed {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.file.write(buffer)?;
        self.hash.update(buffer.get(..written).unwrap_or_default());
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes the directory, or takes an empty one.
pub(super) fn create(dir: &Path) -> anyhow::Result<()> {
    let what = || format!("cannot create {}", dir.display());
    if let Some(above) = dir.parent().filter(|above| !above.as_os_str().is_empty()) {
        fs::create_dir_all(above).with_context(what)?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other.with_context(what)?,
    }
    let mut entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    if entries.next().is_some() {
        bail!("{} is not empty; name a new directory", dir.display());
    }
    // It holds all that the programs know.
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("cannot close {} to others", dir.display()))
}

/// Writes the description, which completes the directory.
pub(super) fn complete(dir: &Path, description: &Description) -> anyhow::Result<()> {
    let json = serde_json::to_vec_pretty(description)?;
    let temporary = format!("{DESCRIPTION}.new");
    let mut file = Summed::create(dir, &temporary)?;
    let path = dir.join(DESCRIPTION);
    let written = file.write_all(&json).and_then(|()| file.finish());
    let renamed = written.and_then(|_| fs::rename(dir.join(&temporary), &path));
    renamed
        .and_then(|()| File::open(dir)?.sync_all())
        .with_context(|| format!("cannot write {}", path.display()))
}

/// A checkpoint that is whole, and that this host could be the one for.
#[derive(Debug)]
pub(super) struct Archive {
    pub(super) description: Description,
    /// [`CHECKPOINT`], at its beginning.
    pub(super) checkpoint: File,
    /// [`FILES`], at its beginning.
    pub(super) files: File,
    pub(super) image: Box<Image>,
    /// Pages with content.
    pub(super) data_pages: u64,
    /// Pages of zeros.
    pub(super) zero_pages: u64,
    /// How often the tree's memory was gone through.
    pub(super) passes: u64,
}

impl Archive {
    /// Opens and reads all of it.
    pub(super) fn open(dir: &Path) -> anyhow::Result<Self> {
        private(dir)?;
        let description = description(dir)?;
        let mut sums = description.sums().clone();
        let mut take = |name: &str| -> anyhow::Result<File> {
            let path = dir.join(name);
            let sum = sums.remove(name).with_context(|| format!("{DESCRIPTION} does not name {name}"))?;
            checked(&path, &sum).with_context(|| format!("{} is not what was written", path.display()))
        };
        let (checkpoint, files) = (take(CHECKPOINT)?, take(FILES)?);
        if let Some(other) = sums.keys().next() {
            bail!("{DESCRIPTION} names {other:?}, which is no part of a checkpoint");
        }
        Self::read(description, checkpoint, files)
            .with_context(|| format!("cannot read {}", dir.join(CHECKPOINT).display()))
    }

    fn read(description: Description, checkpoint: File, files: File) -> anyhow::Result<Self> {
        let mut reader = CheckpointReader::new(BufReader::with_capacity(1 << 20, &checkpoint));
        let (mut data_pages, mut zero_pages, mut passes, mut image) = (0, 0, 0, None);
        while let Some(item) = reader.next()? {
            match item {
                Item::Shape(_) => passes += 1,
                Item::Pages(batch) => {
                    for run in batch.runs {
                        let pages = u64::from(run.pages);
                        if run.kind == RunKind::Data { data_pages += pages } else { zero_pages += pages }
                    }
                }
                Item::EndOfPages => {}
                Item::Image(last) => image = Some(last),
            }
        }
        drop(reader);
        let image = image.context("it ends without an image")?;
        (&checkpoint).rewind()?;
        Ok(Self { description, checkpoint, files, image, data_pages, zero_pages, passes })
    }
}

/// Nobody else may have changed what is run from here.
fn private(dir: &Path) -> anyhow::Result<()> {
    let found = fs::symlink_metadata(dir).with_context(|| format!("cannot open {}", dir.display()))?;
    ensure!(found.is_dir(), "{} is not a directory", dir.display());
    let (owner, mode) = (found.uid(), found.mode() & 0o7777);
    if owner != geteuid().as_raw() || mode & 0o077 != 0 {
        bail!(
            "{} belongs to user {owner} and has mode {mode:04o}: somebody else may have changed what is in it; if you \
             trust it: chown -R {} DIR && chmod 700 DIR",
            dir.display(),
            geteuid()
        );
    }
    Ok(())
}

fn description(dir: &Path) -> anyhow::Result<Description> {
    let path = dir.join(DESCRIPTION);
    let what = || format!("cannot read {}", path.display());
    let file = open(&path).with_context(what)?;
    let mut bytes = Vec::new();
    file.take(MAX_DESCRIPTION).read_to_end(&mut bytes).with_context(what)?;
    Description::parse(&bytes)
        .with_context(|| format!("{} is damaged, or of another program", path.display()))
}

/// A regular file of its own, not a link to one elsewhere.
fn open(path: &Path) -> anyhow::Result<File> {
    let file =
        File::options().read(true).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits()).open(path)?;
    let found = file.metadata()?;
    ensure!(found.is_file() && found.nlink() == 1, "it is not a file of its own");
    Ok(file)
}

fn checked(path: &Path, sum: &Sum) -> anyhow::Result<File> {
    let file = open(path)?;
    let length = file.metadata()?.len();
    ensure!(length == sum.bytes, "it has {length} bytes, not {}", sum.bytes);
    let mut hash = Sha256::new();
    let bytes = io::copy(&mut BufReader::with_capacity(1 << 20, &file), &mut hash)?;
    ensure!(bytes == sum.bytes, "it changes");
    let found = hex(hash);
    ensure!(found == sum.sha256, "its SHA-256 is {found}, not {}", sum.sha256);
    (&file).rewind()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory whose description says of itself that it is right.
    fn sealed(change: impl Fn(&mut serde_json::Value)) -> (tempfile::TempDir, anyhow::Error) {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let mut sums = Sums::new();
        for name in [CHECKPOINT, FILES] {
            let mut file = Summed::create(dir.path(), name).unwrap();
            file.write_all(name.as_bytes()).unwrap();
            sums.insert(name.to_owned(), file.finish().unwrap());
        }
        let pid = i32::try_from(std::process::id()).unwrap();
        let mut description = Description::of(pid, &BTreeMap::new()).unwrap();
        description.seal(sums).unwrap();
        let mut value = serde_json::to_value(&description).unwrap();
        change(&mut value);
        let mut description: Description = serde_json::from_value(value).unwrap();
        description.seal(description.sums().clone()).unwrap();
        complete(dir.path(), &description).unwrap();
        let error = Archive::open(dir.path()).unwrap_err();
        (dir, error)
    }

    #[test]
    fn what_is_sealed_is_judged_all_the_same() {
        let said = |change: &dyn Fn(&mut serde_json::Value)| format!("{:#}", sealed(change).1);
        // The description passes, what it describes is no checkpoint.
        assert!(said(&|_| ()).contains("frame"), "{}", said(&|_| ()));
        assert!(said(&|found| found["arch"] = "aarch64".into()).contains("of a aarch64 machine"));
        let outside = said(&|found| {
            let sum = found["sums"]["files"].clone();
            found["sums"]["../../etc/passwd"] = sum;
        });
        assert!(outside.contains("no part of a checkpoint"), "{outside}");
        let missing = said(&|found| drop(found["sums"].as_object_mut().unwrap().remove("files")));
        assert!(missing.contains("does not name files"), "{missing}");
    }

    #[test]
    fn a_directory_that_is_not_empty_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path()).unwrap();
        create(&dir.path().join("a/b")).unwrap();
        let said = format!("{:#}", create(dir.path()).unwrap_err());
        assert!(said.contains("is not empty"), "{said}");
    }
}
