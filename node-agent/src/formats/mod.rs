//! What agents of adjacent versions read of one another: messages, pages, checkpoints and journals of the version before are
//! laid out as they were.
//!
//! The encoding has no names in it (postcard), so a field that is added, removed or moved anywhere below a message changes
//! what an older agent understands. The files beside this one hold the layout of each version that is spoken, a type on
//! each line. A change takes a new version and a new file once the version was released; before,
//! `GANTRY_WRITE_FORMATS=1 cargo test -p node-agent --lib formats` takes it over into all of them.
//!
//! What travels as JSON (a container's description) has names: fields may be added there, with a default.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde_reflection::{ContainerFormat, Registry};

use crate::files::Op;
use crate::journal::Record;
use crate::network::state::NetState;
use crate::transfer::PROTOCOL_VERSIONS;
use crate::transfer::bulk::Mark;
use crate::transfer::message::{PeerMessage, Purpose};

/// What an enumeration got later, by the first version that knows it. Nothing of it is sent to an agent that speaks an
/// older one.
const SINCE: [(u32, &str, &str); 1] = [(4, "message.PeerMessage", "Served")];

/// The layouts of these types and of all below them. Enumerations below the first are explored only when they are named.
macro_rules! layouts {
    ($within:literal: $($of:ty),+) => {{
        let mut tracer = serde_reflection::Tracer::new(serde_reflection::TracerConfig::default());
        $(tracer.trace_type::<$of>(&serde_reflection::Samples::new()).unwrap();)+
        let named = |(name, of)| (format!("{}.{name}", $within), of);
        tracer.registry().unwrap().into_iter().map(named).collect::<serde_reflection::Registry>()
    }};
}
pub(crate) use layouts;

fn protocol() -> Registry {
    let messages = layouts!(
        "message": PeerMessage, Purpose, Mark, crate::commit::Answer, crate::commit::Owner, image::Subject,
        image::files::FileKind, image::files::LockKind, image::namespaces::Contents, image::shape::Backing, image::shape::ObjectKind,
        image::files::TerminalSide, image::sockets::TcpState, image::sockets::UnixState, image::state::Report, image::state::Resume,
        std::net::SocketAddr, std::net::IpAddr
    );
    let parts = [
        layouts!("files": Op),
        layouts!("network": NetState, crate::network::state::Section),
        crate::runtime::mount_layouts(),
    ];
    parts.into_iter().flatten().chain(messages).collect()
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/formats").join(name)
}

fn text(registry: &Registry) -> String {
    registry.iter().map(|(name, of)| format!("{name} {}\n", serde_json::to_string(of).unwrap())).collect()
}

fn kept(name: &str) -> Registry {
    let text = fs::read_to_string(path(name)).unwrap();
    let line = |line: &str| {
        let (name, of) = line.split_once(' ').unwrap();
        (name.to_owned(), serde_json::from_str(of).unwrap())
    };
    text.lines().map(line).collect()
}

/// What the code lays out for an agent that speaks this version.
fn spoken(version: u32) -> Registry {
    let mut registry = protocol();
    for (_, name, variant) in SINCE.iter().filter(|(since, ..)| *since > version) {
        if let Some(ContainerFormat::Enum(variants)) = registry.get_mut(*name) {
            variants.retain(|_, known| known.name != *variant);
        }
    }
    registry
}

/// The file is what the code says.
fn is_kept(name: &str, now: &Registry) {
    if std::env::var_os("GANTRY_WRITE_FORMATS").is_some() {
        fs::write(path(name), text(now)).unwrap();
    }
    let kept = kept(name);
    let all: BTreeMap<_, _> = kept.iter().chain(now).collect();
    for of in all.keys() {
        assert_eq!(kept.get(*of), now.get(*of), "{of} is laid out otherwise than src/formats/{name} says");
    }
}

#[test]
fn every_version_that_is_spoken_is_laid_out_as_it_was_agreed() {
    for version in PROTOCOL_VERSIONS {
        is_kept(&format!("protocol-{version}.txt"), &spoken(version));
    }
}

#[test]
fn the_journal_is_laid_out_as_it_was() {
    is_kept(
        "journal.txt",
        &layouts!("journal": Record, crate::commit::Owner, crate::journal::End, crate::session::status::Role),
    );
}
