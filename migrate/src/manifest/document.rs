//! The shape of a document. The fields of all kinds stand beside each other, so that a field nobody knows is refused
//! with its line; one that belongs to another kind is refused by its path afterwards.

use std::collections::HashMap;
use std::fmt;

use proto::v1::{Compression, OnTimeout};
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, Visitor};

use crate::render::units;

/// One document.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Document {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) metadata: Option<Metadata>,
    pub(super) spec: Option<Spec>,
    /// What `get` prints may be applied: the status is the coordinator's and passed over.
    #[serde(default, rename = "status")]
    _status: Option<IgnoredAny>,
    pub(super) items: Option<Vec<Document>>,
}

/// Metadata; what the coordinator sets is passed over.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Metadata {
    #[serde(default)]
    pub(super) name: String,
    pub(super) labels: Option<HashMap<String, String>>,
    #[serde(default, rename = "uid")]
    _uid: Option<IgnoredAny>,
    #[serde(default, rename = "resourceVersion")]
    _resource_version: Option<IgnoredAny>,
    #[serde(default, rename = "creationTimestamp")]
    _creation_timestamp: Option<IgnoredAny>,
}

/// Every field of every kind.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Spec {
    pub(super) container: Option<String>,
    pub(super) target_node: Option<String>,
    pub(super) node_selector: Option<HashMap<String, String>>,
    pub(super) background: Option<bool>,
    pub(super) policy: Option<String>,
    pub(super) max_downtime: Option<Time>,
    pub(super) timeout: Option<Time>,
    pub(super) on_timeout: Option<OnTimeoutWord>,
    pub(super) bandwidth: Option<Size>,
    pub(super) max_rounds: Option<u32>,
    pub(super) throttle: Option<Throttle>,
    pub(super) compression: Option<CompressionWord>,
    pub(super) selector: Option<Selector>,
    pub(super) limits: Option<Limits>,
    pub(super) node: Option<String>,
    pub(super) deadline: Option<Time>,
    pub(super) max_parallel: Option<u32>,
    pub(super) move_back: Option<bool>,
    pub(super) undo: Option<bool>,
}

impl Spec {
    /// The first field that is given; after a kind has taken its own, one that it does not have.
    pub(super) fn first_given(&self) -> Option<&'static str> {
        let given = [
            ("container", self.container.is_some()),
            ("targetNode", self.target_node.is_some()),
            ("nodeSelector", self.node_selector.is_some()),
            ("background", self.background.is_some()),
            ("policy", self.policy.is_some()),
            ("maxDowntime", self.max_downtime.is_some()),
            ("timeout", self.timeout.is_some()),
            ("onTimeout", self.on_timeout.is_some()),
            ("bandwidth", self.bandwidth.is_some()),
            ("maxRounds", self.max_rounds.is_some()),
            ("throttle", self.throttle.is_some()),
            ("compression", self.compression.is_some()),
            ("selector", self.selector.is_some()),
            ("limits", self.limits.is_some()),
            ("node", self.node.is_some()),
            ("deadline", self.deadline.is_some()),
            ("maxParallel", self.max_parallel.is_some()),
            ("moveBack", self.move_back.is_some()),
            ("undo", self.undo.is_some()),
        ];
        given.into_iter().find(|(_, given)| *given).map(|(field, _)| field)
    }
}

/// Which containers a policy is for.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Selector {
    pub(super) match_labels: Option<HashMap<String, String>>,
}

/// Limits of a migration.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Limits {
    pub(super) max_downtime: Option<Time>,
    pub(super) timeout: Option<Time>,
    pub(super) on_timeout: Option<OnTimeoutWord>,
    pub(super) bandwidth: Option<Size>,
    pub(super) max_rounds: Option<u32>,
    pub(super) throttle: Option<Throttle>,
    pub(super) compression: Option<CompressionWord>,
}

/// How much a container may be slowed down.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Throttle {
    pub(super) max_percent: Option<u32>,
}

/// Values of `onTimeout`.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
pub(super) enum OnTimeoutWord {
    Abort,
    Force,
}

impl OnTimeoutWord {
    pub(super) fn api(self) -> OnTimeout {
        match self {
            Self::Abort => OnTimeout::Abort,
            Self::Force => OnTimeout::Force,
        }
    }
}

/// Values of `compression`.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum CompressionWord {
    Auto,
    Off,
    Lz4,
    Zstd,
}

impl CompressionWord {
    pub(super) fn api(self) -> Compression {
        match self {
            Self::Auto => Compression::Auto,
            Self::Off => Compression::Off,
            Self::Lz4 => Compression::Lz4,
            Self::Zstd => Compression::Zstd,
        }
    }
}

/// A duration as people write it: `50ms`, `5m`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Time(std::time::Duration);

impl From<Time> for prost_types::Duration {
    fn from(time: Time) -> Self {
        units::to_proto(time.0)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map(Self).map_err(|error| {
            D::Error::custom(format_args!("{text:?} is no duration ({error}): write 50ms or 5m"))
        })
    }
}

/// Bytes as people write them: `800000`, `100MB`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size(pub(super) u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes: 800000 or 100MB")
            }

            fn visit_u64<E: Error>(self, bytes: u64) -> Result<Size, E> {
                self.visit_str(&bytes.to_string())
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Size, E> {
                units::parse_bytes(text).map(Size).map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Bytes)
    }
}
