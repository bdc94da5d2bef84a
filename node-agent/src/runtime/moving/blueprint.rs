//! What a node needs to build the same sandbox: it travels ahead of the container.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use image::{Refusal, Subject};
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use super::clocks::Clocks;
use crate::network::{self, Addressing};
use crate::runtime::ContainerName;
use crate::runtime::bundle::{ROOTFS_ANNOTATION, is_bind};
use crate::runtime::userns::UserNamespace;
use crate::runtime::volumes::{self, Mode};
use crate::session::ports::HostState;

/// A file in a shared directory that proves that both nodes mean the same one.
const MARKER: &str = ".gantry-shared";

/// Version of [`Blueprint`].
const VERSION: u32 = 2;

/// A container without its state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Blueprint {
    version: u32,
    pub(super) name: ContainerName,
    pub(super) spec: Spec,
    pub(super) rootfs: Rootfs,
    /// Directories that the container sees by bind mounts and that both nodes have.
    shared: Vec<Shared>,
    pub(super) network: Addressing,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) created: SystemTime,
    pub(super) host: Vec<HostState>,
    pub(super) clocks: Clocks,
}

/// How the root directory comes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Rootfs {
    /// Its files are copied.
    Sync,
    /// It is on storage that both nodes have at the same path.
    Shared(Shared),
}

/// A directory on storage that both nodes have at the same path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shared {
    /// Where.
    pub(super) path: PathBuf,
    /// Content of its marker file.
    marker: Vec<u8>,
}

/// Why a blueprint cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub(super) enum BlueprintError {
    /// The bytes are not a blueprint of this version.
    #[error("the container's description is not understood: {0}")]
    Malformed(String),
    /// The annotation has another value.
    #[error("annotation {ROOTFS_ANNOTATION} is {0:?}")]
    Mode(String),
    /// The annotations of volumes are not understood.
    #[error("{0}")]
    Volume(String),
    /// The marker cannot be read or differs.
    #[error("{path} {why}")]
    Marker {
        /// The marker's path.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl BlueprintError {
    /// The same as what stands against a move.
    pub(super) fn refusal(&self) -> Refusal {
        let way_out = match self {
            Self::Malformed(_) => "run agents of one version".to_owned(),
            Self::Mode(_) => "use sync or shared".to_owned(),
            Self::Volume(_) => "correct the annotation".to_owned(),
            Self::Marker { .. } => {
                format!("put a file {MARKER} with a random content into the shared directory")
            }
        };
        Refusal { pid: 0, subject: Subject::Container, reason: self.to_string(), way_out }
    }
}

impl Rootfs {
    /// How the root directory of a container with this configuration comes.
    pub(super) fn of(spec: &Spec, path: &Path) -> Result<Self, BlueprintError> {
        let annotation = spec.annotations().as_ref().and_then(|map| map.get(ROOTFS_ANNOTATION));
        match annotation.map(String::as_str) {
            None | Some("sync") => Ok(Self::Sync),
            Some("shared") => Shared::of(path).map(Self::Shared),
            Some(other) => Err(BlueprintError::Mode(other.to_owned())),
        }
    }
}

impl Shared {
    fn of(path: &Path) -> Result<Self, BlueprintError> {
        Ok(Self { marker: marker(path)?, path: path.to_owned() })
    }

    /// It is the same one here.
    fn verify(&self) -> Result<(), BlueprintError> {
        if marker(&self.path)? == self.marker {
            return Ok(());
        }
        let path = self.path.join(MARKER);
        Err(BlueprintError::Marker { path, why: "differs from the source's".to_owned() })
    }
}

fn marker(dir: &Path) -> Result<Vec<u8>, BlueprintError> {
    let path = dir.join(MARKER);
    let refuse = |why: String| BlueprintError::Marker { path: path.clone(), why };
    let size = fs::metadata(&path).map_err(|error| refuse(format!("cannot be read: {error}")))?.len();
    if size == 0 || size > 4096 {
        return Err(refuse("must have 1 to 4096 bytes".to_owned()));
    }
    fs::read(&path).map_err(|error: io::Error| refuse(format!("cannot be read: {error}")))
}

impl Blueprint {
    pub(super) fn new(
        record: &crate::runtime::record::Record,
        spec: Spec,
        host: Vec<HostState>,
        clocks: Clocks,
    ) -> Result<Self, BlueprintError> {
        let volumes = volumes::of(&spec).map_err(BlueprintError::Volume)?;
        let shared = volumes.iter().filter(|volume| volume.mode == Mode::Shared);
        let shared = shared.map(|volume| Shared::of(&volume.source)).collect::<Result<_, _>>()?;
        Ok(Self {
            version: VERSION,
            shared,
            name: record.name.clone(),
            rootfs: Rootfs::of(&spec, &record.rootfs)?,
            spec,
            network: record.network.clone(),
            labels: record.labels.clone(),
            created: record.created,
            host,
            clocks,
        })
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, BlueprintError> {
        let blueprint: Self =
            serde_json::from_slice(bytes).map_err(|error| BlueprintError::Malformed(error.to_string()))?;
        if blueprint.version != VERSION {
            return Err(BlueprintError::Malformed(format!("version {}, not {VERSION}", blueprint.version)));
        }
        Ok(blueprint)
    }

    /// Every shared directory is the same one here.
    pub(super) fn verify(&self) -> Result<(), BlueprintError> {
        if let Rootfs::Shared(shared) = &self.rootfs {
            shared.verify()?;
        }
        self.shared.iter().try_for_each(Shared::verify)
    }

    /// Its volumes that are copied, to directories in `bundle`: each with its new one. The configuration names these
    /// from now on.
    pub(super) fn take_volumes(&mut self, bundle: &Path) -> Result<Vec<PathBuf>, BlueprintError> {
        let volumes = volumes::of(&self.spec).map_err(BlueprintError::Volume)?;
        let copied = volumes.iter().filter(|volume| volume.mode == Mode::Sync).enumerate();
        let mut places = Vec::new();
        for (number, volume) in copied {
            let place = bundle.join("volumes").join(number.to_string());
            volumes::set_source(&mut self.spec, volume, &place);
            places.push(place);
        }
        Ok(places)
    }

    /// What this node lacks for it.
    pub(super) fn missing(&self, bridge: Option<&str>, link: &str) -> Vec<Refusal> {
        let refuse = |reason: String, way_out: &str| Refusal {
            pid: 0,
            subject: Subject::Container,
            reason,
            way_out: way_out.to_owned(),
        };
        let mut refusals = Vec::new();
        for mount in self.spec.mounts().iter().flatten().filter(|mount| is_bind(mount)) {
            if volumes::comes_along(&self.spec, mount) {
                continue;
            }
            let source = mount.source().clone().unwrap_or_default();
            if !source.exists() {
                refusals.push(Refusal {
                    pid: 0,
                    subject: Subject::Mount(mount.destination().display().to_string()),
                    reason: format!("its source {} does not exist on the target node", source.display()),
                    way_out: "make it there, or move the container to a node that has it".to_owned(),
                });
            }
        }
        let spaces = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
        if UserNamespace::of(&self.spec).is_some() && matches!(spaces.trim(), "" | "0") {
            refusals.push(refuse(
                "it has a user namespace, and the target node allows none".to_owned(),
                "raise user.max_user_namespaces there (sysctl)",
            ));
        }
        match (self.network.ip, bridge) {
            (Some(ip), None) => refusals.push(refuse(
                format!("its address {ip} needs a bridge, and the target node has none configured"),
                "set `bridge` in the node agent's configuration",
            )),
            (Some(ip), Some(bridge)) if !network::has_bridge(bridge) => refusals.push(refuse(
                format!("its address {ip} needs the bridge {bridge}, which the target node does not have"),
                "make the bridge, or name another one in the node agent's configuration",
            )),
            _ => {}
        }
        if self.network.ip.is_some() && network::has_link(link) {
            refusals.push(refuse(
                format!(
                    "the target node has an interface {link} already, which its link is to be called there"
                ),
                "remove that interface",
            ));
        }
        refusals
    }
}
