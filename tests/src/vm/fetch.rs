//! Kernels of the distribution, unpacked into a cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Depends on the newest kernel of each suite.
const META: &str = "linux-image-cloud-amd64";
/// Where kernels are kept from run to run.
const CACHE: &str = "/var/cache/gantry-vm";

/// A series of kernels that differ in what Gantry uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Series {
    /// Soft-dirty bits, no `PAGEMAP_SCAN`.
    V6_1,
    /// `PAGEMAP_SCAN`; what the distribution has as a backport.
    V6_12,
}

impl Series {
    /// How its versions begin.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1.",
            Self::V6_12 => "6.12.",
        }
    }
}

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// As uname(2) says.
    pub release: String,
    /// What is booted.
    pub image: PathBuf,
    /// Where its modules are.
    pub modules: PathBuf,
}

/// The package of the newest kernel of a series that apt knows.
#[must_use]
pub fn package(series: Series) -> Option<String> {
    let shown = Command::new("apt-cache").args(["show", META]).output().ok()?;
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    let stanzas = text.split("\n\n").filter(|stanza| {
        field(stanza, "Version: ").is_some_and(|version| version.starts_with(series.prefix()))
    });
    // apt shows the newest first.
    stanzas
        .filter_map(|stanza| field(stanza, "Depends: "))
        .find_map(|depends| depends.split([' ', ',']).next().map(str::to_owned))
}

fn field<'a>(stanza: &'a str, name: &str) -> Option<&'a str> {
    stanza.lines().find_map(|line| line.strip_prefix(name))
}

/// Why there is no kernel of that series here, if there is none.
#[must_use]
pub fn missing(series: Series) -> Option<String> {
    let known = package(series).is_some() || cached(series).is_some();
    (!known).then(|| format!("apt knows no kernel {}x: .ci/run adds what has it", series.prefix()))
}

/// The newest kernel of a series: from the cache, or through apt.
///
/// # Errors
/// When apt does not have it or cannot fetch it.
pub fn kernel(series: Series) -> Result<Kernel> {
    fs::create_dir_all(CACHE)?;
    // One at a time: tests may run beside each other.
    let lock = fs::File::create(Path::new(CACHE).join("lock"))?;
    lock.lock().with_context(|| format!("lock {CACHE}"))?;
    let dir = match package(series) {
        Some(package) => {
            let dir = Path::new(CACHE).join(&package);
            if !dir.exists() {
                unpack(&package, &dir)?;
            }
            dir
        }
        None => cached(series).with_context(|| missing(series).unwrap_or_default())?,
    };
    of(&dir)
}

fn cached(series: Series) -> Option<PathBuf> {
    let start = format!("linux-image-{}", series.prefix());
    let mut found: Vec<PathBuf> = fs::read_dir(CACHE)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&start)))
        .collect();
    found.sort();
    found.pop()
}

fn unpack(package: &str, dir: &Path) -> Result<()> {
    let work = tempfile::Builder::new().prefix(".unpack").tempdir_in(CACHE)?;
    let fetched = Command::new("apt-get").args(["download", package]).current_dir(&work).output()?;
    ensure!(fetched.status.success(), "apt-get download {package}: {fetched:?}");
    let archive = fs::read_dir(&work)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get fetched nothing for {package}"))?;
    let tree = work.path().join("tree");
    let done = Command::new("dpkg").arg("-x").arg(&archive).arg(&tree).output()?;
    ensure!(done.status.success(), "dpkg -x {}: {done:?}", archive.display());
    fs::rename(&tree, dir).with_context(|| format!("keep {}", dir.display()))
}

fn of(dir: &Path) -> Result<Kernel> {
    let modules = dir.join("lib/modules");
    let entry = fs::read_dir(&modules)
        .with_context(|| format!("read {}", modules.display()))?
        .next()
        .with_context(|| format!("{} is empty", modules.display()))??;
    let release = entry.file_name().to_string_lossy().into_owned();
    let image = dir.join("boot").join(format!("vmlinuz-{release}"));
    ensure!(image.exists(), "{} has no kernel", dir.display());
    Ok(Kernel { modules: entry.path(), image, release })
}
