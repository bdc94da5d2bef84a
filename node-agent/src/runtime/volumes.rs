//! Bind mounts with a mode: how what they show comes to another node.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};

use super::bundle::is_bind;

/// Annotations: `dev.gantry.mount.` and the destination of a bind mount; the value is `sync` or `shared`.
pub const MOUNT_ANNOTATION: &str = "dev.gantry.mount.";

/// How a volume comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It is copied to a directory of the target's own.
    Sync,
    /// It is on storage that both nodes have at the same path.
    Shared,
}

/// A directory of the host that a container sees by one or more bind mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Volume {
    /// The directory on this host.
    pub source: PathBuf,
    /// Where the container sees it (first).
    pub destination: PathBuf,
    /// How it comes.
    pub mode: Mode,
    /// What is mounted inside of the directory is seen, too.
    pub recursive: bool,
}

/// The volumes of a configuration, in the order of its mounts; each directory once.
///
/// # Errors
/// An annotation that says nothing sensible, as a sentence.
pub(crate) fn of(spec: &Spec) -> Result<Vec<Volume>, String> {
    let mut volumes: Vec<Volume> = Vec::new();
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    for (key, value) in spec.annotations().iter().flatten() {
        let Some(place) = key.strip_prefix(MOUNT_ANNOTATION) else { continue };
        if !mounts.iter().any(|mount| is_bind(mount) && mount.destination() == Path::new(place)) {
            return Err(format!("annotation {key} names no bind mount; its destination must follow the dot"));
        }
        if !matches!(value.as_str(), "sync" | "shared") {
            return Err(format!("annotation {key} is {value:?}; use sync or shared"));
        }
    }
    for mount in mounts {
        let Some((mode, source)) = mode(spec, mount).zip(mount.source().clone()) else { continue };
        let recursive = mount.options().iter().flatten().any(|option| option == "rbind");
        match volumes.iter_mut().find(|known| known.source == source) {
            Some(known) if known.mode == mode => known.recursive |= recursive,
            Some(known) => {
                let (one, two) = (known.destination.display(), mount.destination().display());
                return Err(format!("the mounts on {one} and {two} show one directory; give both one mode"));
            }
            None => {
                let destination = mount.destination().clone();
                volumes.push(Volume { source, destination, mode, recursive });
            }
        }
    }
    Ok(volumes)
}

fn mode(spec: &Spec, mount: &Mount) -> Option<Mode> {
    let key = format!("{MOUNT_ANNOTATION}{}", mount.destination().display());
    match spec.annotations().as_ref()?.get(&key)?.as_str() {
        "sync" if is_bind(mount) => Some(Mode::Sync),
        "shared" if is_bind(mount) => Some(Mode::Shared),
        _ => None,
    }
}

/// What keeps the volumes of a bundle from being moved, as a sentence. Sources are absolute.
pub(crate) fn refusal(spec: &Spec, rootfs: &Path) -> Option<String> {
    let volumes = match of(spec) {
        Ok(volumes) => volumes,
        Err(why) => return Some(why),
    };
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut taken = vec![(real(rootfs), "the root directory".to_owned())];
    for volume in &volumes {
        let place = volume.destination.display();
        if !volume.source.is_dir() {
            return Some(format!(
                "annotation {MOUNT_ANNOTATION}{place}: {} is not a directory, and nothing else can be a volume",
                volume.source.display()
            ));
        }
        let source = real(&volume.source);
        // Copied twice, it would be two directories afterwards.
        let inside =
            |(other, _): &&(PathBuf, String)| source.starts_with(other) || other.starts_with(&source);
        if let Some((_, what)) = taken.iter().find(inside).filter(|_| volume.mode == Mode::Sync) {
            return Some(format!(
                "annotation {MOUNT_ANNOTATION}{place}: {} and {what} lie within each other; move one of them",
                source.display()
            ));
        }
        taken.push((source, format!("the volume on {place}")));
    }
    None
}

/// Gives every mount of the `sync` volume number `number` another source.
pub(crate) fn set_source(spec: &mut Spec, volume: &Volume, source: &Path) {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in &mut mounts {
        if is_bind(mount) && mount.source().as_ref() == Some(&volume.source) {
            mount.set_source(Some(source.to_owned()));
        }
    }
    spec.set_mounts(Some(mounts));
}

/// Whether what this mount shows comes along.
pub(crate) fn comes_along(spec: &Spec, mount: &Mount) -> bool {
    let volumes = of(spec).unwrap_or_default();
    let is = |volume: &Volume| volume.mode == Mode::Sync && mount.source().as_ref() == Some(&volume.source);
    is_bind(mount) && volumes.iter().any(is)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(annotations: &serde_json::Value, mounts: &[(&str, &Path)]) -> Spec {
        let mounts: Vec<_> = mounts
            .iter()
            .map(
                |(to, from)| json!({"destination": to, "type": "bind", "source": from, "options": ["rbind"]}),
            )
            .collect();
        let spec = json!({"ociVersion": "1.0.2", "annotations": annotations, "mounts": mounts});
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn each_directory_is_one_volume() {
        let dir = tempfile::tempdir().unwrap();
        let (data, other) = (dir.path().join("data"), dir.path().join("other"));
        std::fs::create_dir(&data).unwrap();
        std::fs::create_dir(&other).unwrap();
        let annotations = json!({"dev.gantry.mount./a": "sync", "dev.gantry.mount./b": "sync", "x": "y"});
        let mut spec = spec(&annotations, &[("/a", &data), ("/b", &data), ("/c", &other)]);
        let volumes = of(&spec).unwrap();
        assert_eq!(volumes.len(), 1);
        assert_eq!((volumes[0].source.as_path(), volumes[0].mode), (data.as_path(), Mode::Sync));
        assert_eq!(refusal(&spec, &dir.path().join("rootfs")), None);
        set_source(&mut spec, &volumes[0], Path::new("/new"));
        let sources: Vec<_> = spec.mounts().iter().flatten().filter_map(|m| m.source().clone()).collect();
        assert_eq!(sources, [PathBuf::from("/new"), "/new".into(), other]);
        let mounts = spec.mounts().clone().unwrap();
        assert_eq!(mounts.iter().map(|m| comes_along(&spec, m)).collect::<Vec<_>>(), [true, true, false]);
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir_all(data.join("inner")).unwrap();
        std::fs::write(dir.path().join("file"), b"x").unwrap();
        let root = dir.path().join("rootfs");
        let case = |annotations: serde_json::Value, mounts: &[(&str, &Path)], word: &str| {
            let why = refusal(&spec(&annotations, mounts), &root).expect(word);
            assert!(why.contains(word), "{why}");
        };
        case(json!({"dev.gantry.mount./a": "copy"}), &[("/a", &data)], "use sync or shared");
        case(json!({"dev.gantry.mount./b": "sync"}), &[("/a", &data)], "names no bind mount");
        case(json!({"dev.gantry.mount./a": "sync"}), &[("/a", &dir.path().join("file"))], "not a directory");
        case(json!({"dev.gantry.mount./a": "sync"}), &[("/a", dir.path())], "the root directory");
        let both = json!({"dev.gantry.mount./a": "sync", "dev.gantry.mount./b": "sync"});
        case(both, &[("/a", &data), ("/b", &data.join("inner"))], "the volume on /a");
        let both = json!({"dev.gantry.mount./a": "sync", "dev.gantry.mount./b": "shared"});
        case(both, &[("/a", &data), ("/b", &data)], "one mode");
    }
}
